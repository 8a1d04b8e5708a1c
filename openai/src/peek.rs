//! What a router in front wants to know of a body: which model, and which conversation.

use titan_proto::v1::{Message, StreamRequest, Tool};

use crate::{chat, completions, error::ApiError, fields::Fields, responses};

/// A request as far as choosing an agent goes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Peeked {
    /// The model.
    pub model: String,
    /// The conversation; a prompt is one message of a user.
    pub messages: Vec<Message>,
    /// Functions that the model may call.
    pub tools: Vec<Tool>,
    /// The most tokens that the answer may have; `i32::MAX` where the request does not bound it.
    pub max_tokens: i32,
}

/// Reads the body of a request to `path`, such as `/v1/chat/completions`.
///
/// # Errors
/// What would be refused behind this router is refused here, in the same words.
pub fn peek(path: &str, body: &[u8]) -> Result<Peeked, ApiError> {
    let fields = Fields::parse(body)?;
    let request = match path.trim_end_matches('/') {
        "/v1/completions" => completions::read(fields)?.request,
        "/v1/responses" => responses::read(fields)?.request,
        _ => chat::read(fields)?.request,
    };
    let StreamRequest { model, prompt, mut messages, tools, max_tokens, .. } = request;
    if messages.is_empty() {
        messages.push(Message::user(prompt));
    }
    Ok(Peeked { model, messages, tools, max_tokens })
}
