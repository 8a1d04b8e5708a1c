//! Which conditions are measured, and for how long: pure.

use std::time::Duration;

use super::{
    args::{NetArgs, Part},
    record::{Conditions, Event, Loss},
    subject::Subject,
};

/// Everything that one call of `net` measures.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    pub(crate) subjects: Vec<Subject>,
    pub(crate) repetitions: u32,
    pub(crate) seed: u64,
    /// Nobody asked for some subjects only.
    pub(crate) all_subjects: bool,
    /// In the order in which they run.
    pub(crate) cells: Vec<Cell>,
    /// `None`: not measured.
    pub(crate) cpu: Option<CpuPlan>,
    /// So many connections, and streams; empty: not measured.
    pub(crate) memory: Vec<u32>,
    /// `None`: not measured.
    pub(crate) fairness: Option<FairnessPlan>,
}

/// One combination of conditions, for all subjects and repetitions at once.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cell {
    pub(crate) conditions: Conditions,
    /// Starts of each kind in a repetition; 0: none.
    pub(crate) starts: u32,
    /// Tokens of a stream; 0: none.
    pub(crate) tokens: u32,
    /// Starts of a client that comes back, in a repetition; 0: none.
    pub(crate) returns: u32,
}

/// Many streams of one subject at a time over a clean path.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct CpuPlan {
    pub(crate) repetitions: u32,
    pub(crate) streams: u32,
    pub(crate) clients: u32,
    pub(crate) duration: Duration,
}

/// A flow that sends all it can, and many streams of one subject at a time, over one link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct FairnessPlan {
    pub(crate) repetitions: u32,
    pub(crate) rate_mbit: f64,
    pub(crate) rtt_ms: f64,
    pub(crate) streams: u32,
    pub(crate) duration: Duration,
}

/// Where the dimensions that vary one at a time are held.
const BASE_RTT_MS: f64 = 100.0;
const BASE_LOSS: Loss = Loss::Iid { percent: 1.0 };
/// Over a link of limited rate: one stream of tokens would not notice 1 Mbit/s.
const STREAMS_ON_LIMITED_LINK: u32 = 8;
/// Lists that were not given, and numbers.
struct Defaults {
    rtt: &'static [f64],
    loss: &'static [Loss],
    bandwidth: &'static [f64],
    token_rate: &'static [f64],
    streams: &'static [u32],
    congestion_control: &'static [&'static str],
    repetitions: u32,
    seconds: f64,
    starts: u32,
    returns: u32,
    connections: &'static [u32],
    cpu: CpuPlan,
    fairness: Option<FairnessPlan>,
}

const FULL: Defaults = Defaults {
    rtt: &[0.0, 20.0, 50.0, 100.0, 200.0, 300.0],
    loss: &[
        Loss::None,
        Loss::Iid { percent: 0.1 },
        Loss::Iid { percent: 1.0 },
        Loss::Iid { percent: 2.0 },
        Loss::Iid { percent: 5.0 },
        Loss::Burst { percent: 1.0, mean_packets: 3.0 },
        Loss::Burst { percent: 5.0, mean_packets: 3.0 },
    ],
    bandwidth: &[1.0, 10.0, 100.0],
    token_rate: &[50.0, 20.0, 100.0],
    streams: &[1, 8],
    congestion_control: &["bbr", "cubic"],
    repetitions: 6,
    seconds: 8.0,
    starts: 5,
    returns: 40,
    connections: &[1000, 10_000],
    cpu: CpuPlan { repetitions: 9, streams: 100, clients: 10, duration: Duration::from_secs(3) },
    fairness: Some(FairnessPlan {
        repetitions: 6,
        rate_mbit: 10.0,
        rtt_ms: 50.0,
        streams: 20,
        duration: Duration::from_secs(8),
    }),
};

const QUICK: Defaults = Defaults {
    rtt: &[100.0],
    loss: &[Loss::None, Loss::Iid { percent: 1.0 }, Loss::Iid { percent: 5.0 }],
    bandwidth: &[],
    token_rate: &[50.0],
    streams: &[1],
    congestion_control: &["bbr"],
    repetitions: 3,
    seconds: 4.0,
    starts: 2,
    // Too few would say nothing of the slowest of a hundred, and enough take too long.
    returns: 0,
    connections: &[200],
    cpu: CpuPlan { repetitions: 1, streams: 50, clients: 5, duration: Duration::from_secs(2) },
    // A flow takes seconds to find the rate of its link.
    fairness: None,
};

