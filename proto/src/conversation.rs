//! Messages of a conversation, made in one line, and tool calls put together from their parts.

use crate::v1::{Message, Tool, ToolCall, ToolCallDelta};

/// Most messages of one conversation: at three tokens of template each, more than the contexts of most models hold.
pub const MAX_MESSAGES: usize = 4_096;
/// Most functions that one request offers, as in existing APIs. Each of them is in the prompt.
pub const MAX_TOOLS: usize = 128;
/// Most calls in one message or answer: a model that calls more functions than it can be offered is stuck.
pub const MAX_TOOL_CALLS: usize = MAX_TOOLS;
/// Alternatives of each token, as in existing APIs.
pub const MAX_TOP_LOGPROBS: u32 = 20;

/// Highest temperature: above 2 every model's output is noise, and existing APIs stop there too.
pub const MAX_TEMPERATURE: f32 = 2.0;
/// Largest penalty in either direction, the range that existing APIs have.
pub const MAX_PENALTY: f32 = 2.0;

impl Message {
    /// What the model shall be like.
    pub fn system(content: impl Into<String>) -> Self {
        Self::of("system", content)
    }

    /// What a user says.
    pub fn user(content: impl Into<String>) -> Self {
        Self::of("user", content)
    }

    /// What the model said.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::of("assistant", content)
    }

    /// What a function gave, whose call has this id.
    pub fn tool(tool_call_id: impl Into<String>, content: impl Into<String>) -> Self {
        Self { tool_call_id: tool_call_id.into(), ..Self::of("tool", content) }
    }

    fn of(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.to_owned(), content: content.into(), ..Self::default() }
    }

    /// Bytes of all that it says.
    pub fn text_bytes(&self) -> usize {
        let Self { role: _, content, parts, tool_calls, tool_call_id, name, reasoning } = self;
        let parts: usize = parts.iter().map(|part| part.text.len()).sum();
        let calls: usize = tool_calls.iter().map(ToolCall::text_bytes).sum();
        content.len() + parts + calls + tool_call_id.len() + name.len() + reasoning.len()
    }
}

impl Tool {
    /// Bytes of its description, which is in the prompt.
    pub fn text_bytes(&self) -> usize {
        self.name.len() + self.description.len() + self.parameters.len()
    }
}

impl ToolCall {
    /// Bytes of all that it says.
    pub fn text_bytes(&self) -> usize {
        self.id.len() + self.name.len() + self.arguments.len()
    }
}

/// Bytes of a whole conversation: what [`crate::MAX_PROMPT_BYTES`] bounds.
pub fn text_bytes(messages: &[Message], tools: &[Tool]) -> usize {
    messages.iter().map(Message::text_bytes).sum::<usize>() + tools.iter().map(Tool::text_bytes).sum::<usize>()
}

/// Adds a part to the calls that it belongs to. A call beyond [`MAX_TOOL_CALLS`] is left out.
pub fn add_to(calls: &mut Vec<ToolCall>, delta: &ToolCallDelta) {
    let index = usize::try_from(delta.index).unwrap_or(usize::MAX);
    if index >= MAX_TOOL_CALLS {
        return;
    }
    if calls.len() <= index {
        calls.resize_with(index + 1, ToolCall::default);
    }
    let call = &mut calls[index];
    call.id.push_str(&delta.id);
    call.name.push_str(&delta.name);
    call.arguments.push_str(&delta.arguments);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_put_together_by_their_index() {
        let delta = |index, id: &str, arguments: &str| ToolCallDelta {
            index,
            id: id.into(),
            name: if id.is_empty() { String::new() } else { "f".into() },
            arguments: arguments.into(),
        };
        let mut calls = Vec::new();
        for part in
            [delta(0, "a", "{"), delta(1, "b", ""), delta(0, "", "}"), delta(1, "", "{}"), delta(u32::MAX, "x", "")]
        {
            add_to(&mut calls, &part);
        }
        let call = |id: &str| ToolCall { id: id.into(), name: "f".into(), arguments: "{}".into() };
        assert_eq!(calls, [call("a"), call("b")]);
    }
}
