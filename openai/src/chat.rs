//! `POST /v1/chat/completions`.

mod chunks;
mod request;

use std::sync::Arc;

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use titan_proto::v1::ToolCall;

use self::chunks::Chunks;
pub(crate) use self::request::{arguments, content_part, read, stream_options, tool_choice};
use crate::{
    backend::{Backend, Caller},
    error::ApiError,
    fields::Fields,
    generation::{Whole, id, logprob, unix_seconds},
    router::{Settings, with_ignored},
    sse,
};

pub(crate) async fn create<B: Backend>(
    backend: &Arc<B>,
    settings: &Settings,
    caller: &Caller,
    fields: Fields,
) -> Result<Response, ApiError> {
    let asked = read(fields)?;
    let (model, options, ignored) = (asked.request.model.clone(), asked.options, asked.ignored);
    let mut stream = backend.generate(caller, asked.request).await?;
    let response = if options.stream {
        sse::answer::<B, _>(stream, Chunks::new(&model, options), settings.comment_interval).await?
    } else {
        let whole = Whole::read::<B>(&mut stream).await?;
        Json(completion(&model, options, whole)).into_response()
    };
    Ok(with_ignored(response, &ignored))
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
