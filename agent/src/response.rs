//! An engine's stream as gRPC messages.
//!
//! Pulled, not pushed: nothing is read from the engine before the wire asks for it, so there is no second buffer to grow, and
//! dropping this stream (the reader went away) drops the engine's stream and the slot with it.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures_util::Stream;
use titan_proto::{CONTEXT_LENGTH, REASON, v1::StreamResponse};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Status, metadata::MetadataValue};

use crate::{
    admission::Slot,
    engine::{EngineError, Event, Piece, TokenStream, Usage},
    replay::Note,
};

/// The answer to one request.
pub(crate) struct ResponseStream {
    /// `None` once the last message or an error is out.
    generation: Option<Generation>,
    aborted: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// What ends with the answer. Fields are dropped in this order: the generation stops, then its slot is free.
struct Generation {
    tokens: TokenStream,
    slot: Slot,
    clock: Clock,
    note: Option<Note>,
    /// It was begun before the request came.
    prefilled: bool,
    shape: Shape,
}

/// What messages hold.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shape {
    /// Not what only old clients need.
    pub(crate) compact: bool,
    /// The ids of tokens.
    pub(crate) token_ids: bool,
    /// Tokens of the answer that were generated elsewhere: they say nothing of the speed here.
    pub(crate) continued_tokens: u32,
}

impl ResponseStream {
    /// `received_at` is when the request reached the handler; from then on the time to the first token counts.
    pub(crate) fn new(
        tokens: TokenStream,
        slot: Slot,
        received_at: Instant,
        mut note: Option<Note>,
        abort: CancellationToken,
        shape: Shape,
    ) -> Self {
        note.iter_mut().for_each(Note::started);
        let clock = Clock::start(received_at, Instant::now());
        let generation = Generation { tokens, slot, clock, note, prefilled: false, shape };
        // A token of its own: at every message, a thousand streams would else meet at one lock.
        Self { generation: Some(generation), aborted: Box::pin(abort.child_token().cancelled_owned()) }
    }

    /// Whether the tokens are those of a generation that was begun before the request came. Defaults to false.
    pub(crate) fn prefilled(mut self, prefilled: bool) -> Self {
        self.generation.iter_mut().for_each(|generation| generation.prefilled = prefilled);
        self
    }
}

impl Stream for ResponseStream {
    type Item = Result<StreamResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some(generation) = &mut this.generation else { return Poll::Ready(None) };
        let event = match generation.tokens.poll_recv(cx) {
            Poll::Ready(event) => event,
            Poll::Pending => {
                ready!(this.aborted.as_mut().poll(cx));
                generation.slot.account().failed();
                this.generation = None;
                let why = "this agent shut down before the answer was complete: ask the coordinator for another agent";
                return Poll::Ready(Some(Err(Status::unavailable(why))));
            }
        };
        let item = match event {
            Some(Ok(Event::Piece(piece))) => {
                let (seen, now) = (piece.is_seen(), Instant::now());
                if seen {
                    generation.clock.seen(now);
                }
                generation.slot.account().piece(piece.tokens.len(), seen, now);
                return Poll::Ready(Some(Ok(message(piece, generation.shape))));
            }
            Some(Ok(Event::Done(usage))) => Ok(generation.finish(usage)),
            Some(Err(error)) => Err(generation.fail(&error)),
            None => Err(generation.fail(&EngineError::Failed("it stopped without saying why".into()))),
        };
        this.generation = None;
        Poll::Ready(Some(item))
    }
}

impl Generation {
    fn finish(&mut self, usage: Usage) -> StreamResponse {
        let generated = usage.completion_tokens.saturating_sub(self.shape.continued_tokens);
        self.slot.account().completed(usage.prompt_tokens, usage.cached_tokens, generated);
        let timing = self.clock.timing(generated, Instant::now());
        // What was made ahead comes at once, and says nothing about the machine's speed.
        if timing.tokens_per_second > 0.0 && !self.prefilled {
            self.slot.record_speed(timing.tokens_per_second);
        }
        let mut metadata = HashMap::from([
            ("prompt_tokens".to_owned(), usage.prompt_tokens.to_string()),
            ("cached_tokens".to_owned(), usage.cached_tokens.to_string()),
            ("completion_tokens".to_owned(), usage.completion_tokens.to_string()),
            ("queue_ms".to_owned(), milliseconds(timing.queue)),
            ("ttft_ms".to_owned(), milliseconds(timing.ttft)),
            ("tokens_per_second".to_owned(), format!("{:.2}", timing.tokens_per_second)),
            ("finish_reason".to_owned(), usage.finish_reason.as_str().to_owned()),
        ]);
        if self.prefilled {
            metadata.insert("prefilled".to_owned(), "true".to_owned());
        }
        StreamResponse {
            done: true,
            metadata,
            created_at: unix_ms(),
            finish_reason: usage.finish_reason.as_str().to_owned(),
            ..Default::default()
        }
    }

