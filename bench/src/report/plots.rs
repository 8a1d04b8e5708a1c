//! The plots: which figures each shows.

use std::collections::BTreeMap;

use super::{
    aggregate::{Data, Setting},
    estimate::Estimate,
    format::{self, number, plain},
    measure::Measure,
    palette::{Look, look},
    svg::{self, Axis, Bar, HeatRow, Names, Panel, Point, Series},
};
use crate::net::{
    record::{Conditions, Event, Loss},
    subject::Subject,
};

/// One plot, of one or several panels.
#[derive(Clone, Debug)]
pub(super) struct Figure {
    /// Of its file and its place on the page.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    /// What it shows, and over which network.
    pub(super) caption: String,
    pub(super) panels: Vec<Panel>,
}

/// Those for which something was measured.
pub(super) fn figures(data: &Data) -> Vec<Figure> {
    let all = [
        first_token(data),
        gap_distribution(data),
        gap_by_loss(data),
        stalls(data),
        stalls_by_rtt(data),
        cpu(data),
        memory(data),
        recovery(data),
        udp_blocked(data),
    ];
    all.into_iter().filter(|figure| !figure.panels.is_empty()).collect()
}

/// Those of one loss model by their percentage, 0 included where it was measured.
pub(super) fn losses(data: &Data, measure: Measure, base: &Conditions) -> Vec<(f64, Conditions)> {
    let percent = |network: &Conditions| match network.loss {
        Loss::None => Some(0.0),
        Loss::Iid { percent } => Some(percent),
        Loss::Burst { .. } => None,
    };
    data.vary(measure, base, percent, |base, percent| with_loss(base, *percent), |percent| *percent)
}

pub(super) fn with_loss(base: &Conditions, percent: f64) -> Conditions {
    let loss = if percent == 0.0 { Loss::None } else { Loss::Iid { percent } };
    Conditions { loss, ..base.clone() }
}

pub(super) fn rtts(data: &Data, measure: Measure, base: &Conditions) -> Vec<(f64, Conditions)> {
    let with = |base: &Conditions, rtt_ms: &f64| Conditions { rtt_ms: *rtt_ms, ..base.clone() };
    data.vary(measure, base, |network| Some(network.rtt_ms), with, |rtt_ms| *rtt_ms)
}

fn point(x: f64, estimate: Estimate) -> Point {
    Point { x, y: estimate.median, around: Some((estimate.low, estimate.high)) }
}

fn line(subject: Subject, points: Vec<Point>) -> Option<Series> {
    let series = Series { look: look(subject), label: subject.label().to_owned(), points, dots: true };
    Some(series).filter(|series| !series.points.is_empty())
}

fn highest(series: &[Series]) -> f64 {
    let points = series.iter().flat_map(|line| &line.points);
    points.map(|point| point.around.map_or(point.y, |around| around.1.max(point.y))).fold(0.0, f64::max)
}

fn first_token(data: &Data) -> Figure {
    let base = data.reference(Measure::TtftCold);
    let panel = |title: &str, measure: Measure| {
        // Without a round trip there is nothing to count in.
        let rtts: Vec<_> = rtts(data, measure, &base).into_iter().filter(|(rtt_ms, _)| *rtt_ms > 0.0).collect();
        let of = |subject, measure| -> Vec<Point> {
            let points = rtts.iter().filter_map(|(rtt_ms, network)| {
                Some(point(*rtt_ms, data.over_network(subject, network, measure)?.times(1.0 / rtt_ms)))
            });
            points.collect()
        };
        let mut series: Vec<Series> =
            data.subjects().into_iter().filter_map(|subject| line(subject, of(subject, measure))).collect();
        if measure == Measure::TtftCold {
            let routed = line(Subject::TitanQuic, of(Subject::TitanQuic, Measure::TtftRouted));
            let thin = Look { dashes: "3 3", bold: false, ..look(Subject::TitanQuic) };
            series.extend(routed.map(|line| Series { look: thin, label: "Titan QUIC, routed".to_owned(), ..line }));
        }
        let last = rtts.last().map(|(rtt_ms, _)| *rtt_ms)?;
        let mut x = Axis::linear("RTT of the path, ms", last);
        x.high = last;
        x.ticks = rtts.iter().map(|(rtt_ms, _)| (*rtt_ms, plain(*rtt_ms))).collect();
        let y = Axis::linear("RTTs until the first token", highest(&series));
        Some(svg::lines(title, &x, &y, &series, Names::AtEnds)).filter(|_| !series.is_empty())
    };
    let panels = [
        panel("Cold: no connection, no TLS session", Measure::TtftCold),
        panel("Resumed: a TLS session, no connection", Measure::TtftResumed),
        panel("Warm: a connection", Measure::TtftWarm),
    ];
    Figure {
        name: "first-token",
        title: "Round trips until the first token",
        caption: format!(
            "Time from the request to the first token read, in units of the path's round trip; 1 is the least possible. {}.",
            apart_from_rtt(&base)
        ),
        panels: panels.into_iter().flatten().collect(),
    }
}

