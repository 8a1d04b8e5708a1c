//! When the coordinator is asked, and what an answer is good for.

use std::{net::IpAddr, time::Duration};

use axum::{
    http::{StatusCode, header::RETRY_AFTER},
    response::IntoResponse as _,
};
use futures_util::{StreamExt as _, future::join_all};
use serde_json::json;
use titan_certs::COORDINATOR_SERVER_NAME;
use titan_client::{
    BuildError, ClientError, CoordinatorError, Feature, Processed, Prompt, TitanClient, WirePreference,
};
use titan_proto::rest::GrpcTls;
use tonic::Status;

use crate::{
    MODEL, TestAgent, TestCoordinator, World, builder, certs, coordinator::error, refused, relay::Relay, say, sessions,
    soon,
};

#[tokio::test]
async fn the_second_request_goes_straight_to_the_agent() {
    let world = World::new().await;
    let (text, first) = world.say("one two three").await;
    assert_eq!(text, "one two three");
    assert!(first.routed() && first.routing() <= first.ttft());
    let (_, second) = world.say("four").await;
    assert!(!second.routed() && second.routing().is_none());
    assert_eq!((second.agent_id(), second.job_id()), ("agent-1", first.job_id()));
    let stats = world.client.stats();
    assert_eq!((stats.rest_calls, stats.quic.full_handshakes, stats.quic.calls), (1, 1, 2));
    assert_eq!(world.coordinator.asked(), 1);
}

#[tokio::test]
async fn after_a_reconnect_there_is_no_rest_call_and_no_full_handshake() {
    let world = World::new().await;
    let relay = Relay::far(world.agent.quic).await;
    world.coordinator.name([world.agent.place_with(GrpcTls::None, Some(relay.addr))]);
    world.say("one").await;
    world.reconnect().await;
    let (text, generation) = world.say("two three").await;
    assert_eq!(text, "two three");
    assert!(generation.early_data() && !generation.routed());
    let stats = world.client.stats();
    assert_eq!((stats.rest_calls, stats.quic.full_handshakes, stats.quic.early_data_accepted), (1, 1, 1));
    assert_eq!((stats.quic.early_calls, stats.quic.early_data_rejected, stats.grpc_fallbacks), (1, 0, 0));
    assert_eq!(world.agent.runs(), 2);
}

#[tokio::test]
async fn forgotten_routes_are_asked_again_and_sessions_resumed() {
    let world = World::new().await;
    let relay = Relay::far(world.agent.quic).await;
    world.coordinator.name([world.agent.place_with(GrpcTls::None, Some(relay.addr))]);
    world.say("one").await;
    sessions(&world.client).await;
    world.client.forget();
    let (_, generation) = world.say("two").await;
    assert!(generation.routed() && generation.early_data());
    let stats = world.client.stats();
    assert_eq!((stats.rest_calls, stats.quic.full_handshakes, stats.quic.early_data_accepted), (2, 1, 1));
}

#[tokio::test]
async fn for_prefill_ahead_the_coordinator_is_told_all_that_the_agent_will_be_asked() {
    let agent = TestAgent::start("agent-1").await;
    let coordinator = TestCoordinator::start([agent.place()]).await;
    let client = builder(&coordinator).with(Feature::PrefillAhead);
    let client = client.build().unwrap();
    let mut prompt = Prompt::new(MODEL, "one two");
    prompt.options.insert("seed".to_owned(), "5".to_owned());
    let mut generation = soon(client.generate(prompt)).await.unwrap();
    while let Some(piece) = soon(generation.next()).await {
        piece.unwrap();
    }
    let question = coordinator.question();
    assert_eq!((&question["prompt"], &question["parameters"]), (&json!("one two"), &json!({"seed": "5"})));
    agent.last_run(|run| {
        assert_eq!((question["prompt"].as_str(), run.request.options["seed"].as_str()), (Some("one two"), "5"));
        assert_eq!(question["max_tokens"], run.request.max_tokens);
        assert_eq!(question["temperature"].as_f64().map(|value| value as f32), Some(run.request.temperature));
    });
}

#[tokio::test]
async fn a_token_about_to_expire_is_not_used_again() {
    let world = World::new().await;
    world.coordinator.token_ttl(3);
    world.say("one").await;
    let (_, second) = world.say("two").await;
    assert!(second.routed());
    assert_eq!(world.coordinator.asked(), 2);
}