const EVENTS: [Event; 4] = [Event::None, Event::AddressChange, Event::UdpBlocked, Event::AgentKilled];
/// Where clients come back.
const RETURNING_RTT_MS: f64 = BASE_RTT_MS;
const RETURNING_LOSS: Loss = Loss::Iid { percent: 5.0 };
/// Unless others are asked for: a minute's starts of everyone would be no use.
const RETURNING: [Subject; 3] = [Subject::TitanQuic, Subject::TitanGrpc, Subject::Tonic];

impl Plan {
    /// What `args` ask for, for those of the subjects that are `available`.
    pub(crate) fn new(args: &NetArgs, available: &[Subject]) -> Self {
        let defaults = if args.quick { &QUICK } else { &FULL };
        let measures = |part| args.only.is_empty() || args.only.contains(&part);
        let starts = if measures(Part::Starts) { args.starts.unwrap_or(defaults.starts) } else { 0 };
        let seconds = if measures(Part::Streams) { args.seconds.unwrap_or(defaults.seconds) } else { 0.0 };
        let returns = if measures(Part::Returning) { args.returns.unwrap_or(defaults.returns) } else { 0 };
        Self {
            subjects: subjects(args, available),
            repetitions: args.repetitions.unwrap_or(defaults.repetitions),
            seed: args.seed,
            all_subjects: args.subjects.is_empty() && !args.self_test,
            cells: cells(args, defaults, Amounts { starts, seconds, returns }),
            cpu: measures(Part::Cpu).then_some(defaults.cpu),
            memory: if measures(Part::Memory) { list(&args.connections, defaults.connections) } else { Vec::new() },
            fairness: defaults.fairness.filter(|_| measures(Part::Fairness) && !args.loopback).map(|fairness| {
                FairnessPlan { repetitions: args.repetitions.unwrap_or(fairness.repetitions), ..fairness }
            }),
        }
    }

    /// About how long it takes.
    pub(crate) fn estimate(&self) -> Duration {
        let cells: Duration = self.cells.iter().map(|cell| cell.estimate(self.clients())).sum();
        let subjects = u32::try_from(self.subjects.len()).unwrap_or(u32::MAX);
        let cpu = self.cpu.map_or(Duration::ZERO, |cpu| cpu.estimate_of_one() * cpu.repetitions * subjects);
        // Idle connections, and streams.
        let connections = 2 * self.memory.iter().max().copied().unwrap_or(0) * subjects;
        // Alone, and beside each.
        let with = 1 + self.subjects.iter().filter(|subject| FairnessPlan::SUBJECTS.contains(subject)).count();
        let with = u32::try_from(with).unwrap_or(u32::MAX);
        let fairness = self.fairness.map_or(Duration::ZERO, |it| it.estimate_of_one() * it.repetitions * with);
        cells + cpu + fairness + Duration::from_secs_f64(SECONDS_PER_CONNECTION * f64::from(connections))
    }

    /// Of all subjects and repetitions.
    pub(crate) fn clients(&self) -> usize {
        self.subjects.len() * self.repetitions as usize
    }

    /// The first one of TCP that is measured.
    pub(crate) fn congestion_control(&self) -> Option<&str> {
        self.cells.first().map(|cell| cell.conditions.congestion_control.as_str())
    }
}

/// TCP and TLS handshakes on two busy cores, both sides.
pub(crate) const SECONDS_PER_CONNECTION: f64 = 0.003;
/// Starting and stopping a subject's processes, connecting.
const OVERHEAD_OF_CPU: Duration = Duration::from_secs(3);

/// The same, and until the flow has found the rate of its link.
const OVERHEAD_OF_FAIRNESS: Duration = Duration::from_secs(6);

impl CpuPlan {
    /// About how long one subject takes once.
    pub(crate) fn estimate_of_one(&self) -> Duration {
        self.duration + OVERHEAD_OF_CPU
    }
}

