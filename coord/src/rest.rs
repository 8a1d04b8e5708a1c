//! REST: `/api/v1/…`, field for field what existing clients expect.

pub(crate) mod body;
mod certificates;
mod document;
mod error;
mod outcome;

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use axum::{
    Json, Router,
    body::Body,
    extract::{FromRequestParts, Query, State, rejection::QueryRejection},
    routing::{get, post},
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{CONTENT_TYPE, RETRY_AFTER},
    request::Parts,
};
use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use titan_certs::CertIssuer;
use titan_proto::{
    ALPN, COORDINATOR_NAME, DEFAULT_MAX_TOKENS, DEFAULT_TEMPERATURE,
    rest::{self, Agent, Endpoints, GrpcEndpoint, Health, InferenceResponse, QuicEndpoint, Status},
    v1::{self, Prefill},
};
use titan_transport::{Traffic, token::JwkSet};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use self::error::ApiError;
use crate::{
    access::Caller,
    caller::Asker,
    registry::AgentView,
    routing::{Dispatcher, EXCLUDE_AGENTS, PROMPT_DIGEST, Route, RouteError, RouteRequest},
    waiting::{QUEUE_POSITION, QUEUE_WAIT, Queued},
};

/// How long a browser may keep the answer to a preflight: it never changes while a coordinator runs.
const CORS_MAX_AGE: std::time::Duration = std::time::Duration::from_secs(60 * 60);

/// What passes the coordinator's two ports.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ports {
    pub(crate) http: Arc<Traffic>,
    pub(crate) grpc: Arc<Traffic>,
}

impl Ports {
    fn traffic(&self) -> rest::Traffic {
        let [http, grpc] =
            [&self.http, &self.grpc].map(|port| rest::Bytes { received: port.received(), sent: port.sent() });
        rest::Traffic { http, grpc }
    }
}

/// The REST interface. `origins`: pages that may call it; empty for any. `issuer`: the CA, where clients may have their keys certified.
pub(crate) fn router(
    dispatcher: Arc<Dispatcher>,
    origins: Vec<HeaderValue>,
    ports: Ports,
    issuer: Option<Arc<CertIssuer>>,
) -> Router {
    let origins = if origins.is_empty() { AllowOrigin::any() } else { AllowOrigin::list(origins) };
    let cors = CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::OPTIONS])
        // Not `*`: that leaves out `authorization` (Fetch §4.10).
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([RETRY_AFTER, HeaderName::from_static(QUEUE_POSITION), HeaderName::from_static(QUEUE_WAIT)])
        .max_age(CORS_MAX_AGE);
    Router::new()
        .route("/api/v1/health", get(health))
        .route(
            "/api/v1/status",
            get(move |dispatcher, caller, query| status(dispatcher, caller, query, ports.traffic())),
        )
        .route("/api/v1/models", get(models))
        .route("/api/v1/inference/request", post(request_inference))
        .route(
            "/api/v1/certificates",
            post(move |state, caller, headers, body| certificates::issue(issuer, state, caller, headers, body)),
        )
        .route("/api/v1/jobs/{job_id}/outcome", post(outcome::report))
        .route("/.well-known/jwks.json", get(jwks))
        .route("/api/v1/openapi.json", get(async || ([(CONTENT_TYPE, "application/json")], document::document())))
        .fallback(async |uri: http::Uri| ApiError::not_found(uri.path()))
        .method_not_allowed_fallback(async |method: Method| ApiError::method_not_allowed(&method))
        .layer(cors)
        .with_state(dispatcher)
}

/// Whoever shows no good key is refused, where one is asked for.
impl FromRequestParts<Arc<Dispatcher>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, dispatcher: &Arc<Dispatcher>) -> Result<Self, ApiError> {
        Ok(dispatcher.access.caller(&parts.headers, &parts.extensions).map_err(RouteError::from)?)
    }
}

async fn request_inference(
    State(dispatcher): State<Arc<Dispatcher>>,
    asker: Asker,
    headers: HeaderMap,
    body: Body,
) -> Result<(HeaderMap, Json<InferenceResponse>), ApiError> {
    let request = body::parse(&body::read(&headers, body).await?)?;
    let prefix_digests = body::digests(&request.prefix_digests)?;
    let messages: Vec<v1::Message> = request.messages.into_iter().map(Into::into).collect();
    let tools: Vec<v1::Tool> = request.tools.into_iter().map(Into::into).collect();
    let max_tokens = request.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
    let temperature = request.temperature.unwrap_or(DEFAULT_TEMPERATURE);
    let route = dispatcher.route(RouteRequest {
        client_id: request.client_id.as_deref().unwrap_or_default(),
        model: request.model.as_deref().unwrap_or_default(),
        prompt: request.prompt.as_deref().unwrap_or_default(),
        prompt_digest: request.parameters.get(PROMPT_DIGEST).map(String::as_str),
        exclude_agents: request.parameters.get(EXCLUDE_AGENTS).map(String::as_str),
        messages: &messages,
        tools: &tools,
        prefix_digests: &prefix_digests,
        model_digest: request.model_digest.as_deref().unwrap_or_default(),
        max_tokens,
        temperature,
        address: None,
        asker: &asker,
    });
    let route = route.await?;
    dispatcher.tell_ahead(&route, || Prefill {
        job_id: route.job_id.clone(),
        model: request.model.unwrap_or_default(),
        prompt: request.prompt.unwrap_or_default(),
        max_tokens,
        temperature,
        options: request.parameters.into_iter().collect(),
        messages,
        tools,
        client_id: request.client_id.unwrap_or_default(),
        request: None,
    });
    Ok((queue_headers(route.queued), Json(answer(route))))
}

