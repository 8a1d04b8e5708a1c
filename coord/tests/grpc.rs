//! The coordinator's gRPC service, over real sockets.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use support::{Agent, Client, Harness, material, registration, until};
use titan_certs::{CertDir, Role};
use titan_proto::{
    digest,
    v1::{
        AgentRegistration, DeregistrationRequest, HealthUpdate, InferenceRequest, Message, ModelInfo, PublicKeyRequest,
        StatusRequest, SystemStatus,
    },
};
use titan_transport::token::TokenVerifier;
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

fn prompt() -> InferenceRequest {
    InferenceRequest {
        client_id: "c".into(),
        model: "smollm2:135m".into(),
        prompt: "Hello".into(),
        ..Default::default()
    }
}

/// A request that does not wait for room.
fn at_once(request: InferenceRequest) -> tonic::Request<InferenceRequest> {
    let mut request = tonic::Request::new(request);
    request.metadata_mut().insert("x-titan-queue-timeout-ms", 0.into());
    request
}

async fn status(client: &mut Client) -> SystemStatus {
    client
        .query_system_status(StatusRequest { include_agents: true, include_metrics: false })
        .await
        .unwrap()
        .into_inner()
}

async fn status_of(client: &mut Client, id: &str) -> Option<String> {
    status(client).await.agents.into_iter().find(|agent| agent.agent_id == id).map(|agent| agent.status)
}

/// What each call that only agents may make answers to `client`, which claims to be `id`.
async fn agent_calls(client: &mut Client, id: &str) -> [Status; 3] {
    let update = HealthUpdate { agent_id: id.into(), ..Default::default() };
    let report = async {
        match client.clone().report_health(tokio_stream::iter([update])).await {
            Ok(acks) => acks.into_inner().message().await.unwrap_err(),
            Err(status) => status,
        }
    };
    let reported = report.await;
    let registered = client.register_agent(registration(id)).await.unwrap_err();
    let deregistration = DeregistrationRequest { agent_id: id.into(), ..Default::default() };
    [registered, reported, client.deregister_agent(deregistration).await.unwrap_err()]
}

#[tokio::test]
async fn without_a_certificate_nobody_speaks_for_an_agent() {
    let harness = Harness::start().await;
    let mut anonymous = material(&harness.dir, Role::Client, "c");
    anonymous.chain.clear();
    for mut client in [harness.plain().await, harness.over_tls(&anonymous).await.unwrap()] {
        for status in agent_calls(&mut client, "agent-1").await {
            assert_eq!(status.code(), Code::Unauthenticated);
            assert!(status.message().contains("titan certs issue --role agent"), "{status}");
        }
    }
}

#[tokio::test]
async fn a_certificate_of_another_role_does_not_register() {
    let harness = Harness::start().await;
    for role in [Role::Client, Role::Coordinator] {
        let mut client = harness.with_certificate(role, "agent-1").await;
        for status in agent_calls(&mut client, "agent-1").await {
            assert_eq!(status.code(), Code::PermissionDenied, "{role}");
            assert!(status.message().contains(role.as_str()), "{status}");
        }
    }
}

#[tokio::test]
async fn an_agent_speaks_only_for_the_id_in_its_certificate() {
    let harness = Harness::start().await;
    let mut client = harness.with_certificate(Role::Agent, "agent-2").await;
    for status in agent_calls(&mut client, "agent-1").await {
        assert_eq!(status.code(), Code::PermissionDenied);
        assert!(status.message().contains("`agent-2`") && status.message().contains("AGENT_ID"), "{status}");
    }
    let mut agent = harness.agent("agent-2").await;
    let foreign = HealthUpdate { registration: Some(registration("agent-1")), ..Default::default() };
    assert_eq!(agent.report(foreign).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(status(&mut client).await.total_agents, 0);
}

#[tokio::test]
async fn a_certificate_of_another_authority_does_not_even_connect() {
    let harness = Harness::start().await;
    let elsewhere = tempfile::tempdir().unwrap();
    CertDir::new(elsewhere.path()).init().unwrap();
    let mut foreign = material(&elsewhere, Role::Agent, "agent-1");
    foreign.roots = material(&harness.dir, Role::Agent, "agent-1").roots;
    // TLS 1.3 clients are done before the server has looked at their certificate: the first call may tell.
    if let Ok(mut client) = harness.over_tls(&foreign).await {
        let status = client.register_agent(registration("agent-1")).await.unwrap_err();
        assert!(!matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied), "answered: {status}");
    }
    assert_eq!(status(&mut harness.plain().await).await.total_agents, 0);
}

