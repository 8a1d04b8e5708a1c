//! All measurements of one or several runs, by subject, setting and measure. Pure, but for reading the files.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use super::{estimate::Estimate, format, measure::Measure};
use crate::{
    net::{
        record::{
            self, CheckRecord, Conditions, CpuRecord, Event, FairnessRecord, Loss, MemoryRecord, Record, Run,
            StartRecord, StartState, StreamRecord,
        },
        subject::Subject,
    },
    stats::median,
};

/// What surrounded a measurement.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Setting {
    Network(Conditions),
    /// A clean path, one subject at a time.
    Cpu {
        streams: u32,
        token_rate: f64,
    },
    Memory {
        connections: u32,
    },
}

/// One measured value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Value {
    /// Which of the runs.
    pub(super) run: usize,
    pub(super) repetition: u32,
    pub(super) value: f64,
}

/// Subject, index of the setting, measure.
pub(super) type Key = (Subject, usize, Measure);

/// What did not work, and how often.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    pub(super) tried: u64,
    pub(super) failed: u64,
    /// Of those that did not fail: whose tokens were not each there once. Must be 0.
    pub(super) faulty: u64,
    /// The first reason.
    pub(super) reason: Option<String>,
}

/// Tokens of a subject, over everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tokens {
    pub(super) expected: u64,
    /// In streams that said they were complete: must be 0.
    pub(super) lost: u64,
    /// Must be 0.
    pub(super) duplicated: u64,
    /// In streams that broke off and said so.
    pub(super) cut_off: u64,
}

/// Everything that was measured.
#[derive(Debug, Default)]
pub(super) struct Data {
    pub(super) runs: Vec<Run>,
    pub(super) settings: Vec<Setting>,
    pub(super) values: BTreeMap<Key, Vec<Value>>,
    /// Gaps between tokens over all repetitions: nanoseconds, count.
    gaps: BTreeMap<(Subject, usize), BTreeMap<u64, u64>>,
    pub(super) checks: Vec<CheckRecord>,
    /// By subject, what was tried, and the index of the conditions.
    pub(super) outcomes: BTreeMap<(Subject, &'static str, usize), Outcome>,
    pub(super) tokens: BTreeMap<Subject, Tokens>,
    pub(super) fairness: Vec<FairnessRecord>,
    memory: Vec<(usize, MemoryRecord)>,
}

/// What [`Data::outcome`] counts.
pub(super) const RETURNING: &str = "returning start";
pub(super) const STREAM: &str = "stream";

/// What most figures hold still while one thing changes, where it was measured: the "at a glance".
const USUAL_RTT_MS: f64 = 100.0;
const USUAL_TOKEN_RATE: f64 = 50.0;
const USUAL_STREAMS: u32 = 1;
const USUAL_CONGESTION_CONTROL: &str = "cubic";

impl Data {
    /// What `net` stored in these directories, the later ones added to the earlier.
    pub(super) fn read(dirs: &[PathBuf]) -> anyhow::Result<Self> {
        let mut data = Self::default();
        for dir in dirs {
            let at = data.runs.len();
            let run = record::read_each(dir, |record| data.add(at, record))?;
            data.runs.push(run);
        }
        data.finish();
        Ok(data)
    }

    /// From what is in memory.
    #[cfg(test)]
    pub(super) fn new(run: Run, records: impl IntoIterator<Item = Record>) -> Self {
        let mut data = Self { runs: vec![run], ..Self::default() };
        records.into_iter().for_each(|record| data.add(0, record));
        data.finish();
        data
    }

    fn add(&mut self, run: usize, record: Record) {
        match record {
            Record::Start(start) => self.add_start(run, start),
            Record::Stream(stream) => self.add_stream(run, *stream),
            Record::Check(check) => self.checks.push(marked_if_late(check)),
            Record::Cpu(cpu) => self.add_cpu(run, &cpu),
            Record::Memory(memory) => self.memory.push((run, memory)),
            Record::Fairness(fairness) => self.fairness.push(fairness),
        }
    }

    fn add_start(&mut self, run: usize, start: StartRecord) {
        let (tried, ttft) = match start.state {
            StartState::Cold => ("cold start", Measure::TtftCold),
            StartState::Resumed => ("resumed start", Measure::TtftResumed),
            StartState::Returning => (RETURNING, Measure::TtftReturning),
            StartState::Warm => ("warm start", Measure::TtftWarm),
        };
        let at = self.setting(Setting::Network(usual_form(start.conditions)));
        self.count(start.subject, tried, at, start.failed);
        let mut put = |measure, value: Option<f64>| {
            if let Some(value) = value {
                let value = Value { run, repetition: start.repetition, value };
                self.values.entry((start.subject, at, measure)).or_default().push(value);
            }
        };
        put(ttft, start.ttft_ms);
        if start.state == StartState::Cold {
            put(Measure::Connect, start.connect_ms);
            put(Measure::TtftRouted, start.routed_ttft_ms);
        }
    }

