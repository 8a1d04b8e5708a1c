//! Answers that outlive their connection: PROTOCOL.md §15.
//!
//! An answer to a resumable request is found by its token and nonce. While it has a reader it is pulled as any other, and the messages
//! sent last stay in its `log`: some of them may be lost with the connection. When the connection is lost the generation goes on
//! into the log, until another request takes the answer over or 30 s have passed. A call that was cancelled ends at once.

mod answer;
mod log;

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use titan_transport::PeerConnection;
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use self::answer::Answer;
pub(crate) use self::{answer::Reader, log::PositionError};
use crate::response::ResponseStream;

/// How long an answer waits for its reader to come back: a lift ride, the change from one network to another.
pub(crate) const KEEP_TIME: Duration = Duration::from_secs(30);
/// What an answer keeps of messages sent, and as much again of messages that wait for a reader. No more than the first can be on its
/// way over QUIC: it is the stream's window. Ten thousand tokens.
const MAX_ANSWER_BYTES: usize = titan_transport::limits::STREAM_WINDOW_BYTES as usize;
/// What all answers may keep together before each is held to its share: 10,000 streams of 250 tokens.
const MAX_TOTAL_BYTES: usize = 64 << 20;
/// Complete answers kept, at about 500 bytes each beside their messages: five hundred a second for 30 s.
const MAX_COMPLETE: usize = 16_384;

/// The answers of an agent that can be resumed. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(crate) struct Kept(Arc<Shared>);

struct Shared {
    keep_time: Duration,
    answers: Mutex<Answers>,
    /// What the logs take.
    bytes: AtomicUsize,
    /// Answers that there are.
    count: AtomicUsize,
}

#[derive(Default)]
struct Answers {
    by_request: HashMap<RequestId, Arc<Answer>>,
    /// Those whose reader has got everything, as far as this side knows; the one to be forgotten first at the front.
    complete: VecDeque<(Instant, Arc<Answer>)>,
    /// Somebody waits to forget the first of them.
    tidied: bool,
}

/// What names a request: its token's id and its nonce.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RequestId {
    pub(crate) jti: String,
    pub(crate) nonce: String,
}

/// Why an answer cannot be resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ResumeError {
    /// There is none.
    #[error(
        "this agent keeps no answer to a request with this token and nonce: it was not resumable, was cancelled, lost its connection \
         more than {} s ago, or never began here", keep_time.as_secs()
    )]
    NotKept {
        /// How long answers are kept.
        keep_time: Duration,
    },
    /// There is, but not from this message on.
    #[error(transparent)]
    Position(#[from] PositionError),
}

impl From<ResumeError> for Status {
    fn from(error: ResumeError) -> Self {
        let message = error.to_string();
        match error {
            ResumeError::NotKept { .. } => Self::not_found(message),
            ResumeError::Position(PositionError::Dropped { .. }) => Self::data_loss(message),
            ResumeError::Position(PositionError::NotSent { .. }) => Self::invalid_argument(message),
        }
    }
}

impl Kept {
    /// Keeps answers for `keep_time` after their connection is lost.
    pub(crate) fn new(keep_time: Duration) -> Self {
        Self(Arc::new(Shared {
            keep_time,
            answers: Mutex::default(),
            bytes: AtomicUsize::new(0),
            count: AtomicUsize::new(0),
        }))
    }

    /// Whether answers are kept at all.
    pub(crate) fn is_on(&self) -> bool {
        !self.0.keep_time.is_zero()
    }

    /// Begins an answer. `connection` is its reader's.
    pub(crate) fn start(&self, id: RequestId, source: ResponseStream, connection: Option<PeerConnection>) -> Reader {
        let (answer, reader) = Answer::start(self.clone(), id.clone(), source, connection);
        // A nonce runs twice only where the first run failed before it produced anything: what is kept of that is of no use.
        let replaced = self.0.answers.lock().by_request.insert(id, answer);
        drop(replaced);
        reader
    }

    /// Whether a request's answer has a reader, as far as this side knows.
    pub(crate) fn has_reader(&self, id: &RequestId) -> bool {
        self.find(id).is_some_and(|answer| answer.has_reader())
    }

    /// Takes an answer over from its reader, if it has one, from message number `from` on.
    pub(crate) fn resume(
        &self,
        id: &RequestId,
        from: u64,
        connection: Option<PeerConnection>,
    ) -> Result<Reader, ResumeError> {
        let answer = self.find(id).ok_or(ResumeError::NotKept { keep_time: self.0.keep_time })?;
        Ok(Answer::resume(answer, from, connection)?)
    }

    fn find(&self, id: &RequestId) -> Option<Arc<Answer>> {
        self.0.answers.lock().by_request.get(id).cloned()
    }

    /// Forgets `answer`, and nothing that has taken its place.
    fn forget(&self, answer: &Arc<Answer>) {
        let forgotten = self.0.answers.lock().remove(answer);
        // Ending a generation takes other locks.
        drop(forgotten);
    }

    /// The reader of `answer` has got everything, but it may not have arrived: forgets the answer when its time has come.
    fn complete(&self, answer: Arc<Answer>) {
        let due = Instant::now() + self.0.keep_time;
        answer.set_due(Some(due));
        let tidied = {
            let mut answers = self.0.answers.lock();
            answers.complete.push_back((due, answer));
            std::mem::replace(&mut answers.tidied, true)
        };
        if !tidied {
            tokio::spawn(self.clone().tidy());
        }
        while self.0.forget_first(|_, shared| {
            shared.answers.lock().complete.len() > MAX_COMPLETE || shared.bytes.load(Relaxed) > MAX_TOTAL_BYTES
        }) {}
    }

    /// Forgets complete answers when their time has come, until there are none.
    async fn tidy(self) {
        loop {
            let due = {
                let mut answers = self.0.answers.lock();
                let Some((due, _)) = answers.complete.front() else {
                    answers.tidied = false;
                    return;
                };
                *due
            };
            sleep_until(due).await;
            while self.0.forget_first(|due, _| due <= Instant::now()) {}
        }
    }

    /// What an answer may keep now of what was sent, and of what was not.
    fn allowance(&self) -> usize {
        if self.0.bytes.load(Relaxed) <= MAX_TOTAL_BYTES {
            return MAX_ANSWER_BYTES;
        }
        (MAX_TOTAL_BYTES / self.0.count.load(Relaxed).max(1)).min(MAX_ANSWER_BYTES)
    }
}

impl Shared {
    /// Forgets the complete answer that is the first to go, if `go` says so of the time when it is due.
    fn forget_first(&self, go: impl FnOnce(Instant, &Self) -> bool) -> bool {
        let Some(due) = self.answers.lock().complete.front().map(|(due, _)| *due) else { return false };
        if !go(due, self) {
            return false;
        }
        let forgotten = {
            let mut answers = self.answers.lock();
            let first = answers.complete.pop_front();
            // One that was resumed since stays.
            first.map(|(due, answer)| (answer.is_due(due).then(|| answers.remove(&answer)), answer))
        };
        drop(forgotten);
        true
    }
}

impl Answers {
    fn remove(&mut self, answer: &Arc<Answer>) -> Option<Arc<Answer>> {
        let kept = self.by_request.get(answer.id())?;
        if Arc::ptr_eq(kept, answer) { self.by_request.remove(answer.id()) } else { None }
    }
}

#[cfg(test)]
mod tests;
