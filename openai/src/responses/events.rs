//! The events of an answer, in the order that the field has, and the response as it is at any time.

use serde_json::{Map, Value, json};
use titan_proto::v1::{StreamResponse, ToolCallDelta};

use super::request::Options;
use crate::{
    error::ApiError,
    generation::{Used, id, logprob, pad, push_json, unix_seconds},
    sse::Encoder,
};

/// States of items and responses.
const COMPLETED: &str = "completed";
const INCOMPLETE: &str = "incomplete";

/// An answer in the making.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(super) id: String,
    created_at: u64,
    echo: Map<String, Value>,
    options: Options,
    status: &'static str,
    error: Option<Value>,
    /// Items that are complete.
    output: Vec<Value>,
    /// The item that grows. Functions grow one after another.
    open: Option<Open>,
    /// Probabilities of tokens whose text comes with a later one: parts of a character, or what may be a stop text.
    unsaid: Vec<Value>,
    used: Option<Used>,
    cut_short: bool,
    sequence_number: u64,
}

#[derive(Debug)]
enum Open {
    Reasoning { id: String, text: String },
    Message { id: String, text: String, logprobs: Vec<Value> },
    Call { id: String, index: u32, call_id: String, name: String, arguments: String },
}

impl Answer {
    pub(super) fn new(origin: &str, options: &Options, echo: Map<String, Value>) -> Self {
        Self {
            id: id(&format!("resp_{origin}_")),
            created_at: unix_seconds(),
            echo,
            options: *options,
            status: if options.background { "queued" } else { "in_progress" },
            error: None,
            output: Vec::new(),
            open: None,
            unsaid: Vec::new(),
            used: None,
            cut_short: false,
            sequence_number: 0,
        }
    }

    /// The response, as it is now.
    pub(super) fn json(&self) -> Value {
        let mut output = self.output.clone();
        output.extend(self.open.as_ref().map(|open| open.json("in_progress")));
        let mut response = self.echo.clone();
        let usage = self.used.map(|used| {
            json!({
                "input_tokens": used.prompt,
                "input_tokens_details": {"cached_tokens": used.cached, "cache_write_tokens": 0},
                "output_tokens": used.completion,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": used.prompt + used.completion,
            })
        });
        let own = [
            ("id", json!(self.id)),
            ("object", json!("response")),
            ("created_at", json!(self.created_at)),
            ("status", json!(self.status)),
            ("background", json!(self.options.background)),
            ("error", self.error.clone().unwrap_or_default()),
            ("incomplete_details", if self.cut_short { json!({"reason": "max_output_tokens"}) } else { Value::Null }),
            ("output", Value::Array(output)),
            ("previous_response_id", Value::Null),
            ("store", json!(self.options.background)),
            ("truncation", json!("disabled")),
            ("usage", usage.unwrap_or_default()),
        ];
        for (name, value) in own {
            response.insert(name.to_owned(), value);
        }
        Value::Object(response)
    }

    /// Ends it before its end. The field has no event for that; whoever reads has to see that it is over, and finds the status in it.
    pub(super) fn cancelled(&mut self, out: &mut Vec<u8>) {
        self.begin(out);
        self.status = "cancelled";
        self.output.extend(self.open.take().map(|open| open.json(INCOMPLETE)));
        self.state(out, "response.incomplete");
    }

    fn event(&mut self, out: &mut Vec<u8>, kind: &str, fields: Value) {
        let Value::Object(fields) = fields else { return };
        let mut event = json!({"type": kind, "sequence_number": self.sequence_number});
        self.sequence_number += 1;
        for (name, value) in fields {
            event[name] = value;
        }
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(b"\ndata: ");
        push_json(out, &event);
        out.extend_from_slice(b"\n\n");
    }

    fn state(&mut self, out: &mut Vec<u8>, kind: &str) {
        let response = self.json();
        self.event(out, kind, json!({"response": response}));
    }

    /// A piece of text. This is done for each token, so it makes no values. `more`: further fields, each with a comma before it.
    fn delta(&mut self, out: &mut Vec<u8>, kind: &str, delta: &str, more: &[u8]) {
        let Some(open) = &self.open else { return };
        let start = out.len();
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(b"\ndata: {\"type\":\"");
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(b"\",\"sequence_number\":");
        out.extend_from_slice(self.sequence_number.to_string().as_bytes());
        out.extend_from_slice(b",\"item_id\":\"");
        out.extend_from_slice(open.id().as_bytes());
        out.extend_from_slice(b"\",\"output_index\":");
        out.extend_from_slice(self.output.len().to_string().as_bytes());
        out.extend_from_slice(b",\"delta\":");
        push_json(out, delta);
        out.extend_from_slice(more);
        pad(out, start, self.options.obfuscate);
        out.extend_from_slice(b"}\n\n");
        self.sequence_number += 1;
    }

    /// Begins an item, after the one before it has ended.
    fn begin_item(&mut self, out: &mut Vec<u8>, open: Open) {
        self.end_item(out, COMPLETED);
        let (index, item, item_id) = (self.output.len(), open.json("in_progress"), open.id().to_owned());
        let part = match &open {
            Open::Message { .. } => Some(json!({"type": "output_text", "text": "", "annotations": [], "logprobs": []})),
            Open::Reasoning { .. } => Some(json!({"type": "reasoning_text", "text": ""})),
            Open::Call { .. } => None,
        };
        let mut begun = item;
        if part.is_some() {
            begun["content"] = json!([]);
        }
        self.event(out, "response.output_item.added", json!({"output_index": index, "item": begun}));
        if let Some(part) = part {
            let added = json!({"item_id": item_id, "output_index": index, "content_index": 0, "part": part});
            self.event(out, "response.content_part.added", added);
        }
        self.open = Some(open);
    }

