//! Every answer that is not 2xx, in the one shape of the contract.

use std::time::Duration;

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{
    HeaderValue, Method, StatusCode,
    header::{RETRY_AFTER, WWW_AUTHENTICATE},
};
use titan_proto::{MAX_REST_BODY_BYTES, rest};

use super::queue_headers;
use crate::{access::AccessError, routing::RouteError, waiting::Queued};

/// An error answer.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    code_word: &'static str,
    message: String,
    retry_after: Option<Duration>,
    limit: Option<&'static str>,
    queued: Option<Queued>,
}

impl ApiError {
    pub(super) fn invalid_json(message: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_json", message)
    }

    /// A value of the right type that says nothing that is known.
    pub(super) fn invalid_parameter(message: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_parameter", message)
    }

    pub(super) fn payload_too_large() -> Self {
        let message = format!("the body is larger than {MAX_REST_BODY_BYTES} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", message)
    }

    pub(super) fn body_timeout(limit: Duration) -> Self {
        let message = format!("the body did not arrive within {} s", limit.as_secs());
        Self::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message)
    }

    pub(super) fn body_broken() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_body", "the body ended early".to_owned())
    }

    pub(super) fn invalid_csr(message: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_csr", message)
    }

    pub(super) fn enrolment_off(message: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "enrolment_off", message.to_owned())
    }

    pub(super) fn internal(message: &str) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message.to_owned())
    }

    pub(super) fn not_found(path: &str) -> Self {
        const SHOWN_CHARS: usize = 200;
        let path: String = path.chars().take(SHOWN_CHARS).collect();
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is nothing at {path}"))
    }

    pub(super) fn method_not_allowed(method: &Method) -> Self {
        let message = format!("{method} is not what this path takes: see the header `allow`");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
    }

    /// The same for a client that speaks OpenAI's API.
    pub(crate) fn in_openai(self) -> titan_openai::ApiError {
        titan_openai::ApiError::with_status(self.status, self.message)
    }

    pub(super) fn new(status: StatusCode, code_word: &'static str, message: String) -> Self {
        Self { status, code_word, message, retry_after: None, limit: None, queued: None }
    }
}

impl From<RouteError> for ApiError {
    fn from(error: RouteError) -> Self {
        let status = match &error {
            RouteError::MissingClientId
            | RouteError::MissingModel
            | RouteError::MissingPrompt
            | RouteError::InvalidParameter { .. } => StatusCode::BAD_REQUEST,
            RouteError::PromptTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            RouteError::ModelNotFound { .. } => StatusCode::NOT_FOUND,
            RouteError::NoAgents { .. }
            | RouteError::NoEqualModel { .. }
            | RouteError::NoCapacity { .. }
            | RouteError::Starting { .. } => StatusCode::SERVICE_UNAVAILABLE,
            RouteError::Access(error) => match error {
                AccessError::MissingKey | AccessError::UnknownKey | AccessError::Revoked { .. } => {
                    StatusCode::UNAUTHORIZED
                }
                AccessError::ModelNotAllowed { .. } => StatusCode::FORBIDDEN,
                AccessError::Limited { .. } => StatusCode::TOO_MANY_REQUESTS,
            },
            RouteError::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let limit = match &error {
            RouteError::Access(error) => error.limit(),
            _ => None,
        };
        let (code_word, message) = (error.code_word(), error.to_string());
        Self { status, code_word, message, retry_after: error.retry_after(), limit, queued: error.queued() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = rest::Error {
            error: self.code_word.to_owned(),
            code: self.status.as_u16(),
            message: self.message,
            limit: self.limit.map(str::to_owned),
        };
        let mut response = (self.status, Json(body)).into_response();
        if let Some(wait) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, wait.as_secs().into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            // RFC 9110 §15.5.2 asks for it.
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.headers_mut().extend(queue_headers(self.queued));
        response
    }
}
