//! The paths.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Path, Query, Request, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{HeaderValue, Method, StatusCode, Uri, header};
use serde::Deserialize;

use crate::{
    backend::{Backend, Caller},
    body, chat, completions,
    document::document,
    error::ApiError,
    fields::Fields,
    models,
    responses::{self, Store},
};

/// The header that names the fields of a request that nobody knew.
pub const IGNORED_HEADER: &str = "x-titan-ignored";
/// Names that it has room for, and characters of each.
const MAX_IGNORED: usize = 16;
const MAX_IGNORED_CHARS: usize = 64;

/// What a router is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A word in the ids of background responses, by which whoever stands in front finds this place again: `a-z` and `0-9` only. Defaults to `0`.
    pub origin: String,
    /// The largest body in bytes. Defaults to what the largest prompt needs.
    pub max_body_bytes: usize,
    /// A comment is sent after so long without a word. Defaults to 10 s.
    pub comment_interval: Duration,
    /// How long a background response can be read after its end. Defaults to 10 minutes.
    pub keep_time: Duration,
    /// Background responses that are kept, those that run included. Defaults to 256.
    pub max_kept: usize,
    /// Bytes of events that one of them may have. Defaults to 8 MiB: 50,000 tokens.
    pub max_kept_bytes: usize,
    /// Bytes of events that all of them may have. Defaults to 128 MiB; what is made of them takes about as much again.
    pub max_kept_bytes_in_all: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            origin: "0".to_owned(),
            max_body_bytes: 2 * titan_proto::MAX_REST_BODY_BYTES,
            comment_interval: Duration::from_secs(10),
            keep_time: Duration::from_secs(10 * 60),
            max_kept: 256,
            max_kept_bytes: 8 << 20,
            max_kept_bytes_in_all: 128 << 20,
        }
    }
}

struct Api<B> {
    backend: Arc<B>,
    settings: Settings,
    store: Store,
}

type Shared<B> = State<Arc<Api<B>>>;

/// The OpenAI API over a backend. Everything is below `/v1/`.
pub fn router<B: Backend>(backend: Arc<B>, settings: Settings) -> Router {
    let store = Store::new(&settings);
    let api = Arc::new(Api { backend, settings, store });
    Router::new()
        .route("/v1/chat/completions", post(chat::<B>))
        .route("/v1/completions", post(completions::<B>))
        .route("/v1/responses", post(create_response::<B>))
        .route("/v1/responses/{id}", get(get_response::<B>).delete(delete_response::<B>))
        .route("/v1/responses/{id}/cancel", post(cancel_response::<B>))
        .route("/v1/models", get(list_models::<B>))
        // Names of models have slashes.
        .route("/v1/models/{*id}", get(one_model::<B>))
        .route("/v1/openapi.json", get(openapi))
        .route("/v1/{*path}", axum::routing::any(not_found))
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(api)
}

impl<B: Backend> Api<B> {
    async fn caller(&self, request: Request) -> Result<(Caller, http::request::Parts, Body), ApiError> {
        let (parts, body) = request.into_parts();
        let caller = self.backend.authenticate(&parts).await?;
        Ok((caller, parts, body))
    }

    async fn read(&self, request: Request) -> Result<(Caller, Fields), ApiError> {
        let (caller, parts, body) = self.caller(request).await?;
        let fields = body::read(&parts.headers, body, self.settings.max_body_bytes).await?;
        Ok((caller, fields))
    }
}

async fn chat<B: Backend>(State(api): Shared<B>, request: Request) -> Result<Response, ApiError> {
    let (caller, fields) = api.read(request).await?;
    chat::create(&api.backend, &api.settings, &caller, fields).await
}

async fn completions<B: Backend>(State(api): Shared<B>, request: Request) -> Result<Response, ApiError> {
    let (caller, fields) = api.read(request).await?;
    let created = completions::create(&api.backend, &api.settings, &caller, fields).await;
    created.map_err(|error| error.renamed("messages", "prompt"))
}

async fn create_response<B: Backend>(State(api): Shared<B>, request: Request) -> Result<Response, ApiError> {
    let (caller, fields) = api.read(request).await?;
    let created = responses::create(&api.backend, &api.settings, &api.store, &caller, fields).await;
    created.map_err(|error| error.renamed("messages", "input"))
}

/// By its name, since whoever mounts this router under a prefix may have parameters of their own.
#[derive(Deserialize)]
struct OfId {
    id: String,
}

#[derive(Deserialize)]
struct FromQuery {
    #[serde(default)]
    stream: bool,
    starting_after: Option<u64>,
}

async fn get_response<B: Backend>(
    State(api): Shared<B>,
    Path(OfId { id }): Path<OfId>,
    request: Request,
) -> Result<Response, ApiError> {
    let (caller, parts, _) = api.caller(request).await?;
    let query = Query::<FromQuery>::try_from_uri(&parts.uri);
    let Query(query) = query.map_err(|error| ApiError::invalid("starting_after", error.body_text()))?;
    let kept = api.store.find(&id, &caller.owner)?;
    match query.stream {
        true => Ok(kept.stream(query.starting_after, api.settings.comment_interval)),
        false => Ok(kept.json()),
    }
}

async fn cancel_response<B: Backend>(
    State(api): Shared<B>,
    Path(OfId { id }): Path<OfId>,
    request: Request,
) -> Result<Response, ApiError> {
    let (caller, ..) = api.caller(request).await?;
    let kept = api.store.find(&id, &caller.owner)?;
    kept.cancel().await;
    Ok(kept.json())
}

async fn delete_response<B: Backend>(
    State(api): Shared<B>,
    Path(OfId { id }): Path<OfId>,
    request: Request,
) -> Result<Response, ApiError> {
    let (caller, ..) = api.caller(request).await?;
    api.store.find(&id, &caller.owner)?.cancel().await;
    api.store.remove(&id);
    Ok(axum::Json(serde_json::json!({"id": id, "object": "response", "deleted": true})).into_response())
}

async fn list_models<B: Backend>(State(api): Shared<B>, request: Request) -> Result<Response, ApiError> {
    let (caller, ..) = api.caller(request).await?;
    Ok(models::list(&api.backend.models(&caller).await?))
}

async fn one_model<B: Backend>(
    State(api): Shared<B>,
    Path(OfId { id }): Path<OfId>,
    request: Request,
) -> Result<Response, ApiError> {
    let (caller, ..) = api.caller(request).await?;
    models::one(&api.backend.models(&caller).await?, &id)
}

/// For everybody: it says what is in the source.
async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], document()).into_response()
}

async fn not_found(uri: Uri) -> ApiError {
    let message =
        format!("there is no {}: see /v1/chat/completions, /v1/completions, /v1/responses, /v1/models", uri.path());
    ApiError::new(StatusCode::NOT_FOUND, None, message)
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, None, format!("{method} is not for {}", uri.path()))
}

/// Names the fields that were ignored, as far as they can stand in a header.
pub(crate) fn with_ignored(mut response: Response, ignored: &[String]) -> Response {
    let is_plain = |name: &&String| {
        name.len() <= MAX_IGNORED_CHARS && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',')
    };
    let names: Vec<&str> = ignored.iter().filter(is_plain).take(MAX_IGNORED).map(String::as_str).collect();
    if let Ok(value) = HeaderValue::from_str(&names.join(", "))
        && !names.is_empty()
    {
        response.headers_mut().insert(IGNORED_HEADER, value);
    }
    response
}
