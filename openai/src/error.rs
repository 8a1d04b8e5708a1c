//! Errors as the field has them: `{"error": {"message", "type", "param", "code"}}`, with the status by which SDKs choose their exception.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use titan_proto::{CONTEXT_LENGTH, REASON};
use tonic::{Code, Status};

/// When to come again where the backend does not say.
const RETRY_AFTER_S: u32 = 1;
/// Metadata of a status that says in how many seconds to come again.
const RETRY_AFTER: &str = "retry-after";
/// The same in milliseconds, as gRPC has it (gRFC A6).
const PUSHBACK_MS: &str = "grpc-retry-pushback-ms";
/// Where a field of ours has another name in the field's dialect.
const NAMES: [(&str, &str); 6] = [
    ("prompt", "messages"),
    ("sampling.", ""),
    ("options.", ""),
    ("response_format.json_schema", "response_format"),
    ("reasoning.effort", "reasoning_effort"),
    ("grammar", "response_format"),
];

/// Why a request has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
    retry_after_s: Option<u32>,
}

impl ApiError {
    /// The request is wrong, and will be wrong again.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(StatusCode::BAD_REQUEST, None, message) }
    }

    /// A field that cannot be honoured.
    pub(crate) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: Some("unsupported_parameter"), ..Self::invalid(param, message) }
    }

    /// The body is no JSON object.
    pub(crate) fn not_json(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Some("invalid_json"), message)
    }

    pub(crate) fn new(status: StatusCode, code: Option<&'static str>, message: impl Into<String>) -> Self {
        let kind = match status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        let retry_after_s =
            matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE).then_some(RETRY_AFTER_S);
        Self { status, kind, code, param: None, message: message.into(), retry_after_s }
    }

    /// An error of the server in front, with a status of its own.
    pub fn with_status(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, None, message)
    }

    /// The same, where a field of ours is another one in this request.
    pub(crate) fn renamed(mut self, from: &str, to: &str) -> Self {
        if self.param.as_deref().is_some_and(|param| param.starts_with(from)) {
            self.param = Some(to.to_owned());
        }
        self
    }

    /// The status that it is answered with.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What went wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The word for it that a failed background response has.
    pub(crate) fn word(&self) -> &'static str {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_exceeded",
            StatusCode::BAD_REQUEST => "invalid_prompt",
            _ => "server_error",
        }
    }

    /// The body.
    pub(crate) fn json(&self) -> String {
        #[derive(Serialize)]
        struct Body<'a> {
            error: Inner<'a>,
        }
        #[derive(Serialize)]
        struct Inner<'a> {
            message: &'a str,
            r#type: &'a str,
            param: Option<&'a str>,
            code: Option<&'a str>,
        }
        let Self { message, kind, param, code, .. } = self;
        let error = Inner { message, r#type: kind, param: param.as_deref(), code: *code };
        serde_json::to_string(&Body { error }).unwrap_or_default()
    }
}

impl From<Status> for ApiError {
    fn from(status: Status) -> Self {
        let message = status.message().to_owned();
        let (http, code) = match status.code() {
            Code::InvalidArgument | Code::OutOfRange => (StatusCode::BAD_REQUEST, None),
            Code::FailedPrecondition | Code::Unimplemented => (StatusCode::BAD_REQUEST, Some("unsupported_value")),
            Code::Unauthenticated => (StatusCode::UNAUTHORIZED, Some("invalid_api_key")),
            Code::PermissionDenied => (StatusCode::FORBIDDEN, None),
            Code::NotFound => (StatusCode::NOT_FOUND, Some("model_not_found")),
            Code::AlreadyExists => (StatusCode::CONFLICT, None),
            Code::ResourceExhausted => (StatusCode::TOO_MANY_REQUESTS, Some("rate_limit_exceeded")),
            Code::Unavailable | Code::Cancelled => (StatusCode::SERVICE_UNAVAILABLE, None),
            Code::DeadlineExceeded => (StatusCode::GATEWAY_TIMEOUT, None),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, None),
        };
        let mut error = Self::new(http, code, message);
        if http == StatusCode::BAD_REQUEST {
            error.param = field_of(&error.message);
        }
        if status.metadata().get(REASON).is_some_and(|reason| reason == CONTEXT_LENGTH) {
            (error.code, error.param) = (Some(CONTEXT_LENGTH), Some("messages".to_owned()));
        }
        if error.retry_after_s.is_some() {
            error.retry_after_s = retry_after_s(&status).or(error.retry_after_s);
        }
        error
    }
}

