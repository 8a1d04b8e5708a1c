//! The reading side: connections, and the streams spread over them.

use std::{future::Future, sync::Arc};

use titan_agent::engine::synthetic::{SYNTHETIC_MODEL, Stamp, now_ns};
use titan_proto::v1::StreamRequest;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tonic::Status;

use super::{
    plan::Plan,
    sequence::Sequence,
    tally::{Lags, Tally},
};
use crate::{
    args::LoadArgs,
    lab::Lab,
    wire::{Client, Ports, Wire},
};

/// All clients of one measurement. Dropping it breaks every stream off.
pub(super) struct Clients {
    connections: Vec<Connection>,
    streams: JoinSet<StreamEnd>,
    streams_wanted: u32,
}

struct Connection {
    client: Client,
    tally: Arc<Tally>,
}

/// How one stream ended.
#[derive(Debug)]
struct StreamEnd {
    sequence: Sequence,
    failed: Option<Status>,
}

/// How the streams ended, all together.
#[derive(Clone, Debug, Default)]
pub(super) struct Ends {
    /// Ended properly.
    pub(super) finished: u32,
    /// Had not ended when they were broken off.
    pub(super) unfinished: u32,
    /// Ended with an error.
    pub(super) failed: u32,
    /// The first of these errors.
    pub(super) first_failure: Option<String>,
    pub(super) received: u64,
    pub(super) lost: u64,
    pub(super) duplicated: u64,
}

impl Clients {
    /// Connects, one client after another.
    pub(super) async fn connect(wire: Wire, ports: Ports, lab: &Lab, args: &LoadArgs) -> anyhow::Result<Self> {
        let mut connections = Vec::new();
        for _ in 0..args.connections.min(args.streams) {
            let client = Client::connect(wire, ports, lab, args.plaintext).await?;
            connections.push(Connection { client, tally: Arc::new(Tally::new()) });
        }
        Ok(Self { connections, streams: JoinSet::new(), streams_wanted: args.streams })
    }

    /// Starts the streams by the plan, whose time begins at `start`.
    pub(super) fn start(&mut self, lab: &Lab, plan: &Plan, start: Instant) -> anyhow::Result<()> {
        let request = StreamRequest {
            // A token may be used again until it expires: signing is not what is measured.
            session_token: lab.token(SYNTHETIC_MODEL)?,
            prompt: "load".to_owned(),
            max_tokens: i32::try_from(plan.tokens_per_stream()).unwrap_or(i32::MAX),
            ..Default::default()
        };
        for (stream, connection) in (0..self.streams_wanted).zip(self.connections.iter().cycle()) {
            let (client, tally) = (connection.client.clone(), connection.tally.clone());
            let (request, plan) = (request.clone(), plan.clone());
            self.streams.spawn(async move {
                sleep_until(start + plan.start_of(stream)).await;
                let mut sequence = Sequence::default();
                let failed = read(client, request, &plan, &tally, &mut sequence).await.err();
                StreamEnd { sequence, failed }
            });
        }
        Ok(())
    }

    /// Whether lags are recorded from now on.
    pub(super) fn measure(&self, measuring: bool) {
        self.connections.iter().for_each(|connection| connection.tally.measure(measuring));
    }

    /// Tokens that have come.
    pub(super) fn tokens(&self) -> u64 {
        self.connections.iter().map(|connection| connection.tally.tokens()).sum()
    }

    /// Of every connection.
    pub(super) fn lags(&self) -> Lags {
        let mut sum = Lags::new();
        self.connections.iter().for_each(|connection| sum.add(&connection.tally.lags()));
        sum
    }

    /// Waits for the streams, until `deadline`. Streams that are broken off then count what they had not got as neither lost nor
    /// received.
    pub(super) async fn ends(&mut self, deadline: impl Future<Output = ()>) -> Ends {
        let mut ends = Ends::default();
        let mut deadline = std::pin::pin!(deadline);
        loop {
            tokio::select! {
                ended = self.streams.join_next() => match ended {
                    Some(Ok(end)) => ends.add(end),
                    Some(Err(panic)) => ends.add_failure(panic.to_string()),
                    None => return ends,
                },
                () = &mut deadline => break,
            }
        }
        ends.unfinished = u32::try_from(self.streams.len()).unwrap_or(u32::MAX);
        self.streams.shutdown().await;
        ends
    }
}

impl Ends {
    fn add(&mut self, end: StreamEnd) {
        self.received += end.sequence.received();
        self.lost += end.sequence.lost();
        self.duplicated += end.sequence.duplicated();
        match end.failed {
            None => self.finished += 1,
            Some(status) => self.add_failure(format!("{:?}: {}", status.code(), status.message())),
        }
    }

    fn add_failure(&mut self, reason: String) {
        self.failed += 1;
        self.first_failure.get_or_insert(reason);
    }
}

async fn read(
    mut client: Client,
    request: StreamRequest,
    plan: &Plan,
    tally: &Tally,
    sequence: &mut Sequence,
) -> Result<(), Status> {
    let mut stream = client.stream(request).await?;
    let mut first_sent = None;
    while let Some(message) = stream.message().await? {
        if message.done {
            sequence.end(plan.tokens_per_stream());
            return Ok(());
        }
        let now = now_ns();
        let Some(Stamp { index, sent_ns: sent }) = Stamp::read(&message.content, now) else {
            return Err(Status::internal(format!("a token without number and time: {:?}", message.content)));
        };
        sequence.push(index);
        // The schedule is that of the first token; should that one be late, all others seem early and count as in time.
        let due = *first_sent.get_or_insert(sent) + plan.due_ns(index);
        tally.token(now.saturating_sub(due), now.saturating_sub(sent));
    }
    Err(Status::internal("the stream ended without its last message"))
}
