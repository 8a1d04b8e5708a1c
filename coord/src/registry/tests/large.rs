//! Fleets that are too large for every agent to be looked at.

use super::*;
use crate::{registry::choice::Look, scheduler::score};

const AGENTS: usize = 10_000;
const SLOTS: u32 = 8;

/// A fleet of unequal agents, by fixed numbers: free memory, distance, speed and load all differ.
fn fleet(now: Instant) -> Registry {
    let mut registry = registry();
    registry.policy.max_agents = AGENTS;
    let mut state = 1_u64;
    let mut random = |below: u64| {
        // Numerical Recipes' generator; its upper half.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) % below
    };
    for n in 0..AGENTS {
        let id = format!("a{n}");
        let load = Load {
            free_ram_mb: random(1000) as i64,
            running_jobs: random(u64::from(SLOTS) + 1) as u32,
            rtt_ms: Some(1.0 + random(200) as f64),
            tokens_per_second: Some(5.0 + random(100) as f64),
            ..Load::default()
        };
        registry.register(profile(&id, SLOTS, &["m"]), Some(STREAM), now).unwrap();
        registry.heartbeat(&id, STREAM, load, Report::default(), now).unwrap();
    }
    registry
}

/// The measurement behind the number of agents that are looked at: docs/ROUTING.md has what it prints.
#[test]
fn the_best_of_a_sample_is_near_the_best_of_all() {
    const CHOICES: u64 = 2000;
    let now = Instant::now();
    let mut registry = fleet(now);
    let weights = registry.policy.weights;
    let candidate =
        |registry: &Registry, slot: usize| registry.slots[slot].as_ref()?.candidate(slot, &[], false, None, now);
    let mut scores: Vec<f64> =
        (0..AGENTS).filter_map(|slot| Some(score(&weights, &candidate(&registry, slot)?))).collect();
    scores.sort_unstable_by(f64::total_cmp);
    let best = *scores.last().unwrap();
    let middle = scores[scores.len() / 2];
    let wanted = Wanted { model: "m", ..Wanted::default() };
    let (mut short, mut better) = (0.0, 0);
    for turn in 0..CHOICES {
        let look = Look { wanted: &wanted, except: &[], weights: &weights, now };
        let slot = look.choose(&mut registry.slots, &registry.models["m"], &registry.places, turn).unwrap();
        let chosen = score(&weights, &candidate(&registry, slot).unwrap());
        short += best - chosen;
        better += scores.len() - scores.partition_point(|score| *score <= chosen);
    }
    let (short, better) = (short / CHOICES as f64, better as f64 / CHOICES as f64 / scores.len() as f64);
    println!(
        "{} of {AGENTS} agents have room; best score {best:.3}, middle {middle:.3}; chosen ones are {short:.3} below the best on average, and \
         {:.1} % of the agents are better",
        scores.len(),
        100.0 * better
    );
    assert!(short < (best - middle) / 3.0 && better < 0.03, "{short} {better}");
}

#[test]
fn a_large_fleet_can_be_filled_to_its_last_slot_and_no_further() {
    let now = Instant::now();
    let mut registry = fleet(now);
    let room: usize =
        (0..AGENTS).filter_map(|slot| Some((SLOTS - registry.slots[slot].as_ref()?.load.running_jobs) as usize)).sum();
    for job in 0..room {
        registry.book("m", &job.to_string(), now).unwrap_or_else(|error| panic!("{job} of {room}: {error:?}"));
    }
    assert_eq!(registry.book("m", "one more", now).unwrap_err(), BookError::NoCapacity);
    let (id, job) = a_booking(&registry);
    registry.release(&id, &job, now);
    assert_eq!(registry.book("m", "one more", now).unwrap().profile.id, id, "the only one with room");
    // Bookings run out by themselves.
    registry.expire(now + BOOKING);
    assert!(registry.book("m", "later", now + BOOKING).is_ok());
    let gone = now + LEASE;
    assert_eq!(registry.book("m", "too late", gone).unwrap_err(), BookError::NoAgents);
}

/// An agent in the midst of the fleet, and a job for which it is booked.
fn a_booking(registry: &Registry) -> (Arc<str>, String) {
    let booked = |agent: &Agent| Some((Arc::clone(&agent.profile.id), agent.a_booked_job()?));
    registry.slots.iter().flatten().skip(AGENTS / 2).find_map(booked).unwrap()
}

#[test]
fn a_conversation_finds_its_agent_among_thousands() {
    let now = Instant::now();
    let mut registry = fleet(now);
    let mut conversation = vec![1, 2];
    fn wanted(conversation: &[u64]) -> Wanted<'_> {
        Wanted { model: "m", conversation, ..Wanted::default() }
    }
    let first = registry.book_for(&wanted(&conversation), "j0", now).unwrap().profile.id.clone();
    for turn in 1..5_u64 {
        // The agent is busier than most, and holds what was said.
        let load = Load { running_jobs: SLOTS - 1, ..IDLE };
        let holds = Report { prefixes: Some(conversation.clone()), ..claimed(&[]) };
        registry.heartbeat(&first, STREAM, load, holds, now).unwrap();
        registry.release(&first, &format!("j{}", turn - 1), now);
        conversation.extend([10 * turn, 10 * turn + 1]);
        let next = registry.book_for(&wanted(&conversation), &format!("j{turn}"), now).unwrap();
        assert_eq!(next.profile.id, first, "turn {turn}");
    }
}

#[test]
fn a_last_resort_is_taken_only_when_all_have_been_looked_at() {
    let now = Instant::now();
    let mut registry = fleet(now);
    for n in 0..AGENTS {
        let degraded = Condition::Degraded { reason: "it failed".into() };
        let report = if n == 4711 { Report::default() } else { in_condition(degraded) };
        registry.heartbeat(&format!("a{n}"), STREAM, IDLE, report, now).unwrap();
    }
    assert_eq!(&*registry.book("m", "j", now).unwrap().profile.id, "a4711");
}
