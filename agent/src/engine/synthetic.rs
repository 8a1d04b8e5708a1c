//! Tokens at a fixed rate, for transports and benchmarks. Chosen by its own name, never a fallback.
//!
//! A token's text begins with its index in eight digits, so that a lost, doubled or reordered one is seen: [`token_index`]. With
//! [`SyntheticEngine::timestamps`] it is a [`Stamp`] instead: index and moment of sending in twelve characters. With
//! [`SyntheticEngine::words`] it is a [`word`] of a book, for people to read.

mod words;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

pub use self::words::word;
use super::{Engine, EngineError, Event, FinishReason, Generate, GenerateFuture, Piece, TokenStream, Usage};

/// The name that [`SyntheticEngine::new`] serves.
pub const SYNTHETIC_MODEL: &str = "synthetic";

/// Generates `max_tokens` tokens at a fixed rate, whatever the prompt. A token's id is its index, and a continuation goes on at the
/// index after its last one.
#[derive(Clone, Debug)]
pub struct SyntheticEngine {
    models: Vec<String>,
    interval: Duration,
    prefill: Duration,
    says: Says,
}

/// What a token's text is.
#[derive(Clone, Copy, Debug)]
enum Says {
    Index,
    Stamp,
    Word,
}

impl Says {
    fn text(self, index: u32) -> String {
        match self {
            Self::Index => format!("{index:08} tok "),
            Self::Stamp => Stamp { index, sent_ns: now_ns() }.text(),
            Self::Word => word(index).to_owned(),
        }
    }
}

/// Events that wait for a slow reader. A reader further behind than this delays its own stream, which then catches up with the schedule.
const BUFFERED_EVENTS: usize = 64;

impl SyntheticEngine {
    /// Serves the model `synthetic`. A rate that is not a positive number means as fast as the reader takes them.
    pub fn new(tokens_per_second: f64) -> Self {
        let interval = Duration::try_from_secs_f64(1.0 / tokens_per_second).unwrap_or(Duration::ZERO);
        Self { models: vec![SYNTHETIC_MODEL.to_owned()], interval, prefill: Duration::ZERO, says: Says::Index }
    }

    /// Serves these names. Defaults to `synthetic` alone.
    pub fn models(mut self, models: Vec<String>) -> Self {
        self.models = models;
        self
    }

    /// Sets how long a prompt takes: the first token comes so much later. Defaults to no time at all.
    pub fn prefill(mut self, prefill: Duration) -> Self {
        self.prefill = prefill;
        self
    }

    /// Puts the moment of sending into each token. Defaults to false.
    pub fn timestamps(mut self, timestamps: bool) -> Self {
        self.says = if timestamps { Says::Stamp } else { Says::Index };
        self
    }

    /// Says the words of a book, [`word`] by word. Defaults to false.
    pub fn words(mut self, words: bool) -> Self {
        self.says = if words { Says::Word } else { Says::Index };
        self
    }

    fn start(&self, request: &Generate) -> Result<TokenStream, EngineError> {
        if !self.models.contains(&request.model) {
            return Err(EngineError::UnknownModel { model: request.model.clone(), available: self.models.clone() });
        }
        let (events, stream) = mpsc::channel(BUFFERED_EVENTS);
        let first = request.continuation.as_ref().map_or(0, |continuation| continuation.completion_tokens);
        let prompt_tokens =
            request.messages.iter().map(|message| message.content.split_whitespace().count()).sum::<usize>();
        let usage = Usage {
            prompt_tokens: u32::try_from(prompt_tokens).unwrap_or(u32::MAX),
            cached_tokens: 0,
            completion_tokens: first.saturating_add(request.sampling.max_tokens),
            finish_reason: FinishReason::Length,
        };
        tokio::spawn(run(self.clone(), first, usage, events));
        Ok(stream)
    }
}

impl Engine for SyntheticEngine {
    fn models(&self) -> Vec<String> {
        self.models.clone()
    }

    fn generate(&self, request: Generate) -> GenerateFuture<'_> {
        Box::pin(async move { self.start(&request) })
    }
}

