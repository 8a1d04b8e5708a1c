//! The goals that Titan over QUIC was built to: what was measured beside each, and whether it is met.

use std::collections::BTreeMap;

use super::{
    aggregate::{Data, RETURNING, STREAM, Setting},
    estimate::{Estimate, Spread},
    format::{DASH, number, spread_of},
    measure::Measure,
    plots::with_event,
    twins::by_repetition,
};
use crate::net::{
    record::{Conditions, Event, Loss},
    subject::Subject,
};

/// One row.
#[derive(Clone, Debug)]
pub(super) struct Goal {
    pub(super) name: String,
    pub(super) goal: &'static str,
    limit: f64,
    pub(super) titan: Figure,
    /// The same of tonic's gRPC over TLS, or of what a ratio is taken to.
    pub(super) beside: Figure,
    falls_short: &'static str,
}

/// What was measured for one row.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Figure {
    NotMeasured,
    Value(Estimate),
    /// Some ended early, or had a token lost or repeated: never a goal met. How many of how many, and the figure of those that did.
    Failed(u64, u64, Option<Estimate>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    NotMeasured,
    Met,
    Short,
}

pub(super) const CAPTION: &str = "Less is better everywhere. Medians over repetitions with their 95 % intervals (below six repetitions min–max); a goal is met \
    when the median is not above it. \"Beside\" is tonic's gRPC over TLS under the same conditions; in ratios, what they are taken to. \
    A dash: not measured.";

/// How a row is computed.
struct Row {
    name: &'static str,
    goal: &'static str,
    limit: f64,
    figure: Of,
    /// What was tried, for where it is not met.
    falls_short: &'static str,
}

/// A figure of a subject.
enum Of {
    /// Round trips to the first token without loss; finding the agent not included.
    Rtts(Measure),
    /// 99 % of gaps, in token intervals, at this round trip and loss.
    Gaps(f64, Loss),
    /// Round trips to the first token of a returning client, 99 % of all starts.
    Returning,
    /// Round trips from an event until a token is read that was sent after it.
    RecoveryRtts(Event),
    /// The same in seconds.
    RecoverySeconds(Event),
    /// A measure of Titan over QUIC by that of another subject, on a clean path.
    Ratio(Measure, Subject),
    /// Median, as it is.
    Memory(Measure),
}

/// Of the RTTs in the first rows: handshakes also take time to compute, which no goal in round trips is about.
const COMPUTING: f64 = 0.1;
const RTT_MS: f64 = 100.0;
const LONG_RTT_MS: f64 = 300.0;
/// At which returning clients are measured.
pub(crate) const RETURNING_LOSS: Loss = Loss::Iid { percent: 5.0 };
/// More values than this have a value that 1 % of them exceed.
const ENOUGH_FOR_P99: usize = 200;

const NOT_TRIED: &str = "";
const ONE_PERCENT_TRIED: &str = "Tried: the early repair 8, 4 and 3.3 ms after a message (timers have 1 ms), the newest message in the repeat too, all repairs from the first \
    message on (1.24 at 690 bytes a token, on every path). At 1 % the 99 % gap is the lost packets themselves; runs on a quieter machine had 1.22 to 1.26.";
const RETURNING_TRIED: &str = "Tried: the round trip of the last connection as the first timeout, first packets twice, a third time into silence, the first message again after 12 and \
    40 ms: of 240 starts about three lose their tickets or both copies of a packet and wait for a timeout. A quieter run had 1.68; plain QUIC about 14.";
const CPU_TRIED: &str = "Tried: QUIC's acknowledgements ride on those of the messages (2.0 packets a token became 1.3), repeats of three messages at most, \
    timers set only when they have fired, a call's endings asked only when they have news, the transport compiled as its libraries are. \
    What is left is spread thin: repeats cost about a seventh, and plain QUIC is a quarter above gRPC by itself (a packet, a system call and a timer for each token).";
