//! What connections and streams cost in memory, one subject at a time, with processes that did nothing else.

use std::{net::IpAddr, ops::Range, path::Path, time::Duration};

use titan_emulator::PathSettings;

use super::put_all;
use crate::{
    net::{
        ground::Ground,
        plan::{Plan, SECONDS_PER_CONNECTION},
        process::HostProcess,
        protocol::Order,
        record::{MemoryRecord, Record, Recorder},
        subject::Subject,
    },
    progress::Progress,
};

const LANE: u8 = 1;
/// The first token at once, and then nothing for as long as this takes.
const TOKEN_RATE: f64 = 0.001;
/// Connections of one client process: a QUIC client has two files open for each, and a system may allow a process 20,000.
const PER_PROCESS: u32 = 5000;
/// What was freed is freed, what was sent has arrived.
const SETTLE: Duration = Duration::from_millis(500);

/// Resident memory with no, and with more and more connections, and with streams.
pub(super) async fn measure(
    plan: &Plan,
    ground: &Ground,
    lab: &Path,
    recorder: &mut Recorder,
    progress: &Progress,
) -> anyhow::Result<()> {
    ground.set(LANE, PathSettings::NOTHING, 0);
    for &subject in plan.subjects.iter().filter(|subject| !subject.is_variant()) {
        for kind in [Kind::Idle, Kind::Streams] {
            progress.stage(format!("memory of {}: {}", subject.label(), kind.label()));
            if let Err(error) = measure_one(plan, subject, kind, ground, lab, recorder, progress).await {
                // Others may do with it: what was measured stays.
                eprintln!("{}: memory of {}: {error:#}", subject.label(), kind.label());
            }
        }
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Kind {
    Idle,
    Streams,
}

impl Kind {
    fn order(self, server: IpAddr, more: u32) -> Order {
        match self {
            Self::Idle => Order::Hold { server, connections: more },
            Self::Streams => Order::HoldStreams { server, streams: more },
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Idle => "idle connections",
            Self::Streams => "streams",
        }
    }
}

async fn measure_one(
    plan: &Plan,
    subject: Subject,
    kind: Kind,
    ground: &Ground,
    lab: &Path,
    recorder: &mut Recorder,
    progress: &Progress,
) -> anyhow::Result<()> {
    let (server, _) = HostProcess::server(ground, subject, lab, TOKEN_RATE).await?;
    let mut points = vec![0];
    points.extend(&plan.memory);
    points.sort_unstable();
    let most = points.last().copied().unwrap_or(0);
    let mut clients = Vec::new();
    for _ in 0..most.div_ceil(PER_PROCESS).max(1) {
        clients.push(HostProcess::client(ground, subject, lab)?);
    }
    let mut result = Ok(());
    for (before, &count) in [0].iter().chain(&points).zip(&points) {
        let address = ground.server_address(LANE);
        result = fill(&server, &clients, address, kind, subject, *before..count, recorder).await;
        if result.is_err() {
            break;
        }
        progress.advance(Duration::from_secs_f64(SECONDS_PER_CONNECTION * f64::from(count - before)));
    }
    // In any case: the next one listens on the same ports.
    for client in clients {
        client.stop().await;
    }
    server.stop().await;
    result
}

/// Opens those of `range`, which come after those that are open, and stores what all of them take.
async fn fill(
    server: &HostProcess,
    clients: &[HostProcess],
    address: IpAddr,
    kind: Kind,
    subject: Subject,
    range: Range<u32>,
    recorder: &mut Recorder,
) -> anyhow::Result<()> {
    for (client, first) in clients.iter().zip((0..).step_by(PER_PROCESS as usize)) {
        // What of the range is this process' part.
        let more = range.end.min(first + PER_PROCESS).saturating_sub(range.start.max(first));
        client.obey(kind.order(address, more)).await?;
    }
    tokio::time::sleep(SETTLE).await;
    let mut client_bytes = 0;
    for client in clients {
        client_bytes += client.usage().await?.resident_bytes;
    }
    let server_bytes = server.usage().await?.resident_bytes;
    let (connections, streams) = match kind {
        Kind::Idle => (range.end, 0),
        Kind::Streams => (0, range.end),
    };
    put_all(recorder, [Record::Memory(MemoryRecord { subject, connections, streams, server_bytes, client_bytes })])
}