/// Two agents with a model of the same name, whose digests are 64 times `digits`.
async fn two_agents(harness: &Harness, digits: [&str; 2]) -> [Agent; 2] {
    let mut agents = [harness.agent("agent-1").await, harness.agent("agent-2").await];
    for (agent, digit) in agents.iter_mut().zip(digits) {
        let info = ModelInfo { name: "smollm2:135m".into(), digest: digit.repeat(64), ..Default::default() };
        let registration = AgentRegistration { model_info: vec![info], ..registration(&agent.id) };
        agent
            .report(HealthUpdate { registration: Some(registration), free_ram_mb: 8_000, ..Default::default() })
            .await
            .unwrap();
    }
    agents
}

#[tokio::test]
async fn the_second_turn_of_a_conversation_comes_back_to_the_agent_of_the_first() {
    let harness = Harness::start().await;
    let mut agents = two_agents(&harness, ["a", "a"]).await;
    let mut client = harness.plain().await;
    let mut messages = vec![Message::system("Be brief.")];
    let mut places = Vec::new();
    for turn in 0..4 {
        messages.push(Message::user(format!("question {turn}")));
        let prefix_digests = digest::prefixes("c", "smollm2:135m", &[], &messages);
        let request = InferenceRequest { prompt: String::new(), prefix_digests, ..prompt() };
        let answer = client.request_inference(request).await.unwrap().into_inner();
        let agent = agents.iter_mut().find(|agent| agent.id == answer.agent_id).unwrap();
        messages.push(Message::assistant(format!("answer {turn}")));
        // It is busier than the other one, and holds the conversation with its answer.
        let update = HealthUpdate {
            free_ram_mb: 1_000,
            running_jobs: 3,
            claimed_job_ids: vec![answer.job_id],
            cached_prefixes: digest::prefixes("c", "smollm2:135m", &[], &messages),
            caches: true,
            ..Default::default()
        };
        agent.report(update).await.unwrap();
        places.push(answer.agent_id);
    }
    assert!(places.iter().all(|place| *place == places[0]), "{places:?}");
    // Another client's digests are others.
    let prefix_digests = digest::prefixes("d", "smollm2:135m", &[], &messages);
    let request = InferenceRequest { client_id: "d".into(), prompt: String::new(), prefix_digests, ..prompt() };
    assert_ne!(client.request_inference(request).await.unwrap().into_inner().agent_id, places[0]);
}

