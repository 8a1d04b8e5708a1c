//! Agents that are dead, silent or unwilling, at the beginning of a request.

use std::time::Duration;

use titan_client::{ClientError, Wire, WirePreference};
use titan_proto::rest::GrpcTls;
use titan_transport::limits::HANDSHAKE_TIMEOUT;
use tonic::Status;

use crate::{
    TestAgent, TestCoordinator, World,
    agent::full,
    builder, refused,
    relay::{Cable, DeadHost, Relay},
    say, soon,
};

const PREFERENCES: [WirePreference; 3] = [WirePreference::Auto, WirePreference::Quic, WirePreference::Grpc];

#[tokio::test]
async fn an_agent_that_failed_is_excluded_from_the_next_try_of_a_first_request() {
    for preference in PREFERENCES {
        let (mut gone, other) = (TestAgent::start("agent-1").await, TestAgent::start("agent-2").await);
        let coordinator = TestCoordinator::start([]).await;
        coordinator.choose([gone.place(), other.place()]);
        gone.kill();
        let client = builder(&coordinator).wire(preference).build().unwrap();
        let (text, generation) = say(&client, "one").await;
        assert_eq!((text.as_str(), generation.agent_id()), ("one", "agent-2"), "{preference:?}");
        assert_eq!(coordinator.question()["parameters"]["exclude_agents"], "agent-1");
        assert_eq!(coordinator.asked(), 2, "{preference:?}");
    }
}

#[tokio::test]
async fn an_agent_that_refuses_is_left_for_another() {
    for status in [
        full(Duration::from_secs(60)),
        Status::unavailable("draining"),
        Status::unauthenticated("the token is not valid yet"),
        Status::not_found("no such model"),
    ] {
        let world = World::new().await;
        let other = TestAgent::start("agent-2").await;
        world.coordinator.choose([world.agent.place(), other.place()]);
        world.agent.refuse(status.clone());
        let (_, generation) = world.say("one").await;
        assert_eq!((generation.agent_id(), world.coordinator.asked()), ("agent-2", 2), "{status:?}");
    }
}

#[tokio::test]
async fn an_agent_that_refuses_every_token_is_an_error_where_there_is_no_other() {
    let world = World::new().await;
    for _ in 0..9 {
        world.agent.refuse(Status::unauthenticated("the token is not valid yet"));
    }
    let error = world.refused("one").await;
    assert!(matches!(error, ClientError::Refused { .. }) && error.to_string().contains("not valid yet"), "{error:?}");
    assert_eq!((error.retryable(), world.coordinator.asked()), (false, 2));
}

#[tokio::test]
async fn a_dead_host_is_given_up_sooner_than_a_handshake_where_another_agent_is_there() {
    for preference in PREFERENCES {
        let (dead, alive) = (DeadHost::new().await, TestAgent::start("agent-2").await);
        let coordinator = TestCoordinator::start([]).await;
        coordinator.choose([dead.place("agent-1"), alive.place()]);
        // The time that a single handshake may take.
        let client = builder(&coordinator).wire(preference).deadline(HANDSHAKE_TIMEOUT).build().unwrap();
        let (text, generation) = say(&client, "one").await;
        assert_eq!((text.as_str(), generation.agent_id()), ("one", "agent-2"), "{preference:?}");
        assert_eq!(coordinator.asked(), 2, "{preference:?}");
        // Further requests do not meet it.
        assert!(!say(&client, "two").await.1.routed());
    }
}

#[tokio::test]
async fn a_dead_host_alone_is_an_error_that_says_what_was_tried() {
    for preference in PREFERENCES {
        let dead = DeadHost::new().await;
        let coordinator = TestCoordinator::start([dead.place("agent-1")]).await;
        let client = builder(&coordinator).wire(preference).deadline(Duration::from_secs(6)).build().unwrap();
        let error = refused(&client, "one").await;
        let ClientError::TimedOut { tried, last: Some(last), .. } = &error else { panic!("{preference:?}: {error:?}") };
        assert!(matches!(**last, ClientError::Unreachable { gone: false, .. }), "{last:?}");
        assert!(tried.contains("agent-1") && tried.contains("no answer from"), "{tried}");
        assert!(coordinator.asked() > 1, "another agent may have come");
    }
}

