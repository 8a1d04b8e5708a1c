//! A streamed answer of chat completions, as bytes. This is done for each token, so what is the same in all chunks is made once.

use serde_json::{Value, json};
use titan_proto::v1::StreamResponse;

use super::Options;
use crate::{
    generation::{Used, end_chunk, id, logprob, push_json, unix_seconds},
    sse::Encoder,
};

/// Makes chunks of messages.
pub(super) struct Chunks {
    /// From `{"id":` to the delta.
    head: Vec<u8>,
    /// From `{"id":` to the choices.
    beginning: Vec<u8>,
    options: Options,
    said_role: bool,
}

impl Chunks {
    pub(super) fn new(model: &str, options: Options) -> Self {
        let mut beginning = b"{\"id\":\"".to_vec();
        beginning.extend_from_slice(id("chatcmpl-").as_bytes());
        beginning.extend_from_slice(b"\",\"object\":\"chat.completion.chunk\",\"created\":");
        beginning.extend_from_slice(unix_seconds().to_string().as_bytes());
        beginning.extend_from_slice(b",\"model\":");
        push_json(&mut beginning, model);
        beginning.extend_from_slice(b",\"choices\":[");
        let mut head = beginning.clone();
        head.extend_from_slice(b"{\"index\":0,\"delta\":{");
        Self { head, beginning, options, said_role: false }
    }

    /// A chunk with these fields of the delta, in JSON with a comma behind each.
    fn chunk(&mut self, out: &mut Vec<u8>, delta: impl FnOnce(&mut Vec<u8>), logprobs: &Value, finish: Option<&str>) {
        let start = out.len();
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(&self.head);
        if !self.said_role {
            self.said_role = true;
            out.extend_from_slice(b"\"role\":\"assistant\",");
        }
        delta(out);
        if out.last() == Some(&b',') {
            out.pop();
        }
        out.extend_from_slice(b"},\"logprobs\":");
        push_json(out, logprobs);
        out.extend_from_slice(b",\"finish_reason\":");
        push_json(out, &finish);
        out.extend_from_slice(b"}]");
        end_chunk(out, start, self.options.include_usage, self.options.obfuscate && finish.is_none());
    }

    fn usage(&self, out: &mut Vec<u8>, used: Used) {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(&self.beginning);
        out.extend_from_slice(b"],\"usage\":");
        push_json(out, &used.json());
        out.extend_from_slice(b"}\n\n");
    }
}

impl Encoder for Chunks {
    fn message(&mut self, message: StreamResponse, out: &mut Vec<u8>) {
        let used = message.done.then(|| Used::of(&message));
        let StreamResponse { content, reasoning, mut tool_calls, logprobs, finish_reason, .. } = message;
        if self.options.one_call {
            tool_calls.retain(|call| call.index == 0);
        }
        let reasoning = if self.options.hide_reasoning { String::new() } else { reasoning };
        let logprobs = match self.options.logprobs && !logprobs.is_empty() {
            true => json!({"content": logprobs.iter().map(logprob).collect::<Vec<_>>(), "refusal": null}),
            false => Value::Null,
        };
        let is_seen = !(content.is_empty() && reasoning.is_empty() && tool_calls.is_empty());
        if is_seen || !logprobs.is_null() || (used.is_some() && !self.said_role) {
            let delta = |out: &mut Vec<u8>| {
                if !reasoning.is_empty() {
                    out.extend_from_slice(b"\"reasoning_content\":");
                    push_json(out, &reasoning);
                    out.push(b',');
                }
                // A first chunk without text has an empty one, as existing clients know it.
                if !content.is_empty() || (reasoning.is_empty() && tool_calls.is_empty()) {
                    out.extend_from_slice(b"\"content\":");
                    push_json(out, &content);
                    out.push(b',');
                }
                if !tool_calls.is_empty() {
                    let calls: Vec<Value> = tool_calls.iter().map(call_delta).collect();
                    out.extend_from_slice(b"\"tool_calls\":");
                    push_json(out, &calls);
                    out.push(b',');
                }
            };
            self.chunk(out, delta, &logprobs, None);
        }
        if let Some(used) = used {
            self.chunk(out, |_| {}, &Value::Null, Some(&finish_reason));
            if self.options.include_usage {
                self.usage(out, used);
            }
            out.extend_from_slice(b"data: [DONE]\n\n");
        }
    }
}

fn call_delta(call: &titan_proto::v1::ToolCallDelta) -> Value {
    let mut function = json!({"arguments": call.arguments});
    if !call.name.is_empty() {
        function["name"] = call.name.clone().into();
    }
    let mut delta = json!({"index": call.index, "function": function});
    if !call.id.is_empty() {
        delta["id"] = call.id.clone().into();
        delta["type"] = "function".into();
    }
    delta
}
