//! What is answered.

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::ToSchema;

use super::requests::ToolCall;

#[derive(ToSchema)]
pub(super) struct ChatCompletion {
    id: String,
    object: String,
    /// Unix seconds.
    created: u64,
    model: String,
    choices: Vec<Choice>,
    usage: Usage,
}

#[derive(ToSchema)]
pub(super) struct Choice {
    index: u32,
    message: Answer,
    #[schema(required)]
    logprobs: Option<Value>,
    /// `stop`, `length` or `tool_calls`.
    finish_reason: String,
}

#[derive(ToSchema)]
pub(super) struct Answer {
    role: String,
    #[schema(required)]
    content: Option<String>,
    reasoning_content: Option<String>,
    #[schema(required)]
    refusal: Option<String>,
    tool_calls: Option<Vec<ToolCall>>,
}

/// Tokens.
#[derive(ToSchema)]
pub(super) struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
}

#[derive(ToSchema)]
pub(super) struct Completion {
    id: String,
    object: String,
    created: u64,
    model: String,
    choices: Vec<CompletionChoice>,
    usage: Usage,
}

#[derive(ToSchema)]
pub(super) struct CompletionChoice {
    index: u32,
    text: String,
    #[schema(required)]
    logprobs: Option<Value>,
    finish_reason: String,
}

/// A response. What the request said about how it is made stands in it again.
#[derive(ToSchema)]
pub(super) struct Response {
    id: String,
    object: String,
    created_at: f64,
    model: String,
    /// `in_progress`, `completed`, `incomplete`, `failed` or `cancelled`.
    status: String,
    output: Vec<BTreeMap<String, Value>>,
    #[schema(required)]
    usage: Option<BTreeMap<String, Value>>,
    #[schema(required)]
    error: Option<BTreeMap<String, Value>>,
    #[schema(required)]
    incomplete_details: Option<BTreeMap<String, Value>>,
}

/// One event of a stream: `data` is a chunk as JSON, or `[DONE]`.
#[derive(ToSchema)]
pub(super) struct StreamEvent {
    data: String,
    event: Option<String>,
}

#[derive(ToSchema)]
pub(super) struct Deleted {
    id: String,
    object: String,
    deleted: bool,
}

#[derive(ToSchema)]
pub(super) struct ModelList {
    object: String,
    data: Vec<Model>,
}

#[derive(ToSchema)]
pub(super) struct Model {
    id: String,
    object: String,
    created: u64,
    owned_by: String,
    /// Tokens that prompt and text may have together, where that is known.
    max_model_len: Option<i64>,
}

/// What every path may answer instead.
#[derive(utoipa::IntoResponses)]
pub(super) enum Refusals {
    /// At a coordinator: the same request, sent to this address, is answered by an agent. Good once, and for 30 s.
    #[response(status = 307, headers(("location" = String)))]
    Elsewhere(Error),
    /// The request is wrong: `param` names the field.
    #[response(status = 400)]
    Wrong(Error),
    /// The key is missing, wrong, or has expired.
    #[response(status = 401)]
    Unknown(Error),
    /// The key is not for this.
    #[response(status = 403)]
    Forbidden(Error),
    /// There is no such model or response.
    #[response(status = 404)]
    NotFound(Error),
    /// The path has other methods.
    #[response(status = 405)]
    Method(Error),
    /// The body did not come in time.
    #[response(status = 408)]
    Slow(Error),
    /// The body is too large.
    #[response(status = 413)]
    TooLarge(Error),
    /// The body is not said to be JSON.
    #[response(status = 415)]
    NotJson(Error),
    /// All places are taken.
    #[response(status = 429, headers(("retry-after" = u32, description = "Seconds")))]
    Full(Error),
    /// A fault of the engine.
    #[response(status = 500)]
    Fault(Error),
    /// No agent can serve it now.
    #[response(status = 503, headers(("retry-after" = u32, description = "Seconds")))]
    Unavailable(Error),
    /// It took too long.
    #[response(status = 504)]
    TooLong(Error),
}

#[derive(ToSchema, utoipa::ToResponse)]
pub(super) struct Error {
    error: ErrorInner,
}

#[derive(ToSchema)]
pub(super) struct ErrorInner {
    message: String,
    r#type: String,
    /// The field that is wrong.
    #[schema(required)]
    param: Option<String>,
    #[schema(required)]
    code: Option<String>,
}
