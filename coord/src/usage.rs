//! What was generated, and for whom: one line of JSON for each generation, in a file that only grows.
//!
//! Agents report what has ended with their heartbeats, also what broke off. No prompt and no text is in it. A thread writes, so that a slow disk holds no
//! request up, and a full one loses lines, which is counted and said: serving goes on.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{self, Receiver, SyncSender},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tracing::{info, warn};

/// Lines that wait for the disk: those of a few seconds of a busy fleet, about 4 MB.
const MAX_WAITING: usize = 10_000;
/// A disk that is full stays full for a while: said once in so long.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// What has ended at an agent. Checked: see `agent_input`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finished {
    pub(crate) id: String,
    pub(crate) job_id: String,
    pub(crate) key: Option<String>,
    pub(crate) client_id: String,
    pub(crate) model: String,
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) completion_tokens: u64,
    pub(crate) ttft_ms: u64,
    pub(crate) duration_ms: u64,
    pub(crate) outcome: Outcome,
}

/// How a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The answer is whole.
    Completed,
    /// Nobody read it any more.
    Cancelled,
    /// The engine failed, or the agent stopped.
    Failed,
}

impl Outcome {
    /// The word on the wire.
    pub(crate) fn parse(word: &str) -> Option<Self> {
        match word {
            "completed" => Some(Self::Completed),
            "cancelled" => Some(Self::Cancelled),
            "failed" => Some(Self::Failed),
            _ => None,
        }
    }
}

/// One line of the log. Times are when the coordinator heard of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// RFC 3339, in UTC.
    pub at: String,
    /// Unique: an agent that lost its coordinator may tell the same twice.
    pub id: String,
    /// The id of the API key, if one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_name: Option<String>,
    /// What the client called itself.
    pub client_id: String,
    /// The model.
    pub model: String,
    /// The agent that ran it.
    pub agent: String,
    /// The job that the coordinator booked.
    pub job: String,
    /// Tokens that were read; 0 where it ended before that was known.
    pub prompt_tokens: u64,
    /// Of those, tokens that were computed for an earlier request.
    pub cached_tokens: u64,
    /// Tokens that were written, also of an answer that broke off.
    pub completion_tokens: u64,
    /// From the request to what was seen first; 0 where nothing was.
    pub ttft_ms: u64,
    /// From the request to the end.
    pub duration_ms: u64,
    /// How it ended.
    pub outcome: Outcome,
}

/// The file, and the thread that writes it. Dropping it writes what waits.
#[derive(Debug)]
pub(crate) struct UsageLog {
    lines: Option<SyncSender<Line>>,
    writer: Option<thread::JoinHandle<()>>,
    lost: Arc<AtomicU64>,
}

impl UsageLog {
    /// Opens the file, and makes it if it is not there: for its owner alone, since it says who asked.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
            titan_files::make_dir(dir)?;
        }
        let file = open(path)?;
        let lost = Arc::new(AtomicU64::new(0));
        let (lines, waiting) = mpsc::sync_channel(MAX_WAITING);
        let writer = Writer { path: path.to_owned(), file, lost: Arc::clone(&lost), complained: None };
        let writer = thread::Builder::new().name("usage-log".to_owned()).spawn(move || writer.run(&waiting))?;
        Ok(Self { lines: Some(lines), writer: Some(writer), lost })
    }

    /// Writes a line, later.
    pub(crate) fn record(&self, agent: &str, key_name: Option<String>, finished: Finished) {
        let line = Line {
            at: OffsetDateTime::from(SystemTime::now()).format(&Rfc3339).unwrap_or_default(),
            id: finished.id,
            key: finished.key,
            key_name,
            client_id: finished.client_id,
            model: finished.model,
            agent: agent.to_owned(),
            job: finished.job_id,
            prompt_tokens: finished.prompt_tokens,
            cached_tokens: finished.cached_tokens,
            completion_tokens: finished.completion_tokens,
            ttft_ms: finished.ttft_ms,
            duration_ms: finished.duration_ms,
            outcome: finished.outcome,
        };
        let taken = self.lines.as_ref().is_some_and(|lines| lines.try_send(line).is_ok());
        if !taken {
            self.lost.fetch_add(1, Relaxed);
        }
    }
}

