//! Requests of applications, to agents by the client library.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures_util::{Stream, stream};
use http::{Method, header, request::Parts};
use titan_client::{ClientError, CoordinatorError, Generation, Prompt};
use titan_openai::{Backend, Caller};
use titan_proto::{
    REASON,
    host::{PageRefused, check_page},
    rest,
    v1::{ModelInfo, StreamRequest, StreamResponse},
};
use tonic::{Code, Status};

use crate::{clients::Clients, metrics::Metrics};

/// The agents, as the proxy reaches them.
pub(crate) struct ToAgents {
    clients: Clients,
    key: Option<String>,
    metrics: Arc<Metrics>,
}

impl ToAgents {
    pub(crate) fn new(clients: Clients, key: Option<String>, metrics: Arc<Metrics>) -> Self {
        Self { clients, key, metrics }
    }
}

impl Backend for ToAgents {
    type Stream = Pin<Box<dyn Stream<Item = Result<StreamResponse, Status>> + Send>>;

    async fn authenticate(&self, request: &Parts) -> Result<Caller, Status> {
        let Some(key) = &self.key else { return of_this_machine(request).map(|()| Caller::default()) };
        let shown = request.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let shown = shown.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        match aws_lc_rs::constant_time::verify_slices_are_equal(shown.as_bytes(), key.as_bytes()) {
            Ok(()) => Ok(Caller::default()),
            Err(_) => Err(Status::unauthenticated(
                "the API key is not the one that this proxy was started with (--require-key)",
            )),
        }
    }

    async fn models(&self, _caller: &Caller) -> Result<Vec<ModelInfo>, Status> {
        let models = self.clients.get().models().await.map_err(|error| status(&ClientError::Coordinator(error)))?;
        let info = |model: rest::ModelInfo| ModelInfo {
            name: model.name,
            context_tokens: model.context_tokens,
            ..ModelInfo::default()
        };
        Ok(models.into_iter().map(info).collect())
    }

    async fn generate(&self, _caller: &Caller, request: StreamRequest) -> Result<Self::Stream, Status> {
        self.metrics.requests.fetch_add(1, Relaxed);
        let generation = self.clients.get().generate(Prompt::from(request)).await.map_err(|error| {
            self.metrics.failed.fetch_add(1, Relaxed);
            status(&error)
        })?;
        Ok(Box::pin(messages(generation, Running::new(&self.metrics))))
    }
}

/// Without a key only what runs on this machine may ask, and no page in a browser here.
fn of_this_machine(request: &Parts) -> Result<(), Status> {
    let text = |name| request.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let (host, origin) = (text(header::HOST), text(header::ORIGIN));
    let reads_only = [Method::GET, Method::HEAD, Method::OPTIONS].contains(&request.method);
    check_page::<&str>(reads_only, host.as_deref(), origin.as_deref(), &[], &[]).map_err(|refused| {
        let (what, named) = match &refused {
            PageRefused::Host(host) => ("Host", host),
            PageRefused::Origin(origin) => ("Origin", origin),
        };
        Status::permission_denied(format!(
            "the header {what} names {named:?}, which is not this machine: start the proxy with --require-key to let others in"
        ))
    })
}

/// An answer that comes now, for the figures.
struct Running(Arc<Metrics>);

impl Running {
    fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.running.fetch_add(1, Relaxed);
        Self(Arc::clone(metrics))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Relaxed);
    }
}

/// An answer as an agent's messages. Dropping it stops the generation.
fn messages(generation: Generation, running: Running) -> impl Stream<Item = Result<StreamResponse, Status>> + Send {
    stream::unfold(Some((generation, running)), |going| async {
        let (mut generation, running) = going?;
        match generation.next_piece().await {
            Some(Ok(piece)) => {
                let message = StreamResponse {
                    content: piece.text,
                    reasoning: piece.reasoning,
                    tool_calls: piece.tool_calls,
                    logprobs: piece.logprobs,
                    ..StreamResponse::default()
                };
                Some((Ok(message), Some((generation, running))))
            }
            Some(Err(error)) => {
                running.0.failed.fetch_add(1, Relaxed);
                Some((Err(status(&error)), None))
            }
            None => {
                let last = last(&generation)?;
                let tokens = generation.usage().map_or(0, |usage| usage.completion_tokens);
                running.0.completion_tokens.fetch_add(tokens.into(), Relaxed);
                Some((Ok(last), None))
            }
        }
    })
}

