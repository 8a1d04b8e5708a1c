//! A coordinator on ports of its own, with a certificate authority of its own.

#![allow(clippy::unwrap_used, dead_code, reason = "each test binary uses a part of it")]

use std::{
    io,
    time::{Duration, SystemTime},
};

use tempfile::TempDir;
use titan_certs::{COORDINATOR_SERVER_NAME, CertDir, LeafRequest, Role};
use titan_coord::{Config, Coordinator};
use titan_proto::{
    COORDINATOR_NAME,
    v1::{AgentRegistration, HealthAck, HealthUpdate, coordinator_service_client::CoordinatorServiceClient},
};
use titan_transport::{
    tls::{TlsMaterial, provider},
    token::{Algorithm, Claims, TokenVerifier},
};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

pub(crate) type Client = CoordinatorServiceClient<Channel>;

/// No test waits longer for anything: only for a broken one does it matter how long.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Harness {
    pub(crate) dir: TempDir,
    pub(crate) http_port: u16,
    pub(crate) grpc_port: u16,
    shutdown: CancellationToken,
    task: JoinHandle<io::Result<()>>,
}

impl Harness {
    pub(crate) async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), |_| ()).await
    }

    /// Starts in a directory that may hold the keys and certificates of an earlier one.
    pub(crate) async fn start_in(dir: TempDir, change: impl FnOnce(&mut Config)) -> Self {
        CertDir::new(dir.path()).init().unwrap();
        let mut config = Config {
            http_addr: "127.0.0.1:0".parse().unwrap(),
            grpc_addr: "127.0.0.1:0".parse().unwrap(),
            tls: Some(material(&dir, Role::Coordinator, "coordinator")),
            // Making a P-256 key takes no time, an RSA key a good part of a second.
            token_algorithm: Algorithm::ES256,
            key_dir: dir.path().join("keys"),
            ..Config::default()
        };
        change(&mut config);
        let coordinator = Coordinator::bind(config).await.unwrap();
        let (http_port, grpc_port) = (coordinator.http_addr().port(), coordinator.grpc_addr().port());
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(coordinator.run(shutdown.clone()));
        Self { dir, http_port, grpc_port, shutdown, task }
    }

    /// Ends it, and gives the directory back.
    pub(crate) async fn stop(self) -> TempDir {
        self.shutdown.cancel();
        timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
        self.dir
    }

    /// The coordinator, told to stop; its end, to be awaited.
    pub(crate) fn begin_stop(&self) {
        self.shutdown.cancel();
    }

    pub(crate) fn http(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.http_port)
    }

    /// gRPC in plain text, as existing clients connect.
    pub(crate) async fn plain(&self) -> Client {
        Client::connect(format!("http://127.0.0.1:{}", self.grpc_port)).await.unwrap()
    }

    /// gRPC over TLS, with a certificate of this role and name.
    pub(crate) async fn with_certificate(&self, role: Role, name: &str) -> Client {
        self.over_tls(&material(&self.dir, role, name)).await.unwrap()
    }

    pub(crate) async fn over_tls(&self, material: &TlsMaterial) -> Result<Client, tonic::transport::Error> {
        Endpoint::from_shared(format!("https://127.0.0.1:{}", self.grpc_port))
            .unwrap()
            .tls_config(material.tonic_client_tls(COORDINATOR_SERVER_NAME))
            .unwrap()
            .connect()
            .await
            .map(Client::new)
    }

    /// An agent that reports on one stream.
    pub(crate) async fn agent(&self, id: &str) -> Agent {
        Agent::new(id, self.with_certificate(Role::Agent, id).await).await
    }
}

/// Key material of a leaf, made if need be.
pub(crate) fn material(dir: &TempDir, role: Role, name: &str) -> TlsMaterial {
    let certs = CertDir::new(dir.path());
    certs.ensure(&LeafRequest::new(role, name).hosts(["127.0.0.1", "localhost"])).unwrap();
    TlsMaterial::from_files(&certs.ca_pem(), &certs.leaf_pem(role, name), &certs.leaf_key(role, name)).unwrap()
}

/// A REST client; it trusts `ca`.
pub(crate) fn rest_client(ca: &TlsMaterial) -> reqwest::Client {
    let mut roots = rustls::RootCertStore::empty();
    for root in &ca.roots {
        roots.add(root.clone()).unwrap();
    }
    let tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    reqwest::Client::builder().no_proxy().tls_backend_preconfigured(tls).build().unwrap()
}

pub(crate) fn registration(id: &str) -> AgentRegistration {
    AgentRegistration {
        agent_id: id.into(),
        endpoint: "localhost:50052".into(),
        quic_endpoint: "localhost:50052".into(),
        total_ram_mb: 16_000,
        max_jobs: 4,
        supported_models: vec!["smollm2:135m".into()],
        ..Default::default()
    }
}

/// The agent's side of a health stream.
pub(crate) struct Agent {
    pub(crate) id: String,
    pub(crate) client: Client,
    pub(crate) updates: mpsc::Sender<HealthUpdate>,
    pub(crate) acks: Streaming<HealthAck>,
}

impl Agent {
    pub(crate) async fn new(id: &str, mut client: Client) -> Self {
        let (updates, receiver) = mpsc::channel(16);
        let acks = client.report_health(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Self { id: id.into(), client, updates, acks }
    }

    /// Sends an update and waits for its acknowledgement.
    pub(crate) async fn report(&mut self, update: HealthUpdate) -> Result<HealthAck, Status> {
        self.updates.send(HealthUpdate { agent_id: self.id.clone(), ..update }).await.unwrap();
        let ack = timeout(PATIENCE, self.acks.message()).await.unwrap()?;
        Ok(ack.expect("an acknowledgement, not the end"))
    }

    pub(crate) async fn register(&mut self) -> HealthAck {
        let registration = Some(registration(&self.id));
        self.report(HealthUpdate { registration, free_ram_mb: 8_000, ..Default::default() }).await.unwrap()
    }
}

/// Waits until `condition` holds.
pub(crate) async fn until<F: Future<Output = bool>>(mut condition: impl FnMut() -> F) {
    let patience = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, patience).await.unwrap();
}

/// What a session token says that is for the agent `agent-1`, checked with the coordinator's own keys.
pub(crate) async fn claims(harness: &Harness, token: &str) -> Claims {
    let _ = provider().as_ref().clone().install_default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let jwks = client.get(harness.http("/.well-known/jwks.json")).send().await.unwrap().text().await.unwrap();
    let verifier = TokenVerifier::new(COORDINATOR_NAME);
    verifier.set_keys(&jwks).unwrap();
    verifier.verify(token, "agent-1", SystemTime::now()).unwrap()
}
