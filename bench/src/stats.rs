//! Statistics, pure: histograms of durations, medians and what can be said about them.

use hdrhistogram::Histogram;
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser::SerializeStruct as _};

/// Durations in nanoseconds, to three digits.
#[derive(Clone, Debug)]
pub(crate) struct Durations(Histogram<u64>);

/// Shorter ones are told apart less finely: no clock or timer here is better than that.
const FINEST_NS: u64 = 1_000;
/// Longer ones count as this long.
const LONGEST_NS: u64 = 600_000_000_000;
const DIGITS: u8 = 3;

impl Durations {
    pub(crate) fn new() -> Self {
        // The bounds are constants, and every test makes one: it cannot fail.
        Self(Histogram::new_with_bounds(FINEST_NS, LONGEST_NS, DIGITS).expect("valid bounds"))
    }

    pub(crate) fn record_ns(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        // Both have the same bounds.
        let _ = self.0.add(&other.0);
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The value that this share (0 to 1) of all durations does not exceed; 0 where there are none.
    pub(crate) fn quantile_ns(&self, share: f64) -> u64 {
        self.0.value_at_quantile(share)
    }

    pub(crate) fn max_ns(&self) -> u64 {
        self.0.max()
    }

    /// Every value that occurred, in order, and how often.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter_recorded().map(|bucket| (bucket.value_iterated_to(), bucket.count_at_value()))
    }
}

impl Serialize for Durations {
    /// The usual quantiles for people, and every bucket as `[value in ns, count]` for whoever computes further.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Durations", 7)?;
        out.serialize_field("count", &self.count())?;
        out.serialize_field("p50_ns", &self.quantile_ns(0.5))?;
        out.serialize_field("p95_ns", &self.quantile_ns(0.95))?;
        out.serialize_field("p99_ns", &self.quantile_ns(0.99))?;
        out.serialize_field("p999_ns", &self.quantile_ns(0.999))?;
        out.serialize_field("max_ns", &self.max_ns())?;
        out.serialize_field("buckets", &self.buckets().collect::<Vec<_>>())?;
        out.end()
    }
}

impl<'de> Deserialize<'de> for Durations {
    /// From the buckets; the quantiles follow from them.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Stored {
            buckets: Vec<(u64, u64)>,
        }
        let mut durations = Self::new();
        for (ns, count) in Stored::deserialize(deserializer)?.buckets {
            durations.0.saturating_record_n(ns, count);
        }
        Ok(durations)
    }
}

/// The middle value, or the mean of the two middle ones; NaN where there is none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    match (sorted.get(sorted.len().saturating_sub(1) / 2), sorted.get(sorted.len() / 2)) {
        (Some(low), Some(high)) => (low + high) / 2.0,
        _ => f64::NAN,
    }
}

/// Where the true value lies, with the confidence asked for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Interval {
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// An interval that holds the true median with at least this confidence, from order statistics: whatever the distribution, each
/// value lies above the median with probability one half. `None` where there are too few values (below six for 0.95).
pub(crate) fn median_interval(values: &[f64], confidence: f64) -> Option<Interval> {
    let sorted = sorted(values);
    let count = sorted.len();
    let allowed = (1.0 - confidence) / 2.0;
    // The probability that at most `rank` of `count` fair coins fall on one side.
    let mut outside = 0.0;
    let mut ways = 0.5_f64.powi(i32::try_from(count).ok()?);
    let mut rank = None;
    for tried in 0..count / 2 {
        outside += ways;
        if outside > allowed {
            break;
        }
        rank = Some(tried);
        ways *= (count - tried) as f64 / (tried + 1) as f64;
    }
    let rank = rank?;
    Some(Interval { low: *sorted.get(rank)?, high: *sorted.get(count - 1 - rank)? })
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[7.0]), 7.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn the_interval_of_the_median_has_the_ranks_of_the_tables() {
        let values = |n: u32| (1..=n).rev().map(f64::from).collect::<Vec<_>>();
        let interval = |n| median_interval(&values(n), 0.95).map(|interval| (interval.low, interval.high));
        // Conover, Practical Nonparametric Statistics: two-sided sign test.
        assert_eq!(interval(5), None);
        assert_eq!(interval(6), Some((1.0, 6.0)));
        assert_eq!(interval(9), Some((2.0, 8.0)));
        assert_eq!(interval(15), Some((4.0, 12.0)));
        assert_eq!(interval(18), Some((5.0, 14.0)));
        assert_eq!(interval(0), None);
    }

    #[test]
    fn the_interval_holds_the_true_median_as_often_as_it_promises() {
        // A linear congruential generator: the test needs many values, not good ones.
        let mut state = 1_u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64 / (1_u64 << 53) as f64
        };
        let held = (0..2000).filter(|_| {
            let sample: Vec<f64> = (0..18).map(|_| uniform().powi(3)).collect();
            let interval = median_interval(&sample, 0.95).unwrap();
            (interval.low..=interval.high).contains(&0.125)
        });
        let share = held.count() as f64 / 2000.0;
        assert!(share > 0.94, "{share}");
    }

    #[test]
    fn durations_are_kept_to_three_digits() {
        let mut durations = Durations::new();
        for ms in 1..=1000_u64 {
            durations.record_ns(ms * 1_000_000);
        }
        let near = |ns: u64, ms: f64| (ns as f64 / 1e6 / ms - 1.0).abs() < 0.002;
        assert!(near(durations.quantile_ns(0.5), 500.0));
        assert!(near(durations.quantile_ns(0.99), 990.0));
        assert!(near(durations.max_ns(), 1000.0));
        let mut both = Durations::new();
        both.add(&durations);
        both.add(&durations);
        assert_eq!(both.count(), 2000);
    }

    #[test]
    fn what_is_out_of_range_counts_as_the_bound() {
        let mut durations = Durations::new();
        durations.record_ns(0);
        durations.record_ns(u64::MAX);
        assert_eq!(durations.count(), 2);
        assert!(durations.max_ns() >= LONGEST_NS);
    }

    #[test]
    fn stored_durations_hold_every_sample() {
        let mut durations = Durations::new();
        [5_000, 5_000, 9_000_000].into_iter().for_each(|ns| durations.record_ns(ns));
        let json = serde_json::to_value(&durations).unwrap();
        let buckets = json["buckets"].as_array().unwrap();
        assert_eq!(buckets.iter().map(|bucket| bucket[1].as_u64().unwrap()).sum::<u64>(), 3);
        assert_eq!(json["count"], 3);
        let read: Durations = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), json);
    }
}
