//! Answers that break off, and answers that nobody wants any more.

use futures_util::StreamExt as _;
use titan_client::{ClientError, Feature, Processed, Prompt, Wire, WirePreference};
use tonic::Code;

use crate::{MODEL, TestAgent, World, builder, eventually, say, soon};

const WIRES: [(WirePreference, Wire); 2] = [(WirePreference::Grpc, Wire::Http), (WirePreference::Quic, Wire::Quic)];

/// A world whose client uses one wire, and one agent for one answer.
async fn world(preference: WirePreference) -> World {
    let mut world = World::new().await;
    let builder = builder(&world.coordinator);
    world.client = builder.wire(preference).without(Feature::Move).build().unwrap();
    world
}

#[tokio::test]
async fn dropping_an_answer_stops_the_generation() {
    for (preference, wire) in WIRES {
        let world = world(preference).await;
        let mut generation = soon(world.client.generate(Prompt::new(MODEL, "then hang"))).await.unwrap();
        assert_eq!(generation.wire(), wire);
        assert_eq!(soon(generation.next()).await.unwrap().unwrap(), "then ");
        assert_eq!(world.agent.ended(), 0);
        drop(generation);
        eventually("the agent notices", || world.agent.ended() == 1).await;
        assert_eq!(world.say("one").await.0, "one", "the connection lives on");
    }
}

#[tokio::test]
async fn an_agent_killed_in_the_middle_is_an_error_and_not_another_run() {
    for (preference, wire) in WIRES {
        let mut world = world(preference).await;
        let other = TestAgent::start("agent-2").await;
        let mut generation = soon(world.client.generate(Prompt::new(MODEL, "then hang"))).await.unwrap();
        for piece in ["then ", "hang"] {
            assert_eq!(soon(generation.next()).await.unwrap().unwrap(), piece);
        }
        world.coordinator.name([other.place()]);
        world.agent.kill();
        let error = soon(generation.next()).await.unwrap().unwrap_err();
        assert!(matches!(error, ClientError::Broken { .. }), "{wire:?}: {error:?}");
        assert_eq!((error.processed(), error.retryable()), (Processed::Yes, true));
        assert!(soon(generation.next()).await.is_none());
        assert!(generation.usage().is_none());
        assert_eq!(other.runs(), 0);

        // The next request finds the kept route dead, and another agent.
        let (text, generation) = world.say("one").await;
        assert_eq!((text.as_str(), generation.agent_id(), generation.routed()), ("one", "agent-2", true));
    }
}

#[tokio::test]
async fn a_draining_agent_is_left_for_another() {
    for (preference, wire) in [(WirePreference::Grpc, Wire::Http), (WirePreference::Auto, Wire::Quic)] {
        let world = world(preference).await;
        let mut running = soon(world.client.generate(Prompt::new(MODEL, "then hang"))).await.unwrap();
        soon(running.next()).await.unwrap().unwrap();
        let other = TestAgent::start("agent-2").await;
        world.coordinator.name([other.place()]);
        world.agent.drain();
        let mut answers = 1;
        let moved = async {
            // The drain begins on another thread: until then the agent answers, and every answer is complete.
            loop {
                answers += 1;
                let (text, generation) = world.say("one two").await;
                assert_eq!((text.as_str(), generation.wire()), ("one two", wire));
                if generation.agent_id() == "agent-2" {
                    break;
                }
            }
        };
        soon(moved).await;
        assert_eq!((world.agent.runs() + other.runs(), other.runs()), (answers, 1), "{wire:?}");
        assert_eq!(soon(running.next()).await.unwrap().unwrap(), "hang", "what ran goes on");
    }
}

#[tokio::test]
async fn a_model_that_fails_is_not_tried_again() {
    for (preference, _) in WIRES {
        let world = world(preference).await;
        let mut generation = soon(world.client.generate(Prompt::new(MODEL, "then fail"))).await.unwrap();
        for piece in ["then ", "fail"] {
            assert_eq!(soon(generation.next()).await.unwrap().unwrap(), piece);
        }
        let error = soon(generation.next()).await.unwrap().unwrap_err();
        assert!(matches!(error, ClientError::Broken { code: Code::Internal, .. }), "{error:?}");
        assert_eq!(error.processed(), Processed::Yes);
        assert!(error.to_string().contains("broke down"), "{error}");
        assert_eq!(world.agent.runs(), 1);
    }
}

#[tokio::test]
async fn an_answer_without_a_last_message_is_incomplete() {
    for (preference, _) in WIRES {
        let world = world(preference).await;
        let mut generation = soon(world.client.generate(Prompt::new(MODEL, "then stop"))).await.unwrap();
        while let Some(Ok(_)) = soon(generation.next()).await {}
        assert!(generation.usage().is_none());
        let (_, complete) = say(&world.client, "one").await;
        assert!(complete.usage().is_some());
    }
}

#[tokio::test]
async fn a_closed_client_has_said_goodbye() {
    let world = world(WirePreference::Quic).await;
    let mut generation = soon(world.client.generate(Prompt::new(MODEL, "then hang"))).await.unwrap();
    soon(generation.next()).await.unwrap().unwrap();
    soon(world.client.close()).await;
    eventually("the agent notices", || world.agent.ended() == 1).await;
    while let Some(piece) = soon(generation.next()).await {
        if let Err(error) = piece {
            assert_eq!(error.processed(), Processed::Yes);
        }
    }
}
