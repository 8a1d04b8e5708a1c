//! An agent that repeats the prompt, or the last message, or does what that says. Where a call is demanded, its words are the arguments, and
//! where reasoning is, the first word is that. It has a runtime of its own, so that it can be killed.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, stream};
use titan_certs::agent_server_name;
use titan_proto::{
    ALPN,
    rest::{Endpoints, GrpcEndpoint, GrpcTls, QuicEndpoint},
    v1::{
        AgentStatusRequest, AgentStatusResponse, StreamRequest, StreamResponse, ToolCallDelta,
        agent_service_server::{AgentService, AgentServiceServer},
    },
};
use titan_transport::{
    PeerInfo, Plaintext, QuicListener, QuicServerConfig, TcpConfig, Wire, serve_quic, serve_tcp, tls::HttpTls,
};
use tokio::{net::TcpListener, runtime::Runtime};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, service::Routes};

use crate::{PATIENCE, certs, coordinator::Place};

/// An agent that runs until the value is dropped.
pub(crate) struct TestAgent {
    id: String,
    pub(crate) grpc: SocketAddr,
    pub(crate) quic: SocketAddr,
    pub(crate) probe: Arc<Probe>,
    runtime: Option<Runtime>,
    shutdown: CancellationToken,
}

/// What a test sees of an agent, and tells it.
#[derive(Default)]
pub(crate) struct Probe {
    /// Every request that a model saw.
    pub(crate) runs: Mutex<Vec<Run>>,
    /// Answers that ended or were dropped.
    pub(crate) ended: AtomicUsize,
    /// What the next requests are refused with.
    pub(crate) refusals: Mutex<VecDeque<Status>>,
    /// Requests that it runs at once; 0 for any number. Each then takes [`RUN_TIME`], and another one is told to come again after that.
    pub(crate) slots: AtomicUsize,
    /// Words after which an answer hangs that is not continued; 0 for none.
    pub(crate) pause_after: AtomicUsize,
    /// Requests that have a slot, and are not among the runs yet.
    about_to_run: AtomicUsize,
    /// Tokens and nonces, and the words of answers that are kept.
    seen: Mutex<HashMap<RequestId, Option<Vec<String>>>>,
}

/// How long a request holds its slot where slots are counted.
const RUN_TIME: Duration = Duration::from_millis(20);

/// A token and a nonce.
type RequestId = (String, String);

pub(crate) struct Run {
    pub(crate) request: StreamRequest,
    pub(crate) wire: Wire,
    pub(crate) early: bool,
}

impl TestAgent {
    pub(crate) async fn start(id: &str) -> Self {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::start_at(id, free, free).await
    }

    pub(crate) async fn start_at(id: &str, grpc: SocketAddr, quic: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let shutdown = CancellationToken::new();
        let probe = Arc::new(Probe::default());
        let routes = || Routes::new(AgentServiceServer::new(Parrot(probe.clone())));
        let material = certs::agent(id);
        let tcp = TcpConfig {
            tls: Some(HttpTls::new(&material, None).unwrap()),
            plaintext: Plaintext::LoopbackOnly,
            traffic: Arc::default(),
        };
        let _inside = runtime.enter();
        // The ports of an agent that was killed a moment ago are free when its last connection is gone.
        let listener = patiently(|| {
            let listener = std::net::TcpListener::bind(grpc)?;
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        });
        let endpoint = patiently(|| QuicListener::bind(quic, material.quic_server_config().unwrap()));
        let (grpc, quic) = (listener.local_addr().unwrap(), endpoint.local_addr().unwrap());
        let config = QuicServerConfig::new(&material).unwrap();
        runtime.spawn(serve_quic(endpoint, routes(), config, shutdown.clone()));
        runtime.spawn(serve_tcp(listener, routes().into_axum_router(), tcp, shutdown.clone()));
        Self { id: id.to_owned(), grpc, quic, probe, runtime: Some(runtime), shutdown }
    }

    /// Where it is.
    pub(crate) fn place(&self) -> Place {
        self.place_with(GrpcTls::None, Some(self.quic))
    }

