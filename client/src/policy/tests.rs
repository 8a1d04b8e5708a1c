use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A request at its beginning that has a minute, and the time.
fn request() -> (Tries, Instant) {
    let now = Instant::now();
    (Tries::new(now + 60 * SECOND, true, true), now)
}

fn refused(code: Code) -> ClientError {
    ClientError::Refused { agent_id: "a".into(), code, message: String::new(), retry_after: None, reason: None }
}

fn broken(by: BrokenBy) -> ClientError {
    let (message, code, processed) = (String::new(), Code::Unavailable, Processed::Maybe);
    ClientError::Broken { agent_id: "a".into(), code, message, processed, by }
}

fn coordinators(status: u16, code_word: &str, retry_after: Option<u64>) -> Fault {
    let retry_after = retry_after.map(Duration::from_secs);
    let (code_word, message) = (code_word.to_owned(), String::new());
    Fault::of_coordinator(&CoordinatorError::Refused { status, code_word, message, retry_after })
}

/// Every fault once.
const ALL: [Fault; 16] = [
    Fault::NoCoordinator,
    Fault::Starting(SECOND),
    Fault::NotNow(SECOND),
    Fault::NoAgent,
    Fault::NoAnswer,
    Fault::Gone,
    Fault::Full(Some(SECOND)),
    Fault::Full(None),
    Fault::Draining,
    Fault::Unfit,
    Fault::Unusable,
    Fault::Lost,
    Fault::Silent,
    Fault::AlreadyRan,
    Fault::Failed,
    Fault::Refused,
];

#[test]
fn every_error_is_one_fault() {
    let unreachable = |gone| ClientError::Unreachable { agent_id: "a".into(), reason: String::new(), gone };
    for (error, fault) in [
        (unreachable(false), Fault::NoAnswer),
        (unreachable(true), Fault::Gone),
        (refused(Code::ResourceExhausted), Fault::Full(None)),
        (refused(Code::Unavailable), Fault::Draining),
        (refused(Code::Unauthenticated), Fault::Unfit),
        (refused(Code::PermissionDenied), Fault::Unfit),
        (refused(Code::NotFound), Fault::Unfit),
        (refused(Code::InvalidArgument), Fault::Refused),
        (refused(Code::FailedPrecondition), Fault::Refused),
        (broken(BrokenBy::Connection), Fault::Lost),
        (broken(BrokenBy::Silence), Fault::Silent),
        (broken(BrokenBy::Agent), Fault::Failed),
        (ClientError::AlreadyRan { agent_id: "a".into(), message: String::new() }, Fault::AlreadyRan),
        (ClientError::Certificate { agent_id: "a".into(), reason: String::new() }, Fault::Unusable),
    ] {
        assert_eq!(Fault::of(&error), fault, "{error:?}");
    }
}

#[test]
fn what_the_coordinator_answers_is_read_by_its_status_its_word_and_its_time() {
    for (status, word, retry_after, fault) in [
        (503, "no_capacity", Some(2), Fault::NotNow(2 * SECOND)),
        (503, "no_capacity", None, Fault::NotNow(UNSAID_WAIT)),
        (503, "starting", Some(3), Fault::Starting(3 * SECOND)),
        (503, "starting", None, Fault::Starting(UNSAID_WAIT)),
        (503, "no_agents", None, Fault::NoAgent),
        (503, "no_agents", Some(1), Fault::NotNow(SECOND)),
        (429, "rate_limited", Some(7), Fault::NotNow(7 * SECOND)),
        (429, "rate_limited", None, Fault::NotNow(UNSAID_WAIT)),
        (500, "internal", None, Fault::NoCoordinator),
        (404, "model_not_found", None, Fault::Refused),
        (400, "missing_model", None, Fault::Refused),
        (401, "unauthenticated", Some(1), Fault::Refused),
    ] {
        assert_eq!(coordinators(status, word, retry_after), fault, "{status} {word} {retry_after:?}");
    }
}

#[test]
fn the_table_holds_together() {
    for fault in ALL {
        let rule = fault.rule();
        let by_coordinator = matches!(rule.then, Then::AskAgain | Then::AskAgainIfBegun | Then::HeldRoute);
        if by_coordinator || rule.then == Then::GiveUp {
            assert_eq!((rule.report, rule.resumes), (None, false), "{fault:?}: no agent is at fault");
        }
        if matches!(rule.then, Then::GoOn(_)) {
            assert_ne!(rule.seen, Processed::No, "{fault:?}: there is nothing to go on with");
        }
        if rule.then == Then::GiveUp {
            assert!(!fault.passes(), "{fault:?}");
        }
    }
}

