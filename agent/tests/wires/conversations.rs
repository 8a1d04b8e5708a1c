//! Conversations, tools and reasoning: PROTOCOL.md §18. What holds for prompts holds for them.

use std::sync::Arc;

use parking_lot::Mutex;
use titan_agent::engine::{
    Engine, Generate, GenerateFuture, Health,
    synthetic::{REASONING_TOKENS, SyntheticEngine},
};
use titan_proto::{
    conversation::add_to,
    v1::{
        Continuation, Message, ModelInfo, Reasoning, ResponseFormat, Sampling, StreamRequest, StreamResponse, Tool,
        ToolCall, ToolChoice,
    },
};
use titan_transport::{EarlyDataSafe, Wire};
use tonic::{Code, Request};

use crate::{
    coordinator::Coordinator,
    fixture::{Running, WIRES, claims, eventually, jwks, request, token},
};

const RATE: f64 = 200.0;
const TOKENS: i32 = 40;

/// A request whose answer thinks and then calls a function.
fn calling(max_tokens: i32) -> StreamRequest {
    StreamRequest {
        prompt: String::new(),
        messages: vec![Message::system("Be brief."), Message::user("Is it warm?")],
        tools: vec![Tool { name: "weather".into(), ..Tool::default() }],
        tool_choice: Some(ToolChoice { mode: "required".into(), ..ToolChoice::default() }),
        reasoning: Some(Reasoning { enabled: Some(true), ..Reasoning::default() }),
        want_token_ids: true,
        compact: true,
        nonce: "n".into(),
        resumable: true,
        ..request(max_tokens)
    }
}

/// What messages say together.
#[derive(Debug, Default, PartialEq)]
struct Said {
    text: String,
    reasoning: String,
    calls: Vec<ToolCall>,
    tokens: Vec<u32>,
}

fn said(messages: &[StreamResponse]) -> Said {
    let mut said = Said::default();
    for message in messages {
        said.text.push_str(&message.content);
        said.reasoning.push_str(&message.reasoning);
        said.tokens.extend(&message.token_ids);
        message.tool_calls.iter().for_each(|delta| add_to(&mut said.calls, delta));
    }
    said
}

#[tokio::test]
async fn a_tool_call_comes_in_parts_after_the_reasoning_on_both_wires() {
    let agent = Running::start(0.0).await;
    for wire in WIRES {
        let messages = agent.client(wire).await.all(calling(TOKENS)).await.unwrap();
        let Said { text, reasoning, calls, tokens } = said(&messages);
        assert_eq!((text.as_str(), tokens), ("", (0..TOKENS as u32).collect()));
        assert_eq!(reasoning.matches("tok").count(), REASONING_TOKENS as usize);
        let [call] = calls.as_slice() else { panic!("{calls:?}") };
        let arguments: serde_json::Value = serde_json::from_str(&call.arguments).unwrap();
        assert_eq!((call.name.as_str(), call.id.as_str()), ("weather", "call_2"));
        assert!(arguments["said"].as_str().unwrap().contains("00000020 tok"));
        let parts = messages.iter().filter(|message| !message.tool_calls.is_empty()).count();
        assert!(parts > 10, "{parts}");
        let last = messages.last().unwrap();
        assert_eq!(
            (last.finish_reason.as_str(), last.metadata["finish_reason"].as_str()),
            ("tool_calls", "tool_calls")
        );
        assert_eq!((last.metadata["prompt_tokens"].as_str(), last.metadata["completion_tokens"].as_str()), ("5", "40"));
    }
}

#[tokio::test]
async fn half_a_tool_call_is_resumed_over_either_wire() {
    let agent = Running::start(RATE).await;
    let whole = said(&agent.client(Wire::Http).await.all(calling(TOKENS)).await.unwrap());
    for (first, second) in WIRES.into_iter().flat_map(|first| WIRES.map(|second| (first, second))) {
        for come in [3, 20] {
            let request = calling(TOKENS);
            let mut client = agent.client(first).await;
            let mut stream = client.stream(request.clone()).await.unwrap();
            let mut messages = Vec::new();
            while messages.len() < come {
                messages.push(stream.message().await.unwrap().unwrap());
            }
            let resume = StreamRequest {
                session_token: request.session_token.clone(),
                nonce: request.nonce.clone(),
                resume_from: Some(come as u64),
                ..StreamRequest::default()
            };
            messages.extend(agent.client(second).await.all(resume).await.unwrap());
            assert_eq!(said(&messages), whole, "{first:?}, {second:?}, {come}");
            assert_eq!(messages.last().unwrap().finish_reason, "tool_calls");
        }
    }
}

