//! The messages of a conversation, the functions that it may call, and the beginning of an answer that was made elsewhere.

use std::collections::HashSet;

use serde_json::Value;
use titan_proto::{
    MAX_PROMPT_BYTES,
    conversation::{MAX_MESSAGES, MAX_TOOL_CALLS, MAX_TOOLS},
    v1::{self, ContentPart, Message, Tool, ToolCall},
};

use super::{OptionError, output, quote};
use crate::engine::Continuation;

/// Longest name of a function, as in existing APIs.
pub const MAX_FUNCTION_NAME_CHARS: usize = 64;
/// Longest id of a tool call, and longest name of a speaker. Ids have about 30 bytes.
pub const MAX_ID_BYTES: usize = 256;
/// Most tokens of a continuation: more than any model's context holds.
pub const MAX_CONTINUATION_TOKENS: usize = 1 << 20;

/// The messages, checked, each with its text in `content`.
pub(super) fn messages(given: Vec<Message>) -> Result<Vec<Message>, OptionError> {
    if given.len() > MAX_MESSAGES {
        let problem = format!("are {}; at most {MAX_MESSAGES} are accepted", given.len());
        return Err(OptionError::field("messages", problem));
    }
    let mut calls = HashSet::new();
    let mut messages = Vec::with_capacity(given.len());
    for (at, given) in given.into_iter().enumerate() {
        let at = format!("messages[{at}]");
        let message = message(&at, given)?;
        if message.role == "tool" && !calls.contains(&message.tool_call_id) {
            let id = quote(&message.tool_call_id);
            let problem = format!("is {id:?}: give the id of a call in an earlier message of the assistant");
            return Err(OptionError::field(format!("{at}.tool_call_id"), problem));
        }
        calls.extend(message.tool_calls.iter().map(|call| call.id.clone()));
        messages.push(message);
    }
    if messages.last().is_some_and(|last| last.role == "assistant") {
        let problem =
            "end with the assistant's: add what it shall answer, or give the beginning of its answer as continuation";
        return Err(OptionError::field("messages", problem));
    }
    Ok(messages)
}

fn message(at: &str, given: Message) -> Result<Message, OptionError> {
    let wrong = |field: &str, problem: String| Err(OptionError::field(format!("{at}{field}"), problem));
    let Message { role, content, parts, tool_calls, tool_call_id, name, reasoning } = given;
    if !matches!(role.as_str(), "system" | "developer" | "user" | "assistant" | "tool") {
        let accepted = "system, developer, user, assistant or tool";
        return Err(OptionError::out_of_range(&format!("{at}.role"), role, accepted));
    }
    if !content.is_empty() && !parts.is_empty() {
        return wrong(".parts", "stand beside content: give one of the two".to_owned());
    }
    let content = if parts.is_empty() { content } else { text(at, parts)? };
    let assistant = role == "assistant";
    for (field, is_given) in [(".tool_calls", !tool_calls.is_empty()), (".reasoning", !reasoning.is_empty())] {
        if is_given && !assistant {
            return wrong(field, format!("stand in a message of role {role:?}: only the assistant has them"));
        }
    }
    if role != "tool" && !tool_call_id.is_empty() {
        return wrong(".tool_call_id", format!("stands in a message of role {role:?}: only a tool's has one"));
    }
    for (field, id) in [(".tool_call_id", &tool_call_id), (".name", &name)] {
        if id.len() > MAX_ID_BYTES {
            return wrong(field, format!("has {} bytes; at most {MAX_ID_BYTES} are accepted", id.len()));
        }
    }
    // A function may give nothing, and an assistant may have thought or called only.
    let silent = assistant && !(tool_calls.is_empty() && reasoning.is_empty());
    if content.is_empty() && !silent && role != "tool" {
        return wrong("", "has neither content nor parts: say something, or leave it out".to_owned());
    }
    check_calls(&format!("{at}.tool_calls"), &tool_calls)?;
    Ok(Message { role, content, parts: Vec::new(), tool_calls, tool_call_id, name, reasoning })
}

