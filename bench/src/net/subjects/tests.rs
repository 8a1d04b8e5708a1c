//! Every subject that this machine has, its server and its client in one process over loopback.
#![allow(clippy::unwrap_used)]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, TryStreamExt as _, future::try_join_all};
use titan_agent::engine::{
    Engine, Generate, GenerateFuture,
    synthetic::{Stamp, SyntheticEngine},
};
use tokio::sync::mpsc;

use super::*;
use crate::lab::Lab;

/// Longest wait for what happens at once on a machine that is not overloaded.
const PATIENCE: Duration = Duration::from_secs(60);
const TOKENS: u32 = 20;
const TOKENS_PER_SECOND: f64 = 1000.0;

/// The synthetic engine, and how many of its answers run.
struct Watched {
    inner: SyntheticEngine,
    running: Arc<AtomicUsize>,
}

impl Engine for Watched {
    fn models(&self) -> Vec<String> {
        Engine::models(&self.inner)
    }

    fn generate(&self, request: Generate) -> GenerateFuture<'_> {
        Box::pin(async move {
            let mut events = self.inner.generate(request).await?;
            let (forward, stream) = mpsc::channel(1);
            let running = self.running.clone();
            running.fetch_add(1, SeqCst);
            tokio::spawn(async move {
                while let Some(event) = events.recv().await {
                    if forward.send(event).await.is_err() {
                        break;
                    }
                }
                running.fetch_sub(1, SeqCst);
            });
            Ok(stream)
        })
    }
}

/// Another address of this host: servers answer at each.
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// A subject that is served, and a client of it.
struct World {
    client: Box<dyn Client>,
    running: Arc<AtomicUsize>,
    serving: Serving,
    lab: Lab,
}

impl World {
    /// `None` where the machine does not have the subject.
    async fn new(subject: Subject) -> Option<Self> {
        if let Err(reason) = available(subject) {
            println!("skipped: {reason}");
            return None;
        }
        let lab = Lab::new().unwrap();
        let running = Arc::new(AtomicUsize::new(0));
        let inner = SyntheticEngine::new(TOKENS_PER_SECOND).timestamps(true);
        let engine = Arc::new(Watched { inner, running: running.clone() });
        let port = test_port(subject);
        let serving = soon(serve_at(subject, port, lab.path(), engine)).await.unwrap();
        let client = client_at(subject, SocketAddr::new(LOCALHOST, port), lab.path()).unwrap();
        Some(Self { client, running, serving, lab })
    }

    async fn read(&self, tokens: u32) -> anyhow::Result<bool> {
        read(&*self.client, tokens).await
    }

