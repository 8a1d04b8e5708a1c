//! Agents whose clocks differ from the coordinator's.

use super::*;

fn ahead(seconds: i64) -> Report<'static> {
    Report { clock_ahead_ms: Some(seconds * 1000), ..Report::default() }
}

fn reason(registry: &Registry, now: Instant) -> Option<String> {
    registry.agents(now).into_iter().find(|view| &*view.profile.id == "a0")?.trouble.map(|trouble| trouble.reason)
}

#[test]
fn an_agent_that_refuses_every_token_gets_no_requests_until_its_clock_is_right() {
    let now = Instant::now();
    for seconds in [-36, -600, 600] {
        let mut registry = cluster(&[4], now);
        registry.heartbeat("a0", STREAM, IDLE, ahead(seconds), now).unwrap();
        assert_eq!(status(&registry, "a0", now), Some(Status::Degraded));
        let reason = reason(&registry, now).unwrap();
        assert!(reason.contains(&format!("clock is {} s", seconds.abs())), "{reason}");
        assert_eq!(registry.book("m", "j", now).unwrap_err(), BookError::NoAgents);
        registry.heartbeat("a0", STREAM, IDLE, ahead(-1), now).unwrap();
        assert_eq!((status(&registry, "a0", now), self::reason(&registry, now)), (Some(Status::Healthy), None));
        assert!(registry.book("m", "j", now).is_ok());
    }
}

#[test]
fn an_agent_that_cuts_tokens_short_gets_what_nobody_else_has_room_for() {
    let now = Instant::now();
    let mut registry = cluster(&[4, 1], now);
    registry.heartbeat("a0", STREAM, IDLE, ahead(60), now).unwrap();
    assert_eq!(status(&registry, "a0", now), Some(Status::Degraded));
    for (job, id) in [("j1", "a1"), ("j2", "a0")] {
        assert_eq!(&*registry.book("m", job, now).unwrap().profile.id, id);
    }
}

#[test]
fn an_agent_that_does_not_tell_is_taken_at_its_word() {
    let now = Instant::now();
    let mut registry = cluster(&[4], now);
    registry.heartbeat("a0", STREAM, IDLE, Report { clock_ahead_ms: None, ..Report::default() }, now).unwrap();
    assert_eq!(status(&registry, "a0", now), Some(Status::Healthy));
}
