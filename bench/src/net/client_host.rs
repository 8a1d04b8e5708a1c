//! A process on the client host: the clients of one subject.

use std::{
    collections::HashMap,
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use parking_lot::Mutex;
use titan_agent::engine::synthetic::{Stamp, now_ns};
use tokio::time::{sleep, timeout};

use super::{
    args::HostArgs,
    protocol::{Answer, Numbered, Order, Start, Starts, Streamed},
    reading::{Reading, delivery},
    stdio::{MOST_SOCKETS, serve_orders},
    subject::{Client, Held, Subject, Tokens},
    subjects,
};
use crate::{open_files, usage::Usage};

/// Does as it is told until standard input ends.
pub(crate) async fn run(args: HostArgs) -> anyhow::Result<()> {
    open_files::allow_up_to(MOST_SOCKETS);
    let host = Arc::new(ClientHost {
        subject: args.subject,
        lab: args.lab,
        opened: Mutex::default(),
        held: Mutex::default(),
        moved_at_ns: AtomicU64::new(0),
    });
    serve_orders(move |Numbered { id, body }| {
        let host = host.clone();
        async move { host.obey(id, body).await.unwrap_or_else(|error| Answer::Failed { error: format!("{error:#}") }) }
    })
    .await?;
    // Without taking everything down first: h3-quinn 0.0.10 panics where an answer is dropped while it is read.
    std::process::exit(0);
}

struct ClientHost {
    subject: Subject,
    lab: PathBuf,
    opened: Mutex<HashMap<u64, Arc<dyn Client>>>,
    /// Connections and streams whose memory is measured.
    held: Mutex<Vec<Held>>,
    /// 0: it has not moved since the last stream began.
    moved_at_ns: AtomicU64,
}

/// Connections that are made at the same time, where there are thousands to make: no more than a queue of a listening socket holds.
const AT_ONCE: usize = 32;
/// Until tickets and address tokens have come, which follow a handshake, even if they are lost at first: clients that come back later
/// have them.
const RETURN_AFTER: Duration = Duration::from_millis(500);
/// Streams that wait on one client, where there are thousands.
const STREAMS_PER_CLIENT: u32 = 100;
/// More than any of them lives to send.
const ENDLESS_TOKENS: u32 = 1_000_000;

impl ClientHost {
    async fn obey(&self, id: u64, order: Order) -> anyhow::Result<Answer> {
        match order {
            Order::Start { server, deadline_ms } => {
                Ok(Answer::Starts(self.starts(server, Duration::from_millis(deadline_ms)).await))
            }
            Order::Return { server, deadline_ms } => {
                Ok(Answer::Returned(self.returns(server, Duration::from_millis(deadline_ms)).await))
            }
            Order::Open { server, deadline_ms } => {
                let client: Arc<dyn Client> = self.client(server)?.into();
                within(Duration::from_millis(deadline_ms), async { read_all(client.ask(1).await?.tokens).await })
                    .await?;
                self.opened.lock().insert(id, client);
                Ok(Answer::Done)
            }
            Order::Stream { opened, streams, tokens, interval_ns, one_way_ns, deadline_ms } => {
                let client = self.opened.lock().get(&opened).cloned().context("no such client is open")?;
                self.moved_at_ns.store(0, Relaxed);
                let (interval, one_way) = (Duration::from_nanos(interval_ns), Duration::from_nanos(one_way_ns));
                let deadline = Duration::from_millis(deadline_ms);
                let streamed = self.streams(client, streams, tokens, interval, one_way, deadline).await;
                Ok(Answer::Stream(Box::new(streamed)))
            }
            Order::Close { opened } => {
                self.opened.lock().remove(&opened);
                Ok(Answer::Done)
            }
            Order::Moved { at_ns } => {
                self.moved_at_ns.store(at_ns, Relaxed);
                Ok(Answer::Done)
            }
            Order::Hold { server, connections } => {
                self.hold(connections, |_| async move {
                    let client = self.client(server)?;
                    // An answer of Titan's would leave a connection to the coordinator, too.
                    if self.subject.is_titan() {
                        return client.connect().await;
                    }
                    read_all(client.ask(1).await?.tokens).await?;
                    Ok(Box::new(client) as Held)
                })
                .await
            }
            Order::HoldStreams { server, streams } => {
                let clients = (0..streams.div_ceil(STREAMS_PER_CLIENT))
                    .map(|_| Ok(Arc::from(self.client(server)?)))
                    .collect::<anyhow::Result<Vec<Arc<dyn Client>>>>()?;
                self.hold(streams, |at| {
                    let client = clients.get((at / STREAMS_PER_CLIENT) as usize).cloned();
                    async move {
                        let client = client.context("no client for a stream")?;
                        let mut tokens = client.ask(ENDLESS_TOKENS).await?.tokens;
                        tokens.next().await.context("a stream ended at its start")??;
                        Ok(Box::new((client, tokens)) as Held)
                    }
                })
                .await
            }
            Order::Usage => Ok(Answer::Used(Usage::now()?)),
            Order::SpareAgent | Order::KillAgent => anyhow::bail!("a client has no agents"),
        }
    }

    fn client(&self, server: IpAddr) -> anyhow::Result<Box<dyn Client>> {
        subjects::client(self.subject, server, &self.lab)
    }

    /// Starts of each kind, one after another.
    async fn starts(&self, server: IpAddr, deadline: Duration) -> Starts {
        let connect_ms = within(deadline, async {
            let client = self.client(server)?;
            let begun = Instant::now();
            let connection = client.connect().await?;
            let took = begun.elapsed();
            drop(connection);
            Ok(took.as_secs_f64() * 1e3)
        })
        .await;
        let client = self.client(server);
        let start = async || match &client {
            Ok(client) => within(deadline, start(&**client)).await.map_err(|error| format!("{error:#}")),
            Err(error) => Err(format!("{error:#}")),
        };
        let cold = start().await;
        if let Ok(client) = &client {
            client.disconnect();
        }
        let resumed = start().await;
        let warm = start().await;
        Starts { connect_ms: connect_ms.map_err(|error| format!("{error:#}")), cold, resumed, warm }
    }

    /// The start of a client that was here before.
    async fn returns(&self, server: IpAddr, deadline: Duration) -> Result<Start, String> {
        let returned = async {
            let client = self.client(server)?;
            // Its own deadline: what it takes is not what is measured.
            within(deadline, start(&*client)).await.context("the start before it")?;
            sleep(RETURN_AFTER).await;
            client.disconnect();
            within(deadline, start(&*client)).await
        };
        returned.await.map_err(|error: anyhow::Error| format!("{error:#}"))
    }

    async fn streams(
        &self,
        client: Arc<dyn Client>,
        streams: u32,
        tokens: u32,
        interval: Duration,
        one_way: Duration,
        deadline: Duration,
    ) -> Streamed {
        let readers: Vec<_> = (0..streams)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { read_stream(&*client, tokens, deadline).await })
            })
            .collect();
        let mut failed = None;
        let mut readings = Vec::new();
        for reader in readers {
            match reader.await {
                Ok((reading, result)) => {
                    readings.push(reading);
                    failed = failed.or(result.err().map(|error| format!("{error:#}")));
                }
                Err(error) => failed = Some(error.to_string()),
            }
        }
        let moved_at = Some(self.moved_at_ns.load(Relaxed)).filter(|&at| at > 0);
        // The slowest of the streams.
        let recoveries: Option<Vec<Duration>> =
            moved_at.and_then(|at| readings.iter().map(|reading| reading.recovery_after(at)).collect());
        Streamed {
            delivery: delivery(&readings, tokens, interval, one_way),
            failed,
            recovery_ms: recoveries.and_then(|all| all.into_iter().max()).map(|slowest| slowest.as_secs_f64() * 1e3),
        }
    }

    async fn hold<F>(&self, count: u32, make: impl Fn(u32) -> F) -> anyhow::Result<Answer>
    where
        F: Future<Output = anyhow::Result<Held>>,
    {
        let held: Vec<_> = stream::iter((0..count).map(make)).buffer_unordered(AT_ONCE).try_collect().await?;
        self.held.lock().extend(held);
        Ok(Answer::Done)
    }
}

