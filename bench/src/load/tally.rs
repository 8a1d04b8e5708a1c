//! What the streams of one connection add to.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use serde::Serialize;

use crate::stats::Durations;

/// How late tokens were. All processes run on one machine, so its clock serves them all.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Lags {
    /// Against the schedule that the stream's first token set: what the reader feels. The timers of the agent are in it too.
    pub(super) lateness: Durations,
    /// From the engine's sending to the client's reading: the wire, and the wait for a CPU on both sides.
    pub(super) transit: Durations,
}

impl Lags {
    pub(super) fn new() -> Self {
        Self { lateness: Durations::new(), transit: Durations::new() }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.lateness.add(&other.lateness);
        self.transit.add(&other.transit);
    }
}

/// One connection's counts. One for each connection and not one for all: 50,000 tokens a second would queue for it.
pub(super) struct Tally {
    tokens: AtomicU64,
    measuring: AtomicBool,
    lags: Mutex<Lags>,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self { tokens: AtomicU64::new(0), measuring: AtomicBool::new(false), lags: Mutex::new(Lags::new()) }
    }

    /// A token came, this late against schedule and sending.
    pub(super) fn token(&self, lateness_ns: u64, transit_ns: u64) {
        self.tokens.fetch_add(1, Relaxed);
        if self.measuring.load(Relaxed) {
            let mut lags = self.lags.lock();
            lags.lateness.record_ns(lateness_ns);
            lags.transit.record_ns(transit_ns);
        }
    }

    /// Whether lags are recorded. Defaults to false.
    pub(super) fn measure(&self, measuring: bool) {
        self.measuring.store(measuring, Relaxed);
    }

    pub(super) fn tokens(&self) -> u64 {
        self.tokens.load(Relaxed)
    }

    pub(super) fn lags(&self) -> Lags {
        self.lags.lock().clone()
    }
}
