//! How long a request is waited for, and what its error says then.

use std::time::Duration;

use axum::http::{StatusCode, header::RETRY_AFTER};
use futures_util::{StreamExt as _, future::join_all};
use titan_client::{ClientError, CoordinatorError, Processed, Prompt, WirePreference};
use tonic::Code;

use crate::{MODEL, World, agent::full, builder, coordinator::error, eventually, refused, soon};

const MINUTE: Duration = Duration::from_secs(60);

/// A world whose client has so long for a request.
async fn world(deadline: Duration) -> World {
    let mut world = World::new().await;
    world.client = builder(&world.coordinator).deadline(deadline).build().unwrap();
    world
}

#[tokio::test]
async fn a_full_agent_is_waited_for_when_it_says() {
    for preference in [WirePreference::Quic, WirePreference::Grpc] {
        let mut world = World::new().await;
        world.client = builder(&world.coordinator).wire(preference).build().unwrap();
        for _ in 0..10 {
            world.agent.refuse(full(Duration::from_millis(10)));
        }
        assert_eq!(world.say("one").await.0, "one");
        assert_eq!((world.agent.runs(), world.coordinator.asked()), (1, 11));
    }
}

#[tokio::test]
async fn sixty_four_requests_at_once_on_four_slots_are_all_answered() {
    let world = World::new().await;
    world.agent.probe.slots.store(4, std::sync::atomic::Ordering::SeqCst);
    let prompts: Vec<_> = (0..64).map(|n| format!("{n} {n}")).collect();
    let answers = join_all(prompts.iter().map(|prompt| world.say(prompt))).await;
    for (prompt, (text, _)) in prompts.iter().zip(answers) {
        assert_eq!(*prompt, text);
    }
    assert_eq!(world.agent.runs(), 64);
}

#[tokio::test]
async fn a_coordinator_that_has_no_room_or_has_just_started_is_waited_for() {
    let world = world(MINUTE).await;
    for code_word in ["no_capacity", "starting"] {
        let mut busy = error(StatusCode::SERVICE_UNAVAILABLE, code_word);
        busy.headers_mut().insert(RETRY_AFTER, 1.into());
        world.coordinator.refuse(busy);
    }
    let (text, generation) = world.say("one").await;
    assert_eq!((text.as_str(), generation.routed(), world.coordinator.asked()), ("one", true, 3));
}

#[tokio::test]
async fn a_place_in_the_coordinators_queue_is_kept_until_an_agent_has_room() {
    let world = world(MINUTE).await;
    world.coordinator.set_full(true);
    let room = async {
        // The coordinator was asked beside it whether it is there.
        eventually("it is asked again", || world.coordinator.asked() >= 2).await;
        world.coordinator.set_full(false);
    };
    let ((text, _), ()) = tokio::join!(world.say("one"), room);
    assert_eq!(text, "one");
    assert_eq!((world.coordinator.asked(), world.client.stats().rest_calls), (2, 1), "it has not left the queue");
}

#[tokio::test]
async fn a_place_in_the_queue_lasts_until_shortly_before_the_deadline() {
    let world = world(Duration::from_secs(2)).await;
    world.coordinator.set_full(true);
    let error = world.refused("one").await;
    let ClientError::TimedOut { tried, last: Some(last), .. } = &error else { panic!("{error:?}") };
    assert!(matches!(**last, ClientError::Coordinator(CoordinatorError::Refused { .. })), "{last:?}");
    assert!(tried.contains("no_capacity"), "{tried}");
}

#[tokio::test]
async fn nothing_is_waited_for_that_comes_after_the_deadline() {
    let world = world(MINUTE).await;
    world.agent.refuse(full(2 * MINUTE));
    let error = world.refused("one").await;
    assert_eq!((error.processed(), error.retryable(), error.retry_after()), (Processed::No, true, Some(2 * MINUTE)));
    let ClientError::TimedOut { within, tried, last: Some(last), .. } = &error else { panic!("{error:?}") };
    assert_eq!(*within, MINUTE);
    assert!(tried.contains("agent-1") && tried.contains("all job slots are taken"), "{tried}");
    assert!(matches!(**last, ClientError::Refused { code: Code::ResourceExhausted, .. }), "{last:?}");
    assert_eq!((world.coordinator.asked(), world.agent.runs()), (2, 0), "another agent may have had room");
}

#[tokio::test]
async fn the_error_says_what_was_tried_and_how_often() {
    let world = world(Duration::from_secs(1)).await;
    world.coordinator.stop().await;
    let error = world.refused("one").await;
    let ClientError::TimedOut { tried, last: Some(last), .. } = &error else { panic!("{error:?}") };
    assert!(matches!(**last, ClientError::Coordinator(CoordinatorError::Unreachable { .. })), "{last:?}");
    assert!(tried.contains("no coordinator answers at") && tried.contains(" times)"), "{tried}");
}

#[tokio::test]
async fn an_agent_that_sends_no_text_has_until_the_deadline_and_an_answer_that_flows_has_not() {
    for preference in [WirePreference::Quic, WirePreference::Grpc] {
        let mut world = World::new().await;
        let builder = builder(&world.coordinator).wire(preference).deadline(Duration::from_secs(1));
        world.client = builder.build().unwrap();
        let mut flows = soon(world.client.generate(Prompt::new(MODEL, "then hang"))).await.unwrap();
        for word in ["then ", "hang"] {
            assert_eq!(soon(flows.next()).await.unwrap().unwrap(), word);
        }
        let mut thinks = soon(world.client.generate(Prompt::new(MODEL, "think"))).await.unwrap();
        let error = soon(thinks.next()).await.unwrap().unwrap_err();
        assert!(matches!(error, ClientError::TimedOut { processed: Processed::Maybe, .. }), "{error:?}");
        assert!(error.to_string().contains("agent-1"), "{error}");
        assert!(soon(thinks.next()).await.is_none());
        eventually("the agent is told", || world.agent.ended() == 1).await;
        assert!(futures_util::poll!(flows.next()).is_pending(), "it began before, and may go on");
    }
}

#[tokio::test]
async fn a_prompt_may_have_a_deadline_of_its_own() {
    let world = world(MINUTE).await;
    let prompt = Prompt { deadline: Some(Duration::from_millis(300)), ..Prompt::new(MODEL, "think") };
    let mut generation = soon(world.client.generate(prompt)).await.unwrap();
    let error = soon(generation.next()).await.unwrap().unwrap_err();
    let ClientError::TimedOut { within, .. } = error else { panic!("{error:?}") };
    assert_eq!(within, Duration::from_millis(300));

    let forever = builder(&world.coordinator).deadline(Duration::MAX).build().unwrap();
    world.agent.refuse(tonic::Status::invalid_argument("no"));
    assert!(matches!(refused(&forever, "one").await, ClientError::Refused { .. }), "no overflow");
}
