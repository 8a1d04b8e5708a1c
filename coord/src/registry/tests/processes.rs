//! Two processes under one id.

use super::*;

fn process(instance: &str) -> Profile {
    Profile { instance: instance.into(), ..profile("a0", 4, &["m"]) }
}

fn report(instance: &str) -> Report<'_> {
    Report { instance, ..Report::default() }
}

#[test]
fn the_newer_process_wins_however_often_the_older_one_comes_back() {
    let now = Instant::now();
    let mut registry = registry();
    registry.register(process("old"), Some(StreamId(1)), now).unwrap();
    registry.register(process("new"), Some(StreamId(2)), now).unwrap();
    // Its stream, and the streams that it opens afterwards.
    let told = registry.heartbeat("a0", StreamId(1), IDLE, report("old"), now).unwrap_err();
    assert!(matches!(&told, HeartbeatError::OtherProcess { .. }) && told.to_string().contains("AGENT_ID"), "{told}");
    for stream in [Some(StreamId(3)), None] {
        let refused = registry.register(process("old"), stream, now);
        assert_eq!(refused, Err(RegisterError::OtherProcess { id: "a0".into() }));
    }
    registry.heartbeat("a0", StreamId(2), IDLE, report("new"), now).unwrap();
    assert_eq!(status(&registry, "a0", now), Some(Status::Healthy));
    registry.register(process("newest"), Some(StreamId(4)), now).unwrap();
    for replaced in ["old", "new"] {
        assert!(registry.register(process(replaced), Some(StreamId(5)), now).is_err(), "{replaced}");
    }
}

#[test]
fn a_process_may_open_as_many_streams_as_it_likes() {
    let now = Instant::now();
    let mut registry = registry();
    for stream in [1, 2, 3] {
        registry.register(process("only"), Some(StreamId(stream)), now).unwrap();
        registry.heartbeat("a0", StreamId(stream), IDLE, report("only"), now).unwrap();
    }
    let late = registry.heartbeat("a0", StreamId(1), IDLE, report("only"), now);
    assert!(
        matches!(late, Err(HeartbeatError::Replaced { .. })),
        "a stream that is over, and no other process: {late:?}"
    );
}

#[test]
fn the_farewell_of_the_older_one_is_not_that_of_the_newer() {
    let now = Instant::now();
    let mut registry = registry();
    registry.register(process("old"), Some(StreamId(1)), now).unwrap();
    registry.register(process("new"), Some(StreamId(2)), now).unwrap();
    assert!(registry.other_process("a0", "old"));
    assert!(!registry.other_process("a0", "new") && !registry.other_process("nobody", "old"));
    assert!(!registry.other_process("a0", ""), "an agent of old says nothing of itself, and is believed");
}

#[test]
fn agents_of_old_that_tell_nothing_are_known_by_their_streams() {
    let now = Instant::now();
    let mut registry = registry();
    registry.register(process(""), Some(StreamId(1)), now).unwrap();
    registry.register(process(""), Some(StreamId(2)), now).unwrap();
    let late = registry.heartbeat("a0", StreamId(1), IDLE, report(""), now);
    assert!(matches!(late, Err(HeartbeatError::Replaced { .. })));
}

#[test]
fn what_is_remembered_of_replaced_processes_is_bounded() {
    let now = Instant::now();
    let mut registry = registry();
    for process_number in 0..1000 {
        registry.register(process(&process_number.to_string()), None, now).unwrap();
    }
    assert!(registry.register(process("998"), None, now).is_err());
    assert!(registry.register(process("0"), None, now).is_ok(), "long forgotten");
}

#[test]
fn a_new_process_of_an_agent_that_clients_could_not_reach_is_tried_at_once() {
    let now = Instant::now();
    let mut registry = registry();
    registry.register(process("old"), Some(StreamId(1)), now).unwrap();
    registry.heartbeat("a0", StreamId(1), IDLE, report("old"), now).unwrap();
    for client in ["a", "b", "c"] {
        let job = ReportedJob { job_id: "j", who: &Who::Name(client.into()), age: Duration::ZERO };
        registry.met("a0", &job, Met::Fault(Fault::Unreachable), now);
    }
    assert_eq!(registry.book("m", "j", now).unwrap_err(), BookError::NoAgents);
    registry.register(process("new"), Some(StreamId(2)), now).unwrap();
    registry.heartbeat("a0", StreamId(2), IDLE, report("new"), now).unwrap();
    assert_eq!(status(&registry, "a0", now), Some(Status::HalfOpen));
    registry.book("m", "probe", now).unwrap();
    assert_eq!(registry.book("m", "j", now).unwrap_err(), BookError::NoCapacity);
}
