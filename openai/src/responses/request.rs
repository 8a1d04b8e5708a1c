//! From the body of a response to a request of ours.

use serde_json::{Map, Value, json};
use titan_proto::v1::{Message, ResponseFormat, StreamRequest, Tool, ToolCall};

use crate::{
    chat::{arguments, content_part, tool_choice},
    error::ApiError,
    fields::{Fields, wrong},
    generation::{effort, format, function, sampling, set_format, top_logprobs},
};

/// A request that was read.
#[derive(Debug)]
pub(crate) struct ResponseRequest {
    pub(crate) request: StreamRequest,
    pub(super) options: Options,
    /// What the response repeats of its request.
    pub(super) echo: Map<String, Value>,
    pub(crate) ignored: Vec<String>,
}

/// What the request says about how its answer is given.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Options {
    pub(super) stream: bool,
    pub(super) background: bool,
    pub(super) obfuscate: bool,
    pub(super) one_call: bool,
    pub(super) logprobs: bool,
}

const HARMLESS: [&str; 9] = [
    "store",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "service_tier",
    "moderation",
    "access_programs",
];
/// What a response repeats, so that whoever reads it later knows what was asked.
const ECHOED: [&str; 12] = [
    "model",
    "instructions",
    "max_output_tokens",
    "metadata",
    "parallel_tool_calls",
    "reasoning",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
];

pub(crate) fn read(mut fields: Fields) -> Result<ResponseRequest, ApiError> {
    let echo = echo(&fields);
    for (field, instead) in [
        ("previous_response_id", "send the whole conversation in input"),
        ("conversation", "send the whole conversation in input"),
        ("prompt", "send its text in instructions and input"),
        ("context_management", "leave it out"),
        ("max_tool_calls", "leave it out: only your own functions are called"),
    ] {
        fields.refuse(field, &[], instead)?;
    }
    fields.refuse("truncation", &[json!("disabled")], "shorten the conversation")?;
    let mut request = StreamRequest {
        model: fields.required_text("model")?,
        messages: messages(&mut fields)?,
        tools: tools(&mut fields)?,
        compact: true,
        ..StreamRequest::default()
    };
    sampling(&mut fields, &["max_output_tokens"], &mut request)?;
    request.tool_choice = tool_choice(&mut fields)?;
    if let Some(format) = text_format(&mut fields)? {
        set_format(&mut request, "text.format", format)?;
    }
    let mut options = Options { obfuscate: true, ..Options::default() };
    if let Some(mut reasoning) = fields.object("reasoning")?
        && let Some(word) = reasoning.text("effort")?
    {
        request.reasoning = Some(effort("reasoning.effort", &word)?);
    }
    let included = fields.texts("include")?;
    for (at, include) in included.iter().enumerate() {
        match include.as_str() {
            "message.output_text.logprobs" => options.logprobs = true,
            // There is none, and nothing of it is missed.
            "reasoning.encrypted_content" => {}
            other => {
                let message = format!("include[{at}] is {other:?}; there is message.output_text.logprobs");
                return Err(ApiError::unsupported(format!("include[{at}]"), message));
            }
        }
    }
    request.top_logprobs = top_logprobs(&mut fields, "top_logprobs")?.unwrap_or(0);
    options.logprobs |= request.top_logprobs > 0;
    request.logprobs = options.logprobs;
    options.stream = fields.flag("stream")?.unwrap_or(false);
    options.background = fields.flag("background")?.unwrap_or(false);
    options.one_call = fields.flag("parallel_tool_calls")? == Some(false);
    if let Some(mut stream) = fields.object("stream_options")? {
        options.obfuscate = stream.flag("include_obfuscation")?.unwrap_or(true);
    }
    check_metadata(&mut fields)?;
    fields.skip(&HARMLESS);
    Ok(ResponseRequest { request, options, echo, ignored: fields.left() })
}

/// It is kept for nobody, but comes back in the response.
fn check_metadata(fields: &mut Fields) -> Result<(), ApiError> {
    match fields.take("metadata") {
        None => Ok(()),
        Some(Value::Object(entries)) => match entries.iter().find(|(_, value)| !value.is_string()) {
            None => Ok(()),
            Some((name, value)) => Err(wrong(&format!("metadata.{name}"), "a string", value)),
        },
        Some(other) => Err(fields.wrong("metadata", "an object of strings", &other)),
    }
}

fn echo(fields: &Fields) -> Map<String, Value> {
    let mut echo: Map<String, Value> =
        ECHOED.iter().map(|name| ((*name).to_owned(), fields.get(name).cloned().unwrap_or(Value::Null))).collect();
    let defaults = [
        ("metadata", json!({})),
        ("parallel_tool_calls", json!(true)),
        ("reasoning", json!({"effort": null, "summary": null})),
        ("temperature", json!(1.0)),
        ("text", json!({"format": {"type": "text"}})),
        ("tool_choice", json!("auto")),
        ("tools", json!([])),
        ("top_logprobs", json!(0)),
        ("top_p", json!(1.0)),
    ];
    for (name, default) in defaults {
        if echo[name].is_null() {
            echo[name] = default;
        }
    }
    echo
}