/// The text of parts, one right after the other, as templates write them.
fn text(at: &str, parts: Vec<ContentPart>) -> Result<String, OptionError> {
    let other = parts.iter().enumerate().find(|(_, part)| part.r#type != "text");
    if let Some((number, part)) = other {
        let problem = format!("is {:?}; accepted is text alone: this agent reads no images yet", quote(&part.r#type));
        return Err(OptionError::field(format!("{at}.parts[{number}].type"), problem));
    }
    Ok(parts.into_iter().map(|part| part.text).collect())
}

fn check_calls(at: &str, calls: &[ToolCall]) -> Result<(), OptionError> {
    if calls.len() > MAX_TOOL_CALLS {
        let problem = format!("are {}; at most {MAX_TOOL_CALLS} are accepted", calls.len());
        return Err(OptionError::field(at, problem));
    }
    let mut ids = HashSet::new();
    for (number, ToolCall { id, name, arguments }) in calls.iter().enumerate() {
        let at = format!("{at}[{number}]");
        check_call_head(&at, id, name)?;
        if !ids.insert(id) {
            return Err(OptionError::field(format!("{at}.id"), format!("is {:?} a second time", quote(id))));
        }
        if !matches!(serde_json::from_str(arguments), Ok(Value::Object(_))) {
            let problem = format!("are {:?}: give a JSON object such as {{}}", quote(arguments));
            return Err(OptionError::field(format!("{at}.arguments"), problem));
        }
    }
    Ok(())
}

fn check_call_head(at: &str, id: &str, name: &str) -> Result<(), OptionError> {
    if id.is_empty() || id.len() > MAX_ID_BYTES {
        let problem = format!("has {} bytes; accepted are 1 to {MAX_ID_BYTES}", id.len());
        return Err(OptionError::field(format!("{at}.id"), problem));
    }
    check_function_name(&format!("{at}.name"), name)
}

fn check_function_name(field: &str, name: &str) -> Result<(), OptionError> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if (1..=MAX_FUNCTION_NAME_CHARS).contains(&name.len()) && name.bytes().all(known) {
        return Ok(());
    }
    Err(OptionError::out_of_range(field, name, "1 to 64 of A-Z, a-z, 0-9, _ and -"))
}

/// The functions, checked.
pub(super) fn tools(tools: Vec<Tool>) -> Result<Vec<Tool>, OptionError> {
    if tools.len() > MAX_TOOLS {
        return Err(OptionError::field("tools", format!("are {}; at most {MAX_TOOLS} are accepted", tools.len())));
    }
    let mut names = HashSet::new();
    for (at, Tool { name, parameters, .. }) in tools.iter().enumerate() {
        check_function_name(&format!("tools[{at}].name"), name)?;
        if !names.insert(name) {
            return Err(OptionError::field(format!("tools[{at}].name"), format!("is {name:?} a second time")));
        }
        if !parameters.is_empty() {
            output::schema(&format!("tools[{at}].parameters"), parameters)?;
        }
    }
    Ok(tools)
}

/// The beginning of an answer, checked.
pub(super) fn continuation(given: v1::Continuation, tools: &[Tool]) -> Result<Continuation, OptionError> {
    let v1::Continuation { text, token_ids: tokens, completion_tokens, reasoning, tool_calls } = given;
    let out_of_range = |name: &str, value: usize, accepted| Err(OptionError::out_of_range(name, value, accepted));
    if text.is_empty() && reasoning.is_empty() && tool_calls.is_empty() {
        let accepted = "text, or reasoning or tool_calls: without any, leave the continuation out";
        return out_of_range("continuation.text", 0, accepted);
    }
    let bytes = text.len() + reasoning.len() + tool_calls.iter().map(ToolCall::text_bytes).sum::<usize>();
    if bytes > MAX_PROMPT_BYTES {
        return Err(OptionError::PromptTooLong { bytes });
    }
    if tokens.len() > MAX_CONTINUATION_TOKENS || completion_tokens as usize > MAX_CONTINUATION_TOKENS {
        let count = tokens.len().max(completion_tokens as usize);
        return out_of_range("continuation.completion_tokens", count, "at most 1048576");
    }
    if !tokens.is_empty() && tokens.len() != completion_tokens as usize {
        let accepted = "the number of token_ids, where there are any";
        return out_of_range("continuation.completion_tokens", completion_tokens as usize, accepted);
    }
    if !tool_calls.is_empty() && tokens.is_empty() {
        return Err(OptionError::field("continuation.tool_calls", "need token_ids: a call is continued by its tokens"));
    }
    if tool_calls.len() > MAX_TOOL_CALLS {
        let problem = format!("are {}; at most {MAX_TOOL_CALLS} are accepted", tool_calls.len());
        return Err(OptionError::field("continuation.tool_calls", problem));
    }
    for (at, ToolCall { id, name, .. }) in tool_calls.iter().enumerate() {
        let at = format!("continuation.tool_calls[{at}]");
        check_call_head(&at, id, name)?;
        if !tools.iter().any(|tool| tool.name == *name) {
            return Err(OptionError::field(format!("{at}.name"), format!("is {name:?}, which is none of the tools")));
        }
    }
    Ok(Continuation { text, tokens, completion_tokens, reasoning, tool_calls })
}
