//! A coordinator that answers as a test tells it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse as _, Response},
    routing::post,
};
use serde_json::{Value, json};
use titan_proto::rest::{Endpoints, InferenceResponse};
use titan_transport::{Plaintext, TcpConfig, serve_tcp, tls::HttpTls};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{certs, soon};

/// An agent, as the coordinator describes it.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) agent_id: String,
    pub(crate) endpoints: Endpoints,
    /// Of the model there.
    pub(crate) model_digest: Option<String>,
}

pub(crate) struct TestCoordinator {
    port: u16,
    state: Arc<Mutex<Script>>,
    shutdown: CancellationToken,
}

struct Script {
    /// Agents to name, one after the other; the last one again and again.
    agents: VecDeque<Place>,
    /// Answers to give before any agent is named.
    refusals: VecDeque<Response>,
    token_ttl_s: i64,
    /// Names the first agent that is not excluded, and the first one where all are.
    chooses: bool,
    /// Whether all agents are full: then questions are held for as long as they may be.
    full: watch::Sender<bool>,
    questions: Vec<Value>,
    /// Jobs, and what clients said came of them.
    outcomes: Vec<(String, Value)>,
}

impl TestCoordinator {
    pub(crate) async fn start(agents: impl IntoIterator<Item = Place>) -> Self {
        let script = Script {
            agents: agents.into_iter().collect(),
            refusals: VecDeque::new(),
            token_ttl_s: 300,
            chooses: false,
            full: watch::Sender::new(false),
            questions: Vec::new(),
            outcomes: Vec::new(),
        };
        Self::start_at(TcpListener::bind("127.0.0.1:0").await.unwrap(), Arc::new(Mutex::new(script)))
    }

    fn start_at(listener: TcpListener, state: Arc<Mutex<Script>>) -> Self {
        let router = Router::new()
            .route("/api/v1/inference/request", post(name_agent))
            .route("/api/v1/jobs/{job_id}/outcome", post(take_outcome))
            .with_state(state.clone());
        let port = listener.local_addr().unwrap().port();
        let tls = Some(HttpTls::new(&certs::coordinator(), None).unwrap());
        let config = TcpConfig { tls, plaintext: Plaintext::LoopbackOnly, traffic: Arc::default() };
        let shutdown = CancellationToken::new();
        tokio::spawn(serve_tcp(listener, router, config, shutdown.clone()));
        Self { port, state, shutdown }
    }

    /// Stops. The value's [`restart`](Self::restart) makes it come back.
    pub(crate) async fn stop(&self) {
        self.shutdown.cancel();
        let port = self.port;
        // Connections end with it.
        soon(async { while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {} }).await;
    }

    /// Comes back at the same port, and remembers what it was asked.
    pub(crate) async fn restart(&mut self) {
        let again = loop {
            match TcpListener::bind(("127.0.0.1", self.port)).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        *self = Self::start_at(again, self.state.clone());
    }

    /// All agents are full, until they are not.
    pub(crate) fn set_full(&self, full: bool) {
        self.state.lock().unwrap().full.send_replace(full);
    }

    /// What clients said came of which job.
    pub(crate) fn outcomes(&self) -> Vec<(String, Value)> {
        self.state.lock().unwrap().outcomes.clone()
    }

    /// From now on names the first of its agents that is not excluded, and the first one where all are.
    pub(crate) fn choose(&self, agents: impl IntoIterator<Item = Place>) {
        self.name(agents);
        self.state.lock().unwrap().chooses = true;
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn https_url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// How many questions came.
    pub(crate) fn asked(&self) -> usize {
        self.state.lock().unwrap().questions.len()
    }

    /// The question that came last.
    pub(crate) fn question(&self) -> Value {
        self.state.lock().unwrap().questions.last().unwrap().clone()
    }

    /// Gives this answer once, instead of an agent.
    pub(crate) fn refuse(&self, answer: Response) {
        self.state.lock().unwrap().refusals.push_back(answer);
    }

    /// Names these agents from now on.
    pub(crate) fn name(&self, agents: impl IntoIterator<Item = Place>) {
        self.state.lock().unwrap().agents = agents.into_iter().collect();
    }

    pub(crate) fn token_ttl(&self, seconds: i64) {
        self.state.lock().unwrap().token_ttl_s = seconds;
    }
}

impl Drop for TestCoordinator {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// An error as coordinators word it.
pub(crate) fn error(status: StatusCode, code_word: &str) -> Response {
    let body = json!({"error": code_word, "code": status.as_u16(), "message": format!("because of {code_word}")});
    (status, Json(body)).into_response()
}

async fn take_outcome(
    State(state): State<Arc<Mutex<Script>>>,
    Path(job_id): Path<String>,
    Json(report): Json<Value>,
) -> StatusCode {
    state.lock().unwrap().outcomes.push((job_id, report));
    StatusCode::NO_CONTENT
}

async fn name_agent(
    State(state): State<Arc<Mutex<Script>>>,
    headers: HeaderMap,
    Json(question): Json<Value>,
) -> Response {
    let mut full = {
        let mut script = state.lock().unwrap();
        script.questions.push(question.clone());
        script.full.subscribe()
    };
    let patience = Duration::from_millis(headers["x-titan-queue-timeout-ms"].to_str().unwrap().parse().unwrap());
    if *full.borrow() && timeout(patience, full.wait_for(|full| !full)).await.is_err() {
        let mut refusal = error(StatusCode::SERVICE_UNAVAILABLE, "no_capacity");
        refusal.headers_mut().insert(RETRY_AFTER, 2.into());
        return refusal;
    }
    let mut script = state.lock().unwrap();
    if let Some(refusal) = script.refusals.pop_front() {
        return refusal;
    }
    let excluded = question["parameters"]["exclude_agents"].as_str();
    let excluded: Vec<String> = excluded.unwrap_or_default().split(',').map(str::to_owned).collect();
    let place = if script.chooses {
        let suits = |place: &&Place| !excluded.contains(&place.agent_id);
        script.agents.iter().find(suits).or(script.agents.front()).cloned()
    } else if script.agents.len() > 1 {
        script.agents.pop_front()
    } else {
        script.agents.front().cloned()
    };
    let Some(place) = place else { return error(StatusCode::SERVICE_UNAVAILABLE, "no_agents") };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let number = script.questions.len();
    Json(InferenceResponse {
        agent_endpoint: place.endpoints.grpc.as_ref().unwrap().address.clone(),
        session_token: format!("token-{number}"),
        expires_at: now + script.token_ttl_s,
        job_id: format!("job_{number}"),
        estimated_rtt_ms: 0.0,
        agent_id: place.agent_id,
        quic_endpoint: place.endpoints.quic.as_ref().map(|quic| quic.address.clone()),
        endpoints: place.endpoints,
        model_digest: place.model_digest,
        generations: None,
    })
    .into_response()
}
