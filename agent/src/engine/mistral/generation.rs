//! One answer as it is made, token by token: a state machine on the engine's thread, without I/O but the channel to its reader.
//!
//! It chooses each token, turns tokens into text, tells text, reasoning and calls of functions apart, and knows when the answer ends. What
//! mistral.rs says about the sequence is not used: it hides texts that readers need, counts differently, and shows stop texts before it stops.

use std::sync::Arc;

use titan_proto::v1::{TokenLogprob, ToolCall, TopLogprob};
use tokio::sync::mpsc;

use super::{
    super::{Continuation, EngineError, Event, FinishReason, Piece, Usage, stop::StopFilter},
    guide::Guide,
    sampler::Sampler,
    tool_calls::{AnswerParser, Part},
    vocabulary::{TextStream, Vocabulary},
};

/// What is asked of a generation.
pub(super) struct Wanted {
    pub(super) prompt_tokens: usize,
    /// Of these, the engine had computed before.
    pub(super) cached_tokens: usize,
    /// Tokens that may come, those of a continuation not counted.
    pub(super) max_tokens: usize,
    pub(super) logprobs: Option<u32>,
    pub(super) stop: Vec<String>,
}

/// An answer in the making.
pub(super) struct Generation {
    vocabulary: Arc<Vocabulary>,
    sampler: Sampler,
    guide: Guide,
    parser: AnswerParser,
    text: TextStream,
    stop: StopFilter,
    wanted: Wanted,
    /// The answer's tokens, those of its continuation first.
    tokens: Vec<u32>,
    /// Of these, so many came with the continuation.
    begun: usize,
    delivered: Delivered,
    piece: Piece,
    piece_tokens: Vec<u32>,
    events: mpsc::Sender<Result<Event, EngineError>>,
    ended: bool,
}

/// What the engine does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Token(u32),
    End,
}

impl Generation {
    #[allow(clippy::too_many_arguments, reason = "each is a part with its own tests, put together in one place")]
    pub(super) fn new(
        vocabulary: Arc<Vocabulary>,
        sampler: Sampler,
        guide: Guide,
        parser: AnswerParser,
        wanted: Wanted,
        events: mpsc::Sender<Result<Event, EngineError>>,
    ) -> Self {
        Self {
            text: TextStream::new(vocabulary.clone()),
            stop: StopFilter::new(&wanted.stop),
            vocabulary,
            sampler,
            guide,
            parser,
            wanted,
            tokens: Vec::new(),
            begun: 0,
            delivered: Delivered::default(),
            piece: Piece::default(),
            piece_tokens: Vec::new(),
            events,
            ended: false,
        }
    }

    /// Goes on behind these tokens, of which the reader has got what `continuation` says. What they say beyond that is sent.
    pub(super) fn begin(&mut self, tokens: &[u32], continuation: &Continuation) -> Result<(), EngineError> {
        self.delivered = Delivered::new(continuation);
        for token in tokens {
            self.tokens.push(*token);
            self.begun += 1;
            self.say(*token)?;
            if self.ended {
                break;
            }
        }
        if self.delivered.is_behind() {
            return Err(other_text());
        }
        if !self.ended && self.wanted.max_tokens == 0 {
            self.finish(FinishReason::Length)?;
        }
        self.send_piece();
        Ok(())
    }

    /// Nothing is left to be generated, or nobody is there to read it.
    pub(super) fn is_over(&self) -> bool {
        self.ended || self.events.is_closed()
    }

    pub(super) fn set_cached_tokens(&mut self, tokens: usize) {
        self.wanted.cached_tokens = tokens;
    }

    /// Chooses the next token out of these logits.
    pub(super) fn next(&mut self, logits: &mut [f32]) -> Next {
        if self.is_over() {
            return Next::End;
        }
        match self.choose(logits) {
            Ok(next) => next,
            Err(error) => {
                self.fail(error);
                Next::End
            }
        }
    }

    /// The answer cannot be finished.
    pub(super) fn fail(&mut self, error: EngineError) {
        if !std::mem::replace(&mut self.ended, true) {
            // Fails only where nobody reads any more.
            let _ = self.events.try_send(Err(error));
        }
    }

