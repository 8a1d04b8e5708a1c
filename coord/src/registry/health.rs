//! How an agent is, in the contract's words, and why.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use titan_proto::MAX_CLOCK_SKEW;

use super::report::{Load, Profile};

/// How an agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Gets requests.
    Healthy,
    /// Its lease runs, but it gets no requests: its health stream broke, it is draining, or clients' requests there failed in a row. Or its
    /// engine fails: then it gets those for which no healthy agent has room.
    Degraded,
    /// It is tried again, with one request at a time: after clients' failures before others, after its engine was built anew as a degraded one.
    HalfOpen,
    /// Its lease ended.
    Offline,
}

impl Status {
    /// The contract's word.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::HalfOpen => "half_open",
            Self::Offline => "offline",
        }
    }
}

/// An agent as others may see it.
#[derive(Clone, Debug)]
pub(crate) struct AgentView {
    pub(crate) profile: Arc<Profile>,
    pub(crate) load: Load,
    pub(crate) status: Status,
    /// Why it is not healthy.
    pub(crate) trouble: Option<Trouble>,
    pub(super) last_heartbeat: Instant,
}

/// Why an agent is not healthy, and since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) reason: String,
    pub(super) since: Instant,
}

impl AgentView {
    /// The last heartbeat on the wall clock, given what that shows `now`.
    pub(crate) fn last_heartbeat_at(&self, now: Instant, wall_clock: SystemTime) -> SystemTime {
        at(self.last_heartbeat, now, wall_clock)
    }
}

impl Trouble {
    /// When it began on the wall clock, given what that shows `now`.
    pub(crate) fn since(&self, now: Instant, wall_clock: SystemTime) -> SystemTime {
        at(self.since, now, wall_clock)
    }
}

fn at(moment: Instant, now: Instant, wall_clock: SystemTime) -> SystemTime {
    wall_clock.checked_sub(now.saturating_duration_since(moment)).unwrap_or(wall_clock)
}

/// What is wrong with an agent's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClockFault {
    pub(super) reason: String,
    /// No session token is good for it.
    pub(super) hopeless: bool,
}

/// Whether an agent whose clock is `ahead_ms` ahead of the coordinator's (below 0: behind) can make anything of tokens that live so long.
pub(super) fn clock_fault(ahead_ms: i64, token_ttl: Duration) -> Option<ClockFault> {
    let apart = Duration::from_millis(ahead_ms.unsigned_abs());
    if apart <= MAX_CLOCK_SKEW {
        return None;
    }
    let seconds = apart.as_secs();
    let (way, effect, hopeless) = if ahead_ms < 0 {
        ("behind", "no session token is valid there yet", true)
    } else if apart >= token_ttl {
        ("ahead of", "every session token has expired there at once", true)
    } else {
        ("ahead of", "session tokens expire there too early", false)
    };
    let reason = format!("its clock is {seconds} s {way} the coordinator's: {effect}; set the clocks (NTP)");
    Some(ClockFault { reason, hopeless })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_clock_may_differ_as_far_as_tokens_tolerate() {
        const TTL: Duration = Duration::from_secs(300);
        let seconds = |seconds: i64| clock_fault(seconds * 1000, TTL);
        for near in [0, 1, -35, 35] {
            assert_eq!(seconds(near), None, "{near}");
        }
        for (ahead, hopeless, says) in [
            (-36, true, "36 s behind"),
            (36, false, "36 s ahead"),
            (299, false, "too early"),
            (300, true, "expired there at once"),
            (600, true, "600 s ahead"),
            (-600, true, "valid there yet"),
        ] {
            let fault = seconds(ahead).unwrap();
            assert!(fault.hopeless == hopeless && fault.reason.contains(says), "{fault:?}");
        }
        assert!(clock_fault(i64::MIN, TTL).is_some() && clock_fault(i64::MAX, TTL).is_some());
    }
}
