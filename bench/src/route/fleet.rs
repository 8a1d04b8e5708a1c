//! The agents of a coordinator: each registers for real, over a TLS connection of its own with its own certificate, as the protocol
//! wants it, and then is silent: its lease lasts longer than the measurement.

use std::{
    num::NonZero,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context as _;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use tempfile::TempDir;
use titan_certs::{COORDINATOR_SERVER_NAME, CertDir, LeafRequest, Role};
use titan_proto::v1::{
    AgentRegistration, HealthUpdate, coordinator_service_client::CoordinatorServiceClient as Client,
};
use titan_transport::tls::TlsMaterial;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};

/// The name in the coordinator's certificate.
pub(super) const COORDINATOR: &str = "coordinator";
/// What every agent serves, and every request asks for.
pub(super) const MODEL: &str = "smollm2:135m";
/// The most that a coordinator believes of one agent.
pub(super) const MAX_JOBS: i32 = 10_000;
/// Handshakes at once: enough to keep every core busy, few enough that none times out.
const REGISTERING_AT_ONCE: usize = 32;
/// Sockets of agents that register, and files that certificates are read from and written to.
pub(super) const OPEN_FILES: u64 = 2 * REGISTERING_AT_ONCE as u64;

/// Where the ids of jobs go that shall be claimed.
pub(super) type Claims = mpsc::UnboundedSender<String>;
/// How often the jobs that came are claimed: a fraction of the time for which they are booked.
const CLAIM_EVERY: Duration = Duration::from_millis(50);
/// In one update, of the 40,000 that a coordinator takes.
const MAX_CLAIMS: usize = 40_000;

/// A private CA with the certificates of a coordinator and of so many agents, in a directory that is removed at the end.
pub(super) struct Authority {
    dir: TempDir,
}

impl Authority {
    /// Makes all keys and certificates, calling `step` for each agent. Takes a while; stops early when `stop` says so.
    pub(super) fn new(agents: u32, step: impl Fn() + Sync, stop: impl Fn() -> bool + Sync) -> anyhow::Result<Self> {
        let dir = temporary_dir().context("making a temporary directory")?;
        let certs = CertDir::new(dir.path());
        certs.init()?;
        certs.issue(&LeafRequest::new(Role::Coordinator, COORDINATOR).hosts(["localhost", "127.0.0.1"]))?;
        let next = AtomicU32::new(0);
        let issue = || -> anyhow::Result<()> {
            while !stop() {
                let agent = next.fetch_add(1, Relaxed);
                if agent >= agents {
                    break;
                }
                certs.issue(&LeafRequest::new(Role::Agent, agent_id(agent)))?;
                step();
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..cores()).map(|_| scope.spawn(issue)).collect();
            threads.into_iter().try_for_each(|thread| match thread.join() {
                Ok(issued) => issued,
                Err(panicked) => std::panic::resume_unwind(panicked),
            })
        })?;
        Ok(Self { dir })
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The only agent of a fleet claims its jobs, as agents do: the bookings of a second could fill it on a fast machine. Where there are
    /// more agents they share the bookings, which end unclaimed.
    pub(super) async fn claim(&self, grpc: u16, agents: u32) -> anyhow::Result<Option<Claims>> {
        if agents > 1 {
            return Ok(None);
        }
        let mut client = connect(self.path(), grpc, 0).await?;
        let (claims, jobs) = mpsc::unbounded_channel();
        let mut acks = client.report_health(updates(jobs)).await?.into_inner();
        tokio::spawn(async move {
            // An end before its time is the end of the agent: the next request fails, and says so.
            while let Ok(Some(_)) = acks.message().await {}
        });
        Ok(Some(claims))
    }

    /// Registers the first `agents` with the coordinator whose gRPC port this is, calling `step` for each.
    pub(super) async fn register(&self, grpc: u16, agents: u32, step: impl Fn()) -> anyhow::Result<()> {
        let lab: Arc<Path> = self.dir.path().into();
        let registering = (0..agents).map(|agent| {
            let lab = Arc::clone(&lab);
            // A task each, so that every core is used.
            async move { tokio::spawn(async move { register(&lab, grpc, agent).await }).await? }
        });
        let each = stream::iter(registering).buffer_unordered(REGISTERING_AT_ONCE);
        each.try_for_each(async |()| {
            step();
            Ok(())
        })
        .await
    }
}

