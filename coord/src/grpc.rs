//! The coordinator's gRPC service.

mod health_stream;
mod peer;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use titan_proto::{
    ALPN, COORDINATOR_NAME, DEFAULT_MAX_TOKENS, FILE_DESCRIPTOR_SET, MAX_REST_BODY_BYTES, REASON, REPLACED,
    v1::{
        AgentRegistration, AgentStatus, DeregistrationRequest, DeregistrationResponse, Endpoints, GrpcEndpoint,
        HealthUpdate, InferenceRequest, InferenceResponse, OutcomeRequest, OutcomeResponse, Prefill, PublicKeyRequest,
        PublicKeyResponse, QuicEndpoint, RegistrationResponse, StatusRequest, SystemStatus,
        coordinator_service_server::{CoordinatorService, CoordinatorServiceServer},
    },
};
use titan_transport::{seldom, token::unix_seconds};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Extensions, Request, Response, Status, Streaming,
    metadata::{MetadataMap, MetadataValue},
    server::NamedService,
    service::Routes,
};
use tonic_health::{ServingStatus, server::HealthReporter};

use self::health_stream::{AckStream, HealthStream};
use crate::{
    access::{AccessError, Caller},
    agent_input,
    caller::Asker,
    outcomes::{self, OutcomeError, Report},
    registry::{AgentView, RegisterError, StreamId},
    rest::queue_headers,
    routing::{Dispatcher, EXCLUDE_AGENTS, PROMPT_DIGEST, Route, RouteError, RouteRequest},
};

/// A registration or update is below 100 KiB, a prompt is as large as in REST; nothing else comes in.
const MAX_REQUEST_BYTES: usize = MAX_REST_BODY_BYTES;

/// `titancompute.v1.CoordinatorService`.
pub(crate) const SERVICE_NAME: &str = <CoordinatorServiceServer<Service> as NamedService>::NAME;

/// The coordinator's service with gRPC health and reflection, and what sets its health.
/// `shutdown` ends the health streams, which would otherwise never finish.
pub(crate) async fn routes(
    dispatcher: Arc<Dispatcher>,
    shutdown: CancellationToken,
) -> Result<(Routes, HealthReporter), tonic_reflection::server::Error> {
    let service = Service { dispatcher, shutdown, streams: AtomicU64::new(0) };
    let service = CoordinatorServiceServer::new(service).max_decoding_message_size(MAX_REQUEST_BYTES);
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status(SERVICE_NAME, ServingStatus::Serving).await;
    // Tools (grpcurl, Postman) ask by v1 or, the older ones, by v1alpha.
    let routes = Routes::new(service)
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .prepare();
    Ok((routes, reporter))
}

/// Names the services that are here: the descriptors hold the agent's too.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name(SERVICE_NAME)
        .with_service_name("grpc.health.v1.Health")
}

pub(crate) struct Service {
    dispatcher: Arc<Dispatcher>,
    shutdown: CancellationToken,
    /// Numbers the health streams.
    streams: AtomicU64,
}

#[tonic::async_trait]
impl CoordinatorService for Service {
    type ReportHealthStream = AckStream;

    async fn request_inference(
        &self,
        request: Request<InferenceRequest>,
    ) -> Result<Response<InferenceResponse>, Status> {
        let asker = Asker::of(&self.dispatcher.access, request.metadata().as_ref(), request.extensions())?;
        let request = request.into_inner();
        let max_tokens = if request.max_tokens == 0 { DEFAULT_MAX_TOKENS } else { request.max_tokens };
        let route = self.dispatcher.route(RouteRequest {
            client_id: &request.client_id,
            model: &request.model,
            prompt: &request.prompt,
            prompt_digest: request.parameters.get(PROMPT_DIGEST).map(String::as_str),
            exclude_agents: request.parameters.get(EXCLUDE_AGENTS).map(String::as_str),
            messages: &request.messages,
            tools: &request.tools,
            prefix_digests: &request.prefix_digests,
            model_digest: &request.model_digest,
            max_tokens,
            temperature: request.temperature,
            address: None,
            asker: &asker,
        });
        let route = route.await?;
        self.dispatcher.tell_ahead(&route, || Prefill {
            job_id: route.job_id.clone(),
            model: request.model,
            prompt: request.prompt,
            max_tokens,
            temperature: request.temperature,
            options: request.parameters,
            messages: request.messages,
            tools: request.tools,
            client_id: request.client_id,
            request: None,
        });
        let metadata = MetadataMap::from_headers(queue_headers(route.queued));
        Ok(Response::from_parts(metadata, answer(route), Extensions::new()))
    }

