//! The circuit breaker of one agent: what clients met there decides whether others are sent to it. Pure: events and `now` in.
//!
//! ```text
//!            three failures in a row                  30 s
//!   closed ─────────────────────────▶ open ─────────────────────▶ half open
//!     ▲                                 ▲  the probe fails           │  │
//!     │                                 └────────────────────────────┘  │
//!     └──────────────────── two probes succeed ─────────────────────────┘
//! ```
//!
//! An agent whose heartbeats come in time may be out of reach for clients all the same, and a client may have a bad network, or lie. So:
//!
//! - Three failures in a row open it if two clients or more met them ([`Who`] says who is one). It takes nobody's word alone.
//! - One client's word is enough when the agent's own silence says the same: it has missed a heartbeat.
//! - What one client alone keeps meeting counts for that client: it is sent elsewhere for a while, and nobody else is.
//! - A probe that fails at the hands of a client does not come to that client again at once, so that no single one keeps an agent out.

use std::{
    mem,
    time::{Duration, Instant},
};

use crate::caller::Who;

/// Failures in a row that open it: one may be a bad moment and two a coincidence.
pub(super) const FAILURES_TO_OPEN: usize = 3;
/// How long it stays open: as long as a process needs to be restarted, with a small model.
pub(super) const OPEN_FOR: Duration = Duration::from_secs(30);
/// Probes that have to succeed: one may have been lucky.
pub(super) const SUCCESSES_TO_CLOSE: u8 = 2;
/// How long the outcome of a probe is waited for: several times as long as a client needs to find an agent dead. Most report failures alone.
pub(super) const PROBE_FOR: Duration = Duration::from_secs(10);
/// How long one client's own failures, or its failed probe, keep it away: twice as long as the agent is closed to all, so that others have
/// their turn at the probe first.
pub(super) const DOUBT_FOR: Duration = Duration::from_secs(60);
/// Jobs that may begin between two failures of a row. Most clients report failures alone, so what began and was not complained of is what went
/// well: with more of that, a failure now and then is no row.
pub(super) const BEGUN_BETWEEN: u32 = 3;
/// Failures that lie further back than this are in no row: many clients report no success.
pub(super) const ROW_FOR: Duration = Duration::from_secs(5 * 60);

/// What went wrong at an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Refused,
    Unreachable,
    Broken,
    TimedOut,
}

impl Fault {
    fn words(self) -> &'static str {
        match self {
            Self::Refused => "it refused them with slots free",
            Self::Unreachable => "it could not be reached",
            Self::Broken => "its answers broke off",
            Self::TimedOut => "it said nothing in time",
        }
    }
}

/// The state that others see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Closed,
    Open,
    HalfOpen,
}

#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    since: Instant,
    /// Whom it is not shown to for a while.
    doubt: Option<Doubt>,
}

#[derive(Debug)]
enum State {
    /// Failures in a row, the newest last; at most [`FAILURES_TO_OPEN`].
    Closed {
        row: Vec<Failure>,
        /// Jobs that began since the last.
        begun: u32,
    },
    Open {
        fault: Fault,
    },
    HalfOpen {
        fault: Fault,
        successes: u8,
        probe: Option<Probe>,
    },
}

#[derive(Debug)]
struct Failure {
    who: Who,
    at: Instant,
}

#[derive(Debug)]
struct Probe {
    job_id: String,
    until: Instant,
    /// The agent has said that the job began.
    claimed: bool,
}

#[derive(Debug)]
struct Doubt {
    who: Who,
    until: Instant,
}

impl Breaker {
    pub(super) fn new(now: Instant) -> Self {
        Self { state: State::Closed { row: Vec::new(), begun: 0 }, since: now, doubt: None }
    }

    pub(super) fn phase(&self, now: Instant) -> Phase {
        match self.state {
            State::Closed { .. } => Phase::Closed,
            State::Open { .. } if now < self.since + OPEN_FOR => Phase::Open,
            State::Open { .. } | State::HalfOpen { .. } => Phase::HalfOpen,
        }
    }

    /// Why it is not closed, and since when.
    pub(super) fn reason(&self, now: Instant) -> Option<(String, Instant)> {
        let fault = match self.state {
            State::Closed { .. } => return None,
            State::Open { fault } | State::HalfOpen { fault, .. } => fault.words(),
        };
        let (what, since) = match self.phase(now) {
            Phase::Open => (format!("no requests for {} s", OPEN_FOR.as_secs()), self.since),
            _ => ("it is tried with one request at a time".to_owned(), self.half_open_since()),
        };
        Some((format!("clients' requests failed in a row ({fault}): {what}"), since))
    }

    fn half_open_since(&self) -> Instant {
        match self.state {
            State::Open { .. } => self.since + OPEN_FOR,
            _ => self.since,
        }
    }

