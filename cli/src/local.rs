//! A cluster in this process: a coordinator and its agents, talking over the same wires as on several machines.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use titan_agent::Agent;
use titan_coord::Coordinator;
use titan_transport::tls::TlsMaterial;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{engine::EnginePlan, progress::Progress, rest::Rest};

/// Longest wait for the agents to register once they run.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks at whether they have.
const READY_POLL: Duration = Duration::from_millis(20);

/// A running cluster. Dropping it ends it at once; [`Cluster::stop`] lets running generations finish.
pub(crate) struct Cluster {
    pub(crate) http: SocketAddr,
    pub(crate) grpc: SocketAddr,
    pub(crate) agents: Vec<LocalAgent>,
    agents_shutdown: CancellationToken,
    agent_tasks: JoinSet<(String, io::Result<()>)>,
    coordinator_shutdown: CancellationToken,
    coordinator_task: JoinHandle<io::Result<()>>,
    _guards: [DropGuard; 2],
}

/// One of its agents.
#[derive(Clone, Debug)]
pub(crate) struct LocalAgent {
    pub(crate) id: String,
    pub(crate) grpc: SocketAddr,
    pub(crate) quic: Option<SocketAddr>,
}

impl Cluster {
    /// Checks everything, binds the coordinator, loads an engine for each agent, and waits until all have registered.
    ///
    /// The agents' `coordinator` is set here.
    pub(crate) async fn start(
        coordinator: titan_coord::Config,
        mut agents: Vec<titan_agent::Config>,
        plan: &EnginePlan,
        progress: &Arc<Progress>,
    ) -> anyhow::Result<Self> {
        coordinator.validate()?;
        for agent in &mut agents {
            agent.coordinator = Some(coordinator.grpc_addr.to_string());
            agent.validate()?;
        }
        let tls = coordinator.tls.clone();
        let coordinator = Coordinator::bind(coordinator).await?;
        let (http, grpc) = (coordinator.http_addr(), coordinator.grpc_addr());
        let (agents_shutdown, coordinator_shutdown) = (CancellationToken::new(), CancellationToken::new());
        let mut cluster = Self {
            http,
            grpc,
            agents: Vec::new(),
            agent_tasks: JoinSet::new(),
            // It serves while models are loaded, and says that there is no agent yet.
            coordinator_task: tokio::spawn(coordinator.run(coordinator_shutdown.clone())),
            _guards: [agents_shutdown.clone().drop_guard(), coordinator_shutdown.clone().drop_guard()],
            agents_shutdown,
            coordinator_shutdown,
        };
        match cluster.start_agents(agents, plan, progress, tls.as_ref()).await {
            Ok(()) => Ok(cluster),
            Err(error) => {
                // What runs already has nothing to say after the error.
                cluster.stop().await;
                Err(error)
            }
        }
    }

    async fn start_agents(
        &mut self,
        agents: Vec<titan_agent::Config>,
        plan: &EnginePlan,
        progress: &Arc<Progress>,
        tls: Option<&TlsMaterial>,
    ) -> anyhow::Result<()> {
        let shares = agents.len();
        for mut config in agents {
            config.coordinator = Some(self.grpc.to_string());
            let engine = plan.load(shares, progress).await?;
            let agent = Agent::bind(config.clone(), engine).await?;
            let id = config.agent_id;
            self.agents.push(LocalAgent { id: id.clone(), grpc: agent.grpc_addr(), quic: agent.quic_addr() });
            let shutdown = self.agents_shutdown.clone();
            self.agent_tasks.spawn(async move { (id, agent.run(shutdown).await) });
        }
        progress.spin("starting");
        let rest = Rest::new(&self.url(), tls, None)?;
        tokio::select! {
            ready = all_registered(&rest, shares) => ready,
            failure = self.failed() => Err(failure),
        }
    }

    /// The coordinator's REST address.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// Waits for the first part that ends by itself, which none should.
    pub(crate) async fn failed(&mut self) -> anyhow::Error {
        tokio::select! {
            ended = &mut self.coordinator_task => why("the coordinator", ended.unwrap_or_else(|panic| Err(io::Error::other(panic)))),
            Some(ended) = self.agent_tasks.join_next() => match ended {
                Ok((id, result)) => why(&format!("the agent {id}"), result),
                Err(panic) => why("an agent", Err(io::Error::other(panic))),
            },
        }
    }

    /// Agents first, so that they can finish and say goodbye; then the coordinator.
    pub(crate) async fn stop(mut self) {
        self.agents_shutdown.cancel();
        while self.agent_tasks.join_next().await.is_some() {}
        self.coordinator_shutdown.cancel();
        // How it ends changes nothing any more, and how it has ended was told.
        if !self.coordinator_task.is_finished() {
            let _ = self.coordinator_task.await;
        }
    }
}

async fn all_registered(rest: &Rest, agents: usize) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + READY_WITHIN;
    loop {
        let status = rest.totals().await.context("asking the coordinator that has just been started")?;
        if status.healthy_agents >= agents {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            bail!(
                "{} of {agents} agents registered within {} s: look at the log with -v",
                status.healthy_agents,
                READY_WITHIN.as_secs()
            );
        }
        tokio::time::sleep(READY_POLL).await;
    }
}

fn why(part: &str, result: io::Result<()>) -> anyhow::Error {
    match result {
        Ok(()) => anyhow!("{part} ended by itself"),
        Err(error) => anyhow!("{part} broke down: {error}"),
    }
}
