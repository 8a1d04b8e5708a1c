#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const PUNCTUAL: bool = false;
const SILENT: bool = true;

fn client(name: &str) -> Who {
    Who::Name(name.into())
}

/// Met by two clients, three failures in a row.
fn open(now: Instant) -> Breaker {
    let mut breaker = Breaker::new(now);
    for (job, who) in [("1", "a"), ("2", "b"), ("3", "a")] {
        breaker.failed(job, client(who), Fault::Unreachable, PUNCTUAL, now);
    }
    assert_eq!(breaker.phase(now), Phase::Open);
    breaker
}

#[test]
fn three_failures_in_a_row_open_it_and_a_success_between_them_begins_anew() {
    let now = Instant::now();
    let mut breaker = Breaker::new(now);
    let fail = |breaker: &mut Breaker, who: &str| breaker.failed("j", client(who), Fault::Broken, PUNCTUAL, now);
    assert!(!fail(&mut breaker, "a") && !fail(&mut breaker, "b"));
    breaker.succeeded("j", &client("c"), now);
    assert!(!fail(&mut breaker, "a") && !fail(&mut breaker, "b"));
    assert_eq!((breaker.phase(now), breaker.reason(now)), (Phase::Closed, None));
    assert!(fail(&mut breaker, "c"));
    assert!(!breaker.admits(None, now));
    let (reason, since) = breaker.reason(now).unwrap();
    assert!(reason.contains("its answers broke off") && reason.contains("30 s") && since == now, "{reason}");
}

#[test]
fn after_thirty_seconds_there_is_one_probe_at_a_time_and_two_successes_close_it() {
    let start = Instant::now();
    let mut breaker = open(start);
    let before = start + OPEN_FOR - SECOND;
    assert_eq!((breaker.phase(before), breaker.admits(None, before)), (Phase::Open, false));
    let mut now = start + OPEN_FOR;
    for job in ["p1", "p2"] {
        assert_eq!((breaker.phase(now), breaker.admits(Some(&client("c")), now)), (Phase::HalfOpen, true));
        breaker.booked(job, now);
        assert!(!breaker.admits(Some(&client("c")), now), "one at a time");
        breaker.succeeded("another job", &client("c"), now);
        assert_eq!(breaker.phase(now), Phase::HalfOpen, "only the probe's outcome counts");
        now += SECOND;
        breaker.succeeded(job, &client("c"), now);
    }
    assert_eq!(breaker.phase(now), Phase::Closed);
}

#[test]
fn a_probe_that_fails_opens_it_for_another_thirty_seconds_and_comes_to_another_client() {
    let start = Instant::now();
    let mut breaker = open(start);
    let probed = start + OPEN_FOR + SECOND;
    breaker.booked("p", probed);
    breaker.failed("another job", client("b"), Fault::TimedOut, PUNCTUAL, probed);
    assert_eq!(breaker.phase(probed), Phase::HalfOpen, "an answer that began earlier");
    assert!(breaker.failed("p", client("a"), Fault::TimedOut, PUNCTUAL, probed));
    assert_eq!(breaker.phase(probed + OPEN_FOR - SECOND), Phase::Open);
    let again = probed + OPEN_FOR;
    assert!(!breaker.admits(Some(&client("a")), again) && breaker.admits(Some(&client("b")), again));
    assert!(breaker.admits(Some(&client("a")), probed + DOUBT_FOR), "in the end to the same");
}

#[test]
fn one_client_alone_closes_an_agent_to_itself_and_to_nobody_else() {
    let now = Instant::now();
    let mut breaker = Breaker::new(now);
    for _ in 0..20 {
        assert!(!breaker.failed("j", client("a"), Fault::Unreachable, PUNCTUAL, now));
    }
    assert_eq!(breaker.phase(now), Phase::Closed);
    assert!(breaker.doubts(Some(&client("a")), now) && !breaker.doubts(Some(&client("b")), now));
    assert!(!breaker.doubts(Some(&client("a")), now + DOUBT_FOR));
    assert!(breaker.failed("j", client("b"), Fault::Unreachable, PUNCTUAL, now), "a second one confirms it");
}

#[test]
fn one_client_is_enough_where_the_agent_is_silent_too() {
    let now = Instant::now();
    let mut breaker = Breaker::new(now);
    let mut fail = |silent| breaker.failed("j", client("a"), Fault::Unreachable, silent, now);
    assert!(!fail(PUNCTUAL) && !fail(PUNCTUAL) && fail(SILENT));
}

