//! What the coordinator is told of requests.

use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use titan_client::Prompt;
use tonic::Status;

use crate::{MODEL, TestAgent, TestCoordinator, World, builder, eventually, relay::DeadHost, say, soon};

/// What came of which job at which agent.
fn told(coordinator: &TestCoordinator) -> Vec<(String, Value, Value)> {
    let told = coordinator.outcomes().into_iter();
    told.map(|(job, report)| (job, report["outcome"].clone(), report["agent_id"].clone())).collect()
}

#[tokio::test]
async fn a_lost_agent_is_told_at_once_and_its_next_success_too_and_other_successes_are_not() {
    let mut world = World::new().await;
    let other = TestAgent::start("agent-2").await;
    world.say("one").await;
    let mut generation = soon(world.client.generate(Prompt::new(MODEL, "then hang"))).await.unwrap();
    soon(generation.next()).await.unwrap().unwrap();
    world.coordinator.name([other.place()]);
    world.agent.kill();
    while let Some(piece) = soon(generation.next()).await {
        piece.unwrap();
    }
    assert_eq!(generation.moved(), 1);
    eventually("it is told", || !world.coordinator.outcomes().is_empty()).await;
    let (job, report) = world.coordinator.outcomes().remove(0);
    assert_eq!((job.as_str(), &report["outcome"], &report["agent_id"]), ("job_1", &json!("broken"), &json!("agent-1")));
    assert_eq!((&report["session_token"], &report["wire"]), (&json!("token-1"), &json!("quic")));
    assert!(report["message"].as_str().is_some_and(|message| !message.contains("hang")), "{report}");

    let (grpc, quic) = (world.agent.grpc, world.agent.quic);
    world.agent = TestAgent::start_at("agent-1", grpc, quic).await;
    world.coordinator.name([world.agent.place()]);
    world.client.forget();
    for text in ["two", "three"] {
        world.say(text).await;
    }
    eventually("the success is told", || world.coordinator.outcomes().len() > 1).await;
    // One that is dropped is not worth a word now that all is well.
    drop(soon(world.client.generate(Prompt::new(MODEL, "then hang"))).await.unwrap());
    eventually("the agent notices", || world.agent.ended() == 3).await;
    let broken = ("job_1".to_owned(), json!("broken"), json!("agent-1"));
    let completed = ("job_3".to_owned(), json!("completed"), json!("agent-1"));
    assert_eq!(told(&world.coordinator), [broken, completed]);
}

#[tokio::test]
async fn an_agent_that_cannot_be_reached_is_told() {
    let (dead, alive) = (DeadHost::new().await, TestAgent::start("agent-2").await);
    let coordinator = TestCoordinator::start([]).await;
    coordinator.choose([dead.place("agent-1"), alive.place()]);
    let client = builder(&coordinator).build().unwrap();
    say(&client, "one").await;
    eventually("it is told", || !coordinator.outcomes().is_empty()).await;
    assert_eq!(told(&coordinator), [("job_1".to_owned(), json!("unreachable"), json!("agent-1"))]);
}

#[tokio::test]
async fn an_agent_that_takes_no_tokens_is_told_and_one_that_is_full_or_was_asked_nonsense_is_not() {
    let world = World::new().await;
    let other = TestAgent::start("agent-2").await;
    world.coordinator.choose([world.agent.place(), other.place()]);
    for status in [
        Status::resource_exhausted("full"),
        Status::unavailable("draining"),
        Status::invalid_argument("top_q: my secret"),
        Status::unauthenticated("the token is not valid yet"),
    ] {
        world.agent.refuse(status);
        world.client.forget();
        let _ = soon(world.client.generate(Prompt::new(MODEL, "one"))).await;
    }
    eventually("it is told", || !world.coordinator.outcomes().is_empty()).await;
    let reports = world.coordinator.outcomes();
    assert_eq!((reports.len(), &reports[0].1["outcome"]), (1, &json!("refused")), "{reports:?}");
    assert_eq!(reports[0].1["message"], "it answered Unauthenticated");
}

#[tokio::test]
async fn a_time_out_is_told_and_a_connection_over_which_the_answer_went_on_is_not() {
    let world = World::new().await;
    let mut generation = soon(world.client.generate(Prompt::new(MODEL, "then hang"))).await.unwrap();
    soon(generation.next()).await.unwrap().unwrap();
    world.client.disconnect();
    while let Some(piece) = soon(generation.next()).await {
        piece.unwrap();
    }
    assert_eq!(generation.resumed(), 1);
    let prompt = Prompt { deadline: Some(Duration::from_millis(200)), ..Prompt::new(MODEL, "think") };
    let mut late = soon(world.client.generate(prompt)).await.unwrap();
    soon(late.next()).await.unwrap().unwrap_err();
    eventually("it is told", || !world.coordinator.outcomes().is_empty()).await;
    assert_eq!(told(&world.coordinator), [("job_1".to_owned(), json!("timed_out"), json!("agent-1"))]);
}