fn apart_from_rtt(base: &Conditions) -> String {
    let network = format::network(base);
    capitalised(network.split_once(", ").map_or(network.as_str(), |(_, rest)| rest))
}

/// Gaps of how many losses are shown.
const DISTRIBUTIONS: [f64; 3] = [0.0, 1.0, 5.0];
/// Nines: 0 is 0 %, 1 is 90 %, 2 is 99 %, 3 is 99.9 %.
const MOST_NINES: f64 = 3.0;

fn gap_distribution(data: &Data) -> Figure {
    let base = data.reference(Measure::GapP99);
    let panels = DISTRIBUTIONS.into_iter().filter_map(|percent| gap_panel(data, &with_loss(&base, percent)));
    Figure {
        name: "gaps",
        title: "Gaps between tokens",
        caption: format!(
            "Share of all gaps that are at most so long, over all repetitions; the upper axis widens the tail, where text stutters. \
             The names are in the order of the 99 % gap, which stands beside them. RTT {} ms, {} tokens/s.",
            plain(base.rtt_ms),
            plain(base.token_rate)
        ),
        panels: panels.collect(),
    }
}

fn gap_panel(data: &Data, network: &Conditions) -> Option<Panel> {
    let mut ranked: Vec<(f64, Series)> = Vec::new();
    for subject in data.subjects() {
        let Some(gaps) = data.gaps(subject, network).filter(|gaps| !gaps.is_empty()) else { continue };
        let p99 = quantile_ms(gaps, 0.99);
        let label = format!("{} · {}", subject.label(), number(p99));
        ranked.push((p99, Series { look: look(subject), label, points: distribution(gaps), dots: false }));
    }
    ranked.sort_by(|left, right| left.0.total_cmp(&right.0));
    let series: Vec<Series> = ranked.into_iter().map(|(_, series)| series).collect();
    let points = || series.iter().flat_map(|line| &line.points);
    let low = points().map(|point| point.x).fold(f64::INFINITY, f64::min);
    let high = points().map(|point| point.x).fold(0.0, f64::max);
    if !(low > 0.0 && low.is_finite()) {
        return None;
    }
    // The shortest gaps, of tokens that came together, are all alike: a thousandth of the longest is short enough.
    let x = Axis::logarithmic("gap, ms", low.max(high / 1000.0), high);
    let nines = [(0.0, "0 %"), (1.0, "90 %"), (2.0, "99 %"), (3.0, "99.9 %")];
    let y = Axis {
        title: "gaps at most so long".to_owned(),
        low: 0.0,
        high: MOST_NINES,
        logarithmic: false,
        named: false,
        ticks: nines.into_iter().map(|(at, label)| (at, label.to_owned())).collect(),
    };
    Some(svg::lines(&capitalised(&format::loss(&network.loss)), &x, &y, &series, Names::Listed))
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().to_string() + letters.as_str()).unwrap_or_default()
}

fn quantile_ms(gaps: &BTreeMap<u64, u64>, share: f64) -> f64 {
    let count: u64 = gaps.values().sum();
    let mut left = (share * count as f64).ceil().max(1.0);
    for (ns, count) in gaps {
        left -= *count as f64;
        if left <= 0.0 {
            return *ns as f64 / 1e6;
        }
    }
    f64::NAN
}