/// One request, to its end.
async fn start(client: &dyn Client) -> anyhow::Result<Start> {
    let begun = Instant::now();
    let mut answer = client.ask(1).await?;
    answer.tokens.next().await.context("no token came")??;
    let took = begun.elapsed();
    read_all(answer.tokens).await?;
    let ttft = took.saturating_sub(answer.routing.unwrap_or_default());
    Ok(Start {
        ttft_ms: ttft.as_secs_f64() * 1e3,
        routing_ms: answer.routing.map(|routing| routing.as_secs_f64() * 1e3),
    })
}

async fn read_all(mut tokens: Tokens) -> anyhow::Result<()> {
    while let Some(token) = tokens.next().await {
        token?;
    }
    Ok(())
}

/// What came before the end, or before the deadline, and how it ended.
async fn read_stream(client: &dyn Client, tokens: u32, deadline: Duration) -> (Reading, anyhow::Result<()>) {
    let mut reading = Reading::default();
    let result = within(deadline, async {
        let mut texts = client.ask(tokens).await?.tokens;
        while let Some(text) = texts.next().await {
            let text = text?;
            let now = now_ns();
            let stamp = Stamp::read(&text, now).with_context(|| format!("a token that is no stamp: {text:?}"))?;
            reading.push(stamp.index, stamp.sent_ns, now);
        }
        Ok(())
    })
    .await;
    if result.is_err() {
        reading.broke();
    }
    (reading, result)
}

async fn within<T>(deadline: Duration, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    match timeout(deadline, work).await {
        Ok(result) => result,
        Err(_) => anyhow::bail!("not done after {} s", deadline.as_secs()),
    }
}