    /// What time alone changes. To be called before anything is booked.
    pub(super) fn settle(&mut self, now: Instant) {
        if let State::Open { fault } = self.state
            && now >= self.since + OPEN_FOR
        {
            self.since += OPEN_FOR;
            self.state = State::HalfOpen { fault, successes: 0, probe: None };
        }
        let State::HalfOpen { probe, .. } = &mut self.state else { return };
        // Many a client reports no success. That the agent began its job, and nobody complained, is as good as a success; a client that never
        // went there says nothing of the agent.
        if probe.as_ref().is_some_and(|probe| now >= probe.until)
            && let Some(Probe { claimed: true, .. }) = probe.take()
        {
            self.probe_succeeded(now);
        }
    }

    /// Whether a request may be sent there, as far as clients' reports go.
    pub(super) fn admits(&self, who: Option<&Who>, now: Instant) -> bool {
        match &self.state {
            State::Closed { .. } => true,
            State::Open { .. } => self.phase(now) == Phase::HalfOpen && !self.doubts(who, now),
            State::HalfOpen { probe, .. } => probe.is_none() && !self.doubts(who, now),
        }
    }

    /// Whether this client is better sent elsewhere.
    pub(super) fn doubts(&self, who: Option<&Who>, now: Instant) -> bool {
        self.doubt.as_ref().is_some_and(|doubt| Some(&doubt.who) == who && now < doubt.until)
    }

    /// A slot was booked: while half open, this is the probe.
    pub(super) fn booked(&mut self, job_id: &str, now: Instant) {
        self.settle(now);
        if let State::HalfOpen { probe, .. } = &mut self.state {
            *probe = Some(Probe { job_id: job_id.to_owned(), until: now + PROBE_FOR, claimed: false });
        }
    }

    /// The agent says that the job began.
    pub(super) fn claimed(&mut self, job_id: &str) {
        match &mut self.state {
            State::Closed { begun, .. } => *begun = begun.saturating_add(1),
            State::HalfOpen { probe: Some(probe), .. } if probe.job_id == job_id => probe.claimed = true,
            State::Open { .. } | State::HalfOpen { .. } => {}
        }
    }

    /// The job will not come, or its client did not want it any more: that says nothing of the agent.
    pub(super) fn withdrawn(&mut self, job_id: &str) {
        if let State::HalfOpen { probe, .. } = &mut self.state {
            probe.take_if(|probe| probe.job_id == job_id);
        }
    }

    pub(super) fn succeeded(&mut self, job_id: &str, who: &Who, now: Instant) {
        self.settle(now);
        self.doubt.take_if(|doubt| doubt.who == *who);
        match &mut self.state {
            State::Closed { row, .. } => row.clear(),
            // An answer that began before it opened.
            State::Open { .. } => {}
            State::HalfOpen { probe, .. } => {
                if probe.take_if(|probe| probe.job_id == job_id).is_some() {
                    self.probe_succeeded(now);
                }
            }
        }
    }

    fn probe_succeeded(&mut self, now: Instant) {
        let State::HalfOpen { successes, .. } = &mut self.state else { return };
        *successes += 1;
        if *successes >= SUCCESSES_TO_CLOSE {
            *self = Self::new(now);
        }
    }

    /// `silent`: the agent has missed a heartbeat. Says whether that opened it.
    pub(super) fn failed(&mut self, job_id: &str, who: Who, fault: Fault, silent: bool, now: Instant) -> bool {
        self.settle(now);
        match &mut self.state {
            State::Closed { row, begun } => {
                if mem::take(begun) > BEGUN_BETWEEN {
                    row.clear();
                }
                row.retain(|failure| now.saturating_duration_since(failure.at) < ROW_FOR);
                row.push(Failure { who: who.clone(), at: now });
                if row.len() < FAILURES_TO_OPEN {
                    return false;
                }
                let several = row.iter().any(|failure| failure.who != who);
                if several || silent {
                    self.open(fault, now);
                    return true;
                }
                // One client's word: room for the next one's.
                row.remove(0);
                self.doubt = Some(Doubt { who, until: now + DOUBT_FOR });
                false
            }
            State::Open { .. } => false,
            State::HalfOpen { probe, .. } => {
                let was_probe = probe.take_if(|probe| probe.job_id == job_id).is_some();
                if was_probe {
                    self.doubt = Some(Doubt { who, until: now + DOUBT_FOR });
                    self.open(fault, now);
                }
                was_probe
            }
        }
    }

    /// Another process answers for the agent now: it is tried at once, and carefully.
    pub(super) fn restarted(&mut self, now: Instant) {
        self.doubt = None;
        match &mut self.state {
            State::Closed { row, .. } => row.clear(),
            State::Open { fault } | State::HalfOpen { fault, .. } => {
                self.state = State::HalfOpen { fault: *fault, successes: 0, probe: None };
                self.since = now;
            }
        }
    }

    fn open(&mut self, fault: Fault, now: Instant) {
        self.state = State::Open { fault };
        self.since = now;
    }
}

#[cfg(test)]
mod tests;
