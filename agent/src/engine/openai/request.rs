//! From what an engine is asked to what a server is asked: the body of `POST /chat/completions`.
//!
//! What is left out stays neutral, also where a server has defaults of its own (llama.cpp: `top_k` 40; vLLM: what the model's folder says). A
//! field that a kind of server ignores is refused by its name, since an answer that silently is something else is worse than none.

use async_openai::types::chat::{
    ChatCompletionMessageToolCall, ChatCompletionMessageToolCalls, ChatCompletionNamedToolChoice,
    ChatCompletionStreamOptions, ChatCompletionTool, ChatCompletionToolChoiceOption, ChatCompletionTools, FunctionCall,
    FunctionName, FunctionObject, ResponseFormat, ResponseFormatJsonSchema, ToolChoiceOptions,
};
use serde::Serialize;
use serde_json::{Value, json};
use titan_proto::v1;

use super::{
    kind::{Facts, Kind},
    regex_grammar,
};
use crate::engine::{
    Constraint, Continuation, EngineError, Generate, ToolChoice, mistral::prompt_escape::PromptEscape,
};

/// The name of a schema in a request. The API wants one; nobody reads it.
const SCHEMA_NAME: &str = "answer";

#[derive(Debug, Serialize)]
pub(super) struct Body {
    model: String,
    messages: Vec<Message>,
    stream: bool,
    stream_options: ChatCompletionStreamOptions,
    /// `None` leaves it to what the context has room for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_tokens: Option<u32>,
    temperature: f32,
    top_p: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    frequency_penalty: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    presence_penalty: Option<f32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    stop: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<ChatCompletionTools>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_choice: Option<ChatCompletionToolChoiceOption>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_format: Option<ResponseFormat>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_effort: Option<String>,
    /// What only some kinds of servers know.
    #[serde(flatten)]
    own: serde_json::Map<String, Value>,
}

#[derive(Debug, Default, Serialize)]
struct Message {
    role: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<Content>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ChatCompletionMessageToolCalls>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<String>,
    /// What llama.cpp, SGLang and older vLLM call it.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    /// What Ollama and newer vLLM call it.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Serialize)]
struct Part {
    r#type: String,
    text: String,
}

/// How a kind of server goes on with an answer, in the words of `ModelInfo.continuation`.
pub(super) fn continuation_of(kind: Kind) -> &'static str {
    match kind {
        Kind::LlamaCpp | Kind::Vllm { .. } | Kind::Sglang => "text",
        Kind::Ollama | Kind::Other => "none",
    }
}

/// The body for this server.
///
/// # Errors
/// The field that this kind of server does not honour.
pub(super) fn body(request: &Generate, facts: &Facts) -> Result<Body, EngineError> {
    let sampling = &request.sampling;
    let mut body = Body {
        model: facts.model.clone(),
        messages: messages(request, facts)?,
        stream: true,
        stream_options: ChatCompletionStreamOptions { include_usage: Some(true), include_obfuscation: None },
        // Nothing is still to come of a continuation with 0: its prompt is counted by a token that is not passed on. Servers refuse more than
        // their context, and take no word for as much as there is.
        max_tokens: (sampling.max_tokens < i32::MAX.unsigned_abs()).then(|| sampling.max_tokens.max(1)),
        temperature: sampling.temperature,
        top_p: sampling.top_p.unwrap_or(1.0),
        seed: sampling.seed.map(folded),
        frequency_penalty: sampling.frequency_penalty,
        presence_penalty: sampling.presence_penalty,
        stop: sampling.stop.clone(),
        tools: Vec::new(),
        tool_choice: None,
        response_format: None,
        logprobs: request.logprobs.map(|_| true),
        // llama.cpp gives no probability at all where it is asked for no alternatives.
        top_logprobs: request.logprobs.map(|count| count.max(1)),
        reasoning_effort: None,
        own: serde_json::Map::new(),
    };
    own_sampling(request, facts.kind, &mut body)?;
    tools(request, facts, &mut body)?;
    constraint(request, facts.kind, &mut body)?;
    reasoning(request, facts.kind, &mut body)?;
    if request.continuation.is_some() {
        body.own.insert("add_generation_prompt".to_owned(), json!(false));
        body.own.insert("continue_final_message".to_owned(), json!(true));
    }
    if matches!(facts.kind, Kind::Vllm { .. }) {
        body.own.insert("return_token_ids".to_owned(), json!(true));
    }
    Ok(body)
}

/// Seeds are 64 bits here, 32 in llama.cpp, where the highest one means none, and signed in vLLM.
fn folded(seed: u64) -> u32 {
    // The masked value fits.
    u32::try_from((seed ^ (seed >> 32)) & 0x7fff_ffff).unwrap_or(0)
}