const MEMORY_TRIED: &str = "Tried: room for 8 streams instead of 1,024 in a new connection, which quinn reserves (119 KiB became 42), and no task that listens for \
    datagrams before the first call. What is left is quinn's and rustls' own: gRPC over HTTP/3 with the same quinn takes more.";

const ROWS: [Row; 13] = [
    Row {
        name: "time to first token from nothing, RTTs (cold)",
        goal: "2, mutual TLS included (+ 0.1 for computing)",
        limit: 2.0 + COMPUTING,
        figure: Of::Rtts(Measure::TtftCold),
        falls_short: NOT_TRIED,
    },
    Row {
        name: "the same, a returning client (resumed)",
        goal: "1 (+ 0.1 for computing)",
        limit: 1.0 + COMPUTING,
        figure: Of::Rtts(Measure::TtftResumed),
        falls_short: NOT_TRIED,
    },
    Row {
        name: "p99 gap in token intervals, RTT 100 ms, 1 % loss",
        goal: "≤ 1.25",
        limit: 1.25,
        figure: Of::Gaps(RTT_MS, Loss::Iid { percent: 1.0 }),
        falls_short: ONE_PERCENT_TRIED,
    },
    Row {
        name: "the same, 5 % loss",
        goal: "≤ 1.75",
        limit: 1.75,
        figure: Of::Gaps(RTT_MS, Loss::Iid { percent: 5.0 }),
        falls_short: NOT_TRIED,
    },
    Row {
        name: "the same, RTT 300 ms, 5 % loss",
        goal: "≤ 2.25",
        limit: 2.25,
        figure: Of::Gaps(LONG_RTT_MS, Loss::Iid { percent: 5.0 }),
        falls_short: NOT_TRIED,
    },
    Row {
        name: "the same, RTT 100 ms, 5 % loss in bursts of 3",
        goal: "≤ 5",
        limit: 5.0,
        figure: Of::Gaps(RTT_MS, Loss::Burst { percent: 5.0, mean_packets: 3.0 }),
        falls_short: NOT_TRIED,
    },
    Row {
        name: "p99 time to first token, returning client, RTTs, 5 % loss",
        goal: "≤ 3",
        limit: 3.0,
        figure: Of::Returning,
        falls_short: RETURNING_TRIED,
    },
    Row {
        name: "stall after a change of address, RTTs",
        goal: "≤ 1.5",
        limit: 1.5,
        figure: Of::RecoveryRtts(Event::AddressChange),
        falls_short: NOT_TRIED,
    },
    Row {
        name: "agent killed: pause until the text goes on elsewhere, s",
        goal: "≤ 1, no token lost or repeated",
        limit: 1.0,
        figure: Of::RecoverySeconds(Event::AgentKilled),
        falls_short: NOT_TRIED,
    },
    Row {
        name: "bytes per token on a clean path, by plain QUIC's",
        goal: "≤ 2.5",
        limit: 2.5,
        figure: Of::Ratio(Measure::BytesPerToken, Subject::TitanQuicPlain),
        falls_short: NOT_TRIED,
    },
    Row {
        name: "packets per token on a clean path, by plain QUIC's",
        goal: "unchanged (≤ 1.05)",
        limit: 1.05,
        figure: Of::Ratio(Measure::PacketsPerToken, Subject::TitanQuicPlain),
        falls_short: NOT_TRIED,
    },
    Row {
        name: "server CPU per token on a clean path, by Titan gRPC's",
        goal: "≤ 1.2",
        limit: 1.2,
        figure: Of::Ratio(Measure::CpuServer, Subject::TitanGrpc),
        falls_short: CPU_TRIED,
    },
    Row {
        name: "server memory per idle connection, KiB",
        goal: "≤ 32",
        limit: 32.0,
        figure: Of::Memory(Measure::MemoryIdleServer),
        falls_short: MEMORY_TRIED,
    },
];

