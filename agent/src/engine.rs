//! The engine trait: what the agent asks of whatever generates text.
//!
//! - [`mistral`]: the real one. The only module that names a mistral.rs type.
//! - [`openai`]: a server that its owner runs beside the agent. [`composite`]: several engines as one.
//! - [`synthetic`]: tokens at a fixed rate, for transports and benchmarks. Chosen by its own name, never a fallback.
//! - [`watched`]: an engine around any of them that notices when it hangs or fails, has it built anew, and says how well it is.
//! - [`isolation`]: the test that requests do not corrupt each other. [`fetch`]: gets the default model. [`stop`]: stop texts in a stream.

pub mod composite;
pub mod fetch;
mod health;
pub mod isolation;
pub mod mistral;
mod model_cache;
pub mod openai;
mod requantize;
pub mod stop;
pub mod synthetic;
pub mod watched;

use std::{fmt, future::Future, pin::Pin};

use titan_proto::v1::{Message, ModelInfo, TokenLogprob, Tool, ToolCall, ToolCallDelta};
use tokio::sync::mpsc;

/// One request to an engine, already validated: see [`crate::options`]. Its `Debug` shows no prompt.
#[derive(Clone, PartialEq)]
pub struct Generate {
    /// A name out of [`Engine::models`].
    pub model: String,
    /// The conversation, never empty; the engine applies the model's chat template. A prompt is one message of the user.
    pub messages: Vec<Message>,
    /// Functions that the model may call.
    pub tools: Vec<Tool>,
    /// Whether it has to.
    pub tool_choice: ToolChoice,
    /// What the text has to be.
    pub constraint: Option<Constraint>,
    /// The number of alternatives to give with each token's probability.
    pub logprobs: Option<u32>,
    /// Whether and how the model thinks before it answers.
    pub reasoning: Reasoning,
    /// How to choose tokens.
    pub sampling: Sampling,
    /// The beginning of the answer, where another engine made it.
    pub continuation: Option<Continuation>,
    /// Who asks. What an engine keeps of a conversation serves requests of the same owner only, so that nobody can tell from the time to the
    /// first token what others have said.
    pub owner: String,
}

impl Generate {
    /// One message of a user, and a request whose answer begins here.
    pub fn new(model: impl Into<String>, prompt: impl Into<String>, sampling: Sampling) -> Self {
        Self {
            model: model.into(),
            messages: vec![Message::user(prompt)],
            tools: Vec::new(),
            tool_choice: ToolChoice::Auto,
            constraint: None,
            logprobs: None,
            reasoning: Reasoning::default(),
            sampling,
            continuation: None,
            owner: String::new(),
        }
    }

    /// Bytes of all that the model reads: of the conversation and of the tools' descriptions.
    pub fn prompt_bytes(&self) -> usize {
        titan_proto::conversation::text_bytes(&self.messages, &self.tools)
    }
}

/// Whether the model has to call a function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// As it likes.
    #[default]
    Auto,
    /// It must not.
    None,
    /// Any of them.
    Required,
    /// The one with this name.
    Named(String),
}

/// What the text of an answer has to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Constraint {
    /// A JSON object.
    JsonObject,
    /// JSON that this schema describes.
    JsonSchema(serde_json::Value),
    /// A text that this regular expression matches as a whole.
    Regex(String),
    /// A grammar in the Lark format, as llguidance reads it.
    Lark(String),
}

/// Whether and how a model thinks before it answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reasoning {
    /// `None`: as the template has it.
    pub enabled: Option<bool>,
    /// `low`, `medium` or `high`, for templates that know it.
    pub effort: Option<String>,
}

/// The beginning of an answer that another engine made: the text goes on after it. [`Sampling::max_tokens`] counts what is still to come,
/// and may be 0 then.
#[derive(Clone, Debug, PartialEq)]
pub struct Continuation {
    /// What its reader has got of its text.
    pub text: String,
    /// Its tokens. A few of them may not show in the text yet. Empty where they are not known.
    pub tokens: Vec<u32>,
    /// How many tokens it has.
    pub completion_tokens: u32,
    /// What its reader has got of its reasoning.
    pub reasoning: String,
    /// What its reader has got of its tool calls. Only with `tokens`.
    pub tool_calls: Vec<ToolCall>,
}

impl fmt::Debug for Generate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generate")
            .field("model", &self.model)
            .field("messages", &self.messages.len())
            .field("prompt_bytes", &self.prompt_bytes())
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

