//! The one handler, for both wires.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use parking_lot::Mutex;
use titan_proto::v1::{AgentStatusRequest, AgentStatusResponse, StreamRequest, agent_service_server::AgentService};
use titan_transport::{
    EarlyData, PeerInfo,
    token::{Claims, unix_seconds},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    admission::Admission,
    auth::{Authenticator, allowed_model, check_role},
    engine::{Engine, EngineError, Generate, TokenStream},
    options,
    prefill::Prefills,
    replay::{MAX_NONCE_BYTES, Note, ReplayCache, Verdict},
    response::{ResponseStream, engine_status},
    telemetry::Telemetry,
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
    pub(crate) prefills: Prefills,
    pub(crate) telemetry: Telemetry,
    pub(crate) replay: Arc<Mutex<ReplayCache>>,
    /// Ends what still runs when the drain is over.
    pub(crate) abort: CancellationToken,
}

impl Service {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

#[tonic::async_trait]
impl AgentService for Service {
    type StreamInferenceStream = ResponseStream;

    async fn stream_inference(&self, request: Request<StreamRequest>) -> Result<Response<ResponseStream>, Status> {
        let received_at = Instant::now();
        let (metadata, extensions, request) = request.into_parts();
        let peer = extensions.get::<PeerInfo>();
        check_role(peer)?;
        let claims = self.core.auth.authenticate(&request.session_token, &metadata).await?;
        let stream = self.core.start(received_at, peer, &claims, request).await?;
        Ok(Response::new(stream))
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
    async fn start(
        &self,
        received_at: Instant,
        peer: Option<&PeerInfo>,
        claims: &Claims,
        mut request: StreamRequest,
    ) -> Result<ResponseStream, Status> {
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
        let anew = request.continuation.is_none();
        let generate = options::generate(request, model)?;

        let early_data = peer.and_then(|peer| peer.early_data.as_ref());
        if nonce.is_empty() {
            confirmed(early_data).await?;
        }
        // The slot first: a request that finds none has not run and may come again with the same nonce.
        let slot = self.admission.admit(&claims.job_id)?;
        let begun = self.claim(&claims.job_id, &generate);
        let note = self.run_once(claims, nonce, early_data).await?;
        let begun = self.taken_over(begun.filter(|_| anew)).await;
        let prefilled = begun.is_some();
        let tokens = match begun {
            Some(tokens) => tokens,
            None => self.generate(generate).await?,
        };
        Ok(ResponseStream::new(tokens, slot, received_at, note, self.abort.clone()).prefilled(prefilled))
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
                tracing::warn!(%error, "a generation did not start");
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
        let status = if load.draining { "draining" } else { "healthy" };
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
        }
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
