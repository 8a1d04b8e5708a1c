//! What each generation has used, for the coordinator's books.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use titan_proto::v1::FinishedGeneration;
use titan_transport::token::{Claims, new_jti};

/// Accounts kept for a coordinator that does not answer: an hour of a busy agent, some 10 MB. Beyond that the oldest are lost.
const MAX_FINISHED: usize = 20_000;
/// Accounts in one update: about 250 kB, beside which there is room for a registration.
const MAX_PER_UPDATE: usize = 1_000;
/// Bytes of a prompt for each of its tokens, where an answer ended before they were counted: what European languages have, roughly.
const BYTES_PER_TOKEN: usize = 4;

/// Whose generation it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) job_id: String,
    /// The id of the API key; empty where there is none.
    pub(crate) key: String,
    pub(crate) client_id: String,
    pub(crate) model: String,
}

impl Job {
    /// The job that a token is for, with the model that is asked for.
    pub(crate) fn of(claims: &Claims, model: &str) -> Self {
        Self {
            job_id: claims.job_id.clone(),
            key: claims.key.clone().unwrap_or_default(),
            client_id: claims.client_id.clone(),
            model: model.to_owned(),
        }
    }
}

#[cfg(test)]
impl From<&str> for Job {
    fn from(job_id: &str) -> Self {
        Self { job_id: job_id.to_owned(), ..Self::default() }
    }
}

/// What one generation has used so far. It is cancelled unless it is said to have ended otherwise.
#[derive(Debug)]
pub(crate) struct Account {
    job: Job,
    begun: Instant,
    /// `None` until the engine has taken it: what did not start is on nobody's account.
    prompt_bytes: Option<usize>,
    completion_tokens: u64,
    ttft: Option<Duration>,
    end: End,
}

#[derive(Debug)]
enum End {
    Cancelled,
    Failed,
    Completed { prompt_tokens: u32, cached_tokens: u32 },
}

impl Account {
    pub(super) fn of(job: Job, now: Instant) -> Self {
        Self { job, begun: now, prompt_bytes: None, completion_tokens: 0, ttft: None, end: End::Cancelled }
    }

    /// The engine has taken it. `prompt_bytes`: of these the tokens are estimated where the engine does not come to count them.
    pub(crate) fn started(&mut self, prompt_bytes: usize) {
        self.prompt_bytes = Some(prompt_bytes);
    }

    /// A piece came, of so many tokens; `seen`: its reader gets something of it.
    pub(crate) fn piece(&mut self, tokens: usize, seen: bool, now: Instant) {
        // An engine that does not tell tokens sends one in a piece.
        self.completion_tokens += tokens.max(usize::from(seen)) as u64;
        if seen {
            self.ttft.get_or_insert_with(|| now.saturating_duration_since(self.begun));
        }
    }

    /// It ended as it should. `completion_tokens`: those that were generated here.
    pub(crate) fn completed(&mut self, prompt_tokens: u32, cached_tokens: u32, completion_tokens: u32) {
        self.completion_tokens = completion_tokens.into();
        self.end = End::Completed { prompt_tokens, cached_tokens };
    }

    /// The engine failed, or the agent stops.
    pub(crate) fn failed(&mut self) {
        self.end = End::Failed;
    }

    /// What it has used; `None` where it never started.
    pub(super) fn close(&self, now: Instant) -> Option<FinishedGeneration> {
        let estimated = self.prompt_bytes?.div_ceil(BYTES_PER_TOKEN).try_into().unwrap_or(i64::MAX);
        let (prompt_tokens, cached_tokens, outcome) = match self.end {
            End::Completed { prompt_tokens, cached_tokens } => {
                (prompt_tokens.into(), cached_tokens.into(), "completed")
            }
            End::Cancelled => (estimated, 0, "cancelled"),
            End::Failed => (estimated, 0, "failed"),
        };
        let Job { job_id, key, client_id, model } = self.job.clone();
        Some(FinishedGeneration {
            id: new_jti(),
            job_id,
            key,
            client_id,
            model,
            prompt_tokens,
            cached_tokens,
            completion_tokens: self.completion_tokens.try_into().unwrap_or(i64::MAX),
            ttft_ms: self.ttft.map_or(0, milliseconds),
            duration_ms: milliseconds(now.saturating_duration_since(self.begun)),
            outcome: outcome.to_owned(),
        })
    }
}

