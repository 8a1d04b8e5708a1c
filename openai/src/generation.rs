//! What all requests for text have in common: how tokens are chosen, what the text has to be, and what an answer is made of.

use std::ops::RangeInclusive;

use axum::{
    Json,
    response::{IntoResponse as _, Response},
};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use titan_proto::{
    conversation::{MAX_PENALTY, MAX_TEMPERATURE, MAX_TOP_LOGPROBS, add_to},
    v1::{
        Grammar, Reasoning, ResponseFormat, Sampling, StreamRequest, StreamResponse, TokenLogprob, Tool, ToolCall,
        grammar,
    },
};
use tonic::Status;

use crate::{
    backend::{Backend, Caller},
    error::ApiError,
    fields::{Fields, wrong},
    router::Settings,
    sse::{self, Encoder},
};

/// An answer goes on until the model ends it: the engine lowers this to what the context has room for.
const AS_LONG_AS_IT_WANTS: i32 = i32::MAX;
/// The field's default, where a request does not say.
const TEMPERATURE: f32 = 1.0;

/// What both chat and legacy completions say about how tokens are chosen. `limits`: the fields that bound the answer, the strongest first.
pub(crate) fn sampling(fields: &mut Fields, limits: &[&str], request: &mut StreamRequest) -> Result<(), ApiError> {
    request.max_tokens = AS_LONG_AS_IT_WANTS;
    for field in limits.iter().rev() {
        if let Some(limit) = fields.integer(field, 1, i64::MAX)? {
            request.max_tokens = i32::try_from(limit).unwrap_or(AS_LONG_AS_IT_WANTS);
        }
    }
    const TEMPERATURES: RangeInclusive<f64> = 0.0..=MAX_TEMPERATURE as f64;
    const PENALTIES: RangeInclusive<f64> = -(MAX_PENALTY as f64)..=MAX_PENALTY as f64;
    let temperature =
        fields.number_in("temperature", "a number from 0 to 2", |number| TEMPERATURES.contains(&number))?;
    request.temperature = temperature.unwrap_or(TEMPERATURE);
    let mut penalty = |field| fields.number_in(field, "a number from -2 to 2", |number| PENALTIES.contains(&number));
    let (frequency_penalty, presence_penalty) = (penalty("frequency_penalty")?, penalty("presence_penalty")?);
    request.sampling = Some(Sampling {
        top_p: fields
            .number_in("top_p", "a number above 0 and up to 1", |number| number > 0.0 && number <= 1.0)?
            // What is too small for the engines' numbers is not 0.
            .map(|top_p| top_p.max(f32::MIN_POSITIVE)),
        // -1 is vLLM's word for all of them.
        top_k: fields
            .integer("top_k", -1, u32::MAX.into())?
            .filter(|top_k| *top_k > 0)
            .and_then(|top_k| u32::try_from(top_k).ok()),
        min_p: fields.number_in("min_p", "a number from 0 to 1", |number| (0.0..=1.0).contains(&number))?,
        stop: fields.texts("stop")?,
        seed: fields.integer("seed", i64::MIN, i64::MAX)?.map(i64::cast_unsigned),
        frequency_penalty,
        presence_penalty,
    });
    fields.refuse("logit_bias", &[], "leave it out")?;
    fields.refuse("n", &[json!(1)], "send the request several times")?;
    fields.refuse("repetition_penalty", &[json!(1), json!(1.0)], "use frequency_penalty")?;
    grammar_of(fields, request)
}

