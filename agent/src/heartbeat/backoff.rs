//! The parts of the heartbeat that need neither socket nor clock: the round-trip time, and when to try again.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Round trips of which the smallest counts: the path is what is measured, not what the machines did meanwhile.
const WINDOW: usize = 8;
/// Updates waiting for their acknowledgement that are kept; more are in flight only when none comes back.
const MAX_IN_FLIGHT: usize = 64;

/// Measures the round-trip time from updates and their acknowledgements.
///
/// An update is known by the timestamp in it, which the acknowledgement echoes; the difference is taken between instants of the
/// monotonic clock, so a clock that is set meanwhile changes nothing.
#[derive(Debug, Default)]
pub(super) struct RoundTrip {
    in_flight: VecDeque<(i64, Instant)>,
    last: VecDeque<Duration>,
}

impl RoundTrip {
    pub(super) fn sent(&mut self, timestamp: i64, now: Instant) {
        if self.in_flight.len() == MAX_IN_FLIGHT {
            // The oldest stays: it tells how long the coordinator has been silent.
            self.in_flight.remove(1);
        }
        self.in_flight.push_back((timestamp, now));
    }

    /// An acknowledgement also stands for every earlier update.
    pub(super) fn acknowledged(&mut self, timestamp: i64, now: Instant) {
        let Some(position) = self.in_flight.iter().position(|(sent, _)| *sent == timestamp) else { return };
        if let Some((_, sent_at)) = self.in_flight.drain(..=position).next_back() {
            if self.last.len() == WINDOW {
                self.last.pop_front();
            }
            self.last.push_back(now.saturating_duration_since(sent_at));
        }
    }

    /// The smallest of the last round trips; `None` before the first.
    pub(super) fn smallest(&self) -> Option<Duration> {
        self.last.iter().min().copied()
    }

    pub(super) fn oldest_unanswered(&self) -> Option<Instant> {
        self.in_flight.front().map(|(_, sent_at)| *sent_at)
    }
}

/// First pause before another attempt: a coordinator that restarts is back in about a second.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause: an outage of any length is over for this agent at most so long after it is over.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Growing pauses, each drawn from its upper half, so that the agents of a cluster do not come back all at once.
#[derive(Debug)]
pub(super) struct Backoff {
    pause: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { pause: FIRST_PAUSE }
    }
}

impl Backoff {
    pub(super) fn next(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        pause.mul_f64(rand::random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn the_round_trip_is_the_smallest_of_the_last_few() {
        let (start, mut rtt) = (Instant::now(), RoundTrip::default());
        assert_eq!(rtt.smallest(), None);
        for (n, ms) in [30, 10, 20].into_iter().enumerate() {
            let sent = n as u64 * 1000;
            rtt.sent(n as i64, at(start, sent));
            rtt.acknowledged(n as i64, at(start, sent + ms));
        }
        assert_eq!(rtt.smallest(), Some(Duration::from_millis(10)));
        for n in 10..10 + WINDOW as u64 {
            rtt.sent(n as i64, at(start, n * 1000));
            rtt.acknowledged(n as i64, at(start, n * 1000 + 50));
        }
        assert_eq!(rtt.smallest(), Some(Duration::from_millis(50)), "a longer way is noticed");
    }

    #[test]
    fn an_acknowledgement_stands_for_the_updates_before_it() {
        let (start, mut rtt) = (Instant::now(), RoundTrip::default());
        rtt.sent(1, at(start, 0));
        rtt.sent(2, at(start, 5));
        rtt.acknowledged(2, at(start, 15));
        assert_eq!((rtt.smallest(), rtt.oldest_unanswered()), (Some(Duration::from_millis(10)), None));
        rtt.acknowledged(1, at(start, 99));
        rtt.acknowledged(7, at(start, 99));
        assert_eq!(rtt.smallest(), Some(Duration::from_millis(10)), "late and unknown ones change nothing");
    }

    #[test]
    fn silence_is_counted_from_the_oldest_update_and_memory_is_bounded() {
        let (start, mut rtt) = (Instant::now(), RoundTrip::default());
        for n in 0..1000 {
            rtt.sent(n, at(start, n as u64));
        }
        assert_eq!((rtt.oldest_unanswered(), rtt.in_flight.len()), (Some(start), MAX_IN_FLIGHT));
    }

    #[test]
    fn pauses_grow_to_a_bound_and_are_never_zero() {
        let mut backoff = Backoff::default();
        for _ in 0..100 {
            let longest = backoff.pause;
            let pause = backoff.next();
            assert!(pause >= longest / 2 && pause <= longest && longest <= LONGEST_PAUSE);
        }
        assert_eq!(backoff.pause, LONGEST_PAUSE);
    }
}
