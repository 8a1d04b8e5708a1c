//! A process that a measurement starts: this program again, under a hidden command, so that its CPU time is its own.
//!
//! It says in one line of JSON where it listens, answers each line on standard input with one line of what it has used, and ends when
//! standard input does. That end comes also when the parent is killed, so nothing is left behind.

use std::{ffi::OsStr, io::BufRead as _, os::unix::process::CommandExt as _, process::Stdio, time::Duration};

use anyhow::Context as _;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::usage::Usage;

/// The process, as its parent sees it. It ends when this is dropped, or when this process ends, however that happens.
pub(crate) struct Process {
    /// For messages: "the agent".
    name: &'static str,
    child: Child,
    // Its end is the process' end.
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
}

/// For one line of an answer. A process that has no CPU to spare may take seconds.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// For the end, once standard input is closed.
const STOP_TIME: Duration = Duration::from_secs(5);

impl Process {
    /// Runs this program with `arguments` and waits for its first line: where it listens.
    pub(crate) async fn start<A: AsRef<OsStr>, T: DeserializeOwned>(
        name: &'static str,
        arguments: impl IntoIterator<Item = A>,
    ) -> anyhow::Result<(Self, T)> {
        let mut command = this_program()?;
        command.args(arguments);
        let (child, stdin, stdout) = spawn(command, name)?;
        let mut process = Self { name, child, stdin, stdout };
        let first = process.line().await.with_context(|| format!("{name} did not start"))?;
        Ok((process, first))
    }

    /// What it has used so far.
    pub(crate) async fn usage(&mut self) -> anyhow::Result<Usage> {
        let name = self.name;
        self.stdin.write_all(b"\n").await.with_context(|| format!("asking {name} what it has used"))?;
        self.line().await.with_context(|| format!("{name} does not say what it has used"))
    }

    /// Ends it.
    pub(crate) async fn stop(self) {
        end(self.child, self.stdin).await;
    }

    async fn line<T: DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        let line = timeout(ANSWER_TIME, self.stdout.next_line()).await.context("no answer")??;
        Ok(serde_json::from_str(&line.context("it ended")?)?)
    }
}

/// This program again, with arguments still to come.
pub(crate) fn this_program() -> anyhow::Result<std::process::Command> {
    Ok(std::process::Command::new(std::env::current_exe().context("cannot find this program's file")?))
}

/// Starts `command`, called `name` in messages, with pipes to write and read lines.
pub(crate) fn spawn(
    command: std::process::Command,
    name: &str,
) -> anyhow::Result<(Child, ChildStdin, Lines<BufReader<ChildStdout>>)> {
    let mut child = Command::from(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // A group of its own: Ctrl-C on the terminal is for the parent, which ends it, and may still ask what was used.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {name} as a process"))?;
    let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        anyhow::bail!("the process of {name} has no standard input or output");
    };
    Ok((child, stdin, BufReader::new(stdout).lines()))
}

/// Has what `command` starts get `signal` when this thread ends, however that happens: for programs that do not watch their standard input.
/// The thread must be one that lasts, as those of a runtime do.
pub(crate) fn end_with_this_thread(command: &mut std::process::Command, signal: libc::c_int) {
    // SAFETY: between fork and exec only a system call that is async-signal-safe.
    unsafe {
        command.pre_exec(move || match libc::prctl(libc::PR_SET_PDEATHSIG, signal) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}

/// Ends what was started by [`spawn`].
pub(crate) async fn end(mut child: Child, stdin: ChildStdin) {
    drop(stdin);
    // What does not end by itself is killed when `child` is dropped.
    let _ = timeout(STOP_TIME, child.wait()).await;
}

/// The other side: tells the parent where this process listens, then answers it, and ends the process when standard input ends.
pub(crate) fn report_to_parent(listens: &impl Serialize) -> anyhow::Result<()> {
    say(listens)?;
    // A thread: it must not wait for a busy runtime. It is never joined: it ends the process.
    std::thread::spawn(|| {
        let ended = answer();
        std::process::exit(i32::from(ended.is_err()));
    });
    Ok(())
}

fn answer() -> anyhow::Result<()> {
    for line in std::io::stdin().lock().lines() {
        line?;
        say(&Usage::now()?)?;
    }
    Ok(())
}

/// Writes one line.
pub(crate) fn say(what: &impl Serialize) -> anyhow::Result<()> {
    use std::io::Write as _;
    // Made before the output is taken: several may want to say something.
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    out.write_all(&line)?;
    Ok(out.flush()?)
}
