//! The one handler, for both wires.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Instant, SystemTime},
};

use futures_util::Stream;
use parking_lot::Mutex;
use titan_proto::v1::{
    AgentStatusRequest, AgentStatusResponse, ModelInfo, StreamRequest, StreamResponse,
    agent_service_server::AgentService,
};
use titan_transport::{
    EarlyData, PeerInfo,
    token::{Claims, unix_seconds},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    account::Job,
    admission::Admission,
    auth::{Authenticator, Purpose, allowed_model, check_role},
    engine::{Engine, EngineError, Generate, Health, TokenStream},
    options,
    prefill::Prefills,
    replay::{MAX_NONCE_BYTES, Note, ReplayCache, Verdict},
    response::{ResponseStream, Shape, engine_status},
    resumable::{Kept, Reader, RequestId},
    telemetry::Telemetry,
    token_uses::TokenUses,
};

/// The agent's gRPC service. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(crate) struct Service {
    core: Arc<Core>,
}

/// What the handler works with.
pub(crate) struct Core {
    pub(crate) agent_id: String,
    /// The models to serve, the default one first.
    pub(crate) models: Vec<String>,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) auth: Arc<Authenticator>,
    pub(crate) admission: Admission,
    pub(crate) prefills: Arc<Prefills>,
    pub(crate) telemetry: Telemetry,
    pub(crate) replay: Arc<Mutex<ReplayCache>>,
    pub(crate) token_uses: TokenUses,
    pub(crate) kept: Kept,
    /// Ends what still runs when the drain is over.
    pub(crate) abort: CancellationToken,
}

/// The answer to a request.
pub(crate) enum Answer {
    /// It ends with its reader.
    Plain(Box<ResponseStream>),
    /// It can be resumed.
    Kept(Reader),
}

impl Stream for Answer {
    type Item = Result<StreamResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_next(cx),
            Self::Kept(reader) => Pin::new(reader).poll_next(cx),
        }
    }
}

impl Service {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

#[tonic::async_trait]
impl AgentService for Service {
    type StreamInferenceStream = Answer;

    async fn stream_inference(&self, request: Request<StreamRequest>) -> Result<Response<Answer>, Status> {
        let received_at = Instant::now();
        let (metadata, extensions, request) = request.into_parts();
        let peer = extensions.get::<PeerInfo>();
        check_role(peer)?;
        let purpose = if request.resume_from.is_some() { Purpose::Resume } else { Purpose::Begin };
        let claims = self.core.auth.authenticate(&request.session_token, &metadata, purpose).await?;
        let answer = match request.resume_from {
            Some(from) => Answer::Kept(self.core.resume(peer, claims, request.nonce, from).await?),
            None => self.core.start(received_at, peer, &claims, request).await?,
        };
        Ok(Response::new(answer))
    }

    async fn get_status(&self, request: Request<AgentStatusRequest>) -> Result<Response<AgentStatusResponse>, Status> {
        check_role(request.extensions().get::<PeerInfo>())?;
        let request = request.into_inner();
        if !request.agent_id.is_empty() && request.agent_id != self.core.agent_id {
            let (asked, here) = (&request.agent_id, &self.core.agent_id);
            return Err(Status::not_found(format!("this is the agent {here:?}, not {asked:?}")));
        }
        Ok(Response::new(self.core.status(request.include_jobs).await))
    }
}

impl Core {
    pub(crate) async fn start(
        &self,
        received_at: Instant,
        peer: Option<&PeerInfo>,
        claims: &Claims,
        mut request: StreamRequest,
    ) -> Result<Answer, Status> {
        let model = allowed_model(claims, &request.model)?.to_owned();
        if !self.models.contains(&model) {
            let unknown = EngineError::UnknownModel { model, available: self.models.clone() };
            return Err(engine_status(&unknown, false));
        }
        let nonce = std::mem::take(&mut request.nonce);
        if nonce.len() > MAX_NONCE_BYTES {
            let bytes = nonce.len();
            return Err(Status::invalid_argument(format!(
                "nonce has {bytes} bytes; at most {MAX_NONCE_BYTES} are accepted"
            )));
        }
        self.check_digest(&model, &request.model_digest)?;
        let anew = request.continuation.is_none();
        let resumable = request.resumable.then(|| RequestId { jti: claims.jti.clone(), nonce: nonce.clone() });
        if resumable.is_some() && nonce.is_empty() {
            return Err(Status::invalid_argument("a resumable request needs a nonce: the answer is found by it"));
        }
        let continued_tokens = request.continuation.as_ref().map_or(0, |continuation| continuation.completion_tokens);
        let shape = Shape { compact: request.compact, token_ids: request.want_token_ids, continued_tokens };
        let generate = options::generate(request, model, &claims.client_id)?;

        let early_data = peer.and_then(|peer| peer.early_data.as_ref());
        if nonce.is_empty() {
            confirmed(early_data).await?;
        }
        // The slot first: a request that finds none has not run and may come again with the same nonce.
        let mut slot = self.admission.admit(Job::of(claims, &generate.model))?;
        let prompt_bytes = generate.prompt_bytes();
        let begun = self.prefills.claim(&claims.job_id, &generate);
        let note = self.run_once(claims, nonce, early_data).await?;
        let token_use = self.token_uses.start(claims, SystemTime::now())?;
        let begun = self.prefills.taken_over(begun.filter(|_| anew)).await;
        let prefilled = begun.is_some();
        let tokens = match begun {
            Some(tokens) => tokens,
            None => self.generate(generate).await?,
        };
        token_use.used();
        slot.account().started(prompt_bytes);
        let stream =
            ResponseStream::new(tokens, slot, received_at, note, self.abort.clone(), shape).prefilled(prefilled);
        Ok(match resumable.filter(|_| self.kept.is_on()) {
            Some(id) => Answer::Kept(self.kept.start(id, stream, peer.map(|peer| peer.connection.clone()))),
            None => Answer::Plain(Box::new(stream)),
        })
    }

