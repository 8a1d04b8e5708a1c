//! Tokens on their way: the streams of one cell.

use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::{join_all, try_join_all};
use titan_agent::engine::synthetic::now_ns;
use tokio::time::sleep;

use super::{CHECK_LANE, CellRun, Lane, put_all};
use crate::net::{
    ground::{lossless, one_way, path_of},
    protocol::{Answer, Order, Streamed},
    record::{CheckRecord, Delivery, Event, Record, Recorder, StreamRecord, Traffic},
};

/// For connecting over a path that loses nothing, with all others at the same time.
const OPEN_DEADLINE: Duration = Duration::from_secs(20);
/// What connecting left on the way has arrived.
const SETTLE: Duration = Duration::from_millis(200);
/// How long a stream may take beyond its own length: a stall of many timeouts, or a connection that is dead.
const PATIENCE: Duration = Duration::from_secs(20);
/// The same where a dead connection is what is expected of most.
const PATIENCE_AFTER_MOVE: Duration = Duration::from_secs(8);
/// For the answer to come, once the stream is at an end.
const SLACK: Duration = Duration::from_secs(30);
/// The check is over when the streams are.
const MOST_OF_CHECK: Duration = Duration::from_secs(6);

impl CellRun<'_> {
    /// Connects over a lossless path; then the loss begins, and all streams at once.
    pub(super) async fn streams(&self, recorder: &mut Recorder) -> anyhow::Result<()> {
        let conditions = &self.cell.conditions;
        let lanes = self.lanes();
        for lane in &lanes {
            self.ground.set(lane.lane, lossless(conditions), lane.seed);
        }
        let opened = join_all(lanes.iter().map(|lane| self.open(lane))).await;
        sleep(SETTLE + 2 * one_way(conditions)).await;
        for lane in &lanes {
            self.ground.set(lane.lane, path_of(conditions), lane.seed);
        }
        self.ground.set(CHECK_LANE, path_of(conditions), self.seed);
        let length = Duration::from_secs_f64(f64::from(self.cell.tokens) / conditions.token_rate);
        self.ground.take_emulator_lateness();
        let check = async {
            match conditions.event {
                // Its sockets would lose their address, too. The same path is checked in cells where nothing happens.
                Event::AddressChange => Ok(None),
                _ => self.ground.check(CHECK_LANE, conditions, MOST_OF_CHECK.min(length)).await,
            }
        };
        let streams = join_all(lanes.iter().zip(&opened).map(|(lane, opened)| self.stream(lane, opened, length)));
        let (records, check, moved) = tokio::join!(streams, check, self.disturb(length / 2));
        moved?;
        put_all(recorder, records.into_iter().map(|record| Record::Stream(Box::new(record))))?;
        let late = self.ground.take_emulator_lateness();
        put_all(recorder, check?.map(|check| Record::Check(CheckRecord { emulator_late_p99_ms: late, ..check })))?;
        let close = lanes.iter().zip(&opened).filter_map(|(lane, opened)| Some((lane, *opened.as_ref().ok()?)));
        try_join_all(close.map(|(lane, opened)| lane.pair.client.obey(Order::Close { opened }))).await?;
        Ok(())
    }

    /// The number of an open client.
    async fn open(&self, lane: &Lane<'_>) -> anyhow::Result<u64> {
        let order = Order::Open { server: self.ground.server_address(lane.lane), deadline_ms: millis(OPEN_DEADLINE) };
        let (id, _) = lane.pair.client.obey(order).await?;
        Ok(id)
    }

    async fn stream(&self, lane: &Lane<'_>, opened: &anyhow::Result<u64>, length: Duration) -> StreamRecord {
        let streamed = match opened {
            Ok(opened) => self.stream_of(lane, *opened, length).await,
            Err(error) => Err(anyhow::anyhow!("it did not connect: {error:#}")),
        };
        let Streamed { delivery, failed, recovery_ms } = streamed.unwrap_or_else(|error| Streamed {
            delivery: Delivery::none(),
            failed: Some(format!("{error:#}")),
            recovery_ms: None,
        });
        // Right now, before what the connection sends while it idles.
        let (to_client, to_server): (Traffic, Traffic) = self.ground.traffic(lane.lane);
        StreamRecord {
            conditions: self.cell.conditions.clone(),
            subject: lane.subject,
            repetition: lane.repetition,
            seed: lane.seed,
            delivery,
            failed,
            recovery_ms,
            to_client,
            to_server,
        }
    }

    async fn stream_of(&self, lane: &Lane<'_>, opened: u64, length: Duration) -> anyhow::Result<Streamed> {
        let conditions = &self.cell.conditions;
        let patience = match conditions.event {
            Event::AddressChange | Event::AgentKilled => PATIENCE_AFTER_MOVE,
            Event::None | Event::UdpBlocked => PATIENCE,
        };
        let deadline = length + patience;
        let interval = Duration::from_secs_f64(1.0 / conditions.token_rate);
        let order = Order::Stream {
            opened,
            streams: conditions.streams,
            tokens: self.cell.tokens,
            interval_ns: nanos(interval),
            one_way_ns: nanos(one_way(conditions)),
            deadline_ms: millis(deadline),
        };
        sleep(lane.phase(interval)).await;
        match lane.pair.client.obey_within(order, deadline + SLACK).await? {
            (_, Answer::Stream(streamed)) => Ok(*streamed),
            (_, other) => anyhow::bail!("{} answers {other:?}", lane.subject.label()),
        }
    }

    /// After `time`, what happens in this cell in the middle of a stream.
    async fn disturb(&self, time: Duration) -> anyhow::Result<()> {
        let half_way = sleep(time);
        let at_ns = match self.cell.conditions.event {
            Event::None | Event::UdpBlocked => return Ok(()),
            Event::AddressChange => {
                half_way.await;
                self.ground.move_client().context("cannot change the client's address")?;
                now_ns()
            }
            Event::AgentKilled => {
                // Not before the streams have begun: all are at the first agent, and the other one is idle.
                sleep(time / 4).await;
                self.tell_servers(|| Order::SpareAgent).await.context("cannot start another agent")?;
                half_way.await;
                // Before the first of them dies: no pause is made shorter by it.
                let at_ns = now_ns();
                self.tell_servers(|| Order::KillAgent).await.context("cannot kill an agent")?;
                at_ns
            }
        };
        try_join_all(self.hosts.0.values().map(|pair| pair.client.obey(Order::Moved { at_ns }))).await?;
        Ok(())
    }

    async fn tell_servers(&self, order: impl Fn() -> Order) -> anyhow::Result<()> {
        try_join_all(self.hosts.0.values().map(|pair| pair.server.obey(order()))).await?;
        Ok(())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