#[tokio::test]
async fn another_agent_goes_on_with_half_a_tool_call() {
    let agent = Running::start(0.0).await;
    let digest = agent.status().await.model_info[0].digest.clone();
    for wire in WIRES {
        let mut client = agent.client(wire).await;
        let whole = client.all(calling(TOKENS)).await.unwrap();
        for come in 1..TOKENS {
            let begun = said(&whole[..come as usize]);
            let continuation = Continuation {
                text: begun.text,
                token_ids: begun.tokens,
                completion_tokens: come as u32,
                reasoning: begun.reasoning,
                tool_calls: begun.calls,
            };
            let request = StreamRequest {
                continuation: Some(continuation),
                model_digest: digest.clone(),
                ..calling(TOKENS - come)
            };
            let rest = client.all(request).await.unwrap();
            let together: Vec<_> = whole[..come as usize].iter().chain(&rest).cloned().collect();
            assert_eq!(said(&together), said(&whole), "{come}");
            assert_eq!(rest.last().unwrap().metadata["completion_tokens"], TOKENS.to_string());
        }
    }
}

#[tokio::test]
async fn a_request_for_another_model_is_refused_with_both_digests() {
    let agent = Running::start(0.0).await;
    let digest = agent.status().await.model_info[0].digest.clone();
    assert_eq!(digest.len(), 64);
    for wire in WIRES {
        let mut client = agent.client(wire).await;
        let other = "a".repeat(64);
        let status = client.refused(StreamRequest { model_digest: other.clone(), ..calling(TOKENS) }).await;
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains(&other) && status.message().contains(&digest), "{status}");
        client.all(StreamRequest { model_digest: digest.clone(), ..calling(TOKENS) }).await.unwrap();
    }
}

