//! Whether a connection is used: by when its first request has to be there, and how long it may be kept without one.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use super::traffic::Cut;

/// The requests of one connection.
#[derive(Debug)]
pub(super) struct Activity {
    /// By when the first one has to be there.
    first_by: Instant,
    idle_limit: Duration,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    running: usize,
    /// When the last one ended, if any has.
    ended: Option<Instant>,
}

impl Activity {
    pub(super) fn new(first_by: Instant, idle_limit: Duration) -> Arc<Self> {
        Arc::new(Self { first_by, idle_limit, state: Mutex::new(State { running: 0, ended: None }) })
    }

    /// A request has begun; it runs as long as the value lives.
    pub(super) fn begin(self: &Arc<Self>) -> Running {
        self.state.lock().running += 1;
        Running(Arc::clone(self))
    }

    pub(super) fn is_running(&self) -> bool {
        self.state.lock().running > 0
    }

    /// When the connection is to be closed if nothing happens, and why. None while a request runs.
    fn ends(&self) -> Option<(Instant, Cut)> {
        match *self.state.lock() {
            State { running: 0, ended: None } => Some((self.first_by, Cut::NoRequest)),
            State { running: 0, ended: Some(ended) } => Some((ended + self.idle_limit, Cut::Idle)),
            _ => None,
        }
    }

    /// Resolves when the connection is to be closed.
    pub(super) async fn expired(&self) -> Cut {
        loop {
            // A request that runs cannot make the connection expire sooner than in one idle limit: to look then is soon enough.
            let at = self.ends().map_or_else(|| Instant::now() + self.idle_limit, |(at, _)| at);
            sleep_until(at).await;
            if let Some((at, why)) = self.ends()
                && at <= Instant::now()
            {
                return why;
            }
        }
    }
}

/// A request that runs, until its response has been handed over or dropped.
#[derive(Debug)]
pub(super) struct Running(Arc<Activity>);

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.running -= 1;
        state.ended = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    const FIRST: Duration = Duration::from_secs(10);
    const IDLE: Duration = Duration::from_secs(600);

    #[tokio::test(start_paused = true)]
    async fn without_a_request_it_ends_by_the_time_of_the_first() {
        let begin = Instant::now();
        assert_eq!(Activity::new(begin + FIRST, IDLE).expired().await, Cut::NoRequest);
        assert_eq!(begin.elapsed().as_secs(), FIRST.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_run_for_ever_and_the_idle_time_begins_when_the_last_one_ends() {
        let begin = Instant::now();
        let activity = Activity::new(begin + FIRST, IDLE);
        let (one, two) = (activity.begin(), activity.begin());
        let mut expired = Box::pin(activity.expired());
        assert!(timeout(IDLE * 10, &mut expired).await.is_err());
        drop(one);
        assert!(timeout(IDLE * 10, &mut expired).await.is_err());
        drop(two);
        let ended = Instant::now();
        advance(IDLE / 2).await;
        drop(activity.begin());
        assert_eq!(expired.await, Cut::Idle);
        assert_eq!(ended.elapsed().as_secs(), (IDLE * 3 / 2).as_secs());
    }
}