    async fn until_nothing_runs(&self) {
        soon(async {
            while self.running.load(SeqCst) > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }
}

/// Reads an answer to its end. Whether the server had to be looked for.
async fn read(client: &dyn Client, tokens: u32) -> anyhow::Result<bool> {
    let answer = soon(client.ask(tokens)).await?;
    let routed = answer.routing.is_some();
    let texts: Vec<String> = soon(answer.tokens.try_collect()).await?;
    let indices: Vec<u32> = texts.iter().map(|text| Stamp::read(text, u64::MAX).unwrap().index).collect();
    assert_eq!(indices, (0..tokens).collect::<Vec<_>>());
    Ok(routed)
}

/// Ports of one test process: as many as all subjects need, and as many again.
const TEST_PORTS: u16 = 20 * PORTS_PER_SUBJECT;

/// Not those of a measurement, nor of another test process: below the ports that the system gives to clients.
fn test_port(subject: Subject) -> u16 {
    let process = u16::try_from(std::process::id() % 250).unwrap();
    10_000 + process * TEST_PORTS + PORTS_PER_SUBJECT * subject as u16
}

async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("never came")
}

/// All that is asked of a subject.
async fn check(subject: Subject) {
    let Some(mut world) = World::new(subject).await else { return };
    println!("{subject:?}: {}; processes {:?}", world.serving.note, world.serving.processes);
    soon(world.client.connect()).await.unwrap();

    let looks_for_it = subject.is_titan() && !subject.is_openai();
    assert_eq!(world.read(TOKENS).await.unwrap(), looks_for_it, "Titan's library looks for its server the first time");
    assert!(!world.read(1).await.unwrap(), "over the same connection");
    world.client.disconnect();
    assert!(!world.read(TOKENS).await.unwrap(), "over another connection");

    try_join_all((0..8).map(|_| world.read(TOKENS))).await.unwrap();
    world.client.disconnect();
    try_join_all((0..8).map(|_| world.read(TOKENS))).await.unwrap();

    let elsewhere = client_at(subject, SocketAddr::new(ELSEWHERE, test_port(subject)), world.lab.path()).unwrap();
    soon(elsewhere.connect()).await.unwrap();
    read(&*elsewhere, TOKENS).await.unwrap();

    world.until_nothing_runs().await;
    let mut answer = soon(world.client.ask(1_000_000)).await.unwrap();
    soon(answer.tokens.next()).await.unwrap().unwrap();
    assert_eq!(world.running.load(SeqCst), 1);
    drop(answer);
    world.until_nothing_runs().await;
    world.read(TOKENS).await.unwrap();

    assert!(futures_util::FutureExt::now_or_never(world.serving.failed()).is_none(), "the server still runs");
    let processes = world.serving.processes.clone();
    drop(world);
    for process in processes {
        soon(gone(process)).await;
    }
}

/// Waits until there is no such process, or only its exit code.
async fn gone(process: u32) {
    let runs = || {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
    };
    while runs() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

macro_rules! delivers_every_token_once_and_stops_when_dropped {
    ($($name:ident: $subject:ident,)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            check(Subject::$subject).await;
        }
    )*};
}

delivers_every_token_once_and_stops_when_dropped! {
    titan_over_quic: TitanQuic,
    titan_over_quic_again: TitanQuicAgain,
    titan_over_plain_quic: TitanQuicPlain,
    titan_over_quic_or_grpc: TitanAuto,
    titan_over_grpc: TitanGrpc,
    an_openai_client_by_the_proxy: OpenaiProxy,
    an_openai_client_redirected: OpenaiRedirected,
    tonic_over_http2: Tonic,
    tonic_over_http3: TonicH3,
    events_over_http1: SseHttp1,
    events_over_http2: SseHttp2,
    websocket: WebSocket,
    events_through_nginx: Nginx,
    events_through_smg: Smg,
}

#[tokio::test]
async fn a_relay_that_ends_says_why() {
    let Ok(program) = nginx::program() else { return println!("skipped: no nginx") };
    let lab = Lab::new().unwrap();
    let output = lab.path().join("error.log");
    let mut command = std::process::Command::new(program);
    command.arg("-c").arg(lab.path().join("none")).arg("-e").arg(&output);
    let mut relay = Relay::start(command, relay::EndBy::Terminate, &output).unwrap();
    let error = soon(relay.ready(1, lab.path())).await.unwrap_err().to_string();
    assert!(error.contains("it ended") && error.contains("No such file"), "{error}");
}

#[tokio::test]
async fn a_relay_does_not_outlive_who_started_it() {
    let lab = Lab::new().unwrap();
    let output = lab.path().join("sleep.log");
    let start = move || {
        let mut command = std::process::Command::new("sleep");
        command.arg("600");
        let relay = Relay::start(command, relay::EndBy::Kill, &output).unwrap();
        let process = relay.processes()[0];
        // As when a process is killed: nothing is dropped.
        std::mem::forget(relay);
        process
    };
    soon(gone(std::thread::spawn(start).join().unwrap())).await;
}

#[test]
fn no_two_subjects_share_a_port() {
    use clap::ValueEnum as _;
    let mut ports: Vec<u16> = Subject::value_variants().iter().map(|&subject| first_port(subject)).collect();
    ports.sort_unstable();
    assert!(ports.windows(2).all(|pair| pair[1] - pair[0] >= PORTS_PER_SUBJECT), "{ports:?}");
}