    fn fail(&mut self, error: &EngineError) -> Status {
        self.slot.account().failed();
        let produced = self.clock.first_seen.is_some();
        if !produced {
            self.note.iter_mut().for_each(Note::take_back);
        }
        engine_status(error, produced)
    }
}

/// What the client hears of an engine's failure. UNAVAILABLE says that trying again is safe: nothing was produced.
pub(crate) fn engine_status(error: &EngineError, produced: bool) -> Status {
    match error {
        EngineError::UnknownModel { .. } => Status::not_found(error.to_string()),
        EngineError::PromptTooLong { .. } => {
            let mut status = Status::invalid_argument(error.to_string());
            status.metadata_mut().insert(REASON, MetadataValue::from_static(CONTEXT_LENGTH));
            status
        }
        EngineError::InvalidParameter(_) => Status::invalid_argument(error.to_string()),
        EngineError::Unsupported(_) => Status::failed_precondition(error.to_string()),
        EngineError::Failed(_) | EngineError::Hung { .. } if produced => {
            Status::internal(format!("{error}; the answer is incomplete"))
        }
        EngineError::Failed(_) | EngineError::Hung { .. } => {
            Status::unavailable(format!("{error}; nothing was produced, try again"))
        }
    }
}

fn message(piece: Piece, shape: Shape) -> StreamResponse {
    let Piece { text, tokens, reasoning, tool_calls, logprobs } = piece;
    let token_ids = if shape.token_ids { tokens.into() } else { Vec::new() };
    if shape.compact {
        return StreamResponse { content: text, token_ids, reasoning, tool_calls, logprobs, ..Default::default() };
    }
    StreamResponse {
        content: text.clone(),
        token: text,
        created_at: unix_ms(),
        token_ids,
        reasoning,
        tool_calls,
        logprobs,
        ..Default::default()
    }
}

fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.3}", duration.as_secs_f64() * 1e3)
}

/// When things happened. Takes every instant as an argument.
struct Clock {
    received_at: Instant,
    started_at: Instant,
    /// The first text, reasoning or call: tokens that show nothing yet do not count.
    first_seen: Option<Instant>,
}

#[derive(Debug, PartialEq)]
struct Timing {
    /// From the request to its place in the engine.
    queue: Duration,
    /// From the request to what was seen first, text, reasoning or a call, or to the end where there was nothing.
    ttft: Duration,
    /// Tokens after the first by the time after the first; 0 where there was only one.
    tokens_per_second: f64,
}

impl Clock {
    fn start(received_at: Instant, started_at: Instant) -> Self {
        Self { received_at, started_at, first_seen: None }
    }

    fn seen(&mut self, now: Instant) {
        self.first_seen.get_or_insert(now);
    }

