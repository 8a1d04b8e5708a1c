//! What may be used within a time, refilled steadily: the generic cell rate algorithm (ITU-T I.371), with `now` from outside.
//!
//! Of our own because what a generation costs is known when it has ended: a bucket has to be charged for more than it holds then, and the libraries'
//! ones refuse that.

use std::time::{Duration, Instant};

/// A full budget is one that was never used.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Budget {
    /// When it is full again.
    full_at: Option<Instant>,
}

impl Budget {
    /// Takes one of `limit` per `period`, or says how long until there is one.
    pub(super) fn take(&mut self, limit: u32, period: Duration, now: Instant) -> Result<(), Duration> {
        let one = period / limit.max(1);
        let missing = self.missing(now) + one;
        if missing > period {
            return Err(missing - period);
        }
        self.full_at = Some(now + missing);
        Ok(())
    }

    /// Whether there is anything left, or how long until there is.
    pub(super) fn any_left(&self, limit: u32, period: Duration, now: Instant) -> Result<(), Duration> {
        let missing = self.missing(now) + period / limit.max(1);
        if missing > period { Err(missing - period) } else { Ok(()) }
    }

    /// Takes `amount`, whether it is there or not.
    pub(super) fn charge(&mut self, amount: u64, limit: u32, period: Duration, now: Instant) {
        // What costs more than a day is no cost but a mistake of whoever reports it.
        const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
        let cost = period.as_secs_f64() * amount as f64 / f64::from(limit.max(1));
        let cost = Duration::try_from_secs_f64(cost).unwrap_or(LONGEST).min(LONGEST);
        self.full_at = Some(now + (self.missing(now) + cost).min(LONGEST));
    }

    /// What is used, as the time that refilling it takes.
    fn missing(&self, now: Instant) -> Duration {
        self.full_at.map_or(Duration::ZERO, |full_at| full_at.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(60);

    #[test]
    fn as_many_as_the_limit_come_at_once_and_then_one_by_one() {
        let (mut budget, now) = (Budget::default(), Instant::now());
        for _ in 0..6 {
            assert_eq!(budget.take(6, PERIOD, now), Ok(()));
        }
        assert_eq!(budget.take(6, PERIOD, now), Err(PERIOD / 6));
        assert_eq!(budget.take(6, PERIOD, now + PERIOD / 12), Err(PERIOD / 12));
        assert_eq!(budget.take(6, PERIOD, now + PERIOD / 6), Ok(()));
        assert!(budget.take(6, PERIOD, now + PERIOD / 6).is_err());
        let later = now + 10 * PERIOD;
        assert!((0..6).all(|_| budget.take(6, PERIOD, later).is_ok()), "a pause fills it");
        assert!(budget.take(6, PERIOD, later).is_err(), "and no further");
    }

    #[test]
    fn what_was_used_beyond_it_is_waited_for() {
        let (mut budget, now) = (Budget::default(), Instant::now());
        assert_eq!(budget.any_left(600, PERIOD, now), Ok(()));
        budget.charge(1200, 600, PERIOD, now);
        let tenth = PERIOD / 600;
        assert_eq!(budget.any_left(600, PERIOD, now), Err(PERIOD + tenth));
        assert!(budget.any_left(600, PERIOD, now + PERIOD).is_err());
        assert_eq!(budget.any_left(600, PERIOD, now + PERIOD + tenth), Ok(()));
    }

    #[test]
    fn nonsense_is_bounded() {
        let (mut budget, now) = (Budget::default(), Instant::now());
        budget.charge(u64::MAX, 1, PERIOD, now);
        budget.charge(u64::MAX, 1, PERIOD, now);
        assert!(budget.any_left(1, PERIOD, now + 2 * Duration::from_secs(24 * 60 * 60)).is_ok());
    }
}
