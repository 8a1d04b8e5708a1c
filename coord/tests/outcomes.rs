//! What clients report of agents, over real sockets: `registry::breaker` has the rules, these the way there.

#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use support::{Agent, Client, Harness, material, rest_client};
use titan_certs::Role;
use titan_proto::{
    rest::{self, Outcome},
    v1::{HealthUpdate, InferenceRequest, InferenceResponse, OutcomeRequest},
};
use tonic::{Code, Status};

/// Asks for a route, away from `exclude` where that is possible, without waiting for room.
async fn route(client: &mut Client, client_id: &str, exclude: &str) -> Result<InferenceResponse, Status> {
    let mut request = tonic::Request::new(InferenceRequest {
        client_id: client_id.into(),
        model: "smollm2:135m".into(),
        prompt: "Hello".into(),
        parameters: [("exclude_agents".to_owned(), exclude.to_owned())].into(),
        ..Default::default()
    });
    request.metadata_mut().insert("x-titan-queue-timeout-ms", 0.into());
    Ok(client.request_inference(request).await?.into_inner())
}

struct Rest<'a> {
    harness: &'a Harness,
    http: reqwest::Client,
}

impl<'a> Rest<'a> {
    fn new(harness: &'a Harness) -> Self {
        Self { harness, http: rest_client(&material(&harness.dir, Role::Client, "c")) }
    }

    async fn post(&self, job_id: &str, body: String) -> (u16, String) {
        let url = self.harness.http(&format!("/api/v1/jobs/{job_id}/outcome"));
        let response = self.http.post(url).body(body).send().await.unwrap();
        let status = response.status().as_u16();
        let body = response.text().await.unwrap();
        let word = serde_json::from_str::<rest::Error>(&body).map(|error| error.error).unwrap_or(body);
        (status, word)
    }

    async fn report(&self, route: &InferenceResponse, outcome: Outcome) {
        assert_eq!(self.post(&route.job_id, body(route, outcome).to_string()).await, (204, String::new()));
    }

    async fn agent(&self, id: &str) -> rest::Agent {
        let url = self.harness.http("/api/v1/status?include_agents=true");
        let status: rest::Status = self.http.get(url).send().await.unwrap().json().await.unwrap();
        status.agents.unwrap().into_iter().find(|agent| agent.id == id).unwrap()
    }
}

fn body(route: &InferenceResponse, outcome: Outcome) -> Value {
    json!({"outcome": outcome, "agent_id": route.agent_id, "session_token": route.session_token, "wire": "quic", "message": "a word"})
}

async fn agents(harness: &Harness, ids: &[&str]) -> Vec<Agent> {
    let mut agents = Vec::new();
    for id in ids {
        let mut agent = harness.agent(id).await;
        agent.register().await;
        agents.push(agent);
    }
    agents
}

#[tokio::test]
async fn what_two_clients_met_sends_all_elsewhere_and_the_status_says_why_and_since_when() {
    let harness = Harness::start().await;
    let _agents = agents(&harness, &["agent-1", "agent-2"]).await;
    let (mut client, rest) = (harness.plain().await, Rest::new(&harness));
    for client_id in ["a", "b", "a"] {
        let route = route(&mut client, client_id, "agent-2").await.unwrap();
        assert_eq!(route.agent_id, "agent-1");
        rest.report(&route, Outcome::Unreachable).await;
    }
    for _ in 0..4 {
        // Whom everybody avoids is not even the last resort.
        assert_eq!(route(&mut client, "c", "agent-2").await.unwrap().agent_id, "agent-2");
    }
    let full = route(&mut client, "c", "agent-2").await.unwrap_err();
    assert_eq!(full.code(), Code::ResourceExhausted, "{full}");
    let agent = rest.agent("agent-1").await;
    let reason = agent.health_reason.unwrap();
    assert_eq!(agent.status, "degraded");
    assert!(reason.contains("could not be reached") && agent.health_since.unwrap().ends_with('Z'), "{reason}");
    let healthy = rest.agent("agent-2").await;
    assert_eq!((healthy.status.as_str(), healthy.health_reason, healthy.health_since), ("healthy", None, None));
}