/// vLLM's ways to say what the text has to be.
fn grammar_of(fields: &mut Fields, request: &mut StreamRequest) -> Result<(), ApiError> {
    let inner = fields.object("structured_outputs")?;
    let mut regex = fields.text("guided_regex")?;
    let mut schema = fields.take("guided_json");
    if let Some(mut inner) = inner {
        regex = inner.text("regex")?.or(regex);
        schema = inner.take("json").or(schema);
        for field in ["choice", "grammar", "structural_tag", "json_object"] {
            inner.refuse(field, &[json!(false)], "use json or regex")?;
        }
    }
    for field in ["guided_choice", "guided_grammar", "structural_tag"] {
        fields.refuse(field, &[], "use guided_regex or response_format")?;
    }
    if regex.is_some() && schema.is_some() {
        let message = "guided_json stands beside guided_regex: give one of them";
        return Err(ApiError::invalid("guided_json", message));
    }
    if let Some(regex) = regex {
        request.grammar = Some(Grammar { kind: Some(grammar::Kind::Regex(regex)) });
    }
    if let Some(schema) = schema {
        let json_schema = match schema {
            Value::String(text) => text,
            schema => schema.to_string(),
        };
        request.response_format = Some(ResponseFormat { r#type: "json_schema".to_owned(), json_schema });
    }
    Ok(())
}

/// Sets what the text has to be, unless something else said so already.
pub(crate) fn set_format(request: &mut StreamRequest, name: &str, format: ResponseFormat) -> Result<(), ApiError> {
    if format.r#type == "text" {
        return Ok(());
    }
    if request.response_format.is_some() || request.grammar.is_some() {
        let message = format!("{name} stands beside guided_json, guided_regex or structured_outputs: give one of them");
        return Err(ApiError::invalid(name, message));
    }
    request.response_format = Some(format);
    Ok(())
}

/// A format that is `{"type": …}` with the schema in `schema`, either beside the type or, as chat has it, in a field `json_schema`.
pub(crate) fn format(mut format: Fields, nested: bool) -> Result<ResponseFormat, ApiError> {
    let kind = format.required_text("type")?;
    let mut json_schema = String::new();
    match kind.as_str() {
        "text" | "json_object" => {}
        "json_schema" => {
            let missing = format.missing("json_schema");
            let mut holder = match nested {
                true => format.object("json_schema")?.ok_or(missing)?,
                false => format,
            };
            let schema = holder.take("schema").ok_or_else(|| holder.missing("schema"))?;
            json_schema = schema.to_string();
        }
        other => {
            let name = format.name("type");
            let message = format!("{name} is {other:?}; accepted is text, json_object or json_schema");
            return Err(ApiError::invalid(name, message));
        }
    }
    Ok(ResponseFormat { r#type: kind, json_schema })
}

/// How hard the model shall think, in the field's words and in ours.
pub(crate) fn effort(name: &str, word: &str) -> Result<Reasoning, ApiError> {
    let effort = match word {
        "none" => return Ok(Reasoning { enabled: Some(false), effort: String::new() }),
        "minimal" | "low" => "low",
        "medium" => "medium",
        "high" | "xhigh" | "max" => "high",
        other => {
            let message = format!("{name} is {other:?}; accepted is none, minimal, low, medium, high, xhigh or max");
            return Err(ApiError::invalid(name, message));
        }
    };
    Ok(Reasoning { enabled: None, effort: effort.to_owned() })
}

/// The number of alternatives for each token, at most what existing APIs give.
pub(crate) fn top_logprobs(fields: &mut Fields, field: &str) -> Result<Option<u32>, ApiError> {
    let top = fields.integer(field, 0, MAX_TOP_LOGPROBS.into())?;
    Ok(top.and_then(|top| u32::try_from(top).ok()))
}

/// The description of a function.
pub(crate) fn function(fields: &mut Fields) -> Result<Tool, ApiError> {
    let parameters = match fields.take("parameters") {
        None => String::new(),
        Some(schema @ Value::Object(_)) => schema.to_string(),
        Some(other) => return Err(wrong(&fields.name("parameters"), "a JSON schema", &other)),
    };
    let name = fields.required_text("name")?;
    Ok(Tool { name, description: fields.text("description")?.unwrap_or_default(), parameters })
}

/// What an answer used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) prompt: u64,
    pub(crate) cached: u64,
    pub(crate) completion: u64,
}

impl Used {
    /// From the last message.
    pub(crate) fn of(last: &StreamResponse) -> Self {
        let number = |name: &str| last.metadata.get(name).and_then(|text| text.parse().ok()).unwrap_or(0);
        Self {
            prompt: number("prompt_tokens"),
            cached: number("cached_tokens"),
            completion: number("completion_tokens"),
        }
    }

    /// As chat and legacy completions have it.
    pub(crate) fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        })
    }
}