impl FairnessPlan {
    /// Whose streams: with what sends more, without it, and over TCP.
    pub(crate) const SUBJECTS: [Subject; 3] = [Subject::TitanQuic, Subject::TitanQuicPlain, Subject::TitanGrpc];

    /// About how long it takes once.
    pub(crate) fn estimate_of_one(&self) -> Duration {
        self.duration + OVERHEAD_OF_FAIRNESS
    }
}

fn subjects(args: &NetArgs, available: &[Subject]) -> Vec<Subject> {
    let wanted = |subject: &&Subject| match args.self_test {
        true => matches!(subject, Subject::TitanQuic | Subject::TitanQuicAgain),
        false => args.subjects.is_empty() || args.subjects.contains(subject),
    };
    available.iter().filter(wanted).copied().collect()
}

/// Of what is measured in cells; 0: not at all.
#[derive(Clone, Copy)]
struct Amounts {
    starts: u32,
    seconds: f64,
    returns: u32,
}

fn cells(args: &NetArgs, defaults: &Defaults, Amounts { starts, seconds, returns }: Amounts) -> Vec<Cell> {
    // Without a network there is none to vary.
    let (rtts, losses) = match args.loopback {
        true => (vec![0.0], vec![Loss::None]),
        false => (list(&args.rtt, defaults.rtt), list(&args.loss, defaults.loss)),
    };
    let token_rates = list(&args.token_rate, defaults.token_rate);
    let streams = list(&args.streams, defaults.streams);
    let defaults_cc: Vec<String> = defaults.congestion_control.iter().map(|&name| name.to_owned()).collect();
    let controls = if args.loopback { vec![String::new()] } else { list(&args.congestion_control, &defaults_cc) };
    let events = list(&args.events, &EVENTS);
    let (Some(token_rate), Some(&streams_first), Some(control)) =
        (token_rates.first().copied(), streams.first(), controls.first())
    else {
        return Vec::new();
    };
    let base = Conditions {
        rtt_ms: one_of(&rtts, BASE_RTT_MS),
        loss: one_of(&losses, BASE_LOSS),
        rate_mbit: None,
        token_rate,
        streams: streams_first,
        event: Event::None,
        congestion_control: control.clone(),
    };
    let cell = |conditions: Conditions, starts| {
        // A stream of a given number of seconds, whatever its rate. Rounded down.
        let tokens = (seconds * conditions.token_rate) as u32;
        Cell { starts, tokens, returns: 0, conditions }
    };
    let mut cells = Vec::new();
    if events.contains(&Event::None) {
        for congestion_control in &controls {
            for &loss in &losses {
                for &rtt_ms in &rtts {
                    // A handshake is too short for a congestion control to matter.
                    let starts = if congestion_control == control { starts } else { 0 };
                    let conditions =
                        Conditions { rtt_ms, loss, congestion_control: congestion_control.clone(), ..base.clone() };
                    cells.push(cell(conditions, starts));
                }
            }
        }
        for &streams in streams.iter().skip(1) {
            cells.push(cell(Conditions { streams, ..base.clone() }, 0));
        }
        for rate_mbit in if args.loopback { Vec::new() } else { list(&args.bandwidth, defaults.bandwidth) } {
            let conditions = Conditions {
                rate_mbit: Some(rate_mbit),
                streams: STREAMS_ON_LIMITED_LINK,
                loss: Loss::None,
                ..base.clone()
            };
            cells.push(cell(conditions, 0));
        }
    }
    if !args.loopback && events.contains(&Event::None) {
        let conditions = Conditions { rtt_ms: RETURNING_RTT_MS, loss: RETURNING_LOSS, ..base.clone() };
        cells.push(Cell { tokens: 0, returns, ..cell(conditions, 0) });
    }
    if !args.loopback && events.contains(&Event::AddressChange) {
        let event = Event::AddressChange;
        cells.push(cell(Conditions { event, loss: Loss::None, ..base.clone() }, 0));
    }
    if !args.loopback && events.contains(&Event::UdpBlocked) {
        let event = Event::UdpBlocked;
        // A stream that had to begin over TCP goes on as any other over TCP.
        let conditions = Conditions { event, loss: Loss::None, ..base.clone() };
        cells.push(Cell { tokens: 0, ..cell(conditions, starts) });
    }
    if !args.loopback && events.contains(&Event::AgentKilled) {
        let event = Event::AgentKilled;
        cells.push(cell(Conditions { event, loss: Loss::None, ..base.clone() }, 0));
    }
    if events.contains(&Event::None) {
        // Last: a server has one token rate, and is started again for another.
        for &token_rate in token_rates.iter().skip(1) {
            cells.push(cell(Conditions { token_rate, ..base.clone() }, 0));
        }
    }
    cells.retain(|cell| cell.starts > 0 || cell.tokens > 0 || cell.returns > 0);
    cells
}

