//! The OpenAI API at the coordinator: it chooses an agent and sends the client there. No token of an answer passes it.
//!
//! The answer is 307 (RFC 9110 §15.4.8), at which a client sends the same request, body included, to the address in `location`. That address has a token in it,
//! since clients leave their key behind when they are sent to another host: it is for this request, once, and for 30 s, and is in no log of ours.

use std::{sync::Arc, time::Instant};

use axum::{
    Json, Router,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use http::{Extensions, HeaderMap, HeaderValue, Method, StatusCode, Uri, header, request::Parts};
use serde_json::json;
use titan_openai::{ApiError, check_content_type, peek};
use titan_proto::{
    digest::{MAX_PREFIX_DIGESTS, prefixes},
    rest::GrpcTls,
    v1::Prefill,
};

use crate::{
    access::{AccessError, Caller},
    caller::Asker,
    client_ids::ClientIds,
    rest::{body, queue_headers},
    routing::{Address, Dispatcher, Route, RouteError, RouteRequest, starting},
};

struct FrontDoor {
    dispatcher: Arc<Dispatcher>,
    client_ids: ClientIds,
}

type Shared = State<Arc<FrontDoor>>;

impl FrontDoor {
    /// Who asks.
    fn caller(&self, headers: &HeaderMap, extensions: &Extensions) -> Result<Caller, ApiError> {
        self.dispatcher.access.caller(headers, extensions).map_err(|error| refusal(error.into()))
    }
}

/// `/v1/…`, as the agents have it.
pub(crate) fn router(dispatcher: Arc<Dispatcher>, client_ids: ClientIds) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(generate))
        .route("/v1/completions", post(generate))
        .route("/v1/responses", post(generate))
        .route("/v1/responses/{id}", get(kept).delete(kept))
        .route("/v1/responses/{id}/cancel", post(kept))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route(
            "/v1/openapi.json",
            get(async || ([(header::CONTENT_TYPE, "application/json")], titan_openai::document())),
        )
        .route("/v1/{*path}", any(not_found))
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(Arc::new(FrontDoor { dispatcher, client_ids }))
}

/// A request for text goes to the best agent.
async fn generate(State(door): Shared, request: Request) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    check_content_type(&parts.headers)?;
    let asker = Asker::of(&door.dispatcher.access, &parts.headers, &parts.extensions).map_err(refusal)?;
    let body = body::read(&parts.headers, body).await.map_err(|error| error.in_openai())?;
    let path = parts.uri.path();
    let asked = peek(path, &body)?;
    let client_id = door.client_ids.of(&parts.headers);
    let digests = prefixes(&client_id, &asked.model, &asked.tools, &asked.messages);
    let newest = digests.len().saturating_sub(MAX_PREFIX_DIGESTS);
    let route = door.dispatcher.route(RouteRequest {
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
        address: Some(Address { method: &parts.method, path }),
        asker: &asker,
    });
    let route = route.await.map_err(refusal)?;
    door.dispatcher.tell_ahead(&route, || Prefill {
        job_id: route.job_id.clone(),
        model: asked.model.clone(),
        client_id,
        request: Some(asked),
        ..Prefill::default()
    });
    redirect(&route, &parts.uri)
}

/// A background response is with the agent that its id names.
async fn kept(State(door): Shared, Path(id): Path<String>, request: Request) -> Result<Response, ApiError> {
    let (Parts { method, headers, uri, extensions, .. }, _) = request.into_parts();
    door.caller(&headers, &extensions)?;
    let found = titan_openai::origin_of(&id)
        .and_then(|origin| door.dispatcher.registry.lock().by_origin(origin, Instant::now()));
    let agent = match found {
        Some((agent, true)) => agent,
        Some((_, false)) => {
            let message =
                "the agent that has this response is not there: it comes back with it, or the response is lost";
            return Err(tonic::Status::unavailable(message).into());
        }
        None if door.dispatcher.registry.lock().starting(Instant::now()) => return Err(refusal(starting())),
        None => {
            let message = "there is no such response: only those with background are kept, at the agent that made them, for 10 minutes";
            return Err(ApiError::with_status(StatusCode::NOT_FOUND, message));
        }
    };
    let address = Address { method: &method, path: uri.path() };
    let route = door.dispatcher.visit(agent, &door.client_ids.of(&headers), address).map_err(refusal)?;
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
    Ok((StatusCode::TEMPORARY_REDIRECT, headers, queue_headers(route.queued), body).into_response())
}

/// Those that the caller may use.
fn usable(door: &FrontDoor, request: &Request) -> Result<Vec<Arc<str>>, ApiError> {
    let caller = door.caller(request.headers(), request.extensions())?;
    let models = door.dispatcher.registry.lock().models(Instant::now());
    Ok(models.into_iter().map(|(name, _)| name).filter(|name| caller.may_use(name)).collect())
}

async fn models(State(door): Shared, request: Request) -> Result<Response, ApiError> {
    let data: Vec<_> = usable(&door, &request)?.iter().map(|name| model_json(name)).collect();
    Ok(Json(json!({"object": "list", "data": data})).into_response())
}

async fn model(State(door): Shared, Path(id): Path<String>, request: Request) -> Result<Response, ApiError> {
    let available = usable(&door, &request)?;
    if available.iter().any(|name| **name == *id) {
        return Ok(Json(model_json(&id)).into_response());
    }
    if door.dispatcher.registry.lock().starting(Instant::now()) {
        return Err(refusal(starting()));
    }
    Err(refusal(RouteError::ModelNotFound { model: id, available }))
}

fn model_json(name: &str) -> serde_json::Value {
    json!({"id": name, "object": "model", "created": 0, "owned_by": "titancompute"})
}

fn refusal(error: RouteError) -> ApiError {
    let message = error.to_string();
    let retry_after = error.retry_after();
    let mut status = match &error {
        RouteError::MissingClientId
        | RouteError::MissingModel
        | RouteError::MissingPrompt
        | RouteError::PromptTooLarge { .. }
        | RouteError::InvalidParameter { .. } => tonic::Status::invalid_argument(message),
        RouteError::ModelNotFound { .. } => tonic::Status::not_found(message),
        RouteError::NoAgents { .. } | RouteError::NoEqualModel { .. } => tonic::Status::unavailable(message),
        RouteError::Starting { .. } => tonic::Status::unavailable(message),
        RouteError::NoCapacity { .. } | RouteError::Access(AccessError::Limited { .. }) => {
            tonic::Status::resource_exhausted(message)
        }
        RouteError::Access(AccessError::ModelNotAllowed { .. }) => tonic::Status::permission_denied(message),
        RouteError::Access(_) => tonic::Status::unauthenticated(message),
        RouteError::Internal => tonic::Status::internal(message),
    };
    if let Some(wait) = retry_after {
        status.metadata_mut().insert("retry-after", wait.as_secs().into());
    }
    status.into()
}

async fn not_found(uri: Uri) -> ApiError {
    let message =
        format!("there is no {}: see /v1/chat/completions, /v1/completions, /v1/responses, /v1/models", uri.path());
    ApiError::with_status(StatusCode::NOT_FOUND, message)
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::with_status(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not for {}", uri.path()))
}
