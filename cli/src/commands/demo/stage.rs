//! Where the demonstration takes place: two emulated hosts, and on the servers' host a coordinator and agents, each a process.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Command, Stdio},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use tempfile::TempDir;
use titan_agent::engine::synthetic::SYNTHETIC_MODEL;
use titan_certs::{CertDir, LeafRequest, Role};
use titan_emulator::{Host, Network, PathSettings, Process};
use titan_transport::tls::TlsMaterial;
use tokio::runtime;

use crate::{args::demo::RoamingArgs, rest::Rest, trust};

/// What the agents advertise. Only the clients here know where it is.
pub(super) const AGENT_HOST: &str = "agents.demo.invalid";
/// On hosts of our own every port is free.
pub(super) const REST_PORT: u16 = 8080;
const COORDINATOR_PORT: u16 = 50051;
/// Of the first agent; the second has the next one.
const AGENT_PORT: u16 = 50052;
/// Longest wait for a process to serve. Each is a program that starts; only a machine without a CPU to spare needs seconds.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks at whether it does.
const READY_POLL: Duration = Duration::from_millis(20);
/// Of the log of a process that ended, shown with the error.
const LOG_LINES: usize = 5;

/// A thread that ends when agents have registered, or have not for too long.
pub(super) type Registration = JoinHandle<anyhow::Result<anyhow::Result<()>>>;

/// Hosts, processes and keys. Dropping it leaves nothing of them.
pub(super) struct Stage {
    // In this order: processes end before their hosts and files go.
    coordinator: Process,
    agents: Vec<Process>,
    rate: u32,
    /// What the agents advertise.
    agent_host: String,
    pub(super) network: Network,
    pub(super) tls: TlsMaterial,
    dir: TempDir,
}

impl Stage {
    /// With a lane for each of the two clients, a coordinator, and one agent that has registered.
    pub(super) async fn set(args: &RoamingArgs) -> anyhow::Result<Self> {
        let network = Network::new(2)?;
        let path = PathSettings {
            one_way_delay: Duration::from_millis(args.rtt) / 2,
            loss: args.loss,
            ..PathSettings::NOTHING
        };
        for lane in 0..2 {
            network.set(lane, &path, args.seed);
        }
        let dir = tempfile::Builder::new().prefix("titan-demo-").tempdir().context("making a temporary directory")?;
        let certs = CertDir::new(dir.path());
        certs.init()?;
        let tls = trust::local(&certs, Role::Client, trust::CLIENT_NAME)?;
        let agent_host = if args.openai { Network::server_address(0).to_string() } else { AGENT_HOST.to_owned() };
        // Whoever starts with it keeps the names that it has.
        certs.issue(&LeafRequest::new(Role::Coordinator, "coordinator").hosts([agent_host.as_str()]))?;
        let flags = format!(
            "coord --http-port {REST_PORT} --grpc-port {COORDINATOR_PORT} --token-algorithm ES256 --no-api-keys"
        );
        let coordinator = start(network.server(), &dir, "coordinator", &flags)?;
        let mut stage = Self { coordinator, agents: Vec::new(), rate: args.rate, agent_host, network, tls, dir };
        stage.settled(stage.registered(0)?).await?;
        let registered = stage.add_agent()?;
        stage.settled(registered).await?;
        Ok(stage)
    }

    /// Starts one more agent. [`settled`](Self::settled) waits for it.
    pub(super) fn add_agent(&mut self) -> anyhow::Result<Registration> {
        let number = self.agents.len() as u16;
        let name = format!("agent-{}", number + 1);
        let (port, rate, agent_host) = (AGENT_PORT + number, self.rate, &self.agent_host);
        let flags = format!(
            "agent --engine synthetic --words --rate {rate} --id {name} --agent-port {port} --public-host {agent_host} \
             --coordinator 127.0.0.1:{COORDINATOR_PORT} --supported-models {SYNTHETIC_MODEL} --drain-time 0"
        );
        self.agents.push(start(self.network.server(), &self.dir, &name, &flags)?);
        self.registered(self.agents.len())
    }

    /// Waits for what [`add_agent`](Self::add_agent) started.
    pub(super) async fn settled(&mut self, registered: Registration) -> anyhow::Result<()> {
        let joined = tokio::task::spawn_blocking(move || registered.join());
        let result = joined.await?.map_err(|_| anyhow::anyhow!("the thread that waits for the agents panicked"))?;
        result.and_then(|registered| registered).map_err(|error| match self.casualty() {
            Some(casualty) => error.context(casualty),
            None => error,
        })
    }

    /// The file of the CA of all certificates here.
    pub(super) fn ca(&self) -> PathBuf {
        CertDir::new(self.dir.path()).ca_pem()
    }

    /// Kills the first agent.
    pub(super) fn kill_agent(&mut self) {
        if let Some(agent) = self.agents.first_mut() {
            agent.kill();
        }
    }

    /// Looks until so many agents have registered, from the servers' host: there it needs no certificate.
    fn registered(&self, agents: usize) -> anyhow::Result<Registration> {
        let rest = Rest::new(&format!("http://127.0.0.1:{REST_PORT}"), None, None)?;
        self.network.server().spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let begun = Instant::now();
                loop {
                    let status = rest.status().await;
                    if status.as_ref().is_ok_and(|status| status.healthy_agents >= agents) {
                        return Ok(());
                    }
                    if begun.elapsed() > READY_WITHIN {
                        let there = status.context("the coordinator does not answer")?.healthy_agents;
                        bail!("{there} of {agents} agents registered within {} s", READY_WITHIN.as_secs());
                    }
                    tokio::time::sleep(READY_POLL).await;
                }
            })
        })
    }

    /// The first process that has ended by itself, and its last words.
    fn casualty(&mut self) -> Option<String> {
        let processes = [&mut self.coordinator].into_iter().chain(&mut self.agents);
        for process in processes {
            if let Some(status) = process.ended() {
                let log = fs::read_to_string(self.dir.path().join(log_file(process.name()))).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let last = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
                return Some(format!("the {} ended by itself, {status}:\n{last}", process.name()));
            }
        }
        None
    }
}

/// This program again, on `host`, as another user would run it there: with directories of its own and none of this one's settings.
fn start(host: &Host, dir: &TempDir, name: &str, flags: &str) -> anyhow::Result<Process> {
    let log = File::create(dir.path().join(log_file(name))).context("cannot write a log")?;
    let mut command = Command::new(std::env::current_exe().context("cannot find this program's file")?);
    command
        .args(flags.split_whitespace())
        .args(["--bind", "0.0.0.0", "--certs"])
        .arg(dir.path())
        .env_clear()
        .env("TITAN_DATA_DIR", dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    Process::start(host, command, name)
}

fn log_file(name: &str) -> String {
    format!("{name}.log")
}