#[tokio::test]
async fn an_agent_alone_is_asked_again_until_it_can_be_reached() {
    let world = World::new().await;
    let relay = Relay::to(world.agent.quic).await;
    relay.pass(false, false);
    world.coordinator.name([world.agent.place_with(GrpcTls::None, Some(relay.addr))]);
    let client = builder(&world.coordinator).wire(WirePreference::Quic).build().unwrap();
    let come_back = async {
        // It has been given up once.
        while world.coordinator.asked() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        relay.pass(true, true);
    };
    let ((text, generation), ()) = tokio::join!(say(&client, "one"), soon(come_back));
    assert_eq!((text.as_str(), generation.agent_id(), world.agent.runs()), ("one", "agent-1", 1));
}

#[tokio::test]
async fn an_agent_behind_a_satellite_is_reached() {
    let world = World::new().await;
    let (relay, dead) = (Relay::satellite(world.agent.quic).await, DeadHost::new().await);
    let mut place = world.agent.place_with(GrpcTls::None, Some(relay.addr));
    place.endpoints.grpc.as_mut().unwrap().address = dead.tcp.to_string();
    world.coordinator.name([place]);
    let (text, generation) = world.say("one two three").await;
    assert_eq!((text.as_str(), generation.wire(), world.agent.runs()), ("one two three", Wire::Quic, 1));
}

#[tokio::test]
async fn a_warm_connection_that_is_silent_is_given_up_at_the_start_of_a_request() {
    for preference in [WirePreference::Quic, WirePreference::Grpc] {
        let mut world = World::new().await;
        let other = TestAgent::start("agent-2").await;
        let (relay, cable) = (Relay::to(world.agent.quic).await, Cable::to(world.agent.grpc).await);
        let mut place = world.agent.place_with(GrpcTls::None, Some(relay.addr));
        place.endpoints.grpc.as_mut().unwrap().address = cable.addr.to_string();
        world.coordinator.choose([place, other.place()]);
        // Long before the connection is lost, which takes 30 s.
        let builder = builder(&world.coordinator).wire(preference).deadline(2 * HANDSHAKE_TIMEOUT);
        world.client = builder.build().unwrap();
        assert_eq!(world.say("one").await.1.agent_id(), "agent-1");
        relay.pass(false, false);
        cable.freeze();
        let (text, generation) = world.say("two three").await;
        assert_eq!((text.as_str(), generation.agent_id()), ("two three", "agent-2"), "{preference:?}");
        assert_eq!((world.agent.runs(), other.runs()), (1, 1), "{preference:?}");
    }
}

#[tokio::test]
async fn a_connection_that_ended_while_it_was_idle_is_made_anew() {
    let mut world = World::new().await;
    let cable = Cable::to(world.agent.grpc).await;
    let mut place = world.agent.place_with(GrpcTls::None, None);
    place.endpoints.grpc.as_mut().unwrap().address = cable.addr.to_string();
    world.coordinator.name([place]);
    world.client = builder(&world.coordinator).wire(WirePreference::Grpc).build().unwrap();
    for text in ["one", "two", "three"] {
        assert_eq!(world.say(text).await.0, text);
        cable.cut();
        // The channel notices.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(world.agent.runs(), 3);
}

#[tokio::test]
async fn a_run_that_is_lost_before_it_begins_is_run_once() {
    let mut world = World::new().await;
    world.client = builder(&world.coordinator).wire(WirePreference::Quic).build().unwrap();
    let relay = Relay::to(world.agent.quic).await;
    world.coordinator.name([world.agent.place_with(GrpcTls::None, Some(relay.addr))]);
    world.say("one").await;
    // The request comes, and its answer does not.
    relay.pass(true, false);
    let lost = async {
        while world.agent.runs() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        world.client.disconnect();
        relay.pass(true, true);
    };
    let ((text, generation), ()) = tokio::join!(world.say("two three"), soon(lost));
    assert_eq!((text.as_str(), generation.wire()), ("two three", Wire::Quic));
    assert_eq!((world.agent.runs(), world.client.stats().resumed), (2, 1));
}

#[tokio::test]
async fn a_model_that_fails_at_once_is_asked_a_few_times_and_no_more() {
    // The agent says that it is not available, in place of an answer.
    let world = World::new().await;
    let error = world.refused("fail").await;
    assert!(error.to_string().contains("the model broke down"), "{error}");
    assert_eq!((error.retryable(), world.agent.runs()), (true, 4));
}
