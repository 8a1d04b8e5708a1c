//! Made-up records of every kind, for tests: the numbers are invented, and plausible enough to look at the page.

use super::{aggregate::Data, palette};
use crate::{
    environment::Environment,
    net::{
        record::{
            CheckRecord, Conditions, CpuRecord, Delivery, Event, Loss, MemoryRecord, Record, Run, StartRecord,
            StartState, StreamRecord, Traffic,
        },
        subject::Subject,
    },
    stats::Durations,
};

/// Enough for an interval.
const REPETITIONS: u32 = 6;
/// Enough for one in the self-test, too, where it is wider.
const CPU_REPETITIONS: u32 = 12;
const TOKENS: u64 = 200;

pub(super) fn data() -> Data {
    Data::new(run(), records())
}

pub(super) fn run() -> Run {
    Run {
        schema: crate::net::record::SCHEMA,
        environment: Environment { commit: "0123456789ab".to_owned(), ..Environment::read() },
        command: "titan-bench net --out <results>".to_owned(),
        interrupted: false,
        notes: vec![(Subject::Nginx, "nginx 1.22.1: HTTP/2, no buffering".to_owned())],
        skipped: vec![(Subject::Smg, "smg is not installed: pip install smg==1.13".to_owned())],
    }
}

pub(super) fn base() -> Conditions {
    Conditions::plain(100.0, Loss::None)
}

/// Without the one that `run` says was skipped.
pub(super) fn subjects() -> impl Iterator<Item = Subject> {
    palette::ALL.into_iter().filter(|subject| *subject != Subject::Smg)
}

/// One network after the other: all histograms at once would be too much memory for a test.
pub(super) fn records() -> impl Iterator<Item = Record> {
    let mut noise = Noise(7);
    networks().into_iter().flat_map(move |conditions| over(&conditions, &mut noise)).chain(costs())
}

fn networks() -> Vec<Conditions> {
    let iid = |percent| Conditions { loss: Loss::Iid { percent }, ..base() };
    let mut networks = Vec::new();
    for rtt_ms in [0.0, 20.0, 50.0, 100.0, 200.0, 300.0] {
        networks.extend([0.0, 0.1, 1.0, 2.0, 5.0].map(|percent| Conditions { rtt_ms, ..iid(percent) }));
    }
    networks
        .extend([1.0, 5.0].map(|percent| Conditions { loss: Loss::Burst { percent, mean_packets: 3.0 }, ..base() }));
    networks.extend([1.0, 10.0, 100.0].map(|rate| Conditions { rate_mbit: Some(rate), ..iid(1.0) }));
    networks.extend([20.0, 100.0].map(|token_rate| Conditions { token_rate, ..iid(1.0) }));
    networks.push(Conditions { streams: 8, ..iid(1.0) });
    networks.extend([1.0, 5.0].map(|percent| Conditions { congestion_control: "bbr".to_owned(), ..iid(percent) }));
    networks.extend(
        [Event::AddressChange, Event::UdpBlocked, Event::AgentKilled].map(|event| Conditions { event, ..base() }),
    );
    networks
}

fn over(conditions: &Conditions, noise: &mut Noise) -> Vec<Record> {
    let mut records = Vec::new();
    let takes_part = |subject: &Subject| conditions.event != Event::AgentKilled || subject.is_titan();
    for subject in subjects().filter(takes_part) {
        for repetition in 0..REPETITIONS {
            if !matches!(conditions.event, Event::AddressChange | Event::AgentKilled) {
                records.extend(starts(subject, conditions, repetition, noise));
            }
            records.push(Record::Stream(Box::new(stream(subject, conditions, repetition, noise))));
        }
    }
    if conditions.event == Event::None {
        records.push(Record::Check(check(conditions, noise)));
    }
    records
}

/// CPU and memory.
fn costs() -> Vec<Record> {
    let mut noise = Noise(8);
    let mut records = Vec::new();
    for (at, subject) in subjects().enumerate() {
        for repetition in 0..CPU_REPETITIONS {
            records.push(Record::Cpu(CpuRecord {
                subject,
                repetition,
                streams: 200,
                token_rate: 50.0,
                seconds: 10.0,
                tokens: 100_000,
                server_cpu_s: (if subject.is_udp() { 2.4 } else { 1.4 + at as f64 * 0.12 }) * noise.near_one(0.04),
                client_cpu_s: (if subject.is_udp() { 2.1 } else { 1.1 }) * noise.near_one(0.04),
            }));
        }
        let connection = if subject.is_udp() { 47_000 } else { 24_000 + at as u64 * 3_000 };
        for (connections, streams) in [(0, 0), (1_000, 0), (0, 1_000), (10_000, 0)] {
            let bytes = u64::from(connections) * connection + u64::from(streams) * 21_000;
            let (server_bytes, client_bytes) = (30_000_000 + bytes, 20_000_000 + bytes / 2);
            records.push(Record::Memory(MemoryRecord { subject, connections, streams, server_bytes, client_bytes }));
        }
    }
    records
}

