//! How many requests run at once, and which.
//!
//! A request that finds no room is refused at once rather than queued: the coordinator chose this agent because it thought there
//! was room, and the client is better served by asking it again.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use parking_lot::Mutex;
use titan_proto::{MAX_TOKENS_PER_SECOND, v1::FinishedGeneration};
use tokio::sync::watch;
use tonic::{Status, metadata::MetadataValue};

use crate::account::{Account, Finished, Job};

/// What a refused client is told to wait, in `grpc-retry-pushback-ms` (gRFC A6): about the time in which a short answer ends.
const RETRY_AFTER_MS: u32 = 500;
/// Most job names kept for a coordinator that does not answer; an older one's booking has expired there anyway.
const MAX_CLAIMED: usize = 1_024;
/// Weight of the newest generation in the moving average of the speed: the last ten or so decide.
const SPEED_WEIGHT: f64 = 0.2;

/// Hands out slots. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    max_jobs: usize,
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    running: BTreeMap<u64, Job>,
    next: u64,
    draining: bool,
    processed: u64,
    tokens_per_second: Option<f64>,
    claimed: VecDeque<String>,
    finished: Finished,
}

/// The numbers of one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Load {
    pub(crate) running: usize,
    pub(crate) draining: bool,
    /// Requests that ended since the start, however they ended.
    pub(crate) processed: u64,
    /// Generation speed per job, a moving average; `None` before the first generation.
    pub(crate) tokens_per_second: Option<f64>,
}

impl Admission {
    pub(crate) fn new(max_jobs: usize) -> Self {
        let shared = Shared { max_jobs, state: Mutex::default(), changed: watch::Sender::new(()) };
        Self { shared: Arc::new(shared) }
    }

    /// Takes a slot for the job, or says why there is none.
    pub(crate) fn admit(&self, job: impl Into<Job>) -> Result<Slot, AdmissionError> {
        let job = job.into();
        let mut state = self.shared.state.lock();
        if state.draining {
            return Err(AdmissionError::Draining);
        }
        if state.running.len() >= self.shared.max_jobs {
            return Err(AdmissionError::Full { max_jobs: self.shared.max_jobs });
        }
        let id = state.next;
        state.next += 1;
        state.running.insert(id, job.clone());
        if state.claimed.len() == MAX_CLAIMED {
            state.claimed.pop_front();
        }
        state.claimed.push_back(job.job_id.clone());
        drop(state);
        self.shared.changed.send_replace(());
        Ok(Slot { shared: Arc::clone(&self.shared), id, account: Account::of(job, Instant::now()) })
    }

    /// Admits nothing from now on.
    pub(crate) fn drain(&self) {
        self.shared.state.lock().draining = true;
        self.shared.changed.send_replace(());
    }

    /// Resolves when nothing runs.
    pub(crate) async fn idle(&self) {
        let mut changed = self.changed();
        while !self.shared.state.lock().running.is_empty() {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Wakes when a job begins or ends, or the drain begins.
    pub(crate) fn changed(&self) -> watch::Receiver<()> {
        self.shared.changed.subscribe()
    }

    pub(crate) fn max_jobs(&self) -> usize {
        self.shared.max_jobs
    }

    pub(crate) fn load(&self) -> Load {
        let state = self.shared.state.lock();
        Load {
            running: state.running.len(),
            draining: state.draining,
            processed: state.processed,
            tokens_per_second: state.tokens_per_second,
        }
    }

    /// The jobs that run now, the longest running first.
    pub(crate) fn job_ids(&self) -> Vec<String> {
        self.shared.state.lock().running.values().map(|job| job.job_id.clone()).collect()
    }

    /// How many jobs of each API key run now; those without a key are left out.
    pub(crate) fn running_by_key(&self) -> HashMap<String, u32> {
        let mut counts = HashMap::new();
        for job in self.shared.state.lock().running.values().filter(|job| !job.key.is_empty()) {
            *counts.entry(job.key.clone()).or_default() += 1;
        }
        counts
    }

    /// The accounts of what has ended, from number `from` on, as many as one update takes, and the number after them.
    pub(crate) fn finished(&self, from: u64) -> (Vec<FinishedGeneration>, u64) {
        self.shared.state.lock().finished.from(from)
    }

    /// The coordinator knows the accounts before this number.
    pub(crate) fn accounted(&self, before: u64) {
        self.shared.state.lock().finished.known(before);
    }

    /// The jobs that began since the last call.
    pub(crate) fn take_claimed(&self) -> Vec<String> {
        self.shared.state.lock().claimed.drain(..).collect()
    }
}

/// The right to run one generation. Dropping it gives the slot back.
#[derive(Debug)]
pub(crate) struct Slot {
    shared: Arc<Shared>,
    id: u64,
    account: Account,
}

impl Slot {
    /// What the generation has used so far.
    pub(crate) fn account(&mut self) -> &mut Account {
        &mut self.account
    }

    /// Adds a finished generation's speed to the average.
    pub(crate) fn record_speed(&self, tokens_per_second: f64) {
        // Text that waited for a slow reader and is then read at once looks faster than any machine.
        let tokens_per_second = tokens_per_second.min(MAX_TOKENS_PER_SECOND);
        let mut state = self.shared.state.lock();
        state.tokens_per_second = Some(match state.tokens_per_second {
            None => tokens_per_second,
            Some(average) => average + SPEED_WEIGHT * (tokens_per_second - average),
        });
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.running.remove(&self.id);
        state.processed += 1;
        if let Some(finished) = self.account.close(Instant::now()) {
            state.finished.push(finished);
        }
        drop(state);
        self.shared.changed.send_replace(());
    }
}

/// Why a request was not admitted. It did not run; another agent may take it now, this one later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AdmissionError {
    /// Every slot is taken.
    #[error(
        "all {max_jobs} job slots of this agent are taken: ask the coordinator for another agent, or try again in {RETRY_AFTER_MS} ms"
    )]
    Full { max_jobs: usize },
    /// The agent is about to stop.
    #[error("this agent is shutting down and takes nothing new: ask the coordinator for another agent")]
    Draining,
}