/// The index in a token's text.
pub fn token_index(text: &str) -> Option<u32> {
    text.get(..8)?.parse().ok()
}

/// What a token of an engine with [`SyntheticEngine::timestamps`] says, in as many characters as a longer word has: 24 bits of index
/// and 48 bits of nanoseconds since 1970, in base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The token's index in its stream. The text holds its low 24 bits.
    pub index: u32,
    /// When it was sent, in nanoseconds since 1970. The text holds the low 48 bits: enough for three days.
    pub sent_ns: u64,
}

const STAMP_INDEX_BYTES: usize = 3;
const STAMP_TIME_BYTES: usize = 6;
const STAMP_TIME_MASK: u64 = (1 << (8 * STAMP_TIME_BYTES)) - 1;

impl Stamp {
    /// As a token's text.
    pub fn text(self) -> String {
        let mut bytes = [0; STAMP_INDEX_BYTES + STAMP_TIME_BYTES];
        bytes[..STAMP_INDEX_BYTES].copy_from_slice(&self.index.to_be_bytes()[4 - STAMP_INDEX_BYTES..]);
        bytes[STAMP_INDEX_BYTES..].copy_from_slice(&self.sent_ns.to_be_bytes()[8 - STAMP_TIME_BYTES..]);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a token's text at `now_ns`, by the clock of the machine that sent it. `None` for a text that is no stamp.
    pub fn read(text: &str, now_ns: u64) -> Option<Self> {
        let bytes =
            URL_SAFE_NO_PAD.decode(text).ok().filter(|bytes| bytes.len() == STAMP_INDEX_BYTES + STAMP_TIME_BYTES)?;
        let number = |bytes: &[u8]| bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte));
        let (index, sent) = bytes.split_at(STAMP_INDEX_BYTES);
        let age = now_ns.wrapping_sub(number(sent)) & STAMP_TIME_MASK;
        Some(Self { index: u32::try_from(number(index)).ok()?, sent_ns: now_ns.saturating_sub(age) })
    }
}

async fn run(engine: SyntheticEngine, first: u32, usage: Usage, events: mpsc::Sender<Result<Event, EngineError>>) {
    if !engine.prefill.is_zero() {
        tokio::select! {
            biased;
            () = events.closed() => return,
            () = sleep(engine.prefill) => {}
        }
    }
    tick(engine.interval, engine.says, first, usage, events).await;
}

async fn tick(
    interval: Duration,
    says: Says,
    first: u32,
    usage: Usage,
    events: mpsc::Sender<Result<Event, EngineError>>,
) {
    let start = Instant::now();
    for index in first..usage.completion_tokens {
        // Each moment is reckoned from the start: a late one does not shift those after it.
        if !interval.is_zero() {
            let due = start + interval.saturating_mul(index - first);
            tokio::select! {
                biased;
                () = events.closed() => return,
                () = sleep_until(due) => {}
            }
        }
        let piece = Piece { text: says.text(index), tokens: [index].into_iter().collect(), ..Piece::default() };
        if events.send(Ok(Event::Piece(piece))).await.is_err() {
            return;
        }
    }
    // A reader who went away needs no end.
    let _ = events.send(Ok(Event::Done(usage))).await;
}

