//! Time to the first token: the starts of one cell.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Semaphore;

use super::{CellRun, Lane, put_all};
use crate::net::{
    ground::path_of,
    plan::starts_at_once,
    protocol::{Answer, Order, Start, Starts},
    record::{Record, Recorder, StartRecord, StartState},
};

/// For one start. Handshakes whose packets are lost again and again back off to several seconds.
const DEADLINE: Duration = Duration::from_secs(15);
/// Over which the lanes begin.
const SPREAD: Duration = Duration::from_millis(500);
/// One order is a connection and three starts.
const SLACK: Duration = Duration::from_secs(75);

impl CellRun<'_> {
    /// Several lanes at once, each with one start after another.
    pub(super) async fn starts(&self, recorder: &mut Recorder) -> anyhow::Result<()> {
        let lanes = self.lanes();
        for lane in &lanes {
            // Another stream of luck than that of the tokens.
            self.ground.set(lane.lane, path_of(&self.cell.conditions), !lane.seed);
        }
        let turns = Semaphore::new(starts_at_once(self.cell.conditions.rtt_ms));
        let results = join_all(lanes.iter().map(async |lane| {
            let mut records = Vec::new();
            tokio::time::sleep(lane.phase(SPREAD)).await;
            for _ in 0..self.cell.starts {
                let _turn = turns.acquire().await?;
                records.extend(self.start(lane).await?);
            }
            Ok::<_, anyhow::Error>(records)
        }))
        .await;
        for result in results {
            put_all(recorder, result?.into_iter().map(Record::Start))?;
        }
        Ok(())
    }

    async fn start(&self, lane: &Lane<'_>) -> anyhow::Result<[StartRecord; 3]> {
        let server = self.ground.server_address(lane.lane);
        let order = Order::Start { server, deadline_ms: u64::try_from(DEADLINE.as_millis())? };
        let starts = match lane.pair.client.obey_within(order, SLACK).await? {
            (_, Answer::Starts(starts)) => starts,
            (_, other) => anyhow::bail!("{} answers {other:?}", lane.subject.label()),
        };
        let Starts { connect_ms, cold, resumed, warm } = starts;
        let record = |state, connect_ms: Option<f64>, start: Result<Start, String>| StartRecord {
            conditions: self.cell.conditions.clone(),
            subject: lane.subject,
            repetition: lane.repetition,
            state,
            connect_ms,
            ttft_ms: start.as_ref().ok().map(|start| start.ttft_ms),
            routed_ttft_ms: start.as_ref().ok().and_then(|start| Some(start.ttft_ms + start.routing_ms?)),
            failed: start.err(),
        };
        Ok([
            record(StartState::Cold, connect_ms.ok(), cold),
            record(StartState::Resumed, None, resumed),
            record(StartState::Warm, None, warm),
        ])
    }
}