fn milliseconds(duration: Duration) -> i64 {
    duration.as_millis().try_into().unwrap_or(i64::MAX)
}

/// Accounts that the coordinator does not know yet, numbered from the agent's start on.
#[derive(Debug, Default)]
pub(crate) struct Finished {
    waiting: VecDeque<FinishedGeneration>,
    /// The number of the first that waits.
    first: u64,
}

impl Finished {
    pub(super) fn push(&mut self, finished: FinishedGeneration) {
        if self.waiting.len() == MAX_FINISHED {
            self.waiting.pop_front();
            self.first += 1;
        }
        self.waiting.push_back(finished);
    }

    /// Those from number `from` on, as many as one update takes, and the number after them.
    pub(super) fn from(&self, from: u64) -> (Vec<FinishedGeneration>, u64) {
        let skipped = usize::try_from(from.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let some: Vec<_> = self.waiting.iter().skip(skipped).take(MAX_PER_UPDATE).cloned().collect();
        let next = from.max(self.first) + some.len() as u64;
        (some, next)
    }

    /// Those before this number are known.
    pub(super) fn known(&mut self, before: u64) {
        while self.first < before && self.waiting.pop_front().is_some() {
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn ids(finished: &[FinishedGeneration]) -> Vec<&str> {
        finished.iter().map(|finished| finished.job_id.as_str()).collect()
    }

    fn closed(job_id: &str) -> FinishedGeneration {
        let mut account = Account::of(job_id.into(), Instant::now());
        account.started(0);
        account.close(Instant::now()).unwrap()
    }

    #[test]
    fn what_did_not_start_is_on_nobodys_account() {
        assert_eq!(Account::of("job".into(), Instant::now()).close(Instant::now()), None);
    }

    #[test]
    fn an_answer_that_broke_off_counts_what_came_of_it() {
        let begun = Instant::now();
        let mut account = Account::of("job".into(), begun);
        account.started(41);
        account.piece(1, false, begun + Duration::from_millis(10));
        account.piece(2, true, begun + Duration::from_millis(20));
        account.piece(0, true, begun + Duration::from_millis(30));
        let closed = account.close(begun + Duration::from_millis(40)).unwrap();
        assert_eq!((closed.prompt_tokens, closed.completion_tokens, closed.outcome.as_str()), (11, 4, "cancelled"));
        assert_eq!((closed.ttft_ms, closed.duration_ms), (20, 40));
    }

    #[test]
    fn the_engines_own_count_is_the_one_that_counts() {
        let mut account = Account::of("job".into(), Instant::now());
        account.started(1000);
        account.piece(1, true, Instant::now());
        account.completed(7, 3, 5);
        let closed = account.close(Instant::now()).unwrap();
        assert_eq!((closed.prompt_tokens, closed.cached_tokens, closed.completion_tokens), (7, 3, 5));
        assert_eq!(closed.outcome, "completed");
    }

    #[test]
    fn what_is_not_known_to_be_known_comes_again() {
        let mut finished = Finished::default();
        for job in ["a", "b", "c"] {
            finished.push(closed(job));
        }
        let (first, next) = finished.from(0);
        assert_eq!((ids(&first), next), (vec!["a", "b", "c"], 3));
        assert_eq!(finished.from(next), (vec![], 3), "it is on its way");
        finished.known(2);
        assert_eq!(ids(&finished.from(0).0), ["c"], "over another stream");
        finished.push(closed("d"));
        assert_eq!(ids(&finished.from(3).0), ["d"]);
        finished.known(99);
        assert_eq!(finished.from(0).0, []);
    }

    #[test]
    fn what_waits_is_bounded_and_so_is_an_update() {
        let mut finished = Finished::default();
        for n in 0..MAX_FINISHED + 5 {
            finished.push(FinishedGeneration { job_id: n.to_string(), ..FinishedGeneration::default() });
        }
        assert_eq!(finished.waiting.len(), MAX_FINISHED);
        let (some, next) = finished.from(0);
        assert_eq!((some.len(), some[0].job_id.as_str(), next), (MAX_PER_UPDATE, "5", 5 + MAX_PER_UPDATE as u64));
    }
}
