//! The clients of one trial, in a thread on their host: many streams at once.

use std::{net::Ipv4Addr, sync::Arc, thread::JoinHandle, time::Duration};

use anyhow::Context as _;
use futures_util::{StreamExt as _, future::join_all};
use parking_lot::Mutex;
use titan_agent::engine::synthetic::SYNTHETIC_MODEL;
use titan_certs::COORDINATOR_SERVER_NAME;
use titan_client::{ClientError, Prompt, TitanClient, TlsMaterial, WirePreference};
use titan_emulator::Network;
use tokio::{
    runtime,
    sync::mpsc,
    time::{Instant, timeout},
};

use super::{
    cluster::{AGENT_HOST, Cluster, REST_PORT},
    plan::{LANES, Over, Trial},
    verdict::{Ended, Heard},
};

/// Streams of a client begin so long after one another: a burst of handshakes is not what is tried.
const BETWEEN_STREAMS: Duration = Duration::from_millis(20);

/// The clients, while they listen.
pub(super) struct Clients {
    thread: JoinHandle<anyhow::Result<anyhow::Result<Vec<Heard>>>>,
    begun: mpsc::UnboundedReceiver<()>,
    streams: u32,
}

impl Clients {
    /// Starts all streams. One that has not ended after `patience` is given up.
    pub(super) fn start(cluster: &Cluster, trial: &Trial, tokens: u32, patience: Duration) -> anyhow::Result<Self> {
        let (tell, begun) = mpsc::unbounded_channel();
        let listeners: Vec<Listener> = (0..LANES)
            .map(|lane| Listener {
                server: Network::server_address(lane),
                tls: cluster.tls.clone(),
                over: trial.over,
                // As evenly as possible.
                streams: trial.streams / u32::from(LANES)
                    + u32::from(u32::from(lane) < trial.streams % u32::from(LANES)),
                tokens,
                patience,
                begun: tell.clone(),
            })
            .collect();
        let thread = cluster.network.client().spawn(move || {
            // Its threads are on the host too.
            let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            let heard = runtime.block_on(join_all(listeners.into_iter().map(Listener::listen)));
            runtime.shutdown_background();
            Ok(heard.into_iter().collect::<anyhow::Result<Vec<_>>>()?.into_iter().flatten().collect())
        })?;
        Ok(Self { thread, begun, streams: trial.streams })
    }

    /// Waits until half of the streams have their first token, or have ended without one. Were it all, a single handshake that was
    /// lost again and again would let most of the others end before anything happens.
    pub(super) async fn half_have_begun(&mut self) -> Instant {
        for _ in 0..self.streams.div_ceil(2) {
            // Without an answer all have ended.
            if self.begun.recv().await.is_none() {
                break;
            }
        }
        Instant::now()
    }

    /// Waits for the end of all.
    pub(super) async fn all_have_ended(self) -> anyhow::Result<Vec<Heard>> {
        let joined = tokio::task::spawn_blocking(move || self.thread.join()).await?;
        joined.map_err(|_| anyhow::anyhow!("the clients panicked"))??
    }
}

/// One client, with streams of its own.
struct Listener {
    server: Ipv4Addr,
    tls: TlsMaterial,
    over: Over,
    streams: u32,
    tokens: u32,
    patience: Duration,
    begun: mpsc::UnboundedSender<()>,
}

impl Listener {
    async fn listen(self) -> anyhow::Result<Vec<Heard>> {
        let server = self.server.into();
        let client = TitanClient::builder(format!("https://{COORDINATOR_SERVER_NAME}:{REST_PORT}"))
            .tls(self.tls.clone())
            .resolve(COORDINATOR_SERVER_NAME, server)
            .resolve(AGENT_HOST, server)
            .wire(match self.over {
                Over::Quic => WirePreference::Quic,
                Over::Grpc => WirePreference::Grpc,
            })
            .build()?;
        let streams = (0..self.streams).map(|number| {
            let heard = Arc::new(Mutex::new(Heard::default()));
            let (client, begun, tokens) = (client.clone(), self.begun.clone(), self.tokens);
            let delay = BETWEEN_STREAMS * number;
            async move {
                let stream = tokio::spawn({
                    let heard = heard.clone();
                    async move {
                        tokio::time::sleep(delay).await;
                        let last = Mutex::new(Instant::now());
                        let ended = read(&client, tokens, &heard, &last, Begun(Some(begun))).await;
                        let mut heard = heard.lock();
                        heard.silence = last.lock().elapsed();
                        heard.ended = match ended {
                            Ok(()) => Ended::Complete,
                            Err(error) => Ended::Failed { kind: kind(&error), message: error.to_string() },
                        };
                    }
                });
                let stop = stream.abort_handle();
                match timeout(self.patience, stream).await {
                    Ok(ended) => ended.context("a stream panicked")?,
                    Err(_) => stop.abort(),
                }
                let heard = heard.lock().clone();
                anyhow::Ok(heard)
            }
        });
        join_all(streams).await.into_iter().collect()
    }
}

/// Reads one answer into `heard`; the `last` text came then.
async fn read(
    client: &TitanClient,
    tokens: u32,
    heard: &Mutex<Heard>,
    last: &Mutex<Instant>,
    mut begun: Begun,
) -> Result<(), ClientError> {
    let mut prompt = Prompt::new(SYNTHETIC_MODEL, "chaos");
    prompt.max_tokens = tokens;
    // An answer can go on at another agent.
    prompt.temperature = 0.0;
    let mut generation = client.generate(prompt).await?;
    while let Some(text) = generation.next().await {
        let text = text?;
        begun.tell();
        *last.lock() = Instant::now();
        let mut heard = heard.lock();
        if heard.agents.last().map(String::as_str) != Some(generation.agent_id()) {
            heard.agents.push(generation.agent_id().to_owned());
        }
        heard.texts.push(text);
    }
    Ok(())
}

/// Tells once that a stream has begun, at the latest when it has ended.
struct Begun(Option<mpsc::UnboundedSender<()>>);

impl Begun {
    fn tell(&mut self) {
        if let Some(begun) = self.0.take() {
            // Whoever counted has gone.
            let _ = begun.send(());
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.tell();
    }
}

/// The variant's name.
fn kind(error: &ClientError) -> &'static str {
    match error {
        ClientError::Coordinator(_) => "no route",
        ClientError::Unreachable { .. } => "unreachable",
        ClientError::Certificate { .. } => "certificate",
        ClientError::WireUnavailable { .. } => "no such wire",
        ClientError::Refused { .. } => "refused",
        ClientError::AlreadyRan { .. } => "already ran",
        ClientError::Broken { .. } => "broken",
        ClientError::TimedOut { .. } => "timed out",
        _ => "other",
    }
}
