//! The heartbeat against a coordinator that listens, and says what a test tells it: registration, prompt updates, coming back, saying
//! goodbye.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, stream::PollNext};
use parking_lot::Mutex;
use tempfile::TempDir;
use titan_agent::engine::{Engine, synthetic::SyntheticEngine};
use titan_certs::{Identity, Role};
use titan_proto::v1::{
    AgentRegistration, DeregistrationRequest, DeregistrationResponse, HealthAck, HealthUpdate, InferenceRequest,
    InferenceResponse, OutcomeRequest, OutcomeResponse, Prefill, PublicKeyRequest, PublicKeyResponse,
    RegistrationResponse, StatusRequest, StreamRequest, SystemStatus,
    coordinator_service_server::{CoordinatorService, CoordinatorServiceServer},
};
use titan_proto::{REASON, REPLACED};
use titan_transport::{
    PeerInfo, Plaintext, TcpConfig, Wire, serve_tcp,
    tls::HttpTls,
    token::{Algorithm, TokenIssuer},
};
use tokio::{
    net::TcpListener,
    sync::{
        broadcast,
        mpsc::{self, UnboundedReceiver, UnboundedSender},
    },
};
use tokio_stream::{StreamExt as _, wrappers::BroadcastStream};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming, metadata::MetadataMap, service::Routes};

use crate::fixture::{AGENT, Gated, Running, certs, claims, jwks, request, soon, token};

/// What the agent was heard saying.
#[derive(Debug)]
enum Heard {
    Stream(Identity),
    Update(Box<HealthUpdate>),
    Goodbye(DeregistrationRequest),
}

#[derive(Clone)]
struct Listener {
    heard: UnboundedSender<Heard>,
    jwks: Arc<Mutex<String>>,
    fetches: Arc<AtomicUsize>,
    /// What the next acknowledgement says; afterwards "ok".
    next_status: Arc<Mutex<Option<&'static str>>>,
    /// What every update is refused with from now on.
    refusal: Arc<Mutex<Option<Status>>>,
    /// What acknowledgements say of the clocks: the coordinator's, and how far the agent's is ahead.
    clocks: Arc<Mutex<(i64, i64)>>,
    /// Goes out beside the acknowledgements.
    hints: broadcast::Sender<HealthAck>,
    /// Ends the present stream.
    cut: Arc<Mutex<CancellationToken>>,
}

#[tonic::async_trait]
impl CoordinatorService for Listener {
    type ReportHealthStream = Pin<Box<dyn Stream<Item = Result<HealthAck, Status>> + Send>>;

    async fn report_health(
        &self,
        request: Request<Streaming<HealthUpdate>>,
    ) -> Result<Response<Self::ReportHealthStream>, Status> {
        let peer = request.extensions().get::<PeerInfo>().unwrap();
        let identity = Identity::from_der(peer.certificate.as_ref().unwrap()).unwrap();
        self.heard.send(Heard::Stream(identity)).unwrap();
        let this = self.clone();
        let acks = request.into_inner().map_while(Result::ok).map(move |update| {
            let status = this.next_status.lock().take().unwrap_or("ok").to_owned();
            let (clock_unix_ms, clock_skew_ms) = *this.clocks.lock();
            let timestamp = update.timestamp;
            let ack = HealthAck { status, timestamp, clock_unix_ms, clock_skew_ms, ..Default::default() };
            let _ = this.heard.send(Heard::Update(Box::new(update)));
            this.refusal.lock().clone().map_or(Ok(ack), Err)
        });
        let hints = BroadcastStream::new(self.hints.subscribe()).map(|hint| Ok(hint.unwrap()));
        // The stream ends with the updates, as a coordinator's does.
        let acks = futures_util::stream::select_with_strategy(
            acks.map(Some).chain(tokio_stream::once(None)),
            hints.map(Some),
            |_: &mut ()| PollNext::Left,
        );
        let acks =
            futures_util::StreamExt::take_while(acks, |ack| std::future::ready(ack.is_some())).filter_map(|ack| ack);
        let cut = self.cut.lock().clone();
        let acks = futures_util::StreamExt::take_until(acks, cut.cancelled_owned());
        Ok(Response::new(Box::pin(acks)))
    }

