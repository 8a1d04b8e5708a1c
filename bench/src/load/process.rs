//! The agent's process, as its parent sees it.

use std::{process::Stdio, time::Duration};

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::{lab::Lab, usage::Usage, wire::Ports};

/// An agent with a synthetic engine. It ends when this is dropped, or when this process ends, however that happens.
pub(super) struct AgentProcess {
    child: Child,
    // Its end is the agent's end.
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    ports: Ports,
}

/// For one line of an answer. An agent that has no CPU to spare may take seconds.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// For the end, once standard input is closed.
const STOP_TIME: Duration = Duration::from_secs(5);

impl AgentProcess {
    /// Runs this program again, as the agent, and waits until it listens.
    pub(super) async fn start(lab: &Lab, rate: f64, streams: u32) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("synthetic-agent")
            .arg("--lab")
            .arg(lab.path())
            .args(["--rate", &rate.to_string(), "--streams", &streams.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A group of its own: Ctrl-C on the terminal is for the parent, which still asks what was used.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("starting the agent's process")?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            anyhow::bail!("the agent's process has no standard input or output");
        };
        let mut stdout = BufReader::new(stdout).lines();
        let ports = line(&mut stdout).await.context("the agent did not start")?;
        Ok(Self { child, stdin, stdout, ports })
    }

    /// Where it listens.
    pub(super) fn ports(&self) -> Ports {
        self.ports
    }

    /// What it has used so far.
    pub(super) async fn usage(&mut self) -> anyhow::Result<Usage> {
        self.stdin.write_all(b"\n").await.context("asking the agent's process what it has used")?;
        line(&mut self.stdout).await.context("the agent's process does not say what it has used")
    }

    /// Ends it.
    pub(super) async fn stop(self) {
        let Self { mut child, stdin, .. } = self;
        drop(stdin);
        // What does not end by itself is killed when `child` is dropped.
        let _ = timeout(STOP_TIME, child.wait()).await;
    }
}

async fn line<T: DeserializeOwned>(stdout: &mut Lines<BufReader<ChildStdout>>) -> anyhow::Result<T> {
    let line = timeout(ANSWER_TIME, stdout.next_line()).await.context("no answer")??;
    Ok(serde_json::from_str(&line.context("it ended")?)?)
}
