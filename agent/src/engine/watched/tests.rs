//! By doing: an engine that hangs, panics, fails, slows down and comes back, in paused time.

#![allow(clippy::unwrap_used)]

mod scripted;

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use self::scripted::{Place, Script, Scripted, Step};
use super::{
    super::{Engine, EngineError, Event, Generate, Health, Sampling},
    PROBE_OWNER, PROMPT_BYTES, Watched,
};

const TIMEOUT: Duration = Duration::from_secs(60);
const MODEL: &str = "m";

fn watched(models: &[&str]) -> (Scripted, Watched) {
    let scripted = Scripted::new(models);
    (scripted.clone(), Watched::new(Arc::new(scripted), TIMEOUT))
}

fn asked(model: &str) -> Generate {
    Generate { owner: "client".to_owned(), ..Generate::new(model, "", Sampling::greedy(8)) }
}

/// The texts of an answer, and how it ended: `None` where its stream did.
async fn answer(engine: &Watched, model: &str) -> (String, Option<Result<(), EngineError>>) {
    let mut stream = match engine.generate(asked(model)).await {
        Ok(stream) => stream,
        Err(error) => return (String::new(), Some(Err(error))),
    };
    let mut text = String::new();
    while let Some(event) = stream.recv().await {
        match event {
            Ok(Event::Piece(piece)) => text.push_str(&piece.text),
            Ok(Event::Done(_)) => return (text, Some(Ok(()))),
            Err(error) => return (text, Some(Err(error))),
        }
    }
    (text, None)
}

/// Lets everything run that waits for nothing but its turn.
async fn settle() {
    sleep(Duration::from_millis(1)).await;
}

fn failure() -> Step {
    Step::Fails(EngineError::Failed("boom".to_owned()))
}