    fn add_stream(&mut self, run: usize, stream: StreamRecord) {
        let (subject, delivery) = (stream.subject, &stream.delivery);
        let at = self.setting(Setting::Network(usual_form(stream.conditions)));
        let whole = stream.failed.is_none();
        self.count(subject, STREAM, at, stream.failed);
        let tokens = self.tokens.entry(subject).or_default();
        tokens.expected += delivery.expected;
        tokens.duplicated += delivery.duplicated;
        *(if whole { &mut tokens.lost } else { &mut tokens.cut_off }) += delivery.lost;

        if whole && (delivery.lost > 0 || delivery.duplicated > 0) {
            self.outcomes.entry((subject, STREAM, at)).or_default().faulty += 1;
        }

        let mut put = |measure, value| {
            let value = Value { run, repetition: stream.repetition, value };
            self.values.entry((subject, at, measure)).or_default().push(value);
        };
        if let Some(recovery_ms) = stream.recovery_ms {
            put(Measure::Recovery, recovery_ms);
        }
        // What a broken stream delivered before it broke says nothing about the time in which it delivered nothing: it is counted
        // under what failed, and in no figure.
        if !whole {
            return;
        }
        let ms = |ns: u64| ns as f64 / 1e6;
        if delivery.gaps.count() > 0 {
            put(Measure::GapP50, ms(delivery.gaps.quantile_ns(0.5)));
            put(Measure::GapP95, ms(delivery.gaps.quantile_ns(0.95)));
            put(Measure::GapP99, ms(delivery.gaps.quantile_ns(0.99)));
            put(Measure::GapP999, ms(delivery.gaps.quantile_ns(0.999)));
            put(Measure::GapMax, ms(delivery.gaps.max_ns()));
        }
        if delivery.lateness.count() > 0 {
            put(Measure::LatenessP50, ms(delivery.lateness.quantile_ns(0.5)));
            put(Measure::LatenessP99, ms(delivery.lateness.quantile_ns(0.99)));
        }
        put(Measure::Stall, delivery.stall_ratio * 100.0);
        if delivery.received > 0 {
            let per_token = |of: u64| of as f64 / delivery.received as f64;
            put(Measure::BytesPerToken, per_token(stream.to_client.bytes + stream.to_server.bytes));
            put(Measure::PacketsPerToken, per_token(stream.to_client.packets + stream.to_server.packets));
        }
        let gaps = self.gaps.entry((subject, at)).or_default();
        for (ns, count) in delivery.gaps.buckets() {
            *gaps.entry(ns).or_default() += count;
        }
    }

    fn add_cpu(&mut self, run: usize, cpu: &CpuRecord) {
        if cpu.tokens == 0 {
            return;
        }
        let at = self.setting(Setting::Cpu { streams: cpu.streams, token_rate: cpu.token_rate });
        for (measure, seconds) in [(Measure::CpuServer, cpu.server_cpu_s), (Measure::CpuClient, cpu.client_cpu_s)] {
            let value = Value { run, repetition: cpu.repetition, value: seconds / (cpu.tokens as f64 / 1e6) };
            self.values.entry((cpu.subject, at, measure)).or_default().push(value);
        }
    }

    /// What only all records together show.
    fn finish(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        let resident = |run: usize, of: &MemoryRecord, connections, streams, bytes: fn(&MemoryRecord) -> u64| {
            let alike = memory.iter().filter(|(at, other)| {
                (*at, other.subject, other.connections, other.streams) == (run, of.subject, connections, streams)
            });
            median(&alike.map(|(_, record)| bytes(record) as f64).collect::<Vec<_>>())
        };
        for (run, record) in &memory {
            let (count, measures) = match (record.connections, record.streams) {
                (0, 0) => continue,
                (connections, 0) => (connections, [Measure::MemoryIdleServer, Measure::MemoryIdleClient]),
                (_, streams) => (streams, [Measure::MemoryStreamServer, Measure::MemoryStreamClient]),
            };
            let at = self.setting(Setting::Memory { connections: count });
            let sides: [fn(&MemoryRecord) -> u64; 2] = [|record| record.server_bytes, |record| record.client_bytes];
            for (measure, bytes) in measures.into_iter().zip(sides) {
                let more = bytes(record) as f64 - resident(*run, record, 0, 0, bytes);
                let value = Value { run: *run, repetition: 0, value: more / f64::from(count) / 1024.0 };
                if value.value.is_finite() {
                    self.values.entry((record.subject, at, measure)).or_default().push(value);
                }
            }
        }
    }

