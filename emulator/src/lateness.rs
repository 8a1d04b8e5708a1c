//! How late the emulator gives packets out.

use std::time::Duration;

use hdrhistogram::Histogram;

/// How late packets were given out, beyond the delay asked for: all zero where there were none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lateness {
    /// Half of them were at most so late.
    pub p50: Duration,
    /// 99 of 100 were at most so late.
    pub p99: Duration,
    /// None was later.
    pub max: Duration,
}

/// Gathers them.
#[derive(Debug)]
pub(super) struct Lates(Histogram<u64>);

/// Shorter ones are told apart less finely: no timer is better than that.
const FINEST_NS: u64 = 1_000;
/// Longer ones count as this long: no path here delays as much.
const LONGEST_NS: u64 = 60_000_000_000;
const DIGITS: u8 = 2;

impl Lates {
    pub(super) fn new() -> Self {
        // The bounds are constants, and every test makes one: it cannot fail.
        Self(Histogram::new_with_bounds(FINEST_NS, LONGEST_NS, DIGITS).expect("valid bounds"))
    }

    pub(super) fn record(&mut self, late: Duration) {
        self.0.saturating_record(late.as_nanos().try_into().unwrap_or(u64::MAX));
    }

    /// Of all since this was asked last.
    pub(super) fn take(&mut self) -> Lateness {
        let quantile = |share| Duration::from_nanos(self.0.value_at_quantile(share));
        let taken = Lateness { p50: quantile(0.5), p99: quantile(0.99), max: quantile(1.0) };
        self.0.reset();
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_what_came_since_they_were_asked_for_last() {
        let mut lates = Lates::new();
        assert_eq!(lates.take(), Lateness::default());
        (1..=1000).for_each(|us| lates.record(Duration::from_micros(us * 100)));
        let near = |time: Duration, ms: f64| (time.as_secs_f64() * 1e3 / ms - 1.0).abs() < 0.02;
        let Lateness { p50, p99, max } = lates.take();
        assert!(near(p50, 50.0) && near(p99, 99.0) && near(max, 100.0), "{p50:?} {p99:?} {max:?}");
        lates.record(Duration::MAX);
        assert!(lates.take().p50 >= Duration::from_nanos(LONGEST_NS));
        assert_eq!(lates.take(), Lateness::default());
    }
}
