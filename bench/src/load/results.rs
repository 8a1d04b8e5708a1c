//! What a wire did, in numbers and as a table.

use serde::Serialize;

use super::{clients::Ends, plan::Plan, tally::Lags};
use crate::{
    report::Table,
    usage::{Loopback, Usage},
    wire::Wire,
};

/// What happened while all streams ran.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Window {
    pub(super) seconds: f64,
    pub(super) tokens: u64,
    pub(super) client: Usage,
    pub(super) agent: Usage,
    pub(super) loopback: Option<Loopback>,
}

impl Window {
    fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds
    }

    /// A quantity per token; NaN where there were none.
    fn per_token(&self, quantity: f64) -> f64 {
        if self.tokens == 0 { f64::NAN } else { quantity / self.tokens as f64 }
    }
}

/// One wire's result.
#[derive(Clone, Debug, Serialize)]
pub(super) struct WireResult {
    pub(super) wire: Wire,
    pub(super) tokens_per_second: f64,
    pub(super) client_cpu_s_per_million_tokens: f64,
    pub(super) agent_cpu_s_per_million_tokens: f64,
    pub(super) window: Window,
    pub(super) lags: Lags,
    pub(super) streams_finished: u32,
    pub(super) streams_unfinished: u32,
    pub(super) streams_failed: u32,
    pub(super) first_failure: Option<String>,
    pub(super) tokens_received: u64,
    pub(super) tokens_lost: u64,
    pub(super) tokens_duplicated: u64,
}

/// A wire that reaches this share of the ideal holds the rate; the rest is the measuring of the window's length.
const HELD: f64 = 0.995;
const MILLION: f64 = 1e6;

impl WireResult {
    pub(super) fn new(wire: Wire, window: Window, lags: Lags, ends: Ends) -> Self {
        let per_million = |usage: &Usage| window.per_token(usage.cpu_s()) * MILLION;
        Self {
            wire,
            tokens_per_second: window.tokens_per_second(),
            client_cpu_s_per_million_tokens: per_million(&window.client),
            agent_cpu_s_per_million_tokens: per_million(&window.agent),
            lags,
            streams_finished: ends.finished,
            streams_unfinished: ends.unfinished,
            streams_failed: ends.failed,
            first_failure: ends.first_failure,
            tokens_received: ends.received,
            tokens_lost: ends.lost,
            tokens_duplicated: ends.duplicated,
            window,
        }
    }

    /// What the table does not say: a rate not held, streams that failed. `None` where all is well.
    pub(super) fn remarks(&self, plan: &Plan) -> Option<String> {
        let ideal = plan.ideal_tokens_per_second();
        let mut remarks = Vec::new();
        if self.tokens_per_second < HELD * ideal {
            remarks.push(format!("does not hold {ideal:.0} tokens/s here: {:.0}", self.tokens_per_second));
        }
        if self.streams_unfinished > 0 {
            remarks.push(format!("{} streams were so late that they were broken off", self.streams_unfinished));
        }
        if self.streams_failed > 0 {
            let reason = self.first_failure.as_deref().unwrap_or("no reason given");
            remarks.push(format!("{} streams failed, the first with {reason:?}", self.streams_failed));
        }
        (!remarks.is_empty()).then(|| format!("{}: {}.", self.wire, remarks.join("; ")))
    }
}

/// One row for each wire.
pub(super) fn table(results: &[WireResult], plan: &Plan, plaintext: bool) -> Table {
    let mut table = Table::new([
        "wire",
        "tokens/s",
        "of ideal",
        "late p50 ms",
        "p99 ms",
        "max ms",
        "transit p50 ms",
        "p99 ms",
        "lost",
        "doubled",
        "agent CPU s/M tokens",
        "client CPU s/M tokens",
        "bytes/token",
        "packets/token",
        "agent MB",
    ]);
    for result in results {
        let window = &result.window;
        let (lateness, transit) = (&result.lags.lateness, &result.lags.transit);
        let per_token = |count: fn(&Loopback) -> u64| {
            window.loopback.as_ref().map_or(f64::NAN, |loopback| window.per_token(count(loopback) as f64))
        };
        let ms = |ns: u64| format!("{:.2}", ns as f64 / 1e6);
        let split =
            |usage: &Usage, total: f64| format!("{total:.1} ({:.0} % kernel)", 100.0 * usage.system_s / usage.cpu_s());
        let megabytes = |usage: &Usage| format!("{:.0}", usage.resident_bytes as f64 / 1e6);
        table.row([
            result.wire.label(plaintext).to_owned(),
            format!("{:.0}", result.tokens_per_second),
            format!("{:.1} %", 100.0 * result.tokens_per_second / plan.ideal_tokens_per_second()),
            ms(lateness.quantile_ns(0.5)),
            ms(lateness.quantile_ns(0.99)),
            ms(lateness.max_ns()),
            ms(transit.quantile_ns(0.5)),
            ms(transit.quantile_ns(0.99)),
            result.tokens_lost.to_string(),
            result.tokens_duplicated.to_string(),
            split(&window.agent, result.agent_cpu_s_per_million_tokens),
            split(&window.client, result.client_cpu_s_per_million_tokens),
            format!("{:.0}", per_token(|loopback| loopback.bytes)),
            format!("{:.2}", per_token(|loopback| loopback.packets)),
            megabytes(&window.agent),
        ]);
    }
    table
}