    fn choose(&mut self, logits: &mut [f32]) -> Result<Next, EngineError> {
        // A model may have more logits than its tokenizer has tokens.
        for logit in logits.iter_mut().skip(self.vocabulary.len()) {
            *logit = f32::NEG_INFINITY;
        }
        let likely = self.wanted.logprobs.map(|alternatives| Likelihoods::of(logits, alternatives));
        self.guide.mask(logits)?;
        let broken = || EngineError::Failed("the model computed no numbers".to_owned());
        let token = self.sampler.next(logits, &self.tokens).ok_or_else(broken)?;
        self.tokens.push(token);
        if self.vocabulary.is_end(token) {
            self.finish(FinishReason::Stop)?;
            return Ok(Next::End);
        }
        self.piece_tokens.push(token);
        if let Some(likely) = likely {
            self.piece.logprobs.push(likely.entry(token, &self.vocabulary));
        }
        self.say(token)?;
        if !self.ended && self.tokens.len() - self.begun >= self.wanted.max_tokens {
            self.finish(FinishReason::Length)?;
        }
        self.send_piece();
        Ok(if self.ended { Next::End } else { Next::Token(token) })
    }

    fn say(&mut self, token: u32) -> Result<(), EngineError> {
        self.guide.accept(token)?;
        let text = self.text.push(token);
        let (was_in_call, was_thinking) = (self.parser.in_call(), self.parser.in_reasoning());
        let parts = self.parser.push(&text);
        self.put(parts)?;
        if self.ended {
            return Ok(());
        }
        if self.parser.in_call() && !was_in_call {
            self.guide.call_begins()?;
        }
        if was_thinking && !self.parser.in_reasoning() {
            self.guide.reasoning_ends();
        }
        if self.guide.is_complete() {
            self.finish(FinishReason::Stop)?;
        }
        Ok(())
    }

    /// Parts of the answer, on their way to the reader.
    fn put(&mut self, parts: Vec<Part>) -> Result<(), EngineError> {
        for part in parts {
            match part {
                Part::Text(text) => {
                    let filtered = self.stop.push(&text);
                    self.piece.text.push_str(&self.delivered.text(&filtered.text)?);
                    if filtered.stopped {
                        self.done(FinishReason::Stop);
                        return Ok(());
                    }
                }
                Part::Reasoning(text) => self.piece.reasoning.push_str(&self.delivered.reasoning(&text)?),
                Part::Call(delta) => {
                    let known = self.delivered.call(delta.index, &delta.arguments)?;
                    match known {
                        // The reader has its name, and so much of its arguments.
                        Some(arguments) if arguments.is_empty() => {}
                        Some(arguments) => self.piece.tool_calls.push(titan_proto::v1::ToolCallDelta {
                            index: delta.index,
                            arguments,
                            ..Default::default()
                        }),
                        None => self.piece.tool_calls.push(delta),
                    }
                }
            }
        }
        Ok(())
    }

    /// The end, with what was held back.
    fn finish(&mut self, reason: FinishReason) -> Result<(), EngineError> {
        let parts = self.parser.finish();
        self.put(parts)?;
        if !self.ended {
            let rest = std::mem::replace(&mut self.stop, StopFilter::new(&[])).finish();
            self.piece.text.push_str(&self.delivered.text(&rest)?);
            self.done(reason);
        }
        Ok(())
    }

    fn done(&mut self, reason: FinishReason) {
        self.send_piece();
        let finish_reason = match reason {
            FinishReason::Stop if self.parser.calls() > 0 => FinishReason::ToolCalls,
            reason => reason,
        };
        let usage = Usage {
            prompt_tokens: count(self.wanted.prompt_tokens),
            cached_tokens: count(self.wanted.cached_tokens),
            completion_tokens: count(self.tokens.len()),
            finish_reason,
        };
        self.ended = true;
        let _ = self.events.try_send(Ok(Event::Done(usage)));
    }

