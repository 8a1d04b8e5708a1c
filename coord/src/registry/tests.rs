#![allow(clippy::unwrap_used)]

mod clocks;
mod large;
mod outcomes;
mod processes;
mod restart;

use std::collections::BTreeMap;

use proptest::prelude::*;
use titan_proto::{rest::GrpcTls, v1::ModelInfo};

use super::*;

const LEASE: Duration = Duration::from_secs(30);
const BOOKING: Duration = Duration::from_secs(5);
const REMEMBER: Duration = Duration::from_secs(600);
const STREAM: StreamId = StreamId(1);
/// Half of everything free, everything measured.
const IDLE: Load = Load {
    free_vram_mb: 0,
    free_ram_mb: 500,
    running_jobs: 0,
    queued_jobs: 0,
    rtt_ms: Some(10.0),
    tokens_per_second: Some(30.0),
    draining: false,
    computing: 0,
};

fn registry() -> Registry {
    Registry::new(Policy {
        lease: LEASE,
        booking: BOOKING,
        remember: REMEMBER,
        max_agents: 1000,
        weights: Weights::default().normalized().unwrap(),
        token_ttl: Duration::from_secs(300),
    })
}

fn profile(id: &str, max_jobs: u32, models: &[&str]) -> Profile {
    Profile {
        id: id.into(),
        origin: String::new(),
        instance: "".into(),
        endpoint: format!("{id}:50052"),
        grpc_tls: GrpcTls::None,
        quic: None,
        total_vram_mb: 0,
        total_ram_mb: 1000,
        max_jobs,
        models: models.iter().map(|&model| model.into()).collect(),
        model_info: Vec::new(),
    }
}

/// Agents `a0`, `a1`, … that serve the model `m`, each with so many slots, registered and idle.
fn cluster(max_jobs: &[u32], now: Instant) -> Registry {
    let mut registry = registry();
    for (i, &max_jobs) in max_jobs.iter().enumerate() {
        let id = format!("a{i}");
        registry.register(profile(&id, max_jobs, &["m"]), Some(STREAM), now).unwrap();
        registry.heartbeat(&id, STREAM, IDLE, Report::default(), now).unwrap();
    }
    registry
}

fn claimed(claimed: &[String]) -> Report<'_> {
    Report { claimed, ..Report::default() }
}

fn status(registry: &Registry, id: &str, now: Instant) -> Option<Status> {
    registry.agents(now).iter().find(|view| &*view.profile.id == id).map(|view| view.status)
}

#[test]
fn a_lease_ends_the_moment_heartbeats_are_overdue_and_a_late_one_revives_it() {
    let start = Instant::now();
    let mut registry = cluster(&[4], start);
    assert!(registry.book("m", "j", start + LEASE - Duration::from_millis(1)).is_ok());
    let overdue = start + LEASE;
    assert_eq!(registry.book("m", "j", overdue).unwrap_err(), BookError::NoAgents);
    assert_eq!(status(&registry, "a0", overdue), Some(Status::Offline));
    assert_eq!(registry.expire(overdue).offline, ["a0".into()]);
    assert_eq!(registry.expire(overdue), Expired::default(), "reported once");

    registry.heartbeat("a0", STREAM, IDLE, Report::default(), overdue).unwrap();
    assert_eq!(status(&registry, "a0", overdue), Some(Status::Healthy));
    assert!(registry.book("m", "j", overdue).is_ok());
}

#[test]
fn an_agent_that_is_gone_stays_visible_for_a_while_and_is_then_forgotten() {
    let start = Instant::now();
    let mut registry = cluster(&[4], start);
    let end = start + LEASE;
    registry.expire(end);
    assert_eq!(registry.totals(end), Totals { agents: 1, healthy: 0, running_jobs: 0 });
    assert!(registry.expire(end + REMEMBER - Duration::from_millis(1)).forgotten.is_empty());
    assert_eq!(registry.expire(end + REMEMBER).forgotten, ["a0".into()]);
    assert_eq!(registry.totals(end + REMEMBER), Totals::default());
    assert!(registry.models.is_empty() && registry.ids.is_empty());
    let unknown = registry.heartbeat("a0", STREAM, IDLE, Report::default(), end + REMEMBER);
    assert!(matches!(unknown, Err(HeartbeatError::Unregistered { .. })));
}