    fn timing(&self, completion_tokens: u32, now: Instant) -> Timing {
        let first = self.first_seen.unwrap_or(now);
        let streaming = now.saturating_duration_since(first).as_secs_f64();
        let after_first = completion_tokens.saturating_sub(1);
        let tokens_per_second =
            if after_first > 0 && streaming > 0.0 { f64::from(after_first) / streaming } else { 0.0 };
        Timing {
            queue: self.started_at.saturating_duration_since(self.received_at),
            ttft: first.saturating_duration_since(self.received_at),
            tokens_per_second,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use futures_util::StreamExt as _;
    use parking_lot::Mutex;
    use titan_proto::v1::{TokenLogprob, ToolCallDelta};
    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        admission::Admission,
        engine::FinishReason,
        replay::{ReplayCache, Verdict},
    };

    type Sender = mpsc::Sender<Result<Event, EngineError>>;

    struct Fixture {
        admission: Admission,
        replay: Arc<Mutex<ReplayCache>>,
        abort: CancellationToken,
    }

    fn stream() -> (Fixture, Sender, ResponseStream) {
        let admission = Admission::new(1);
        let slot = admission.admit("job").unwrap();
        let (sender, tokens) = mpsc::channel(8);
        let replay = Arc::default();
        let (_, note) = Note::make(&replay, "token", "nonce".into(), 300, 0);
        let abort = CancellationToken::new();
        let stream = ResponseStream::new(tokens, slot, Instant::now(), note, abort.clone(), Shape::default());
        (Fixture { admission, replay, abort }, sender, stream)
    }

    impl Fixture {
        fn again(&self) -> Verdict {
            self.replay.lock().remember("token", "nonce", 300, 0)
        }
    }

    const USAGE: Usage =
        Usage { prompt_tokens: 7, cached_tokens: 0, completion_tokens: 2, finish_reason: FinishReason::Length };

    #[tokio::test]
    async fn texts_come_one_by_one_and_the_usage_comes_last() {
        let (fixture, sender, mut stream) = stream();
        for event in [Event::Piece("a".into()), Event::Piece("b".into()), Event::Done(USAGE)] {
            sender.try_send(Ok(event)).unwrap();
        }
        for text in ["a", "b"] {
            let message = stream.next().await.unwrap().unwrap();
            assert_eq!((message.content.as_str(), message.token.as_str(), message.done), (text, text, false));
            assert!(message.session_token.is_empty() && message.metadata.is_empty() && message.created_at > 0);
        }
        let last = stream.next().await.unwrap().unwrap();
        assert!(last.done && last.content.is_empty());
        assert_eq!(last.metadata["prompt_tokens"], "7");
        assert_eq!(last.metadata["completion_tokens"], "2");
        assert_eq!(last.metadata["finish_reason"], "length");
        assert!(!last.metadata.contains_key("prefilled"));
        for number in ["ttft_ms", "queue_ms", "tokens_per_second"] {
            assert!(last.metadata[number].parse::<f64>().unwrap() >= 0.0, "{number}");
        }
        assert_eq!(fixture.admission.load().running, 0, "the slot is free with the last message");
        assert!(fixture.admission.load().tokens_per_second.is_some());
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn reasoning_calls_and_probabilities_go_out_apart_from_the_text() {
        let (fixture, sender, mut stream) = stream();
        let call = ToolCallDelta { index: 0, id: "c".into(), name: "f".into(), arguments: "{".into() };
        let logprob = TokenLogprob { token_id: 7, token: b"a".to_vec(), logprob: -0.5, top: Vec::new() };
        for piece in [
            Piece { reasoning: "hm".into(), ..Piece::default() },
            Piece { tool_calls: vec![call.clone()], ..Piece::default() },
            Piece { logprobs: vec![logprob.clone()], .."a".into() },
        ] {
            sender.try_send(Ok(Event::Piece(piece))).unwrap();
        }
        let usage = Usage { finish_reason: FinishReason::ToolCalls, ..USAGE };
        sender.try_send(Ok(Event::Done(usage))).unwrap();
        let mut messages = Vec::new();
        while let Some(message) = stream.next().await {
            messages.push(message.unwrap());
        }
        assert_eq!((messages[0].reasoning.as_str(), messages[0].content.as_str()), ("hm", ""));
        assert_eq!((&messages[1].tool_calls, messages[1].content.as_str()), (&vec![call], ""));
        assert_eq!((&messages[2].logprobs, messages[2].content.as_str()), (&vec![logprob], "a"));
        assert_eq!(
            (messages[3].finish_reason.as_str(), messages[3].metadata["finish_reason"].as_str()),
            ("tool_calls", "tool_calls")
        );
        assert_eq!(fixture.again(), Verdict::Repeated);
    }

    #[tokio::test]
    async fn what_is_seen_first_ends_the_wait_for_the_first_token() {
        let seen = [
            Piece { reasoning: "hm".into(), ..Piece::default() },
            Piece { tool_calls: vec![ToolCallDelta::default()], ..Piece::default() },
            "a".into(),
        ];
        for piece in seen {
            let (_fixture, sender, mut stream) = stream();
            let hidden = Piece { tokens: [1].into_iter().collect(), ..Piece::default() };
            for (piece, is_seen) in [(hidden, false), (piece, true)] {
                sender.try_send(Ok(Event::Piece(piece))).unwrap();
                stream.next().await.unwrap().unwrap();
                assert_eq!(stream.generation.as_ref().unwrap().clock.first_seen.is_some(), is_seen);
            }
        }
    }

    #[tokio::test]
    async fn what_was_made_ahead_is_said_and_does_not_count_as_speed() {
        let (fixture, sender, stream) = stream();
        let mut stream = stream.prefilled(true);
        for event in [Event::Piece("a".into()), Event::Piece("b".into()), Event::Done(USAGE)] {
            sender.try_send(Ok(event)).unwrap();
        }
        let mut last = None;
        while let Some(message) = stream.next().await {
            last = Some(message.unwrap());
        }
        assert_eq!(last.unwrap().metadata["prefilled"], "true");
        assert_eq!(fixture.admission.load().tokens_per_second, None);
    }

    #[tokio::test]
    async fn dropping_the_answer_stops_the_generation_and_frees_the_slot() {
        let (fixture, sender, mut stream) = stream();
        sender.try_send(Ok(Event::Piece("a".into()))).unwrap();
        stream.next().await.unwrap().unwrap();
        drop(stream);
        assert!(sender.is_closed());
        assert_eq!(fixture.admission.load().running, 0);
        assert_eq!(fixture.again(), Verdict::Repeated, "it has run");
    }

    #[tokio::test]
    async fn a_failure_before_the_first_seen_may_be_tried_again() {
        let (fixture, sender, mut stream) = stream();
        sender.try_send(Err(EngineError::Failed("boom".into()))).unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap_err().code(), tonic::Code::Unavailable);
        assert!(stream.next().await.is_none());
        assert_eq!(fixture.again(), Verdict::Fresh);
    }

    #[tokio::test]
    async fn a_stream_that_just_ends_has_failed() {
        let (fixture, sender, mut stream) = stream();
        sender.try_send(Ok(Event::Piece("a".into()))).unwrap();
        drop(sender);
        stream.next().await.unwrap().unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap_err().code(), tonic::Code::Internal);
        assert_eq!(fixture.again(), Verdict::Repeated, "it has run");
        assert_eq!(fixture.admission.load().running, 0);
    }

