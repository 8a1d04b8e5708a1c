//! One request, from a free place to its last event.

use std::sync::Arc;

use mistralrs::{CustomLogitsProcessor, Tensor};
use parking_lot::Mutex;
use rand::distr::{Alphanumeric, SampleString};
use titan_proto::digest::prefixes;
use tokio::sync::{mpsc, oneshot};

use super::{
    super::{Continuation, EngineError, Generate, TokenStream, ToolChoice},
    engines::LoadedEngine,
    generation::{Generation, Next, Wanted},
    guide::Guide,
    load::Loaded,
    pool::Place,
    quiet::one_line,
    reading::{Held, PromptReader},
    request::{self, Outcome, only},
    sampler::Sampler,
    template::TemplateError,
    tool_calls::AnswerParser,
    vocabulary::Vocabulary,
};

/// A request that is ready for a place: what the model reads, and what becomes of its answer.
pub(super) struct Prepared {
    pub(super) owner: String,
    /// Of the conversation's beginnings: PROTOCOL.md §19.
    digests: Vec<u64>,
    /// The conversation as tokens, and the beginning of the answer where that is read.
    pub(super) tokens: Vec<u32>,
    /// The beginning of the answer where it is generated again.
    replayed: Vec<u32>,
    max_tokens: usize,
    generation: Generation,
    events: mpsc::Sender<Result<super::super::Event, EngineError>>,
    stream: TokenStream,
}

/// Room in the events' channel beyond one a token: the end, and an error.
const EVENT_SLACK: usize = 4;

/// Renders, tokenises and checks a request. Long prompts take a while: not for a thread that others wait for.
pub(super) fn prepare(model: &Loaded, asked: &Generate) -> Result<Prepared, EngineError> {
    let vocabulary = &model.vocabulary;
    let template = &model.template;
    let unusable = |error: super::vocabulary::VocabularyError| EngineError::Failed(error.to_string());
    let prompt = template
        .render(&asked.messages, &asked.tools, &asked.reasoning, &|text| model.escape.apply(text))
        .map_err(|error| match error {
            TemplateError::Refused(_) => EngineError::InvalidParameter(error.to_string()),
            TemplateError::Broken(_) | TemplateError::Unsupported(_) => EngineError::Unsupported(error.to_string()),
        })?;
    let mut tokens = vocabulary.encode(&prompt).map_err(unusable)?;
    let prompt_tokens = tokens.len();
    let begun = match &asked.continuation {
        Some(continuation) => begun_tokens(vocabulary, continuation, &prompt)?,
        None => Vec::new(),
    };
    // An answer that the same request gives again is replayed, token by token as it was generated, so that the numbers that the model computes are the
    // same. Any other is read as the prompt is: at once, and rounded differently.
    let replay = Sampler::is_deterministic(&asked.sampling);
    if !replay {
        tokens.extend(&begun);
    }
    let room = room(tokens.len(), model.context_tokens).ok_or_else(|| EngineError::PromptTooLong {
        model: asked.model.clone(),
        prompt_tokens: tokens.len(),
        context_tokens: model.context_tokens,
    })?;
    let replayed = if replay { begun.clone() } else { Vec::new() };
    let wanted_tokens = usize::try_from(asked.sampling.max_tokens).unwrap_or(usize::MAX);
    let max_tokens = wanted_tokens.min(room.saturating_sub(replayed.len()));
    let (events, stream) = mpsc::channel(max_tokens + EVENT_SLACK);
    let thinking = prompt.trim_end().ends_with("<think>");
    let calls = match (&asked.tool_choice, asked.tools.is_empty()) {
        (ToolChoice::None, _) | (_, true) => None,
        _ => template.calls(),
    };
    let guided = calls.map(|format| (format, asked.tools.as_slice(), &asked.tool_choice));
    let guide = Guide::new(vocabulary.clone(), asked.constraint.as_ref(), guided, thinking)?;
    let parser = AnswerParser::new(calls, thinking, call_ids(asked.continuation.as_ref()));
    let wanted = Wanted {
        prompt_tokens,
        cached_tokens: 0,
        max_tokens,
        logprobs: asked.logprobs,
        stop: asked.sampling.stop.clone(),
    };
    let sampler = Sampler::new(&asked.sampling, rand::random());
    let mut generation = Generation::new(vocabulary.clone(), sampler, guide, parser, wanted, events.clone());
    if let Some(continuation) = &asked.continuation {
        generation.begin(&begun, continuation)?;
    }
    let digests = prefixes(&asked.owner, &asked.model, &asked.tools, &asked.messages);
    Ok(Prepared { owner: asked.owner.clone(), digests, tokens, replayed, max_tokens, generation, events, stream })
}