#[test]
fn an_agent_that_failed_is_left_for_another_at_once_and_asked_again_after_a_wait_that_grows() {
    let (mut tries, now) = request();
    assert_eq!(tries.agent_failed("a", Fault::NoAnswer, false, now, 0.5), Next::Ask(Duration::ZERO));
    assert_eq!(tries.excluded(now), ["a"]);
    assert_eq!(tries.named("b", now), Turn::After(Duration::ZERO));
    assert_eq!(tries.named("a", now), Turn::After(FIRST_WAIT));
    for _ in 0..9 {
        tries.agent_failed("a", Fault::Gone, false, now, 0.5);
    }
    assert_eq!((tries.named("a", now), tries.excluded(now).len()), (Turn::After(MAX_WAIT), 1));
}

#[test]
fn a_full_agent_is_asked_again_when_it_said_and_is_then_as_good_as_any() {
    let (mut tries, now) = request();
    tries.agent_failed("a", Fault::Full(Some(2 * SECOND)), false, now, 0.0);
    assert_eq!((tries.excluded(now), tries.named("a", now)), (vec!["a".to_owned()], Turn::After(2 * SECOND)));
    let later = now + 2 * SECOND;
    assert_eq!((tries.excluded(later), tries.named("a", later)), (vec![], Turn::After(Duration::ZERO)));
}

#[test]
fn those_that_are_told_the_same_time_come_one_after_the_other_and_none_before_it() {
    let waits: Vec<_> = [0.0, 0.5, 1.0]
        .into_iter()
        .map(|luck| {
            let (mut tries, now) = request();
            tries.coordinator_failed(Fault::NotNow(2 * SECOND), now, luck)
        })
        .collect();
    let expected = [2000, 2500, 3000].map(|ms| Next::Ask(Duration::from_millis(ms)));
    assert_eq!(waits, expected);
}

#[test]
fn whoever_says_when_is_waited_for_until_the_deadline_and_whoever_does_not_for_a_while() {
    let (mut tries, begun) = request();
    let mut now = begun;
    while let Next::Ask(wait) = tries.coordinator_failed(Fault::NotNow(2 * SECOND), now, 0.0) {
        now += wait;
    }
    assert_eq!(now - begun, 60 * SECOND);
    assert_eq!(tries.coordinator_failed(Fault::NotNow(2 * SECOND), now, 0.0), Next::TooLate);

    for (has_begun, patience) in [(false, RESTART_TIME), (true, KEPT_TIME)] {
        let (tries, begun) = request();
        let (mut tries, mut now) = (tries.going_on(begun + 60 * SECOND, true, has_begun), begun);
        let end = loop {
            match tries.coordinator_failed(Fault::NoCoordinator, now, 0.5) {
                Next::Ask(wait) => now += wait,
                end => break end,
            }
        };
        assert_eq!(end, Next::GiveUp);
        assert!(now <= begun + patience && now + MAX_WAIT > begun + patience, "{:?}", now - begun);
    }
}

#[test]
fn an_agent_that_stays_away_is_given_up_although_the_coordinator_names_it() {
    let (mut tries, now) = request();
    tries.agent_failed("a", Fault::NoAnswer, false, now, 0.5);
    let later = now + RESTART_TIME;
    tries.agent_failed("a", Fault::NoAnswer, false, later, 0.5);
    assert_eq!(tries.named("a", later), Turn::GiveUp);
    assert_eq!(tries.named("b", later), Turn::After(Duration::ZERO), "another one may still do it");
}

#[test]
fn without_text_the_coordinators_word_that_nobody_is_there_is_final() {
    let (mut fresh, now) = request();
    assert_eq!(fresh.coordinator_failed(Fault::NoAgent, now, 0.5), Next::GiveUp);
    let mut begun = fresh.going_on(now + 60 * SECOND, true, true);
    assert_eq!(begun.coordinator_failed(Fault::NoAgent, now, 0.5), Next::Ask(FIRST_WAIT));
}

#[test]
fn a_lost_run_goes_on_at_its_agent_and_after_a_head_start_at_another() {
    for (resume, other, expected) in [
        (true, true, Next::GoOn { here: true, another_after: Some(HEAD_START) }),
        (true, false, Next::GoOn { here: true, another_after: None }),
        (false, true, Next::Ask(Duration::ZERO)),
        (false, false, Next::GiveUp),
    ] {
        let now = Instant::now();
        let mut tries = Tries::new(now + 60 * SECOND, resume, other);
        assert_eq!(tries.agent_failed("a", Fault::Lost, true, now, 0.5), expected);
    }
}