    #[tokio::test]
    async fn an_abort_ends_a_waiting_answer() {
        let (fixture, _sender, mut stream) = stream();
        assert!(futures_util::poll!(stream.next()).is_pending());
        fixture.abort.cancel();
        assert_eq!(stream.next().await.unwrap().unwrap_err().code(), tonic::Code::Unavailable);
        assert_eq!(fixture.admission.load().running, 0);
    }

    #[test]
    fn the_speed_leaves_out_the_wait_for_the_first_token() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut clock = Clock::start(start, at(10));
        for ms in [500, 600, 700] {
            clock.seen(at(ms));
        }
        let timing = clock.timing(3, at(700));
        assert_eq!((timing.queue, timing.ttft), (Duration::from_millis(10), Duration::from_millis(500)));
        assert!((timing.tokens_per_second - 10.0).abs() < 1e-9);
        assert_eq!(Clock::start(start, start).timing(1, at(5)).tokens_per_second, 0.0, "one token has no speed");
    }

    #[test]
    fn engine_errors_say_whether_a_retry_helps() {
        let too_long = EngineError::PromptTooLong { model: "m".into(), prompt_tokens: 9, context_tokens: 8 };
        let unknown = EngineError::UnknownModel { model: "x".into(), available: vec!["m".into()] };
        let failed = EngineError::Failed("boom".into());
        for (error, produced, code) in [
            (&unknown, false, tonic::Code::NotFound),
            (&too_long, false, tonic::Code::InvalidArgument),
            (&EngineError::InvalidParameter("seed".into()), false, tonic::Code::InvalidArgument),
            (&EngineError::Unsupported("no tools".into()), false, tonic::Code::FailedPrecondition),
            (&EngineError::Unsupported("no tools".into()), true, tonic::Code::FailedPrecondition),
            (&EngineError::Hung { seconds: 60 }, false, tonic::Code::Unavailable),
            (&EngineError::Hung { seconds: 60 }, true, tonic::Code::Internal),
            (&failed, false, tonic::Code::Unavailable),
            (&failed, true, tonic::Code::Internal),
        ] {
            let status = engine_status(error, produced);
            assert_eq!(status.code(), code, "{error}");
            assert!(status.message().starts_with(&error.to_string()), "{status:?}");
            assert_eq!(status.message().contains("try again"), code == tonic::Code::Unavailable, "{status:?}");
        }
    }
}