    pub(crate) fn place_with(&self, tls: GrpcTls, quic: Option<SocketAddr>) -> Place {
        let quic = quic.map(|addr| QuicEndpoint {
            address: addr.to_string(),
            alpn: ALPN.to_owned(),
            server_name: agent_server_name(&self.id),
        });
        let grpc = Some(GrpcEndpoint { address: self.grpc.to_string(), tls });
        Place { agent_id: self.id.clone(), endpoints: Endpoints { grpc, quic }, model_digest: None }
    }

    /// Takes no new requests.
    pub(crate) fn drain(&self) {
        self.shutdown.cancel();
    }

    /// Ends without a farewell.
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Dead when this returns, its sockets closed; and not on this thread, where a runtime may not wait for another.
            std::thread::spawn(move || runtime.shutdown_timeout(PATIENCE)).join().unwrap();
        }
    }

    pub(crate) fn runs(&self) -> usize {
        self.probe.runs.lock().unwrap().len()
    }

    pub(crate) fn last_run<T>(&self, look: impl FnOnce(&Run) -> T) -> T {
        look(self.probe.runs.lock().unwrap().last().unwrap())
    }

    /// Answers that ended or were dropped.
    pub(crate) fn ended(&self) -> usize {
        self.probe.ended.load(SeqCst)
    }

    /// Has answers hang after so many words, until they are continued.
    pub(crate) fn pause_after(&self, words: usize) {
        self.probe.pause_after.store(words, SeqCst);
    }

    /// Forgets what it keeps.
    pub(crate) fn forget(&self) {
        self.probe.seen.lock().unwrap().values_mut().for_each(|kept| *kept = None);
    }

    pub(crate) fn refuse(&self, status: Status) {
        self.probe.refusals.lock().unwrap().push_back(status);
    }
}

impl Drop for TestAgent {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What an agent says that has no slot for a while.
pub(crate) fn full(wait: Duration) -> Status {
    let mut full = Status::resource_exhausted("all job slots are taken");
    let wait = u64::try_from(wait.as_millis()).unwrap();
    full.metadata_mut().insert("grpc-retry-pushback-ms", wait.into());
    full
}

fn patiently<T>(bind: impl Fn() -> std::io::Result<T>) -> T {
    for _ in 0..1000 {
        if let Ok(bound) = bind() {
            return bound;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    bind().unwrap()
}

struct Parrot(Arc<Probe>);

impl Parrot {
    /// The rest of an answer that was kept, to its proper end.
    fn resume(&self, pair: &RequestId, from: u64) -> Result<Response<MessageStream>, Status> {
        let kept = self.0.seen.lock().unwrap().get(pair).cloned().flatten();
        let words = kept.ok_or_else(|| Status::not_found("no such answer is kept"))?;
        let end = done(words.len());
        Ok(Response::new(Box::pin(stream::iter(
            words.into_iter().enumerate().map(text).chain([Ok(end)]).skip(from as usize),
        ))))
    }
}

/// Every word is a token, and its place is its id.
fn text((place, word): (usize, String)) -> Result<StreamResponse, Status> {
    Ok(StreamResponse { content: word, token_ids: vec![place as u32], ..Default::default() })
}

/// The same as reasoning or as a part of a call, where `request` wants that.
fn shaped(request: &StreamRequest, place: usize, message: StreamResponse) -> StreamResponse {
    let word = message.content.clone();
    let empty = StreamResponse { content: String::new(), ..message.clone() };
    if request.reasoning.is_some() && place == 0 {
        return StreamResponse { reasoning: word, ..empty };
    }
    if request.tool_choice.is_none() {
        return message;
    }
    let first = place == usize::from(request.reasoning.is_some());
    let (id, name) = if first { ("c1".to_owned(), "f".to_owned()) } else { Default::default() };
    StreamResponse { tool_calls: vec![ToolCallDelta { index: 0, id, name, arguments: word }], ..empty }
}

/// Tokens that another agent has said.
fn said_before(run: &Run) -> usize {
    run.request.continuation.as_ref().map_or(0, |continuation| continuation.completion_tokens as usize)
}

fn done(words: usize) -> StreamResponse {
    let metadata = HashMap::from([
        ("prompt_tokens".to_owned(), "3".to_owned()),
        ("completion_tokens".to_owned(), words.to_string()),
        ("tokens_per_second".to_owned(), "12.50".to_owned()),
        ("ttft_ms".to_owned(), "1.250".to_owned()),
        ("finish_reason".to_owned(), "stop".to_owned()),
    ]);
    StreamResponse { done: true, metadata, ..Default::default() }
}

/// Lives as long as an answer.
struct Alive(Arc<Probe>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, SeqCst);
    }
}

type MessageStream = Pin<Box<dyn Stream<Item = Result<StreamResponse, Status>> + Send>>;

#[tonic::async_trait]
impl AgentService for Parrot {
    type StreamInferenceStream = MessageStream;