/// Every goal, in the order in which they were set.
pub(super) fn goals(data: &Data) -> Vec<Goal> {
    let goal = |row: Row| {
        let name = match row.figure {
            Of::Memory(measure) => match data.memory_setting(measure) {
                Some(setting) => format!("{} ({})", row.name, setting.describe()),
                None => row.name.to_owned(),
            },
            _ => row.name.to_owned(),
        };
        Goal {
            name,
            goal: row.goal,
            limit: row.limit,
            titan: row.figure.of(data, Subject::TitanQuic),
            beside: row.figure.beside(data),
            falls_short: row.falls_short,
        }
    };
    ROWS.into_iter().map(goal).collect()
}

impl Goal {
    pub(super) fn verdict(&self) -> Verdict {
        match self.titan {
            Figure::NotMeasured => Verdict::NotMeasured,
            Figure::Value(estimate) if estimate.median <= self.limit => Verdict::Met,
            _ => Verdict::Short,
        }
    }

    /// What was tried, where it is not met.
    pub(super) fn note(&self) -> &'static str {
        if self.verdict() == Verdict::Short { self.falls_short } else { "" }
    }
}

impl Verdict {
    pub(super) fn said(self) -> &'static str {
        match self {
            Self::NotMeasured => DASH,
            Self::Met => "met",
            Self::Short => "not met",
        }
    }
}

impl Figure {
    /// The figure, and what it is to be read with.
    pub(super) fn shown(&self) -> [String; 2] {
        let shown = |estimate: &Estimate| [number(estimate.median), spread_of(estimate)];
        match self {
            Self::NotMeasured => [DASH.to_owned(), String::new()],
            Self::Value(estimate) => shown(estimate),
            Self::Failed(failed, tried, None) => ["fails".to_owned(), format!("{failed} of {tried}")],
            Self::Failed(failed, tried, Some(estimate)) => {
                let [main, small] = shown(estimate);
                [main, format!("{small}; {failed} of {tried} failed")]
            }
        }
    }

    fn from(estimate: Option<Estimate>) -> Self {
        estimate.map_or(Self::NotMeasured, Self::Value)
    }
}

impl Of {
    fn of(&self, data: &Data, subject: Subject) -> Figure {
        match *self {
            Self::Rtts(measure) => {
                let network = Conditions { rtt_ms: RTT_MS, ..data.reference(measure) };
                Figure::from(data.over_network(subject, &network, measure).map(|estimate| estimate.times(1.0 / RTT_MS)))
            }
            Self::Gaps(rtt_ms, loss) => {
                let network = Conditions { rtt_ms, loss, ..data.reference(Measure::GapP99) };
                let estimate = data.over_network(subject, &network, Measure::GapP99);
                let estimate = estimate.map(|estimate| estimate.times(network.token_rate / 1e3));
                with_failures(data, subject, &network, STREAM, estimate)
            }
            Self::Returning => returning(data, subject),
            Self::RecoveryRtts(event) => recovery(data, subject, event, |network| 1.0 / network.rtt_ms),
            Self::RecoverySeconds(event) => recovery(data, subject, event, |_| 1e-3),
            Self::Ratio(measure, to) => Figure::from(ratio(data, measure, subject, to)),
            Self::Memory(measure) => {
                Figure::from(data.memory_setting(measure).and_then(|at| data.estimate(subject, at, measure)))
            }
        }
    }

    fn beside(&self, data: &Data) -> Figure {
        match *self {
            Self::Ratio(measure, to) => {
                Figure::from(clean(data, measure).and_then(|setting| data.estimate(to, &setting, measure)))
            }
            // A user of gRPC has no other agent to go to: what dies is the same as with Titan's gRPC.
            Self::RecoverySeconds(_) => self.of(data, Subject::TitanGrpc),
            _ => self.of(data, Subject::Tonic),
        }
    }
}

fn with_failures(
    data: &Data,
    subject: Subject,
    network: &Conditions,
    tried: &'static str,
    estimate: Option<Estimate>,
) -> Figure {
    match data.outcome(subject, network, tried) {
        Some(outcome) if outcome.failed + outcome.faulty > 0 => {
            Figure::Failed(outcome.failed + outcome.faulty, outcome.tried, estimate)
        }
        _ => Figure::from(estimate),
    }
}

