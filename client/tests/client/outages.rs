//! A coordinator that is away, and a network that is.

use std::time::Duration;

use axum::{
    http::{StatusCode, header::RETRY_AFTER},
    response::IntoResponse as _,
};
use futures_util::StreamExt as _;
use titan_client::{Prompt, TitanClient, WirePreference};
use titan_proto::rest::GrpcTls;

use crate::{
    MODEL, World, builder, certs,
    coordinator::error,
    eventually,
    relay::{Cable, Relay},
    soon,
};

#[tokio::test]
async fn while_the_coordinator_is_away_the_routes_that_are_held_are_used() {
    let mut world = World::new().await;
    let mut running = soon(world.client.generate(Prompt::new(MODEL, "then hang"))).await.unwrap();
    soon(running.next()).await.unwrap().unwrap();
    world.coordinator.stop().await;
    // The only route is in use, and is used all the same.
    for text in ["one", "two"] {
        let (said, generation) = world.say(text).await;
        assert_eq!((said.as_str(), generation.routed(), generation.agent_id()), (text, false, "agent-1"));
    }
    // An agent that was away for a moment is found again without it.
    let (grpc, quic) = (world.agent.grpc, world.agent.quic);
    drop(running);
    world.agent.kill();
    let back = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        crate::TestAgent::start_at("agent-1", grpc, quic).await
    };
    let ((said, generation), agent) = tokio::join!(world.say("three"), back);
    assert_eq!((said.as_str(), generation.routed(), agent.runs()), ("three", false, 1));
    world.coordinator.restart().await;
    world.client.forget();
    assert!(world.say("four").await.1.routed());
}

#[tokio::test]
async fn a_coordinator_that_restarts_is_waited_for_where_no_route_is_held() {
    let mut world = World::new().await;
    world.coordinator.stop().await;
    let client = world.client.clone();
    let first = tokio::spawn(async move { crate::say(&client, "one").await });
    let stats = || world.client.stats().rest_calls;
    eventually("it was asked in vain", || stats() >= 2).await;
    world.coordinator.restart().await;
    assert_eq!(soon(first).await.unwrap().0, "one");
}

#[tokio::test]
async fn a_coordinator_that_has_just_started_is_bridged_by_a_route_that_is_held() {
    let world = World::new().await;
    let mut running = soon(world.client.generate(Prompt::new(MODEL, "then hang"))).await.unwrap();
    soon(running.next()).await.unwrap().unwrap();
    let mut starting = error(StatusCode::SERVICE_UNAVAILABLE, "starting");
    starting.headers_mut().insert(RETRY_AFTER, 3600.into());
    world.coordinator.refuse(starting);
    let (text, generation) = world.say("one").await;
    assert_eq!((text.as_str(), generation.routed(), world.coordinator.asked()), ("one", false, 2));
}

#[tokio::test]
async fn a_coordinator_that_is_silent_is_waited_for_once_where_a_route_is_held() {
    let mut world = World::new().await;
    let cable = Cable::to(world.coordinator.url().trim_start_matches("http://").parse().unwrap()).await;
    world.client = TitanClient::builder(format!("http://{}", cable.addr)).tls(certs::client()).build().unwrap();
    let mut running = soon(world.client.generate(Prompt::new(MODEL, "then hang"))).await.unwrap();
    soon(running.next()).await.unwrap().unwrap();
    cable.freeze();
    assert!(!world.say("one").await.1.routed());
    // Each has less time than the coordinator has for its answer.
    let deadline = Some(Duration::from_secs(4));
    let mut others = Vec::new();
    for _ in 0..5 {
        let mut other =
            soon(world.client.generate(Prompt { deadline, ..Prompt::new(MODEL, "then hang") })).await.unwrap();
        soon(other.next()).await.unwrap().unwrap();
        others.push(other);
    }
    assert_eq!(world.coordinator.asked(), 1);
}

#[tokio::test]
async fn a_gateway_before_a_coordinator_that_is_away_is_no_coordinator() {
    let world = World::new().await;
    for status in [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT] {
        world.coordinator.refuse((status, "<html>try again</html>").into_response());
    }
    assert_eq!(world.say("one").await.0, "one");
    assert_eq!(world.coordinator.asked(), 4);
}

#[tokio::test]
async fn a_route_is_renewed_before_its_token_expires() {
    let world = World::new().await;
    // Half of it is over 3 s before the token is not used any more.
    world.coordinator.token_ttl(16);
    assert!(world.say("one").await.1.routed());
    let renewed = async {
        while world.coordinator.asked() < 2 {
            let (_, generation) = world.say("two").await;
            assert!(!generation.routed(), "no request waits for it");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon(renewed).await;
    eventually("the new route is used", || world.client.stats().rest_calls == 2).await;
    let used = async {
        while world.say("three").await.1.job_id() != "job_2" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(used).await;
}

#[tokio::test]
async fn while_another_agent_is_looked_for_the_first_one_may_still_go_on() {
    let mut world = World::new().await;
    world.client = builder(&world.coordinator).wire(WirePreference::Quic).build().unwrap();
    let relay = Relay::to(world.agent.quic).await;
    world.coordinator.name([world.agent.place_with(GrpcTls::None, Some(relay.addr))]);
    let mut generation = soon(world.client.generate(Prompt::new(MODEL, "then hang"))).await.unwrap();
    assert_eq!(soon(generation.next()).await.unwrap().unwrap(), "then ");
    relay.pass(false, false);
    world.coordinator.name([]);
    world.client.disconnect();
    let rest = async {
        let mut text = String::new();
        while let Some(piece) = generation.next().await {
            text.push_str(&piece.unwrap());
        }
        text
    };
    let outage = async {
        // Another agent has been looked for, in vain, for a while.
        while world.coordinator.asked() < 5 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        relay.pass(true, true);
    };
    let (text, ()) = tokio::join!(soon(rest), soon(outage));
    assert_eq!((text.as_str(), generation.resumed(), generation.moved()), ("hang", 1, 0));
    assert_eq!(world.agent.runs(), 1);
}