/// Milliseconds by nines, as many points as can be told apart.
fn distribution(gaps: &BTreeMap<u64, u64>) -> Vec<Point> {
    const APART: f64 = 0.004;
    let count: u64 = gaps.values().sum();
    let mut points: Vec<Point> = Vec::new();
    let mut until = 0;
    for (ns, more) in gaps {
        let (x, before) = (*ns as f64 / 1e6, nines(until, count));
        until += more;
        let after = nines(until, count);
        // Upright where many gaps are equally long.
        for y in [before, after] {
            let far =
                points.last().is_none_or(|last| (last.y - y).abs() > APART || (last.x - x).abs() > last.x * APART);
            if far {
                points.push(Point { x, y, around: None });
            }
        }
        if after >= MOST_NINES {
            break;
        }
    }
    points
}

fn nines(until: u64, count: u64) -> f64 {
    let above = count.saturating_sub(until) as f64 / count as f64;
    if above > 0.0 { (-above.log10()).min(MOST_NINES) } else { MOST_NINES }
}

fn gap_by_loss(data: &Data) -> Figure {
    let base = data.reference(Measure::GapP99);
    let panel = |title: &str, networks: Vec<(f64, Conditions)>, axis: &str| {
        let of = |subject| -> Vec<Point> {
            let points = networks.iter().enumerate().filter_map(|(at, (_, network))| {
                Some(point(at as f64, data.over_network(subject, network, Measure::GapP99)?))
            });
            points.collect()
        };
        let series: Vec<Series> =
            data.subjects().into_iter().filter_map(|subject| line(subject, of(subject))).collect();
        let low = series.iter().flat_map(|line| &line.points).map(|point| point.y).fold(f64::INFINITY, f64::min);
        if networks.len() < 2 || low <= 0.0 {
            return None;
        }
        let x = Axis::named(axis, networks.iter().map(|(percent, _)| plain(*percent)));
        let y = Axis::logarithmic("p99 gap, ms", low, highest(&series));
        Some(svg::lines(title, &x, &y, &series, Names::AtEnds))
    };
    let apart = panel("Losses apart", losses(data, Measure::GapP99, &base), "packets lost in each direction, %");
    let together = panel("Losses in bursts", bursts(data, &base), "packets lost in each direction, in bursts, %");
    Figure {
        name: "gap-by-loss",
        title: "The 99 % gap against loss",
        caption: format!(
            "One gap in a hundred is longer: about one stutter every {} s. Upright lines are intervals. RTT {} ms, {} tokens/s.",
            number(100.0 / base.token_rate),
            plain(base.rtt_ms),
            plain(base.token_rate)
        ),
        panels: [apart, together].into_iter().flatten().collect(),
    }
}

/// No loss, and those in bursts of the commonest length.
pub(super) fn bursts(data: &Data, base: &Conditions) -> Vec<(f64, Conditions)> {
    let lengths = data.networks(Measure::GapP99).into_iter().find_map(|network| match network.loss {
        Loss::Burst { mean_packets, .. } => Some(mean_packets),
        _ => None,
    });
    let Some(mean_packets) = lengths else { return Vec::new() };
    let percent = |network: &Conditions| match network.loss {
        Loss::None => Some(0.0),
        Loss::Iid { .. } => None,
        Loss::Burst { percent, .. } => Some(percent),
    };
    let with = |base: &Conditions, percent: &f64| match *percent {
        0.0 => base.clone(),
        percent => Conditions { loss: Loss::Burst { percent, mean_packets }, ..base.clone() },
    };
    let found = data.vary(Measure::GapP99, base, percent, with, |percent| *percent);
    if found.iter().any(|(percent, _)| *percent > 0.0) { found } else { Vec::new() }
}

fn stalls(data: &Data) -> Figure {
    let base = data.reference(Measure::Stall);
    let columns = losses(data, Measure::Stall, &base);
    let rows = data.subjects().into_iter().map(|subject| {
        let cells = columns.iter().map(|(_, network)| data.over_network(subject, network, Measure::Stall));
        (look(subject), subject.label().to_owned(), cells.collect())
    });
    let names: Vec<String> = columns.iter().map(|(percent, _)| format!("{} %", plain(*percent))).collect();
    let title = format!("By loss, at RTT {} ms", plain(base.rtt_ms));
    let panel = heat_panel(&title, "packets lost in each direction", &names, rows.collect(), None);
    Figure {
        name: "stalls",
        title: "Time spent waiting for an overdue token",
        caption:
            "Percent of the time that a reader at the pace of the tokens stands still, because the next one is overdue."
                .to_owned(),
        panels: panel.into_iter().collect(),
    }
}

