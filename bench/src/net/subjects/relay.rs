//! A relay before an origin: a program of its own, started here, which ends with this process.

use std::{
    env, fs,
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use futures_util::TryStreamExt as _;

use super::{
    LOCALHOST,
    http::{Sse, Version},
    trust::Trust,
};
use crate::{net::subject::Client as _, process::end_with_this_thread};

/// The relay is at the first port of the subject, its origin and what else it opens follow.
pub(super) const ORIGIN: u16 = 1;
pub(super) const METRICS: u16 = 2;
/// Connections of 10,000 clients, and as many to the origin.
pub(super) const OPEN_FILES: u64 = 65_536;

/// Longest wait for it to take requests: smg is a Python program, which takes seconds to load.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Between two looks at whether it does, or has ended.
const POLL: Duration = Duration::from_millis(50);
/// What it may take to end when it is told to; then it is killed.
const END_WITHIN: Duration = Duration::from_secs(2);
/// How much of what it said goes into an error.
const QUOTED_BYTES: usize = 1000;

/// How a relay is told to end at once.
#[derive(Clone, Copy, Debug)]
pub(super) enum EndBy {
    /// For one that then ends its own processes too.
    Terminate,
    /// For one that would wait for its clients.
    Kill,
}

/// A relay that runs. Dropping it ends it.
pub(super) struct Relay {
    child: Child,
    end_by: EndBy,
    output: PathBuf,
}

impl Relay {
    /// Starts `command`. What it says goes to the file `output`.
    ///
    /// When this thread ends, the relay gets the same signal as when it is dropped: so it does not outlive a server that is killed.
    /// The thread must be one that lasts, as those of a runtime do.
    pub(super) fn start(mut command: Command, end_by: EndBy, output: &Path) -> anyhow::Result<Self> {
        let file = || fs::File::options().create(true).append(true).open(output);
        let (stdout, stderr) = (file()?, file()?);
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        end_with_this_thread(&mut command, end_by.signal());
        // SAFETY: between fork and exec only a system call that is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                let limit = libc::rlimit { rlim_cur: OPEN_FILES, rlim_max: OPEN_FILES };
                // Without the right to raise the limit it stays what it is.
                libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
                Ok(())
            });
        }
        let child = command.spawn().with_context(|| format!("cannot start {:?}", command.get_program()))?;
        Ok(Self { child, end_by, output: output.to_owned() })
    }

    /// Waits until it answers a request over TLS at `port`.
    pub(super) async fn ready(&mut self, port: u16, lab: &Path) -> anyhow::Result<()> {
        let client = Sse::new(SocketAddr::new(LOCALHOST, port), &Trust::load(lab)?, Version::Http2)?;
        let started = Instant::now();
        loop {
            let answered = async {
                let texts: Vec<String> = client.ask(1).await?.tokens.try_collect().await?;
                anyhow::Ok(texts)
            };
            let error = match answered.await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if let Some(ended) = self.has_ended() {
                return Err(ended);
            }
            if started.elapsed() > READY_WITHIN {
                return Err(error.context(self.said("it takes no requests")));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits for its end, and says how it ended.
    pub(super) async fn ended(&mut self) -> anyhow::Error {
        loop {
            if let Some(ended) = self.has_ended() {
                return ended;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Its process, and those that it started.
    pub(super) fn processes(&self) -> Vec<u32> {
        let mut found = vec![self.child.id()];
        let mut at = 0;
        while let Some(parent) = found.get(at) {
            found.extend(children(*parent));
            at += 1;
        }
        found
    }

    fn has_ended(&mut self) -> Option<anyhow::Error> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(anyhow!(self.said(&format!("it ended: {status}")))),
            Err(error) => Some(error.into()),
        }
    }

    fn said(&self, what: &str) -> String {
        let output = fs::read(&self.output).unwrap_or_default();
        let last = String::from_utf8_lossy(&output[output.len().saturating_sub(QUOTED_BYTES)..]).into_owned();
        format!("{what}; it said: {}", if last.trim().is_empty() { "nothing" } else { last.trim() })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let Ok(pid) = libc::pid_t::try_from(self.child.id()) else { return };
        // SAFETY: a system call with numbers. The process has not been waited for, or the signal finds nobody.
        if matches!(self.child.try_wait(), Ok(None)) {
            unsafe { libc::kill(pid, self.end_by.signal()) };
        }
        let told = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if told.elapsed() > END_WITHIN {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl EndBy {
    fn signal(self) -> libc::c_int {
        match self {
            Self::Terminate => libc::SIGTERM,
            Self::Kill => libc::SIGKILL,
        }
    }
}

/// A program by its name, in PATH or in one of `elsewhere`.
pub(super) fn find(name: &str, elsewhere: &[&str]) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&path).chain(elsewhere.iter().map(PathBuf::from));
    places.map(|place| place.join(name)).find(|program| program.is_file())
}

/// What a program says of its version, in one line.
pub(super) fn version(program: &Path, flag: &str) -> anyhow::Result<String> {
    let failed = || format!("cannot run {} {flag}", program.display());
    let output = Command::new(program).arg(flag).output().with_context(failed)?;
    let text = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&text).lines().next().unwrap_or("of unknown version").trim().to_owned())
}

fn children(parent: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}