    async fn stream_inference(&self, request: Request<StreamRequest>) -> Result<Response<MessageStream>, Status> {
        let probe = &self.0;
        if let Some(status) = probe.refusals.lock().unwrap().pop_front() {
            return Err(status);
        }
        let peer = request.extensions().get::<PeerInfo>().cloned().unwrap();
        let request = request.into_inner();
        let pair = (request.session_token.clone(), request.nonce.clone());
        if let Some(from) = request.resume_from {
            return self.resume(&pair, from);
        }
        if probe.seen.lock().unwrap().contains_key(&pair) {
            return Err(Status::already_exists("a request with this nonce has run already"));
        }
        let slots = probe.slots.load(SeqCst);
        if slots > 0 {
            // Counted and taken at once.
            let runs = probe.runs.lock().unwrap();
            if runs.len() + probe.about_to_run.load(SeqCst) - probe.ended.load(SeqCst) >= slots {
                return Err(full(RUN_TIME));
            }
            probe.about_to_run.fetch_add(1, SeqCst);
        }
        let prompt = request.messages.last().map_or(&request.prompt, |message| &message.content).clone();
        let words: Vec<String> = prompt.split_inclusive(' ').map(str::to_owned).collect();
        probe.seen.lock().unwrap().insert(pair, request.resumable.then(|| words.clone()));
        let alive = Alive(probe.clone());
        let run = Run { wire: peer.wire, early: peer.early_data.is_some(), request };
        let asked = run.request.clone();
        let before = said_before(&run);
        {
            let mut runs = probe.runs.lock().unwrap();
            runs.push(run);
            if slots > 0 {
                probe.about_to_run.fetch_sub(1, SeqCst);
            }
        }
        if slots > 0 {
            tokio::time::sleep(RUN_TIME).await;
        }
        let done = done(words.len());
        let end: MessageStream = match prompt.as_str() {
            "always fail" => Box::pin(stream::iter([Err(Status::internal("the model broke down"))])),
            _ if before > 0 => Box::pin(stream::iter([Ok(done)])),
            "then hang" => Box::pin(stream::pending()),
            "then fail" => Box::pin(stream::iter([Err(Status::internal("the model broke down"))])),
            "then stop" => Box::pin(stream::empty()),
            _ => Box::pin(stream::iter([Ok(done)])),
        };
        if prompt == "fail" {
            let failed = Status::unavailable("the model broke down; nothing was produced, try again");
            return Ok(Response::new(Box::pin(stream::iter([Err(failed)]))));
        }
        if prompt == "think" {
            let thinking = stream::pending().inspect(move |_: &Result<StreamResponse, Status>| {
                let _ = &alive;
            });
            return Ok(Response::new(Box::pin(thinking)));
        }
        let pause = probe.pause_after.load(SeqCst);
        let pauses = before == 0 && (1..words.len()).contains(&pause);
        let said = if pauses { pause } else { words.len() };
        let end = if pauses { Box::pin(stream::pending()) } else { end };
        let texts = words.into_iter().enumerate().take(said).skip(before);
        let texts = texts.map(move |(place, word)| text((place, word)).map(|message| shaped(&asked, place, message)));
        let answer = stream::iter(texts).chain(end).inspect(move |_| {
            let _ = &alive;
        });
        Ok(Response::new(Box::pin(answer)))
    }

    async fn get_status(&self, _: Request<AgentStatusRequest>) -> Result<Response<AgentStatusResponse>, Status> {
        Ok(Response::new(AgentStatusResponse::default()))
    }
}
