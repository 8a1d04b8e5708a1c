//! Reads the body of an inference request, and says what is wrong with it field by field.

use std::{collections::BTreeMap, time::Duration};

use axum::body::{Body, HttpBody as _};
use http::{HeaderMap, header::EXPECT};
use http_body_util::BodyExt as _;
use serde_json::{Map, Value};
use titan_proto::{
    MAX_REST_BODY_BYTES, digest,
    rest::{ContentPart, InferenceRequest, Message, Tool, ToolCall},
};
use tokio::time::timeout;

use super::error::ApiError;

/// A body of 1 MiB takes 8 s at 1 Mbit/s; slower than that is somebody holding a connection.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What is read and thrown away of a larger body, so that its sender, who is still writing, comes to read why it was refused.
const MAX_DISCARDED_BYTES: u64 = 8 * MAX_REST_BODY_BYTES as u64;

/// Gathers the body, of at most [`MAX_REST_BODY_BYTES`].
pub(crate) async fn read(headers: &HeaderMap, body: Body) -> Result<Vec<u8>, ApiError> {
    let declared = body.size_hint().lower();
    // Whoever waits for `100 Continue` (RFC 9110 §10.1.1) has sent nothing yet.
    let hopeless = declared > MAX_DISCARDED_BYTES || headers.contains_key(EXPECT);
    if declared > MAX_REST_BODY_BYTES as u64 && hopeless {
        return Err(ApiError::payload_too_large());
    }
    timeout(BODY_TIMEOUT, gather(body)).await.unwrap_or_else(|_| Err(ApiError::body_timeout(BODY_TIMEOUT)))
}

async fn gather(mut body: Body) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    let mut seen = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::body_broken())?;
        let Ok(data) = frame.into_data() else { continue };
        seen += data.len() as u64;
        if seen > MAX_DISCARDED_BYTES {
            break;
        }
        if seen <= MAX_REST_BODY_BYTES as u64 {
            bytes.extend_from_slice(&data);
        }
    }
    if seen > MAX_REST_BODY_BYTES as u64 { Err(ApiError::payload_too_large()) } else { Ok(bytes) }
}

/// Whatever its content type says (scripts often leave it out), the body is JSON. `null` counts as absent; unknown fields are skipped.
pub(super) fn parse(body: &[u8]) -> Result<InferenceRequest, ApiError> {
    let value = serde_json::from_slice(body).map_err(|error| {
        let message = if body.is_empty() { "the body is empty".to_owned() } else { error.to_string() };
        ApiError::invalid_json(format!("not JSON: {message}"))
    })?;
    let Value::Object(mut fields) = value else {
        return Err(wrong_type("the body", "an object", &value));
    };
    Ok(InferenceRequest {
        client_id: text(&mut fields, "client_id")?,
        model: text(&mut fields, "model")?,
        prompt: text(&mut fields, "prompt")?,
        max_tokens: whole_number(&mut fields, "max_tokens")?,
        temperature: number(&mut fields, "temperature")?,
        parameters: texts(&mut fields, "parameters")?,
        messages: list(&mut fields, "", "messages", message)?,
        tools: list(&mut fields, "", "tools", tool)?,
        prefix_digests: strings(&mut fields, "prefix_digests")?,
        model_digest: text(&mut fields, "model_digest")?,
    })
}

/// The digests of a conversation's beginnings.
pub(super) fn digests(texts: &[String]) -> Result<Vec<u64>, ApiError> {
    let read = |(at, text): (usize, &String)| {
        let wrong = || ApiError::invalid_parameter(format!("prefix_digests[{at}] must be 16 hexadecimal digits"));
        digest::from_hex(text).ok_or_else(wrong)
    };
    texts.iter().enumerate().map(read).collect()
}

fn message(at: &str, mut fields: Map<String, Value>) -> Result<Message, ApiError> {
    let fields = &mut fields;
    Ok(Message {
        role: text_at(fields, at, "role")?,
        content: text_at(fields, at, "content")?,
        parts: list(fields, at, "parts", part)?,
        tool_calls: list(fields, at, "tool_calls", tool_call)?,
        tool_call_id: text_at(fields, at, "tool_call_id")?,
        name: text_at(fields, at, "name")?,
        reasoning: text_at(fields, at, "reasoning")?,
    })
}

