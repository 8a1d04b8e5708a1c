//! Time to the first token of clients that come back, often enough to speak of the slowest of a hundred.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::{sync::Semaphore, time::sleep};

use super::{CellRun, Lane, put_all};
use crate::net::{
    ground::path_of,
    plan::starts_at_once,
    protocol::{Answer, Order},
    record::{Record, Recorder, StartRecord, StartState},
};

/// For each of the two starts: as in `starts`.
const DEADLINE: Duration = Duration::from_secs(15);
/// For both, and what is between them.
const SLACK: Duration = Duration::from_secs(45);
/// Over which the lanes begin.
const SPREAD: Duration = Duration::from_millis(500);

impl CellRun<'_> {
    /// Lanes side by side, each with one start after another.
    pub(super) async fn returns(&self, recorder: &mut Recorder) -> anyhow::Result<()> {
        let lanes = self.lanes();
        for lane in &lanes {
            self.ground.set(lane.lane, path_of(&self.cell.conditions), !lane.seed);
        }
        let turns = Semaphore::new(starts_at_once(self.cell.conditions.rtt_ms));
        let results = join_all(lanes.iter().map(async |lane| {
            sleep(lane.phase(SPREAD)).await;
            let mut records = Vec::new();
            for _ in 0..self.cell.returns {
                let _turn = turns.acquire().await?;
                records.push(self.return_of(lane).await?);
            }
            Ok::<_, anyhow::Error>(records)
        }))
        .await;
        for result in results {
            put_all(recorder, result?.into_iter().map(Record::Start))?;
        }
        Ok(())
    }

    async fn return_of(&self, lane: &Lane<'_>) -> anyhow::Result<StartRecord> {
        let server = self.ground.server_address(lane.lane);
        let order = Order::Return { server, deadline_ms: u64::try_from(DEADLINE.as_millis())? };
        let start = match lane.pair.client.obey_within(order, SLACK).await? {
            (_, Answer::Returned(start)) => start,
            (_, other) => anyhow::bail!("{} answers {other:?}", lane.subject.label()),
        };
        Ok(StartRecord {
            conditions: self.cell.conditions.clone(),
            subject: lane.subject,
            repetition: lane.repetition,
            state: StartState::Returning,
            connect_ms: None,
            ttft_ms: start.as_ref().ok().map(|start| start.ttft_ms),
            routed_ttft_ms: None,
            failed: start.err(),
        })
    }
}
