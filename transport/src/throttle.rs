//! Log lines that strangers can cause: so many of each kind and no more.
//!
//! Whoever reaches a port can make it refuse something a million times a day. Were each of these worth a line, the lines would fill the disk.

use std::{
    mem,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Lines of one kind that may come at once: a whole fleet that registers, or that makes the same mistake.
const LINES_AT_ONCE: u32 = 50;
/// Once those are used up, one line in so long: 17,000 a day, which is a few megabytes.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Decides which lines of one kind are written. [`seldom!`](crate::seldom) makes one for each place where it stands.
#[derive(Debug)]
pub struct Throttle(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Lines that may be written at once.
    left: u32,
    /// From when on the next of them is earned. None before the first line.
    earning_since: Option<Instant>,
    left_out: u64,
}

impl Throttle {
    /// One that has let nothing pass yet.
    #[allow(clippy::new_without_default, reason = "a static wants a const")]
    pub const fn new() -> Self {
        Self(Mutex::new(State { left: LINES_AT_ONCE, earning_since: None, left_out: 0 }))
    }

    /// Whether a line may be written now. Then it gives how many were left out since the last one.
    pub fn pass(&self) -> Option<u64> {
        self.0.lock().pass(Instant::now())
    }
}

impl State {
    fn pass(&mut self, now: Instant) -> Option<u64> {
        let since = *self.earning_since.get_or_insert(now);
        let earned = now.saturating_duration_since(since).as_secs() / LINE_INTERVAL.as_secs();
        let missing = u64::from(LINES_AT_ONCE - self.left);
        if earned >= missing {
            self.left = LINES_AT_ONCE;
            self.earning_since = Some(now);
        } else {
            // Below LINES_AT_ONCE, and so within 32 bits.
            let earned = earned as u32;
            self.left += earned;
            self.earning_since = Some(since + LINE_INTERVAL * earned);
        }
        if self.left == 0 {
            self.left_out += 1;
            return None;
        }
        self.left -= 1;
        Some(mem::take(&mut self.left_out))
    }
}

/// A line of `tracing` that a stranger can cause, written as often as [`Throttle`] says:
/// `seldom!(warn, %addr, "plain text refused")`. Where lines before it were left out, it says how many.
#[macro_export]
macro_rules! seldom {
    ($level:ident, $($line:tt)+) => {{
        static THROTTLE: $crate::Throttle = $crate::Throttle::new();
        match THROTTLE.pass() {
            Some(0) => tracing::$level!($($line)+),
            Some(left_out) => tracing::$level!(left_out, $($line)+),
            None => {}
        }
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> State {
        State { left: LINES_AT_ONCE, earning_since: None, left_out: 0 }
    }

    #[test]
    fn a_flood_of_a_day_makes_a_line_every_five_seconds_and_all_are_counted() {
        let (mut state, begin) = (fresh(), Instant::now());
        let (mut lines, mut left_out) = (0_u32, 0);
        let steps = 86_400 * 10;
        for step in 0..steps {
            if let Some(before) = state.pass(begin + Duration::from_millis(100) * step) {
                lines += 1;
                left_out += before;
            }
        }
        let expected = LINES_AT_ONCE + (86_400 - 1) / LINE_INTERVAL.as_secs() as u32;
        assert!(lines.abs_diff(expected) <= 1, "{lines}");
        assert_eq!(u64::from(lines) + left_out + state.left_out, u64::from(steps));
    }

    #[test]
    fn a_fleet_that_registers_is_written_in_full_and_again_when_time_has_passed() {
        let (mut state, begin) = (fresh(), Instant::now());
        for _ in 0..LINES_AT_ONCE {
            assert_eq!(state.pass(begin), Some(0));
        }
        assert_eq!(state.pass(begin), None);
        assert_eq!(state.pass(begin + LINE_INTERVAL - Duration::from_millis(1)), None);
        assert_eq!(state.pass(begin + LINE_INTERVAL), Some(2), "the line says what was left out");
        let later = begin + LINE_INTERVAL * (LINES_AT_ONCE + 2);
        for _ in 0..LINES_AT_ONCE {
            assert_eq!(state.pass(later), Some(0));
        }
        assert_eq!(state.pass(later), None, "what is not used does not add up");
    }

    #[test]
    fn a_clock_that_goes_back_earns_nothing_and_breaks_nothing() {
        let (mut state, begin) = (fresh(), Instant::now() + LINE_INTERVAL);
        assert_eq!(state.pass(begin), Some(0));
        assert_eq!(state.pass(begin - LINE_INTERVAL), Some(0));
    }
}