fn part(at: &str, mut fields: Map<String, Value>) -> Result<ContentPart, ApiError> {
    Ok(ContentPart { r#type: text_at(&mut fields, at, "type")?, text: text_at(&mut fields, at, "text")? })
}

fn tool_call(at: &str, mut fields: Map<String, Value>) -> Result<ToolCall, ApiError> {
    let fields = &mut fields;
    let (id, name) = (text_at(fields, at, "id")?, text_at(fields, at, "name")?);
    Ok(ToolCall { id, name, arguments: text_at(fields, at, "arguments")? })
}

fn tool(at: &str, mut fields: Map<String, Value>) -> Result<Tool, ApiError> {
    let fields = &mut fields;
    let (name, description) = (text_at(fields, at, "name")?, text_at(fields, at, "description")?);
    Ok(Tool { name, description, parameters: text_at(fields, at, "parameters")? })
}

/// A list of objects, each read by `read`, which gets its place for its errors, such as `messages[2]`.
fn list<T>(
    fields: &mut Map<String, Value>,
    at: &str,
    name: &str,
    read: fn(&str, Map<String, Value>) -> Result<T, ApiError>,
) -> Result<Vec<T>, ApiError> {
    let place = path(at, name);
    let entries = match take(fields, name) {
        None => return Ok(Vec::new()),
        Some(Value::Array(entries)) => entries,
        Some(other) => return Err(wrong_type(&place, "a list of objects", &other)),
    };
    let read = |(number, entry)| {
        let place = format!("{place}[{number}]");
        match entry {
            Value::Object(fields) => read(&place, fields),
            other => Err(wrong_type(&place, "an object", &other)),
        }
    };
    entries.into_iter().enumerate().map(read).collect()
}

fn strings(fields: &mut Map<String, Value>, name: &str) -> Result<Vec<String>, ApiError> {
    let entries = match take(fields, name) {
        None => return Ok(Vec::new()),
        Some(Value::Array(entries)) => entries,
        Some(other) => return Err(wrong_type(name, "a list of strings", &other)),
    };
    let read = |(number, entry)| match entry {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(&format!("{name}[{number}]"), "a string", &other)),
    };
    entries.into_iter().enumerate().map(read).collect()
}

fn path(at: &str, name: &str) -> String {
    if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") }
}

/// A string, empty where it is absent.
fn text_at(fields: &mut Map<String, Value>, at: &str, name: &str) -> Result<String, ApiError> {
    match take(fields, name) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(wrong_type(&path(at, name), "a string", &other)),
    }
}

fn take(fields: &mut Map<String, Value>, name: &str) -> Option<Value> {
    fields.remove(name).filter(|value| !value.is_null())
}

fn text(fields: &mut Map<String, Value>, name: &str) -> Result<Option<String>, ApiError> {
    match take(fields, name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(wrong_type(name, "a string", &other)),
    }
}

fn whole_number(fields: &mut Map<String, Value>, name: &str) -> Result<Option<i32>, ApiError> {
    let Some(value) = take(fields, name) else { return Ok(None) };
    // Some clients write 100.0.
    let whole = value.as_i64().or_else(|| {
        let number = value.as_f64().filter(|number| number.fract() == 0.0)?;
        (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&number).then_some(number as i64)
    });
    match whole.map(i32::try_from) {
        Some(Ok(number)) => Ok(Some(number)),
        _ => Err(wrong_type(name, "a whole number of 32 bits", &value)),
    }
}

fn number(fields: &mut Map<String, Value>, name: &str) -> Result<Option<f32>, ApiError> {
    let Some(value) = take(fields, name) else { return Ok(None) };
    match value.as_f64() {
        Some(number) => Ok(Some(number as f32)),
        None => Err(wrong_type(name, "a number", &value)),
    }
}

fn texts(fields: &mut Map<String, Value>, name: &str) -> Result<BTreeMap<String, String>, ApiError> {
    let entries = match take(fields, name) {
        None => return Ok(BTreeMap::new()),
        Some(Value::Object(entries)) => entries,
        Some(other) => return Err(wrong_type(name, "an object of strings", &other)),
    };
    let check = |(key, value)| match value {
        Value::String(text) => Ok((key, text)),
        other => Err(wrong_type(&format!("{name}.{key}"), "a string", &other)),
    };
    entries.into_iter().map(check).collect()
}

fn wrong_type(name: &str, expected: &str, found: &Value) -> ApiError {
    let found = match found {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    };
    const SHOWN_CHARS: usize = 100;
    let name: String = name.chars().take(SHOWN_CHARS).collect();
    ApiError::invalid_json(format!("{name} must be {expected}, not {found}"))
}