#[tokio::test]
async fn the_coordinator_gets_the_digest_and_the_agent_the_prompt() {
    let world = World::new().await;
    let mut prompt = Prompt::new(MODEL, "a secret");
    prompt.max_tokens = 7;
    prompt.temperature = 0.0;
    prompt.options.insert("seed".to_owned(), "42".to_owned());
    soon(world.client.generate(prompt)).await.unwrap();
    let question = world.coordinator.question();
    assert!(!question.to_string().contains("secret"), "{question}");
    assert_eq!((&question["model"], &question["max_tokens"]), (&json!(MODEL), &json!(7)));
    assert_eq!(question["temperature"], json!(0.0));
    assert!(question["parameters"]["prompt_digest"].as_str().unwrap().starts_with("sha256:"));
    assert!(question["client_id"].as_str().unwrap().starts_with("titan-"));
    world.agent.last_run(|run| {
        let request = &run.request;
        assert_eq!((request.prompt.as_str(), request.max_tokens, request.temperature), ("a secret", 7, 0.0));
        assert_eq!((request.session_token.as_str(), request.options["seed"].as_str()), ("token-1", "42"));
        assert!(!request.nonce.is_empty());
    });
}

#[tokio::test]
async fn a_kept_route_that_is_refused_is_asked_anew() {
    for status in [
        Status::resource_exhausted("full"),
        Status::unavailable("draining"),
        Status::unauthenticated("the token has expired"),
        Status::permission_denied("the token is for another agent"),
    ] {
        let world = World::new().await;
        world.say("one").await;
        let other = TestAgent::start("agent-2").await;
        world.coordinator.name([other.place()]);
        world.agent.refuse(status.clone());
        let (text, generation) = world.say("two").await;
        assert_eq!((text.as_str(), generation.agent_id(), generation.routed()), ("two", "agent-2", true), "{status:?}");
        assert_eq!((world.agent.runs(), other.runs(), world.coordinator.asked()), (1, 1, 2), "{status:?}");
        let (_, third) = world.say("three").await;
        assert_eq!((third.agent_id(), third.routed()), ("agent-2", false), "the new route is kept");
    }
}

#[tokio::test]
async fn a_request_that_no_agent_takes_is_not_tried_again() {
    let world = World::new().await;
    world.say("one").await;
    world.agent.refuse(Status::invalid_argument("unknown option \"top_q\""));
    let error = world.refused("two").await;
    assert_eq!((error.processed(), error.retryable()), (Processed::No, false));
    assert!(error.to_string().contains("top_q"), "{error}");
    assert_eq!(world.coordinator.asked(), 1);
}

#[tokio::test]
async fn the_coordinators_errors_keep_their_words() {
    let mut world = World::new().await;
    // What comes later than that is not waited for.
    let builder = builder(&world.coordinator).deadline(Duration::from_secs(60));
    world.client = builder.build().unwrap();
    let mut busy = error(StatusCode::SERVICE_UNAVAILABLE, "no_capacity");
    busy.headers_mut().insert(RETRY_AFTER, 61.into());
    for (answer, code_word, status, retryable, retry_after) in [
        (error(StatusCode::NOT_FOUND, "model_not_found"), "model_not_found", 404, false, None),
        (error(StatusCode::BAD_REQUEST, "missing_model"), "missing_model", 400, false, None),
        (error(StatusCode::SERVICE_UNAVAILABLE, "no_agents"), "no_agents", 503, true, None),
        (busy, "no_capacity", 503, true, Some(Duration::from_secs(61))),
    ] {
        world.coordinator.refuse(answer);
        let refused = world.refused("one").await;
        assert_eq!((refused.processed(), refused.retryable()), (Processed::No, retryable), "{refused:?}");
        assert_eq!(refused.retry_after(), retry_after);
        let refused = match refused {
            ClientError::TimedOut { last: Some(last), .. } => *last,
            refused => refused,
        };
        let ClientError::Coordinator(CoordinatorError::Refused { code_word: word, status: number, message, .. }) =
            refused
        else {
            panic!("{refused:?}");
        };
        assert_eq!((word.as_str(), number), (code_word, status));
        assert_eq!(message, format!("because of {code_word}"));
    }
    assert_eq!(world.coordinator.asked(), 4, "its word is final");
}