impl Prepared {
    /// Everything was there already.
    pub(super) fn into_finished(self) -> Result<TokenStream, Box<Self>> {
        if !self.generation.is_over() {
            return Err(Box::new(self));
        }
        let Self { mut generation, stream, .. } = self;
        generation.send_end();
        Ok(stream)
    }
}

/// The tokens of a continuation, up to where the answer goes on.
fn begun_tokens(vocabulary: &Vocabulary, continuation: &Continuation, prompt: &str) -> Result<Vec<u32>, EngineError> {
    if !continuation.tokens.is_empty() {
        let tokens = continuation.tokens.iter().copied();
        return Ok(tokens.take_while(|token| !vocabulary.is_end(*token)).collect());
    }
    if !continuation.tool_calls.is_empty() {
        let what = "a continuation with tool calls needs its token_ids: what their text was is not known";
        return Err(EngineError::InvalidParameter(what.to_owned()));
    }
    let mut text = String::new();
    if !continuation.reasoning.is_empty() {
        if !prompt.trim_end().ends_with("<think>") {
            text.push_str("<think>");
        }
        text.push_str(&continuation.reasoning);
        if !continuation.text.is_empty() {
            text.push_str("</think>");
        }
    }
    text.push_str(&continuation.text);
    vocabulary.encode_answer(&text).map_err(|error| EngineError::Failed(error.to_string()))
}

/// Nine letters and digits: some templates take no other ids of calls. What a reader has got keeps its own.
fn call_ids(continuation: Option<&Continuation>) -> Box<dyn Fn(u32) -> String + Send> {
    let known: Vec<String> = continuation
        .map(|continuation| continuation.tool_calls.iter().map(|call| call.id.clone()).collect())
        .unwrap_or_default();
    Box::new(move |index| match known.get(index as usize) {
        Some(id) => id.clone(),
        None => Alphanumeric.sample_string(&mut rand::rng(), 9),
    })
}

/// Tokens that may be generated after a prompt; `None` where there is no room for one.
fn room(prompt_tokens: usize, context_tokens: usize) -> Option<usize> {
    context_tokens.checked_sub(prompt_tokens).filter(|room| *room > 0)
}

/// Runs in its own task: a caller who goes away must not take a half-asked engine with him.
pub(super) async fn run(
    model: Arc<Loaded>,
    engine: Arc<LoadedEngine>,
    place: Place,
    prepared: Prepared,
    started: oneshot::Sender<Result<TokenStream, EngineError>>,
) {
    let Prepared { owner, digests, tokens, replayed, max_tokens, mut generation, events, stream } = prepared;
    place.set_events(&events);
    if started.send(Ok(stream)).is_err() {
        return;
    }
    if let Some(budget) = model.cache_tokens {
        let reader = PromptReader {
            model: &engine.model,
            held: &engine.held,
            vocabulary: &model.vocabulary,
            speed: &model.reading_speed,
            budget,
        };
        match reader.read(&owner, &tokens, || events.is_closed()).await {
            Ok(known) => generation.set_cached_tokens(known),
            Err(outcome) => return generation.fail(failure(outcome)),
        }
        if events.is_closed() {
            return;
        }
    }
    let stop = if model.cache_tokens.is_some() { model.vocabulary.sentinels() } else { &[] };
    let steps = replayed.len() + max_tokens;
    let chooser = Arc::new(Chooser {
        state: Mutex::new(Choosing { generation, replayed, given: Vec::new(), over: false }),
        model: model.clone(),
        held: engine.held.clone(),
        place,
        owner,
        digests,
        prompt: tokens.clone(),
    });
    let outcome = match request::begin(&engine.model, tokens, steps, stop, chooser.clone()).await {
        Ok(sequence) => {
            // The engine holds the chooser, and the place with it, as long as the sequence.
            let state = Arc::downgrade(&chooser);
            drop(chooser);
            let outcome = sequence.finish().await;
            // Where the engine has let go of it already, the chooser has said itself that its answer is not whole.
            if let (true, Some(chooser)) = (outcome != Outcome::Finished, state.upgrade()) {
                chooser.fail(&outcome);
            }
            return;
        }
        Err(outcome) => outcome,
    };
    chooser.fail(&outcome);
}