#[test]
fn what_failed_is_never_asked_again_and_few_runs_are_lost() {
    let (mut tries, now) = request();
    for agent in ["a", "b", "c"] {
        assert_eq!(tries.agent_failed(agent, Fault::Failed, false, now, 0.5), Next::Ask(Duration::ZERO), "{agent}");
        assert_eq!(tries.named(agent, now), Turn::GiveUp);
        assert!(!tries.may_ask(agent) && tries.may_ask("z"));
    }
    assert_eq!(tries.agent_failed("d", Fault::Failed, false, now, 0.5), Next::GiveUp);
    assert_eq!(tries.agent_failed("d", Fault::Lost, false, now, 0.5), Next::GoOn { here: true, another_after: None });
}

#[test]
fn a_run_that_goes_on_was_not_lost_and_its_agent_is_as_good_as_any() {
    let (mut tries, now) = request();
    for _ in 0..9 {
        let lost = tries.agent_failed("a", Fault::Lost, false, now, 0.5);
        assert_eq!(lost, Next::GoOn { here: true, another_after: Some(HEAD_START) });
        tries.goes_on("a");
    }
    assert!(tries.excluded(now).is_empty());
    tries.agent_failed("b", Fault::Failed, false, now, 0.5);
    let tries = tries.going_on(now + 60 * SECOND, true, true);
    assert_eq!(tries.excluded(now + 50 * SECOND), ["b"], "an answer remembers what failed it");
}

#[test]
fn an_old_token_is_exchanged_and_a_new_one_that_is_refused_takes_the_request_elsewhere() {
    let (mut tries, now) = request();
    assert_eq!(tries.agent_failed("a", Fault::Unfit, true, now, 0.5), Next::Ask(Duration::ZERO));
    assert_eq!((tries.excluded(now), tries.named("a", now)), (vec![], Turn::After(Duration::ZERO)));
    tries.agent_failed("a", Fault::Unfit, false, now, 0.5);
    assert_eq!((tries.excluded(now), tries.named("a", now)), (vec!["a".to_owned()], Turn::GiveUp));
    tries.agent_failed("b", Fault::Unusable, false, now, 0.5);
    tries.agent_failed("c", Fault::Draining, false, now, 0.5);
    assert_eq!(tries.named("c", now), Turn::After(FIRST_WAIT), "it may have restarted");
    assert_eq!(tries.agent_failed("d", Fault::Unfit, false, now, 0.5), Next::GiveUp, "all would say the same");
}

#[test]
fn what_nobody_would_take_is_told_at_once() {
    let (mut tries, now) = request();
    assert_eq!(tries.agent_failed("a", Fault::Refused, true, now, 0.5), Next::GiveUp);
    assert_eq!(tries.coordinator_failed(Fault::Refused, now, 0.5), Next::GiveUp);
}

#[test]
fn resuming_goes_on_while_the_way_to_the_agent_is_what_is_missing() {
    let now = Instant::now();
    let until = now + KEPT_TIME;
    for fault in [Fault::NoAnswer, Fault::Lost, Fault::Silent] {
        assert_eq!(resume_after(fault, 1, now, until, 0.5), Some(FIRST_WAIT), "{fault:?}");
        assert_eq!(resume_after(fault, 99, now, until, 0.5), Some(MAX_WAIT), "{fault:?}");
        assert_eq!(resume_after(fault, 1, until, until, 0.5), None, "{fault:?}");
    }
    for fault in [Fault::Gone, Fault::Unfit, Fault::Draining, Fault::Full(None), Fault::Refused, Fault::Failed] {
        assert_eq!(resume_after(fault, 1, now, until, 0.5), None, "{fault:?}");
    }
}

#[test]
fn the_coordinators_word_comes_before_the_deadline() {
    let (tries, now) = request();
    assert_eq!(tries.patience(now), 59 * SECOND);
    assert_eq!(tries.patience(now + 59 * SECOND), Duration::from_millis(900));
    assert_eq!(tries.patience(now + 61 * SECOND), Duration::ZERO);
}

#[test]
fn a_wait_without_measure_ends_the_request() {
    let (mut tries, now) = request();
    assert_eq!(tries.coordinator_failed(Fault::NotNow(Duration::MAX), now, 1.0), Next::TooLate);
    tries.agent_failed("a", Fault::Full(Some(Duration::MAX)), false, now, 1.0);
    assert_eq!(tries.named("a", now), Turn::TooLate);
}
