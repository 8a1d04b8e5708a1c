//! Streams over both wires: what they carry, what is refused, and what a client that goes away leaves behind.

use std::collections::HashSet;

use titan_agent::engine::synthetic::{SyntheticEngine, token_index};
use titan_proto::{
    MAX_PROMPT_BYTES,
    v1::{StreamRequest, agent_service_client::AgentServiceClient},
};
use titan_transport::{EarlyDataSafe, token::Claims};
use tonic::{Code, Request};

use crate::fixture::{Client, Running, WIRES, claims, request, soon, token};

/// Slow enough that a long answer does not end during a test.
const SLOW: f64 = 50.0;
/// Tokens of an answer that does not end during a test.
const ENDLESS: i32 = 1_000_000;

#[tokio::test]
async fn an_answer_is_texts_and_then_the_usage() {
    let agent = Running::start(200.0).await;
    for wire in WIRES {
        let messages = agent.client(wire).await.all(request(20)).await.unwrap();
        let (last, texts) = messages.split_last().unwrap();
        assert_eq!(texts.len(), 20);
        for (index, message) in texts.iter().enumerate() {
            assert_eq!(token_index(&message.content), Some(index as u32));
            assert_eq!(message.content, message.token);
            assert!(!message.done && message.session_token.is_empty() && message.metadata.is_empty());
        }
        assert!(texts.is_sorted_by_key(|message| message.created_at));
        assert!(last.done && last.content.is_empty());
        let number = |name: &str| last.metadata[name].parse::<f64>().unwrap();
        assert_eq!((number("prompt_tokens"), number("completion_tokens")), (3.0, 20.0));
        assert_eq!(last.metadata["finish_reason"], "length");
        assert!(number("ttft_ms") >= number("queue_ms") && number("queue_ms") >= 0.0);
        assert!(number("tokens_per_second") > 0.0);
    }
    assert_eq!(agent.status().await.total_requests_processed, 2);
}

#[tokio::test]
async fn bad_parameters_are_refused_by_name() {
    let agent = Running::start(0.0).await;
    let option = |name: &str, value: &str| {
        let mut request = request(1);
        request.options.insert(name.into(), value.into());
        request
    };
    for wire in WIRES {
        let mut client = agent.client(wire).await;
        for (request, says) in [
            (StreamRequest { prompt: String::new(), ..request(1) }, "prompt is empty"),
            (StreamRequest { prompt: "x".repeat(MAX_PROMPT_BYTES + 1), ..request(1) }, "prompt has"),
            (StreamRequest { temperature: f32::NAN, ..request(1) }, "temperature"),
            (request(-1), "max_tokens"),
            (option("top_p", "2"), "top_p"),
            (option("colour", "red"), "colour"),
            (StreamRequest { nonce: "x".repeat(65), ..request(1) }, "nonce"),
        ] {
            let status = client.refused(request).await;
            assert_eq!(status.code(), Code::InvalidArgument, "{says}: {}", status.message());
            assert!(status.message().contains(says), "{}", status.message());
        }
    }
}

#[tokio::test]
async fn beyond_max_jobs_a_request_is_refused_at_once_until_one_ends() {
    let agent = Running::start_with(SyntheticEngine::new(SLOW), |config| config.max_jobs = 2).await;
    for wire in WIRES {
        let mut client = agent.client(wire).await;
        let first = client.stream(request(ENDLESS)).await.unwrap();
        let _second = client.stream(request(ENDLESS)).await.unwrap();
        let status = client.refused(request(1)).await;
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().contains("all 2 job slots"), "{}", status.message());
        assert!(status.metadata().contains_key("grpc-retry-pushback-ms"));
        drop(first);
        agent.running(1).await;
        assert_eq!(client.all(request(1)).await.unwrap().len(), 2);
        drop(_second);
        agent.running(0).await;
    }
}

#[tokio::test]
async fn a_client_that_cancels_frees_its_slot() {
    let agent = Running::start(SLOW).await;
    for wire in WIRES {
        let mut client = agent.client(wire).await;
        let mut stream = client.stream(request(ENDLESS)).await.unwrap();
        stream.message().await.unwrap().unwrap();
        agent.running(1).await;
        drop(stream);
        agent.running(0).await;
    }
}

