//! What is said of models while agents are expected back.

use super::*;

#[test]
fn what_nobody_serves_may_still_come_until_all_are_back_or_their_time_is_over() {
    let start = Instant::now();
    let mut registry = registry();
    registry.expect(["a".into(), "b".into()], start + LEASE);
    assert_eq!(registry.book("m", "j", start).unwrap_err(), BookError::Starting);

    registry.register(profile("a", 1, &["m"]), Some(STREAM), start).unwrap();
    registry.heartbeat("a", STREAM, IDLE, Report::default(), start).unwrap();
    assert!(registry.book("m", "j1", start).is_ok(), "who is back is sent requests");
    assert_eq!(registry.book("m", "j2", start).unwrap_err(), BookError::NoCapacity);
    assert_eq!(registry.book("n", "j2", start).unwrap_err(), BookError::Starting, "b may serve it");
    let digest = Wanted { model: "m", model_digest: "1", ..Wanted::default() };
    assert_eq!(registry.book_for(&digest, "j2", start).unwrap_err(), BookError::Starting);

    let mut overdue = registry;
    let end = start + LEASE;
    overdue.heartbeat("a", STREAM, IDLE, Report::default(), end - Duration::from_secs(1)).unwrap();
    assert!(matches!(overdue.book("n", "j2", end), Err(BookError::ModelNotFound { .. })));
    assert_eq!(overdue.expire(end).missing, ["b".into()]);
    assert!(overdue.expire(end).missing.is_empty(), "said once");
    assert_eq!(overdue.members(end), ["a".into()].into());
}

#[test]
fn when_all_are_back_nothing_is_waited_for() {
    let now = Instant::now();
    let mut registry = registry();
    registry.expect(["a".into()], now + LEASE);
    assert_eq!(registry.members(now), ["a".into()].into(), "another restart waits for it too");
    registry.register(profile("a", 1, &["m"]), None, now).unwrap();
    assert!(!registry.starting(now));
    assert!(matches!(registry.book("n", "j", now), Err(BookError::ModelNotFound { .. })));
}

#[test]
fn a_first_start_expects_nobody() {
    let now = Instant::now();
    let mut registry = registry();
    registry.expect([], now + LEASE);
    assert_eq!(registry.book("m", "j", now).unwrap_err(), BookError::NoAgents);
}

#[test]
fn whoever_comes_or_goes_changes_the_membership() {
    let now = Instant::now();
    let mut registry = registry();
    let mut last = registry.membership();
    let mut changed =
        |registry: &Registry| std::mem::replace(&mut last, registry.membership()) != registry.membership();
    registry.register(profile("a", 1, &["m"]), Some(STREAM), now).unwrap();
    assert!(changed(&registry));
    registry.heartbeat("a", STREAM, IDLE, Report::default(), now).unwrap();
    assert!(!changed(&registry), "it was there");
    registry.expire(now + LEASE);
    assert!(changed(&registry));
    registry.heartbeat("a", STREAM, IDLE, Report::default(), now + LEASE).unwrap();
    assert!(changed(&registry), "it is back");
    registry.deregister("a", now + LEASE);
    assert!(changed(&registry));
    assert!(registry.members(now + LEASE).is_empty());
}
