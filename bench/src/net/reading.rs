//! What a reader saw of one stream, and what that means: pure.

use std::time::Duration;

use super::record::Delivery;
use crate::stats::Durations;

/// Texts as they were read, in the order of reading.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reading {
    tokens: Vec<Token>,
    broken: bool,
}

#[derive(Clone, Copy, Debug)]
struct Token {
    index: u32,
    /// In nanoseconds since 1970, by the clock that all hosts share.
    sent_ns: u64,
    read_ns: u64,
}

impl Reading {
    /// A token was read.
    pub(crate) fn push(&mut self, index: u32, sent_ns: u64, read_ns: u64) {
        self.tokens.push(Token { index, sent_ns, read_ns });
    }

    /// The stream ended before its last token, with an error: what had not come was not lost without a word.
    pub(crate) fn broke(&mut self) {
        self.broken = true;
    }

    /// From `moment_ns` to the reading of the first token that was sent after it.
    pub(crate) fn recovery_after(&self, moment_ns: u64) -> Option<Duration> {
        let token = self.tokens.iter().find(|token| token.sent_ns > moment_ns)?;
        Some(Duration::from_nanos(token.read_ns.saturating_sub(moment_ns)))
    }
}

/// What `readings` of streams that had `expected` tokens each, one every `interval`, say together.
pub(crate) fn delivery(readings: &[Reading], expected: u32, interval: Duration, one_way: Duration) -> Delivery {
    let mut delivery = Delivery {
        gaps: Durations::new(),
        lateness: Durations::new(),
        stall_ratio: 0.0,
        expected: u64::from(expected) * readings.len() as u64,
        received: 0,
        lost: 0,
        duplicated: 0,
    };
    let mut reading_ns = 0;
    let mut stalled_ns = 0;
    for Reading { tokens, broken } in readings {
        delivery.received += tokens.len() as u64;
        let end = if *broken { tokens.iter().map(|token| token.index + 1).max().unwrap_or(0) } else { expected };
        let (lost, duplicated) = faults(tokens, end.min(expected));
        delivery.lost += lost;
        delivery.duplicated += duplicated;
        for (before, after) in tokens.iter().zip(tokens.iter().skip(1)) {
            delivery.gaps.record_ns(after.read_ns.saturating_sub(before.read_ns));
        }
        if let Some(first) = tokens.first() {
            for token in tokens {
                let due = first.sent_ns + nanos(interval) * u64::from(token.index) + nanos(one_way);
                delivery.lateness.record_ns(token.read_ns.saturating_sub(due));
            }
        }
        let (stalled, whole) = stalls(tokens, nanos(interval));
        stalled_ns += stalled;
        reading_ns += whole;
    }
    delivery.stall_ratio = if reading_ns == 0 { 0.0 } else { stalled_ns as f64 / reading_ns as f64 };
    delivery
}

/// How many indices below `expected` never came, and how many came again or out of their order.
fn faults(tokens: &[Token], expected: u32) -> (u64, u64) {
    let mut seen = vec![false; expected as usize];
    let mut duplicated = 0;
    let mut next = 0;
    for token in tokens {
        match seen.get_mut(token.index as usize) {
            Some(seen) if !*seen && token.index >= next => {
                *seen = true;
                next = token.index + 1;
            }
            _ => duplicated += 1,
        }
    }
    (seen.iter().filter(|seen| !**seen).count() as u64, duplicated)
}

/// How long a reader waits who shows the first token when it is there and each further one an interval after the one before, or
/// when it is there if that is later; and how long it reads in all.
fn stalls(tokens: &[Token], interval_ns: u64) -> (u64, u64) {
    let Some(first) = tokens.first() else { return (0, 0) };
    let (mut shown, mut stalled) = (first.read_ns, 0);
    for token in tokens.iter().skip(1) {
        let due = shown + interval_ns;
        stalled += token.read_ns.saturating_sub(due);
        shown = due.max(token.read_ns);
    }
    (stalled, shown - first.read_ns)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const INTERVAL: Duration = Duration::from_millis(20);
    const ONE_WAY: Duration = Duration::from_millis(50);

    /// Tokens of an undisturbed stream, with so much lateness each.
    fn late(lateness_ms: &[u64]) -> Reading {
        let mut reading = Reading::default();
        for (index, late) in (0u32..).zip(lateness_ms) {
            let sent = 1_000 * MS + u64::from(index) * 20 * MS;
            reading.push(index, sent, sent + (50 + late) * MS);
        }
        reading
    }

    fn of(reading: Reading, expected: u32) -> Delivery {
        delivery(&[reading], expected, INTERVAL, ONE_WAY)
    }

    fn near(ns: u64, ms: f64) -> bool {
        (ns as f64 / 1e6 - ms).abs() < 0.01 * ms.max(1.0)
    }

    #[test]
    fn an_undisturbed_stream_is_never_late_and_never_stalls() {
        let delivery = of(late(&[0; 100]), 100);
        assert!(near(delivery.gaps.quantile_ns(0.5), 20.0) && near(delivery.gaps.max_ns(), 20.0));
        assert_eq!(delivery.gaps.count(), 99);
        assert_eq!((delivery.stall_ratio, delivery.lost, delivery.duplicated), (0.0, 0, 0));
        assert!(delivery.lateness.max_ns() <= 1_000, "the histogram's finest");
    }

    #[test]
    fn a_late_token_is_a_gap_a_lateness_and_a_stall() {
        // Token 2 comes 100 ms late, and with it 3 to 6 whose time has passed.
        let delivery = of(late(&[0, 0, 100, 80, 60, 40, 20, 0, 0, 0, 0]), 11);
        assert!(near(delivery.gaps.max_ns(), 120.0));
        assert!(near(delivery.lateness.max_ns(), 100.0));
        // 100 ms of waiting; the reader is then 100 ms behind and shows the rest at its pace.
        assert!((delivery.stall_ratio - 100.0 / 300.0).abs() < 1e-9, "{}", delivery.stall_ratio);
    }

    #[test]
    fn a_late_first_token_makes_all_others_no_less_late() {
        let delivery = of(late(&[60, 40, 20, 0]), 4);
        assert!(near(delivery.lateness.max_ns(), 60.0));
        assert_eq!(delivery.stall_ratio, 0.0, "the reader had nothing before");
    }

    #[test]
    fn what_is_missing_or_comes_again_is_counted() {
        let mut reading = late(&[0, 0, 0]);
        reading.push(1, 0, 0);
        let delivery = of(reading, 5);
        assert_eq!((delivery.expected, delivery.received, delivery.lost, delivery.duplicated), (5, 4, 2, 1));
    }

    #[test]
    fn a_broken_stream_lost_only_what_it_skipped() {
        let mut reading = late(&[0, 0]);
        reading.push(3, 0, 0);
        reading.broke();
        assert_eq!(of(reading, 10).lost, 1);
    }

    #[test]
    fn an_empty_stream_lost_everything() {
        let delivery = of(Reading::default(), 3);
        assert_eq!((delivery.lost, delivery.stall_ratio), (3, 0.0));
    }

    #[test]
    fn recovery_ends_with_a_token_sent_after_the_moment() {
        let reading = late(&[0, 0, 300, 280]);
        // Just after token 1 was sent.
        assert_eq!(reading.recovery_after(1_021 * MS), Some(Duration::from_millis(19 + 50 + 300)));
        assert_eq!(reading.recovery_after(2_000 * MS), None);
    }
}