/// Certificates are written durably, which on a disk takes longer than making them: in memory where the system has such a place.
fn temporary_dir() -> std::io::Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("titan-bench-");
    builder.tempdir_in(PathBuf::from("/dev/shm")).or_else(|_| builder.tempdir())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// Key material that [`Authority::new`] left in `lab`.
pub(super) fn material(lab: &Path, role: Role, name: &str) -> anyhow::Result<TlsMaterial> {
    let certs = CertDir::new(lab);
    Ok(TlsMaterial::from_files(&certs.ca_pem(), &certs.leaf_pem(role, name), &certs.leaf_key(role, name))?)
}

fn agent_id(agent: u32) -> String {
    format!("agent-{agent}")
}

/// By TLS, with the agent's certificate.
async fn connect(lab: &Path, grpc: u16, agent: u32) -> anyhow::Result<Client<Channel>> {
    let id = agent_id(agent);
    let tls = material(lab, Role::Agent, &id)?.tonic_client_tls(COORDINATOR_SERVER_NAME);
    let endpoint = Endpoint::from_shared(format!("https://127.0.0.1:{grpc}"))?.tls_config(tls)?;
    Ok(Client::new(endpoint.connect().await.with_context(|| format!("{id} connecting"))?))
}

async fn register(lab: &Path, grpc: u16, agent: u32) -> anyhow::Result<()> {
    let id = agent_id(agent);
    let mut client = connect(lab, grpc, agent).await?;
    // What it reports comes by a health stream, which ends at once …
    let update = HealthUpdate { registration: Some(registration(agent)), ..health(agent) };
    let mut acks = client.report_health(stream::iter([update])).await?.into_inner();
    let ack = acks.message().await?.with_context(|| format!("{id} got no acknowledgement"))?;
    anyhow::ensure!(ack.status == "ok", "{id} is not registered: {} {}", ack.status, ack.message);
    while acks.message().await?.is_some() {}
    // … and an agent whose stream ended gets requests again once it registers by a call of its own.
    let answer = client.register_agent(registration(agent)).await?.into_inner();
    anyhow::ensure!(answer.status == "registered", "{id} is not registered: {} {}", answer.status, answer.message);
    Ok(())
}

/// As many jobs as there are, every now and then, until nobody can send any more.
fn updates(jobs: mpsc::UnboundedReceiver<String>) -> impl Stream<Item = HealthUpdate> + Send + 'static {
    stream::unfold(jobs, async |mut jobs| {
        tokio::time::sleep(CLAIM_EVERY).await;
        let mut claimed_job_ids = Vec::new();
        let some = jobs.recv_many(&mut claimed_job_ids, MAX_CLAIMS).await > 0;
        some.then(|| (HealthUpdate { claimed_job_ids, ..health(0) }, jobs))
    })
}

fn registration(agent: u32) -> AgentRegistration {
    let endpoint = format!("gpu{agent}.example.com:50052");
    AgentRegistration {
        agent_id: agent_id(agent),
        endpoint: endpoint.clone(),
        quic_endpoint: endpoint,
        grpc_tls: "mutual".to_owned(),
        total_vram_mb: 80_000,
        total_ram_mb: 256_000,
        max_jobs: MAX_JOBS,
        supported_models: vec![MODEL.to_owned()],
        ..Default::default()
    }
}

/// A fleet of unequal agents, by fixed numbers: the scheduler has something to compare, and the same in every run.
fn health(agent: u32) -> HealthUpdate {
    HealthUpdate {
        agent_id: agent_id(agent),
        free_vram_mb: 40_000 + i64::from(agent % 7) * 1_000,
        free_ram_mb: 128_000,
        rtt_ms: 1.0 + f64::from(agent % 11),
        tokens_per_second: 30.0 + f64::from(agent % 13),
        ..Default::default()
    }
}