/// How a request waited for room, if it did.
pub(crate) fn queue_headers(queued: Option<Queued>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Some(Queued { position, wait }) = queued {
        headers.insert(QUEUE_POSITION, position.into());
        headers.insert(QUEUE_WAIT, u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).into());
    }
    headers
}

async fn health() -> Json<Health> {
    Json(Health {
        status: "healthy".to_owned(),
        timestamp: rfc3339(SystemTime::now()),
        service: COORDINATOR_NAME.to_owned(),
    })
}

#[derive(Deserialize)]
struct StatusQuery {
    #[serde(default)]
    include_agents: Option<String>,
}

async fn status(
    State(dispatcher): State<Arc<Dispatcher>>,
    caller: Result<Caller, ApiError>,
    query: Result<Query<StatusQuery>, QueryRejection>,
    traffic: rest::Traffic,
) -> Result<Json<Status>, ApiError> {
    // Go clients write 1, Python clients True; anything else, a broken query included, asks for no agents.
    let wanted = query.ok().and_then(|Query(query)| query.include_agents);
    let include_agents = wanted.is_some_and(|word| word == "1" || word.eq_ignore_ascii_case("true"));
    if include_agents {
        // Where the agents are is nobody's business who may not use them.
        caller?;
    }
    let (now, wall_clock) = (Instant::now(), SystemTime::now());
    let (totals, views) = {
        let registry = dispatcher.registry.lock();
        (registry.totals(now), include_agents.then(|| registry.agents(now)))
    };
    let agents = views.map(|mut views| {
        views.sort_unstable_by(|a, b| a.profile.id.cmp(&b.profile.id));
        views.iter().map(|view| agent(view, now, wall_clock)).collect()
    });
    let (total_agents, healthy_agents) = (totals.agents, totals.healthy);
    Ok(Json(Status { total_agents, healthy_agents, timestamp: rfc3339(wall_clock), agents, traffic }))
}

#[derive(Serialize, utoipa::ToSchema)]
struct Model {
    #[schema(value_type = String)]
    name: Arc<str>,
    /// Agents that serve it and take requests.
    agents: usize,
}

async fn models(State(dispatcher): State<Arc<Dispatcher>>, caller: Caller) -> Json<Vec<Model>> {
    let models = dispatcher.registry.lock().models(Instant::now());
    let usable = models.into_iter().filter(|(name, _)| caller.may_use(name));
    Json(usable.map(|(name, agents)| Model { name, agents }).collect())
}

async fn jwks(State(dispatcher): State<Arc<Dispatcher>>) -> Json<JwkSet> {
    Json(dispatcher.issuer.jwks())
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
        quic_endpoint: quic.map(|quic| quic.address.clone()),
        endpoints: Endpoints {
            grpc: Some(GrpcEndpoint { address: agent.endpoint.clone(), tls: agent.grpc_tls }),
            quic: quic.map(|quic| QuicEndpoint {
                address: quic.address.clone(),
                alpn: ALPN.to_owned(),
                server_name: quic.server_name.clone(),
            }),
        },
        model_digest: Some(model_digest).filter(|digest| !digest.is_empty()),
        generations,
    }
}

fn agent(view: &AgentView, now: Instant, wall_clock: SystemTime) -> Agent {
    let AgentView { profile, load, status, trouble, .. } = view;
    Agent {
        id: profile.id.to_string(),
        endpoint: profile.endpoint.clone(),
        status: status.as_str().to_owned(),
        total_vram_mb: profile.total_vram_mb,
        free_vram_mb: load.free_vram_mb,
        total_ram_mb: profile.total_ram_mb,
        free_ram_mb: load.free_ram_mb,
        running_jobs: small(load.running_jobs),
        queued_jobs: small(load.queued_jobs),
        max_jobs: small(profile.max_jobs),
        rtt_ms: load.rtt_ms.unwrap_or(0.0),
        last_heartbeat: rfc3339(view.last_heartbeat_at(now, wall_clock)),
        supported_models: profile.models.iter().map(ToString::to_string).collect(),
        computing: small(load.computing),
        health_reason: trouble.as_ref().map(|trouble| trouble.reason.clone()),
        health_since: trouble.as_ref().map(|trouble| rfc3339(trouble.since(now, wall_clock))),
        model_info: profile.model_info.iter().cloned().map(Into::into).collect(),
    }
}

fn small(jobs: u32) -> i32 {
    i32::try_from(jobs).unwrap_or(i32::MAX)
}

fn rfc3339(time: SystemTime) -> String {
    // Fails for years beyond 9999 only.
    OffsetDateTime::from(time).format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests;