fn recovery(data: &Data, subject: Subject, event: Event, factor: impl Fn(&Conditions) -> f64) -> Figure {
    let Some(network) = with_event(data, event) else { return Figure::NotMeasured };
    let estimate = data.over_network(subject, &network, Measure::Recovery);
    with_failures(data, subject, &network, STREAM, estimate.map(|estimate| estimate.times(factor(&network))))
}

/// The slowest of a hundred starts, over all repetitions: one repetition has too few. A start that failed is slower than any.
fn returning(data: &Data, subject: Subject) -> Figure {
    let networks = data.networks(Measure::TtftReturning);
    let wanted = |network: &&&Conditions| network.rtt_ms == RTT_MS && network.loss == RETURNING_LOSS;
    let Some(network) = networks.iter().find(wanted) else { return Figure::NotMeasured };
    let failed = data.outcome(subject, network, RETURNING).map_or(0, |outcome| outcome.failed);
    let setting = Setting::Network((*network).clone());
    let at = data.find(subject, &setting, |at| data.values.contains_key(&(subject, at, Measure::TtftReturning)));
    let values = at.and_then(|at| data.values.get(&(subject, at, Measure::TtftReturning)));
    let mut rtts: Vec<f64> = values.into_iter().flatten().map(|value| value.value / network.rtt_ms).collect();
    rtts.extend((0..failed).map(|_| f64::INFINITY));
    rtts.sort_by(f64::total_cmp);
    match p99(&rtts) {
        None => Figure::NotMeasured,
        Some(estimate) if estimate.median.is_finite() => Figure::Value(estimate),
        Some(_) => Figure::Failed(failed, rtts.len() as u64, None),
    }
}

/// What 99 % of `sorted` do not exceed, with the smallest and the largest of the values from there up. `None` where there are too
/// few to say it.
fn p99(sorted: &[f64]) -> Option<Estimate> {
    if sorted.len() < ENOUGH_FOR_P99 {
        return None;
    }
    let rank = (sorted.len() * 99).div_ceil(100) - 1;
    let (value, largest) = (*sorted.get(rank)?, *sorted.last()?);
    Some(Estimate { median: value, low: value, high: largest, spread: Spread::Range, n: sorted.len() })
}

/// The setting without loss in which `measure` was taken.
fn clean(data: &Data, measure: Measure) -> Option<Setting> {
    match measure {
        Measure::CpuServer | Measure::CpuClient => data.cpu_setting().cloned(),
        measure => Some(Setting::Network(data.reference(measure))),
    }
}