impl Drop for UsageLog {
    fn drop(&mut self) {
        // The thread ends with its channel, and what waits in that is written first.
        self.lines = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

struct Writer {
    path: PathBuf,
    file: File,
    lost: Arc<AtomicU64>,
    complained: Option<Instant>,
}

impl Writer {
    fn run(mut self, waiting: &Receiver<Line>) {
        while let Ok(line) = waiting.recv() {
            self.reopen_if_moved();
            // One write for each line: whoever reads meanwhile, or a crash, finds no part of one.
            if let Err(error) = self.write(&line) {
                self.lost.fetch_add(1, Relaxed);
                self.complain(&error);
            } else if self.complained.is_some_and(|at| at.elapsed() >= COMPLAIN_EVERY) {
                let lost = self.lost.swap(0, Relaxed);
                info!(lost, "the usage log is written again");
                self.complained = None;
            }
        }
    }

    fn write(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        let before = self.file.metadata()?.len();
        self.file.write_all(&text).inspect_err(|_| {
            // A full disk may have taken a part of it, which would spoil the next line.
            let _ = self.file.set_len(before);
        })
    }

    /// Whoever rotates logs moves the file away: the next line goes to a new one.
    fn reopen_if_moved(&mut self) {
        let here = self.file.metadata().map(|metadata| metadata.ino()).ok();
        let there = fs::metadata(&self.path).map(|metadata| metadata.ino()).ok();
        if here == there && there.is_some() {
            return;
        }
        match open(&self.path) {
            Ok(file) => self.file = file,
            Err(error) => self.complain(&error),
        }
    }

    fn complain(&mut self, error: &io::Error) {
        if self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
            let lost = self.lost.load(Relaxed);
            warn!(%error, path = %self.path.display(), lost, "usage is not written down");
            self.complained = Some(Instant::now());
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// The lines of a log, each once. Lines that are none are counted.
///
/// # Errors
/// When the file cannot be read.
pub fn read(path: &Path, mut each: impl FnMut(Line)) -> io::Result<usize> {
    let (mut seen, mut spoilt) = (std::collections::HashSet::new(), 0);
    for line in BufReader::new(File::open(path)?).split(b'\n') {
        match serde_json::from_slice::<Line>(&line?) {
            Ok(line) if seen.insert(line.id.clone()) => each(line),
            Ok(_) => {}
            Err(_) => spoilt += 1,
        }
    }
    Ok(spoilt)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn finished(id: &str) -> Finished {
        Finished {
            id: id.to_owned(),
            job_id: "job_1".to_owned(),
            key: Some("01234567".to_owned()),
            client_id: "me".to_owned(),
            model: "m".to_owned(),
            prompt_tokens: 7,
            cached_tokens: 1,
            completion_tokens: 3,
            ttft_ms: 20,
            duration_ms: 90,
            outcome: Outcome::Cancelled,
        }
    }

    fn lines(path: &Path) -> (Vec<Line>, usize) {
        let mut lines = Vec::new();
        let spoilt = read(path, |line| lines.push(line)).unwrap();
        (lines, spoilt)
    }

    #[test]
    fn each_generation_is_a_line_that_outlives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data/usage.jsonl");
        for id in ["a", "b"] {
            let log = UsageLog::open(&path).unwrap();
            log.record("agent-1", Some("alice".to_owned()), finished(id));
        }
        let (lines, spoilt) = lines(&path);
        assert_eq!((lines.len(), spoilt), (2, 0));
        assert_eq!((lines[0].id.as_str(), lines[1].id.as_str()), ("a", "b"));
        assert_eq!((lines[0].agent.as_str(), lines[0].key_name.as_deref()), ("agent-1", Some("alice")));
        assert_eq!((lines[0].completion_tokens, lines[0].outcome), (3, Outcome::Cancelled));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_told_twice_counts_once_and_a_spoilt_line_spoils_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("usage.jsonl");
        let log = UsageLog::open(&path).unwrap();
        log.record("agent-1", None, finished("a"));
        log.record("agent-1", None, finished("a"));
        drop(log);
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"at\":\n").unwrap();
        let log = UsageLog::open(&path).unwrap();
        log.record("agent-1", None, finished("b"));
        drop(log);
        let (lines, spoilt) = lines(&path);
        assert_eq!((lines.len(), spoilt), (2, 1));
    }

    #[test]
    fn a_log_that_was_moved_away_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("usage.jsonl");
        let log = UsageLog::open(&path).unwrap();
        fs::rename(&path, dir.path().join("usage.1.jsonl")).unwrap();
        log.record("agent-1", None, finished("a"));
        drop(log);
        assert_eq!(lines(&path).0.len(), 1);
    }

    #[test]
    fn a_full_disk_loses_lines_and_nothing_else() {
        // Its writes fail as those on a full disk do.
        let log = UsageLog::open(Path::new("/dev/full")).unwrap();
        for n in 0..3 {
            log.record("agent-1", None, finished(&n.to_string()));
        }
        let lost = Arc::clone(&log.lost);
        drop(log);
        assert_eq!(lost.load(Relaxed), 3);
    }
}