impl From<AdmissionError> for Status {
    fn from(error: AdmissionError) -> Self {
        match error {
            AdmissionError::Full { .. } => {
                let mut status = Self::resource_exhausted(error.to_string());
                status.metadata_mut().insert("grpc-retry-pushback-ms", MetadataValue::from(RETRY_AFTER_MS));
                status
            }
            AdmissionError::Draining => Self::unavailable(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn beyond_the_limit_a_request_is_refused_until_a_slot_is_given_back() {
        let admission = Admission::new(2);
        let first = admission.admit("a").unwrap();
        let _second = admission.admit("b").unwrap();
        assert_eq!(admission.admit("c").unwrap_err(), AdmissionError::Full { max_jobs: 2 });
        assert_eq!(admission.job_ids(), ["a", "b"]);
        drop(first);
        let _third = admission.admit("c").unwrap();
        assert_eq!(admission.job_ids(), ["b", "c"]);
        assert_eq!(admission.load().processed, 1);
    }

    #[test]
    fn a_refusal_for_lack_of_room_says_when_to_come_again() {
        let status = Status::from(AdmissionError::Full { max_jobs: 4 });
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert_eq!(status.metadata().get("grpc-retry-pushback-ms").unwrap(), "500");
    }

    #[test]
    fn a_draining_agent_admits_nothing() {
        let admission = Admission::new(2);
        admission.drain();
        assert_eq!(admission.admit("a").unwrap_err(), AdmissionError::Draining);
        assert!(admission.load().draining);
    }

    #[tokio::test]
    async fn idle_waits_for_the_last_slot() {
        let admission = Admission::new(2);
        admission.idle().await;
        let slot = admission.admit("a").unwrap();
        let mut idle = std::pin::pin!(admission.idle());
        assert!(futures_util::poll!(&mut idle).is_pending());
        drop(slot);
        idle.await;
    }

    #[test]
    fn a_job_is_claimed_once() {
        let admission = Admission::new(2);
        drop(admission.admit("a").unwrap());
        let _slot = admission.admit("b").unwrap();
        assert_eq!(admission.take_claimed(), ["a", "b"]);
        assert!(admission.take_claimed().is_empty());
    }

    #[test]
    fn claims_are_bounded_while_nobody_takes_them() {
        let admission = Admission::new(1);
        for job in 0..=MAX_CLAIMED {
            drop(admission.admit(job.to_string().as_str()).unwrap());
        }
        let claimed = admission.take_claimed();
        assert_eq!((claimed.len(), claimed[0].as_str()), (MAX_CLAIMED, "1"));
    }

    #[test]
    fn the_speed_is_a_moving_average() {
        let admission = Admission::new(1);
        let slot = admission.admit("a").unwrap();
        assert_eq!(admission.load().tokens_per_second, None);
        slot.record_speed(10.0);
        slot.record_speed(20.0);
        let average = admission.load().tokens_per_second.unwrap();
        assert!((average - 12.0).abs() < 1e-9, "{average}");
    }
}
