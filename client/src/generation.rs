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
use titan_proto::{
    rest::Outcome,
    v1::{Message, StreamResponse, TokenLogprob, ToolCall, ToolCallDelta},
};
use titan_transport::Wire;
use tokio::time::{Sleep, sleep_until};
use tonic::{Code, Status};

use crate::{
    ClientError, Feature, Processed, TitanClient,
    connections::AgentConnections,
    dial::{AnswerStream, Started},
    error::{BrokenBy, Progress, classify},
    job::{Job, SoFar, is_seen},
    outcome,
    policy::Tries,
    resume::LostRun,
    route::{Lease, Route},
    search::{BrokenAnswer, Found, Search},
};

/// A running generation: a stream of texts to append, each as the agent sent it. Dropping it stops the generation at the agent.
/// Where an answer may have reasoning, tool calls or log probabilities, [`next_piece`](Self::next_piece) gives them with the text.
///
/// When its connection is lost it goes on over another one, unless [`Feature::Resume`] is off, and when its agent is lost at another
/// agent, unless [`Feature::Move`] is off: that looks like a pause. What cannot be continued is said at [`Prompt`](crate::Prompt).
pub struct Generation {
    source: Source,
    client: TitanClient,
    job: Arc<Job>,
    /// What it has met.
    tries: Tries,
    /// Messages of this agent that have come.
    received: u64,
    /// Messages with anything to see that have come, in all.
    pieces: u64,
    /// How many had come, each time that the answer was resumed.
    resumed_at: Vec<u64>,
    /// The same, each time that it moved.
    moved_at: Vec<u64>,
    /// What its reader has been given, and another agent needs.
    so_far: SoFar,
    agent: Arc<AgentConnections>,
    route: Arc<Route>,
    /// Until the answer has ended: then another request may use its route.
    lease: Option<Lease>,
    wire: Wire,
    early: bool,
    routing: Option<Duration>,
    asked_at: Instant,
    /// The time for the first text.
    within: Duration,
    /// When that is over; None once there is text.
    deadline: Option<Pin<Box<Sleep>>>,
    ttft: Option<Duration>,
    usage: Option<Usage>,
    /// Resolves when nothing comes over the connection any more; made when it is waited for. In a mutex that is never locked.
    silence: Option<Mutex<BoxFuture<'static, ()>>>,
}

/// Where the next message comes from.
enum Source {
    Stream(Box<AnswerStream>),
    /// It broke off, and is got going again. In a mutex that is never locked, so that others may look at the rest.
    Recovering(Mutex<BoxFuture<'static, Result<(Found, Tries), ClientError>>>),
    /// The last text, or an error, is out.
    Nothing,
}

/// What comes next of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Piece {
    /// Text to append.
    pub text: String,
    /// What the model thinks, to append.
    pub reasoning: String,
    /// Parts of tool calls: what has the same index belongs together. [`Generation::tool_calls`] puts them together.
    pub tool_calls: Vec<ToolCallDelta>,
    /// One for each token of the piece, where the prompt asks for them.
    pub logprobs: Vec<TokenLogprob>,
}

/// What the agent says about a complete answer. What it does not say is 0 or empty.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Usage {
    /// Tokens of the prompt, the chat template's included.
    pub prompt_tokens: u32,
    /// Of these, the agent had computed before: the beginning of a conversation that goes on.
    pub cached_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// From the request's arrival at the agent to its place in the engine, in milliseconds.
    pub queue_ms: f64,
    /// From the request's arrival at the agent to the first text, reasoning or tool call, in milliseconds. [`Generation::ttft`] is the client's view.
    pub ttft_ms: f64,
    /// Of the tokens after the first.
    pub tokens_per_second: f64,
    /// `stop`, `length` or `tool_calls`.
    pub finish_reason: String,
    /// Whether the agent had begun before the request came ([`Feature::PrefillAhead`](crate::Feature::PrefillAhead)).
    pub prefilled: bool,
}

