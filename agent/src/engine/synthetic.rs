//! Tokens at a fixed rate, for transports and benchmarks. Chosen by its own name, never a fallback.
//!
//! A token's text begins with its index in eight digits, so that a lost, doubled or reordered one is seen: [`token_index`]. With
//! [`SyntheticEngine::timestamps`] it is a [`Stamp`] instead: index and moment of sending in twelve characters. With
//! [`SyntheticEngine::words`] it is a [`word`] of a book, for people to read.
//!
//! A conversation changes nothing of what is said, but where it is said: [`REASONING_TOKENS`] tokens are reasoning where the request switches
//! that on, and the others are the arguments of a call where it demands one, `{"said":"…"}`. Each token is certain, so its log probability is 0.

mod answer;
mod stamp;
mod words;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use titan_proto::v1::ModelInfo;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use self::answer::{Answer, Says};
pub use self::{
    answer::REASONING_TOKENS,
    stamp::{Stamp, now_ns},
    words::word,
};
use super::{
    Engine, EngineError, Event, FinishReason, Generate, GenerateFuture, Piece, TokenStream, Usage, stop::StopFilter,
};

/// The name that [`SyntheticEngine::new`] serves.
pub const SYNTHETIC_MODEL: &str = "synthetic";

/// Generates `max_tokens` tokens at a fixed rate, whatever the prompt, or fewer where a stop text is among them. A token's id is its index,
/// and a continuation goes on at the index after its last one.
#[derive(Clone, Debug)]
pub struct SyntheticEngine {
    models: Vec<String>,
    interval: Duration,
    prefill: Duration,
    says: Says,
    /// Generations that run.
    computing: Arc<AtomicUsize>,
}

/// Events that wait for a slow reader. A reader further behind than this delays its own stream, which then catches up with the schedule.
const BUFFERED_EVENTS: usize = 64;

impl SyntheticEngine {
    /// Serves the model `synthetic`. A rate that is not a positive number means as fast as the reader takes them.
    pub fn new(tokens_per_second: f64) -> Self {
        let interval = Duration::try_from_secs_f64(1.0 / tokens_per_second).unwrap_or(Duration::ZERO);
        Self {
            models: vec![SYNTHETIC_MODEL.to_owned()],
            interval,
            prefill: Duration::ZERO,
            says: Says::Index,
            computing: Arc::default(),
        }
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
        let (answer, begun) = Answer::new(self.says, request)?;
        let words = request.messages.iter().map(|message| message.content.split_whitespace().count()).sum::<usize>();
        let (events, stream) = mpsc::channel(BUFFERED_EVENTS);
        let generation = Generation {
            interval: self.interval,
            answer,
            missing: begun.missing,
            stops: begun.stops,
            stopped: begun.stopped,
            prompt_tokens: u32::try_from(words).unwrap_or(u32::MAX),
            events,
            held: Piece::default(),
            _computing: Computing::new(&self.computing),
        };
        tokio::spawn(generation.run(self.prefill));
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

    fn model_info(&self) -> Vec<ModelInfo> {
        // Whatever the rate: what is said alone decides who can go on with an answer.
        let digest = digest(&SHA256, format!("titan synthetic engine: {:?}", self.says).as_bytes());
        let digest: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let info = |name: &String| ModelInfo {
            name: name.clone(),
            engine: "synthetic".to_owned(),
            source: format!("{:?}", self.says).to_lowercase(),
            digest: digest.clone(),
            tools: true,
            reasoning: true,
            continuation: "tokens".to_owned(),
            ..ModelInfo::default()
        };
        self.models.iter().map(info).collect()
    }

    fn computing(&self) -> usize {
        self.computing.load(Relaxed)
    }
}

/// The index in a token's text.
pub fn token_index(text: &str) -> Option<u32> {
    text.get(..8)?.parse().ok()
}

/// Counts a generation while it runs.
struct Computing(Arc<AtomicUsize>);

impl Computing {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Computing {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

struct Generation {
    interval: Duration,
    answer: Answer,
    /// What the continuation's tokens say beyond its text.
    missing: String,
    /// `None` without stop texts.
    stops: Option<StopFilter>,
    /// A stop text ended with the continuation's last token.
    stopped: bool,
    prompt_tokens: u32,
    events: mpsc::Sender<Result<Event, EngineError>>,
    /// Tokens whose text may be the beginning of a stop text.
    held: Piece,
    _computing: Computing,
}

/// Nobody reads any more.
struct Left;

impl Generation {
    async fn run(mut self, prefill: Duration) {
        if !prefill.is_zero() {
            tokio::select! {
                biased;
                () = self.events.closed() => return,
                () = sleep(prefill) => {}
            }
        }
        // A reader who went away needs no end.
        if let Ok(usage) = self.tokens().await {
            let _ = self.events.send(Ok(Event::Done(usage))).await;
        }
    }

    async fn tokens(&mut self) -> Result<Usage, Left> {
        let start = Instant::now();
        let first = self.answer.begun;
        let missing = std::mem::take(&mut self.missing);
        self.give(Piece::from(missing)).await?;
        if self.stopped {
            return Ok(self.usage(first, FinishReason::Stop));
        }
        for index in first..self.answer.total {
            // Each moment is reckoned from the start: a late one does not shift those after it.
            if !self.interval.is_zero() {
                let due = start + self.interval.saturating_mul(index - first);
                tokio::select! {
                    biased;
                    () = self.events.closed() => return Err(Left),
                    () = sleep_until(due) => {}
                }
            }
            let mut piece = self.answer.token(index);
            let mut stopped = false;
            if let Some(stops) = self.stops.as_mut().filter(|_| !piece.text.is_empty()) {
                let filtered = stops.push(&piece.text);
                (piece.text, stopped) = (filtered.text, filtered.stopped);
            }
            self.give(piece).await?;
            if stopped {
                self.flush().await?;
                return Ok(self.usage(index + 1, FinishReason::Stop));
            }
        }
        let rest = self.stops.take().map(StopFilter::finish).unwrap_or_default();
        self.give(Piece::from(rest)).await?;
        self.flush().await?;
        Ok(self.usage(self.answer.total, self.answer.finish_reason()))
    }

    /// Sends a piece with the tokens held back before it, or holds it back where it shows nothing.
    async fn give(&mut self, mut piece: Piece) -> Result<(), Left> {
        if !piece.is_seen() || self.held != Piece::default() {
            let held = std::mem::take(&mut self.held);
            let ids: Vec<u32> = held.tokens.into();
            piece.tokens = ids.into_iter().chain(Vec::from(piece.tokens)).collect();
            piece.logprobs = held.logprobs.into_iter().chain(piece.logprobs).collect();
        }
        if piece.is_seen() {
            return self.send(piece).await;
        }
        self.held = piece;
        Ok(())
    }

    /// Sends tokens that are still held back.
    async fn flush(&mut self) -> Result<(), Left> {
        let held = std::mem::take(&mut self.held);
        if held == Piece::default() { Ok(()) } else { self.send(held).await }
    }

    async fn send(&self, piece: Piece) -> Result<(), Left> {
        self.events.send(Ok(Event::Piece(piece))).await.map_err(|_| Left)
    }

    fn usage(&self, completion_tokens: u32, finish_reason: FinishReason) -> Usage {
        Usage { prompt_tokens: self.prompt_tokens, cached_tokens: 0, completion_tokens, finish_reason }
    }
}

#[cfg(test)]
mod tests;
