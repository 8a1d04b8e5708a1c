//! What clients met, where it meets leases, bookings and heartbeats.

use super::*;

fn who(name: &str) -> Who {
    Who::Name(name.into())
}

/// One that was routed just now.
fn job<'a>(job_id: &'a str, who: &'a Who) -> ReportedJob<'a> {
    ReportedJob { job_id, who, age: Duration::ZERO }
}

/// Clients report that they could not reach `a0`; says whether the last of them closed it to all.
fn unreachable(registry: &mut Registry, clients: &[&str], now: Instant) -> bool {
    let meet = |client: &&str| registry.met("a0", &job("job", &who(client)), Met::Fault(Fault::Unreachable), now);
    clients.iter().map(meet).last().unwrap()
}

#[test]
fn an_agent_that_clients_cannot_reach_is_no_last_resort_and_comes_back_by_a_probe() {
    let start = Instant::now();
    let mut registry = cluster(&[9, 1], start);
    assert!(unreachable(&mut registry, &["a", "b", "a"], start));
    assert_eq!(status(&registry, "a0", start), Some(Status::Degraded));
    assert_eq!(registry.models(start), [("m".into(), 1)]);
    assert_eq!(&*registry.book("m", "j1", start).unwrap().profile.id, "a1");
    assert_eq!(registry.book("m", "j2", start).unwrap_err(), BookError::NoCapacity);

    let later = start + Duration::from_secs(30);
    for (id, stream) in [("a0", STREAM), ("a1", STREAM)] {
        registry.heartbeat(id, stream, IDLE, Report::default(), later - Duration::from_secs(1)).unwrap();
    }
    assert_eq!(status(&registry, "a0", later), Some(Status::HalfOpen));
    for probe in ["p1", "p2"] {
        registry.book("m", "other", later).unwrap();
        registry.book("m", probe, later).unwrap_or_else(|error| panic!("{probe}: {error:?}"));
        assert_eq!(registry.book("m", "j3", later).unwrap_err(), BookError::NoCapacity, "one at a time");
        let (probing, other) = if booked_at(&registry, "a0", probe) { (probe, "other") } else { ("other", probe) };
        registry.met("a0", &job(probing, &who("c")), Met::Answer, later);
        registry.release("a0", probing, later);
        registry.release("a1", other, later);
    }
    assert_eq!(status(&registry, "a0", later), Some(Status::Healthy));
    for job in 0..10 {
        registry.book("m", &job.to_string(), later).unwrap();
    }
}

fn booked_at(registry: &Registry, id: &str, job_id: &str) -> bool {
    registry.slots[registry.ids[id]].as_ref().unwrap().is_booked(job_id)
}

#[test]
fn one_client_is_believed_where_heartbeats_are_missing_too() {
    let start = Instant::now();
    let mut registry = cluster(&[4], start);
    let punctual = start + LEASE / 2;
    assert!(!unreachable(&mut registry, &["a"; 9], punctual));
    assert_eq!(status(&registry, "a0", punctual), Some(Status::Healthy));
    let silent = punctual + Duration::from_secs(1);
    assert!(unreachable(&mut registry, &["a"], silent));
    assert_eq!(status(&registry, "a0", silent), Some(Status::Degraded));
    // Its lease goes on, and ends as it would have.
    assert_eq!(status(&registry, "a0", start + LEASE), Some(Status::Offline));
}

#[test]
fn a_refusal_counts_where_there_was_room() {
    let now = Instant::now();
    let mut registry = cluster(&[2], now);
    let refuse =
        |registry: &mut Registry, client| registry.met("a0", &job("j", &who(client)), Met::Fault(Fault::Refused), now);
    registry.heartbeat("a0", STREAM, Load { running_jobs: 2, ..IDLE }, Report::default(), now).unwrap();
    assert!(!["a", "b", "c", "d"].into_iter().any(|client| refuse(&mut registry, client)), "it is full");
    registry.heartbeat("a0", STREAM, Load { running_jobs: 1, ..IDLE }, Report::default(), now).unwrap();
    let refused = ["a", "b", "c"].into_iter().any(|client| {
        // The slot that it refuses is booked.
        registry.book("m", "j", now).unwrap();
        refuse(&mut registry, client)
    });
    assert!(refused);
}

#[test]
fn who_has_met_failures_alone_is_sent_elsewhere_while_there_is_room() {
    let now = Instant::now();
    let mut registry = cluster(&[4, 1], now);
    unreachable(&mut registry, &["a"; 3], now);
    let (a, b) = (who("a"), who("b"));
    let wanted = |who| Wanted { model: "m", who: Some(who), ..Wanted::default() };
    assert_eq!(&*registry.book_for(&wanted(&a), "j1", now).unwrap().profile.id, "a1");
    assert_eq!(&*registry.book_for(&wanted(&a), "j2", now).unwrap().profile.id, "a0", "better than nothing");
    assert_eq!(&*registry.book_for(&wanted(&b), "j3", now).unwrap().profile.id, "a0");
}

#[test]
fn reports_about_nobody_change_nothing() {
    let now = Instant::now();
    let mut registry = cluster(&[1], now);
    assert!(!registry.met("a7", &job("j", &who("a")), Met::Fault(Fault::Broken), now));
    assert_eq!(registry.totals(now).healthy, 1);
}

#[test]
fn a_new_process_is_not_to_blame_for_the_jobs_of_the_one_before() {
    let start = Instant::now();
    let mut registry = registry();
    let process = |instance: &str| Profile { instance: instance.into(), ..profile("a0", 4, &["m"]) };
    registry.register(process("old"), Some(StreamId(1)), start).unwrap();
    let restarted = start + Duration::from_secs(10);
    registry.register(process("new"), Some(StreamId(2)), restarted).unwrap();
    let now = restarted + Duration::from_secs(2);
    let mut broke = |client: &str, age: u64| {
        let job = ReportedJob { job_id: "j", who: &who(client), age: Duration::from_secs(age) };
        registry.met("a0", &job, Met::Fault(Fault::Broken), now)
    };
    assert!(!["a", "b", "c", "d"].into_iter().any(|client| broke(client, 3)), "they were the old one's");
    assert!(["a", "b", "c"].into_iter().any(|client| broke(client, 1)));
}

#[test]
fn an_agent_that_goes_as_it_said_is_not_to_blame() {
    let now = Instant::now();
    let mut registry = cluster(&[4], now);
    registry.heartbeat("a0", STREAM, Load { draining: true, ..IDLE }, Report::default(), now).unwrap();
    assert!(!unreachable(&mut registry, &["a", "b", "c"], now));
    registry.deregister("a0", now);
    assert!(!unreachable(&mut registry, &["a", "b", "c"], now));
    registry.register(profile("a0", 4, &["m"]), Some(STREAM), now).unwrap();
    registry.heartbeat("a0", STREAM, IDLE, Report::default(), now).unwrap();
    assert_eq!(status(&registry, "a0", now), Some(Status::Healthy));
}