#[test]
fn deregistering_ends_the_lease_at_once_and_heartbeats_do_not_revive_it() {
    let now = Instant::now();
    let mut registry = cluster(&[4], now);
    assert!(registry.deregister("a0", now));
    assert!(!registry.deregister("a0", now), "it had left already");
    assert!(!registry.deregister("nobody", now));
    assert_eq!(registry.book("m", "j", now).unwrap_err(), BookError::NoAgents);
    let late = registry.heartbeat("a0", STREAM, IDLE, Report::default(), now);
    assert!(matches!(late, Err(HeartbeatError::Unregistered { .. })));
    registry.register(profile("a0", 4, &["m"]), None, now).unwrap();
    assert!(registry.book("m", "j", now).is_ok());
}

#[test]
fn a_broken_health_stream_stops_requests_but_not_the_lease() {
    let now = Instant::now();
    let mut registry = cluster(&[4], now);
    assert!(registry.stream_closed("a0", STREAM, now));
    assert_eq!(status(&registry, "a0", now), Some(Status::Degraded));
    assert_eq!(registry.book("m", "j", now).unwrap_err(), BookError::NoAgents);
    registry.heartbeat("a0", StreamId(2), IDLE, Report::default(), now).unwrap();
    assert_eq!(status(&registry, "a0", now), Some(Status::Healthy));
}

#[test]
fn the_newest_stream_of_an_id_wins() {
    let now = Instant::now();
    let mut registry = cluster(&[4], now);
    let (old, new) = (STREAM, StreamId(2));
    registry.register(profile("a0", 8, &["m", "n"]), Some(new), now).unwrap();
    let late = registry.heartbeat("a0", old, IDLE, Report::default(), now);
    assert!(matches!(late, Err(HeartbeatError::Replaced { .. })));
    let late = registry.register(profile("a0", 1, &["old"]), Some(old), now);
    assert!(matches!(late, Err(RegisterError::Replaced { .. })));
    assert!(!registry.stream_closed("a0", old, now), "the old stream's end changes nothing");
    assert_eq!(registry.models(now), [("m".into(), 1), ("n".into(), 1)]);
    assert_eq!(registry.totals(now), Totals { agents: 1, healthy: 1, running_jobs: 0 });
}

#[test]
fn a_draining_agent_gets_no_requests() {
    let now = Instant::now();
    let mut registry = cluster(&[4], now);
    registry.heartbeat("a0", STREAM, Load { draining: true, ..IDLE }, Report::default(), now).unwrap();
    assert_eq!(status(&registry, "a0", now), Some(Status::Degraded));
    assert_eq!(registry.book("m", "j", now).unwrap_err(), BookError::NoAgents);
}

#[test]
fn registering_again_replaces_what_is_served() {
    let now = Instant::now();
    let mut registry = cluster(&[4], now);
    registry.register(profile("a0", 4, &["other"]), None, now).unwrap();
    assert_eq!(registry.models(now), [("other".into(), 1)]);
    let refused = registry.book("m", "j", now).unwrap_err();
    assert_eq!(refused, BookError::ModelNotFound { available: vec!["other".into()] });
}

#[test]
fn an_unknown_model_is_not_found_only_where_somebody_could_serve_another() {
    let now = Instant::now();
    assert_eq!(registry().book("m", "j", now).unwrap_err(), BookError::NoAgents);
    let mut registry = cluster(&[1], now);
    assert!(matches!(registry.book("x", "j", now), Err(BookError::ModelNotFound { .. })));
    registry.deregister("a0", now);
    assert_eq!(registry.book("x", "j", now).unwrap_err(), BookError::NoAgents);
}