    async fn register_agent(
        &self,
        request: Request<AgentRegistration>,
    ) -> Result<Response<RegistrationResponse>, Status> {
        let name = peer::agent_name(&request)?;
        let heartbeat_interval_seconds = self.dispatcher.heartbeat_interval_seconds();
        self.dispatcher.register(&name, request.into_inner(), None)?;
        Ok(Response::new(RegistrationResponse {
            status: "registered".to_owned(),
            message: format!("report health every {heartbeat_interval_seconds} s"),
            heartbeat_interval_seconds,
        }))
    }

    async fn report_health(&self, request: Request<Streaming<HealthUpdate>>) -> Result<Response<AckStream>, Status> {
        let name = peer::agent_name(&request)?;
        let id = StreamId(self.streams.fetch_add(1, Ordering::Relaxed));
        let stream = HealthStream::new(id, name, request.into_inner(), Arc::clone(&self.dispatcher));
        Ok(Response::new(stream.into_acks(self.shutdown.clone())))
    }

    async fn deregister_agent(
        &self,
        request: Request<DeregistrationRequest>,
    ) -> Result<Response<DeregistrationResponse>, Status> {
        let name = peer::agent_name(&request)?;
        let DeregistrationRequest { agent_id, reason, instance } = request.into_inner();
        peer::speaks_for(&name, &agent_id)?;
        let (replaced, known) = {
            let mut registry = self.dispatcher.registry.lock();
            let replaced = registry.other_process(&agent_id, &instance);
            (replaced, !replaced && registry.deregister(&agent_id, Instant::now()))
        };
        let (status, message) = if replaced {
            ("replaced", format!("a newer process has registered as agent `{agent_id}`: its lease goes on"))
        } else if known {
            const SHOWN_CHARS: usize = 200;
            let reason: String = reason.chars().take(SHOWN_CHARS).collect();
            seldom!(info, agent = %agent_id, ?reason, "deregistered");
            ("deregistered", "no more requests come here".to_owned())
        } else {
            ("unregistered", format!("no agent `{agent_id}` was registered"))
        };
        Ok(Response::new(DeregistrationResponse { status: status.to_owned(), message }))
    }

    async fn query_system_status(&self, request: Request<StatusRequest>) -> Result<Response<SystemStatus>, Status> {
        self.caller(&request)?;
        let (now, wall_clock) = (Instant::now(), SystemTime::now());
        let (totals, mut views) = {
            let registry = self.dispatcher.registry.lock();
            let views = if request.get_ref().include_agents { registry.agents(now) } else { Vec::new() };
            (registry.totals(now), views)
        };
        views.sort_unstable_by(|a, b| a.profile.id.cmp(&b.profile.id));
        Ok(Response::new(SystemStatus {
            total_agents: totals.agents.try_into().unwrap_or(i32::MAX),
            healthy_agents: totals.healthy.try_into().unwrap_or(i32::MAX),
            total_jobs: totals.running_jobs.try_into().unwrap_or(i32::MAX),
            uptime: uptime(self.dispatcher.started.elapsed().as_secs()),
            agents: views.iter().map(|view| agent_status(view, now, wall_clock)).collect(),
        }))
    }

    async fn report_outcome(&self, request: Request<OutcomeRequest>) -> Result<Response<OutcomeResponse>, Status> {
        let (metadata, extensions) = (request.metadata().as_ref(), request.extensions());
        let asker = Asker::without_key(&self.dispatcher.access, metadata, extensions);
        let OutcomeRequest { job_id, outcome, agent_id, wire, message, session_token } = request.into_inner();
        let outcome = outcomes::parse(&outcome)?;
        let report = Report {
            job_id: &job_id,
            agent_id: &agent_id,
            session_token: &session_token,
            outcome,
            wire: &wire,
            message: &message,
        };
        self.dispatcher.report_outcome(&report, &asker)?;
        Ok(Response::new(OutcomeResponse {}))
    }

    async fn get_public_key(&self, _: Request<PublicKeyRequest>) -> Result<Response<PublicKeyResponse>, Status> {
        let issuer = &self.dispatcher.issuer;
        let jwks = serde_json::to_string(&issuer.jwks()).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(PublicKeyResponse {
            public_key_pem: issuer.public_key_pem().to_owned(),
            algorithm: issuer.algorithm().to_string(),
            issuer: COORDINATOR_NAME.to_owned(),
            jwks,
        }))
    }
}

impl Service {
    /// Who asks.
    fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let caller = self.dispatcher.access.caller(request.metadata().as_ref(), request.extensions());
        Ok(caller.map_err(RouteError::from)?)
    }
}

impl Dispatcher {
    /// Registers the agent for which `name`, from its certificate, may speak.
    fn register(&self, name: &str, registration: AgentRegistration, stream: Option<StreamId>) -> Result<(), Status> {
        peer::speaks_for(name, &registration.agent_id)?;
        let profile = agent_input::profile(registration).map_err(|error| {
            seldom!(warn, agent = name, %error, "registration refused");
            Status::invalid_argument(error.to_string())
        })?;
        let (endpoint, models) = (profile.endpoint.clone(), profile.models.clone());
        self.registry.lock().register(profile, stream, Instant::now()).map_err(|error| match error {
            RegisterError::Full { .. } => Status::resource_exhausted(error.to_string()),
            RegisterError::Replaced { .. } => Status::aborted(error.to_string()),
            RegisterError::OtherProcess { .. } => replaced(error.to_string()),
        })?;
        seldom!(info, agent = name, endpoint, ?models, "registered");
        self.room_at(name);
        Ok(())
    }

