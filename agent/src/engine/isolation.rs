//! The isolation test: prompts at temperature 0 give the same texts at the same time as alone.
//!
//! Sequences that share an engine have corrupted each other in mistral.rs (see [`super::mistral`]), and whether a driver, a device or a new
//! version does it again can only be tried. `--self-test` runs this at start-up.
//!
//! A GPU computes several sequences in another order than one, so its numbers differ in their last digits, and of two tokens that are almost
//! equally likely the other one may win. That is rounding, and tokens with their probabilities tell it from the words of another prompt: after a tie
//! the prompt is asked alone again, from the token on that won.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use titan_proto::v1::TokenLogprob;

use super::{Continuation, Engine, EngineError, Event, Generate, Sampling};

/// What the isolation test did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IsolationReport {
    /// The model.
    pub model: String,
    /// The texts, one a prompt.
    pub texts: Vec<String>,
    /// How often two tokens were so nearly equally likely that rounding chose between them.
    pub ties: usize,
    /// Time for all of it.
    pub elapsed: Duration,
}

/// Why the isolation test failed.
#[derive(Debug, thiserror::Error)]
pub enum IsolationError {
    /// A text changed when others were generated beside it: the engine must not be used with more than one sequence.
    #[error(
        "isolation test of {model}: {prompt:?} alone gives {alone:?}, and beside others {together:?}, which is more than rounding. Requests corrupt each other on this machine: run one at a time (MAX_CONCURRENT_JOBS=1)"
    )]
    CrossTalk {
        /// The model.
        model: String,
        /// The prompt.
        prompt: String,
        /// Its text alone.
        alone: String,
        /// Its text beside the others.
        together: String,
    },
    /// The same prompt gave another text the second time.
    #[error(
        "isolation test of {model}: the same prompt gives {first:?}, and asked again {second:?}, which is more than rounding: the engine's cache is not to be trusted on this machine"
    )]
    Forgets {
        /// The model.
        model: String,
        /// Its text.
        first: String,
        /// Its text the second time.
        second: String,
    },
    /// A generation failed.
    #[error("isolation test: {0}")]
    Engine(#[from] EngineError),
}

/// Tokens of each text. The cross-talk that was seen began with the first.
const TOKENS: u32 = 12;
/// Tokens of a long text. A GPU keeps conversations in pages of 32 tokens: with the prefix cache of mistral.rs 0.8.1, which counts them wrongly, answers of an H100
/// broke at the fifth page, and only where their prompt began like an earlier one.
const LONG_TOKENS: u32 = 192;
/// Alternatives that are looked at where a token differs.
const ALTERNATIVES: u32 = 5;
/// Two tokens are tied if their log probabilities differ by less. A bf16 logit between 16 and 32 is rounded to an eighth, and a few of these add up; the words of
/// another prompt are several units less likely than a prompt's own.
const TIE_NATS: f32 = 0.5;

/// Different subjects and lengths, so that a word out of place is seen.
const PROMPTS: [&str; 4] = [
    "Name three fruits.",
    "What is the capital of France? Answer in one short sentence.",
    "Write the numbers from one to ten.",
    "Why is the sky blue? Explain it to a child who has never asked that before.",
];

/// Two prompts.
pub async fn isolation_test(engine: &dyn Engine, model: &str) -> Result<IsolationReport, IsolationError> {
    isolation_test_of(engine, model, &PROMPTS[..2]).await
}

/// Four prompts.
pub async fn isolation_test_of_four(engine: &dyn Engine, model: &str) -> Result<IsolationReport, IsolationError> {
    isolation_test_of(engine, model, &PROMPTS).await
}

async fn isolation_test_of(
    engine: &dyn Engine,
    model: &str,
    prompts: &[&str],
) -> Result<IsolationReport, IsolationError> {
    let begin = Instant::now();
    let mut alone = Vec::new();
    for prompt in prompts {
        alone.push(said(engine, model, prompt, TOKENS, &[]).await?);
    }
    let together = join_all(prompts.iter().map(|prompt| said(engine, model, prompt, TOKENS, &[]))).await;
    let mut ties = 0;
    for ((prompt, alone), together) in prompts.iter().zip(&alone).zip(together) {
        let together = together?;
        match ties_between(engine, model, prompt, TOKENS, alone, &together).await? {
            Some(found) => ties += found,
            None => {
                let (model, prompt) = (model.to_owned(), (*prompt).to_owned());
                let (alone, together) = (alone.text.clone(), together.text);
                return Err(IsolationError::CrossTalk { model, prompt, alone, together });
            }
        }
    }
    if engine.uses_gpu() {
        ties += again(engine, model, prompts[0]).await?;
    }
    let texts = alone.into_iter().map(|said| said.text).collect();
    Ok(IsolationReport { model: model.to_owned(), texts, ties, elapsed: begin.elapsed() })
}