impl Generation {
    pub(crate) fn new(client: TitanClient, found: Found, tries: Tries, asked_at: Instant, within: Duration) -> Self {
        let Found { started: Started { stream, wire, early }, agent, lease, job, routing, same_run: _ } = found;
        let route = lease.route().clone();
        Self {
            source: Source::Stream(Box::new(stream)),
            client,
            job,
            tries,
            received: 0,
            pieces: 0,
            resumed_at: Vec::new(),
            moved_at: Vec::new(),
            so_far: SoFar::of(&route.model_digest),
            agent,
            route,
            lease: Some(lease),
            wire,
            early,
            routing,
            asked_at,
            within,
            deadline: Some(Box::pin(sleep_until((asked_at + within).into()))),
            ttft: None,
            usage: None,
            silence: None,
        }
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

    /// How many pieces, usually of one token each, had come each time.
    pub fn resumed_at(&self) -> &[u64] {
        &self.resumed_at
    }

    /// How often the answer lost its agent and went on at another one. [`agent_id`](Self::agent_id) and the like are of the last one.
    pub fn moved(&self) -> u32 {
        u32::try_from(self.moved_at.len()).unwrap_or(u32::MAX)
    }

    /// How many pieces, usually of one token each, had come each time.
    pub fn moved_at(&self) -> &[u64] {
        &self.moved_at
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

    /// How much this side of the QUIC connection may have on its way, in bytes. gRPC does not tell.
    pub fn congestion_window(&self) -> Option<u64> {
        let quic = self.agent.quic.as_ref().filter(|_| self.wire == Wire::Quic);
        quic.and_then(|quic| quic.congestion_window())
    }

    /// What comes next; `None` at the end. The same as the stream of texts, with what is not text.
    ///
    /// # Errors
    /// As those of the stream: the answer broke off, and nothing comes after.
    pub async fn next_piece(&mut self) -> Option<Result<Piece, ClientError>> {
        std::future::poll_fn(|cx| self.poll_piece(cx)).await
    }

    /// The text so far.
    pub fn text(&self) -> &str {
        &self.so_far.text
    }

    /// What the model has thought so far.
    pub fn reasoning(&self) -> &str {
        &self.so_far.reasoning
    }

    /// The functions that the model has called so far. The arguments of the last one may be incomplete until the end.
    pub fn tool_calls(&self) -> &[ToolCall] {
        &self.so_far.tool_calls
    }

    /// The answer so far as the assistant's message, to go on with the conversation. Without reasoning: models do not read it again.
    pub fn message(&self) -> Message {
        Message { tool_calls: self.so_far.tool_calls.clone(), ..Message::assistant(self.so_far.text.as_str()) }
    }

    /// From the call of `generate` to the first text, reasoning or tool call; None while there is none.
    pub fn ttft(&self) -> Option<Duration> {
        self.ttft
    }

    /// What the agent says about the answer, once the stream has ended without an error.
    pub fn usage(&self) -> Option<&Usage> {
        self.usage.as_ref()
    }

    /// The stream ended with `status`.
    fn ended(&self, status: &Status) -> ClientError {
        if self.wire == Wire::Http {
            self.agent.grpc_ended(status);
        }
        let progress = if self.ttft.is_some() { Progress::Text } else { Progress::Accepted };
        classify(self.agent_id(), status, progress)
    }

    /// Has an answer that broke off with `error` go on, if it can.
    fn recover(&self, error: ClientError) -> Source {
        let run = LostRun {
            agent: self.agent.clone(),
            lease: Lease::of(&self.route),
            job: self.job.clone(),
            routing: None,
            from: Some(self.received),
        };
        let (so_far, tries, wire) = (self.so_far.clone(), self.tries.clone(), self.wire);
        let search = Search::new(&self.client, self.job.clone(), self.asked_at, self.within);
        Source::Recovering(Mutex::new(Box::pin(search.go_on(BrokenAnswer { run, so_far, tries, wire, error }))))
    }

    fn go_on(&mut self, found: Found, tries: Tries) {
        self.tries = tries;
        self.silence = None;
        let Found { started: Started { stream, wire, .. }, agent, lease, job, .. } = found;
        // Each run has a nonce of its own.
        if job.nonce == self.job.nonce {
            self.resumed_at.push(self.pieces);
        } else {
            let route = lease.route();
            let (from, to, tokens) = (self.agent_id(), &route.place.agent_id, self.so_far.tokens());
            tracing::debug!(%from, %to, tokens, "answer moved");
            self.moved_at.push(self.pieces);
            self.client.count_moved();
            if !self.so_far.has_come() {
                // It begins anew, with the tokens of this agent alone.
                self.so_far = SoFar::of(&route.model_digest);
            }
            (self.route, self.received) = (route.clone(), 0);
        }
        (self.agent, self.job, self.lease) = (agent, job, Some(lease));
        (self.source, self.wire) = (Source::Stream(Box::new(stream)), wire);
    }

    /// Whether the path is silent: another connection may get through, long before this one is given up. Without [`Feature::Resume`]
    /// there is nothing better than to wait.
    fn is_silent(&mut self, cx: &mut Context<'_>) -> bool {
        if self.wire != Wire::Quic || !self.client.features().has(Feature::Resume) {
            return false;
        }
        let Some(quic) = &self.agent.quic else { return false };
        let silence = self.silence.get_or_insert_with(|| {
            let quic = quic.clone();
            Mutex::new(Box::pin(async move { quic.silent().await }))
        });
        Pin::new(silence.get_mut()).poll(cx).is_ready()
    }

    /// What a message has to see, if anything.
    fn read(&mut self, message: StreamResponse) -> Option<Piece> {
        self.received += 1;
        self.so_far.add(&message);
        if message.done {
            self.usage = Some(Usage::read(&message.metadata));
            self.client.tell(&self.route, Outcome::Completed, Some(self.wire), None);
            self.end();
        }
        let seen = is_seen(&message);
        if seen {
            self.deadline = None;
            self.pieces += 1;
            self.ttft.get_or_insert_with(|| self.asked_at.elapsed());
        }
        let StreamResponse { content, reasoning, tool_calls, logprobs, .. } = message;
        // Tokens that show nothing yet have probabilities all the same.
        (seen || !logprobs.is_empty()).then_some(Piece { text: content, reasoning, tool_calls, logprobs })
    }

    fn end(&mut self) {
        self.source = Source::Nothing;
        self.lease = None;
    }

    fn broken_off(&self, message: &str, by: BrokenBy) -> ClientError {
        let processed = if self.ttft.is_some() { Processed::Yes } else { Processed::Maybe };
        let (agent_id, message) = (self.agent_id().to_owned(), message.to_owned());
        ClientError::Broken { agent_id, code: Code::Unavailable, message, processed, by }
    }

    /// The agent has accepted the request, and the time for the first text is over.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready())
    }

    fn late(&self) -> ClientError {
        let (within, tried) = (self.within, format!("the agent {} has accepted it, and sent none", self.agent_id()));
        let error = ClientError::TimedOut { within, tried, processed: Processed::Maybe, last: None };
        self.client.tell(&self.route, Outcome::TimedOut, Some(self.wire), outcome::message(&error));
        error
    }
}

impl Generation {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, ClientError>>> {
        let this = self;
        loop {
            let broken = match &mut this.source {
                Source::Nothing => return Poll::Ready(None),
                // It keeps the deadline by itself, and tells more.
                Source::Recovering(attempt) => match ready!(Pin::new(attempt.get_mut()).poll(cx)) {
                    Ok((found, tries)) => {
                        this.go_on(found, tries);
                        continue;
                    }
                    Err(error) => {
                        this.end();
                        return Poll::Ready(Some(Err(error)));
                    }
                },
                Source::Stream(stream) => match Pin::new(stream).poll_next(cx) {
                    Poll::Pending if this.is_late(cx) => {
                        let error = this.late();
                        this.end();
                        return Poll::Ready(Some(Err(error)));
                    }
                    Poll::Pending if !this.is_silent(cx) => return Poll::Pending,
                    Poll::Pending => this.broken_off("nothing comes from it any more", BrokenBy::Silence),
                    Poll::Ready(Some(Ok(message))) => match this.read(message) {
                        Some(piece) => return Poll::Ready(Some(Ok(piece))),
                        None => continue,
                    },
                    Poll::Ready(Some(Err(status))) => this.ended(&status),
                    Poll::Ready(None) => this.broken_off("it ended without a last message", BrokenBy::Agent),
                },
            };
            this.source = this.recover(broken);
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if !matches!(self.source, Source::Nothing) {
            self.client.tell(&self.route, Outcome::Cancelled, Some(self.wire), None);
        }
    }
}

impl Stream for Generation {
    type Item = Result<String, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match ready!(self.poll_piece(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(piece)) if piece.text.is_empty() => {}
                Some(Ok(piece)) => return Poll::Ready(Some(Ok(piece.text))),
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
            cached_tokens: number(metadata, "cached_tokens"),
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
