//! Two processes under one agent id, and agents whose clocks are wrong, over real sockets.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{SystemTime, UNIX_EPOCH};

use support::{Agent, Client, Harness, registration};
use titan_proto::{
    REASON, REPLACED,
    v1::{
        AgentRegistration, AgentStatus, DeregistrationRequest, HealthAck, HealthUpdate, InferenceRequest, StatusRequest,
    },
};
use tonic::{Code, Status};

async fn status_of(client: &mut Client, id: &str) -> AgentStatus {
    let request = StatusRequest { include_agents: true, include_metrics: false };
    let agents = client.query_system_status(request).await.unwrap().into_inner().agents;
    agents.into_iter().find(|agent| agent.agent_id == id).unwrap()
}

/// Registers the agent as a process of this name.
async fn register(agent: &mut Agent, instance: &str) -> Result<HealthAck, Status> {
    let registration = AgentRegistration { instance: instance.into(), ..registration(&agent.id) };
    agent.report(HealthUpdate { registration: Some(registration), free_ram_mb: 8_000, ..Default::default() }).await
}

fn is_replaced(status: &Status) -> bool {
    status.code() == Code::Aborted && status.metadata().get(REASON).is_some_and(|reason| reason == REPLACED)
}

#[tokio::test]
async fn the_older_process_is_told_and_does_not_come_back_and_its_farewell_ends_nothing() {
    let harness = Harness::start().await;
    let mut old = harness.agent("agent-1").await;
    register(&mut old, "old").await.unwrap();
    let mut new = harness.agent("agent-1").await;
    register(&mut new, "new").await.unwrap();

    let told = old.report(HealthUpdate::default()).await.unwrap_err();
    assert!(is_replaced(&told) && told.message().contains("AGENT_ID"), "{told:?}");
    let mut again = harness.agent("agent-1").await;
    assert!(is_replaced(&register(&mut again, "old").await.unwrap_err()));
    let by_call = AgentRegistration { instance: "old".into(), ..registration("agent-1") };
    assert!(is_replaced(&old.client.register_agent(by_call).await.unwrap_err()));

    let leave = |instance: &str| DeregistrationRequest {
        agent_id: "agent-1".into(),
        reason: "shutting down".into(),
        instance: instance.into(),
    };
    assert_eq!(old.client.deregister_agent(leave("old")).await.unwrap().into_inner().status, "replaced");
    assert_eq!(status_of(&mut new.client, "agent-1").await.status, "healthy");
    assert_eq!(new.report(HealthUpdate::default()).await.unwrap().status, "ok");
    assert_eq!(new.client.deregister_agent(leave("new")).await.unwrap().into_inner().status, "deregistered");
    assert_eq!(status_of(&mut new.client, "agent-1").await.status, "offline");
}

fn now_unix_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis().try_into().unwrap()
}

#[tokio::test]
async fn clocks_are_compared_and_an_agent_that_is_minutes_behind_gets_no_requests() {
    let harness = Harness::start().await;
    let mut agent = harness.agent("agent-1").await;
    let before = now_unix_ms();
    let ack = register(&mut agent, "").await.unwrap();
    assert_eq!(ack.clock_skew_ms, 0, "an agent that does not tell");
    assert!((before..=now_unix_ms()).contains(&ack.clock_unix_ms));

    let behind = HealthUpdate { clock_unix_ms: now_unix_ms() - 600_000, ..Default::default() };
    let ack = agent.report(behind).await.unwrap();
    assert!((-660_000..=-600_000).contains(&ack.clock_skew_ms), "{ack:?}");
    let status = status_of(&mut agent.client, "agent-1").await;
    assert_eq!(status.status, "degraded");
    assert!(status.reason.contains("behind the coordinator's") && status.reason_since > 0, "{status:?}");
    let request = InferenceRequest {
        client_id: "c".into(),
        model: "smollm2:135m".into(),
        prompt: "Hello".into(),
        ..Default::default()
    };
    assert_eq!(agent.client.request_inference(request.clone()).await.unwrap_err().code(), Code::Unavailable);

    agent.report(HealthUpdate { clock_unix_ms: now_unix_ms(), ..Default::default() }).await.unwrap();
    let status = status_of(&mut agent.client, "agent-1").await;
    assert_eq!((status.status.as_str(), status.reason.as_str(), status.reason_since), ("healthy", "", 0));
    agent.client.request_inference(request).await.unwrap();
}
