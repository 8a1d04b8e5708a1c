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

use futures_util::Stream;
use titan_proto::v1::StreamResponse;
use titan_transport::Wire;
use tonic::{Code, Streaming};

use crate::{
    ClientError, Processed,
    agent::Agent,
    dial::Started,
    error::{Progress, classify},
    route::Route,
};

/// A running generation: a stream of texts to append, each as the agent sent it. Dropping it stops the generation at the agent.
pub struct Generation {
    /// None once the last text, or an error, is out.
    stream: Option<Streaming<StreamResponse>>,
    agent: Arc<Agent>,
    route: Arc<Route>,
    wire: Wire,
    early: bool,
    routing: Option<Duration>,
    asked_at: Instant,
    ttft: Option<Duration>,
    usage: Option<Usage>,
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
    /// Whether the agent had begun before the request came ([`Feature::PrefillAhead`](crate::Feature::PrefillAhead)).
    pub prefilled: bool,
}

impl Generation {
    pub(crate) fn new(
        started: Started,
        agent: Arc<Agent>,
        route: Arc<Route>,
        routing: Option<Duration>,
        asked_at: Instant,
    ) -> Self {
        let Started { stream, wire, early } = started;
        Self { stream: Some(stream), agent, route, wire, early, routing, asked_at, ttft: None, usage: None }
    }

    /// The agent that runs it.
    pub fn agent_id(&self) -> &str {
        &self.route.place.agent_id
    }

    /// The coordinator's name for the job that the token was issued for. Requests with the same token share it.
    pub fn job_id(&self) -> &str {
        &self.route.job_id
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
            let Some(stream) = &mut this.stream else { return Poll::Ready(None) };
            let message = match ready!(Pin::new(stream).poll_next(cx)) {
                Some(Ok(message)) => message,
                Some(Err(status)) => {
                    this.stream = None;
                    if this.wire == Wire::Http {
                        this.agent.grpc_ended(&status);
                    }
                    let progress = if this.ttft.is_some() { Progress::Text } else { Progress::Accepted };
                    return Poll::Ready(Some(Err(classify(this.agent_id(), &status, progress))));
                }
                None => {
                    this.stream = None;
                    return Poll::Ready(Some(Err(this.broken_off("it ended without a last message"))));
                }
            };
            if message.done {
                this.usage = Some(Usage::read(&message.metadata));
                this.stream = None;
            }
            if !message.content.is_empty() {
                this.ttft.get_or_insert_with(|| this.asked_at.elapsed());
                return Poll::Ready(Some(Ok(message.content)));
            }
        }
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation")
            .field("agent_id", &self.agent_id())
            .field("wire", &self.wire)
            .field("running", &self.stream.is_some())
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
            prefilled: metadata.get("prefilled").is_some_and(|value| value == "true"),
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
        let read =
            |said: &[(&str, &str)]| Usage::read(&said.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect());
        let expected = Usage { prompt_tokens: 7, ttft_ms: 1.5, finish_reason: "stop".to_owned(), ..Usage::default() };
        assert_eq!(read(&said), expected);
        assert!(read(&[("prefilled", "true")]).prefilled && !read(&[("prefilled", "false")]).prefilled);
    }
}
