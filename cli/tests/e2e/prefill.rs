//! Prefill ahead, from the question to the coordinator to the first token, over a path as long as an ocean is wide. PROTOCOL.md §17.
//! That in this process, and not by the binary: its synthetic engine takes no time for a prompt.

use std::{
    collections::{HashMap, hash_map::Entry},
    io::BufRead as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::StreamExt as _;
use tempfile::TempDir;
use titan_agent::{
    Agent,
    engine::synthetic::{SYNTHETIC_MODEL, SyntheticEngine},
};
use titan_certs::{CertDir, LeafRequest, Role};
use titan_client::{ClientError, Feature, Generation, Prompt, TitanClient, WirePreference};
use titan_coord::Coordinator;
use titan_transport::{tls::TlsMaterial, token::Algorithm};
use tokio::{
    net::UdpSocket,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::support::{Process, User, read_json, stderr};

/// Half a round trip.
const ONE_WAY: Duration = Duration::from_millis(100);
/// What the prompt takes: the time that a new connection and the request need together.
const PREFILL: Duration = Duration::from_millis(300);
/// The other end of the long path.
const FAR: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// Longest wait for a cluster that is about to be ready.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn the_first_token_comes_earlier_when_the_agent_has_begun_ahead() {
    let cluster = Cluster::start().await;
    let (mut without, mut with) = (Duration::MAX, Duration::MAX);
    // The best of a few, in turn: whatever else runs on this machine slows both.
    for _ in 0..3 {
        let plain = generate(&cluster.client(false)).await.unwrap();
        let ahead = generate(&cluster.client(true)).await.unwrap();
        let (plain_usage, ahead_usage) = (plain.usage().unwrap(), ahead.usage().unwrap());
        assert!(!plain_usage.prefilled && ahead_usage.prefilled);
        assert_eq!(plain_usage.completion_tokens, ahead_usage.completion_tokens);
        println!("first token after {:.0?}, with prefill ahead after {:.0?}", plain.ttft(), ahead.ttft());
        without = without.min(plain.ttft().unwrap());
        with = with.min(ahead.ttft().unwrap());
    }
    assert!(with.mul_f64(1.2) < without, "first token after {without:?}, with prefill ahead after {with:?}");
}

#[test]
fn no_log_at_any_level_shows_a_prompt_that_is_begun_ahead() {
    const SECRET: &str = "zanzibar";
    let user = User::new();
    let up =
        "up --json --http-port 0 --grpc-port 0 --agent-port 0 --token-algorithm ES256 --synthetic 0 --prefill-ahead";
    let mut up = user.titan(up.split(' '));
    up.env("RUST_LOG", "trace");
    let (mut process, mut stdout) = Process::spawn(up, user.dir.path());
    let mut ready = String::new();
    stdout.read_line(&mut ready).unwrap();
    let ready: serde_json::Value = serde_json::from_str(&ready).unwrap();
    let coordinator = ready["rest"].as_str().unwrap();
    // The second is not accepted, and that is logged too. What the agent says to the client itself may quote the client's own option.
    for (option, accepted) in [("seed=5", true), ("top_p=zanzibar", false)] {
        let arguments =
            ["run", "--json", "--prefill-ahead", "-m", "synthetic", "--coordinator", coordinator, "-o", option, SECRET];
        let output = user.titan(arguments).output().unwrap();
        assert_eq!(output.status.success(), accepted, "{}", stderr(&output));
        if accepted {
            assert!(read_json(&output.stdout).1["prefilled"].is_boolean());
        }
    }
    // What is logged late is logged by now.
    process.signal("TERM");
    process.end();
    let log = process.log();
    assert!(log.contains("prefill ahead") && log.contains("TRACE"), "{log}");
    assert!(!log.contains(SECRET), "{}", log.lines().find(|line| line.contains(SECRET)).unwrap_or_default());
}

/// Has a prompt answered, and gives the answer back when it is complete.
async fn generate(client: &TitanClient) -> Result<Generation, ClientError> {
    let mut prompt = Prompt::new(SYNTHETIC_MODEL, "Tell me something.");
    prompt.max_tokens = 3;
    prompt.options.insert("seed".to_owned(), "5".to_owned());
    let mut generation = client.generate(prompt).await?;
    while let Some(text) = generation.next().await {
        text?;
    }
    Ok(generation)
}

/// A coordinator beside its clients, and an agent far away from them. Ends when it is dropped.
struct Cluster {
    url: String,
    tls: TlsMaterial,
    _tasks: JoinSet<()>,
    _dir: TempDir,
}

impl Cluster {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let certs = CertDir::new(dir.path());
        certs.init().unwrap();
        let material = |role, name| {
            certs.issue(&LeafRequest::new(role, name).hosts(["localhost", "127.0.0.1"])).unwrap();
            TlsMaterial::from_files(&certs.ca_pem(), &certs.leaf_pem(role, name), &certs.leaf_key(role, name)).unwrap()
        };
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let coordinator = Coordinator::bind(titan_coord::Config {
            http_addr: any,
            grpc_addr: any,
            tls: Some(material(Role::Coordinator, "coordinator")),
            token_algorithm: Algorithm::ES256,
            key_dir: dir.path().join("keys"),
            prefill_ahead: true,
            ..titan_coord::Config::default()
        });
        let coordinator = coordinator.await.unwrap();
        let config = titan_agent::Config {
            grpc_addr: any,
            coordinator: Some(coordinator.grpc_addr().to_string()),
            tls: Some(material(Role::Agent, "agent-1")),
            ..titan_agent::Config::new("agent-1")
        };
        let engine = SyntheticEngine::new(0.0).prefill(PREFILL);
        let agent = Agent::bind(config, Arc::new(engine)).await.unwrap();

        let url = format!("http://{}", coordinator.http_addr());
        let mut tasks = JoinSet::new();
        tasks.spawn(long_path(agent.quic_addr().unwrap()));
        tasks.spawn(async { coordinator.run(CancellationToken::new()).await.unwrap() });
        tasks.spawn(async { agent.run(CancellationToken::new()).await.unwrap() });
        let cluster = Self { url, tls: material(Role::Client, "tester"), _tasks: tasks, _dir: dir };
        cluster.ready().await;
        cluster
    }

    async fn ready(&self) {
        let wait = async {
            while generate(&self.client(false)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap();
    }

    /// A client that has no route and no connection yet.
    fn client(&self, prefill_ahead: bool) -> TitanClient {
        let builder = TitanClient::builder(&self.url).tls(self.tls.clone()).wire(WirePreference::Quic);
        // The agent says `localhost`; for this client that is at the other end.
        let builder = builder.resolve("localhost", FAR);
        if prefill_ahead { builder.with(Feature::PrefillAhead) } else { builder }.build().unwrap()
    }
}

/// Passes packets on to `server`, and back, each after its time and in order. It listens under the server's port at [`FAR`].
async fn long_path(server: SocketAddr) {
    let front = Arc::new(UdpSocket::bind((FAR, server.port())).await.unwrap());
    let mut clients: HashMap<SocketAddr, UnboundedSender<Delayed>> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut packet = [0; 2048];
    loop {
        // Linux tells of a client that is gone; the others go on.
        let Ok((len, client)) = front.recv_from(&mut packet).await else { continue };
        let way = match clients.entry(client) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let rear = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
                rear.connect(server).await.unwrap();
                let (there, packets) = unbounded_channel();
                tasks.spawn(deliver(packets, Arc::clone(&rear), None));
                let (back, packets) = unbounded_channel();
                tasks.spawn(deliver(packets, Arc::clone(&front), Some(client)));
                tasks.spawn(way_back(rear, back));
                new.insert(there)
            }
        };
        way.send((Instant::now() + ONE_WAY, packet[..len].to_vec())).unwrap();
    }
}

/// A packet, and when it arrives.
type Delayed = (Instant, Vec<u8>);

async fn way_back(rear: Arc<UdpSocket>, back: UnboundedSender<Delayed>) {
    let mut packet = [0; 2048];
    loop {
        let Ok(len) = rear.recv(&mut packet).await else { continue };
        back.send((Instant::now() + ONE_WAY, packet[..len].to_vec())).unwrap();
    }
}

async fn deliver(mut packets: UnboundedReceiver<Delayed>, socket: Arc<UdpSocket>, to: Option<SocketAddr>) {
    while let Some((due, bytes)) = packets.recv().await {
        sleep_until(due).await;
        // What cannot be delivered is lost, as on any path.
        let _ = match to {
            Some(to) => socket.send_to(&bytes, to).await,
            None => socket.send(&bytes).await,
        };
    }
}
