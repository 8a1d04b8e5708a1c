//! Talking to the server: connections, bounded bodies, and what a refusal means.

use std::time::Duration;

use reqwest::{
    Client, Response, StatusCode, Url,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER},
    redirect,
};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt as _;
use serde::{Serialize, de::DeserializeOwned};
use titan_transport::tls::provider;

use super::{
    answer::{ServerWords, shortened},
    source::ServerSpec,
};
use crate::engine::EngineError;

/// Longest time to connect. The server is this machine or a neighbour; a request that cannot reach it is better sent to another agent.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a TLS connection that nobody uses is kept: less than the 5 s after which uvicorn closes its own.
const IDLE_TIME: Duration = Duration::from_secs(2);
/// Longest body of an answer to a question about the server, or of a refusal. A list of models of a hosted service has some hundred kB.
const MAX_BODY_BYTES: usize = 4 << 20;

/// One server.
#[derive(Clone, Debug)]
pub(super) struct Http {
    client: Client,
    /// Where the API begins, `…/v1`.
    base: String,
    /// Where the server's own paths begin.
    root: String,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(super) enum HttpError {
    /// No connection, or a broken one.
    #[error("{0}")]
    Unreachable(String),
    /// It takes too long.
    #[error("no answer within {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// An answer that is a refusal.
    #[error("{}: {}", .0.status.as_u16(), .0.words.message)]
    Refused(Box<Refusal>),
    /// An answer that is not what was asked for.
    #[error("{0}")]
    Unexpected(String),
}

/// A refusal.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) words: ServerWords,
    /// Seconds to wait, where the server says so.
    pub(super) retry_after: Option<u64>,
}

impl Http {
    pub(super) fn new(spec: &ServerSpec) -> Result<Self, String> {
        let mut headers = HeaderMap::new();
        if let Some(key) = &spec.key {
            headers.insert(AUTHORIZATION, key.header());
        }
        let client = Client::builder()
            .tls_backend_preconfigured(tls_config(&spec.url).map_err(|error| error.to_string())?)
            .default_headers(headers)
            .connect_timeout(CONNECT_TIMEOUT)
            // A request that meets the closing of an old connection fails, and the server seems dead. Without TLS a new one costs next to
            // nothing.
            .pool_max_idle_per_host(if spec.url.scheme() == "https" { usize::MAX } else { 0 })
            .pool_idle_timeout(IDLE_TIME)
            // A server that answers completions does not redirect; whoever does would get the prompt and the key.
            .redirect(redirect::Policy::none())
            // The environment's proxy is for the web. This server is the machine's own, or a neighbour.
            .no_proxy()
            .build()
            .map_err(|error| reason(&error))?;
        let base = spec.url.as_str().trim_end_matches('/').to_owned();
        let root = base.strip_suffix("/v1").unwrap_or(&base).to_owned();
        Ok(Self { client, base, root })
    }

    /// `GET`, below the API's beginning where `path` has no slash in front, and else below the server's.
    pub(super) async fn get(&self, path: &str, patience: Duration) -> Result<String, HttpError> {
        self.bounded(self.client.get(self.url(path)), patience).await
    }

    /// The same, of a JSON answer.
    pub(super) async fn json<T: DeserializeOwned>(&self, path: &str, patience: Duration) -> Result<T, HttpError> {
        parse(path, &self.get(path, patience).await?)
    }

    /// `POST` of JSON for JSON.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &serde_json::Value,
        patience: Duration,
    ) -> Result<T, HttpError> {
        parse(path, &self.bounded(self.client.post(self.url(path)).json(body), patience).await?)
    }

    /// A completion, up to the headers of its event stream. Dropping the future or the response closes the connection.
    pub(super) async fn stream(&self, body: &impl Serialize, patience: Duration) -> Result<Response, HttpError> {
        let request = self.client.post(self.url("chat/completions")).json(body);
        let request = request.header(ACCEPT, HeaderValue::from_static("text/event-stream"));
        let answer = async { succeeded(request.send().await.map_err(|error| unreachable(&error))?).await };
        let response = tokio::time::timeout(patience, answer).await.unwrap_or(Err(HttpError::Silent(patience)))?;
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.to_ascii_lowercase().starts_with("text/event-stream") {
            let message = format!("it answers {:?} where a stream of events was asked for", shortened(kind));
            return Err(HttpError::Unexpected(message));
        }
        Ok(response)
    }

    fn url(&self, path: &str) -> String {
        match path.starts_with('/') {
            true => format!("{}{path}", self.root),
            false => format!("{}/{path}", self.base),
        }
    }

    async fn bounded(&self, request: reqwest::RequestBuilder, patience: Duration) -> Result<String, HttpError> {
        let answer = async {
            let response = succeeded(request.send().await.map_err(|error| unreachable(&error))?).await?;
            body(response).await
        };
        tokio::time::timeout(patience, answer).await.unwrap_or(Err(HttpError::Silent(patience)))
    }
}

impl HttpError {
    /// The status, of a refusal.
    pub(super) fn status(&self) -> Option<u16> {
        match self {
            Self::Refused(refusal) => Some(refusal.status.as_u16()),
            _ => None,
        }
    }