fn stalls_by_rtt(data: &Data) -> Figure {
    let base = data.reference(Measure::Stall);
    let rtts = rtts(data, Measure::Stall, &with_loss(&base, WORST_LOSS));
    let losses: Vec<f64> = losses(data, Measure::Stall, &base).into_iter().map(|(percent, _)| percent).collect();
    let mut panels = Vec::new();
    if rtts.len() > 1 {
        let rows_of = |subject: Subject| -> Vec<_> {
            let row = |(rtt_ms, _): &(f64, Conditions)| {
                let network = |percent: &f64| with_loss(&Conditions { rtt_ms: *rtt_ms, ..base.clone() }, *percent);
                let cells = losses.iter().map(|percent| data.over_network(subject, &network(percent), Measure::Stall));
                (look(subject), format!("RTT {} ms", plain(*rtt_ms)), cells.collect::<Vec<_>>())
            };
            rtts.iter().map(row).collect()
        };
        let names: Vec<String> = losses.iter().map(|percent| format!("{} %", plain(*percent))).collect();
        let subjects = data.subjects();
        let cells = subjects.iter().flat_map(|subject| rows_of(*subject)).flat_map(|row| row.2).flatten();
        let most = cells.map(|cell: Estimate| cell.median).fold(0.0, f64::max);
        for subject in subjects {
            panels.extend(heat_panel(subject.label(), "RTT by packets lost", &names, rows_of(subject), Some(most)));
        }
    }
    Figure {
        name: "stalls-by-rtt",
        title: "Time spent waiting, by RTT and loss",
        caption: "Percent of the time; one scale of colour for all.".to_owned(),
        panels,
    }
}

/// Where a matrix of RTT by loss shows whether it was measured.
const WORST_LOSS: f64 = 5.0;

/// `most`: what is hottest; by default the largest of these.
fn heat_panel(
    title: &str,
    subtitle: &str,
    columns: &[String],
    rows: Vec<(Look, String, Vec<Option<Estimate>>)>,
    most: Option<f64>,
) -> Option<Panel> {
    let cells = || rows.iter().flat_map(|row| &row.2).flatten();
    cells().next()?;
    let most = most.unwrap_or_else(|| cells().map(|cell| cell.median).fold(0.0, f64::max));
    // By the root, which tells small shares apart.
    let heat = |value: f64| if most > 0.0 { (value / most).max(0.0).sqrt() } else { 0.0 };
    let cell = |cell: &Option<Estimate>| cell.map(|cell| (heat(cell.median), number(cell.median)));
    let rows: Vec<HeatRow> =
        rows.iter().map(|(look, label, cells)| (*look, label.clone(), cells.iter().map(cell).collect())).collect();
    Some(svg::heat(title, subtitle, columns, &rows))
}

fn cpu(data: &Data) -> Figure {
    let rows = server_and_client(data, data.cpu_setting(), [Measure::CpuServer, Measure::CpuClient]);
    let panel = Some(svg::bars("CPU seconds per million tokens", "server (full) + client (pale)", &rows));
    Figure {
        name: "cpu",
        title: "What a token costs in CPU time",
        caption: format!(
            "All processes of a side, relays with the server. {}.",
            data.cpu_setting().map(Setting::describe).unwrap_or_default()
        ),
        panels: panel.filter(|_| !rows.is_empty()).into_iter().collect(),
    }
}

fn memory(data: &Data) -> Figure {
    let panel = |title: &str, measures: [Measure; 2]| {
        let setting = data.memory_setting(measures[0])?;
        let rows = server_and_client(data, Some(setting), measures);
        let legend = format!("server (full) + client (pale); {}", setting.describe());
        Some(svg::bars(title, &legend, &rows)).filter(|_| !rows.is_empty())
    };
    let panels = [
        panel("KiB per idle connection", [Measure::MemoryIdleServer, Measure::MemoryIdleClient]),
        panel("KiB per waiting stream", [Measure::MemoryStreamServer, Measure::MemoryStreamClient]),
    ];
    Figure {
        name: "memory",
        title: "What a connection costs in memory",
        caption: "Growth of resident memory: with idle connections against none, and with streams that have begun and wait against none."
            .to_owned(),
        panels: panels.into_iter().flatten().collect(),
    }
}

