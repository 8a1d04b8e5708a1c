//! Requests that wait for an agent with room, over real sockets: `waiting` has the rules.

#![allow(clippy::unwrap_used)]

mod support;

use serde_json::json;
use support::{Agent, Client, Harness, material, rest_client, until};
use titan_certs::Role;
use titan_proto::v1::{HealthUpdate, InferenceRequest, InferenceResponse};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tonic::{Code, Response, Status};

const TIMEOUT: &str = "x-titan-queue-timeout-ms";
const POSITION: &str = "x-titan-queue-position";
const WAIT: &str = "x-titan-queue-wait-ms";

async fn route(client: &mut Client, timeout_ms: i64) -> Result<Response<InferenceResponse>, Status> {
    let mut request = tonic::Request::new(InferenceRequest {
        client_id: "c".into(),
        model: "smollm2:135m".into(),
        prompt: "Hello".into(),
        ..Default::default()
    });
    request.metadata_mut().insert(TIMEOUT, timeout_ms.into());
    client.request_inference(request).await
}

fn body() -> String {
    json!({"client_id": "c", "model": "smollm2:135m", "prompt": "Hello"}).to_string()
}

/// An agent all of whose slots are booked, with the jobs.
async fn full(harness: &Harness) -> (Agent, Vec<String>) {
    let mut agent = harness.agent("agent-1").await;
    agent.register().await;
    let mut client = harness.plain().await;
    let mut jobs = Vec::new();
    for _ in 0..4 {
        jobs.push(route(&mut client, 0).await.unwrap().into_inner().job_id);
    }
    (agent, jobs)
}

/// At which place of the queue a request gives up that came now.
async fn next_position(client: &mut Client) -> String {
    let refused = route(client, 1).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    refused.metadata().get(POSITION).unwrap().to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_request_waits_until_a_heartbeat_frees_a_slot_and_says_how_long() {
    let harness = Harness::start_in(tempfile::tempdir().unwrap(), |config| {
        config.booking_timeout = titan_coord::MAX_BOOKING_TIMEOUT;
    })
    .await;
    let (mut agent, jobs) = full(&harness).await;
    let mut client = harness.plain().await;
    let rest = rest_client(&material(&harness.dir, Role::Client, "c"));
    let by_rest =
        tokio::spawn(rest.post(harness.http("/api/v1/inference/request")).header(TIMEOUT, "60000").body(body()).send());
    until(async || next_position(&mut client.clone()).await == "2").await;
    let mut second = client.clone();
    let by_grpc = tokio::spawn(async move { route(&mut second, 60_000).await });
    until(async || next_position(&mut client.clone()).await == "3").await;
    assert_eq!(route(&mut client, 0).await.unwrap_err().code(), Code::ResourceExhausted, "who does not wait");

    agent.report(HealthUpdate { claimed_job_ids: jobs, running_jobs: 2, ..Default::default() }).await.unwrap();
    let answer = by_rest.await.unwrap().unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    // Those who asked for the position stood in the queue for a moment too.
    assert!(number(answer.headers().get(POSITION).unwrap().to_str().unwrap()) >= 1);
    number(answer.headers()[WAIT].to_str().unwrap());
    let answer = by_grpc.await.unwrap().unwrap();
    assert!(number(answer.metadata().get(POSITION).unwrap().to_str().unwrap()) >= 2);
    number(answer.metadata().get(WAIT).unwrap().to_str().unwrap());
}

fn number(text: &str) -> u64 {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_the_queue() {
    let harness = Harness::start_in(tempfile::tempdir().unwrap(), |config| {
        config.booking_timeout = titan_coord::MAX_BOOKING_TIMEOUT;
    })
    .await;
    let (_agent, _jobs) = full(&harness).await;
    let mut client = harness.plain().await;
    let body = body();
    let request = format!(
        "POST /api/v1/inference/request HTTP/1.1\r\nhost: x\r\n{TIMEOUT}: 60000\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut rest = TcpStream::connect(("127.0.0.1", harness.http_port)).await.unwrap();
    rest.write_all(request.as_bytes()).await.unwrap();
    until(async || next_position(&mut client.clone()).await == "2").await;
    drop(rest);
    until(async || next_position(&mut client.clone()).await == "1").await;

    let mut other = client.clone();
    let by_grpc = tokio::spawn(async move { route(&mut other, 60_000).await });
    until(async || next_position(&mut client.clone()).await == "2").await;
    by_grpc.abort();
    until(async || next_position(&mut client.clone()).await == "1").await;
    assert_eq!(next_position(&mut client).await, "1");
}