    /// Ends the item that grows. One that was cut short says so: half of a function's arguments must not be acted upon.
    fn end_item(&mut self, out: &mut Vec<u8>, status: &str) {
        let Some(open) = self.open.take() else { return };
        let (index, item_id) = (self.output.len(), open.id().to_owned());
        let item = open.json(status);
        match &open {
            Open::Message { text, logprobs, .. } => {
                let done = json!({"item_id": item_id, "output_index": index, "content_index": 0, "text": text, "logprobs": logprobs});
                self.event(out, "response.output_text.done", done);
            }
            Open::Reasoning { text, .. } => {
                let done = json!({"item_id": item_id, "output_index": index, "content_index": 0, "text": text});
                self.event(out, "response.reasoning_text.done", done);
            }
            Open::Call { name, arguments, .. } => {
                let done = json!({"item_id": item_id, "output_index": index, "name": name, "arguments": arguments});
                self.event(out, "response.function_call_arguments.done", done);
            }
        }
        if let Some(part) = item["content"].get(0) {
            let done = json!({"item_id": item_id, "output_index": index, "content_index": 0, "part": part});
            self.event(out, "response.content_part.done", done);
        }
        self.event(out, "response.output_item.done", json!({"output_index": index, "item": item}));
        self.output.push(item);
    }

    fn think(&mut self, out: &mut Vec<u8>, more: &str) {
        if !matches!(self.open, Some(Open::Reasoning { .. })) {
            self.begin_item(out, Open::Reasoning { id: id("rs_"), text: String::new() });
        }
        if let Some(Open::Reasoning { text, .. }) = &mut self.open {
            text.push_str(more);
        }
        self.delta(out, "response.reasoning_text.delta", more, b",\"content_index\":0");
    }

    fn say(&mut self, out: &mut Vec<u8>, more: &str, new: Vec<Value>) {
        if !matches!(self.open, Some(Open::Message { .. })) {
            self.begin_item(out, Open::Message { id: id("msg_"), text: String::new(), logprobs: Vec::new() });
        }
        let mut fields = b",\"content_index\":0,\"logprobs\":".to_vec();
        push_json(&mut fields, &new);
        if let Some(Open::Message { text, logprobs, .. }) = &mut self.open {
            text.push_str(more);
            logprobs.extend(new);
        }
        self.delta(out, "response.output_text.delta", more, &fields);
    }

    fn call(&mut self, out: &mut Vec<u8>, more: ToolCallDelta) {
        if self.options.one_call && more.index > 0 {
            return;
        }
        if !matches!(&self.open, Some(Open::Call { index, .. }) if *index == more.index) {
            let ToolCallDelta { index, id: call_id, name, .. } = more;
            self.begin_item(out, Open::Call { id: id("fc_"), index, call_id, name, arguments: String::new() });
        }
        if let Some(Open::Call { arguments, .. }) = &mut self.open {
            arguments.push_str(&more.arguments);
        }
        if !more.arguments.is_empty() {
            self.delta(out, "response.function_call_arguments.delta", &more.arguments, b"");
        }
    }
}

impl Open {
    fn id(&self) -> &str {
        match self {
            Self::Reasoning { id, .. } | Self::Message { id, .. } | Self::Call { id, .. } => id,
        }
    }

    fn json(&self, status: &str) -> Value {
        match self {
            Self::Reasoning { id, text } => json!({
                "id": id, "type": "reasoning", "status": status, "summary": [],
                "content": [{"type": "reasoning_text", "text": text}],
            }),
            Self::Message { id, text, logprobs } => json!({
                "id": id, "type": "message", "status": status, "role": "assistant",
                "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}],
            }),
            Self::Call { id, call_id, name, arguments, .. } => json!({
                "id": id, "type": "function_call", "status": status,
                "call_id": call_id, "name": name, "arguments": arguments,
            }),
        }
    }
}

impl Encoder for Answer {
    fn begin(&mut self, out: &mut Vec<u8>) {
        if self.sequence_number == 0 {
            self.state(out, "response.created");
            self.status = "in_progress";
            self.state(out, "response.in_progress");
        }
    }

    fn message(&mut self, message: StreamResponse, out: &mut Vec<u8>) {
        self.begin(out);
        let used = message.done.then(|| Used::of(&message));
        let logprobs: Vec<Value> = match self.options.logprobs {
            true => message.logprobs.iter().map(logprob).collect(),
            false => Vec::new(),
        };
        if !message.reasoning.is_empty() {
            self.think(out, &message.reasoning);
        }
        let is_text = message.reasoning.is_empty() && message.tool_calls.is_empty();
        if !message.content.is_empty() {
            let mut all = std::mem::take(&mut self.unsaid);
            all.extend(logprobs);
            self.say(out, &message.content, all);
        } else if is_text && !matches!(self.open, Some(Open::Call { .. } | Open::Reasoning { .. })) {
            self.unsaid.extend(logprobs);
        }
        for more in message.tool_calls {
            self.call(out, more);
        }
        if let Some(used) = used {
            self.used = Some(used);
            self.cut_short = message.finish_reason == "length";
            self.status = if self.cut_short { INCOMPLETE } else { COMPLETED };
            self.end_item(out, self.status);
            self.state(out, if self.cut_short { "response.incomplete" } else { "response.completed" });
        }
    }

    fn failed(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        self.begin(out);
        self.status = "failed";
        self.error = Some(json!({"code": error.word(), "message": error.message()}));
        self.output.extend(self.open.take().map(|open| open.json(INCOMPLETE)));
        self.state(out, "response.failed");
    }
}