#[tokio::test]
async fn one_client_is_sent_elsewhere_alone() {
    let harness = Harness::start().await;
    let _agents = agents(&harness, &["agent-1", "agent-2"]).await;
    let (mut client, rest) = (harness.plain().await, Rest::new(&harness));
    for _ in 0..3 {
        let route = route(&mut client, "a", "agent-2").await.unwrap();
        rest.report(&route, Outcome::TimedOut).await;
    }
    assert_eq!(rest.agent("agent-1").await.status, "healthy");
    assert_eq!(route(&mut client, "b", "agent-2").await.unwrap().agent_id, "agent-1");
    assert_eq!(route(&mut client, "a", "").await.unwrap().agent_id, "agent-2");
    assert_eq!(route(&mut client, "a", "").await.unwrap().agent_id, "agent-2");
}

#[tokio::test]
async fn whoever_has_no_right_to_a_report_changes_nothing() {
    let harness = Harness::start().await;
    let _agents = agents(&harness, &["agent-1"]).await;
    let (mut client, rest) = (harness.plain().await, Rest::new(&harness));
    let mut routes = Vec::new();
    for client_id in ["a", "b", "c"] {
        routes.push(route(&mut client, client_id, "").await.unwrap());
    }
    let own = &routes[0];
    let with = |name: &str, value: Value| {
        let mut body = body(own, Outcome::Broken);
        body[name] = value;
        body.to_string()
    };
    let forged = own.session_token.split_at(own.session_token.len() - 8).0.to_owned() + "AAAAAAAA";
    for (job_id, body, status, word) in [
        (&own.job_id, with("session_token", forged.into()), 401, "invalid_token"),
        (&own.job_id, with("session_token", "".into()), 401, "invalid_token"),
        (&own.job_id, with("agent_id", "agent-2".into()), 403, "invalid_token"),
        (&routes[1].job_id, with("wire", "quic".into()), 403, "wrong_job"),
        (&own.job_id, with("wire", "pigeon".into()), 400, "invalid_parameter"),
        (&own.job_id, with("message", "m".repeat(257).into()), 400, "invalid_parameter"),
        (&own.job_id, with("outcome", "sad".into()), 400, "invalid_json"),
        (&own.job_id, "{}".to_owned(), 400, "invalid_json"),
    ] {
        assert_eq!(rest.post(job_id, body).await, (status, word.to_owned()));
    }
    rest.report(own, Outcome::Broken).await;
    // Again and again, by both interfaces: each job counts once.
    for _ in 0..3 {
        let again = rest.post(&own.job_id, with("wire", "grpc".into())).await;
        assert_eq!(again, (409, "already_reported".to_owned()));
        let refused = client.report_outcome(request(own, "broken")).await.unwrap_err();
        assert_eq!(refused.code(), Code::AlreadyExists);
    }
    let unknown = client.report_outcome(request(&routes[1], "sad")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::InvalidArgument);
    assert!(unknown.message().contains("timed_out"), "{unknown}");
    client.report_outcome(request(&routes[1], "broken")).await.unwrap();
    assert_eq!(rest.agent("agent-1").await.status, "healthy", "two failures");
    client.report_outcome(request(&routes[2], "broken")).await.unwrap();
    assert_eq!(rest.agent("agent-1").await.status, "degraded", "three");
}

fn request(route: &InferenceResponse, outcome: &str) -> OutcomeRequest {
    OutcomeRequest {
        job_id: route.job_id.clone(),
        outcome: outcome.into(),
        agent_id: route.agent_id.clone(),
        session_token: route.session_token.clone(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_job_that_will_not_come_gives_its_slot_back() {
    let harness = Harness::start().await;
    let mut agents = agents(&harness, &["agent-1"]).await;
    let (mut client, rest) = (harness.plain().await, Rest::new(&harness));
    let mut routes = Vec::new();
    for _ in 0..4 {
        routes.push(route(&mut client, "a", "").await.unwrap());
    }
    assert_eq!(route(&mut client, "a", "").await.unwrap_err().code(), Code::ResourceExhausted);
    rest.report(&routes[0], Outcome::Cancelled).await;
    route(&mut client, "a", "").await.unwrap();

    // A refusal of an agent that is full is no failure, whoever reports it.
    let full = HealthUpdate { running_jobs: 4, claimed_job_ids: vec![routes[1].job_id.clone()], ..Default::default() };
    agents[0].report(full).await.unwrap();
    for route in &routes[1..] {
        rest.report(route, Outcome::Refused).await;
    }
    assert_eq!(rest.agent("agent-1").await.status, "healthy");
}