/// Three failures.
async fn degrade(scripted: &Scripted, engine: &Watched, model: &str) {
    for _ in 0..3 {
        scripted.next(model, &[failure()]);
        assert!(matches!(answer(engine, model).await, (_, Some(Err(EngineError::Failed(_))))));
    }
    assert!(matches!(engine.health(), Health::Degraded { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_hang_before_the_first_token_is_an_error_and_the_engine_is_built_anew() {
    let (scripted, engine) = watched(&[MODEL]);
    scripted.next(MODEL, &[Step::Hangs]);
    let began = Instant::now();
    let (text, end) = answer(&engine, MODEL).await;
    assert!(text.is_empty() && matches!(end, Some(Err(EngineError::Hung { seconds: 60 }))), "{end:?}");
    assert_eq!(began.elapsed().as_secs(), 60);
    settle().await;
    assert_eq!(scripted.seen(|seen| (seen.let_go, seen.restarts.clone())), (1, vec![MODEL.to_owned()]));
    assert_eq!(engine.health(), Health::Healthy, "once is not a row");
    assert_eq!(answer(&engine, MODEL).await.0, "well");
}

#[tokio::test(start_paused = true)]
async fn a_hang_in_the_middle_leaves_the_text_and_those_beside_it() {
    let (scripted, engine) = watched(&[MODEL]);
    scripted.next(MODEL, &[Step::Says("Once "), Step::Takes(TIMEOUT / 2), Step::Says("upon"), Step::Hangs]);
    let slow = std::iter::repeat_n([Step::Says("a"), Step::Takes(TIMEOUT - Duration::from_secs(1))], 4).flatten();
    scripted.next(MODEL, &slow.chain([Step::Ends]).collect::<Vec<_>>());
    let began = Instant::now();
    let ((text, end), beside) = tokio::join!(answer(&engine, MODEL), async {
        let answer = answer(&engine, MODEL).await;
        (answer, began.elapsed().as_secs())
    });
    assert_eq!(text, "Once upon");
    assert!(matches!(end, Some(Err(EngineError::Hung { seconds: 60 }))), "{end:?}");
    let ((text, end), took) = beside;
    assert_eq!((text.as_str(), took), ("aaaa", 59 * 4), "slow, but each token came in time");
    assert!(matches!(end, Some(Ok(()))), "{end:?}");
    assert_eq!(scripted.seen(|seen| seen.restarts.len()), 1);
}

#[tokio::test(start_paused = true)]
async fn one_that_slows_down_within_the_limit_is_left_alone() {
    let (scripted, engine) = watched(&[MODEL]);
    for seconds in [1, 30, 59, 59, 59] {
        let steps = [Step::Takes(Duration::from_secs(seconds)), Step::Says("x"), Step::Takes(Duration::from_secs(59))];
        scripted.next(MODEL, &[steps.as_slice(), &[Step::Ends]].concat());
        assert!(matches!(answer(&engine, MODEL).await, (text, Some(Ok(()))) if text == "x"));
    }
    settle().await;
    assert_eq!(scripted.seen(|seen| seen.restarts.len()), 0);
    assert_eq!(engine.health(), Health::Healthy);
}

#[tokio::test(start_paused = true)]
async fn a_long_prompt_gets_more_time_for_its_first_token_and_only_for_that() {
    let (scripted, engine) = watched(&[MODEL]);
    let prompt = "x".repeat(2 * PROMPT_BYTES as usize);
    let long = || Generate::new(MODEL, prompt.clone(), Sampling::greedy(8));
    scripted.next(MODEL, &[Step::Takes(3 * TIMEOUT - Duration::from_secs(1)), Step::Says("x"), Step::Hangs]);
    let began = Instant::now();
    let mut stream = engine.generate(long()).await.unwrap();
    assert!(matches!(stream.recv().await, Some(Ok(Event::Piece(_)))));
    assert_eq!(began.elapsed().as_secs(), 179);
    assert!(matches!(stream.recv().await, Some(Err(EngineError::Hung { seconds: 60 }))));
    scripted.next(MODEL, &[Step::Hangs]);
    let mut stream = engine.generate(long()).await.unwrap();
    assert!(matches!(stream.recv().await, Some(Err(EngineError::Hung { seconds: 180 }))));
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_place_and_a_slow_reader_do_not_count() {
    let (scripted, engine) = watched(&[MODEL]);
    let says = vec![Step::Says("x"); 500];
    let steps = [says.as_slice(), &[Step::Ends]].concat();
    scripted.script(MODEL, Script { place: Place::After(TIMEOUT * 10), steps });
    let mut stream = engine.generate(asked(MODEL)).await.unwrap();
    let mut pieces = 0;
    while let Some(event) = stream.recv().await {
        match event.unwrap() {
            Event::Piece(_) => pieces += 1,
            Event::Done(_) => break,
        }
        if pieces % 100 == 0 {
            sleep(TIMEOUT * 10).await;
        }
    }
    assert_eq!(pieces, 500);
    assert_eq!(scripted.seen(|seen| seen.restarts.len()), 0);
}

#[tokio::test(start_paused = true)]
async fn a_panicking_engine_degrades_is_half_open_while_it_is_tried_and_healthy_when_a_token_comes() {
    let (scripted, engine) = watched(&[MODEL]);
    for step in [Step::Panics, Step::Stops, Step::Panics] {
        assert_eq!(engine.health(), Health::Healthy);
        scripted.next(MODEL, &[Step::Says("x"), step]);
        assert!(matches!(answer(&engine, MODEL).await, (text, None) if text == "x"), "the stream just ends");
    }
    let Health::Degraded { reason } = engine.health() else { panic!("{:?}", engine.health()) };
    assert_eq!(reason, "m: the engine failed: it stopped without saying why");
    // The first probe fails, the second one takes a while and succeeds.
    scripted.next(MODEL, &[failure()]);
    scripted.next(MODEL, &[Step::Takes(Duration::from_secs(3)), Step::Says("x"), Step::Ends]);
    sleep(Duration::from_secs(4)).await;
    assert_eq!(scripted.probes(), 0, "not yet due");
    sleep(Duration::from_secs(2)).await;
    assert_eq!(
        (scripted.probes(), engine.health()),
        (1, Health::Degraded { reason: "m: the engine failed: boom".into() })
    );
    sleep(Duration::from_secs(8)).await;
    assert_eq!(scripted.probes(), 1, "the pause is longer now");
    sleep(Duration::from_secs(2)).await;
    assert_eq!(
        (scripted.probes(), engine.health()),
        (2, Health::HalfOpen { reason: "m: the engine failed: boom".into() })
    );
    sleep(Duration::from_secs(3)).await;
    assert_eq!(engine.health(), Health::Healthy);
    sleep(Duration::from_secs(10_000)).await;
    assert_eq!(scripted.probes(), 2, "nobody is probed who is healthy");
    assert_eq!(scripted.seen(|seen| seen.restarts.len()), 0, "nothing hung");
}

#[tokio::test(start_paused = true)]
async fn a_model_that_stays_broken_is_tried_less_and_less_and_never_twice_at_once() {
    let (scripted, engine) = watched(&[MODEL]);
    for _ in 0..10_000 {
        scripted.next(MODEL, &[failure()]);
    }
    for _ in 0..3 {
        let _ = answer(&engine, MODEL).await;
    }
    // Clients go on asking, and each of them fails.
    for _ in 0..60 {
        sleep(Duration::from_secs(60)).await;
        let _ = tokio::join!(answer(&engine, MODEL), answer(&engine, MODEL), answer(&engine, MODEL));
    }
    // 5 + 10 + 20 + … + 160 + 300 + 300 + … seconds, in an hour.
    assert_eq!(scripted.probes(), 6 + (3600 - 315) / 300);
    assert_eq!(scripted.seen(|seen| seen.most_probing), 1);
    assert!(matches!(engine.health(), Health::Degraded { .. }));
}

#[tokio::test(start_paused = true)]
async fn probes_ask_for_one_token_as_nobodys_client() {
    let (scripted, engine) = watched(&[MODEL]);
    degrade(&scripted, &engine, MODEL).await;
    sleep(Duration::from_secs(6)).await;
    assert_eq!(scripted.seen(|seen| seen.asked.last().cloned()), Some((PROBE_OWNER.to_owned(), MODEL.to_owned())));
    assert_eq!(engine.health(), Health::Healthy);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_hangs_has_the_engine_built_anew_as_well() {
    let (scripted, engine) = watched(&[MODEL]);
    degrade(&scripted, &engine, MODEL).await;
    scripted.next(MODEL, &[Step::Hangs]);
    sleep(Duration::from_secs(6)).await;
    assert!(matches!(engine.health(), Health::HalfOpen { .. }));
    sleep(TIMEOUT + Duration::from_secs(1)).await;
    assert_eq!(scripted.seen(|seen| (seen.let_go, seen.restarts.len())), (1, 1));
    let Health::Degraded { reason } = engine.health() else { panic!("{:?}", engine.health()) };
    assert!(reason.contains("no token for 60 s"), "{reason}");
    sleep(Duration::from_secs(11)).await;
    assert_eq!((scripted.probes(), engine.health()), (2, Health::Healthy));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_gets_no_place_is_tried_again_after_the_same_pause() {
    let (scripted, engine) = watched(&[MODEL]);
    degrade(&scripted, &engine, MODEL).await;
    for _ in 0..2 {
        scripted.script(MODEL, Script { place: Place::Never, ..Script::default() });
    }
    let began = Instant::now();
    while engine.health() != Health::Healthy {
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!((began.elapsed().as_secs(), scripted.probes()), (3 * 5 + 2 * 60, 3));
    assert_eq!(scripted.seen(|seen| seen.restarts.len()), 0, "a wait for a place is no hang");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_answered_makes_it_healthy_too() {
    let (scripted, engine) = watched(&[MODEL]);
    degrade(&scripted, &engine, MODEL).await;
    assert_eq!(answer(&engine, MODEL).await.0, "well");
    assert_eq!(engine.health(), Health::Healthy);
    sleep(Duration::from_secs(1000)).await;
    assert_eq!(scripted.probes(), 0);
    // And degraded again, it has one prober and not two.
    degrade(&scripted, &engine, MODEL).await;
    assert_eq!(answer(&engine, MODEL).await.0, "well");
    degrade(&scripted, &engine, MODEL).await;
    sleep(Duration::from_secs(6)).await;
    assert_eq!(scripted.probes(), 1);
}

#[tokio::test(start_paused = true)]
async fn each_hang_is_restarted_once_and_one_after_another() {
    let (scripted, engine) = watched(&["a", "b"]);
    for model in ["a", "a", "a", "b"] {
        scripted.next(model, &[Step::Hangs]);
        scripted.next_restart(Duration::from_secs(2), Ok(()));
    }
    let began = Instant::now();
    let hung = tokio::join!(answer(&engine, "a"), answer(&engine, "a"), answer(&engine, "a"), answer(&engine, "b"));
    for (_, end) in [hung.0, hung.1, hung.2, hung.3] {
        assert!(matches!(end, Some(Err(EngineError::Hung { .. }))), "{end:?}");
    }
    assert_eq!(began.elapsed(), TIMEOUT, "nobody waits for a restart");
    assert!(matches!(engine.health(), Health::Degraded { .. }));
    // The probe of `a` waits for the last of three restarts.
    sleep(Duration::from_secs(7)).await;
    let mut restarts = scripted.seen(|seen| seen.restarts.clone());
    restarts.sort_unstable();
    assert_eq!(restarts, ["a", "a", "a", "b"]);
    assert_eq!(scripted.seen(|seen| seen.most_restarting), 1);
    assert_eq!(engine.health(), Health::Healthy);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_built_anew_is_degraded_at_once_and_tried_again() {
    let (scripted, engine) = watched(&[MODEL]);
    scripted.next(MODEL, &[Step::Hangs]);
    for _ in 0..2 {
        scripted.next_restart(Duration::from_secs(1), Err(EngineError::Failed("its file is gone".to_owned())));
    }
    let _ = answer(&engine, MODEL).await;
    sleep(Duration::from_secs(2)).await;
    let gone = || Health::Degraded { reason: "m: the engine failed: its file is gone".to_owned() };
    assert_eq!(engine.health(), gone());
    sleep(Duration::from_secs(7)).await;
    assert_eq!((scripted.seen(|seen| seen.restarts.len()), scripted.probes(), engine.health()), (2, 0, gone()));
    sleep(Duration::from_secs(12)).await;
    assert_eq!((scripted.seen(|seen| seen.restarts.len()), scripted.probes()), (3, 1));
    assert_eq!(engine.health(), Health::Healthy);
}

#[tokio::test(start_paused = true)]
async fn one_sick_model_is_named_and_the_other_serves() {
    let (scripted, engine) = watched(&["sick", "well"]);
    for _ in 0..3 {
        scripted.next("sick", &[Step::Hangs]);
        let _ = answer(&engine, "sick").await;
        assert!(matches!(answer(&engine, "well").await, (text, Some(Ok(()))) if text == "well"));
    }
    let Health::Degraded { reason } = engine.health() else { panic!("{:?}", engine.health()) };
    assert!(reason.starts_with("sick: ") && !reason.contains("well"), "{reason}");
    assert!(scripted.seen(|seen| seen.restarts.iter().all(|model| model == "sick")));
    scripted.next("sick", &[Step::Hangs]);
    sleep(Duration::from_secs(6)).await;
    assert!(matches!(engine.health(), Health::HalfOpen { reason } if reason.starts_with("sick: ")));
    // The worst of several, and the engine's own view of itself.
    scripted.own_health(Health::Degraded { reason: "its server is away".to_owned() });
    assert_eq!(engine.health(), Health::Degraded { reason: "its server is away".to_owned() });
    degrade(&scripted, &engine, "well").await;
    let both = "its server is away; well: the engine failed: boom".to_owned();
    assert_eq!(engine.health(), Health::Degraded { reason: both });
}

#[tokio::test(start_paused = true)]
async fn refusals_and_readers_that_go_away_count_for_nothing() {
    let (scripted, engine) = watched(&[MODEL]);
    for at in 0..10 {
        let refusal = EngineError::InvalidParameter("top_p".to_owned());
        match at % 3 {
            0 => scripted.next(MODEL, &[Step::Fails(refusal)]),
            1 => scripted.script(MODEL, Script { place: Place::Refused(refusal), ..Script::default() }),
            _ => {
                scripted.next(MODEL, &[Step::Says("x"), Step::Hangs]);
                let mut stream = engine.generate(asked(MODEL)).await.unwrap();
                stream.recv().await.unwrap().unwrap();
                let let_go = scripted.seen(|seen| seen.let_go);
                drop(stream);
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
                assert_eq!(scripted.seen(|seen| seen.let_go), let_go + 1, "at once, and not when it would be hung");
                continue;
            }
        }
        assert!(matches!(answer(&engine, MODEL).await, (_, Some(Err(EngineError::InvalidParameter(_))))));
    }
    let unknown = answer(&engine, "unknown").await;
    assert!(matches!(&unknown, (text, Some(Ok(()))) if text == "well"), "passed on as it is: {unknown:?}");
    assert_eq!(engine.health(), Health::Healthy);
    // A refusal in between does not end a row of failures either.
    for refused in [false, true, false, true, false] {
        let error = if refused { EngineError::Unsupported("x".into()) } else { EngineError::Failed("x".into()) };
        scripted.script(MODEL, Script { place: Place::Refused(error), ..Script::default() });
        let _ = answer(&engine, MODEL).await;
    }
    assert!(matches!(engine.health(), Health::Degraded { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_queue_is_left_where_the_future_is_dropped_and_the_rest_is_passed_on() {
    let (scripted, engine) = watched(&["idle", "other"]);
    scripted.script("idle", Script { place: Place::Never, ..Script::default() });
    assert!(tokio::time::timeout(TIMEOUT * 100, engine.generate(asked("idle"))).await.is_err(), "it waits as without");
    assert_eq!((engine.queued(), engine.computing(), engine.cached_prefixes()), (7, 8, vec![9]));
    assert_eq!((engine.idle("idle"), engine.idle("other")), (true, false));
    assert_eq!(engine.models(), ["idle", "other"]);
    assert_eq!(engine.model_info().len(), 2);
    assert_eq!(engine.health(), Health::Healthy);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_behind_when_the_engine_goes() {
    let (scripted, engine) = watched(&[MODEL]);
    degrade(&scripted, &engine, MODEL).await;
    scripted.next(MODEL, &[Step::Hangs]);
    sleep(Duration::from_secs(6)).await;
    assert!(matches!(engine.health(), Health::HalfOpen { .. }));
    drop(engine);
    settle().await;
    assert_eq!(scripted.seen(|seen| (seen.probing, seen.let_go)), (0, 1));
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
}
