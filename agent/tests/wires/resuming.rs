//! Answers that outlive their connection: PROTOCOL.md §15.

use std::time::{Duration, SystemTime};

use titan_agent::engine::synthetic::{SyntheticEngine, token_index};
use titan_proto::v1::{StreamRequest, StreamResponse, agent_service_client::AgentServiceClient};
use titan_transport::{EarlyDataSafe, QuicChannel, Wire, token::unix_seconds};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tonic::{Code, Request, Status, Streaming, transport::Endpoint};

use crate::fixture::{Client, Gated, Running, WIRES, claims, request, soon, token};
use crate::relay::{Path, Relay};

const RATE: f64 = 200.0;
const TOKENS: i32 = 100;
/// Tokens that come before an answer is lost.
const BEFORE: usize = 10;
const ENDLESS: i32 = 1_000_000;

fn resumable(max_tokens: i32) -> StreamRequest {
    StreamRequest { nonce: "n".into(), resumable: true, compact: true, ..request(max_tokens) }
}

fn resume(of: &StreamRequest, from: u64) -> StreamRequest {
    let (session_token, nonce) = (of.session_token.clone(), of.nonce.clone());
    StreamRequest { session_token, nonce, resume_from: Some(from), ..Default::default() }
}

/// A client whose connection can be cut.
struct Cuttable {
    client: Client,
    cut: Cut,
}

enum Cut {
    Quic(QuicChannel),
    Tcp(JoinHandle<()>),
}