#[test]
fn failures_far_apart_are_no_row() {
    let start = Instant::now();
    let mut breaker = Breaker::new(start);
    for (n, who) in ["a", "b", "c", "d"].into_iter().enumerate() {
        let now = start + (ROW_FOR / 2 + SECOND) * n as u32;
        assert!(!breaker.failed("j", client(who), Fault::Broken, PUNCTUAL, now));
    }
}

#[test]
fn a_failure_now_and_then_among_many_jobs_is_no_row() {
    let now = Instant::now();
    let mut breaker = Breaker::new(now);
    let mut after = |begun: u32, who: &str| {
        for job in 0..begun {
            breaker.claimed(&job.to_string());
        }
        breaker.failed("j", client(who), Fault::Broken, PUNCTUAL, now)
    };
    for who in ["a", "b", "c", "d", "e"] {
        assert!(!after(BEGUN_BETWEEN + 1, who));
    }
    // Most of what begins there fails; the last one of those before is the first of this row.
    assert!(!after(BEGUN_BETWEEN, "a") && after(BEGUN_BETWEEN, "b"));
}

#[test]
fn a_probe_without_an_outcome_is_judged_by_whether_the_agent_began_it() {
    let start = Instant::now();
    let mut breaker = open(start);
    let mut now = start + OPEN_FOR;
    // Its client never came: nothing is known.
    breaker.booked("p1", now);
    now += PROBE_FOR;
    breaker.settle(now);
    assert!(breaker.admits(None, now));
    // It gave its slot back.
    breaker.booked("p2", now);
    breaker.withdrawn("p1");
    assert!(!breaker.admits(None, now));
    breaker.withdrawn("p2");
    assert!(breaker.admits(None, now));
    // Clients that do not report.
    for job in ["p3", "p4"] {
        breaker.booked(job, now);
        breaker.claimed(job);
        now += PROBE_FOR;
        breaker.settle(now);
    }
    assert_eq!(breaker.phase(now), Phase::Closed);
}

#[test]
fn a_new_process_is_tried_at_once() {
    let now = Instant::now();
    let mut breaker = open(now);
    breaker.restarted(now + SECOND);
    assert_eq!(breaker.phase(now + SECOND), Phase::HalfOpen);
    assert!(breaker.admits(None, now + SECOND));
    let mut closed = Breaker::new(now);
    closed.restarted(now);
    assert_eq!(closed.phase(now), Phase::Closed);
}

proptest! {
    /// Whatever one client says, and however often, another one is not kept from an agent whose heartbeats come.
    #[test]
    fn nobody_alone_keeps_others_away(events in proptest::collection::vec((0..5u8, 0..4u8, 0..40u64), 0..200)) {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(now);
        for (event, job, seconds) in events {
            let job = job.to_string();
            match event {
                0 => _ = breaker.failed(&job, client("liar"), Fault::Broken, PUNCTUAL, now),
                1 => breaker.succeeded(&job, &client("liar"), now),
                2 => breaker.booked(&job, now),
                3 => breaker.withdrawn(&job),
                _ => now += SECOND * seconds as u32,
            }
            prop_assert!(breaker.admits(Some(&client("honest")), now));
        }
    }

    /// Once half open, at most one probe is out, and no order of events leaves an agent out for ever.
    #[test]
    fn it_always_comes_back(events in proptest::collection::vec((0..6u8, 0..4u8, 0..3u8, 0..40u64), 0..200)) {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(now);
        for (event, job, who, seconds) in events {
            let (job, who) = (job.to_string(), client(&who.to_string()));
            match event {
                0 => _ = breaker.failed(&job, who, Fault::Broken, PUNCTUAL, now),
                1 => _ = breaker.failed(&job, who, Fault::Unreachable, SILENT, now),
                2 => breaker.succeeded(&job, &who, now),
                3 if breaker.admits(Some(&who), now) => {
                    breaker.booked(&job, now);
                    if breaker.phase(now) == Phase::HalfOpen {
                        prop_assert!(!breaker.admits(None, now));
                    }
                }
                4 => breaker.claimed(&job),
                _ => now += SECOND * seconds as u32,
            }
        }
        let later = now + OPEN_FOR + PROBE_FOR;
        breaker.settle(now + OPEN_FOR);
        breaker.settle(later);
        prop_assert!(breaker.admits(None, later));
    }
}