#[tokio::test]
async fn refusals_name_the_field_on_both_wires() {
    let agent = Running::start(0.0).await;
    for wire in WIRES {
        let mut client = agent.client(wire).await;
        let both = StreamRequest { prompt: "hello".into(), ..calling(1) };
        let image =
            StreamRequest { messages: vec![Message { role: "bot".into(), ..Message::user("x") }], ..calling(1) };
        let choice = StreamRequest { tools: Vec::new(), ..calling(1) };
        for (request, field) in [(both, "messages stand"), (image, "messages[0].role"), (choice, "tool_choice wants")] {
            let status = client.refused(request).await;
            assert_eq!(status.code(), Code::InvalidArgument);
            assert!(status.message().starts_with(field), "{status}");
        }
        // What this engine cannot do is refused, and not left out.
        let format = Some(ResponseFormat { r#type: "json_object".into(), ..ResponseFormat::default() });
        let status = client.refused(StreamRequest { response_format: format, tool_choice: None, ..calling(1) }).await;
        assert!(status.code() == Code::FailedPrecondition && status.message().contains("response_format"), "{status}");
    }
}

#[tokio::test]
async fn a_stop_text_given_as_a_field_ends_the_answer_on_both_wires() {
    let agent = Running::start(0.0).await;
    for wire in WIRES {
        let sampling = Some(Sampling { stop: vec!["tok 00000005".into()], ..Sampling::default() });
        let messages = vec![Message::user("hello")];
        let request = StreamRequest { prompt: String::new(), messages, sampling, logprobs: true, ..request(TOKENS) };
        let messages = agent.client(wire).await.all(request).await.unwrap();
        let Said { text, .. } = said(&messages);
        assert!(text.ends_with("00000004 "), "{text}");
        let last = messages.last().unwrap();
        assert_eq!((last.finish_reason.as_str(), last.metadata["completion_tokens"].as_str()), ("stop", "6"));
        assert_eq!(messages.iter().map(|message| message.logprobs.len()).sum::<usize>(), 6, "one for each token");
    }
}

#[tokio::test]
async fn a_conversation_can_travel_as_early_data() {
    let agent = Running::start(0.0).await;
    let channel = agent.quic_channel();
    let mut client =
        crate::fixture::Client::Quic(titan_proto::v1::agent_service_client::AgentServiceClient::new(channel.clone()));
    client.all(calling(1)).await.unwrap();
    let resumed = async || {
        channel.disconnect();
        let mut early = Request::new(calling(TOKENS));
        early.extensions_mut().insert(EarlyDataSafe);
        let messages = client.clone().all(early).await.unwrap();
        assert_eq!(messages.last().unwrap().finish_reason, "tool_calls");
        channel.stats().early_calls > 0
    };
    // A session ticket comes after the handshake, and nothing shows when.
    eventually("a request as early data", resumed).await;
}

/// The synthetic engine, which holds and is what a test says.
#[derive(Clone)]
struct Told {
    inner: SyntheticEngine,
    health: Arc<Mutex<Health>>,
    prefixes: Arc<Mutex<Vec<u64>>>,
    computing: Arc<Mutex<usize>>,
}

impl Engine for Told {
    fn models(&self) -> Vec<String> {
        Engine::models(&self.inner)
    }

    fn generate(&self, request: Generate) -> GenerateFuture<'_> {
        assert_eq!(request.owner, claims().client_id, "the token's client");
        self.inner.generate(request)
    }

    fn model_info(&self) -> Vec<ModelInfo> {
        self.inner.model_info()
    }

    fn health(&self) -> Health {
        self.health.lock().clone()
    }

    fn cached_prefixes(&self) -> Vec<u64> {
        self.prefixes.lock().clone()
    }

    fn computing(&self) -> usize {
        *self.computing.lock()
    }
}

fn told() -> Told {
    Told {
        inner: SyntheticEngine::new(0.0),
        health: Arc::default(),
        prefixes: Arc::default(),
        computing: Arc::default(),
    }
}

#[tokio::test]
async fn status_says_how_the_engine_is_and_what_it_computes() {
    let engine = told();
    let agent = Running::start_with(engine.clone(), |_| ()).await;
    agent.client(Wire::Quic).await.all(StreamRequest { session_token: token(&claims()), ..calling(1) }).await.unwrap();
    let status = agent.status().await;
    assert_eq!((status.status.as_str(), status.reason.as_str(), status.computing), ("healthy", "", 0));
    assert_eq!((status.model_info[0].engine.as_str(), status.model_info[0].name.as_str()), ("synthetic", "synthetic"));
    for (health, word) in [
        (Health::Degraded { reason: "it failed".into() }, "degraded"),
        (Health::HalfOpen { reason: "it failed".into() }, "half_open"),
    ] {
        (*engine.health.lock(), *engine.computing.lock()) = (health, 3);
        let status = agent.status().await;
        assert_eq!((status.status.as_str(), status.reason.as_str(), status.computing), (word, "it failed", 3));
    }
}

#[tokio::test]
async fn the_coordinator_hears_of_the_engine_without_a_request_beginning_or_ending() {
    let mut coordinator = Coordinator::start(jwks()).await;
    let engine = told();
    *engine.prefixes.lock() = (0..1000).collect();
    let endpoint = coordinator.endpoint.clone();
    let _agent = Running::start_with(engine.clone(), |config| {
        config.keys = None;
        config.coordinator = Some(endpoint);
        config.heartbeat_interval = std::time::Duration::from_secs(3600);
    })
    .await;
    coordinator.stream().await;
    let first = coordinator.update_with(|update| update.registration.is_some()).await;
    assert!(first.caches && first.health == "healthy");
    assert_eq!(first.cached_prefixes, (0..512).collect::<Vec<_>>(), "the most recent, and no more than is taken");
    assert_eq!(first.registration.unwrap().model_info, engine.model_info());

    *engine.computing.lock() = 1;
    let update = coordinator.update_with(|update| update.computing == 1).await;
    assert!(!update.caches && update.cached_prefixes.is_empty(), "it holds what it held");
    *engine.health.lock() = Health::Degraded { reason: "it failed ".repeat(100) };
    let update = coordinator.update_with(|update| update.health == "degraded").await;
    assert_eq!(update.health_reason.chars().count(), 200);
    *engine.prefixes.lock() = vec![7];
    let update = coordinator.update_with(|update| update.caches).await;
    assert_eq!((update.cached_prefixes, update.health.as_str()), (vec![7], "degraded"));
    *engine.prefixes.lock() = vec![];
    let update = coordinator.update_with(|update| update.caches).await;
    assert!(update.cached_prefixes.is_empty(), "it holds nothing any more");
}