    async fn deregister_agent(
        &self,
        request: Request<DeregistrationRequest>,
    ) -> Result<Response<DeregistrationResponse>, Status> {
        self.heard.send(Heard::Goodbye(request.into_inner())).unwrap();
        Ok(Response::new(DeregistrationResponse::default()))
    }

    async fn get_public_key(&self, _: Request<PublicKeyRequest>) -> Result<Response<PublicKeyResponse>, Status> {
        self.fetches.fetch_add(1, Ordering::Relaxed);
        Ok(Response::new(PublicKeyResponse { jwks: self.jwks.lock().clone(), ..Default::default() }))
    }

    async fn request_inference(&self, _: Request<InferenceRequest>) -> Result<Response<InferenceResponse>, Status> {
        Err(Status::unimplemented("not an agent's call"))
    }

    async fn report_outcome(&self, _: Request<OutcomeRequest>) -> Result<Response<OutcomeResponse>, Status> {
        Err(Status::unimplemented("not an agent's call"))
    }

    async fn register_agent(&self, _: Request<AgentRegistration>) -> Result<Response<RegistrationResponse>, Status> {
        Err(Status::unimplemented("the stream registers"))
    }

    async fn query_system_status(&self, _: Request<StatusRequest>) -> Result<Response<SystemStatus>, Status> {
        Err(Status::unimplemented("not an agent's call"))
    }
}

pub(crate) struct Coordinator {
    pub(crate) endpoint: String,
    listener: Listener,
    heard: UnboundedReceiver<Heard>,
}

impl Coordinator {
    pub(crate) async fn start(jwks: String) -> Self {
        let (sender, heard) = mpsc::unbounded_channel();
        let listener = Listener {
            heard: sender,
            jwks: Arc::new(Mutex::new(jwks)),
            fetches: Arc::default(),
            next_status: Arc::default(),
            refusal: Arc::default(),
            clocks: Arc::default(),
            hints: broadcast::Sender::new(16),
            cut: Arc::default(),
        };
        let routes = Routes::new(CoordinatorServiceServer::new(listener.clone()));
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("localhost:{}", socket.local_addr().unwrap().port());
        let tls = Some(HttpTls::new(&certs().coordinator, None).unwrap());
        let config = TcpConfig { tls, plaintext: Plaintext::LoopbackOnly, traffic: Arc::default() };
        tokio::spawn(serve_tcp(socket, routes.into_axum_router(), config, CancellationToken::new()));
        Self { endpoint, listener, heard }
    }

    /// An agent that reports here, and by itself only once an hour.
    async fn agent(&self) -> Running {
        self.agent_with(SyntheticEngine::new(100.0)).await
    }

    async fn agent_with(&self, engine: impl Engine) -> Running {
        let endpoint = self.endpoint.clone();
        Running::start_with(engine, |config| {
            config.keys = None;
            config.coordinator = Some(endpoint);
            config.heartbeat_interval = Duration::from_secs(3600);
        })
        .await
    }

    /// Waits until the agent has registered.
    pub(crate) async fn registered(&mut self) {
        self.stream().await;
        self.update_with(|update| update.rtt_ms > 0.0).await;
    }

    /// Tells the agent of a request.
    pub(crate) fn hint(&self, prefill: Prefill) {
        let hint = HealthAck { status: "ok".into(), prefill: Some(prefill), ..Default::default() };
        self.listener.hints.send(hint).unwrap();
    }

    /// Waits until the agent has read all hints so far.
    pub(crate) async fn hints_read(&mut self) {
        let unknown = HealthAck { status: "unregistered".into(), ..Default::default() };
        self.listener.hints.send(unknown).unwrap();
        self.update_with(|update| update.registration.is_some()).await;
    }

    async fn next(&mut self) -> Heard {
        soon("a word from the agent", self.heard.recv()).await.unwrap()
    }

    pub(crate) async fn stream(&mut self) -> Identity {
        loop {
            if let Heard::Stream(identity) = self.next().await {
                return identity;
            }
        }
    }