    fn setting(&mut self, setting: Setting) -> usize {
        self.settings.iter().position(|known| *known == setting).unwrap_or_else(|| {
            self.settings.push(setting);
            self.settings.len() - 1
        })
    }

    fn count(&mut self, subject: Subject, tried: &'static str, at: usize, failed: Option<String>) {
        let outcome = self.outcomes.entry((subject, tried, at)).or_default();
        outcome.tried += 1;
        if let Some(reason) = failed {
            outcome.failed += 1;
            outcome.reason.get_or_insert(reason);
        }
    }

    /// Those that were measured, in the order of the suite, without those that are another one again.
    pub(super) fn subjects(&self) -> Vec<Subject> {
        self.subjects_and_variants().into_iter().filter(|subject| !subject.is_variant()).collect()
    }

    /// The same with those that are there for one kind of network, the self-test's twin left out.
    pub(super) fn subjects_and_variants(&self) -> Vec<Subject> {
        let measured = self.values.keys().map(|key| key.0).chain(self.outcomes.keys().map(|key| key.0));
        let subjects: BTreeSet<Subject> = measured.filter(|subject| *subject != Subject::TitanQuicAgain).collect();
        subjects.into_iter().collect()
    }

    pub(super) fn estimate(&self, subject: Subject, setting: &Setting, measure: Measure) -> Option<Estimate> {
        let at = self.find(subject, setting, |at| self.values.contains_key(&(subject, at, measure)))?;
        let values: Vec<f64> = self.values.get(&(subject, at, measure))?.iter().map(|value| value.value).collect();
        Estimate::of(&values)
    }

    pub(super) fn over_network(&self, subject: Subject, network: &Conditions, measure: Measure) -> Option<Estimate> {
        self.estimate(subject, &Setting::Network(network.clone()), measure)
    }

    /// Gaps between tokens over all repetitions, sorted: nanoseconds, count.
    pub(super) fn gaps(&self, subject: Subject, network: &Conditions) -> Option<&BTreeMap<u64, u64>> {
        let has = |at| self.gaps.contains_key(&(subject, at));
        let at = self.find(subject, &Setting::Network(network.clone()), has)?;
        self.gaps.get(&(subject, at))
    }

    pub(super) fn outcome(&self, subject: Subject, network: &Conditions, tried: &'static str) -> Option<&Outcome> {
        let has = |at| self.outcomes.contains_key(&(subject, tried, at));
        let at = self.find(subject, &Setting::Network(network.clone()), has)?;
        self.outcomes.get(&(subject, tried, at))
    }

    /// The index of the setting. TCP's congestion control is nothing to a subject that runs over UDP: there, one that was
    /// measured with another will do.
    pub(super) fn find(&self, subject: Subject, setting: &Setting, has: impl Fn(usize) -> bool) -> Option<usize> {
        let exact = self.settings.iter().position(|known| known == setting).filter(|at| has(*at));
        exact.or_else(|| {
            let Setting::Network(wanted) = setting else { return None };
            let alike = |known: &Conditions| {
                let congestion_control = known.congestion_control.clone();
                *known == Conditions { congestion_control, ..wanted.clone() }
            };
            let mut known = self.settings.iter().enumerate().filter(|_| subject.is_udp());
            known
                .find(|(at, known)| matches!(known, Setting::Network(known) if alike(known)) && has(*at))
                .map(|(at, _)| at)
        })
    }

    /// Every network that something like `tried` was done over.
    pub(super) fn networks(&self, measure: Measure) -> Vec<&Conditions> {
        let used: BTreeSet<usize> = self.values.keys().filter(|key| key.2 == measure).map(|key| key.1).collect();
        let networks = used.into_iter().filter_map(|at| match self.settings.get(at) {
            Some(Setting::Network(conditions)) => Some(conditions),
            _ => None,
        });
        networks.collect()
    }

    /// The network without loss that most figures vary one thing of: the usual value of each dimension where `measure` was taken
    /// with it, else the commonest.
    pub(super) fn reference(&self, measure: Measure) -> Conditions {
        let networks = self.networks(measure);
        let networks: Vec<_> = networks.into_iter().filter(|network| network.event == Event::None).collect();
        Conditions {
            rtt_ms: usual(networks.iter().map(|network| network.rtt_ms), Some(USUAL_RTT_MS)).unwrap_or(USUAL_RTT_MS),
            loss: Loss::None,
            rate_mbit: usual(networks.iter().map(|network| network.rate_mbit), Some(None)).flatten(),
            token_rate: usual(networks.iter().map(|network| network.token_rate), Some(USUAL_TOKEN_RATE))
                .unwrap_or(USUAL_TOKEN_RATE),
            streams: usual(networks.iter().map(|network| network.streams), Some(USUAL_STREAMS))
                .unwrap_or(USUAL_STREAMS),
            event: Event::None,
            congestion_control: usual(
                networks.iter().map(|network| network.congestion_control.clone()),
                Some(USUAL_CONGESTION_CONTROL.to_owned()),
            )
            .unwrap_or_else(|| USUAL_CONGESTION_CONTROL.to_owned()),
        }
    }

