//! A coordinator that is started again knows nothing of its agents for a moment: what it says meanwhile.

#![allow(clippy::unwrap_used)]

mod support;

use reqwest::Response;
use serde_json::{Value, json};
use support::{Client, Harness, material, rest_client, until};
use titan_certs::Role;
use titan_proto::v1::{InferenceRequest, InferenceResponse};
use tonic::{Code, Status};

const MODEL: &str = "smollm2:135m";

async fn route(client: &mut Client, model: &str) -> Result<InferenceResponse, Status> {
    let request =
        InferenceRequest { client_id: "c".into(), model: model.into(), prompt: "Hello".into(), ..Default::default() };
    Ok(client.request_inference(request).await?.into_inner())
}

/// A coordinator that was stopped while `agent-1` was there, started again.
async fn restarted() -> Harness {
    let harness = Harness::start().await;
    let mut agent = harness.agent("agent-1").await;
    agent.register().await;
    let noted = harness.dir.path().join("keys/known-agents");
    until(async || std::fs::read_to_string(&noted).is_ok_and(|ids| ids == "agent-1\n")).await;
    Harness::start_in(harness.stop().await, |_| ()).await
}

#[tokio::test]
async fn until_its_agents_are_back_it_says_not_yet_and_then_who_is_not_there() {
    let harness = restarted().await;
    let mut client = harness.plain().await;
    for model in [MODEL, "gpt"] {
        let status = route(&mut client, model).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().starts_with("starting: "), "{status}");
        assert_eq!(status.metadata().get("grpc-retry-pushback-ms").unwrap(), "2000");
    }
    let mut agent = harness.agent("agent-1").await;
    agent.register().await;
    assert_eq!(route(&mut client, MODEL).await.unwrap().agent_id, "agent-1");
    assert_eq!(route(&mut client, "gpt").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn every_door_says_not_yet() {
    let harness = restarted().await;
    let http = rest_client(&material(&harness.dir, Role::Client, "c"));
    let post = async |path: &str, body: Value| {
        let request = http.post(harness.http(path)).header("content-type", "application/json");
        request.body(body.to_string()).send().await.unwrap()
    };
    let get = async |path: &str| http.get(harness.http(path)).send().await.unwrap();
    let wait = |response: &Response| response.headers()["retry-after"].to_str().unwrap().to_owned();

    let native = post("/api/v1/inference/request", json!({"client_id": "c", "model": "gpt", "prompt": "Hi"})).await;
    assert_eq!((native.status().as_u16(), wait(&native).as_str()), (503, "2"));
    assert_eq!(native.json::<Value>().await.unwrap()["error"], "starting");

    let message = json!({"role": "user", "content": "Hello."});
    for response in [
        post("/v1/chat/completions", json!({"model": "gpt", "messages": [message]})).await,
        get("/v1/models/gpt").await,
        get("/v1/responses/resp_0123456789abcdef_0123456789abcdef0123456789abcdef").await,
    ] {
        assert_eq!((response.status().as_u16(), wait(&response).as_str()), (503, "2"), "{}", response.url());
    }
}

#[tokio::test]
async fn an_agent_that_said_goodbye_is_not_waited_for() {
    let harness = Harness::start().await;
    let mut agent = harness.agent("agent-1").await;
    agent.register().await;
    let leaving = titan_proto::v1::DeregistrationRequest { agent_id: "agent-1".into(), ..Default::default() };
    agent.client.deregister_agent(leaving).await.unwrap();
    drop(agent);
    let harness = Harness::start_in(harness.stop().await, |_| ()).await;
    let status = route(&mut harness.plain().await, "gpt").await.unwrap_err();
    assert!(status.message().starts_with("no_agents: "), "{status}");
}
