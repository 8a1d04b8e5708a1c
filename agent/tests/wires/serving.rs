//! What stands beside the streams: status, health, reflection, sockets, and the way down.

use std::{sync::Arc, time::Duration};

use titan_agent::{Agent, BindError, Config, engine::synthetic::SyntheticEngine};
use titan_proto::v1::AgentStatusRequest;
use tokio_stream::StreamExt as _;
use tonic::{
    Code,
    body::Body,
    client::GrpcService,
    codegen::{self, Bytes, StdError},
};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::fixture::{AGENT, Client, Gated, Running, WIRES, certs, eventually, jwks, request, soon};

#[tokio::test]
async fn status_says_what_runs_and_what_is_free() {
    let agent = Running::start(50.0).await;
    for wire in WIRES {
        let mut client = agent.client(wire).await;
        let stream = client.stream(request(1_000_000)).await.unwrap();
        let status = client.status(AgentStatusRequest { agent_id: AGENT.into(), include_jobs: true }).await.unwrap();
        assert_eq!((status.agent_id.as_str(), status.status.as_str()), (AGENT, "healthy"));
        assert_eq!((status.active_sessions, status.max_jobs, status.job_ids.len()), (1, 4, 1));
        assert_eq!((status.model_loaded.as_str(), status.models.len()), ("synthetic", 1));
        assert!(status.free_ram_mb > 0);
        let brief = client.status(AgentStatusRequest::default()).await.unwrap();
        assert!(brief.job_ids.is_empty());
        let other = AgentStatusRequest { agent_id: "agent-2".into(), ..Default::default() };
        assert_eq!(client.status(other).await.unwrap_err().code(), Code::NotFound);
        drop(stream);
        agent.running(0).await;
    }
}

#[tokio::test]
async fn health_and_reflection_answer_on_both_wires() {
    let agent = Running::start(0.0).await;
    for wire in WIRES {
        match agent.client(wire).await {
            Client::Http(_) => {
                let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", agent.grpc)).unwrap();
                answers(endpoint.connect().await.unwrap()).await;
            }
            Client::Quic(_) => answers(agent.quic_channel()).await,
        }
    }
}

async fn answers<T>(channel: T)
where
    T: GrpcService<Body> + Clone + Send + 'static,
    T::Error: Into<StdError>,
    T::ResponseBody: codegen::Body<Data = Bytes> + Send + 'static,
    <T::ResponseBody as codegen::Body>::Error: Into<StdError> + Send,
    T::Future: Send,
{
    for service in ["", "titancompute.v1.AgentService"] {
        let request = HealthCheckRequest { service: service.into() };
        let health = HealthClient::new(channel.clone()).check(request).await.unwrap().into_inner();
        assert_eq!(health.status(), ServingStatus::Serving, "{service:?}");
    }

    let ask = |message| ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let questions = [
        MessageRequest::ListServices(String::new()),
        MessageRequest::FileContainingSymbol("titancompute.v1.AgentService".into()),
        MessageRequest::FileContainingSymbol("grpc.health.v1.Health".into()),
    ];
    let questions = tokio_stream::iter(questions.map(ask));
    let answers = ServerReflectionClient::new(channel).server_reflection_info(questions).await.unwrap().into_inner();
    let answers: Vec<_> = answers.map(|answer| answer.unwrap().message_response.unwrap()).collect().await;
    let MessageResponse::ListServicesResponse(services) = &answers[0] else { panic!("{:?}", answers[0]) };
    let services: Vec<_> = services.service.iter().map(|service| service.name.as_str()).collect();
    assert!(services.contains(&"titancompute.v1.AgentService") && services.contains(&"grpc.health.v1.Health"));
    assert!(!services.contains(&"titancompute.v1.CoordinatorService"), "an agent is no coordinator: {services:?}");
    for answer in &answers[1..] {
        assert!(matches!(answer, MessageResponse::FileDescriptorResponse(_)), "{answer:?}");
    }
}

