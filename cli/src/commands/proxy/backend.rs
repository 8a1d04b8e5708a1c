//! Requests of applications, to agents by the client library.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures_util::{Stream, stream};
use http::{header, request::Parts};
use titan_client::{ClientError, CoordinatorError, Generation, Prompt, TitanClient};
use titan_openai::{Backend, Caller};
use titan_proto::v1::{ModelInfo, StreamRequest, StreamResponse};
use tonic::{Code, Status};

use super::metrics::Metrics;
use crate::rest::Rest;

/// The agents, as the proxy reaches them.
pub(super) struct ToAgents {
    client: TitanClient,
    rest: Rest,
    key: Option<String>,
    metrics: Arc<Metrics>,
}

impl ToAgents {
    pub(super) fn new(client: TitanClient, rest: Rest, key: Option<String>, metrics: Arc<Metrics>) -> Self {
        Self { client, rest, key, metrics }
    }
}

impl Backend for ToAgents {
    type Stream = Pin<Box<dyn Stream<Item = Result<StreamResponse, Status>> + Send>>;

    async fn authenticate(&self, request: &Parts) -> Result<Caller, Status> {
        let Some(key) = &self.key else { return Ok(Caller::default()) };
        let shown = request.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let shown = shown.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        match aws_lc_rs::constant_time::verify_slices_are_equal(shown.as_bytes(), key.as_bytes()) {
            Ok(()) => Ok(Caller::default()),
            Err(_) => {
                Err(Status::unauthenticated("the API key is not the one that this proxy was started with (--api-key)"))
            }
        }
    }

    async fn models(&self, _caller: &Caller) -> Result<Vec<ModelInfo>, Status> {
        let status = self.rest.status().await;
        let status =
            status.map_err(|error| Status::unavailable(format!("the coordinator does not answer: {error:#}")))?;
        let agents = status.agents.unwrap_or_default();
        let mut names: Vec<String> = agents.into_iter().flat_map(|agent| agent.supported_models).collect();
        names.sort_unstable();
        names.dedup();
        Ok(names.into_iter().map(|name| ModelInfo { name, ..ModelInfo::default() }).collect())
    }

    async fn generate(&self, _caller: &Caller, request: StreamRequest) -> Result<Self::Stream, Status> {
        self.metrics.requests.fetch_add(1, Relaxed);
        let generation = self.client.generate(Prompt::from(request)).await.map_err(|error| {
            self.metrics.failed.fetch_add(1, Relaxed);
            status(&error)
        })?;
        Ok(Box::pin(messages(generation, Running::new(&self.metrics))))
    }
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
    let code = match error {
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
        _ => Code::Internal,
    };
    let mut status = Status::new(code, message);
    if let Some(wait) = error.retry_after() {
        status.metadata_mut().insert("retry-after", seconds(wait).into());
    }
    status
}

/// Whole seconds, at least one.
fn seconds(wait: Duration) -> u64 {
    wait.as_secs_f64().ceil().max(1.0) as u64
}