/// Nanoseconds since 1970, by the clock that stamps are made with.
pub fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::engine::{Continuation, Sampling};

    fn request(max_tokens: u32) -> Generate {
        let sampling = Sampling { max_tokens, ..Sampling::greedy(1) };
        Generate::new(SYNTHETIC_MODEL, "one two three", sampling)
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_come_in_order_on_an_absolute_schedule() {
        let engine = SyntheticEngine::new(50.0);
        let start = Instant::now();
        let mut stream = engine.generate(request(100)).await.unwrap();
        for index in 0..100u32 {
            let Some(Ok(Event::Piece(Piece { text, tokens, .. }))) = stream.recv().await else { panic!("no text") };
            assert_eq!((token_index(&text), Vec::from(tokens)), (Some(index), vec![index]));
            assert_eq!(text.len(), 13);
            assert!(start.elapsed() >= Duration::from_millis(20) * index);
            // A reader that is late now and then does not shift what follows.
            if index % 10 == 0 {
                tokio::time::sleep(Duration::from_millis(35)).await;
            }
        }
        let Some(Ok(Event::Done(usage))) = stream.recv().await else { panic!("no end") };
        assert_eq!(
            usage,
            Usage { prompt_tokens: 3, cached_tokens: 0, completion_tokens: 100, finish_reason: FinishReason::Length }
        );
        assert_eq!(start.elapsed().as_millis(), 99 * 20);
        assert!(stream.recv().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_continuation_goes_on_at_the_next_index() {
        for (left, events) in [(2, 3), (0, 1)] {
            let continuation = Continuation {
                text: "…".to_owned(),
                tokens: (0..98).collect(),
                completion_tokens: 98,
                reasoning: String::new(),
                tool_calls: vec![],
            };
            let asked = Generate { continuation: Some(continuation), ..request(left) };
            let start = Instant::now();
            let mut stream = SyntheticEngine::new(1.0).generate(asked).await.unwrap();
            for index in 98..98 + left {
                let Some(Ok(Event::Piece(piece))) = stream.recv().await else { panic!("no text") };
                assert_eq!(token_index(&piece.text), Some(index));
            }
            let Some(Ok(Event::Done(usage))) = stream.recv().await else { panic!("not {events} events") };
            assert_eq!((usage.completion_tokens, usage.finish_reason), (98 + left, FinishReason::Length));
            assert_eq!(start.elapsed().as_secs(), u64::from(left.saturating_sub(1)), "the first one comes at once");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn dropping_the_stream_ends_the_generation() {
        let engine = SyntheticEngine::new(1.0);
        let stream = engine.generate(request(1_000_000)).await.unwrap();
        drop(stream);
        while tokio::runtime::Handle::current().metrics().num_alive_tasks() > 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn without_a_rate_it_is_as_fast_as_its_reader_and_loses_nothing() {
        let mut stream = SyntheticEngine::new(0.0).timestamps(true).generate(request(10_000)).await.unwrap();
        let before = now_ns();
        for index in 0..10_000 {
            let Some(Ok(Event::Piece(Piece { text, .. }))) = stream.recv().await else { panic!("no text") };
            let stamp = Stamp::read(&text, now_ns()).unwrap();
            assert_eq!((stamp.index, text.len()), (index, 12));
            assert!(stamp.sent_ns + 1_000_000_000 > before);
        }
    }

    #[tokio::test]
    async fn with_words_its_answer_is_the_book() {
        let mut stream = SyntheticEngine::new(0.0).words(true).generate(request(40)).await.unwrap();
        let mut text = String::new();
        while let Some(Ok(Event::Piece(word))) = stream.recv().await {
            text.push_str(&word.text);
        }
        assert_eq!(text, (0..40).map(word).collect::<String>());
    }

    #[test]
    fn a_stamp_is_read_as_it_was_written() {
        for (index, sent_ns) in [(0, 0), (1, 1 << 48), ((1 << 24) - 1, u64::MAX >> 1), (7, now_ns())] {
            let stamp = Stamp { index, sent_ns };
            assert_eq!(Stamp::read(&stamp.text(), sent_ns + 5_000_000_000), Some(stamp));
        }
        for wrong in ["", "00000001 tok ", "AAAA", "AAAAAAAAAAAAAAAA", "AAAAAAAAAA=="] {
            assert_eq!(Stamp::read(wrong, now_ns()), None, "{wrong:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_token_comes_after_the_prompt() {
        let engine = SyntheticEngine::new(50.0).prefill(Duration::from_millis(300));
        let start = Instant::now();
        let mut stream = engine.generate(request(2)).await.unwrap();
        for due in [300, 320] {
            assert!(matches!(stream.recv().await, Some(Ok(Event::Piece(_)))));
            assert_eq!(start.elapsed().as_millis(), due);
        }
    }

    #[tokio::test]
    async fn it_serves_its_own_names_only() {
        let engine = SyntheticEngine::new(1.0);
        let error = engine.generate(Generate { model: "smollm2".into(), ..request(1) }).await.unwrap_err();
        assert!(error.to_string().contains("synthetic"), "{error}");
    }
}