#[test]
fn an_answer_to_an_unknown_model_names_a_bounded_number() {
    let now = Instant::now();
    let mut registry = registry();
    let names: Vec<String> = (0..100).map(|i| format!("m{i:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    registry.register(profile("a", 1, &names), None, now).unwrap();
    match registry.book("x", "j", now).unwrap_err() {
        BookError::ModelNotFound { available } => assert_eq!(available.len(), MAX_MODELS_NAMED),
        other => panic!("{other:?}"),
    }
}

#[test]
fn running_and_queued_jobs_and_bookings_all_take_room() {
    let now = Instant::now();
    let mut registry = cluster(&[4], now);
    registry.heartbeat("a0", STREAM, Load { running_jobs: 2, queued_jobs: 1, ..IDLE }, Report::default(), now).unwrap();
    assert!(registry.book("m", "j1", now).is_ok());
    assert_eq!(registry.book("m", "j2", now).unwrap_err(), BookError::NoCapacity);
}

#[test]
fn a_booking_that_nobody_claims_expires() {
    let now = Instant::now();
    let mut registry = cluster(&[1], now);
    registry.book("m", "j1", now).unwrap();
    let before = now + BOOKING - Duration::from_millis(1);
    assert_eq!(registry.book("m", "j2", before).unwrap_err(), BookError::NoCapacity);
    assert!(registry.book("m", "j2", now + BOOKING).is_ok());
}

#[test]
fn a_claim_moves_a_booking_to_the_running_jobs() {
    let now = Instant::now();
    let mut registry = cluster(&[2], now);
    registry.book("m", "j1", now).unwrap();
    let running = Load { running_jobs: 1, ..IDLE };
    registry.heartbeat("a0", STREAM, running, claimed(&["j1".into(), "unknown".into()]), now).unwrap();
    registry.book("m", "j2", now).unwrap();
    assert_eq!(registry.book("m", "j3", now).unwrap_err(), BookError::NoCapacity);
    // j2 is claimed, and j1 and j2 are done.
    registry.heartbeat("a0", STREAM, IDLE, claimed(&["j2".into()]), now).unwrap();
    registry.book("m", "j3", now).unwrap();
    registry.book("m", "j4", now).unwrap();
}

#[test]
fn a_released_booking_gives_its_slot_back() {
    let now = Instant::now();
    let mut registry = cluster(&[1], now);
    registry.book("m", "j1", now).unwrap();
    registry.release("a0", "j1", now);
    assert!(registry.book("m", "j2", now).is_ok());
}

#[test]
fn an_agent_that_failed_a_client_is_chosen_only_where_no_other_has_room() {
    let now = Instant::now();
    let mut registry = registry();
    for id in ["a", "b"] {
        registry.register(profile(id, 1, &["m"]), Some(STREAM), now).unwrap();
        registry.heartbeat(id, STREAM, IDLE, Report::default(), now).unwrap();
    }
    let wanted = Wanted { model: "m", except: &["a", "unknown"], ..Wanted::default() };
    let mut booked = |job: &str| Some(registry.book_for(&wanted, job, now).ok()?.profile.id.to_string());
    assert_eq!(booked("1").as_deref(), Some("b"));
    assert_eq!(booked("2").as_deref(), Some("a"), "better than nothing");
    assert_eq!(booked("3"), None);
}

#[test]
fn memory_of_the_gpu_counts_where_there_is_one() {
    let now = Instant::now();
    let mut registry = registry();
    for (id, free_vram_mb, free_ram_mb) in [("full-gpu", 100, 1000), ("free-gpu", 900, 10)] {
        registry.register(Profile { total_vram_mb: 1000, ..profile(id, 8, &["m"]) }, Some(STREAM), now).unwrap();
        registry.heartbeat(id, STREAM, Load { free_vram_mb, free_ram_mb, ..IDLE }, Report::default(), now).unwrap();
    }
    assert_eq!(&*registry.book("m", "j", now).unwrap().profile.id, "free-gpu");
}

#[test]
fn a_full_registry_forgets_who_left_first_and_never_who_is_there() {
    let now = Instant::now();
    let mut registry = registry();
    registry.policy.max_agents = 2;
    for id in ["a", "b"] {
        registry.register(profile(id, 1, &["m"]), None, now).unwrap();
    }
    assert_eq!(registry.register(profile("c", 1, &["m"]), None, now), Err(RegisterError::Full { max: 2 }));
    registry.register(profile("a", 1, &["m"]), None, now).unwrap();
    registry.deregister("b", now);
    registry.register(profile("c", 1, &["m"]), None, now).unwrap();
    assert_eq!(status(&registry, "b", now), None);
    assert_eq!(registry.totals(now).healthy, 2);
}

/// An agent in this condition, with an otherwise unchanged report.
fn in_condition(condition: Condition) -> Report<'static> {
    Report { condition, ..Report::default() }
}

#[test]
fn an_agent_that_is_not_healthy_is_chosen_where_no_healthy_one_has_room() {
    let now = Instant::now();
    let reason: Arc<str> = "it failed".into();
    let conditions = [
        (Condition::Degraded { reason: reason.clone() }, Status::Degraded),
        (Condition::HalfOpen { reason: reason.clone() }, Status::HalfOpen),
    ];
    for (condition, word) in conditions {
        let mut registry = cluster(&[2, 1], now);
        registry.heartbeat("a0", STREAM, IDLE, in_condition(condition), now).unwrap();
        assert_eq!(status(&registry, "a0", now), Some(word));
        assert_eq!(registry.totals(now).healthy, 1);
        assert_eq!(
            registry.agents(now).iter().find_map(|view| Some(view.trouble.as_ref()?.reason.clone())),
            Some("it failed".into())
        );
        assert_eq!(registry.models(now), [("m".into(), 2)], "it still takes requests");
        for (job, id) in [("j1", "a1"), ("j2", "a0")] {
            assert_eq!(&*registry.book("m", job, now).unwrap().profile.id, id);
        }
        assert_eq!(registry.book("m", "j3", now).is_ok(), word == Status::Degraded, "one at a time while half open");
        registry.heartbeat("a0", STREAM, IDLE, Report::default(), now).unwrap();
        assert_eq!(status(&registry, "a0", now), Some(Status::Healthy), "as soon as it says so");
    }
}

#[test]
fn an_agent_that_has_failed_a_client_comes_behind_one_that_is_not_healthy() {
    let now = Instant::now();
    let mut registry = cluster(&[4, 1], now);
    let failing = Condition::Degraded { reason: "it failed".into() };
    registry.heartbeat("a1", STREAM, IDLE, in_condition(failing), now).unwrap();
    let wanted = Wanted { model: "m", except: &["a0"], ..Wanted::default() };
    assert_eq!(&*registry.book_for(&wanted, "j1", now).unwrap().profile.id, "a1");
    assert_eq!(&*registry.book_for(&wanted, "j2", now).unwrap().profile.id, "a0");
}

#[test]
fn what_is_still_computed_takes_room() {
    let now = Instant::now();
    let mut registry = cluster(&[2], now);
    registry.heartbeat("a0", STREAM, Load { running_jobs: 1, computing: 2, ..IDLE }, Report::default(), now).unwrap();
    assert_eq!(registry.book("m", "j", now).unwrap_err(), BookError::NoCapacity);
    registry.heartbeat("a0", STREAM, Load { running_jobs: 1, computing: 0, ..IDLE }, Report::default(), now).unwrap();
    assert!(registry.book("m", "j", now).is_ok());
}

#[test]
fn a_conversation_comes_back_to_its_agent_unless_that_is_full() {
    let now = Instant::now();
    let mut registry = cluster(&[9, 3, 9], now);
    let holding = |prefixes: &[u64]| Report { prefixes: Some(prefixes.to_vec()), ..Report::default() };
    // The first two messages of a conversation, and another one.
    registry.heartbeat("a1", STREAM, Load { running_jobs: 1, ..IDLE }, holding(&[30, 20, 10]), now).unwrap();
    registry.heartbeat("a2", STREAM, IDLE, holding(&[10]), now).unwrap();
    fn wanted(conversation: &[u64]) -> Wanted<'_> {
        Wanted { model: "m", conversation, ..Wanted::default() }
    }
    let mut book = |conversation: &[u64], job: &str| {
        registry.book_for(&wanted(conversation), job, now).unwrap().profile.id.to_string()
    };
    assert_eq!(book(&[10, 20, 21], "j1"), "a1");
    assert_eq!(book(&[10, 20, 21, 22], "j2"), "a1");
    assert_eq!(book(&[10, 20, 21], "j3"), "a2", "a1 is full");
    // What is not said again is still held, and what is held no more is forgotten.
    registry.heartbeat("a1", STREAM, IDLE, claimed(&["j1".into(), "j2".into()]), now).unwrap();
    assert_eq!(&*registry.book_for(&wanted(&[10, 20, 21]), "j4", now).unwrap().profile.id, "a1");
    registry.heartbeat("a1", STREAM, IDLE, Report { prefixes: Some(vec![]), ..claimed(&["j4".into()]) }, now).unwrap();
    assert_ne!(&*registry.book_for(&wanted(&[10, 20, 21]), "j5", now).unwrap().profile.id, "a1");
}