fn failure(outcome: Outcome) -> EngineError {
    let reason = match outcome {
        Outcome::Failed(reason) => reason,
        Outcome::Crashed => "it crashed; a new request may succeed".to_owned(),
        Outcome::Finished => "it stopped without saying why".to_owned(),
    };
    titan_transport::seldom!(error, reason, "the engine failed");
    // A GPU's errors come with a backtrace in them, which is for the log.
    EngineError::Failed(one_line(&reason))
}

/// Chooses every token in mistral.rs' place, and owns the place of the sequence.
struct Chooser {
    state: Mutex<Choosing>,
    model: Arc<Loaded>,
    /// Of the engine that the sequence is in. The engine itself is not held: its own thread would be the last to drop it.
    held: Arc<Mutex<Held>>,
    place: Place,
    owner: String,
    digests: Vec<u64>,
    prompt: Vec<u32>,
}

struct Choosing {
    generation: Generation,
    replayed: Vec<u32>,
    /// Tokens that mistral.rs computes after the prompt.
    given: Vec<u32>,
    over: bool,
}

impl Chooser {
    fn fail(&self, outcome: &Outcome) {
        self.held.lock().clear();
        let mut state = self.state.lock();
        state.over = true;
        state.generation.fail(failure(outcome.clone()));
    }
}

impl CustomLogitsProcessor for Chooser {
    fn apply(&self, logits: &Tensor, _context: &[u32]) -> mistralrs::Result<Tensor> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let next = match state.replayed.get(state.given.len()) {
            Some(_) if state.generation.is_over() => Next::End,
            Some(token) => Next::Token(*token),
            None => state.generation.next(&mut logits.to_vec1::<f32>()?),
        };
        match next {
            Next::Token(token) => {
                state.given.push(token);
                only(token, logits)
            }
            Next::End => {
                let vocabulary = &self.model.vocabulary;
                if !std::mem::replace(&mut state.over, true) && self.model.cache_tokens.is_some() {
                    self.place.finishes();
                    let computed = [self.prompt.as_slice(), &state.given].concat();
                    let mut held = self.held.lock();
                    held.add(&self.owner, computed);
                    held.set_digests(&self.digests);
                }
                state.generation.send_end();
                // The last token is never computed: it is not the one that comes there when the conversation goes on.
                only(vocabulary.last_token(self.model.cache_tokens.is_some()), logits)
            }
        }
    }
}

impl Drop for Chooser {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        if !state.over {
            // The engine crashed, and what it held is gone; or it ended the sequence by itself.
            state.generation.fail(failure(Outcome::Finished));
            self.held.lock().clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::room;

    #[test]
    fn the_context_holds_prompt_and_answer() {
        assert_eq!(room(0, 8192), Some(8192));
        assert_eq!(room(8000, 8192), Some(192));
        assert_eq!(room(8191, 8192), Some(1));
        assert_eq!(room(8192, 8192), None);
        assert_eq!(room(9000, 8192), None);
    }
}