    /// The setting of the CPU measurements that most subjects have.
    pub(super) fn cpu_setting(&self) -> Option<&Setting> {
        self.commonest(Measure::CpuServer, |setting| matches!(setting, Setting::Cpu { .. }))
    }

    /// The setting of the memory measurements: of those with most subjects, that with most connections, where one is told from
    /// noise best.
    pub(super) fn memory_setting(&self, measure: Measure) -> Option<&Setting> {
        let subjects = |at: usize| self.values.keys().filter(|key| (key.1, key.2) == (at, measure)).count();
        let used = self.values.keys().filter(|key| key.2 == measure).map(|key| key.1);
        let rank = |at: usize| match self.settings.get(at) {
            Some(Setting::Memory { connections }) => (subjects(at), *connections),
            _ => (0, 0),
        };
        used.max_by_key(|&at| rank(at)).and_then(|at| self.settings.get(at))
    }

    fn commonest(&self, measure: Measure, fits: impl Fn(&Setting) -> bool) -> Option<&Setting> {
        let at = usual(self.values.keys().filter(|key| key.2 == measure).map(|key| key.1), None)?;
        self.settings.get(at).filter(|setting| fits(setting))
    }

    /// The values that one dimension of `base` takes while the others stand still, in order, each with its network.
    pub(super) fn vary<T: PartialEq>(
        &self,
        measure: Measure,
        base: &Conditions,
        dimension: impl Fn(&Conditions) -> Option<T>,
        with: impl Fn(&Conditions, &T) -> Conditions,
        order: impl Fn(&T) -> f64,
    ) -> Vec<(T, Conditions)> {
        let mut found: Vec<(T, Conditions)> = Vec::new();
        for network in self.networks(measure) {
            let Some(value) = dimension(network) else { continue };
            if with(base, &value) == *network && found.iter().all(|(known, _)| *known != value) {
                found.push((value, network.clone()));
            }
        }
        found.sort_by(|left, right| order(&left.0).total_cmp(&order(&right.0)));
        found
    }
}

/// `preferred` where it occurs, else what occurs most; `None` where nothing does.
fn usual<T: PartialEq + Clone>(values: impl Iterator<Item = T>, preferred: Option<T>) -> Option<T> {
    let mut counted: Vec<(T, usize)> = Vec::new();
    for value in values {
        match counted.iter_mut().find(|(known, _)| *known == value) {
            Some((_, count)) => *count += 1,
            None => counted.push((value, 1)),
        }
    }
    preferred
        .filter(|preferred| counted.iter().any(|(known, _)| known == preferred))
        .or_else(|| counted.into_iter().rev().max_by_key(|(_, count)| *count).map(|(value, _)| value))
}

/// A loss of 0 % is no loss.
fn usual_form(conditions: Conditions) -> Conditions {
    let nothing = match conditions.loss {
        Loss::None => true,
        Loss::Iid { percent } | Loss::Burst { percent, .. } => percent == 0.0,
    };
    if nothing { Conditions { loss: Loss::None, ..conditions } } else { conditions }
}

impl Setting {
    /// In words.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Network(network) => format::network(network),
            Self::Cpu { streams, token_rate } => {
                let streams = format::plain(f64::from(*streams));
                format!(
                    "{streams} streams of {} tokens/s, clean path, one subject at a time",
                    format::plain(*token_rate)
                )
            }
            Self::Memory { connections } => format!("{} connections", format::plain(f64::from(*connections))),
        }
    }
}

/// An emulator that waits for a CPU delays packets beyond what was asked of it: by more than this share of the round trip, and by more
/// than this, a figure of gaps is not the network's alone.
const LATE_SHARE: f64 = 0.05;
const LATE_MS: f64 = 5.0;

fn marked_if_late(check: CheckRecord) -> CheckRecord {
    let late_ms = check.emulator_late_p99_ms;
    if late_ms <= LATE_MS.max(LATE_SHARE * check.conditions.rtt_ms) {
        return check;
    }
    let late = format!("one packet of a hundred left the emulator {late_ms:.1} ms late or later");
    let marked = check.marked.map_or_else(|| late.clone(), |marked| format!("{marked}; {late}"));
    CheckRecord { marked: Some(marked), ..check }
}