    async fn update(&mut self) -> HealthUpdate {
        match self.next().await {
            Heard::Update(update) => *update,
            other => panic!("no update: {other:?}"),
        }
    }

    /// The first update of which this holds.
    pub(crate) async fn update_with(&mut self, holds: impl Fn(&HealthUpdate) -> bool) -> HealthUpdate {
        loop {
            let update = self.update().await;
            if holds(&update) {
                return update;
            }
        }
    }
}

#[tokio::test]
async fn the_first_update_registers_and_the_second_knows_the_round_trip_time() {
    let mut coordinator = Coordinator::start(jwks()).await;
    let agent = coordinator.agent().await;
    assert_eq!(coordinator.stream().await, Identity { role: Role::Agent, name: AGENT.into() });

    let first = coordinator.update().await;
    let registration = first.registration.unwrap();
    let port = agent.grpc.rsplit(':').next().unwrap();
    assert_eq!((first.agent_id.as_str(), registration.agent_id.as_str()), (AGENT, AGENT));
    assert_eq!(registration.endpoint, format!("localhost:{port}"));
    assert_eq!(registration.quic_endpoint, format!("localhost:{port}"));
    assert_eq!(registration.quic_server_name, titan_certs::agent_server_name(AGENT));
    assert_eq!((registration.grpc_tls.as_str(), registration.max_jobs), ("none", 4));
    assert_eq!(registration.supported_models, ["synthetic"]);
    assert!(registration.total_ram_mb > 0 && first.free_ram_mb > 0);
    assert_eq!(first.rtt_ms, 0.0, "nothing was measured yet");
    assert_eq!(registration.instance.len(), 32, "a word for this process");
    assert_eq!(first.clock_unix_ms, first.timestamp / 1_000_000);

    let second = coordinator.update().await;
    assert!(second.registration.is_none() && second.rtt_ms > 0.0);
    assert!(second.timestamp > first.timestamp);
}

#[tokio::test]
async fn jobs_are_reported_when_they_begin_and_when_they_end() {
    let mut coordinator = Coordinator::start(jwks()).await;
    let agent = coordinator.agent().await;
    coordinator.stream().await;
    coordinator.update_with(|update| update.rtt_ms > 0.0).await;

    let mut client = agent.client(Wire::Quic).await;
    let stream = client.stream(request(1_000_000)).await.unwrap();
    let began = coordinator.update_with(|update| update.running_jobs == 1).await;
    assert_eq!(began.claimed_job_ids, agent.status().await.job_ids);
    drop(stream);
    let ended = coordinator.update_with(|update| update.running_jobs == 0).await;
    assert!(ended.claimed_job_ids.is_empty(), "a job is claimed once");
    client.all(request(10)).await.unwrap();
    coordinator.update_with(|update| update.running_jobs == 0 && update.tokens_per_second > 0.0).await;
}

#[tokio::test]
async fn an_agent_that_is_not_known_registers_again() {
    let mut coordinator = Coordinator::start(jwks()).await;
    let agent = coordinator.agent().await;
    coordinator.stream().await;
    coordinator.update_with(|update| update.rtt_ms > 0.0).await;
    *coordinator.listener.next_status.lock() = Some("unregistered");
    agent.client(Wire::Quic).await.all(request(1)).await.unwrap();
    coordinator.update_with(|update| update.registration.is_some()).await;
}

#[tokio::test]
async fn a_lost_stream_is_opened_again_and_registers_again() {
    let mut coordinator = Coordinator::start(jwks()).await;
    let _agent = coordinator.agent().await;
    coordinator.stream().await;
    coordinator.update_with(|update| update.rtt_ms > 0.0).await;
    std::mem::take(&mut *coordinator.listener.cut.lock()).cancel();
    coordinator.stream().await;
    assert!(coordinator.update().await.registration.is_some());
}

