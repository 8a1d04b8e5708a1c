//! Every estimate as a line of CSV.

use std::fmt::Write as _;

use super::{
    aggregate::{Data, Setting},
    estimate::Estimate,
    palette::look,
};
use crate::net::record::{Event, Loss};

const HEADER: &str = "subject,measure,median,low,high,low_and_high_are,n,rtt_ms,loss_model,loss_percent,burst_packets,\
                      rate_mbit,tokens_per_s,streams,event,tcp_congestion_control,connections";

pub(super) fn csv(data: &Data) -> String {
    let mut out = format!("{HEADER}\n");
    for ((subject, at, measure), values) in &data.values {
        let values: Vec<f64> = values.iter().map(|value| value.value).collect();
        let (Some(estimate), Some(setting)) = (Estimate::of(&values), data.settings.get(*at)) else { continue };
        let _ = writeln!(
            out,
            "{},{},{},{},{},{},{},{}",
            look(*subject).class,
            measure.key(),
            short(estimate.median),
            short(estimate.low),
            short(estimate.high),
            estimate.spread.name(),
            estimate.n,
            columns(setting)
        );
    }
    out
}

/// Five significant digits: more than was measured.
fn short(value: f64) -> String {
    let digits = 4 - value.abs().max(1e-9).log10().floor() as i32;
    let scale = 10_f64.powi(digits);
    format!("{}", (value * scale).round() / scale)
}

fn columns(setting: &Setting) -> String {
    match setting {
        Setting::Network(network) => {
            let (model, percent, burst) = match network.loss {
                Loss::None => ("none", 0.0, String::new()),
                Loss::Iid { percent } => ("iid", percent, String::new()),
                Loss::Burst { percent, mean_packets } => ("burst", percent, mean_packets.to_string()),
            };
            let event = match network.event {
                Event::None => "",
                Event::AddressChange => "address_change",
                Event::UdpBlocked => "udp_blocked",
                Event::AgentKilled => "agent_killed",
            };
            format!(
                "{},{model},{percent},{burst},{},{},{},{event},{},",
                network.rtt_ms,
                network.rate_mbit.map(|rate| rate.to_string()).unwrap_or_default(),
                network.token_rate,
                network.streams,
                // The only text that comes from a system.
                network.congestion_control.replace([',', '"', '\n', '\r'], " ")
            )
        }
        Setting::Cpu { streams, token_rate } => format!(",,,,,{token_rate},{streams},,,"),
        Setting::Memory { connections } => format!(",,,,,,,,,{connections}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::example;

    #[test]
    fn every_line_has_every_column() {
        let csv = csv(&example::data());
        let columns = |line: &str| line.split(',').count();
        assert!(csv.lines().count() > 100);
        assert!(csv.lines().all(|line| columns(line) == columns(HEADER)), "{csv}");
    }

    #[test]
    fn figures_are_short() {
        assert_eq!(short(123.456_789), "123.46");
        assert_eq!(short(0.001_234_567), "0.0012346");
        assert_eq!((short(0.0).as_str(), short(1_234_567.8).as_str()), ("0", "1234600"));
    }
}