#[tokio::test]
async fn a_client_whose_connection_ends_frees_its_slots() {
    let agent = Running::start(SLOW).await;
    for wire in WIRES {
        let mut client = agent.client(wire).await;
        let mut streams = Vec::new();
        for _ in 0..3 {
            streams.push(client.stream(request(ENDLESS)).await.unwrap());
        }
        agent.running(3).await;
        drop((client, streams));
        agent.running(0).await;
    }
}

#[tokio::test]
async fn two_hundred_cancelled_streams_leave_nothing_behind() {
    let agent = Running::start_with(SyntheticEngine::new(SLOW), |config| config.max_jobs = 50).await;
    for wire in WIRES {
        let mut client = agent.client(wire).await;
        for _ in 0..4 {
            let mut streams = Vec::new();
            for _ in 0..50 {
                let mut stream = client.stream(request(ENDLESS)).await.unwrap();
                stream.message().await.unwrap().unwrap();
                streams.push(stream);
            }
            drop(streams);
            agent.running(0).await;
        }
    }
    assert_eq!(agent.status().await.total_requests_processed, 400);
}

#[tokio::test]
async fn a_nonce_runs_once_whichever_wire_it_comes_by() {
    let agent = Running::start(0.0).await;
    for (first, second) in [(WIRES[0], WIRES[1]), (WIRES[1], WIRES[0]), (WIRES[0], WIRES[0]), (WIRES[1], WIRES[1])] {
        let request = StreamRequest { nonce: "n-1".into(), ..request(1) };
        agent.client(first).await.all(request.clone()).await.unwrap();
        let status = agent.client(second).await.refused(request.clone()).await;
        assert_eq!(status.code(), Code::AlreadyExists);
        let other = StreamRequest { nonce: "n-2".into(), ..request };
        assert_eq!(agent.client(second).await.all(other).await.unwrap().len(), 2);
    }
}

#[tokio::test]
async fn a_nonce_that_found_no_slot_may_come_again() {
    let agent = Running::start_with(SyntheticEngine::new(SLOW), |config| config.max_jobs = 1).await;
    for wire in WIRES {
        let mut client = agent.client(wire).await;
        let running = client.stream(request(ENDLESS)).await.unwrap();
        let request = StreamRequest { nonce: "n".into(), ..request(1) };
        assert_eq!(client.refused(request.clone()).await.code(), Code::ResourceExhausted);
        drop(running);
        agent.running(0).await;
        client.all(request).await.unwrap();
    }
}

#[tokio::test]
async fn early_data_runs_once_with_a_nonce_and_waits_without() {
    let agent = Running::start(0.0).await;
    let channel = agent.quic_channel();
    let mut client = Client::Quic(AgentServiceClient::new(channel.clone()));
    let early = |nonce: &str| {
        let mut request = Request::new(StreamRequest { nonce: nonce.into(), ..request(2) });
        request.extensions_mut().insert(EarlyDataSafe);
        request
    };
    client.all(request(1)).await.unwrap();
    let mut seen = HashSet::new();
    for nonce in ["a", "", "b"] {
        agent.sessions().await;
        channel.disconnect();
        assert_eq!(soon("an answer to early data", client.all(early(nonce))).await.unwrap().len(), 3, "{nonce:?}");
        seen.insert(channel.stats().early_data_accepted);
    }
    assert_eq!((channel.stats().full_handshakes, seen.len()), (1, 3), "each reconnect was a 0-RTT one");

    let repeated = early("c");
    let again = StreamRequest { nonce: "c".into(), ..repeated.get_ref().clone() };
    client.all(repeated).await.unwrap();
    agent.sessions().await;
    channel.disconnect();
    assert_eq!(client.refused(again).await.code(), Code::AlreadyExists);
}

#[tokio::test]
async fn the_job_of_the_token_is_the_one_that_runs() {
    let agent = Running::start(SLOW).await;
    for wire in WIRES {
        let session_token = token(&Claims { job_id: "job_42".into(), ..claims() });
        let mut client = agent.client(wire).await;
        let stream = client.stream(StreamRequest { session_token, ..request(ENDLESS) }).await.unwrap();
        let status = agent.status().await;
        assert_eq!((status.active_sessions, status.job_ids.as_slice()), (1, ["job_42".to_owned()].as_slice()));
        drop(stream);
        agent.running(0).await;
    }
}