    /// An answer goes on with the weights that it began with, or not at all: PROTOCOL.md §16.
    fn check_digest(&self, model: &str, wanted: &str) -> Result<(), Status> {
        if wanted.is_empty() {
            return Ok(());
        }
        let infos = self.engine.model_info();
        let here = infos.iter().find(|info| info.name == model).map_or("", |info| info.digest.as_str());
        if here == wanted {
            return Ok(());
        }
        const SHOWN_CHARS: usize = 64;
        let wanted: String = wanted.chars().take(SHOWN_CHARS).collect();
        let here = if here.is_empty() { "no digest" } else { here };
        Err(Status::failed_precondition(format!(
            "model_digest is {wanted:?}, and the model {model} of this agent has {here}: ask the coordinator for an agent with the same model"
        )))
    }

    /// PROTOCOL.md §15.
    async fn resume(
        &self,
        peer: Option<&PeerInfo>,
        claims: Claims,
        nonce: String,
        from: u64,
    ) -> Result<Reader, Status> {
        let id = RequestId { jti: claims.jti, nonce };
        // A replay of early data must not take an answer from whoever reads it.
        if self.kept.has_reader(&id) {
            confirmed(peer.and_then(|peer| peer.early_data.as_ref())).await?;
        }
        Ok(self.kept.resume(&id, from, peer.map(|peer| peer.connection.clone()))?)
    }

    /// Refuses a request that ran already.
    async fn run_once(
        &self,
        claims: &Claims,
        nonce: String,
        early_data: Option<&EarlyData>,
    ) -> Result<Option<Note>, Status> {
        if nonce.is_empty() {
            return Ok(None);
        }
        let (dead_at, now) = (unix_seconds(claims.dead_at()), unix_seconds(SystemTime::now()));
        let (verdict, note) = Note::make(&self.replay, &claims.jti, nonce, dead_at, now);
        match verdict {
            Verdict::Fresh => {}
            Verdict::Unrecorded => confirmed(early_data).await?,
            Verdict::Repeated => {
                let message = "a request with this nonce has run already: a new request needs a new nonce";
                return Err(Status::already_exists(message));
            }
        }
        Ok(note)
    }

    async fn generate(&self, generate: Generate) -> Result<TokenStream, Status> {
        tokio::select! {
            started = self.engine.generate(generate) => started.map_err(|error| {
                titan_transport::seldom!(warn, %error, "a generation did not start");
                engine_status(&error, false)
            }),
            () = self.abort.cancelled() => {
                Err(Status::unavailable("this agent shut down before the request began: ask the coordinator for another agent"))
            }
        }
    }

    async fn status(&self, include_jobs: bool) -> AgentStatusResponse {
        let machine = self.telemetry.sample().await;
        let load = self.admission.load();
        let (health, reason) = health_words(self.engine.health());
        let status = if load.draining { "draining" } else { health };
        AgentStatusResponse {
            agent_id: self.agent_id.clone(),
            status: status.to_owned(),
            free_vram_mb: machine.free_vram_mb,
            free_ram_mb: machine.free_ram_mb,
            active_sessions: count(load.running),
            total_requests_processed: i64::try_from(load.processed).unwrap_or(i64::MAX),
            model_loaded: self.models.first().cloned().unwrap_or_default(),
            models: self.models.clone(),
            max_jobs: count(self.admission.max_jobs()),
            job_ids: if include_jobs { self.admission.job_ids() } else { Vec::new() },
            model_info: self.model_info(),
            computing: count(self.engine.computing()),
            queued: count(self.engine.queued()),
            reason,
        }
    }

    /// What the served models are, in their order.
    pub(crate) fn model_info(&self) -> Vec<ModelInfo> {
        let mut known = self.engine.model_info();
        let unknown = |name: &String| ModelInfo { name: name.clone(), ..ModelInfo::default() };
        let mut take = |name: &String| {
            let at = known.iter().position(|info| info.name == *name)?;
            Some(known.swap_remove(at))
        };
        self.models.iter().map(|name| take(name).unwrap_or_else(|| unknown(name))).collect()
    }
}

/// The contract's word for how an engine is, and why.
pub(crate) fn health_words(health: Health) -> (&'static str, String) {
    match health {
        Health::Healthy => ("healthy", String::new()),
        Health::Degraded { reason } => ("degraded", reason),
        Health::HalfOpen { reason } => ("half_open", reason),
    }
}

/// Waits until the request cannot be a replay of recorded early data.
async fn confirmed(early_data: Option<&EarlyData>) -> Result<(), Status> {
    match early_data {
        Some(early_data) if !early_data.confirmed().await => {
            Err(Status::unavailable("the connection was lost before its handshake was complete; nothing ran"))
        }
        _ => Ok(()),
    }
}

/// A number as the messages carry it.
pub(crate) fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
