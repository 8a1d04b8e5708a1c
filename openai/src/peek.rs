//! What a router in front wants to know of a body: which model, and which conversation.

use titan_proto::v1::{Message, StreamRequest};

use crate::{chat, completions, error::ApiError, fields::Fields, responses};

/// The request that the body of a call to `path`, such as `/v1/chat/completions`, becomes behind this router. A prompt is one message of a user.
///
/// # Errors
/// What would be refused there is refused here, in the same words.
pub fn peek(path: &str, body: &[u8]) -> Result<StreamRequest, ApiError> {
    let fields = Fields::parse(body)?;
    let mut request = match path {
        "/v1/completions" => completions::read(fields)?.request,
        "/v1/responses" => responses::read(fields)?.request,
        _ => chat::read(fields)?.request,
    };
    if request.messages.is_empty() {
        request.messages.push(Message::user(std::mem::take(&mut request.prompt)));
    }
    Ok(request)
}