fn list<T: Clone>(given: &[T], default: &[T]) -> Vec<T> {
    if given.is_empty() { default.to_vec() } else { given.to_vec() }
}

/// `wanted` if it is in the list, otherwise the first.
fn one_of<T: Copy + PartialEq>(list: &[T], wanted: T) -> T {
    list.iter().copied().find(|&one| one == wanted).unwrap_or_else(|| list.first().copied().unwrap_or(wanted))
}

/// Connecting before a stream, its round trips and its slack not included.
const OVERHEAD_OF_STREAM: Duration = Duration::from_secs(2);
/// Round trips of one start of each kind, connecting apart included; and what computing takes.
const ROUND_TRIPS_OF_START: f64 = 16.0;
const OVERHEAD_OF_START: Duration = Duration::from_millis(60);

/// How many lanes start at once: handshakes take milliseconds of CPU time, and on a short path so many would wait for each other and
/// not for the network.
pub(crate) fn starts_at_once(rtt_ms: f64) -> usize {
    const LEAST: f64 = 4.0;
    const PER_MS: f64 = 0.24;
    // A rounded number of lanes, of which there are at most 254.
    (rtt_ms * PER_MS).max(LEAST).min(f64::from(u8::MAX)) as usize
}

/// A start of a client that comes back and the one before it, with what lost packets cost both.
const RETURN: Duration = Duration::from_millis(1600);

impl Cell {
    /// Whether `subject` is measured in it; `all` if all were asked for.
    pub(crate) fn has(&self, subject: Subject, all: bool) -> bool {
        match self.conditions.event {
            Event::UdpBlocked => !subject.is_udp(),
            Event::AgentKilled => subject.is_titan() && subject != Subject::TitanAuto,
            // It is there for what happens when UDP is blocked; otherwise it is Titan over QUIC.
            _ if subject == Subject::TitanAuto => false,
            _ => self.returns == 0 || !all || RETURNING.contains(&subject),
        }
    }