/// What an engine streams: any number of `Piece`, then one `Done`. A stream that ends without `Done` has failed.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// What comes next; never empty. Usually one token, but not always.
    Piece(Piece),
    /// The end.
    Done(Usage),
}

/// A piece of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// Text to append.
    pub text: String,
    /// The tokens generated since the last piece, for [`Continuation::tokens`]. Empty where the engine does not tell.
    pub tokens: TokenIds,
    /// What the model thinks, apart from its answer.
    pub reasoning: String,
    /// Calls of functions, or more of them.
    pub tool_calls: Vec<ToolCallDelta>,
    /// Of each of `tokens`, where the request wants them.
    pub logprobs: Vec<TokenLogprob>,
}

impl Piece {
    /// Whether its reader sees anything of it: tokens alone may be the beginning of a character or of a stop text.
    pub fn is_seen(&self) -> bool {
        !(self.text.is_empty() && self.reasoning.is_empty() && self.tool_calls.is_empty())
    }
}

impl From<String> for Piece {
    /// Of tokens that are not known.
    fn from(text: String) -> Self {
        Self { text, ..Self::default() }
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

impl TokenIds {
    /// How many there are.
    pub fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }
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
    /// Of these, the engine had computed before: they cost no time.
    pub cached_tokens: u32,
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
    /// The model calls functions and waits for their results.
    ToolCalls,
}

impl FinishReason {
    /// `stop`, `length` or `tool_calls`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}

/// A generation in progress. Bounded; dropping it stops the generation at its next token.
pub type TokenStream = mpsc::Receiver<Result<Event, EngineError>>;

/// The future that [`Engine::generate`] returns.
pub type GenerateFuture<'a> = Pin<Box<dyn Future<Output = Result<TokenStream, EngineError>> + Send + 'a>>;

/// The future that [`Engine::restart`] returns.
pub type RestartFuture<'a> = Pin<Box<dyn Future<Output = Result<(), EngineError>> + Send + 'a>>;

/// Something that generates text.
pub trait Engine: Send + Sync + 'static {
    /// The names that requests may use, the default one first.
    fn models(&self) -> Vec<String>;

    /// Starts a generation, waiting for a free sequence where the engine runs fewer at once than the agent admits.
    /// Dropping the future gives the place in the queue back.
    fn generate(&self, request: Generate) -> GenerateFuture<'_>;

    /// What each of [`Engine::models`] is, in the same order.
    /// By default their names, and nothing else is known.
    fn model_info(&self) -> Vec<ModelInfo> {
        self.models().into_iter().map(|name| ModelInfo { name, places: 1, ..ModelInfo::default() }).collect()
    }

    /// Sequences that are computed now. One whose reader went away counts until its computing has ended.
    fn computing(&self) -> usize {
        0
    }

    /// How the engine sees itself.
    fn health(&self) -> Health {
        Health::Healthy
    }

    /// What the engine holds of conversations, the most recent first: `titan_proto::digest`.
    fn cached_prefixes(&self) -> Vec<u64> {
        Vec::new()
    }

    /// Whether it computes on a GPU of this machine, so that the GPU's memory is its load.
    fn uses_gpu(&self) -> bool {
        false
    }

    /// Generations that wait for a free sequence now.
    fn queued(&self) -> usize {
        0
    }

    /// Whether a generation by this model would begin at once.
    fn idle(&self, _model: &str) -> bool {
        self.queued() == 0
    }

    /// A generation of this model has hung, and its stream has been dropped: builds anew what does not let go of it. Called again where that
    /// failed. By default there is nothing to build anew.
    fn restart(&self, _model: &str) -> RestartFuture<'_> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Whether an engine can be relied on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Health {
    /// It can.
    #[default]
    Healthy,
    /// It has failed several times in a row: better ask another agent.
    Degraded {
        /// What happened.
        reason: String,
    },
    /// It is tried with one token after it was degraded.
    HalfOpen {
        /// What had happened.
        reason: String,
    },
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
    /// This model cannot serve this request, now or later: its template refuses the conversation, or it cannot go on with an answer.
    #[error("{0}")]
    Unsupported(String),
    /// No token came for too long: the engine is taken for hung and is built anew.
    #[error("the engine gave no token for {seconds} s and is being restarted")]
    Hung {
        /// How long.
        seconds: u64,
    },
    /// The engine broke down; the request may have produced part of its text. A new request may succeed.
    #[error("the engine failed: {0}")]
    Failed(String),
}
