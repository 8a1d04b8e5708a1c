//! What to generate.

use std::collections::BTreeMap;

use titan_proto::{DEFAULT_MAX_TOKENS, DEFAULT_TEMPERATURE, v1::StreamRequest};

/// What to generate. Sampling options beyond these go into `options`: `top_p`, `top_k`, `min_p`, `stop`, `seed`,
/// `frequency_penalty`, `presence_penalty`.
///
/// When its agent is lost, an answer goes on at another one ([`Feature::Move`](crate::Feature::Move)). With a temperature of 0 or a `seed` the whole text is then
/// the one that an undisturbed agent would have given, if both run the same model on the same kind of machine; the other agent
/// generates the beginning again, which takes as long as it took before. With agents that do not tell their tokens, an answer
/// with `stop`, `seed`, `frequency_penalty` or `presence_penalty` is not continued: it ends with an error, as it does after three moves.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// A name that some agent serves.
    pub model: String,
    /// What the model is told, at most [`titan_proto::MAX_PROMPT_BYTES`].
    pub prompt: String,
    /// Where to stop. Defaults to 100, and so does 0.
    pub max_tokens: u32,
    /// 0 is greedy. Defaults to 0.7.
    pub temperature: f32,
    /// Further options by name. Defaults to none.
    pub options: BTreeMap<String, String>,
}

impl Prompt {
    /// A prompt with the defaults.
    pub fn new(model: impl Into<String>, prompt: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            prompt: prompt.into(),
            max_tokens: DEFAULT_MAX_TOKENS.unsigned_abs(),
            temperature: DEFAULT_TEMPERATURE,
            options: BTreeMap::new(),
        }
    }

    /// What goes to the agent. The same `nonce` in two requests makes them one for it.
    pub(crate) fn request(&self, session_token: &str, nonce: &str) -> StreamRequest {
        StreamRequest {
            session_token: session_token.to_owned(),
            // The token names the model, and the agent reads it there.
            model: String::new(),
            prompt: self.prompt.clone(),
            max_tokens: self.max_tokens_on_the_wire(),
            temperature: self.temperature,
            stream: true,
            options: self.options.clone().into_iter().collect(),
            nonce: nonce.to_owned(),
            compact: true,
            ..StreamRequest::default()
        }
    }

    /// No model writes two thousand million tokens, so the largest number says the same as any above it.
    pub(crate) fn max_tokens_on_the_wire(&self) -> i32 {
        i32::try_from(self.max_tokens).unwrap_or(i32::MAX)
    }
}