#[test]
fn a_request_for_a_digest_goes_to_an_equal_model_only() {
    let now = Instant::now();
    let mut registry = registry();
    for (id, digest) in [("a", "1"), ("b", "2"), ("c", "")] {
        let info = ModelInfo { name: "m".into(), digest: digest.into(), ..ModelInfo::default() };
        registry.register(Profile { model_info: vec![info], ..profile(id, 1, &["m"]) }, Some(STREAM), now).unwrap();
        registry.heartbeat(id, STREAM, IDLE, Report::default(), now).unwrap();
    }
    fn wanted(model_digest: &str) -> Wanted<'_> {
        Wanted { model: "m", model_digest, except: &["b"], ..Wanted::default() }
    }
    assert_eq!(&*registry.book_for(&wanted("2"), "j1", now).unwrap().profile.id, "b", "the only equal one");
    assert_eq!(registry.book_for(&wanted("2"), "j2", now).unwrap_err(), BookError::NoCapacity);
    let found = vec![String::new(), "1".to_owned(), "2".to_owned()];
    assert_eq!(registry.book_for(&wanted("3"), "j2", now).unwrap_err(), BookError::OtherDigests { found });
    for id in ["a", "b", "c"] {
        registry.deregister(id, now);
    }
    assert_eq!(registry.book_for(&wanted("1"), "j2", now).unwrap_err(), BookError::NoAgents);
}