    /// About how long it takes with so many clients, for the time that is left.
    pub(crate) fn estimate(&self, clients: usize) -> Duration {
        let round_trip = Duration::from_secs_f64(self.conditions.rtt_ms / 1e3);
        let stream = match self.tokens {
            0 => Duration::ZERO,
            tokens => {
                Duration::from_secs_f64(f64::from(tokens) / self.conditions.token_rate)
                    + round_trip * 10
                    + OVERHEAD_OF_STREAM
            }
        };
        let turns =
            self.starts * u32::try_from(clients.div_ceil(starts_at_once(self.conditions.rtt_ms))).unwrap_or(u32::MAX);
        stream + RETURN * self.returns + (OVERHEAD_OF_START + round_trip.mul_f64(ROUND_TRIPS_OF_START)) * turns
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::{Parser as _, ValueEnum as _};

    use super::*;

    fn plan(arguments: &str) -> Plan {
        let args = NetArgs::try_parse_from(["net"].into_iter().chain(arguments.split_whitespace())).unwrap();
        Plan::new(&args, Subject::value_variants())
    }

    #[test]
    fn by_default_round_trip_and_loss_are_combined_under_both_congestion_controls() {
        let cells = plan("").cells;
        let grid = |control: &str| {
            cells
                .iter()
                .filter(|cell| cell.conditions.congestion_control == control && cell.conditions.rate_mbit.is_none())
                .count()
        };
        assert!(grid("bbr") >= 42 && grid("cubic") == 42, "{} {}", grid("bbr"), grid("cubic"));
        let has = |is: &dyn Fn(&Conditions) -> bool| cells.iter().any(|cell| is(&cell.conditions));
        for mbit in [1.0, 10.0, 100.0] {
            assert!(has(&|conditions| conditions.rate_mbit == Some(mbit)));
        }
        for rate in [20.0, 50.0, 100.0] {
            assert!(has(&|conditions| conditions.token_rate == rate));
        }
        assert!(has(&|conditions| conditions.streams == 8 && conditions.rate_mbit.is_none()));
        assert!(has(&|conditions| conditions.event == Event::AddressChange));
        assert!(has(&|conditions| conditions.event == Event::UdpBlocked));
        assert!(has(&|conditions| conditions.event == Event::AgentKilled));
    }

    #[test]
    fn quick_is_over_in_three_minutes() {
        let plan = plan("--quick");
        assert!(plan.estimate() < Duration::from_secs(150), "{:?}", plan.estimate());
        assert_eq!(plan.repetitions, 3);
    }

    #[test]
    fn a_list_that_is_given_replaces_the_default() {
        let plan = plan("--quick --rtt 50 --loss 2 --congestion-control cubic --repetitions 7 --events none");
        let conditions: Vec<_> = plan.cells.iter().map(|cell| &cell.conditions).collect();
        assert_eq!(conditions.len(), 1);
        assert_eq!((conditions[0].rtt_ms, conditions[0].loss), (50.0, Loss::Iid { percent: 2.0 }));
        assert_eq!((conditions[0].congestion_control.as_str(), plan.repetitions), ("cubic", 7));
    }

    #[test]
    fn only_what_is_asked_for_is_measured() {
        let memory = plan("--only memory");
        assert!(memory.cells.is_empty() && memory.cpu.is_none() && !memory.memory.is_empty());
        let starts = plan("--only starts");
        assert!(starts.cells.iter().all(|cell| cell.tokens == 0 && cell.starts > 0) && starts.memory.is_empty());
    }

    #[test]
    fn clients_come_back_often_enough_to_speak_of_the_slowest_of_a_hundred() {
        let plan = plan("--only returning");
        let [cell] = plan.cells.as_slice() else { panic!("{:?}", plan.cells) };
        assert_eq!((cell.conditions.rtt_ms, cell.conditions.loss), (100.0, Loss::Iid { percent: 5.0 }));
        assert!(cell.returns * plan.repetitions >= 200 && cell.starts == 0 && cell.tokens == 0);
        let has = |subject| cell.has(subject, plan.all_subjects);
        assert!(has(Subject::TitanQuic) && has(Subject::Tonic) && !has(Subject::Nginx));
        assert!(cell.has(Subject::Nginx, false), "asked for");
    }

    #[test]
    fn an_agent_that_dies_is_of_titan_alone() {
        let plan = plan("--only streams --events agent-killed");
        let [cell] = plan.cells.as_slice() else { panic!("{:?}", plan.cells) };
        let with: Vec<Subject> =
            Subject::value_variants().iter().copied().filter(|&subject| cell.has(subject, true)).collect();
        assert!(with.contains(&Subject::TitanQuic) && with.contains(&Subject::TitanGrpc));
        assert!(with.iter().all(|subject| subject.is_titan()));
    }

    #[test]
    fn the_self_test_is_one_subject_under_two_names() {
        assert_eq!(plan("--self-test").subjects, [Subject::TitanQuic, Subject::TitanQuicAgain]);
    }

    #[test]
    fn servers_are_restarted_once_for_each_token_rate() {
        let mut rates: Vec<_> = plan("").cells.iter().map(|cell| cell.conditions.token_rate).collect();
        rates.dedup();
        assert_eq!(rates, [50.0, 20.0, 100.0]);
    }

    #[test]
    fn loopback_has_no_network_to_vary() {
        let cells = plan("--loopback").cells;
        assert!(cells.iter().all(|cell| cell.conditions.rtt_ms == 0.0 && cell.conditions.loss == Loss::None));
        assert!(cells.iter().any(|cell| cell.starts > 0));
    }
}