/// A long text, and the same again, which may find what the first one left in a cache.
async fn again(engine: &dyn Engine, model: &str, prompt: &str) -> Result<usize, IsolationError> {
    let first = said(engine, model, prompt, LONG_TOKENS, &[]).await?;
    let second = said(engine, model, prompt, LONG_TOKENS, &[]).await?;
    match ties_between(engine, model, prompt, LONG_TOKENS, &first, &second).await? {
        Some(ties) => Ok(ties),
        None => Err(IsolationError::Forgets { model: model.to_owned(), first: first.text, second: second.text }),
    }
}

/// What was generated.
struct Said {
    text: String,
    /// Empty where the engine does not tell.
    tokens: Vec<TokenLogprob>,
}

/// The number of ties in which `together` differs from what the prompt gives alone; `None` if it is not only ties.
async fn ties_between(
    engine: &dyn Engine,
    model: &str,
    prompt: &str,
    tokens: u32,
    alone: &Said,
    together: &Said,
) -> Result<Option<usize>, EngineError> {
    if alone.tokens.is_empty() || together.tokens.is_empty() {
        return Ok((alone.text == together.text).then_some(0));
    }
    // `expected` is what follows the first `at` tokens of `together` when the prompt is alone.
    let (mut at, mut ties) = (0, 0);
    let mut again;
    let mut expected = alone.tokens.as_slice();
    loop {
        let found = &together.tokens[at..];
        let same = expected.iter().zip(found).take_while(|(one, other)| one.token_id == other.token_id).count();
        let is_tie = match (expected.get(same), found.get(same)) {
            (None, None) => return Ok(Some(ties)),
            (Some(own), Some(other)) => tied(own, Some(other.token_id)),
            // One of them ended, and the token that ended it is not told.
            (Some(longer), None) | (None, Some(longer)) => tied(longer, None),
        };
        if !is_tie {
            return Ok(None);
        }
        ties += 1;
        if found.len() <= same + 1 || expected.len() == same {
            return Ok(Some(ties));
        }
        at += same + 1;
        let begun: Vec<u32> = together.tokens[..at].iter().map(|token| token.token_id).collect();
        again = said(engine, model, prompt, tokens, &begun).await?;
        expected = &again.tokens;
    }
}

/// Whether `other`, or any token if it is not known, is about as likely as the one that was chosen.
fn tied(chosen: &TokenLogprob, other: Option<u32>) -> bool {
    chosen.top.iter().any(|top| {
        let is_it = other.map_or(top.token_id != chosen.token_id, |other| top.token_id == other);
        is_it && (chosen.logprob - top.logprob).abs() < TIE_NATS
    })
}

/// What the model says after the tokens that it has said already.
async fn said(engine: &dyn Engine, model: &str, prompt: &str, tokens: u32, begun: &[u32]) -> Result<Said, EngineError> {
    let left = tokens.saturating_sub(u32::try_from(begun.len()).unwrap_or(tokens));
    let mut request = Generate::new(model, prompt, Sampling::greedy(left));
    request.logprobs = Some(ALTERNATIVES);
    request.continuation = (!begun.is_empty()).then(|| Continuation {
        text: String::new(),
        tokens: begun.to_vec(),
        completion_tokens: tokens - left,
        reasoning: String::new(),
        tool_calls: Vec::new(),
    });
    let mut stream = engine.generate(request).await?;
    let mut said = Said { text: String::new(), tokens: Vec::new() };
    while let Some(event) = stream.recv().await {
        match event? {
            Event::Piece(more) => {
                said.text.push_str(&more.text);
                said.tokens.extend(more.logprobs);
            }
            Event::Done(_) => return Ok(said),
        }
    }
    Err(EngineError::Failed("the stream ended without an end".to_owned()))
}

#[cfg(test)]
mod tests;
