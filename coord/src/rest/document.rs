//! The OpenAPI document of `/api/v1`. What is answered describes itself; what is asked is described here as those who ask need it, since the reader takes each field
//! by itself to say which one is missing.

#![allow(dead_code, reason = "these types are read by utoipa's derive alone")]

use std::{collections::BTreeMap, sync::LazyLock};

use titan_proto::rest::{
    CertificateRequest, Error, Health, InferenceResponse, IssuedCertificate, OutcomeReport, Status,
};
use utoipa::{OpenApi, ToSchema};

use super::Model;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "TitanCompute: the coordinator",
        description = "Which agent serves a request, and what is there. No token of an answer passes it."
    ),
    paths(request_inference, report_outcome, health, status, models, certificates, jwks)
)]
struct Document;

/// The document, as JSON.
pub(super) fn document() -> &'static str {
    // Made of constants: a test has seen that it can be written.
    static DOCUMENT: LazyLock<String> = LazyLock::new(|| Document::openapi().to_pretty_json().unwrap_or_default());
    &DOCUMENT
}

#[utoipa::path(post, path = "/api/v1/inference/request", request_body = InferenceRequest, responses(
    (status = 200, description = "Where to go, and the token to show there", body = InferenceResponse),
    (status = 400, description = "A field is missing or wrong: `error` is a word for it", body = Error),
    (status = 401, description = "No API key, or none of this coordinator's, where one is asked for", body = Error),
    (status = 403, description = "The API key is not for this model", body = Error),
    (status = 404, description = "No agent serves the model", body = Error),
    (status = 405, description = "Another method", body = Error),
    (status = 408, description = "The body did not come in time", body = Error),
    (status = 413, description = "The body is too large", body = Error),
    (status = 429, description = "The API key has reached a limit: `limit` is its name", body = Error, headers(("retry-after" = u32, description = "Seconds"))),
    (status = 500, description = "The token could not be made", body = Error),
    (status = 503, description = "No agent can serve it now (`no_agents`, `no_capacity`), or agents have not come back since a restart (`starting`)", body = Error, headers(("retry-after" = u32, description = "Seconds"))),
))]
fn request_inference() {}

#[utoipa::path(post, path = "/api/v1/jobs/{job_id}/outcome", params(
    ("job_id" = String, Path, description = "As the answer to the request for a route named it"),
), request_body = OutcomeReport, responses(
    (status = 204, description = "Taken"),
    (status = 400, description = "A field is missing or wrong", body = Error),
    (status = 401, description = "The token is none of this coordinator's, or long over", body = Error),
    (status = 403, description = "The token is for another job or agent", body = Error),
    (status = 405, description = "Another method", body = Error),
    (status = 408, description = "The body did not come in time", body = Error),
    (status = 409, description = "The job has been reported already", body = Error),
    (status = 413, description = "The body is too large", body = Error),
))]
fn report_outcome() {}

#[utoipa::path(get, path = "/api/v1/health", responses((status = 200, description = "It is there", body = Health)))]
fn health() {}

#[utoipa::path(get, path = "/api/v1/status", params(
    ("include_agents" = Option<String>, Query, description = "`true`, `True` or `1`: the agents, each with its load and its models"),
), responses(
    (status = 200, description = "What is there", body = Status),
    (status = 401, description = "The agents are asked for without a good API key, where one is needed", body = Error),
))]
fn status() {}

#[utoipa::path(get, path = "/api/v1/models", responses(
    (status = 200, description = "What is served now", body = [Model]),
    (status = 401, description = "No API key, or none of this coordinator's, where one is asked for", body = Error),
))]
fn models() {}

#[utoipa::path(post, path = "/api/v1/certificates", request_body = CertificateRequest, responses(
    (status = 201, description = "A client certificate that is good for a day", body = IssuedCertificate),
    (status = 400, description = "No signing request", body = Error),
    (status = 401, description = "No API key, or none of this coordinator's", body = Error),
    (status = 403, description = "This coordinator issues none", body = Error),
    (status = 405, description = "Another method", body = Error),
    (status = 408, description = "The body did not come in time", body = Error),
    (status = 413, description = "The body is too large", body = Error),
))]
fn certificates() {}

#[utoipa::path(get, path = "/.well-known/jwks.json", responses(
    (status = 200, description = "The keys that session tokens are checked with (RFC 7517)", body = JwkSet),
))]
fn jwks() {}

/// A question for an agent. The prompt itself is of use with `--prefill-ahead` only: its digest will do.
#[derive(ToSchema)]
struct InferenceRequest {
    /// A name that its caller gives itself.
    #[schema(min_length = 1, pattern = "^[a-z]{1,16}$")]
    client_id: String,
    #[schema(min_length = 1)]
    model: String,
    #[schema(min_length = 1)]
    prompt: String,
    #[schema(minimum = 1)]
    max_tokens: Option<i32>,
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f32>,
    /// Sampling options, and `exclude_agents`, `prompt_digest`.
    parameters: Option<BTreeMap<String, String>>,
}

#[derive(ToSchema)]
struct JwkSet {
    keys: Vec<BTreeMap<String, String>>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn it_names_every_path() {
        let document: serde_json::Value = serde_json::from_str(document()).unwrap();
        let paths: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
        assert_eq!(paths.len(), 7, "{paths:?}");
    }
}