/// Of the pairs of the same run and repetition.
fn ratio(data: &Data, measure: Measure, ours: Subject, theirs: Subject) -> Option<Estimate> {
    let setting = clean(data, measure)?;
    let of = |subject| -> Option<BTreeMap<(usize, u32), f64>> {
        let at = data.find(subject, &setting, |at| data.values.contains_key(&(subject, at, measure)))?;
        Some(by_repetition(data.values.get(&(subject, at, measure))?))
    };
    let (ours, theirs) = (of(ours)?, of(theirs)?);
    let pairs = ours.iter().filter_map(|(repetition, ours)| Some(ours / theirs.get(repetition)?));
    Estimate::of(&pairs.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{
        net::record::{Delivery, Record, StartRecord, StartState, StreamRecord, Traffic},
        report::example,
    };

    fn row<'a>(goals: &'a [Goal], name: &str) -> &'a Goal {
        goals.iter().find(|goal| goal.name.contains(name)).unwrap()
    }

    fn of(records: impl IntoIterator<Item = Record>) -> Vec<Goal> {
        goals(&Data::new(example::run(), records))
    }

    fn returning(rtts: impl IntoIterator<Item = Option<f64>>) -> Vec<Record> {
        let start = |ttft: Option<f64>| {
            Record::Start(StartRecord {
                conditions: Conditions { loss: RETURNING_LOSS, ..example::base() },
                subject: Subject::TitanQuic,
                repetition: 0,
                state: StartState::Returning,
                connect_ms: None,
                ttft_ms: ttft.map(|rtts| rtts * RTT_MS),
                routed_ttft_ms: None,
                failed: ttft.is_none().then(|| "not done after 15 s".to_owned()),
            })
        };
        rtts.into_iter().map(start).collect()
    }

    /// A stream in which something happens; `None`: it ended.
    fn disturbed(event: Event, recovery_ms: Option<f64>) -> Record {
        Record::Stream(Box::new(StreamRecord {
            conditions: Conditions { event, ..example::base() },
            subject: Subject::TitanQuic,
            repetition: 0,
            seed: 0,
            delivery: Delivery::none(),
            failed: recovery_ms.is_none().then(|| "broken".to_owned()),
            recovery_ms,
            to_client: Traffic::default(),
            to_server: Traffic::default(),
        }))
    }

    #[test]
    fn without_records_no_goal_is_met_or_missed() {
        assert!(of([]).iter().all(|goal| goal.verdict() == Verdict::NotMeasured && goal.note().is_empty()));
    }

    #[test]
    fn every_goal_of_streams_starts_cpu_and_memory_is_computed_from_the_example() {
        let goals = goals(&example::data());
        let not_measured: Vec<&str> =
            goals.iter().filter(|goal| goal.verdict() == Verdict::NotMeasured).map(|goal| goal.name.as_str()).collect();
        // The made-up records have no returning clients.
        assert_eq!(not_measured.len(), 1, "{not_measured:?}");
        let memory = row(&goals, "memory");
        assert_eq!((memory.verdict(), memory.titan.shown()[0].as_str()), (Verdict::Short, "45.9"));
        assert_eq!(row(&goals, "packets per token").verdict(), Verdict::Met);
    }

    #[test]
    fn the_slowest_of_a_hundred_returning_clients_counts_and_failures_are_slower_than_any() {
        let name = "p99 time to first token";
        let starts = |slow: usize| (0..300).map(move |at| Some(if at < slow { 9.0 } else { 1.5 }));
        assert_eq!(row(&of(returning(starts(3))), name).verdict(), Verdict::Met);
        assert_eq!(row(&of(returning(starts(4))), name).verdict(), Verdict::Short);
        assert_eq!(row(&of(returning(starts(0).take(199))), name).verdict(), Verdict::NotMeasured, "too few");
        let failing = starts(0).skip(4).chain([None; 4]);
        let goals = of(returning(failing));
        assert_eq!(row(&goals, name).titan, Figure::Failed(4, 300, None));
        assert_eq!(row(&goals, name).verdict(), Verdict::Short);
    }

    #[test]
    fn a_stall_is_told_in_round_trips_and_a_pause_in_seconds() {
        let goals = of([disturbed(Event::AddressChange, Some(150.0)), disturbed(Event::AgentKilled, Some(1_001.0))]);
        let address = row(&goals, "change of address");
        assert_eq!((address.verdict(), address.titan.shown()[0].as_str()), (Verdict::Met, "1.50"));
        assert_eq!(row(&goals, "agent killed").verdict(), Verdict::Short);
    }

    #[test]
    fn one_stream_that_ends_misses_the_goal_however_fast_the_others_are() {
        let goals = of([disturbed(Event::AgentKilled, Some(300.0)), disturbed(Event::AgentKilled, None)]);
        let killed = row(&goals, "agent killed");
        assert_eq!(killed.verdict(), Verdict::Short);
        assert_eq!(killed.titan.shown()[1], "n = 1; 1 of 2 failed");
        let Record::Stream(mut again) = disturbed(Event::AgentKilled, Some(300.0)) else { unreachable!() };
        again.delivery.duplicated = 1;
        let goals = of([Record::Stream(again)]);
        assert_eq!(row(&goals, "agent killed").verdict(), Verdict::Short, "a token came twice");
        let ended = of([disturbed(Event::AgentKilled, None)]);
        assert_eq!(row(&ended, "agent killed").titan.shown(), ["fails", "1 of 1"]);
    }
}