fn last(generation: &Generation) -> Option<StreamResponse> {
    let usage = generation.usage()?;
    let numbers = [
        ("prompt_tokens", usage.prompt_tokens),
        ("completion_tokens", usage.completion_tokens),
        ("cached_tokens", usage.cached_tokens),
    ];
    let metadata: HashMap<String, String> =
        numbers.into_iter().map(|(name, number)| (name.to_owned(), number.to_string())).collect();
    let finish_reason = usage.finish_reason.clone();
    Some(StreamResponse { done: true, finish_reason, metadata, ..StreamResponse::default() })
}

/// What went wrong, for an application that knows nothing of tokens and certificates: those are the proxy's own, and no fault of its key.
fn status(error: &ClientError) -> Status {
    let message = match error {
        // What is about the request begins with its field.
        ClientError::Refused { code: Code::InvalidArgument | Code::FailedPrecondition, message, .. } => message.clone(),
        error => error.to_string(),
    };
    let code = code(error);
    let mut status = Status::new(code, message);
    if let ClientError::Refused { reason: Some(reason), .. } = error
        && let Ok(reason) = reason.parse()
    {
        status.metadata_mut().insert(REASON, reason);
    }
    if let Some(wait) = error.retry_after() {
        status.metadata_mut().insert("retry-after", seconds(wait).into());
    }
    status
}

fn code(error: &ClientError) -> Code {
    match error {
        ClientError::Refused { code: Code::Unauthenticated | Code::PermissionDenied, .. } => Code::Unavailable,
        ClientError::Refused { code, .. } => *code,
        ClientError::Broken { code: Code::InvalidArgument | Code::FailedPrecondition, .. } => Code::FailedPrecondition,
        ClientError::Broken { .. } | ClientError::AlreadyRan { .. } | ClientError::Unreachable { .. } => {
            Code::Unavailable
        }
        ClientError::Coordinator(CoordinatorError::Refused { status, code_word, .. }) => match status {
            404 => Code::NotFound,
            400..500 => Code::InvalidArgument,
            _ if code_word == "no_capacity" => Code::ResourceExhausted,
            _ => Code::Unavailable,
        },
        ClientError::Coordinator(CoordinatorError::Unreachable { .. }) => Code::Unavailable,
        // What was in the way until the time was over.
        ClientError::TimedOut { last: Some(last), .. } => code(last),
        ClientError::TimedOut { last: None, .. } => Code::DeadlineExceeded,
        _ => Code::Internal,
    }
}

/// Whole seconds, at least one.
fn seconds(wait: Duration) -> u64 {
    wait.as_secs_f64().ceil().max(1.0) as u64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_page_of_another_place_is_not_this_machine() {
        for (method, host, origin, here) in [
            (Method::POST, Some("127.0.0.1:8787"), None, true),
            (Method::POST, Some("localhost:8787"), Some("http://localhost:3000"), true),
            (Method::POST, Some("[::1]:8787"), Some("http://127.0.0.1"), true),
            (Method::POST, None, None, true),
            // A name of the page's own that leads here.
            (Method::GET, Some("evil.example:8787"), None, false),
            (Method::POST, Some("127.0.0.1.evil.example"), None, false),
            (Method::POST, Some("127.0.0.1:8787"), Some("https://evil.example"), false),
            (Method::POST, Some("127.0.0.1:8787"), Some("null"), false),
        ] {
            let mut request = http::Request::builder().method(method);
            for (name, value) in [(header::HOST, host), (header::ORIGIN, origin)] {
                if let Some(value) = value {
                    request = request.header(name, value);
                }
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            assert_eq!(of_this_machine(&parts).is_ok(), here, "{host:?} {origin:?}");
        }
    }
}