#[tokio::test]
async fn two_models_of_one_name_are_told_apart() {
    let harness = Harness::start().await;
    let _agents = two_agents(&harness, ["a", "b"]).await;
    let mut client = harness.plain().await;
    for (digit, place) in [("a", "agent-1"), ("b", "agent-2"), ("b", "agent-2")] {
        let request = InferenceRequest { model_digest: digit.repeat(64), ..prompt() };
        let answer = client.request_inference(request).await.unwrap().into_inner();
        assert_eq!((answer.agent_id.as_str(), answer.model_digest), (place, digit.repeat(64)));
    }
    let refused =
        client.request_inference(InferenceRequest { model_digest: "c".repeat(64), ..prompt() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().starts_with("no_agents: ") && refused.message().contains(&"a".repeat(64)), "{refused}");
    let digests: Vec<String> =
        status(&mut client).await.agents.into_iter().map(|agent| agent.model_info[0].digest.clone()).collect();
    assert_eq!(digests, ["a".repeat(64), "b".repeat(64)]);
}

#[tokio::test]
async fn an_agent_that_says_it_is_degraded_is_left_in_reserve() {
    let harness = Harness::start().await;
    let [mut failing, mut healthy] = two_agents(&harness, ["a", "a"]).await;
    let mut client = harness.plain().await;
    let update = HealthUpdate {
        health: "degraded".into(),
        health_reason: "it failed 3 times".into(),
        free_ram_mb: 16_000,
        ..Default::default()
    };
    failing.report(update).await.unwrap();
    for _ in 0..3 {
        let answer = client.request_inference(prompt()).await.unwrap().into_inner();
        assert_eq!(answer.agent_id, "agent-2");
    }
    let agents = status(&mut client).await.agents;
    assert_eq!((agents[0].status.as_str(), agents[0].reason.as_str()), ("degraded", "it failed 3 times"));
    healthy.report(HealthUpdate { running_jobs: 4, ..Default::default() }).await.unwrap();
    assert_eq!(
        client.request_inference(prompt()).await.unwrap().into_inner().agent_id,
        "agent-1",
        "nobody else has room"
    );
    let wrong = failing.report(HealthUpdate { health: "well".into(), ..Default::default() }).await.unwrap_err();
    assert!(wrong.code() == Code::InvalidArgument && wrong.message().contains("`well`"), "{wrong}");
}

#[tokio::test]
async fn an_agent_registers_on_its_health_stream_and_each_update_is_acknowledged() {
    let harness = Harness::start().await;
    let mut agent = harness.agent("agent-1").await;

    let ack = agent.report(HealthUpdate { timestamp: 41, ..Default::default() }).await.unwrap();
    assert_eq!((ack.status.as_str(), ack.timestamp), ("unregistered", 41));
    assert!(ack.message.contains("register"));

    let ack = agent.register().await;
    assert_eq!((ack.agent_id.as_str(), ack.status.as_str()), ("agent-1", "ok"));
    assert_eq!(ack.heartbeat_interval_seconds, 10);
    for timestamp in [42, 43] {
        let ack = agent.report(HealthUpdate { timestamp, rtt_ms: 1.5, ..Default::default() }).await.unwrap();
        assert_eq!((ack.status.as_str(), ack.timestamp), ("ok", timestamp));
    }
    assert_eq!(status_of(&mut agent.client, "agent-1").await.as_deref(), Some("healthy"));
}

#[tokio::test]
async fn an_agent_may_register_by_a_call_of_its_own() {
    let harness = Harness::start().await;
    let mut client = harness.with_certificate(Role::Agent, "agent-1").await;
    let answer = client.register_agent(registration("agent-1")).await.unwrap().into_inner();
    assert_eq!((answer.status.as_str(), answer.heartbeat_interval_seconds), ("registered", 10));
    let mut agent = Agent::new("agent-1", client).await;
    assert_eq!(agent.report(HealthUpdate::default()).await.unwrap().status, "ok");
    let refused = agent.client.register_agent(titan_proto::v1::AgentRegistration {
        endpoint: "0.0.0.0:50052".into(),
        ..registration("agent-1")
    });
    let refused = refused.await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("PUBLIC_HOST"));
}

#[tokio::test]
async fn routing_answers_with_both_endpoints_and_a_token_that_the_published_keys_verify() {
    let harness = Harness::start().await;
    let mut agent = harness.agent("agent-1").await;
    agent.register().await;
    agent.report(HealthUpdate { rtt_ms: 12.5, ..Default::default() }).await.unwrap();
    let mut client = harness.plain().await;
    let answer = client.request_inference(prompt()).await.unwrap().into_inner();
    assert_eq!((answer.agent_id.as_str(), answer.estimated_rtt_ms), ("agent-1", 12.5));
    assert_eq!((answer.agent_endpoint.as_str(), answer.quic_endpoint.as_str()), ("localhost:50052", "localhost:50052"));
    let endpoints = answer.endpoints.unwrap();
    assert_eq!(endpoints.grpc.unwrap().tls, "none");
    let quic = endpoints.quic.unwrap();
    assert_eq!((quic.alpn.as_str(), quic.server_name.as_str()), ("titan/1", "agent-1.agent.titan.internal"));

    let key = client.get_public_key(PublicKeyRequest {}).await.unwrap().into_inner();
    assert_eq!((key.algorithm.as_str(), key.issuer.as_str()), ("ES256", "titancompute-coordinator"));
    assert!(key.public_key_pem.starts_with("-----BEGIN PUBLIC KEY-----"));
    let verifier = TokenVerifier::new(key.issuer);
    verifier.set_keys(&key.jwks).unwrap();
    let claims = verifier.verify(&answer.session_token, "agent-1", std::time::SystemTime::now()).unwrap();
    assert_eq!((claims.job_id, claims.exp), (answer.job_id, answer.expires_at));
}

