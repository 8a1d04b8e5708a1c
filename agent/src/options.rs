//! From what a request says to what an engine is asked: every value checked before it reaches a model.
//!
//! A value out of range breaks some samplers outright (a NaN temperature), so nothing is clamped and nothing is guessed: the
//! error names the field, the value and the accepted range. PROTOCOL.md §18 has the ranges.
//!
//! `conversation`: messages, tools, and the beginning of an answer. `output`: what the answer has to be. `sampling`: how tokens are chosen.

mod conversation;
mod output;
mod sampling;

use std::fmt::{self, Display};

use titan_proto::{
    MAX_PROMPT_BYTES,
    conversation::text_bytes,
    v1::{Message, StreamRequest},
};
use tonic::Status;

pub use self::{
    conversation::{MAX_CONTINUATION_TOKENS, MAX_FUNCTION_NAME_CHARS, MAX_ID_BYTES},
    output::MAX_SCHEMA_BYTES,
    sampling::{MAX_STOP_BYTES, MAX_STOPS},
};
use crate::engine::Generate;

/// Characters of a refused value that its error repeats.
const QUOTED_CHARS: usize = 40;

/// What the request asks of the engine. `model` is the name that the token allows, `owner` whose token it is.
///
/// # Errors
/// The first field that is not accepted.
pub fn generate(request: StreamRequest, model: String, owner: &str) -> Result<Generate, OptionError> {
    let StreamRequest { prompt, messages, tools, tool_choice, .. } = request;
    let messages = match (prompt.is_empty(), messages.is_empty()) {
        (true, true) => return Err(OptionError::EmptyPrompt),
        (false, false) => {
            return Err(OptionError::field("messages", "stand beside a prompt: give one of the two"));
        }
        (false, true) => vec![Message::user(prompt)],
        (true, false) => conversation::messages(messages)?,
    };
    let tools = conversation::tools(tools)?;
    let bytes = text_bytes(&messages, &tools);
    if bytes > MAX_PROMPT_BYTES {
        return Err(OptionError::PromptTooLong { bytes });
    }
    let tool_choice = output::tool_choice(tool_choice, &tools)?;
    let constraint = output::constraint(request.response_format, request.grammar, &tool_choice)?;
    let logprobs = output::logprobs(request.logprobs, request.top_logprobs)?;
    let reasoning = output::reasoning(request.reasoning)?;
    let mut sampling = sampling::sampling(request.max_tokens, request.temperature, &request.options, request.sampling)?;
    let continuation = request.continuation.map(|begun| conversation::continuation(begun, &tools)).transpose()?;
    if continuation.is_some() && request.max_tokens == 0 {
        // Everything has been generated: what is missing of its text may still come, and the end.
        sampling.max_tokens = 0;
    }
    Ok(Generate {
        model,
        messages,
        tools,
        tool_choice,
        constraint,
        logprobs,
        reasoning,
        sampling,
        continuation,
        owner: owner.to_owned(),
    })
}

/// Why a request's parameters were refused. The same request will be refused again.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OptionError {
    /// There is no prompt.
    #[error("prompt is empty, and there are no messages: say what to generate text for")]
    EmptyPrompt,
    /// The prompt is larger than any wire carries.
    #[error("prompt has {bytes} bytes, with all messages and tools; at most {MAX_PROMPT_BYTES} are accepted")]
    PromptTooLong {
        /// Its length.
        bytes: usize,
    },
    /// No option has this name.
    #[error("unknown option {name:?}: the options are {}", sampling::KNOWN)]
    Unknown {
        /// The name, cut short if it is long.
        name: String,
    },
    /// The value is not one that the parameter takes.
    #[error("{name} is {value:?}; accepted is {accepted}")]
    OutOfRange {
        /// The parameter.
        name: String,
        /// Its value, cut short if it is long.
        value: String,
        /// What would be accepted.
        accepted: &'static str,
    },
    /// More stop texts than are searched for.
    #[error("stop has {count} texts; at most {MAX_STOPS} are accepted")]
    TooManyStops {
        /// How many there are.
        count: usize,
    },
    /// A stop text that would hold back too much.
    #[error("stop has a text of {bytes} bytes; at most {MAX_STOP_BYTES} are accepted")]
    StopTooLong {
        /// Its length.
        bytes: usize,
    },
    /// A field of a conversation, or of what its answer has to be.
    #[error("{field} {problem}")]
    Field {
        /// Its name, such as `messages[2].role`.
        field: String,
        /// What is wrong with it, and what would be accepted.
        problem: String,
    },
}

impl OptionError {
    fn out_of_range(name: &str, value: impl Display, accepted: &'static str) -> Self {
        Self::OutOfRange { name: name.to_owned(), value: quote(&value), accepted }
    }

    fn field(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Field { field: field.into(), problem: problem.into() }
    }
}

impl From<OptionError> for Status {
    fn from(error: OptionError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

/// The beginning of a value, so that a megabyte of it is not sent back.
fn quote(value: &(impl fmt::Display + ?Sized)) -> String {
    let text = value.to_string();
    match text.char_indices().nth(QUOTED_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests;