    fn heartbeat_interval_seconds(&self) -> i32 {
        self.heartbeat_interval.as_secs().try_into().unwrap_or(i32::MAX)
    }
}

/// Tells a process that another one has its name, in a word for programs too: it is not to come again.
fn replaced(message: String) -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert(REASON, MetadataValue::from_static(REPLACED));
    Status::with_metadata(Code::Aborted, message, metadata)
}

impl From<RouteError> for Status {
    fn from(error: RouteError) -> Self {
        let code = match &error {
            RouteError::MissingClientId
            | RouteError::MissingModel
            | RouteError::MissingPrompt
            | RouteError::PromptTooLarge { .. }
            | RouteError::InvalidParameter { .. } => Code::InvalidArgument,
            RouteError::ModelNotFound { .. } => Code::NotFound,
            RouteError::NoAgents { .. } | RouteError::NoEqualModel { .. } | RouteError::Starting { .. } => {
                Code::Unavailable
            }
            RouteError::NoCapacity { .. } | RouteError::Access(AccessError::Limited { .. }) => Code::ResourceExhausted,
            RouteError::Access(AccessError::ModelNotAllowed { .. }) => Code::PermissionDenied,
            RouteError::Access(_) => Code::Unauthenticated,
            RouteError::Internal => Code::Internal,
        };
        let mut metadata = MetadataMap::from_headers(queue_headers(error.queued()));
        if let Some(wait) = error.retry_after() {
            metadata.insert("retry-after", wait.as_secs().into());
            // What gRPC libraries with a retry policy go by (gRFC A6).
            metadata.insert("grpc-retry-pushback-ms", millis(wait).into());
        }
        Self::with_metadata(code, format!("{}: {error}", error.code_word()), metadata)
    }
}

impl From<OutcomeError> for Status {
    fn from(error: OutcomeError) -> Self {
        let code = match &error {
            OutcomeError::Token(refused) if refused.is_permission() => Code::PermissionDenied,
            OutcomeError::Token(_) => Code::Unauthenticated,
            OutcomeError::OtherJob { .. } => Code::PermissionDenied,
            OutcomeError::Reported { .. } => Code::AlreadyExists,
            OutcomeError::Invalid { .. } => Code::InvalidArgument,
        };
        Self::new(code, format!("{}: {error}", error.code_word()))
    }
}

fn answer(route: Route) -> InferenceResponse {
    let Route { agent, session_token, expires_at, job_id, model_digest, estimated_rtt_ms, generations, .. } = route;
    let quic = agent.quic.as_ref();
    InferenceResponse {
        agent_endpoint: agent.endpoint.clone(),
        session_token,
        expires_at,
        job_id,
        estimated_rtt_ms,
        agent_id: agent.id.to_string(),
        quic_endpoint: quic.map(|quic| quic.address.clone()).unwrap_or_default(),
        endpoints: Some(Endpoints {
            grpc: Some(GrpcEndpoint { address: agent.endpoint.clone(), tls: agent.grpc_tls.as_str().to_owned() }),
            quic: quic.map(|quic| QuicEndpoint {
                address: quic.address.clone(),
                alpn: ALPN.to_owned(),
                server_name: quic.server_name.clone(),
            }),
        }),
        model_digest,
        generations: generations.unwrap_or(0),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn agent_status(view: &AgentView, now: Instant, wall_clock: SystemTime) -> AgentStatus {
    AgentStatus {
        agent_id: view.profile.id.to_string(),
        status: view.status.as_str().to_owned(),
        free_vram_mb: view.load.free_vram_mb,
        running_jobs: view.load.running_jobs.try_into().unwrap_or(i32::MAX),
        last_heartbeat: unix_seconds(view.last_heartbeat_at(now, wall_clock)),
        model_info: view.profile.model_info.clone(),
        reason: view.trouble.as_ref().map(|trouble| trouble.reason.clone()).unwrap_or_default(),
        reason_since: view.trouble.as_ref().map_or(0, |trouble| unix_seconds(trouble.since(now, wall_clock))),
    }
}

/// As Go prints durations, which is what existing clients show: `26h3m5s`.
fn uptime(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::uptime;

    #[test]
    fn uptime_reads_as_before() {
        assert_eq!(["0s", "59s", "1m0s", "1h0m1s", "26h3m5s"], [0, 59, 60, 3601, 93_785].map(uptime).as_slice());
    }
}
