//! `POST /v1/chat/completions`.

mod chunks;
mod request;

use std::sync::Arc;

use axum::response::Response;
use serde_json::{Value, json};
use titan_proto::v1::ToolCall;

pub(crate) use self::request::{arguments, content_part, read, stream_options, tool_choice};
use self::{chunks::Chunks, request::ChatRequest};
use crate::{
    backend::{Backend, Caller},
    error::ApiError,
    fields::Fields,
    generation::{Whole, answer, id, logprob, unix_seconds},
    router::{Settings, with_ignored},
};

pub(crate) async fn create<B: Backend>(
    backend: &Arc<B>,
    settings: &Settings,
    caller: &Caller,
    fields: Fields,
) -> Result<Response, ApiError> {
    let ChatRequest { request, options, ignored } = read(fields)?;
    let model = request.model.clone();
    let chunks = Chunks::new(&model, options);
    let json = |whole| completion(&model, options, whole);
    let answered = answer((&**backend, caller, settings), request, options.stream, chunks, json).await?;
    Ok(with_ignored(answered, &ignored))
}

/// What the request says about how its answer is given.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) obfuscate: bool,
    pub(crate) hide_reasoning: bool,
    /// At most one function is called.
    pub(crate) one_call: bool,
    pub(crate) logprobs: bool,
}

fn completion(model: &str, options: Options, mut whole: Whole) -> Value {
    if options.one_call {
        whole.tool_calls.truncate(1);
    }
    let content = if whole.content.is_empty() && !whole.tool_calls.is_empty() { None } else { Some(whole.content) };
    let mut message = json!({"role": "assistant", "content": content, "refusal": null});
    if !whole.tool_calls.is_empty() {
        message["tool_calls"] = whole.tool_calls.iter().map(tool_call).collect();
    }
    if !whole.reasoning.is_empty() && !options.hide_reasoning {
        message["reasoning_content"] = whole.reasoning.into();
    }
    let logprobs = options.logprobs.then(|| {
        let content: Vec<Value> = whole.logprobs.iter().map(logprob).collect();
        json!({"content": content, "refusal": null})
    });
    json!({
        "id": id("chatcmpl-"),
        "object": "chat.completion",
        "created": unix_seconds(),
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": logprobs, "finish_reason": whole.finish_reason}],
        "usage": whole.used.json(),
    })
}

fn tool_call(call: &ToolCall) -> Value {
    json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}})
}