#[tokio::test]
async fn a_drain_lets_running_answers_finish_and_takes_nothing_new() {
    for wire in WIRES {
        let engine = Gated::after(1, SyntheticEngine::new(100.0));
        let mut agent = Running::start_with(engine.clone(), |_| ()).await;
        let mut client = agent.client(wire).await;
        let mut other = agent.client(wire).await;
        other.stream(request(1)).await.unwrap();
        let mut stream = client.stream(request(100)).await.unwrap();
        stream.message().await.unwrap().unwrap();
        agent.shutdown.cancel();
        eventually("the drain", || async { agent.status().await.status == "draining" }).await;
        let status = other.refused(request(1)).await;
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("shutting down"), "{}", status.message());
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", agent.grpc)).unwrap();
        let mut health = HealthClient::new(endpoint.connect().await.unwrap());
        let serving = health.check(HealthCheckRequest::default()).await.unwrap().into_inner().status();
        assert_eq!(serving, ServingStatus::NotServing);
        drop(health);

        engine.open(true);
        let mut messages = 1;
        while let Some(message) = soon("the rest of the answer", stream.message()).await.unwrap() {
            messages += 1;
            assert_eq!(message.done, messages == 101);
        }
        assert_eq!(messages, 101, "the whole answer over {}", wire.as_str());
        drop((client, other));
        soon("the end", &mut agent.task).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn what_does_not_finish_within_the_drain_time_is_ended_with_a_status() {
    for wire in WIRES {
        let engine = SyntheticEngine::new(1.0);
        let mut agent = Running::start_with(engine, |config| config.drain_time = Duration::from_millis(50)).await;
        let mut client = agent.client(wire).await;
        let mut stream = client.stream(request(1_000_000)).await.unwrap();
        stream.message().await.unwrap().unwrap();
        agent.shutdown.cancel();
        let status = loop {
            match soon("the end of the answer", stream.message()).await {
                Ok(message) => assert!(message.is_some(), "a cut answer must not look complete"),
                Err(status) => break status,
            }
        };
        assert_eq!(status.code(), Code::Unavailable, "{}", status.message());
        drop(client);
        soon("the end", &mut agent.task).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn quic_takes_the_same_port_number_as_grpc() {
    let agent = Running::start(0.0).await;
    assert_eq!(agent.grpc, agent.quic);
}

#[tokio::test]
async fn without_tls_material_there_is_grpc_on_loopback_and_no_quic() {
    let config = Config { grpc_addr: "127.0.0.1:0".parse().unwrap(), keys: Some(jwks()), ..Config::new(AGENT) };
    let agent = Agent::bind(config, Arc::new(SyntheticEngine::new(0.0))).await.unwrap();
    assert_eq!(agent.quic_addr(), None);
    assert!(agent.grpc_addr().port() > 0);
}

#[tokio::test]
async fn what_cannot_be_is_refused_before_anything_is_bound() {
    let engine = || Arc::new(SyntheticEngine::new(0.0));
    let base = || Config {
        grpc_addr: "127.0.0.1:0".parse().unwrap(),
        keys: Some(jwks()),
        tls: Some(certs().agent.clone()),
        ..Config::new(AGENT)
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let holder = std::net::TcpListener::bind(taken).unwrap();
    for (config, says) in [
        (Config { agent_id: "agent-2".into(), ..base() }, "--name agent-2"),
        (Config { tls: Some(certs().client.clone()), ..base() }, "client \"tester\""),
        (Config { models: vec!["llama".into()], ..base() }, "\"llama\""),
        (Config { keys: Some("{}".into()), ..base() }, "keys"),
        (Config { coordinator: Some("nowhere".into()), ..base() }, "nowhere"),
        (Config { grpc_addr: taken, ..base() }, "AGENT_PORT"),
    ] {
        let refused: BindError = Agent::bind(config, engine()).await.map(|_| ()).unwrap_err();
        assert!(refused.to_string().contains(says), "{says}: {refused}");
    }
    drop(holder);
}
