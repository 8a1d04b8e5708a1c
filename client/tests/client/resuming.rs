//! Answers that go on when their connection is lost.

use futures_util::StreamExt as _;
use titan_client::{Builder, ClientError, Feature, Generation, Processed, Prompt, Wire, WirePreference};
use titan_proto::rest::GrpcTls;

use crate::{
    MODEL, World, builder, eventually,
    relay::{Cable, Relay},
    soon,
};

/// Its answer does not end unless it is resumed.
const HANGS: &str = "then hang";

async fn world(change: impl FnOnce(Builder) -> Builder) -> World {
    let mut world = World::new().await;
    world.client = change(builder(&world.coordinator)).build().unwrap();
    world
}

/// An answer of which these words have come.
async fn begun(world: &World, words: &[&str]) -> Generation {
    let mut generation = soon(world.client.generate(Prompt::new(MODEL, HANGS))).await.unwrap();
    for word in words {
        assert_eq!(soon(generation.next()).await.unwrap().unwrap(), *word);
    }
    generation
}

async fn rest(generation: &mut Generation) -> Result<String, ClientError> {
    let mut text = String::new();
    while let Some(piece) = soon(generation.next()).await {
        text.push_str(&piece?);
    }
    Ok(text)
}

#[tokio::test]
async fn an_answer_goes_on_over_a_new_quic_connection() {
    let world = world(|builder| builder.wire(WirePreference::Quic)).await;
    for (words, missing) in [(&["then "][..], "hang"), (&["then ", "hang"], ""), (&[], "then hang")] {
        let mut generation = begun(&world, words).await;
        let before = world.client.stats();
        world.client.disconnect();
        assert_eq!(rest(&mut generation).await.unwrap(), missing);
        assert_eq!(generation.resumed(), 1);
        // More may have come than was read.
        assert!((words.len() as u64..3).contains(&generation.resumed_at()[0]), "{:?}", generation.resumed_at());
        assert_eq!(generation.usage().unwrap().completion_tokens, 2);
        assert_eq!(world.client.stats().resumed, before.resumed + 1);
    }
    assert_eq!((world.agent.runs(), world.client.stats().rest_calls), (3, 1));
}

#[tokio::test]
async fn an_answer_goes_on_over_a_new_grpc_connection() {
    let world = world(|builder| builder.wire(WirePreference::Grpc)).await;
    let cable = Cable::to(world.agent.grpc).await;
    let mut place = world.agent.place_with(GrpcTls::None, None);
    place.endpoints.grpc.as_mut().unwrap().address = cable.addr.to_string();
    world.coordinator.name([place]);
    let mut generation = begun(&world, &["then "]).await;
    cable.cut();
    assert_eq!(rest(&mut generation).await.unwrap(), "hang");
    assert_eq!((generation.resumed(), world.agent.runs()), (1, 1));
}

#[tokio::test]
async fn an_answer_that_began_over_quic_goes_on_over_grpc_where_udp_is_silent() {
    // On a busy machine it would be given up for another agent, which is the same one here.
    let world = world(|builder| builder.without(Feature::Move)).await;
    let relay = Relay::to(world.agent.quic).await;
    world.coordinator.name([world.agent.place_with(GrpcTls::None, Some(relay.addr))]);
    let mut generation = begun(&world, &["then "]).await;
    assert_eq!(generation.wire(), Wire::Quic);
    relay.pass(false, false);
    world.client.disconnect();
    assert_eq!(rest(&mut generation).await.unwrap(), "hang");
    assert_eq!((generation.wire(), generation.resumed(), world.agent.runs()), (Wire::Http, 1, 1));
}

#[tokio::test]
async fn without_the_feature_a_lost_connection_is_an_error() {
    let world = world(|builder| builder.without(Feature::Resume).without(Feature::Move)).await;
    let mut generation = begun(&world, &["then "]).await;
    assert!(!world.agent.last_run(|run| run.request.resumable));
    world.client.disconnect();
    let error = rest(&mut generation).await.unwrap_err();
    assert!(matches!(error, ClientError::Broken { .. }), "{error:?}");
    assert_eq!((error.processed(), generation.resumed()), (Processed::Yes, 0));
}

#[tokio::test]
async fn an_answer_that_the_agent_does_not_keep_is_an_error_that_says_so() {
    let world = world(|builder| builder.without(Feature::Move)).await;
    let mut generation = begun(&world, &["then "]).await;
    world.agent.forget();
    world.client.disconnect();
    let error = rest(&mut generation).await.unwrap_err();
    assert!(matches!(error, ClientError::Broken { .. }), "{error:?}");
    assert!(error.to_string().contains("no such answer is kept"), "{error}");
    assert_eq!((error.processed(), world.agent.runs()), (Processed::Yes, 1));
}

#[tokio::test]
async fn a_closed_client_resumes_nothing() {
    let world = world(|builder| builder).await;
    let mut generation = begun(&world, &["then "]).await;
    soon(world.client.close()).await;
    assert!(rest(&mut generation).await.is_err());
    eventually("the agent notices", || world.agent.ended() == 1).await;
}
