//! The OpenAI API at the coordinator: it chooses an agent and sends the client there. No token of an answer passes it.
//!
//! The answer is 307 (RFC 9110 §15.4.8), at which a client sends the same request, body included, to the address in `location`. That address has a token in it,
//! since clients leave their key behind when they are sent to another host: it is for this path, for one request, and for 30 s, and is in no log of ours.

use std::{sync::Arc, time::Instant};

use axum::{
    Json, Router,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use titan_openai::{ApiError, peek};
use titan_proto::{
    digest::{self, MAX_PREFIX_DIGESTS, prefixes},
    rest::GrpcTls,
    v1::Prefill,
};

use crate::{
    rest::body,
    routing::{Address, Dispatcher, Route, RouteError, RouteRequest},
};

type Shared = State<Arc<Dispatcher>>;

/// `/v1/…`, as the agents have it.
pub(crate) fn router(dispatcher: Arc<Dispatcher>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(generate))
        .route("/v1/completions", post(generate))
        .route("/v1/responses", post(generate))
        .route("/v1/responses/{id}", get(kept).delete(kept))
        .route("/v1/responses/{id}/cancel", post(kept))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/v1/{*path}", any(not_found))
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(dispatcher)
}

/// A request for text goes to the best agent.
async fn generate(State(dispatcher): Shared, request: Request) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let body = body::read(&parts.headers, body).await.map_err(|error| error.in_openai())?;
    let path = parts.uri.path();
    let asked = peek(path, &body)?;
    let client_id = client_id(&parts.headers);
    let digests = prefixes(&client_id, &asked.model, &asked.tools, &asked.messages);
    let newest = digests.len().saturating_sub(MAX_PREFIX_DIGESTS);
    let route = dispatcher.route(&RouteRequest {
        client_id: &client_id,
        model: &asked.model,
        prompt: "",
        prompt_digest: None,
        exclude_agents: None,
        messages: &asked.messages,
        tools: &asked.tools,
        prefix_digests: &digests[newest..],
        model_digest: "",
        max_tokens: asked.max_tokens,
        temperature: asked.temperature,
        address: Some(Address { path }),
    });
    let route = route.map_err(refusal)?;
    dispatcher.tell_ahead(&route, || Prefill {
        job_id: route.job_id.clone(),
        model: asked.model.clone(),
        client_id,
        request: Some(asked),
        ..Prefill::default()
    });
    redirect(&route, &parts.uri)
}

/// A background response is with the agent that its id names.
async fn kept(
    State(dispatcher): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, ApiError> {
    let found = titan_openai::origin_of(&id).and_then(|origin| {
        let registry = dispatcher.registry.lock();
        let agents = registry.agents(Instant::now());
        agents.into_iter().find(|view| digest::origin(&view.profile.id) == origin)
    });
    let gone = || {
        let message = "there is no such response: only those with background are kept, at the agent that made them, for 10 minutes";
        ApiError::from(tonic::Status::not_found(message))
    };
    let agent = found.ok_or_else(gone)?.profile;
    let route = dispatcher.visit(agent, &client_id(&headers), Address { path: uri.path() }).map_err(refusal)?;
    redirect(&route, &uri)
}

fn redirect(route: &Route, uri: &Uri) -> Result<Response, ApiError> {
    let scheme = match route.agent.grpc_tls {
        GrpcTls::None => "http",
        GrpcTls::Server | GrpcTls::Mutual => "https",
    };
    let rest = uri.path_and_query().map_or(uri.path(), |rest| rest.as_str());
    let location = format!("{scheme}://{}/s/{}{rest}", route.agent.endpoint, route.session_token);
    let mut location = HeaderValue::from_str(&location)
        .map_err(|_| ApiError::from(tonic::Status::internal("the agent's address is none")))?;
    location.set_sensitive(true);
    let message = "This is the coordinator. It sends each request to an agent: follow the redirect (HTTP 307) with the same method and body. \
        curl needs -L; most SDKs do it by themselves. The address is good for one request within 30 s.";
    let body =
        Json(json!({"error": {"message": message, "type": "redirect", "param": null, "code": "follow_redirect"}}));
    let headers = [(header::LOCATION, location), (header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    Ok((StatusCode::TEMPORARY_REDIRECT, headers, body).into_response())
}

/// Who asks: one for each API key, so that nobody finds what another has said in an engine's cache. Keys are not checked here, and not kept.
fn client_id(headers: &HeaderMap) -> String {
    let Some(key) = headers.get(header::AUTHORIZATION) else { return "openai".to_owned() };
    let digest: String = Sha256::digest(key.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("openai-{digest}")
}

async fn models(State(dispatcher): Shared) -> Response {
    let models = dispatcher.registry.lock().models(Instant::now());
    let data: Vec<_> = models.iter().map(|(name, _)| model_json(name)).collect();
    Json(json!({"object": "list", "data": data})).into_response()
}

async fn model(State(dispatcher): Shared, Path(id): Path<String>) -> Result<Response, ApiError> {
    let models = dispatcher.registry.lock().models(Instant::now());
    if models.iter().any(|(name, _)| **name == *id) {
        return Ok(Json(model_json(&id)).into_response());
    }
    let available = models.into_iter().map(|(name, _)| name).collect();
    Err(refusal(RouteError::ModelNotFound { model: id, available }))
}

fn model_json(name: &str) -> serde_json::Value {
    json!({"id": name, "object": "model", "created": 0, "owned_by": "titancompute"})
}

fn refusal(error: RouteError) -> ApiError {
    let message = error.to_string();
    let status = match &error {
        RouteError::MissingClientId
        | RouteError::MissingModel
        | RouteError::MissingPrompt
        | RouteError::PromptTooLarge { .. }
        | RouteError::InvalidParameter { .. } => tonic::Status::invalid_argument(message),
        RouteError::ModelNotFound { .. } => tonic::Status::not_found(message),
        RouteError::NoAgents { .. } | RouteError::NoEqualModel { .. } => tonic::Status::unavailable(message),
        RouteError::NoCapacity { retry_after, .. } => {
            let mut status = tonic::Status::resource_exhausted(message);
            status.metadata_mut().insert("retry-after", retry_after.as_secs().into());
            status
        }
        RouteError::Internal => tonic::Status::internal(message),
    };
    status.into()
}

async fn not_found(uri: Uri) -> ApiError {
    let message =
        format!("there is no {}: see /v1/chat/completions, /v1/completions, /v1/responses, /v1/models", uri.path());
    tonic::Status::not_found(message).into()
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::with_status(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not for {}", uri.path()))
}
