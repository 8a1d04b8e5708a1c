//! Prefill ahead: what an agent hears of a request before its client has come. PROTOCOL.md §17.

#![allow(clippy::unwrap_used)]

mod support;

use std::{collections::HashMap, time::Duration};

use serde_json::{Value, json};
use support::{Agent, Harness, material, registration, rest_client};
use titan_certs::Role;
use titan_coord::PROMPT_DIGEST;
use titan_proto::{
    rest,
    v1::{HealthAck, HealthUpdate, InferenceRequest, Prefill},
};

const PATH: &str = "/api/v1/inference/request";

async fn harness() -> Harness {
    Harness::start_in(tempfile::tempdir().unwrap(), |config| config.prefill_ahead = true).await
}

async fn route(harness: &Harness, question: Value) -> rest::InferenceResponse {
    let client = rest_client(&material(&harness.dir, Role::Client, "c"));
    let response = client.post(harness.http(PATH)).json(&question).send().await.unwrap();
    assert_eq!(response.status(), 200);
    response.json().await.unwrap()
}

async fn next(agent: &mut Agent) -> HealthAck {
    tokio::time::timeout(Duration::from_secs(60), agent.acks.message()).await.unwrap().unwrap().unwrap()
}

/// The hints that come before the acknowledgement of the next update.
async fn hints(agent: &mut Agent) -> Vec<Prefill> {
    const LAST: i64 = 99;
    let update = HealthUpdate { agent_id: agent.id.clone(), timestamp: LAST, ..Default::default() };
    agent.updates.send(update).await.unwrap();
    let mut hints = Vec::new();
    loop {
        let ack = next(agent).await;
        assert_eq!(ack.status, "ok");
        match ack.prefill {
            Some(prefill) => hints.push(prefill),
            None if ack.timestamp == LAST => return hints,
            None => {}
        }
    }
}

#[tokio::test]
async fn the_chosen_agent_hears_what_its_client_will_ask() {
    let harness = harness().await;
    let mut agent = harness.agent("agent-1").await;
    agent.register().await;
    let question = json!({"client_id": "c", "model": "smollm2:135m", "prompt": "Hello", "max_tokens": 7, "temperature": 0.7,
        "parameters": {"seed": "5", PROMPT_DIGEST: "sha256:0"}});
    let answer = route(&harness, question).await;
    let ack = next(&mut agent).await;
    assert_eq!((ack.status.as_str(), ack.timestamp), ("ok", 0), "an agent that knows no hints takes it for nothing");
    let expected = Prefill {
        job_id: answer.job_id,
        model: "smollm2:135m".into(),
        prompt: "Hello".into(),
        max_tokens: 7,
        temperature: 0.7,
        options: HashMap::from([("seed".into(), "5".into())]),
        ..Prefill::default()
    };
    assert_eq!(ack.prefill, Some(expected));
}

#[tokio::test]
async fn a_request_over_grpc_is_told_ahead_too() {
    let harness = harness().await;
    let mut agent = harness.agent("agent-1").await;
    agent.register().await;
    let request = InferenceRequest {
        client_id: "c".into(),
        model: "smollm2:135m".into(),
        prompt: "Hello".into(),
        parameters: HashMap::from([("top_p".into(), "0.5".into())]),
        ..Default::default()
    };
    let answer = harness.plain().await.request_inference(request).await.unwrap().into_inner();
    let prefill = next(&mut agent).await.prefill.unwrap();
    assert_eq!((prefill.job_id, prefill.prompt.as_str(), prefill.max_tokens), (answer.job_id, "Hello", 100));
    assert_eq!((prefill.temperature, prefill.options["top_p"].as_str()), (0.0, "0.5"));
}

#[tokio::test]
async fn a_digest_alone_is_told_to_nobody() {
    let harness = harness().await;
    let mut agent = harness.agent("agent-1").await;
    agent.register().await;
    let parameters = json!({PROMPT_DIGEST: "sha256:0"});
    route(&harness, json!({"client_id": "c", "model": "smollm2:135m", "parameters": parameters})).await;
    assert_eq!(hints(&mut agent).await, []);
}

#[tokio::test]
async fn nothing_is_told_ahead_unless_it_is_switched_on() {
    let harness = Harness::start().await;
    let mut agent = harness.agent("agent-1").await;
    agent.register().await;
    route(&harness, json!({"client_id": "c", "model": "smollm2:135m", "prompt": "Hello"})).await;
    assert_eq!(hints(&mut agent).await, []);
}

#[tokio::test]
async fn an_agent_that_does_not_read_holds_up_no_request_and_loses_no_acknowledgement() {
    const REQUESTS: usize = 64;
    let harness = harness().await;
    let mut agent = harness.agent("agent-1").await;
    let registration = Some(titan_proto::v1::AgentRegistration { max_jobs: 1000, ..registration("agent-1") });
    agent.report(HealthUpdate { registration, free_ram_mb: 8_000, ..Default::default() }).await.unwrap();
    let prompt = "x".repeat(500_000);
    for _ in 0..REQUESTS {
        route(&harness, json!({"client_id": "c", "model": "smollm2:135m", "prompt": prompt})).await;
    }
    let hints = hints(&mut agent).await;
    assert!((1..REQUESTS).contains(&hints.len()), "{} hints", hints.len());
    assert!(hints.iter().all(|hint| hint.prompt.len() == prompt.len()));
}