/// The least first.
fn server_and_client(data: &Data, setting: Option<&Setting>, measures: [Measure; 2]) -> Vec<Bar> {
    let row = |subject: Subject| {
        let [server, client] = measures.map(|measure| data.estimate(subject, setting?, measure));
        let parts: Vec<f64> = [server, client].into_iter().flatten().map(|part| part.median).collect();
        let text = format!("{} + {}", format::median_of(server.as_ref()), format::median_of(client.as_ref()));
        let bar = Bar { look: look(subject), label: subject.label().to_owned(), parts, around: None, text };
        server.map(|_| bar)
    };
    sorted(data.subjects().into_iter().filter_map(row).collect())
}

fn sorted(mut rows: Vec<Bar>) -> Vec<Bar> {
    // Those without a figure come last.
    let size = |row: &Bar| if row.parts.is_empty() { f64::INFINITY } else { row.parts.iter().sum() };
    rows.sort_by(|left, right| size(left).total_cmp(&size(right)));
    rows
}

/// The networks where `event` happens, the nearest to what is usual first.
pub(super) fn with_event(data: &Data, event: Event) -> Option<Conditions> {
    let mut networks: Vec<&Conditions> = data.settings.iter().filter_map(network_of).collect();
    networks.retain(|network| network.event == event);
    let base = Conditions { event, ..data.reference(Measure::GapP99) };
    let differences = |network: &Conditions| {
        let same = [
            network.rtt_ms == base.rtt_ms,
            network.loss == base.loss,
            network.congestion_control == base.congestion_control,
            network.token_rate == base.token_rate,
            network.streams == base.streams,
        ];
        same.into_iter().filter(|same| !same).count()
    };
    networks.into_iter().min_by_key(|network| differences(network)).cloned()
}

fn network_of(setting: &Setting) -> Option<&Conditions> {
    match setting {
        Setting::Network(network) => Some(network),
        _ => None,
    }
}

fn recovery(data: &Data) -> Figure {
    let network = with_event(data, Event::AddressChange);
    let rows = network
        .as_ref()
        .map_or_else(Vec::new, |network| outcome_bars(data, network, "stream", Measure::Recovery, "broke off"));
    Figure {
        name: "address-change",
        title: "The client's address changes",
        caption: network
            .as_ref()
            .map(|network| {
                format!(
                    "As from Wi-Fi to cellular, in the middle of an answer: time until the next token is read. {}.",
                    format::network(network)
                )
            })
            .unwrap_or_default(),
        panels: rows_panel("Recovery, ms", "until the next token; a line is the interval", rows),
    }
}

fn udp_blocked(data: &Data) -> Figure {
    let network = with_event(data, Event::UdpBlocked);
    let rows = network
        .as_ref()
        .map_or_else(Vec::new, |network| outcome_bars(data, network, "cold start", Measure::TtftCold, "no answer"));
    Figure {
        name: "udp-blocked",
        title: "UDP is blocked",
        caption: network.as_ref().map(|network| format!(
            "As in some offices and hotels, from the start: time to the first token, cold. Titan falls back to gRPC. {}.",
            format::network(network)
        )).unwrap_or_default(),
        panels: rows_panel("First token, ms", "cold; a line is the interval", rows),
    }
}

fn rows_panel(title: &str, subtitle: &str, rows: Vec<Bar>) -> Vec<Panel> {
    if rows.is_empty() { Vec::new() } else { vec![svg::bars(title, subtitle, &sorted(rows))] }
}

/// A bar for who got through, words for who did not.
fn outcome_bars(data: &Data, network: &Conditions, tried: &'static str, measure: Measure, failed: &str) -> Vec<Bar> {
    let row = |subject: Subject| {
        let outcome = data.outcome(subject, network, tried)?;
        let estimate = data.over_network(subject, network, measure);
        let text = match (estimate, outcome.failed) {
            (None, 0) => format::DASH.to_owned(),
            (None, failures) => format!("{failed}: {failures} of {}", outcome.tried),
            (Some(estimate), 0) => number(estimate.median),
            (Some(estimate), failures) => {
                format!("{} · {failed} {failures}/{}", number(estimate.median), outcome.tried)
            }
        };
        Some(Bar {
            look: look(subject),
            label: subject.label().to_owned(),
            parts: estimate.map(|estimate| estimate.median).into_iter().collect(),
            around: estimate.map(|estimate| (estimate.low, estimate.high)),
            text,
        })
    };
    data.subjects_and_variants().into_iter().filter_map(row).collect()
}