/// A whole answer, put together.
#[derive(Debug, Default)]
pub(crate) struct Whole {
    pub(crate) content: String,
    pub(crate) reasoning: String,
    pub(crate) tool_calls: Vec<ToolCall>,
    pub(crate) logprobs: Vec<TokenLogprob>,
    pub(crate) finish_reason: String,
    pub(crate) used: Used,
}

impl Whole {
    /// Reads an answer to its end.
    pub(crate) async fn read<B: Backend>(stream: &mut B::Stream) -> Result<Self, ApiError> {
        let mut whole = Self::default();
        while let Some(message) = stream.next().await {
            if whole.add(message?) {
                return Ok(whole);
            }
        }
        Err(broke_off())
    }

    /// Adds a message; whether it was the last one.
    fn add(&mut self, message: StreamResponse) -> bool {
        self.content.push_str(&message.content);
        self.reasoning.push_str(&message.reasoning);
        for delta in &message.tool_calls {
            add_to(&mut self.tool_calls, delta);
        }
        if message.done {
            self.used = Used::of(&message);
            self.finish_reason = message.finish_reason;
        }
        self.logprobs.extend(message.logprobs);
        message.done
    }
}

/// The stream ended without its last message.
pub(crate) fn broke_off() -> ApiError {
    Status::unavailable("the answer broke off: the agent went away. Send the request again").into()
}

/// A token's probability, as chat and the responses have it.
pub(crate) fn logprob(token: &TokenLogprob) -> Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let top: Vec<Value> = token
        .top
        .iter()
        .map(|top| json!({"token": text(&top.token), "logprob": top.logprob, "bytes": top.token.to_vec()}))
        .collect();
    json!({"token": text(&token.token), "logprob": token.logprob, "bytes": token.token.to_vec(), "top_logprobs": top})
}

/// Has a request answered: streamed, as `encoder` makes events of it, or put together, as `json` has it.
pub(crate) async fn answer<B: Backend>(
    (backend, caller, settings): (&B, &Caller, &Settings),
    request: StreamRequest,
    stream: bool,
    encoder: impl Encoder,
    json: impl FnOnce(Whole) -> Value,
) -> Result<Response, ApiError> {
    let mut answer = backend.generate(caller, request).await?;
    if stream {
        return sse::answer::<B, _>(answer, encoder, settings.comment_interval).await;
    }
    Ok(Json(json(Whole::read::<B>(&mut answer).await?)).into_response())
}

/// Ends a chunk that begins at `start`: what comes behind its choices, and the padding of one that is not the last.
pub(crate) fn end_chunk(out: &mut Vec<u8>, start: usize, include_usage: bool, obfuscate: bool) {
    if include_usage {
        out.extend_from_slice(b",\"usage\":null");
    }
    pad(out, start, obfuscate);
    out.extend_from_slice(b"}\n\n");
}

/// Pads an event that begins at `start` and lacks its end only.
pub(crate) fn pad(out: &mut Vec<u8>, start: usize, obfuscate: bool) {
    if obfuscate {
        out.extend_from_slice(b",\"obfuscation\":\"");
        let padding = obfuscation(out.len() - start + b"\"}\n\n".len());
        out.extend_from_slice(padding.as_bytes());
        out.push(b'"');
    }
}

/// Characters that make up for what a token's text is short of.
const PADDING: &str = "sR7kQ2vLx9TzWm4BpYc8NhJd3FgKaUe6XoVi5ZtCrMw1DqPn0GyHbSfElOjAuIsR7kQ2vL";
/// Events end at multiples of so many bytes: longer than nearly all tokens.
const BLOCK: usize = 64;

/// Padding for an event that has `bytes` without it, so that its length does not tell the token's.
fn obfuscation(bytes: usize) -> &'static str {
    &PADDING[..(BLOCK - bytes % BLOCK) % BLOCK]
}

/// A random id with a prefix of the field's, such as `chatcmpl-`.
pub(crate) fn id(prefix: &str) -> String {
    format!("{prefix}{}", uuid::Uuid::new_v4().simple())
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Writes a value as JSON. Writing into memory does not fail.
pub(crate) fn push_json(out: &mut Vec<u8>, value: &(impl serde::Serialize + ?Sized)) {
    serde_json::to_writer(out, value).unwrap_or_default();
}