    fn send_piece(&mut self) {
        let piece = &self.piece;
        if piece.text.is_empty()
            && piece.reasoning.is_empty()
            && piece.tool_calls.is_empty()
            && piece.logprobs.is_empty()
        {
            return;
        }
        let mut piece = std::mem::take(&mut self.piece);
        piece.tokens = self.piece_tokens.drain(..).collect();
        // The channel has room for every token; it is closed where nobody reads any more.
        let _ = self.events.try_send(Ok(Event::Piece(piece)));
    }
}

/// What the reader of a continued answer has got, and has not been generated again yet.
#[derive(Default)]
struct Delivered {
    text: String,
    reasoning: String,
    calls: Vec<ToolCall>,
}

impl Delivered {
    fn new(continuation: &Continuation) -> Self {
        Self {
            text: continuation.text.clone(),
            reasoning: continuation.reasoning.clone(),
            calls: continuation.tool_calls.clone(),
        }
    }

    fn text(&mut self, text: &str) -> Result<String, EngineError> {
        beyond(&mut self.text, text)
    }

    fn reasoning(&mut self, text: &str) -> Result<String, EngineError> {
        beyond(&mut self.reasoning, text)
    }

    /// What is new of a call's arguments; `None` where the whole call is.
    fn call(&mut self, index: u32, arguments: &str) -> Result<Option<String>, EngineError> {
        match self.calls.get_mut(index as usize) {
            Some(call) => beyond(&mut call.arguments, arguments).map(Some),
            None => Ok(None),
        }
    }

    fn is_behind(&self) -> bool {
        !self.text.is_empty() || !self.reasoning.is_empty() || self.calls.iter().any(|call| !call.arguments.is_empty())
    }
}

/// What of `text` the reader has not got.
fn beyond(known: &mut String, text: &str) -> Result<String, EngineError> {
    let common = text.len().min(known.len());
    match text.get(..common).filter(|common| known.starts_with(common)) {
        Some(_) => {
            known.drain(..common);
            Ok(text[common..].to_owned())
        }
        None => Err(other_text()),
    }
}

pub(super) fn other_text() -> EngineError {
    let what = "the continuation's text is not what its tokens say: the answer cannot be continued";
    EngineError::InvalidParameter(what.to_owned())
}

pub(super) fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

/// The likeliest tokens and how likely each token is, before anything changes the logits.
struct Likelihoods {
    logits: Vec<f32>,
    /// Logarithm of the sum of all.
    total: f64,
    best: Vec<u32>,
}

impl Likelihoods {
    fn of(logits: &[f32], alternatives: u32) -> Self {
        let numbers = || logits.iter().copied().filter(|logit| !logit.is_nan());
        let largest = f64::from(numbers().fold(f32::NEG_INFINITY, f32::max));
        let total = largest + numbers().map(|logit| (f64::from(logit) - largest).exp()).sum::<f64>().ln();
        let mut best: Vec<u32> =
            (0u32..).zip(logits).filter(|(_, logit)| !logit.is_nan()).map(|(token, _)| token).collect();
        let likelier = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        let wanted = usize::try_from(alternatives).unwrap_or(usize::MAX).min(best.len());
        if wanted > 0 && wanted < best.len() {
            best.select_nth_unstable_by(wanted - 1, likelier);
        }
        best.truncate(wanted);
        best.sort_unstable_by(likelier);
        Self { logits: logits.to_vec(), total, best }
    }

    fn logprob(&self, token: u32) -> f32 {
        self.logits.get(token as usize).map_or(f32::NEG_INFINITY, |logit| (f64::from(*logit) - self.total) as f32)
    }

    fn entry(&self, token: u32, vocabulary: &Vocabulary) -> TokenLogprob {
        let bytes = |token: u32| vocabulary.bytes(token).to_vec();
        let top = |token: &u32| TopLogprob { token_id: *token, token: bytes(*token), logprob: self.logprob(*token) };
        TokenLogprob {
            token_id: token,
            token: bytes(token),
            logprob: self.logprob(token),
            top: self.best.iter().map(top).collect(),
        }
    }
}