/// When the backend wants its caller back, in whole seconds.
fn retry_after_s(status: &Status) -> Option<u32> {
    let number = |name| status.metadata().get(name)?.to_str().ok()?.parse::<u32>().ok();
    number(RETRY_AFTER).or_else(|| Some(number(PUSHBACK_MS)?.div_ceil(1000).max(1)))
}

/// A refusal begins with the field that it is about (PROTOCOL.md §18.1), such as `messages[2].role`.
fn field_of(message: &str) -> Option<String> {
    let field = message.split_whitespace().next()?.trim_end_matches(':');
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '.' | '[' | ']');
    // A sentence may begin with a word like "the": a field is known, or has a mark of one.
    const FIELDS: [&str; 14] = [
        "messages",
        "tools",
        "prompt",
        "stop",
        "seed",
        "temperature",
        "logprobs",
        "model",
        "grammar",
        "top_p",
        "top_k",
        "min_p",
        "reasoning",
        "sampling",
    ];
    let known = field.contains(['_', '[']) || FIELDS.iter().any(|known| field.split('.').next() == Some(known));
    if !known || !field.chars().all(is_name) {
        return None;
    }
    let renamed = NAMES.iter().find_map(|(own, theirs)| {
        let rest = field.strip_prefix(own)?;
        (own.ends_with('.') || rest.is_empty() || rest.starts_with(['.', '['])).then(|| format!("{theirs}{rest}"))
    });
    Some(renamed.unwrap_or_else(|| field.to_owned()))
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.json()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn each_code_has_the_status_by_which_sdks_choose_their_exception() {
        for (code, http) in [
            (Code::InvalidArgument, 400),
            (Code::FailedPrecondition, 400),
            (Code::Unauthenticated, 401),
            (Code::PermissionDenied, 403),
            (Code::NotFound, 404),
            (Code::AlreadyExists, 409),
            (Code::ResourceExhausted, 429),
            (Code::Internal, 500),
            (Code::Unknown, 500),
            (Code::Unavailable, 503),
            (Code::DeadlineExceeded, 504),
        ] {
            let error = ApiError::from(Status::new(code, "what was wrong"));
            assert_eq!(error.status().as_u16(), http, "{code:?}");
            let response = error.into_response();
            assert_eq!(response.headers().contains_key(header::RETRY_AFTER), http == 429 || http == 503, "{code:?}");
        }
    }

    #[test]
    fn the_backend_may_say_when_to_come_again() {
        let mut status = Status::resource_exhausted("full");
        status.metadata_mut().insert(RETRY_AFTER, "7".parse().unwrap());
        assert_eq!(ApiError::from(status).into_response().headers()[header::RETRY_AFTER], "7");
        let mut status = Status::unavailable("draining");
        status.metadata_mut().insert(PUSHBACK_MS, "2100".parse().unwrap());
        assert_eq!(ApiError::from(status).into_response().headers()[header::RETRY_AFTER], "3");
    }

    #[test]
    fn the_field_that_a_refusal_is_about_is_its_param() {
        for (message, param) in [
            ("messages[2].role is \"x\"; accepted is …", Some("messages[2].role")),
            ("top_p is 2; accepted is above 0", Some("top_p")),
            ("sampling.top_p stands in both", Some("top_p")),
            ("stop has 17 texts", Some("stop")),
            ("response_format.json_schema is no JSON", Some("response_format")),
            ("prompt is empty, and there are no messages", Some("messages")),
            ("the model has no place for tools", None),
            ("this agent shut down", None),
        ] {
            assert_eq!(ApiError::from(Status::invalid_argument(message)).param.as_deref(), param, "{message}");
        }
    }
}
