//! An agent on free ports, its private CA, a token issuer, and clients for both wires.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use tempfile::TempDir;
use titan_agent::{
    Agent, Config,
    engine::{
        Engine, Generate, GenerateFuture,
        synthetic::{SYNTHETIC_MODEL, SyntheticEngine},
    },
};
use titan_certs::{CertDir, LeafRequest, Role, agent_server_name};
use titan_proto::{
    COORDINATOR_NAME,
    v1::{
        AgentStatusRequest, AgentStatusResponse, StreamRequest, StreamResponse,
        agent_service_client::AgentServiceClient,
    },
};
use titan_transport::{
    QuicChannel, QuicConnector, Wire,
    tls::TlsMaterial,
    token::{Algorithm, Claims, TokenIssuer, new_jti, unix_seconds},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tonic::{
    IntoRequest, Status, Streaming,
    transport::{Channel, Endpoint},
};

pub(crate) const AGENT: &str = "agent-1";
pub(crate) const WIRES: [Wire; 2] = [Wire::Http, Wire::Quic];
/// Longest wait for anything; only for a broken test does it matter how long.
const PATIENCE: Duration = Duration::from_secs(60);

/// An agent that runs until the value is dropped.
pub(crate) struct Running {
    pub(crate) grpc: String,
    pub(crate) quic: String,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: JoinHandle<std::io::Result<()>>,
    connector: QuicConnector,
}

impl Running {
    /// As [`start_with`](Self::start_with), with tokens at this rate and the defaults.
    pub(crate) async fn start(tokens_per_second: f64) -> Self {
        Self::start_with(SyntheticEngine::new(tokens_per_second), |_| ()).await
    }

    /// Starts an agent with TLS, on loopback, whose configuration `change` has the last word on.
    pub(crate) async fn start_with(engine: impl Engine, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::new(AGENT);
        config.grpc_addr = "127.0.0.1:0".parse().unwrap();
        config.keys = Some(jwks());
        config.tls = Some(certs().agent.clone());
        change(&mut config);
        let agent = Agent::bind(config, Arc::new(engine)).await.unwrap();
        let grpc = format!("127.0.0.1:{}", agent.grpc_addr().port());
        let quic = format!("127.0.0.1:{}", agent.quic_addr().unwrap().port());
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(agent.run(shutdown.clone()));
        Self { grpc, quic, shutdown, task, connector: QuicConnector::new(&certs().client).unwrap() }
    }

    /// A client with a connection of its own.
    pub(crate) async fn client(&self, wire: Wire) -> Client {
        match wire {
            Wire::Http => {
                let endpoint = Endpoint::from_shared(format!("http://{}", self.grpc)).unwrap();
                Client::Http(AgentServiceClient::new(endpoint.connect().await.unwrap()))
            }
            Wire::Quic => Client::Quic(AgentServiceClient::new(self.quic_channel())),
        }
    }

    pub(crate) fn quic_channel(&self) -> QuicChannel {
        self.connector.channel(self.quic.clone(), agent_server_name(AGENT))
    }

    /// By a path that a test has made.
    pub(crate) fn quic_channel_by(&self, path: std::net::SocketAddr) -> QuicChannel {
        self.connector.channel(path.to_string(), agent_server_name(AGENT))
    }

    /// Waits for the TLS sessions of the QUIC clients, which come after the handshake.
    pub(crate) async fn sessions(&self) {
        soon("a session", async { while !self.connector.sessions_arrive().await {} }).await;
    }

    /// Has all QUIC clients say goodbye.
    pub(crate) async fn close_clients(&self) {
        self.connector.close().await;
    }

    pub(crate) async fn status(&self) -> AgentStatusResponse {
        self.client(Wire::Http)
            .await
            .status(AgentStatusRequest { include_jobs: true, ..Default::default() })
            .await
            .unwrap()
    }

    /// Waits until this many jobs run.
    pub(crate) async fn running(&self, jobs: i32) {
        eventually(&format!("{jobs} running jobs"), || async { self.status().await.active_sessions == jobs }).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Tokens of a [`SyntheticEngine`]. Each answer stops after the first few until the gate is opened: what a test does to an answer that
/// runs, it does while it runs, however busy the machine.
#[derive(Clone)]
pub(crate) struct Gated {
    engine: SyntheticEngine,
    before: usize,
    open: watch::Sender<bool>,
}

impl Gated {
    /// Lets so many tokens through.
    pub(crate) fn after(before: usize, engine: SyntheticEngine) -> Self {
        Self { engine, before, open: watch::Sender::new(false) }
    }

    /// Lets everything through, or nothing more.
    pub(crate) fn open(&self, open: bool) {
        self.open.send_replace(open);
    }
}

impl Engine for Gated {
    fn models(&self) -> Vec<String> {
        Engine::models(&self.engine)
    }

    fn generate(&self, request: Generate) -> GenerateFuture<'_> {
        Box::pin(async move {
            let mut tokens = self.engine.generate(request).await?;
            let (sender, stream) = mpsc::channel(8);
            let (before, mut open) = (self.before, self.open.subscribe());
            tokio::spawn(async move {
                let pass = async {
                    let mut passed = 0;
                    while let Some(event) = tokens.recv().await {
                        if passed >= before && open.wait_for(|open| *open).await.is_err() {
                            break;
                        }
                        passed += 1;
                        if sender.send(event).await.is_err() {
                            break;
                        }
                    }
                };
                tokio::select! {
                    () = sender.closed() => {}
                    () = pass => {}
                }
            });
            Ok(stream)
        })
    }
}

/// The same calls over either wire.
#[derive(Clone)]
pub(crate) enum Client {
    Http(AgentServiceClient<Channel>),
    Quic(AgentServiceClient<QuicChannel>),
}

impl Client {
    pub(crate) async fn stream(
        &mut self,
        request: impl IntoRequest<StreamRequest>,
    ) -> Result<Streaming<StreamResponse>, Status> {
        let request = request.into_request();
        let response = match self {
            Self::Http(client) => client.stream_inference(request).await?,
            Self::Quic(client) => client.stream_inference(request).await?,
        };
        Ok(response.into_inner())
    }

    /// Every message of an answer.
    pub(crate) async fn all(
        &mut self,
        request: impl IntoRequest<StreamRequest>,
    ) -> Result<Vec<StreamResponse>, Status> {
        let mut stream = self.stream(request).await?;
        let mut messages = Vec::new();
        while let Some(message) = stream.message().await? {
            messages.push(message);
        }
        Ok(messages)
    }

    /// The status that a request ends with; panics if it is answered.
    pub(crate) async fn refused(&mut self, request: impl IntoRequest<StreamRequest>) -> Status {
        match self.all(request).await {
            Err(status) => status,
            Ok(messages) => panic!("answered with {} messages", messages.len()),
        }
    }

    pub(crate) async fn status(&mut self, request: AgentStatusRequest) -> Result<AgentStatusResponse, Status> {
        let response = match self {
            Self::Http(client) => client.get_status(request).await?,
            Self::Quic(client) => client.get_status(request).await?,
        };
        Ok(response.into_inner())
    }
}

/// A valid request for so many tokens.
pub(crate) fn request(max_tokens: i32) -> StreamRequest {
    StreamRequest {
        session_token: token(&claims()),
        prompt: "one two three".to_owned(),
        max_tokens,
        options: HashMap::new(),
        ..Default::default()
    }
}

/// The claims of a valid token, each time with another id.
pub(crate) fn claims() -> Claims {
    let now = unix_seconds(SystemTime::now());
    let jti = new_jti();
    Claims {
        iss: COORDINATOR_NAME.to_owned(),
        agent_id: AGENT.to_owned(),
        client_id: "tester".to_owned(),
        model: SYNTHETIC_MODEL.to_owned(),
        job_id: format!("job_{}", &jti[..8]),
        jti,
        iat: now,
        nbf: now,
        exp: now + 300,
        request: None,
        key: None,
        generations: None,
    }
}

pub(crate) fn token(claims: &Claims) -> String {
    issuer().issue(claims).unwrap()
}

/// One RSA key for all tests: making one takes a while.
pub(crate) fn issuer() -> &'static TokenIssuer {
    static ISSUER: OnceLock<(TempDir, TokenIssuer)> = OnceLock::new();
    let (_, issuer) = ISSUER.get_or_init(|| {
        let dir = TempDir::new().unwrap();
        let issuer = TokenIssuer::open(dir.path(), Algorithm::RS256).unwrap();
        (dir, issuer)
    });
    issuer
}

pub(crate) fn jwks() -> String {
    serde_json::to_string(&issuer().jwks()).unwrap()
}

/// A private CA and one leaf of each role.
pub(crate) struct Certs {
    pub(crate) agent: TlsMaterial,
    pub(crate) client: TlsMaterial,
    pub(crate) coordinator: TlsMaterial,
}

pub(crate) fn certs() -> &'static Certs {
    static CERTS: OnceLock<Certs> = OnceLock::new();
    CERTS.get_or_init(|| {
        let dir = TempDir::new().unwrap();
        let certs = CertDir::new(dir.path());
        certs.init().unwrap();
        let leaf = |role, name| {
            certs.issue(&LeafRequest::new(role, name).hosts(["localhost", "127.0.0.1"])).unwrap();
            let (pem, key) = (certs.leaf_pem(role, name), certs.leaf_key(role, name));
            TlsMaterial::from_files(&certs.ca_pem(), &pem, &key).unwrap()
        };
        Certs {
            agent: leaf(Role::Agent, AGENT),
            client: leaf(Role::Client, "tester"),
            coordinator: leaf(Role::Coordinator, "coordinator"),
        }
    })
}

/// Waits until it is so.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let wait = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never came: {what}"));
}

/// The next item, which must come.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("never came: {what}"))
}