#[tokio::test]
async fn refusals_carry_their_code_word() {
    let harness = Harness::start().await;
    let mut client = harness.plain().await;
    let no_agents = client.request_inference(prompt()).await.unwrap_err();
    assert_eq!(no_agents.code(), Code::Unavailable);
    assert!(no_agents.message().starts_with("no_agents: "));

    let mut agent = harness.agent("agent-1").await;
    agent.register().await;
    for (request, code, word) in [
        (InferenceRequest { client_id: String::new(), ..prompt() }, Code::InvalidArgument, "missing_client_id"),
        (InferenceRequest { model: String::new(), ..prompt() }, Code::InvalidArgument, "missing_model"),
        (InferenceRequest { prompt: String::new(), ..prompt() }, Code::InvalidArgument, "missing_prompt"),
        (InferenceRequest { max_tokens: -1, ..prompt() }, Code::InvalidArgument, "invalid_parameter"),
        (InferenceRequest { temperature: f32::NAN, ..prompt() }, Code::InvalidArgument, "invalid_parameter"),
        (InferenceRequest { model: "gpt".into(), ..prompt() }, Code::NotFound, "model_not_found"),
    ] {
        let status = client.request_inference(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().starts_with(&format!("{word}: ")), "{status}");
    }
    for _ in 0..4 {
        client.request_inference(prompt()).await.unwrap();
    }
    let full = client.request_inference(at_once(prompt())).await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted);
    assert_eq!(full.metadata().get("retry-after").unwrap(), "2");
    assert_eq!(full.metadata().get("grpc-retry-pushback-ms").unwrap(), "2000");
    assert!(full.message().starts_with("no_capacity: "));
}

