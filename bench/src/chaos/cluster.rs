//! A coordinator and agents on an emulated host, each a process that can be killed.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use tempfile::TempDir;
use titan_agent::{Agent, engine::synthetic::SyntheticEngine};
use titan_certs::{CertDir, LeafRequest, Role};
use titan_coord::Coordinator;
use titan_emulator::{Host, Network, Process};
use titan_proto::v1::{StatusRequest, coordinator_service_client::CoordinatorServiceClient};
use titan_transport::{tls::TlsMaterial, token::Algorithm};
use tokio::{runtime, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    args::{ChaosServerArgs, Part},
    plan::LANES,
};
use crate::process::this_program;

/// What agents advertise. Only the clients here know where it is.
pub(super) const AGENT_HOST: &str = "agents.chaos.invalid";
/// On a host of one's own every port is free.
pub(super) const REST_PORT: u16 = 8080;
const COORDINATOR_PORT: u16 = 50051;
/// Of the first agent; each further one has the next.
const AGENT_PORT: u16 = 50052;
const COORDINATOR: &str = "coordinator";
const CLIENT: &str = "chaos-client";
/// As many as a coordinator accepts: admission is not what is tried.
const MAX_JOBS: usize = 10_000;
/// Longest wait for the agents to register.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Between two looks at whether they have.
const READY_POLL: Duration = Duration::from_millis(20);

/// Processes, hosts and keys of one trial.
pub(super) struct Cluster {
    // In this order: processes end before their hosts and files go.
    agents: Vec<Process>,
    _coordinator: Process,
    pub(super) network: Network,
    pub(super) tls: TlsMaterial,
    rate: f64,
    dir: TempDir,
}

impl Cluster {
    /// With one agent. It and further ones say so many tokens per second.
    pub(super) async fn start(rate: f64) -> anyhow::Result<Self> {
        let network = Network::new(LANES)?;
        let dir = tempfile::Builder::new().prefix("titan-chaos-").tempdir().context("making a temporary directory")?;
        let certs = CertDir::new(dir.path());
        certs.init()?;
        certs.issue(&LeafRequest::new(Role::Coordinator, COORDINATOR).hosts(["127.0.0.1"]))?;
        certs.issue(&LeafRequest::new(Role::Client, CLIENT))?;
        let tls = material(dir.path(), Role::Client, CLIENT)?;
        let coordinator = process(network.server(), dir.path(), &["--part", "coordinator"], COORDINATOR)?;
        let mut cluster = Self { agents: Vec::new(), _coordinator: coordinator, network, tls, rate, dir };
        cluster.add_agent().await?;
        Ok(cluster)
    }

    /// Starts one more agent, and waits until it has registered.
    pub(super) async fn add_agent(&mut self) -> anyhow::Result<()> {
        let number = u16::try_from(self.agents.len()).context("too many agents")?;
        let name = format!("agent-{}", number + 1);
        CertDir::new(self.dir.path()).issue(&LeafRequest::new(Role::Agent, &name))?;
        let (port, rate) = ((AGENT_PORT + number).to_string(), self.rate.to_string());
        let flags = ["--part", "agent", "--name", &name, "--port", &port, "--rate", &rate];
        self.agents.push(process(self.network.server(), self.dir.path(), &flags, &name)?);
        let agents = i32::from(number) + 1;
        let registered = self.network.server().spawn(move || registered(agents))?;
        let registered = tokio::task::spawn_blocking(move || registered.join()).await?;
        registered.map_err(|_| anyhow::anyhow!("the thread that waits for the agents panicked"))??
    }

    /// The first agent: its connections end without a word, and its clients have to go elsewhere.
    pub(super) fn kill_agent(&mut self) {
        if let Some(agent) = self.agents.first_mut() {
            agent.kill();
        }
    }
}

/// Waits until so many agents have, from their own host: there the coordinator takes questions in plain text.
fn registered(agents: i32) -> anyhow::Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let begun = Instant::now();
        loop {
            let healthy = healthy_agents().await;
            match healthy {
                Ok(healthy) if healthy >= agents => return Ok(()),
                _ if begun.elapsed() < READY_WITHIN => tokio::time::sleep(READY_POLL).await,
                Ok(healthy) => anyhow::bail!("{healthy} of {agents} agents registered"),
                Err(error) => return Err(error.context("the coordinator does not answer")),
            }
        }
    })
}

async fn healthy_agents() -> anyhow::Result<i32> {
    let mut client = CoordinatorServiceClient::connect(format!("http://127.0.0.1:{COORDINATOR_PORT}")).await?;
    Ok(client.query_system_status(StatusRequest::default()).await?.into_inner().healthy_agents)
}

fn process(host: &Host, lab: &Path, flags: &[&str], name: &str) -> anyhow::Result<Process> {
    let mut command = this_program()?;
    // What is wrong with it, it says on this program's standard error.
    command.arg("chaos-server").args(flags).arg("--lab").arg(lab).stdin(Stdio::null()).stdout(Stdio::null());
    // Agents say that they lost their coordinator, and servers that a client is gone: here that is as it should be.
    command.env("RUST_LOG", "off");
    Process::start(host, command, name)
}

/// The other side: serves until it is killed.
pub(crate) async fn serve(args: ChaosServerArgs) -> anyhow::Result<()> {
    let everywhere = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let coordinator = SocketAddr::from((Ipv4Addr::LOCALHOST, COORDINATOR_PORT));
    match args.part {
        Part::Coordinator => {
            let config = titan_coord::Config {
                http_addr: everywhere(REST_PORT),
                grpc_addr: coordinator,
                tls: Some(material(&args.lab, Role::Coordinator, COORDINATOR)?),
                token_algorithm: Algorithm::ES256,
                key_dir: args.lab.join("keys"),
                api_keys: false,
                ..titan_coord::Config::default()
            };
            Coordinator::bind(config).await?.run(CancellationToken::new()).await?;
        }
        Part::Agent => {
            let mut config = titan_agent::Config::new(&args.name);
            config.grpc_addr = everywhere(args.port);
            config.public_host = Some(AGENT_HOST.to_owned());
            config.coordinator = Some(coordinator.to_string());
            config.tls = Some(material(&args.lab, Role::Agent, &args.name)?);
            config.max_jobs = MAX_JOBS;
            let engine = SyntheticEngine::new(args.rate);
            Agent::bind(config, Arc::new(engine)).await?.run(CancellationToken::new()).await?;
        }
    }
    Ok(())
}

fn material(dir: &Path, role: Role, name: &str) -> anyhow::Result<TlsMaterial> {
    let certs = CertDir::new(dir);
    Ok(TlsMaterial::from_files(&certs.ca_pem(), &certs.leaf_pem(role, name), &certs.leaf_key(role, name))?)
}