/// As it was written, 0.05, and not as a longer float shows it, 0.05000000074505806.
fn number(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

fn own_sampling(request: &Generate, kind: Kind, body: &mut Body) -> Result<(), EngineError> {
    let sampling = &request.sampling;
    match kind {
        Kind::LlamaCpp | Kind::Vllm { .. } | Kind::Sglang => {
            // What means "all tokens" to each of them.
            let off = if kind == Kind::Sglang { json!(-1) } else { json!(0) };
            body.own.insert("top_k".to_owned(), sampling.top_k.map_or(off, |top_k| json!(top_k)));
            body.own.insert("min_p".to_owned(), number(sampling.min_p.unwrap_or(0.0)));
            let neutral = if kind == Kind::LlamaCpp { "repeat_penalty" } else { "repetition_penalty" };
            body.own.insert(neutral.to_owned(), json!(1.0));
        }
        Kind::Ollama if sampling.top_k.is_some() => return Err(unknown_to("top_k", "Ollama's OpenAI-compatible API")),
        Kind::Ollama if sampling.min_p.is_some() => return Err(unknown_to("min_p", "Ollama's OpenAI-compatible API")),
        Kind::Ollama => {}
        Kind::Other => {
            body.own.extend(sampling.top_k.map(|top_k| ("top_k".to_owned(), json!(top_k))));
            body.own.extend(sampling.min_p.map(|min_p| ("min_p".to_owned(), number(min_p))));
        }
    }
    Ok(())
}

fn tools(request: &Generate, facts: &Facts, body: &mut Body) -> Result<(), EngineError> {
    if request.tools.is_empty() {
        return Ok(());
    }
    // llama.cpp renders the conversation without them then, and the model never hears of any.
    if facts.kind == Kind::LlamaCpp && !facts.tools {
        return Err(EngineError::Unsupported(
            "the chat template of this model has no tools: leave tools out, or ask another model".to_owned(),
        ));
    }
    let mode = |mode| Some(ChatCompletionToolChoiceOption::Mode(mode));
    let mut offered: Vec<&v1::Tool> = request.tools.iter().collect();
    body.tool_choice = match (&request.tool_choice, facts.kind) {
        (ToolChoice::Auto, _) => None,
        // Ollama does not look at the choice.
        (ToolChoice::None, Kind::Ollama) => return Ok(()),
        (_, Kind::Ollama) => return Err(unknown_to("tool_choice", "Ollama")),
        (ToolChoice::None, _) => mode(ToolChoiceOptions::None),
        (ToolChoice::Required, _) => mode(ToolChoiceOptions::Required),
        // llama.cpp takes the name of a function for nothing: one of those that it is offered has to be called.
        (ToolChoice::Named(name), Kind::LlamaCpp) => {
            offered.retain(|tool| tool.name == *name);
            mode(ToolChoiceOptions::Required)
        }
        (ToolChoice::Named(name), _) => Some(ChatCompletionToolChoiceOption::Function(ChatCompletionNamedToolChoice {
            function: FunctionName { name: name.clone() },
        })),
    };
    for tool in offered {
        let parameters = match facts.escape.apply(&tool.parameters) {
            none if none.trim().is_empty() => None,
            text => Some(serde_json::from_str(&text).map_err(|error| {
                EngineError::InvalidParameter(format!("tools: the parameters of {:?} are no JSON: {error}", tool.name))
            })?),
        };
        let description = Some(facts.escape.apply(&tool.description)).filter(|text| !text.is_empty());
        let function = FunctionObject { name: tool.name.clone(), description, parameters, strict: None };
        body.tools.push(ChatCompletionTools::Function(ChatCompletionTool { function }));
    }
    Ok(())
}

fn constraint(request: &Generate, kind: Kind, body: &mut Body) -> Result<(), EngineError> {
    let Some(constraint) = &request.constraint else { return Ok(()) };
    let named = |name: &str, value: Value| (name.to_owned(), value);
    match (constraint, kind) {
        (Constraint::JsonObject, _) => body.response_format = Some(ResponseFormat::JsonObject),
        (Constraint::JsonSchema(schema), _) => {
            let json_schema = ResponseFormatJsonSchema {
                description: None,
                name: SCHEMA_NAME.to_owned(),
                schema: schema.clone(),
                strict: Some(true),
            };
            body.response_format = Some(ResponseFormat::JsonSchema { json_schema });
        }
        (Constraint::Regex(regex), Kind::LlamaCpp) => {
            let grammar = regex_grammar::gbnf(regex).map_err(|error| {
                EngineError::InvalidParameter(format!("grammar.regex cannot be made a grammar of llama.cpp: {error}"))
            })?;
            body.own.extend([named("grammar", json!(grammar))]);
        }
        (Constraint::Regex(regex), Kind::Sglang) => body.own.extend([named("regex", json!(regex))]),
        (Constraint::Regex(regex), Kind::Vllm { structured_outputs: true }) => {
            body.own.extend([named("structured_outputs", json!({"regex": regex}))]);
        }
        (Constraint::Lark(grammar), Kind::Vllm { structured_outputs: true }) => {
            body.own.extend([named("structured_outputs", json!({"grammar": grammar}))]);
        }
        (Constraint::Regex(regex), Kind::Vllm { .. }) => body.own.extend([named("guided_regex", json!(regex))]),
        (Constraint::Lark(grammar), Kind::Vllm { .. }) => body.own.extend([named("guided_grammar", json!(grammar))]),
        (Constraint::Regex(_), _) => return Err(unknown_to("grammar.regex", name_of(kind))),
        (Constraint::Lark(_), _) => return Err(unknown_to("grammar.lark", name_of(kind))),
    }
    Ok(())
}

fn reasoning(request: &Generate, kind: Kind, body: &mut Body) -> Result<(), EngineError> {
    let (enabled, effort) = (request.reasoning.enabled, &request.reasoning.effort);
    body.reasoning_effort = effort.clone();
    match (enabled, kind) {
        (None, _) => {}
        (Some(enabled), Kind::LlamaCpp | Kind::Vllm { .. } | Kind::Sglang) => {
            body.own.insert("chat_template_kwargs".to_owned(), json!({"enable_thinking": enabled}));
        }
        (Some(false), Kind::Ollama) => body.reasoning_effort = Some("none".to_owned()),
        (Some(true), Kind::Ollama) => {
            body.reasoning_effort = Some(effort.clone().unwrap_or_else(|| "medium".to_owned()))
        }
        (Some(_), Kind::Other) => return Err(unknown_to("reasoning.enabled", name_of(kind))),
    }
    Ok(())
}

fn messages(request: &Generate, facts: &Facts) -> Result<Vec<Message>, EngineError> {
    let mut messages = Vec::with_capacity(request.messages.len() + 1);
    for (at, message) in request.messages.iter().enumerate() {
        messages.push(
            one(message, facts).map_err(|reason| EngineError::InvalidParameter(format!("messages[{at}]: {reason}")))?,
        );
    }
    if let Some(continuation) = &request.continuation {
        messages.push(begun(continuation, facts)?);
    }
    Ok(messages)
}

fn one(message: &v1::Message, facts: &Facts) -> Result<Message, String> {
    let escaped = |text: &str| facts.escape.apply(text);
    let given = |text: &str| Some(escaped(text)).filter(|text| !text.is_empty());
    if let Some(part) = message.parts.iter().find(|part| part.r#type != "text") {
        return Err(format!("a part of type {:?}: only text is passed on to servers", part.r#type));
    }
    let parts = message.parts.iter().map(|part| Part { r#type: "text".to_owned(), text: escaped(&part.text) });
    let content = match (message.content.as_str(), message.parts.is_empty()) {
        ("", false) => Some(Content::Parts(parts.collect())),
        ("", true) if !message.tool_calls.is_empty() => None,
        (text, _) => Some(Content::Text(escaped(text))),
    };
    let tool_calls = message.tool_calls.iter().map(|call| {
        let function = FunctionCall { name: escaped(&call.name), arguments: escaped(&call.arguments) };
        ChatCompletionMessageToolCalls::Function(ChatCompletionMessageToolCall { id: call.id.clone(), function })
    });
    // A template that knows no `developer` drops such a message or refuses it; every one knows `system`.
    let role = if message.role == "developer" && facts.kind != Kind::Other { "system" } else { &message.role };
    let message = Message {
        role: role.to_owned(),
        content,
        name: given(&message.name),
        tool_calls: tool_calls.collect(),
        tool_call_id: Some(message.tool_call_id.clone()).filter(|id| !id.is_empty()),
        ..thought(&facts.escape, &message.reasoning)
    };
    Ok(message)
}

/// What an assistant thought, under both of its names.
fn thought(escape: &PromptEscape, reasoning: &str) -> Message {
    let reasoning = Some(escape.apply(reasoning)).filter(|text| !text.is_empty());
    Message { reasoning_content: reasoning.clone(), reasoning, ..Message::default() }
}

/// The beginning of the answer as the assistant's message, which the server goes on with.
fn begun(continuation: &Continuation, facts: &Facts) -> Result<Message, EngineError> {
    let cannot = |what: &str| {
        let server = name_of(facts.kind);
        Err(EngineError::Unsupported(format!("{server} cannot go on with {what} that was begun elsewhere: ask anew")))
    };
    if continuation_of(facts.kind) == "none" {
        return cannot("an answer");
    }
    if !continuation.tool_calls.is_empty() {
        return cannot("a tool call");
    }
    // Servers differ in whether the thoughts before a text that has begun are kept.
    if !continuation.reasoning.is_empty() {
        return cannot("an answer with reasoning");
    }
    let content = Some(Content::Text(facts.escape.apply(&continuation.text)));
    Ok(Message { role: "assistant".to_owned(), content, ..Message::default() })
}

fn unknown_to(field: &str, server: &str) -> EngineError {
    EngineError::Unsupported(format!("{server} does not know {field}: leave it out, or ask another model"))
}

fn name_of(kind: Kind) -> &'static str {
    match kind {
        Kind::LlamaCpp => "llama.cpp",
        Kind::Vllm { .. } => "vLLM",
        Kind::Sglang => "SGLang",
        Kind::Ollama => "Ollama",
        Kind::Other => "this server, as far as its API tells,",
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
