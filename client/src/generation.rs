//! The text as it comes.

use std::{
    collections::HashMap,
    fmt,
    pin::Pin,
    str::FromStr,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use futures_util::{Stream, future::BoxFuture};
use parking_lot::Mutex;
use titan_proto::v1::StreamResponse;
use titan_transport::Wire;
use tonic::{Code, Status, Streaming};

use crate::{
    ClientError, Feature, Processed, Prompt, TitanClient,
    agent::Agent,
    dial::Started,
    error::{Progress, classify, is_lost},
    resume,
    route::Route,
};

/// A running generation: a stream of texts to append, each as the agent sent it. Dropping it stops the generation at the agent.
///
/// When its connection is lost it goes on over another one, unless [`Feature::Resume`] is off: that looks like a pause.
pub struct Generation {
    source: Source,
    client: TitanClient,
    job: Arc<Job>,
    /// Messages that have come, in all.
    received: u64,
    /// How many had come, each time that the answer was resumed.
    resumed_at: Vec<u64>,
    agent: Arc<Agent>,
    route: Arc<Route>,
    wire: Wire,
    early: bool,
    routing: Option<Duration>,
    asked_at: Instant,
    ttft: Option<Duration>,
    usage: Option<Usage>,
}

/// What was asked for, and its name.
pub(crate) struct Job {
    pub(crate) prompt: Prompt,
    /// The same in every try: no agent runs it twice with one token.
    pub(crate) nonce: String,
}

/// Where the next message comes from.
enum Source {
    Stream(Streaming<StreamResponse>),
    /// The connection is lost, another one is being made. In a mutex that is never locked, so that others may look at the rest.
    Resuming(Mutex<BoxFuture<'static, Result<Started, ClientError>>>),
    /// The last text, or an error, is out.
    Nothing,
}

/// What the agent says about a complete answer. What it does not say is 0 or empty.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Usage {
    /// Tokens of the prompt, the chat template's included.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// From the request's arrival at the agent to its place in the engine, in milliseconds.
    pub queue_ms: f64,
    /// From the request's arrival at the agent to the first text, in milliseconds. [`Generation::ttft`] is the client's view.
    pub ttft_ms: f64,
    /// Of the tokens after the first.
    pub tokens_per_second: f64,
    /// `stop`, `length`, …
    pub finish_reason: String,
}

impl Generation {
    pub(crate) fn new(
        client: TitanClient,
        job: Arc<Job>,
        started: Started,
        agent: Arc<Agent>,
        route: Arc<Route>,
        routing: Option<Duration>,
        asked_at: Instant,
    ) -> Self {
        let Started { stream, wire, early } = started;
        let (received, resumed_at) = Default::default();
        let (source, ttft, usage) = (Source::Stream(stream), None, None);
        Self { source, client, job, received, resumed_at, agent, route, wire, early, routing, asked_at, ttft, usage }
    }

    /// The agent that runs it.
    pub fn agent_id(&self) -> &str {
        &self.route.place.agent_id
    }

    /// The coordinator's name for the job that the token was issued for. Requests with the same token share it.
    pub fn job_id(&self) -> &str {
        &self.route.job_id
    }

    /// How often the answer lost its connection and went on over another one.
    pub fn resumed(&self) -> u32 {
        u32::try_from(self.resumed_at.len()).unwrap_or(u32::MAX)
    }

    /// How many messages, usually of one token each, had come each time.
    pub fn resumed_at(&self) -> &[u64] {
        &self.resumed_at
    }

    /// The wire that the text comes over.
    pub fn wire(&self) -> Wire {
        self.wire
    }

    /// Where it comes from, `host:port`.
    pub fn endpoint(&self) -> &str {
        self.agent.endpoint(self.wire)
    }

    /// Whether the coordinator was asked for this request.
    pub fn routed(&self) -> bool {
        self.routing.is_some()
    }

    /// How long the coordinator took to name the agent, connecting to the coordinator included; None where the route was kept.
    pub fn routing(&self) -> Option<Duration> {
        self.routing
    }

    /// Whether the request went out before the handshake was complete (0-RTT).
    pub fn early_data(&self) -> bool {
        self.early
    }

    /// The round-trip time to the agent, as QUIC measures it. gRPC does not tell.
    pub fn rtt(&self) -> Option<Duration> {
        let quic = self.agent.quic.as_ref().filter(|_| self.wire == Wire::Quic);
        quic.and_then(|quic| quic.rtt())
    }

    /// From the call of `generate` to the first text; None while there is none.
    pub fn ttft(&self) -> Option<Duration> {
        self.ttft
    }

    /// What the agent says about the answer, once the stream has ended without an error.
    pub fn usage(&self) -> Option<&Usage> {
        self.usage.as_ref()
    }

    /// The stream ended with `status`: how it goes on, or what to tell the caller.
    fn ended(&self, status: &Status) -> Result<Source, ClientError> {
        if self.wire == Wire::Http {
            self.agent.grpc_ended(status);
        }
        let progress = if self.ttft.is_some() { Progress::Text } else { Progress::Accepted };
        let error = classify(self.agent_id(), status, progress);
        if !is_lost(status) || !self.client.features().has(Feature::Resume) || self.client.is_closed() {
            return Err(error);
        }
        tracing::debug!(%error, received = self.received, "connection lost, resuming the answer");
        let (client, job, from) = (self.client.clone(), self.job.clone(), self.received);
        let (agent, route) = (self.agent.clone(), self.route.clone());
        Ok(Source::Resuming(Mutex::new(Box::pin(async move {
            resume::resume(&client, &agent, &route, &job, from).await.map_err(|reason| error.and_not_resumed(&reason))
        }))))
    }

    fn resume_with(&mut self, started: Started) {
        let Started { stream, wire, .. } = started;
        self.resumed_at.push(self.received);
        (self.source, self.wire) = (Source::Stream(stream), wire);
    }

    /// The text of a message, if it has any.
    fn read(&mut self, message: StreamResponse) -> Option<String> {
        self.received += 1;
        if message.done {
            self.usage = Some(Usage::read(&message.metadata));
            self.source = Source::Nothing;
        }
        if message.content.is_empty() {
            return None;
        }
        self.ttft.get_or_insert_with(|| self.asked_at.elapsed());
        Some(message.content)
    }

    fn broken_off(&self, message: &str) -> ClientError {
        let processed = if self.ttft.is_some() { Processed::Yes } else { Processed::Maybe };
        let (agent_id, message) = (self.agent_id().to_owned(), message.to_owned());
        ClientError::Broken { agent_id, code: Code::Unavailable, message, processed }
    }
}

impl Stream for Generation {
    type Item = Result<String, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            let failed = match &mut this.source {
                Source::Nothing => return Poll::Ready(None),
                Source::Resuming(attempt) => match ready!(Pin::new(attempt.get_mut()).poll(cx)) {
                    Ok(started) => {
                        this.resume_with(started);
                        continue;
                    }
                    Err(error) => Err(error),
                },
                Source::Stream(stream) => match ready!(Pin::new(stream).poll_next(cx)) {
                    Some(Ok(message)) => match this.read(message) {
                        Some(text) => return Poll::Ready(Some(Ok(text))),
                        None => continue,
                    },
                    Some(Err(status)) => this.ended(&status),
                    None => Err(this.broken_off("it ended without a last message")),
                },
            };
            match failed {
                Ok(source) => this.source = source,
                Err(error) => {
                    this.source = Source::Nothing;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation")
            .field("agent_id", &self.agent_id())
            .field("wire", &self.wire)
            .field("running", &!matches!(self.source, Source::Nothing))
            .finish_non_exhaustive()
    }
}

impl Usage {
    fn read(metadata: &HashMap<String, String>) -> Self {
        Self {
            prompt_tokens: number(metadata, "prompt_tokens"),
            completion_tokens: number(metadata, "completion_tokens"),
            queue_ms: number(metadata, "queue_ms"),
            ttft_ms: number(metadata, "ttft_ms"),
            tokens_per_second: number(metadata, "tokens_per_second"),
            finish_reason: metadata.get("finish_reason").cloned().unwrap_or_default(),
        }
    }
}

fn number<T: FromStr + Default>(metadata: &HashMap<String, String>, name: &str) -> T {
    metadata.get(name).and_then(|value| value.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_what_the_agent_says_and_no_more() {
        let said =
            [("prompt_tokens", "7"), ("ttft_ms", "1.5"), ("completion_tokens", "many"), ("finish_reason", "stop")];
        let usage = Usage::read(&said.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect());
        let expected = Usage { prompt_tokens: 7, ttft_ms: 1.5, finish_reason: "stop".to_owned(), ..Usage::default() };
        assert_eq!(usage, expected);
    }
}
