//! What connections and streams cost in memory, one subject at a time, with processes that did nothing else.

use std::{path::Path, time::Duration};

use super::{Pair, put_all};
use crate::{
    net::{
        ground::Ground,
        plan::{Plan, SECONDS_PER_CONNECTION},
        protocol::Order,
        record::{MemoryRecord, Record, Recorder},
        subject::Subject,
    },
    path::PathSettings,
    progress::Progress,
};

const LANE: u8 = 1;
/// The first token at once, and then nothing for as long as this takes.
const TOKEN_RATE: f64 = 0.001;
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
    let (pair, _) = Pair::start(ground, subject, lab, TOKEN_RATE).await?;
    let result = fill(&pair, plan, subject, kind, ground, recorder, progress).await;
    // In any case: the next one listens on the same ports.
    pair.stop().await;
    result
}

async fn fill(
    pair: &Pair,
    plan: &Plan,
    subject: Subject,
    kind: Kind,
    ground: &Ground,
    recorder: &mut Recorder,
    progress: &Progress,
) -> anyhow::Result<()> {
    let server = ground.server_address(LANE);
    let mut held = 0;
    let mut points = plan.memory.clone();
    points.sort_unstable();
    for count in [0].into_iter().chain(points) {
        let more = count - held;
        let order = match kind {
            Kind::Idle => Order::Hold { server, connections: more },
            Kind::Streams => Order::HoldStreams { server, streams: more },
        };
        pair.client.obey(order).await?;
        held = count;
        tokio::time::sleep(SETTLE).await;
        let (server, client) = (pair.server.usage().await?, pair.client.usage().await?);
        let (connections, streams) = match kind {
            Kind::Idle => (count, 0),
            Kind::Streams => (0, count),
        };
        let record = MemoryRecord {
            subject,
            connections,
            streams,
            server_bytes: server.resident_bytes,
            client_bytes: client.resident_bytes,
        };
        put_all(recorder, [Record::Memory(record)])?;
        progress.advance(Duration::from_secs_f64(SECONDS_PER_CONNECTION * f64::from(more)));
    }
    Ok(())
}