#[tokio::test]
async fn a_burst_between_two_heartbeats_spreads_out_and_claims_give_room_back() {
    let harness = Harness::start().await;
    let mut agents = [harness.agent("agent-1").await, harness.agent("agent-2").await];
    for agent in &mut agents {
        agent.register().await;
    }
    let client = harness.plain().await;
    let burst = (0..8).map(|_| async { client.clone().request_inference(prompt()).await.unwrap().into_inner() });
    let mut jobs = BTreeMap::<String, Vec<String>>::new();
    for answer in futures_util::future::join_all(burst).await {
        jobs.entry(answer.agent_id).or_default().push(answer.job_id);
    }
    assert_eq!(jobs.values().map(Vec::len).collect::<Vec<_>>(), [4, 4]);
    assert_eq!(client.clone().request_inference(at_once(prompt())).await.unwrap_err().code(), Code::ResourceExhausted);

    // All of agent-1's jobs began; three of them are done by now.
    let claimed_job_ids = jobs["agent-1"].clone();
    let update = HealthUpdate { running_jobs: 1, claimed_job_ids, free_ram_mb: 8_000, ..Default::default() };
    agents[0].report(update).await.unwrap();
    for _ in 0..3 {
        assert_eq!(client.clone().request_inference(prompt()).await.unwrap().into_inner().agent_id, "agent-1");
    }
    assert_eq!(client.clone().request_inference(at_once(prompt())).await.unwrap_err().code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn an_agent_whose_stream_breaks_gets_no_requests_until_it_reports_again() {
    let harness = Harness::start().await;
    let mut client = harness.plain().await;
    let mut agent = harness.agent("agent-1").await;
    agent.register().await;
    drop(agent);
    until(async || status_of(&mut client.clone(), "agent-1").await.as_deref() == Some("degraded")).await;
    assert_eq!(client.request_inference(prompt()).await.unwrap_err().code(), Code::Unavailable);

    let mut agent = harness.agent("agent-1").await;
    assert_eq!(agent.report(HealthUpdate::default()).await.unwrap().status, "ok", "still registered");
    client.request_inference(prompt()).await.unwrap();
}

#[tokio::test]
async fn a_second_stream_for_an_id_replaces_the_first() {
    let harness = Harness::start().await;
    let mut first = harness.agent("agent-1").await;
    first.register().await;
    let mut second = harness.agent("agent-1").await;
    second.register().await;
    let replaced = first.report(HealthUpdate::default()).await.unwrap_err();
    assert_eq!(replaced.code(), Code::Aborted);
    assert!(replaced.message().contains("same id"));
    assert_eq!(second.report(HealthUpdate::default()).await.unwrap().status, "ok");
    assert_eq!(status_of(&mut second.client, "agent-1").await.as_deref(), Some("healthy"));
}

#[tokio::test]
async fn deregistering_ends_a_lease_at_once() {
    let harness = Harness::start().await;
    let mut agent = harness.agent("agent-1").await;
    agent.register().await;
    let leave =
        || DeregistrationRequest { agent_id: "agent-1".into(), reason: "maintenance".into(), ..Default::default() };
    assert_eq!(agent.client.deregister_agent(leave()).await.unwrap().into_inner().status, "deregistered");
    assert_eq!(status_of(&mut agent.client, "agent-1").await.as_deref(), Some("offline"));
    assert_eq!(agent.client.request_inference(prompt()).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(agent.client.deregister_agent(leave()).await.unwrap().into_inner().status, "unregistered");
    assert_eq!(agent.report(HealthUpdate::default()).await.unwrap().status, "unregistered");
    assert_eq!(agent.register().await.status, "ok");
}

#[tokio::test]
async fn an_update_that_cannot_be_ends_the_stream_and_changes_nothing() {
    let harness = Harness::start().await;
    let mut agent = harness.agent("agent-1").await;
    agent.register().await;
    let refused = agent.report(HealthUpdate { tokens_per_second: f64::NAN, ..Default::default() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("tokens_per_second"));
    let agents = status(&mut agent.client).await.agents;
    assert_eq!(agents[0].free_vram_mb, 0);
    assert!(agents[0].last_heartbeat > 1_700_000_000);
}

#[tokio::test]
async fn shutting_down_ends_the_health_streams_and_then_the_coordinator() {
    let harness = Harness::start().await;
    let mut agent = harness.agent("agent-1").await;
    agent.register().await;
    harness.begin_stop();
    assert_eq!(agent.acks.message().await.unwrap_err().code(), Code::Unavailable);
    harness.stop().await;
}

#[tokio::test]
async fn who_watches_the_health_sees_the_end_coming() {
    let harness = Harness::start().await;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://127.0.0.1:{}", harness.grpc_port)).unwrap();
    let mut health = HealthClient::new(channel.connect().await.unwrap());
    let request = HealthCheckRequest { service: "titancompute.v1.CoordinatorService".into() };
    let mut states = health.watch(request).await.unwrap().into_inner();
    assert_eq!(states.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    harness.begin_stop();
    assert_eq!(states.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert!(states.message().await.unwrap().is_none());
    harness.stop().await;
}

#[tokio::test]
async fn health_and_reflection_are_served_in_plain_text_from_this_machine() {
    let harness = Harness::start().await;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://127.0.0.1:{}", harness.grpc_port)).unwrap();
    let channel = channel.connect().await.unwrap();
    let mut health = HealthClient::new(channel.clone());
    for service in ["", "titancompute.v1.CoordinatorService"] {
        let answer = health.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving);
    }
    let ask = |message_request| ServerReflectionRequest { host: String::new(), message_request: Some(message_request) };
    let questions = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("titancompute.v1.CoordinatorService".into())),
    ];
    let mut reflection = ServerReflectionClient::new(channel);
    let mut answers = reflection.server_reflection_info(tokio_stream::iter(questions)).await.unwrap().into_inner();
    match answers.message().await.unwrap().unwrap().message_response {
        Some(MessageResponse::ListServicesResponse(list)) => {
            let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
            assert_eq!(names, ["titancompute.v1.CoordinatorService", "grpc.health.v1.Health"]);
        }
        other => panic!("{other:?}"),
    }
    let file = answers.message().await.unwrap().unwrap().message_response;
    assert!(matches!(file, Some(MessageResponse::FileDescriptorResponse(_))), "{file:?}");
}