    /// Whether it is the number of tokens that was refused.
    pub(super) fn is_about_max_tokens(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.status == StatusCode::BAD_REQUEST
            && ["max_tokens", "maximum context length"].iter().any(|words| refusal.words.message.contains(words)))
    }

    /// What a refused or failed generation is to its client. `model` is the name that the client knows; where its server is, is not for it
    /// to know.
    pub(super) fn of_generation(self, model: &str, template_faults_are_500: bool) -> EngineError {
        let Refusal { status, words, retry_after } = match self {
            Self::Refused(refusal) => *refusal,
            other => return EngineError::Failed(format!("the server of {model}: {other}")),
        };
        if let Some((prompt_tokens, context_tokens)) = words.too_long {
            return EngineError::PromptTooLong { model: model.to_owned(), prompt_tokens, context_tokens };
        }
        let (code, said) = (status.as_u16(), words.message);
        match code {
            401 | 403 => EngineError::Unsupported(format!(
                "the server of {model} does not accept this agent's key ({code}: {said}): whoever runs this agent sets it with --model-key {model}=FILE"
            )),
            408 | 425 | 429 | 503 => {
                let when = retry_after.map(|seconds| format!(" after {seconds} s")).unwrap_or_default();
                EngineError::Failed(format!("the server of {model} has no room ({code}: {said}): try again{when}"))
            }
            400..=499 => {
                EngineError::InvalidParameter(format!("the server of {model} refuses the request ({code}): {said}"))
            }
            // llama.cpp: what this build or its flags leave out.
            501 => EngineError::Unsupported(format!("the server of {model} cannot do that ({code}): {said}")),
            // A template that refuses the conversation refuses it again.
            500 if template_faults_are_500 => {
                EngineError::Unsupported(format!("the server of {model} cannot serve the request ({code}): {said}"))
            }
            _ => EngineError::Failed(format!("the server of {model} failed ({code}): {said}")),
        }
    }
}

/// The roots of the system, for https. For http nobody is trusted: the configuration is only what the library asks for.
fn tls_config(url: &Url) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    Ok(match url.scheme() {
        "https" => builder.with_platform_verifier()?.with_no_client_auth(),
        _ => builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth(),
    })
}

async fn succeeded(response: Response) -> Result<Response, HttpError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    // A refusal whose words do not come is one all the same.
    let said = body(response).await.unwrap_or_default();
    let mut words = ServerWords::read(&said);
    if words.message.is_empty() {
        words.message = status.canonical_reason().unwrap_or("no reason given").to_owned();
    }
    Err(HttpError::Refused(Box::new(Refusal { status, words, retry_after })))
}

async fn body(mut response: Response) -> Result<String, HttpError> {
    let mut bytes = Vec::new();
    while let Some(more) = response.chunk().await.map_err(|error| unreachable(&error))? {
        if bytes.len() + more.len() > MAX_BODY_BYTES {
            return Err(HttpError::Unexpected(format!("an answer of more than {MAX_BODY_BYTES} bytes")));
        }
        bytes.extend_from_slice(&more);
    }
    String::from_utf8(bytes).map_err(|_| HttpError::Unexpected("an answer that is no text".to_owned()))
}

fn parse<T: DeserializeOwned>(path: &str, text: &str) -> Result<T, HttpError> {
    serde_json::from_str(text)
        .map_err(|error| HttpError::Unexpected(format!("what it says at {path} is not what was expected: {error}")))
}

fn unreachable(error: &reqwest::Error) -> HttpError {
    HttpError::Unreachable(reason(error))
}

/// The innermost reason: those around it repeat the URL.
pub(super) fn reason(error: &reqwest::Error) -> String {
    let innermost = titan_transport::causes(error).last().map(ToString::to_string).unwrap_or_default();
    let what = if error.is_connect() { "cannot connect" } else { "the connection broke" };
    format!("{what}: {innermost}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn refused(status: u16, body: &str) -> EngineError {
        let (status, words) = (StatusCode::from_u16(status).unwrap(), ServerWords::read(body));
        let refusal = Refusal { status, words, retry_after: Some(7) };
        HttpError::Refused(Box::new(refusal)).of_generation("m", true)
    }

    #[test]
    fn a_refusal_says_whose_fault_it_is_in_the_servers_words() {
        let body = r#"{"error": {"message": "said so"}}"#;
        for status in [400, 404, 413, 422] {
            let error = refused(status, body);
            assert!(matches!(&error, EngineError::InvalidParameter(why) if why.contains("said so")), "{error}");
        }
        for status in [401, 403] {
            let error = refused(status, body);
            assert!(matches!(&error, EngineError::Unsupported(why) if why.contains("--model-key m=FILE")), "{error}");
        }
        for status in [429, 503] {
            let error = refused(status, body);
            assert!(matches!(&error, EngineError::Failed(why) if why.ends_with("try again after 7 s")), "{error}");
        }
        assert!(matches!(refused(500, body), EngineError::Unsupported(_)), "a template that raises");
        assert!(matches!(refused(501, body), EngineError::Unsupported(_)));
        assert!(matches!(refused(502, body), EngineError::Failed(_)));
        let long = refused(400, r#"{"error":{"message":"x","n_prompt_tokens":9,"n_ctx":8}}"#);
        assert!(matches!(long, EngineError::PromptTooLong { prompt_tokens: 9, context_tokens: 8, .. }));
    }

    #[test]
    fn paths_are_of_the_api_or_of_the_server() {
        let http = |url: &str| Http::new(&ServerSpec::parse(&format!("a={url}")).unwrap()).unwrap();
        let url = |url: &str, path: &str| http(url).url(path);
        assert_eq!(url("http://h:1/v1/", "models"), "http://h:1/v1/models");
        assert_eq!(url("http://h:1", "/health"), "http://h:1/health");
        assert_eq!(url("http://h:1/llm/v1", "/health"), "http://h:1/llm/health");
    }
}
