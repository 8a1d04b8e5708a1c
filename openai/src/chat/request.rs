//! From the body of a chat completion to a request of ours.

use serde_json::{Value, json};
use titan_proto::v1::{ContentPart, Message, Reasoning, StreamRequest, Tool, ToolCall, ToolChoice};

use super::Options;
use crate::{
    error::ApiError,
    fields::{Fields, wrong},
    generation::{effort, format, function, sampling, set_format, top_logprobs},
};

/// A request that was read.
#[derive(Debug)]
pub(crate) struct ChatRequest {
    pub(crate) request: StreamRequest,
    pub(crate) options: Options,
    /// Fields that nobody knows.
    pub(crate) ignored: Vec<String>,
}

/// What changes nothing of an answer: notes for the provider's own books, and what is so anyway.
const HARMLESS: [&str; 14] = [
    "store",
    "metadata",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "service_tier",
    "moderation",
    "skip_special_tokens",
    "add_generation_prompt",
    "echo",
    "request_id",
    "cache_salt",
];

pub(crate) fn read(mut fields: Fields) -> Result<ChatRequest, ApiError> {
    let mut request = StreamRequest {
        model: fields.required_text("model")?,
        messages: messages(&mut fields)?,
        tools: tools(&mut fields)?,
        compact: true,
        ..StreamRequest::default()
    };
    sampling(&mut fields, &["max_completion_tokens", "max_tokens"], &mut request)?;
    request.tool_choice = tool_choice(&mut fields)?;
    if let Some(given) = fields.object("response_format")? {
        set_format(&mut request, "response_format", format(given, true)?)?;
    }
    request.logprobs = fields.flag("logprobs")?.unwrap_or(false);
    request.top_logprobs = top_logprobs(&mut fields, "top_logprobs")?.unwrap_or(0);
    if request.top_logprobs > 0 && !request.logprobs {
        return Err(ApiError::invalid(
            "top_logprobs",
            "top_logprobs are given with logprobs only: set logprobs to true",
        ));
    }
    request.reasoning = reasoning(&mut fields)?;
    let mut options = stream_options(&mut fields)?;
    options.hide_reasoning = fields.flag("include_reasoning")? == Some(false);
    options.one_call = fields.flag("parallel_tool_calls")? == Some(false);
    options.logprobs = request.logprobs;
    fields.refuse("modalities", &[json!(["text"])], "text is what there is")?;
    fields.refuse("verbosity", &[json!("medium")], "ask for it in a message")?;
    for field in ["audio", "prediction", "web_search_options"] {
        fields.refuse(field, &[], "leave it out")?;
    }
    fields.refuse("functions", &[], "use tools")?;
    fields.refuse("function_call", &[json!("auto"), json!("none")], "use tool_choice")?;
    for field in ["prompt_logprobs", "use_beam_search", "best_of"] {
        fields.refuse(field, &[json!(false), json!(0), json!(1)], "leave it out")?;
    }
    fields.skip(&HARMLESS);
    Ok(ChatRequest { request, options, ignored: fields.left() })
}

/// `stream` and `stream_options`.
pub(crate) fn stream_options(fields: &mut Fields) -> Result<Options, ApiError> {
    let stream = fields.flag("stream")?.unwrap_or(false);
    let (mut include_usage, mut obfuscate) = (false, true);
    if let Some(mut options) = fields.object("stream_options")? {
        include_usage = options.flag("include_usage")?.unwrap_or(false);
        obfuscate = options.flag("include_obfuscation")?.unwrap_or(true);
    }
    Ok(Options { stream, include_usage, obfuscate, ..Options::default() })
}

fn reasoning(fields: &mut Fields) -> Result<Option<Reasoning>, ApiError> {
    let mut reasoning = match fields.text("reasoning_effort")? {
        Some(word) => Some(effort("reasoning_effort", &word)?),
        None => None,
    };
    // As vLLM and SGLang have it.
    if let Some(mut kwargs) = fields.object("chat_template_kwargs")? {
        for name in ["enable_thinking", "thinking"] {
            if let Some(enabled) = kwargs.flag(name)? {
                reasoning.get_or_insert_default().enabled = Some(enabled);
            }
        }
        if let Some(other) = kwargs.left().first() {
            let name = format!("chat_template_kwargs.{other}");
            let message = format!("{name} is not supported here: there is enable_thinking");
            return Err(ApiError::unsupported(name, message));
        }
    }
    Ok(reasoning)
}

pub(crate) fn messages(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let messages = fields.list("messages")?.ok_or_else(|| fields.missing("messages"))?;
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "messages is empty: say what to answer"));
    }
    messages.into_iter().enumerate().map(|(at, value)| message(value, &format!("messages[{at}]"))).collect()
}

