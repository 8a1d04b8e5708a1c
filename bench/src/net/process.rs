//! A host's process, as the runner sees it.

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context as _;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout},
    sync::oneshot,
    time::timeout,
};

use super::{
    ground::{Ground, Side},
    protocol::{Answer, Numbered, Order},
    subject::Subject,
};
use crate::{process, usage::Usage};

/// A child process that takes orders. It ends when this is dropped, or when this program ends, however that happens.
pub(crate) struct HostProcess {
    child: Child,
    // Its end is the child's end.
    stdin: tokio::sync::Mutex<ChildStdin>,
    next_id: AtomicU64,
    waiting: Arc<Mutex<Waiting>>,
    name: String,
}

#[derive(Default)]
struct Waiting {
    answers: HashMap<u64, oneshot::Sender<Answer>>,
    /// Nothing will be answered any more.
    ended: bool,
}

/// For a server to serve; relays start slowly.
const START_TIME: Duration = Duration::from_secs(60);
/// For answers to orders that have no deadline of their own: thousands of handshakes on a busy machine.
const ANSWER_TIME: Duration = Duration::from_secs(180);

impl HostProcess {
    /// Starts the server of `subject` and waits until it serves. Gives its settings, too.
    pub(crate) async fn server(
        ground: &Ground,
        subject: Subject,
        lab: &Path,
        token_rate: f64,
    ) -> anyhow::Result<(Self, String)> {
        Self::serving(ground, subject, lab, &["--token-rate", &token_rate.to_string()]).await
    }

    /// The same with an agent in a process of its own, which can be killed.
    pub(crate) async fn server_apart(
        ground: &Ground,
        subject: Subject,
        lab: &Path,
        token_rate: f64,
    ) -> anyhow::Result<(Self, String)> {
        Self::serving(ground, subject, lab, &["--token-rate", &token_rate.to_string(), "--apart"]).await
    }

    async fn serving(ground: &Ground, subject: Subject, lab: &Path, more: &[&str]) -> anyhow::Result<(Self, String)> {
        let (process, mut lines) = spawn(ground, Side::Server, subject, lab, more)?;
        let line = timeout(START_TIME, lines.next_line()).await.context("it does not say that it serves")??;
        let line = line.context("it ended before it served: see its message above")?;
        let Numbered { body: Answer::Ready { note }, .. } = serde_json::from_str(&line)? else {
            anyhow::bail!("instead of serving it said {line}");
        };
        process.listen(lines);
        Ok((process, note))
    }

    /// Starts the clients of `subject`.
    pub(crate) fn client(ground: &Ground, subject: Subject, lab: &Path) -> anyhow::Result<Self> {
        let (process, lines) = spawn(ground, Side::Client, subject, lab, &[])?;
        process.listen(lines);
        Ok(process)
    }

    /// Has `order` done. Gives its number, too.
    pub(crate) async fn obey(&self, order: Order) -> anyhow::Result<(u64, Answer)> {
        self.obey_within(order, ANSWER_TIME).await
    }

    /// The same for an order that takes time.
    pub(crate) async fn obey_within(&self, body: Order, time: Duration) -> anyhow::Result<(u64, Answer)> {
        let id = self.next_id.fetch_add(1, Relaxed);
        let (sender, answer) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            anyhow::ensure!(!waiting.ended, "{} has ended: see its message above", self.name);
            waiting.answers.insert(id, sender);
        }
        let mut line = serde_json::to_vec(&Numbered { id, body })?;
        line.push(b'\n');
        self.stdin.lock().await.write_all(&line).await.with_context(|| format!("{} takes no orders", self.name))?;
        let answer = timeout(time, answer).await.with_context(|| format!("{} does not answer", self.name))?;
        let answer = answer.with_context(|| format!("{} has ended: see its message above", self.name))?;
        match answer {
            Answer::Failed { error } => anyhow::bail!("{}: {error}", self.name),
            answer => Ok((id, answer)),
        }
    }

    /// What it has used so far, relays included.
    pub(crate) async fn usage(&self) -> anyhow::Result<Usage> {
        match self.obey(Order::Usage).await? {
            (_, Answer::Used(usage)) => Ok(usage),
            (_, other) => anyhow::bail!("{} answers {other:?}", self.name),
        }
    }

    /// Ends it, in its own time.
    pub(crate) async fn stop(self) {
        process::end(self.child, self.stdin.into_inner()).await;
    }

    fn listen(&self, mut lines: Lines<BufReader<ChildStdout>>) {
        let waiting = self.waiting.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let Ok(Numbered { id, body }) = serde_json::from_str(&line) else { break };
                if let Some(sender) = waiting.lock().answers.remove(&id) {
                    // Who asked may have given up.
                    let _ = sender.send(body);
                }
            }
            // Dropping the senders tells whoever waits.
            let mut waiting = waiting.lock();
            waiting.ended = true;
            waiting.answers.clear();
        });
    }
}

fn spawn(
    ground: &Ground,
    side: Side,
    subject: Subject,
    lab: &Path,
    more: &[&str],
) -> anyhow::Result<(HostProcess, Lines<BufReader<ChildStdout>>)> {
    let subcommand = match side {
        Side::Server => "net-server",
        Side::Client => "net-client",
    };
    let name = format!("{} ({subcommand})", subject.label());
    let mut command = process::this_program()?;
    command.arg(subcommand).arg("--subject").arg(subject.name()).arg("--lab").arg(lab).args(more);
    ground.enter(side, &mut command);
    let (child, stdin, lines) = process::spawn(command, &name)?;
    let host = HostProcess {
        child,
        stdin: tokio::sync::Mutex::new(stdin),
        // 0 is what a server says unasked.
        next_id: AtomicU64::new(super::server_host::READY_ID + 1),
        waiting: Arc::default(),
        name,
    };
    Ok((host, lines))
}