#[tokio::test]
async fn a_shutdown_is_announced_and_ends_with_a_goodbye() {
    let mut coordinator = Coordinator::start(jwks()).await;
    let engine = Gated::after(1, SyntheticEngine::new(100.0));
    let mut agent = coordinator.agent_with(engine.clone()).await;
    coordinator.stream().await;
    coordinator.update_with(|update| update.rtt_ms > 0.0).await;
    let mut client = agent.client(Wire::Quic).await;
    let mut stream = client.stream(request(50)).await.unwrap();
    coordinator.update_with(|update| update.running_jobs == 1).await;
    agent.shutdown.cancel();
    coordinator.update_with(|update| update.draining && update.running_jobs == 1).await;
    engine.open(true);
    while stream.message().await.unwrap().is_some() {}
    let goodbye = loop {
        if let Heard::Goodbye(goodbye) = coordinator.next().await {
            break goodbye;
        }
    };
    assert_eq!((goodbye.agent_id.as_str(), goodbye.instance.len()), (AGENT, 32));
    drop((client, stream));
    soon("the end", &mut agent.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_agent_whose_name_a_newer_process_has_tries_no_more_and_says_no_goodbye() {
    let mut coordinator = Coordinator::start(jwks()).await;
    let mut agent = coordinator.agent().await;
    coordinator.registered().await;
    let reason =
        MetadataMap::from_headers([(REASON.parse().unwrap(), REPLACED.parse().unwrap())].into_iter().collect());
    *coordinator.listener.refusal.lock() = Some(Status::with_metadata(Code::Aborted, "a newer process", reason));
    let mut client = agent.client(Wire::Quic).await;
    client.all(request(1)).await.unwrap();
    coordinator.update().await;
    // Several times the pause after which an agent comes again that has only lost its stream.
    tokio::time::sleep(Duration::from_secs(1)).await;
    client.all(request(1)).await.expect("what it has tokens for it still serves");
    drop(client);
    agent.shutdown.cancel();
    soon("the end", &mut agent.task).await.unwrap().unwrap();
    while let Ok(heard) = coordinator.heard.try_recv() {
        assert!(matches!(heard, Heard::Update(_)), "{heard:?}");
    }
}

#[tokio::test]
async fn a_token_that_is_not_valid_yet_is_refused_with_both_clocks() {
    let mut coordinator = Coordinator::start(jwks()).await;
    *coordinator.listener.clocks.lock() = (1_800_000_000_000, -100_000);
    let agent = coordinator.agent().await;
    coordinator.registered().await;
    let mut early = claims();
    early.nbf = early.iat + 70;
    let session_token = token(&early);
    let refused = agent.client(Wire::Quic).await.refused(StreamRequest { session_token, ..request(1) }).await;
    assert_eq!(refused.code(), Code::Unavailable);
    let says = "clock says 2027-01-15T07:58:20Z and the coordinator's 2027-01-15T08:00:00Z, so it is 100 s behind";
    assert!(refused.message().contains(says), "{refused}");
}

#[tokio::test]
async fn the_keys_come_from_the_coordinator_and_a_new_key_is_fetched_once() {
    // A coordinator whose key changed after the agent asked for it.
    let dir = TempDir::new().unwrap();
    let stranger = TokenIssuer::open(dir.path(), Algorithm::ES256).unwrap();
    let mut coordinator = Coordinator::start(serde_json::to_string(&stranger.jwks()).unwrap()).await;
    let agent = coordinator.agent().await;
    coordinator.stream().await;
    let fetched = || coordinator.listener.fetches.load(Ordering::Relaxed);
    assert_eq!(fetched(), 1);
    *coordinator.listener.jwks.lock() = jwks();
    let mut client = agent.client(Wire::Http).await;
    assert_eq!(client.all(request(1)).await.unwrap().len(), 2);
    assert_eq!(fetched(), 2);

    // Now the old key is the unknown one, and the coordinator does not have it.
    for _ in 0..20 {
        let session_token = stranger.issue(&claims()).unwrap();
        let refused = client.refused(StreamRequest { session_token, ..request(1) }).await;
        assert_eq!(refused.code(), Code::Unauthenticated);
    }
    assert!(fetched() < 20, "not every bad token is a request to the coordinator");
}