impl Cuttable {
    async fn new(agent: &Running, wire: Wire) -> Self {
        if wire == Wire::Quic {
            let channel = agent.quic_channel();
            return Self { client: Client::Quic(AgentServiceClient::new(channel.clone())), cut: Cut::Quic(channel) };
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let agent = agent.grpc.clone();
        let cable = tokio::spawn(async move {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut far = TcpStream::connect(agent).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        });
        Self { client: Client::Http(AgentServiceClient::new(endpoint.connect().await.unwrap())), cut: Cut::Tcp(cable) }
    }

    fn cut(self) {
        match self.cut {
            Cut::Quic(channel) => channel.disconnect(),
            Cut::Tcp(cable) => cable.abort(),
        }
    }
}

async fn read(stream: &mut Streaming<StreamResponse>, count: usize) -> Vec<StreamResponse> {
    let mut messages = Vec::new();
    while messages.len() < count {
        messages.push(soon("a message", stream.message()).await.unwrap().unwrap());
    }
    messages
}

/// All that is left of a stream that ends well.
async fn rest(mut stream: Streaming<StreamResponse>) -> Vec<StreamResponse> {
    let mut messages = Vec::new();
    while let Some(message) = soon("a message", stream.message()).await.unwrap() {
        messages.push(message);
    }
    messages
}

/// The status that a stream ends with, whatever comes before.
async fn end(mut stream: Streaming<StreamResponse>) -> Status {
    loop {
        match soon("the end", stream.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended well"),
            Err(status) => return status,
        }
    }
}

#[tokio::test]
async fn a_lost_answer_is_read_to_its_end_over_either_wire() {
    let engine = Gated::after(BEFORE, SyntheticEngine::new(RATE));
    let agent = Running::start_with(engine.clone(), |_| ()).await;
    for (first, second) in WIRES.into_iter().flat_map(|first| WIRES.map(|second| (first, second))) {
        let mut cuttable = Cuttable::new(&agent, first).await;
        let request = resumable(TOKENS);
        let mut stream = cuttable.client.stream(request.clone()).await.unwrap();
        let mut messages = read(&mut stream, BEFORE).await;
        cuttable.cut();
        let cut = end(stream).await;
        assert!(std::error::Error::source(&cut).is_some(), "{cut:?}");
        assert_eq!(agent.status().await.active_sessions, 1, "the slot stays taken");
        engine.open(true);
        messages.extend(agent.client(second).await.all(resume(&request, BEFORE as u64)).await.unwrap());
        engine.open(false);
        assert_eq!(messages.len(), TOKENS as usize + 1);
        for (index, message) in messages[..TOKENS as usize].iter().enumerate() {
            assert_eq!(token_index(&message.content), Some(index as u32), "{first:?}, {second:?}");
            assert!(message.token.is_empty() && message.created_at == 0);
        }
        let last = messages.last().unwrap();
        assert!(last.done && last.created_at > 0);
        assert_eq!(last.metadata["completion_tokens"], TOKENS.to_string());
        agent.running(0).await;
        // The last messages may have been lost too.
        let again = agent.client(first).await.all(resume(&request, TOKENS as u64)).await.unwrap();
        assert_eq!(again.as_slice(), &messages[TOKENS as usize..]);
    }
}

#[tokio::test]
async fn a_reader_that_is_not_noticed_dead_is_taken_over() {
    let engine = Gated::after(BEFORE, SyntheticEngine::new(RATE));
    let agent = Running::start_with(engine.clone(), |_| ()).await;
    for (first, second) in WIRES.into_iter().flat_map(|first| WIRES.map(|second| (first, second))) {
        let request = resumable(TOKENS);
        let mut client = agent.client(first).await;
        let mut old = client.stream(request.clone()).await.unwrap();
        read(&mut old, BEFORE).await;
        let new = agent.client(second).await.stream(resume(&request, 5)).await.unwrap();
        assert_eq!(end(old).await.code(), Code::Aborted);
        engine.open(true);
        let rest = rest(new).await;
        engine.open(false);
        assert_eq!(token_index(&rest[0].content), Some(5));
        assert_eq!(rest.len(), TOKENS as usize + 1 - 5);
    }
}

#[tokio::test]
async fn a_cancelled_answer_is_not_kept() {
    let agent = Running::start(RATE).await;
    for wire in WIRES {
        let request = resumable(ENDLESS);
        let mut client = agent.client(wire).await;
        let mut stream = client.stream(request.clone()).await.unwrap();
        read(&mut stream, 1).await;
        drop(stream);
        agent.running(0).await;
        let status = client.refused(resume(&request, 1)).await;
        assert_eq!(status.code(), Code::NotFound);
        assert!(status.message().contains("cancelled"), "{}", status.message());
    }
}

#[tokio::test]
async fn a_goodbye_over_quic_cancels() {
    let agent = Running::start(RATE).await;
    let request = resumable(ENDLESS);
    let mut client = agent.client(Wire::Quic).await;
    let mut stream = client.stream(request.clone()).await.unwrap();
    read(&mut stream, 1).await;
    agent.close_clients().await;
    agent.running(0).await;
    assert_eq!(agent.client(Wire::Http).await.refused(resume(&request, 1)).await.code(), Code::NotFound);
}

#[tokio::test]
async fn nobody_comes_back_and_the_slot_is_free_again() {
    let keep_time = Duration::from_millis(50);
    let agent = Running::start_with(SyntheticEngine::new(RATE), |config| config.keep_time = keep_time).await;
    for wire in WIRES {
        let mut cuttable = Cuttable::new(&agent, wire).await;
        let request = resumable(ENDLESS);
        let mut stream = cuttable.client.stream(request.clone()).await.unwrap();
        read(&mut stream, 1).await;
        cuttable.cut();
        agent.running(0).await;
        assert_eq!(agent.client(wire).await.refused(resume(&request, 1)).await.code(), Code::NotFound);
    }
}

#[tokio::test]
async fn what_cannot_be_resumed_is_refused_with_a_reason() {
    let agent = Running::start(RATE).await;
    for wire in WIRES {
        let mut client = agent.client(wire).await;
        let no_nonce = StreamRequest { nonce: String::new(), ..resumable(1) };
        let status = client.refused(no_nonce).await;
        assert!(status.code() == Code::InvalidArgument && status.message().contains("nonce"), "{status:?}");

        let plain = StreamRequest { resumable: false, ..resumable(1) };
        client.all(plain.clone()).await.unwrap();
        assert_eq!(client.refused(resume(&plain, 0)).await.code(), Code::NotFound, "it was not resumable");

        let request = resumable(1);
        assert_eq!(client.refused(resume(&request, 0)).await.code(), Code::NotFound, "it never began");
        client.all(request.clone()).await.unwrap();
        assert_eq!(client.refused(resume(&request, 3)).await.code(), Code::InvalidArgument, "there were two messages");
        assert_eq!(client.refused(request.clone()).await.code(), Code::AlreadyExists, "it runs once all the same");

        let stranger = StreamRequest { session_token: token(&claims()), ..resume(&request, 0) };
        assert_eq!(client.refused(stranger).await.code(), Code::NotFound, "another token, another answer");
        let forged = StreamRequest { session_token: "x.y.z".into(), ..resume(&request, 0) };
        assert_eq!(client.refused(forged).await.code(), Code::Unauthenticated);
    }
}

#[tokio::test]
async fn an_answer_that_outlives_its_token_can_be_resumed() {
    let agent = Running::start(RATE).await;
    let mut client = agent.client(Wire::Http).await;
    let mut begun = None;
    // With the leeway that clocks have, the first is accepted for a second or so; on a busy machine it comes too late.
    for left in [-3, 3, 15] {
        let (mut claims, now) = (claims(), unix_seconds(SystemTime::now()));
        (claims.nbf, claims.iat, claims.exp) = (now - 300, now - 300, now + left);
        let request = StreamRequest { session_token: token(&claims), ..resumable(ENDLESS) };
        if let Ok(stream) = client.stream(request.clone()).await {
            begun = Some((request, stream));
            break;
        }
    }
    let (request, mut stream) = begun.expect("a token that is accepted");
    read(&mut stream, 1).await;
    let expired = async {
        loop {
            let other = StreamRequest { nonce: "other".into(), ..request.clone() };
            if client.clone().stream(other).await.is_err_and(|status| status.code() == Code::Unauthenticated) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon("the token's end", expired).await;
    let mut rest = client.stream(resume(&request, 1)).await.unwrap();
    assert_eq!(token_index(&read(&mut rest, 1).await[0].content), Some(1));
}

#[tokio::test]
async fn a_resumption_can_travel_as_early_data() {
    let agent = Running::start(RATE).await;
    // Far enough away that a busy machine cannot complete the handshake before the request is sent, as loopback would.
    let far = Path { delay: Duration::from_millis(150), ..Path::default() };
    let relay = Relay::new(agent.quic.parse().unwrap(), far, 1).await;
    let channel = agent.quic_channel_by(relay.addr);
    let mut client = Client::Quic(AgentServiceClient::new(channel.clone()));
    let request = resumable(TOKENS);
    let mut stream = client.stream(request.clone()).await.unwrap();
    read(&mut stream, BEFORE).await;
    agent.sessions().await;
    channel.disconnect();
    let mut early = Request::new(resume(&request, BEFORE as u64));
    early.extensions_mut().insert(EarlyDataSafe);
    let rest = client.all(early).await.unwrap();
    assert_eq!((token_index(&rest[0].content), rest.len()), (Some(BEFORE as u32), TOKENS as usize + 1 - BEFORE));
    assert_eq!(channel.stats().early_calls, 1);
}