#[tokio::test]
async fn something_else_than_a_coordinator_is_recognised() {
    let world = World::new().await;
    for answer in [
        "hello".into_response(),
        (StatusCode::NOT_FOUND, "<html>not found</html>").into_response(),
        axum::Json(json!({"agent_endpoint": 7})).into_response(),
        vec![b' '; 1 << 20].into_response(),
        axum::response::Redirect::temporary("http://127.0.0.1:1/").into_response(),
    ] {
        world.coordinator.refuse(answer);
        let error = world.refused("one").await;
        assert!(matches!(error, ClientError::Coordinator(CoordinatorError::NotACoordinator { .. })), "{error:?}");
        assert!(!error.retryable() && error.processed() == Processed::No);
    }
}

#[tokio::test]
async fn a_coordinator_that_is_away_is_reported_with_its_address() {
    let client = TitanClient::builder("http://127.0.0.1:1").build().unwrap();
    let error = refused(&client, "one").await;
    let ClientError::Coordinator(CoordinatorError::Unreachable { url, .. }) = &error else { panic!("{error:?}") };
    assert_eq!(url, "http://127.0.0.1:1");
    assert!(error.retryable());
    assert!(client.stats().rest_calls > 3, "it may have been restarting");
}

#[tokio::test]
async fn a_coordinator_over_tls_is_checked_against_the_ca() {
    let agent = TestAgent::start("agent-1").await;
    let coordinator = TestCoordinator::start([agent.place()]).await;
    let client = TitanClient::builder(coordinator.https_url()).tls(certs::client()).build().unwrap();
    assert_eq!(say(&client, "one").await.0, "one");

    let stranger = TitanClient::builder(coordinator.https_url()).tls(certs::stranger()).build().unwrap();
    let error = refused(&stranger, "one").await;
    assert!(matches!(error, ClientError::Coordinator(CoordinatorError::Untrusted { .. })), "{error:?}");
    assert!(!error.retryable());
}

#[tokio::test]
async fn a_host_is_reached_at_the_address_that_the_program_gave() {
    let agent = TestAgent::start("agent-1").await;
    let (grpc, quic) = (agent.grpc.port(), agent.quic.port());
    let mut place = agent.place_with(GrpcTls::Server, Some(agent.quic));
    place.endpoints.grpc.as_mut().unwrap().address = format!("gpu.test:{grpc}");
    place.endpoints.quic.as_mut().unwrap().address = format!("gpu.test:{quic}");
    let coordinator = TestCoordinator::start([place]).await;
    let url = coordinator.https_url().replace("localhost", COORDINATOR_SERVER_NAME);
    for (wire, port) in [(WirePreference::Quic, quic), (WirePreference::Grpc, grpc)] {
        let here = IpAddr::from([127, 0, 0, 1]);
        let builder = TitanClient::builder(&url).tls(certs::client()).wire(wire);
        let client = builder.resolve(COORDINATOR_SERVER_NAME, here).resolve("gpu.test", here).build().unwrap();
        let (text, generation) = say(&client, "one two").await;
        assert_eq!((text.as_str(), generation.endpoint()), ("one two", format!("127.0.0.1:{port}").as_str()));
    }
}

#[tokio::test]
async fn a_client_that_cannot_work_is_not_built() {
    for url in ["localhost:8080", "ftp://localhost", "", "http://"] {
        assert!(matches!(TitanClient::builder(url).build(), Err(BuildError::Url { .. })), "{url}");
    }
    assert!(matches!(TitanClient::builder("https://localhost").build(), Err(BuildError::NoCa { .. })));
    let quic = TitanClient::builder("http://localhost").wire(WirePreference::Quic);
    assert!(matches!(quic.build(), Err(BuildError::NoIdentity)));
}

#[tokio::test]
async fn requests_at_the_same_time_do_not_mix() {
    let world = World::new().await;
    let prompts: Vec<_> = (0..50).map(|n| format!("{n} {n} {n}")).collect();
    let answers = join_all(prompts.iter().map(|prompt| world.say(prompt))).await;
    for (prompt, (text, _)) in prompts.iter().zip(answers) {
        assert_eq!(*prompt, text);
    }
    assert_eq!(world.agent.runs(), 50);
    assert_eq!(world.client.stats().quic.full_handshakes, 1);
}