fn text_format(fields: &mut Fields) -> Result<Option<ResponseFormat>, ApiError> {
    let Some(mut text) = fields.object("text")? else { return Ok(None) };
    text.refuse("verbosity", &[json!("medium")], "ask for it in a message")?;
    text.object("format")?.map(|given| format(given, false)).transpose()
}

fn messages(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let mut messages = Vec::new();
    match fields.take("instructions") {
        None => {}
        Some(Value::String(text)) if text.is_empty() => {}
        Some(Value::String(text)) => messages.push(Message::system(text)),
        Some(other) => return Err(wrong("instructions", "a string", &other)),
    }
    match fields.take("input") {
        None => return Err(fields.missing("input")),
        Some(Value::String(text)) => messages.push(Message::user(text)),
        Some(Value::Array(items)) => {
            for (at, value) in items.into_iter().enumerate() {
                item(value, &format!("input[{at}]"), &mut messages)?;
            }
        }
        Some(other) => return Err(wrong("input", "a string or a list of items", &other)),
    }
    Ok(messages)
}

/// Adds an item to the conversation. Of what the assistant did, several items in a row are one message: what it thought, said and called.
fn item(value: Value, at: &str, messages: &mut Vec<Message>) -> Result<(), ApiError> {
    let mut item = Fields::of(value, at)?;
    let kind = item.text("type")?.unwrap_or_else(|| "message".to_owned());
    match kind.as_str() {
        "message" => {
            let role = item.required_text("role")?;
            if role == "tool" {
                let message =
                    format!("{at}.role is \"tool\": the result of a function is an item of type function_call_output");
                return Err(ApiError::invalid(format!("{at}.role"), message));
            }
            let (content, parts) = content(&mut item, "content")?;
            let role = match role.as_str() {
                "assistant" | "user" | "system" | "developer" => role,
                other => {
                    let message = format!("{at}.role is {other:?}; accepted is user, assistant, system or developer");
                    return Err(ApiError::invalid(format!("{at}.role"), message));
                }
            };
            if role == "assistant" {
                let open = assistant(messages, |open| open.content.is_empty() && open.tool_calls.is_empty());
                open.content = content;
                open.content.extend(parts.into_iter().map(|part| part.text));
            } else {
                messages.push(Message { role, content, parts, ..Message::default() });
            }
        }
        "function_call" => {
            let call = ToolCall {
                id: item.required_text("call_id")?,
                name: item.required_text("name")?,
                arguments: arguments(item.text("arguments")?),
            };
            assistant(messages, |_| true).tool_calls.push(call);
        }
        "function_call_output" => {
            let call_id = item.required_text("call_id")?;
            let (content, parts) = content(&mut item, "output")?;
            messages.push(Message { parts, ..Message::tool(call_id, content) });
        }
        "reasoning" => {
            let mut thought = String::new();
            for (part, value) in item.list("content")?.unwrap_or_default().into_iter().enumerate() {
                let mut part = Fields::of(value, &format!("{at}.content[{part}]"))?;
                thought.push_str(&part.text("text")?.unwrap_or_default());
            }
            // A thought alone is none: an answer follows.
            if !thought.is_empty() {
                assistant(messages, |open| open.content.is_empty() && open.tool_calls.is_empty())
                    .reasoning
                    .push_str(&thought);
            }
        }
        other => {
            let message = format!(
                "{at}.type is {other:?}; supported here are message, function_call, function_call_output and reasoning"
            );
            return Err(ApiError::unsupported(format!("{at}.type"), message));
        }
    }
    Ok(())
}

/// The assistant's message that is last, if it may go on, else a new one.
fn assistant(messages: &mut Vec<Message>, goes_on: impl FnOnce(&Message) -> bool) -> &mut Message {
    let open = messages.last().is_some_and(|last| last.role == "assistant" && goes_on(last));
    if !open {
        messages.push(Message::assistant(""));
    }
    let last = messages.len() - 1;
    &mut messages[last]
}

fn content(item: &mut Fields, field: &str) -> Result<(String, Vec<titan_proto::v1::ContentPart>), ApiError> {
    match item.take(field) {
        None => Err(item.missing(field)),
        Some(Value::String(text)) => Ok((text, Vec::new())),
        Some(Value::Array(values)) => {
            let name = item.name(field);
            let part = |(at, value)| content_part(value, &format!("{name}[{at}]"));
            Ok((String::new(), values.into_iter().enumerate().map(part).collect::<Result<_, _>>()?))
        }
        Some(other) => Err(item.wrong(field, "a string or a list of parts", &other)),
    }
}

fn tools(fields: &mut Fields) -> Result<Vec<Tool>, ApiError> {
    let tool = |(at, value): (usize, Value)| {
        let mut tool = Fields::of(value, &format!("tools[{at}]"))?;
        let kind = tool.required_text("type")?;
        if kind != "function" {
            let name = tool.name("type");
            let message = format!("{name} is {kind:?}; only function is supported here");
            return Err(ApiError::unsupported(name, message));
        }
        function(&mut tool)
    };
    fields.list("tools")?.unwrap_or_default().into_iter().enumerate().map(tool).collect()
}
