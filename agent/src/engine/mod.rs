//! The engine trait: what the agent asks of whatever generates text.
//!
//! - [`mistral`]: the real one. The only module that names a mistral.rs type.
//! - [`synthetic`]: tokens at a fixed rate, for transports and benchmarks. Chosen by its own name, never a fallback.
//! - [`isolation`]: the test that requests do not corrupt each other. [`fetch`]: gets the default model. [`stop`]: stop texts in a stream.

pub mod fetch;
pub mod isolation;
pub mod mistral;
mod requantize;
pub mod stop;
pub mod synthetic;

use std::{fmt, future::Future, pin::Pin};

use tokio::sync::mpsc;

/// One request to an engine, already validated: see [`crate::options`]. Its `Debug` shows no prompt.
#[derive(Clone, PartialEq)]
pub struct Generate {
    /// A name out of [`Engine::models`].
    pub model: String,
    /// The user's text; the engine applies the model's chat template.
    pub prompt: String,
    /// How to choose tokens.
    pub sampling: Sampling,
    /// The beginning of the answer, where another engine made it.
    pub continuation: Option<Continuation>,
}

impl Generate {
    /// A request whose answer begins here.
    pub fn new(model: impl Into<String>, prompt: impl Into<String>, sampling: Sampling) -> Self {
        Self { model: model.into(), prompt: prompt.into(), sampling, continuation: None }
    }
}

/// The beginning of an answer that another engine made: the text goes on after it. [`Sampling::max_tokens`] counts what is still to come,
/// and may be 0 then.
#[derive(Clone, Debug, PartialEq)]
pub struct Continuation {
    /// What its reader has got; not empty.
    pub text: String,
    /// Its tokens. A few of them may not show in the text yet. Empty where they are not known.
    pub tokens: Vec<u32>,
    /// How many tokens it has.
    pub completion_tokens: u32,
}

impl fmt::Debug for Generate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generate")
            .field("model", &self.model)
            .field("prompt_bytes", &self.prompt.len())
            .field("max_tokens", &self.sampling.max_tokens)
            .finish_non_exhaustive()
    }
}

/// How tokens are chosen. `None` leaves the sampler's neutral value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// At least 1, or 0 in a continuation. The engine lowers it to what the context has room for.
    pub max_tokens: u32,
    /// 0 is greedy.
    pub temperature: f32,
    /// In (0, 1].
    pub top_p: Option<f32>,
    /// At least 1.
    pub top_k: Option<u32>,
    /// In [0, 1].
    pub min_p: Option<f32>,
    /// Texts that end the generation, none of them empty; they are not part of the output.
    pub stop: Vec<String>,
    /// The same seed gives the same text.
    pub seed: Option<u64>,
    /// In [-2, 2].
    pub frequency_penalty: Option<f32>,
    /// In [-2, 2].
    pub presence_penalty: Option<f32>,
}

impl Sampling {
    /// Always the likeliest token, and nothing else set.
    pub fn greedy(max_tokens: u32) -> Self {
        Self {
            max_tokens,
            temperature: 0.0,
            top_p: None,
            top_k: None,
            min_p: None,
            stop: Vec::new(),
            seed: None,
            frequency_penalty: None,
            presence_penalty: None,
        }
    }
}

/// What an engine streams: any number of `Text`, then one `Done`. A stream that ends without `Done` has failed.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Text to append; never empty. Usually one token, but not always.
    Text(Piece),
    /// The end.
    Done(Usage),
}

/// A piece of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// Its text.
    pub text: String,
    /// The tokens generated since the last piece, for [`Continuation::tokens`]. Empty where the engine does not tell.
    pub tokens: TokenIds,
}

impl From<String> for Piece {
    /// Of tokens that are not known.
    fn from(text: String) -> Self {
        Self { text, tokens: TokenIds::default() }
    }
}

impl From<&str> for Piece {
    /// Of tokens that are not known.
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

/// Token ids. One of them, the usual case, takes no memory of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenIds {
    first: Option<u32>,
    more: Vec<u32>,
}

impl FromIterator<u32> for TokenIds {
    fn from_iter<T: IntoIterator<Item = u32>>(ids: T) -> Self {
        let mut ids = ids.into_iter();
        Self { first: ids.next(), more: ids.collect() }
    }
}

impl From<TokenIds> for Vec<u32> {
    fn from(ids: TokenIds) -> Self {
        ids.first.into_iter().chain(ids.more).collect()
    }
}

/// What a finished generation used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt, chat template included.
    pub prompt_tokens: u32,
    /// Tokens of the answer, those of a [`Continuation`] included.
    pub completion_tokens: u32,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// Why a generation ended, in the field's usual words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model's end-of-sequence token, or a stop text.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
}

impl FinishReason {
    /// `stop` or `length`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// A generation in progress. Bounded; dropping it stops the generation at its next token.
pub type TokenStream = mpsc::Receiver<Result<Event, EngineError>>;

/// The future that [`Engine::generate`] returns.
pub type GenerateFuture<'a> = Pin<Box<dyn Future<Output = Result<TokenStream, EngineError>> + Send + 'a>>;

/// Something that generates text.
pub trait Engine: Send + Sync + 'static {
    /// The names that requests may use, the default one first.
    fn models(&self) -> Vec<String>;

    /// Starts a generation, waiting for a free sequence where the engine runs fewer at once than the agent admits.
    /// Dropping the future gives the place in the queue back.
    fn generate(&self, request: Generate) -> GenerateFuture<'_>;

    /// Generations that wait for a free sequence now.
    fn queued(&self) -> usize {
        0
    }

    /// Whether a generation by this model would begin at once.
    fn idle(&self, _model: &str) -> bool {
        self.queued() == 0
    }
}

/// Why a generation did not start or did not finish.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EngineError {
    /// The model is not one of [`Engine::models`].
    #[error("this agent has no model {model:?}; it has {}", available.join(", "))]
    UnknownModel {
        /// What was asked for.
        model: String,
        /// What there is.
        available: Vec<String>,
    },
    /// The prompt alone fills the model's context.
    #[error("the prompt has {prompt_tokens} tokens, the context of {model} is {context_tokens}: shorten the prompt")]
    PromptTooLong {
        /// The model.
        model: String,
        /// Tokens of the prompt, chat template included.
        prompt_tokens: usize,
        /// Tokens of the context.
        context_tokens: usize,
    },
    /// A parameter that this engine cannot honour.
    #[error("{0}")]
    InvalidParameter(String),
    /// The engine broke down; the request may have produced part of its text. A new request may succeed.
    #[error("the engine failed: {0}")]
    Failed(String),
}
