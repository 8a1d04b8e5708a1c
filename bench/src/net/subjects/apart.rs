//! Titan with agents in processes of their own: one of them can be killed, as a machine that fails.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::Context as _;
use titan_agent::engine::synthetic::SyntheticEngine;
use titan_proto::v1::{StatusRequest, coordinator_service_client::CoordinatorServiceClient};
use tokio::{
    io::{BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    Serving,
    titan::{self, Number, READY_POLL, READY_WITHIN, Wire},
};
use crate::{net::subject::Subject, process};

/// The agents behind one coordinator. They end when this is dropped, or when this process does.
pub(crate) struct Agents {
    subject: Subject,
    port: u16,
    lab: PathBuf,
    token_rate: f64,
    /// In the order of their numbers. Their standard input's end is theirs.
    running: Vec<(Child, ChildStdin, Lines<BufReader<ChildStdout>>)>,
}

/// Starts a coordinator here, and the first agent.
pub(super) async fn serve(
    subject: Subject,
    port: u16,
    lab: &Path,
    token_rate: f64,
) -> anyhow::Result<(Serving, Agents)> {
    let coordinator = titan::coordinator(port, lab).await?;
    let mut serving = Serving::new("titan: a coordinator, and agents in processes of their own");
    serving.tasks.spawn(async move { Ok(coordinator.run(CancellationToken::new()).await?) });
    let mut agents = Agents { subject, port, lab: lab.to_owned(), token_rate, running: Vec::new() };
    tokio::select! {
        started = agents.start_one() => started?,
        error = serving.failed() => return Err(error),
    }
    Ok((serving, agents))
}

/// What the process of an agent does.
pub(super) async fn serve_agent(
    port: u16,
    number: u8,
    lab: &Path,
    wire: Wire,
    token_rate: f64,
) -> anyhow::Result<Serving> {
    let engine = Arc::new(SyntheticEngine::new(token_rate).timestamps(true));
    let number = if number == 1 { Number::First } else { Number::Spare };
    let agent = titan::agent(port, lab, number, wire, engine).await?;
    let mut serving = Serving::new("titan: an agent");
    serving.tasks.spawn(async move { Ok(agent.run(CancellationToken::new()).await?) });
    Ok(serving)
}

impl Agents {
    /// One more, of two, and waits until requests may be routed to it.
    pub(crate) async fn start_one(&mut self) -> anyhow::Result<()> {
        let number = self.running.len() + 1;
        let name = format!("agent {number} of {}", self.subject.label());
        let mut command = process::this_program()?;
        command.arg("net-server").arg("--subject").arg(self.subject.name()).arg("--lab").arg(&self.lab);
        command.args(["--token-rate", &self.token_rate.to_string(), "--agent", &number.to_string()]);
        self.running.push(process::spawn(command, &name)?);
        let begun = Instant::now();
        let wanted = i32::try_from(number)?;
        loop {
            match self.healthy().await {
                Ok(healthy) if healthy >= wanted => return Ok(()),
                _ if begun.elapsed() < READY_WITHIN => sleep(READY_POLL).await,
                Ok(healthy) => anyhow::bail!("{name} did not register: {healthy} of {wanted} did"),
                Err(error) => return Err(error.context("the coordinator does not answer")),
            }
        }
    }

    /// The first one, without a word to anybody.
    pub(crate) async fn kill_first(&mut self) -> anyhow::Result<()> {
        let (child, ..) = self.running.first_mut().context("no agent was started")?;
        child.kill().await.context("cannot kill an agent")
    }

    /// How many the coordinator takes for healthy. It answers in plain text on its own host.
    async fn healthy(&self) -> anyhow::Result<i32> {
        let endpoint = format!("http://{}", titan::coordinator_grpc(self.port));
        let mut client = CoordinatorServiceClient::connect(endpoint).await?;
        Ok(client.query_system_status(StatusRequest::default()).await?.into_inner().healthy_agents)
    }
}