fn starts(subject: Subject, conditions: &Conditions, repetition: u32, noise: &mut Noise) -> Vec<Record> {
    let titan = matches!(subject, Subject::TitanQuic | Subject::TitanQuicAgain);
    let blocked = conditions.event == Event::UdpBlocked && subject.is_udp();
    let rtts = |state| match (state, subject) {
        (StartState::Warm, _) => 1.0,
        (StartState::Cold, _) if subject.is_udp() => 2.0,
        (StartState::Resumed, _) if titan => 1.0,
        (StartState::Resumed, Subject::TonicH3) => 2.0,
        _ => 3.0,
    };
    let own = if titan { 0.0 } else { f64::from(subject as u8) };
    let one = |state| {
        let late = if noise.share() < lost_share(conditions) * 3.0 { 200.0 + conditions.rtt_ms } else { 0.0 };
        let fallback = if blocked { 300.0 } else { 0.0 };
        let ttft = conditions.rtt_ms * rtts(state) + late + fallback + (2.0 + own) * noise.near_one(0.3);
        let failed = blocked && !titan;
        Record::Start(StartRecord {
            conditions: conditions.clone(),
            subject,
            repetition,
            state,
            connect_ms: (state == StartState::Cold && !failed).then_some(ttft / 2.0),
            ttft_ms: (!failed).then_some(ttft),
            routed_ttft_ms: (state == StartState::Cold && titan).then_some(ttft + 3.0 * conditions.rtt_ms),
            failed: failed.then(|| "timed out <after> 10 s".to_owned()),
        })
    };
    [StartState::Cold, StartState::Resumed, StartState::Warm].map(one).into()
}

fn lost_share(conditions: &Conditions) -> f64 {
    match conditions.loss {
        Loss::None => 0.0,
        Loss::Iid { percent } | Loss::Burst { percent, .. } => percent / 100.0,
    }
}

fn stream(subject: Subject, conditions: &Conditions, repetition: u32, noise: &mut Noise) -> StreamRecord {
    let titan = matches!(subject, Subject::TitanQuic | Subject::TitanQuicAgain);
    let failed = match conditions.event {
        Event::AddressChange => !titan && subject != Subject::TonicH3,
        Event::UdpBlocked => subject == Subject::TonicH3,
        Event::AgentKilled => !titan,
        Event::None => false,
    };
    let (mut gaps, mut lateness) = (Durations::new(), Durations::new());
    let interval_ms = 1000.0 / conditions.token_rate;
    // How long a lost packet holds up: until the next token brings it too, or until it is sent again.
    let held_up = if titan { interval_ms } else { conditions.rtt_ms + interval_ms * 2.0 };
    let mut stalled = 0.0;
    let mut behind = 0.0_f64;
    let received = if failed { TOKENS / 2 } else { TOKENS };
    for _ in 0..received {
        let before = behind;
        behind = (behind - interval_ms).max(0.0);
        if noise.share() < lost_share(conditions) {
            behind = behind.max(held_up * noise.near_one(0.3));
            stalled += behind;
        }
        let late = behind + 0.4 * noise.near_one(0.9);
        let ns = |ms: f64| (ms.max(0.01) * 1e6) as u64;
        gaps.record_ns(ns(interval_ms + late - before));
        lateness.record_ns(ns(late));
    }
    let packets = |per_token: f64| {
        let packets = (TOKENS as f64 * per_token * noise_free(repetition)) as u64;
        Traffic { packets, bytes: packets * if titan { 140 } else { 110 }, lost_packets: 0 }
    };
    StreamRecord {
        conditions: conditions.clone(),
        subject,
        repetition,
        seed: u64::from(repetition),
        delivery: Delivery {
            gaps,
            lateness,
            stall_ratio: stalled / (stalled + TOKENS as f64 * interval_ms),
            expected: TOKENS,
            received,
            lost: TOKENS - received,
            duplicated: 0,
        },
        failed: failed.then(|| "connection reset".to_owned()),
        recovery_ms: (matches!(conditions.event, Event::AddressChange | Event::AgentKilled) && !failed)
            .then(|| if titan { 120.0 } else { 410.0 } * noise.near_one(0.2)),
        to_client: packets(1.0),
        to_server: packets(0.6),
    }
}

/// The same for a subject and its twin.
fn noise_free(repetition: u32) -> f64 {
    1.0 + f64::from(repetition) / 200.0
}

fn check(conditions: &Conditions, noise: &mut Noise) -> CheckRecord {
    let percent = lost_share(conditions) * 100.0;
    let off = conditions.rtt_ms == 300.0 && percent == 2.0;
    CheckRecord {
        conditions: conditions.clone(),
        ping_rtt_ms: conditions.rtt_ms + if off { 22.0 } else { 0.2 },
        sent_packets: 4_000,
        lost_to_server_percent: percent * noise.near_one(0.03),
        lost_to_client_percent: percent * noise.near_one(0.03),
        emulator_late_p99_ms: 0.3,
        marked: off.then(|| "RTT is 322 ms where 300 ms were set".to_owned()),
    }
}

/// A linear congruential generator: the tests need many values, not good ones.
struct Noise(u64);

impl Noise {
    /// From 0 to 1.
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn near_one(&mut self, by: f64) -> f64 {
        1.0 + (self.share() * 2.0 - 1.0) * by
    }
}