proptest! {
    /// Requests that come between two heartbeats spread over the agents in proportion to their slots.
    #[test]
    fn a_burst_spreads_in_proportion_to_room(
        max_jobs in proptest::collection::vec(1..=30u32, 1..12),
        part in 0.0..=1.0f64,
    ) {
        let now = Instant::now();
        let mut registry = cluster(&max_jobs, now);
        let room: u32 = max_jobs.iter().sum();
        let burst = (f64::from(room) * part) as u32;
        let mut booked = BTreeMap::<Arc<str>, u32>::new();
        for job in 0..burst {
            *booked.entry(registry.book("m", &job.to_string(), now).unwrap().profile.id.clone()).or_default() += 1;
        }
        let fair = f64::from(burst) / f64::from(room);
        for (i, &max_jobs) in max_jobs.iter().enumerate() {
            let filled = f64::from(booked.get(format!("a{i}").as_str()).copied().unwrap_or(0)) / f64::from(max_jobs);
            // Slots are whole; and loads closer than a step of the score (1/100, of which load is 30) count as equal.
            let smallest = max_jobs.min(*max_jobs_min(&registry));
            let tolerance = 1.0 / f64::from(smallest) + 2.0 / 30.0;
            prop_assert!((filled - fair).abs() <= tolerance, "agent a{i}: {filled} of its slots, fair is {fair}");
        }
    }

    /// Whatever agents report, no more is booked than there is room for, and all the room there is can be booked.
    #[test]
    fn exactly_the_room_there_is_gets_booked(
        agents in proptest::collection::vec((1..=20u32, 0..=25u32, 0..=3u32), 1..10),
    ) {
        let now = Instant::now();
        let max_jobs: Vec<u32> = agents.iter().map(|agent| agent.0).collect();
        let mut registry = cluster(&max_jobs, now);
        let mut room = 0;
        for (i, &(max_jobs, running_jobs, queued_jobs)) in agents.iter().enumerate() {
            let load = Load { running_jobs, queued_jobs, ..IDLE };
            registry.heartbeat(&format!("a{i}"), STREAM, load, Report::default(), now).unwrap();
            room += max_jobs.saturating_sub(running_jobs + queued_jobs);
        }
        for job in 0..room {
            prop_assert!(registry.book("m", &job.to_string(), now).is_ok());
        }
        prop_assert_eq!(registry.book("m", "one more", now).unwrap_err(), BookError::NoCapacity);
        for job in 0..room {
            prop_assert!(registry.book("m", &job.to_string(), now + BOOKING).is_ok(), "bookings expired");
        }
    }

    /// Any sequence of events leaves the indexes in agreement with the agents.
    #[test]
    fn the_indexes_always_agree(events in proptest::collection::vec((0..6u8, 0..5u8, 0..4u64), 0..200)) {
        let mut now = Instant::now();
        let mut registry = registry();
        registry.policy.max_agents = 4;
        for (event, agent, number) in events {
            let id = format!("a{agent}");
            match event {
                0 => {
                    let models: Vec<String> = (0..=number).map(|model| format!("m{model}")).collect();
                    let models: Vec<&str> = models.iter().map(String::as_str).collect();
                    // Refusals are part of the sequence.
                    let _ = registry.register(profile(&id, 2, &models), Some(StreamId(number)), now);
                }
                1 => drop(registry.heartbeat(&id, StreamId(number), IDLE, claimed(&["job".into()]), now)),
                2 => drop(registry.deregister(&id, now)),
                3 => drop(registry.book(&format!("m{number}"), "job", now)),
                4 => drop(registry.stream_closed(&id, StreamId(number), now)),
                _ => {
                    now += LEASE * (number as u32 * 4);
                    registry.expire(now);
                }
            }
            check_indexes(&registry);
        }
    }
}

fn max_jobs_min(registry: &Registry) -> &u32 {
    registry.slots.iter().flatten().map(|agent| &agent.profile.max_jobs).min().unwrap()
}

fn check_indexes(registry: &Registry) {
    let mut models = BTreeMap::<Arc<str>, Vec<usize>>::new();
    for (slot, agent) in registry.slots.iter().enumerate() {
        let Some(agent) = agent else { continue };
        assert_eq!(registry.ids.get(&agent.profile.id), Some(&slot));
        for model in &agent.profile.models {
            models.entry(Arc::clone(model)).or_default().push(slot);
        }
    }
    let indexed = registry.models.iter().map(|(model, serving)| (Arc::clone(model), serving.slots().to_vec()));
    assert_eq!(indexed.collect::<BTreeMap<_, _>>(), models);
    let used = registry.slots.iter().flatten().count();
    assert_eq!(registry.ids.len(), used);
    assert_eq!(registry.free_slots.len() + used, registry.slots.len());
    assert!(used <= registry.policy.max_agents);
}