fn message(value: Value, at: &str) -> Result<Message, ApiError> {
    let mut fields = Fields::of(value, at)?;
    let role = fields.required_text("role")?;
    if !["system", "developer", "user", "assistant", "tool"].contains(&role.as_str()) {
        let message = format!("{at}.role is {role:?}; accepted is system, developer, user, assistant or tool");
        return Err(ApiError::invalid(format!("{at}.role"), message));
    }
    let (mut content, mut parts) = (String::new(), Vec::new());
    match fields.take("content") {
        None => {}
        Some(Value::String(text)) => content = text,
        Some(Value::Array(values)) => {
            for (part, value) in values.into_iter().enumerate() {
                parts.push(content_part(value, &format!("{at}.content[{part}]"))?);
            }
        }
        Some(other) => return Err(fields.wrong("content", "a string or a list of parts", &other)),
    }
    if let Some(refusal) = fields.text("refusal")?
        && content.is_empty()
        && parts.is_empty()
    {
        content = refusal;
    }
    let mut message = Message {
        role,
        content,
        parts,
        name: fields.text("name")?.unwrap_or_default(),
        tool_call_id: fields.text("tool_call_id")?.unwrap_or_default(),
        reasoning: fields.text("reasoning_content")?.or(fields.text("reasoning")?).unwrap_or_default(),
        tool_calls: Vec::new(),
    };
    for (call, value) in fields.list("tool_calls")?.unwrap_or_default().into_iter().enumerate() {
        message.tool_calls.push(tool_call(value, &format!("{at}.tool_calls[{call}]"))?);
    }
    fields.refuse("audio", &[], "send its text")?;
    fields.refuse("function_call", &[], "use tool_calls")?;
    // What a model thought is the assistant's, and other roles' names are read by no template that refuses them.
    Ok(message)
}

/// The text of a part. `input_text` and `output_text` are how the Responses API calls it.
pub(crate) fn content_part(value: Value, at: &str) -> Result<ContentPart, ApiError> {
    let mut part = Fields::of(value, at)?;
    let kind = part.required_text("type")?;
    let field = match kind.as_str() {
        "text" | "input_text" | "output_text" => "text",
        "refusal" => "refusal",
        other => {
            let name = part.name("type");
            let message = format!("{name} is {other:?}; only text is supported here");
            return Err(ApiError::unsupported(name, message));
        }
    };
    Ok(ContentPart { r#type: "text".to_owned(), text: part.required_text(field)? })
}

fn tool_call(value: Value, at: &str) -> Result<ToolCall, ApiError> {
    let mut call = Fields::of(value, at)?;
    let id = call.required_text("id")?;
    only_functions(&mut call)?;
    let missing = call.missing("function");
    let mut function = call.object("function")?.ok_or(missing)?;
    let name = function.required_text("name")?;
    let arguments = arguments(function.text("arguments")?);
    Ok(ToolCall { id, name, arguments })
}

/// Some models and frameworks leave the arguments of a function without parameters empty.
pub(crate) fn arguments(text: Option<String>) -> String {
    text.filter(|text| !text.trim().is_empty()).unwrap_or_else(|| "{}".to_owned())
}

fn only_functions(fields: &mut Fields) -> Result<(), ApiError> {
    match fields.text("type")?.as_deref() {
        None | Some("function") => Ok(()),
        Some(other) => {
            let name = fields.name("type");
            let message = format!("{name} is {other:?}; only function is supported here");
            Err(ApiError::unsupported(name, message))
        }
    }
}

pub(crate) fn tools(fields: &mut Fields) -> Result<Vec<Tool>, ApiError> {
    let tool = |(at, value): (usize, Value)| {
        let mut tool = Fields::of(value, &format!("tools[{at}]"))?;
        only_functions(&mut tool)?;
        let missing = tool.missing("function");
        function(&mut tool.object("function")?.ok_or(missing)?)
    };
    fields.list("tools")?.unwrap_or_default().into_iter().enumerate().map(tool).collect()
}

/// A word, or a function with its name: beside the type, as the Responses API has it, or in a field `function`.
pub(crate) fn tool_choice(fields: &mut Fields) -> Result<Option<ToolChoice>, ApiError> {
    let choice = match fields.take("tool_choice") {
        None => return Ok(None),
        Some(Value::String(mode)) if ["auto", "none", "required"].contains(&mode.as_str()) => {
            return Ok(Some(ToolChoice { mode, name: String::new() }));
        }
        Some(Value::String(other)) => {
            let message = format!("tool_choice is {other:?}; accepted is auto, none, required, or a function");
            return Err(ApiError::invalid("tool_choice", message));
        }
        Some(choice @ Value::Object(_)) => choice,
        Some(other) => return Err(wrong("tool_choice", "a string or an object", &other)),
    };
    let mut choice = Fields::of(choice, "tool_choice")?;
    only_functions(&mut choice)?;
    let mut named = choice.object("function")?.unwrap_or(choice);
    let name = named.required_text("name")?;
    if name.is_empty() {
        let name = named.name("name");
        return Err(ApiError::invalid(&name, format!("{name} is empty: name a function, or leave tool_choice out")));
    }
    Ok(Some(ToolChoice { mode: String::new(), name }))
}
