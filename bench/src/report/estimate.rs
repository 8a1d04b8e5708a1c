//! A median over repetitions, and how far it can be trusted.

use crate::stats::{Interval, median, median_interval};

/// Of the intervals in every table and plot.
pub(super) const CONFIDENCE: f64 = 0.95;

/// The median of repeated measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Estimate {
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) spread: Spread,
    /// Measurements.
    pub(super) n: usize,
}

/// What `low` and `high` are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spread {
    /// The true median lies between them with at least [`CONFIDENCE`].
    Interval,
    /// Too few measurements for that: the smallest and the largest.
    Range,
}

impl Estimate {
    /// `None` where nothing was measured.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        Self::with_confidence(values, CONFIDENCE)
    }

    pub(super) fn with_confidence(values: &[f64], confidence: f64) -> Option<Self> {
        let values: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
        let first = *values.first()?;
        let (Interval { low, high }, spread) = match median_interval(&values, confidence) {
            Some(interval) => (interval, Spread::Interval),
            None => {
                let low = values.iter().copied().fold(first, f64::min);
                let high = values.iter().copied().fold(first, f64::max);
                (Interval { low, high }, Spread::Range)
            }
        };
        Some(Self { median: median(&values), low, high, spread, n: values.len() })
    }

    /// The same in another unit; `factor` is not negative.
    pub(super) fn times(self, factor: f64) -> Self {
        Self { median: self.median * factor, low: self.low * factor, high: self.high * factor, ..self }
    }

    /// Its median is smaller, and the two intervals (or ranges) have nothing in common.
    pub(super) fn is_below(&self, other: &Self) -> bool {
        self.high < other.low
    }
}

impl Spread {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Interval => "95 %",
            Self::Range => "min-max",
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn six_measurements_have_an_interval_and_five_a_range() {
        let six = Estimate::of(&[6.0, 1.0, 2.0, 5.0, 3.0, 4.0]).unwrap();
        assert_eq!((six.median, six.low, six.high, six.spread, six.n), (3.5, 1.0, 6.0, Spread::Interval, 6));
        let five = Estimate::of(&[5.0, 1.0, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!((five.median, five.low, five.high, five.spread), (3.0, 1.0, 5.0, Spread::Range));
    }

    #[test]
    fn nothing_measured_is_nothing_estimated() {
        assert_eq!(Estimate::of(&[]), None);
        assert_eq!(Estimate::of(&[f64::NAN, f64::INFINITY]), None);
    }
}
