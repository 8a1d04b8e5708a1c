//! When what happens, pure: durations from the first stream's start.

use std::time::Duration;

use crate::args::LoadArgs;

/// The timetable of one wire.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    streams: u32,
    rate: f64,
    ramp: Duration,
    measured: Duration,
}

/// Between the last stream's start and the measurement: the starts are work of another kind.
const SETTLE: Duration = Duration::from_secs(1);
/// After the last stream's scheduled end. A wire that does not hold the rate would take ever longer; its streams are broken off.
const GRACE: Duration = Duration::from_secs(5);

impl Plan {
    pub(super) fn new(args: &LoadArgs) -> Self {
        Self {
            streams: args.streams,
            rate: args.rate,
            ramp: Duration::from_secs_f64(args.ramp),
            measured: Duration::from_secs_f64(args.seconds),
        }
    }

    /// When a stream starts.
    pub(super) fn start_of(&self, stream: u32) -> Duration {
        self.ramp * stream / self.streams
    }

    /// All streams run from here on …
    pub(super) fn window_start(&self) -> Duration {
        self.ramp + SETTLE
    }

    /// … to here.
    pub(super) fn window_end(&self) -> Duration {
        self.window_start() + self.measured
    }

    /// When the last stream has its last token, if all goes to schedule.
    pub(super) fn total(&self) -> Duration {
        self.ramp + self.window_end()
    }

    /// When streams that have not ended are broken off.
    pub(super) fn deadline(&self) -> Duration {
        self.total() + GRACE
    }

    /// So many that the stream that started first still runs at the end of the window.
    pub(super) fn tokens_per_stream(&self) -> u32 {
        (self.window_end().as_secs_f64() * self.rate).ceil() as u32 + 1
    }

    /// From the first token's moment to that of token `index`.
    pub(super) fn due_ns(&self, index: u32) -> u64 {
        (f64::from(index) / self.rate * 1e9) as u64
    }

    /// Of all streams together.
    pub(super) fn ideal_tokens_per_second(&self) -> f64 {
        f64::from(self.streams) * self.rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan { streams: 100, rate: 50.0, ramp: Duration::from_secs(2), measured: Duration::from_secs(10) }
    }

    #[test]
    fn every_stream_runs_throughout_the_window() {
        let plan = plan();
        let runs = Duration::from_nanos(plan.due_ns(plan.tokens_per_stream() - 1));
        for stream in 0..100 {
            assert!(plan.start_of(stream) < plan.window_start(), "{stream}");
            assert!(plan.start_of(stream) + runs >= plan.window_end(), "{stream}");
            assert!(plan.start_of(stream) + runs <= plan.total() + Duration::from_millis(20), "{stream}");
        }
    }

    #[test]
    fn tokens_are_due_at_the_rate() {
        assert_eq!(plan().due_ns(0), 0);
        assert_eq!(plan().due_ns(50), 1_000_000_000);
        assert_eq!(plan().ideal_tokens_per_second(), 5000.0);
    }
}
