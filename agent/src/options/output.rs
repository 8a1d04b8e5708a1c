//! What an answer has to be: `tool_choice`, `response_format`, `grammar`, `logprobs`, `reasoning`.

use serde_json::Value;
use titan_proto::{
    conversation::MAX_TOP_LOGPROBS,
    v1::{self, Tool, grammar::Kind},
};

use super::{OptionError, quote};
use crate::engine::{Constraint, Reasoning, ToolChoice};

/// Longest schema, regular expression or grammar in bytes: compiling one takes an engine's time, and that of a hundred nested objects is
/// shorter.
pub const MAX_SCHEMA_BYTES: usize = 64 * 1024;

pub(super) fn tool_choice(choice: Option<v1::ToolChoice>, tools: &[Tool]) -> Result<ToolChoice, OptionError> {
    let v1::ToolChoice { mode, name } = choice.unwrap_or_default();
    let choice = match (mode.as_str(), name.is_empty()) {
        ("" | "auto", true) => ToolChoice::Auto,
        ("none", true) => ToolChoice::None,
        ("required", true) => ToolChoice::Required,
        ("" | "required", false) => ToolChoice::Named(name),
        ("auto" | "none", false) => {
            let problem = format!("names {:?}, which mode {mode:?} contradicts: leave the mode out", quote(&name));
            return Err(OptionError::field("tool_choice", problem));
        }
        _ => return Err(OptionError::out_of_range("tool_choice.mode", mode, "auto, none or required")),
    };
    match &choice {
        ToolChoice::Required | ToolChoice::Named(_) if tools.is_empty() => {
            Err(OptionError::field("tool_choice", "wants a call, and there are no tools: give some"))
        }
        ToolChoice::Named(name) if !tools.iter().any(|tool| tool.name == *name) => {
            let names: Vec<&str> = tools.iter().map(|tool| tool.name.as_str()).collect();
            let problem = format!("is {:?}, which is none of the tools: {}", quote(name), quote(&names.join(", ")));
            Err(OptionError::field("tool_choice.name", problem))
        }
        _ => Ok(choice),
    }
}

pub(super) fn constraint(
    format: Option<v1::ResponseFormat>,
    grammar: Option<v1::Grammar>,
    choice: &ToolChoice,
) -> Result<Option<Constraint>, OptionError> {
    let format = response_format(format.unwrap_or_default())?;
    let grammar = match grammar.and_then(|grammar| grammar.kind) {
        None => None,
        Some(Kind::Regex(regex)) => Some(Constraint::Regex(bounded("grammar.regex", regex)?)),
        Some(Kind::Lark(lark)) => Some(Constraint::Lark(bounded("grammar.lark", lark)?)),
    };
    if format.is_some() && grammar.is_some() {
        return Err(OptionError::field("grammar", "stands beside a response_format: give one of the two"));
    }
    let constraint = format.or(grammar);
    if constraint.is_some() && matches!(choice, ToolChoice::Required | ToolChoice::Named(_)) {
        let problem = "wants a call, and response_format or grammar a text: give one of the two";
        return Err(OptionError::field("tool_choice", problem));
    }
    Ok(constraint)
}

fn response_format(format: v1::ResponseFormat) -> Result<Option<Constraint>, OptionError> {
    let v1::ResponseFormat { r#type, json_schema } = format;
    if r#type != "json_schema" && !json_schema.is_empty() {
        let problem = "is given, but the type is not json_schema";
        return Err(OptionError::field("response_format.json_schema", problem));
    }
    match r#type.as_str() {
        "" | "text" => Ok(None),
        "json_object" => Ok(Some(Constraint::JsonObject)),
        "json_schema" => Ok(Some(Constraint::JsonSchema(schema("response_format.json_schema", &json_schema)?))),
        _ => Err(OptionError::out_of_range("response_format.type", r#type, "text, json_object or json_schema")),
    }
}

/// A JSON schema that is an object. How deep it may be nested is up to serde_json: 128 levels.
pub(super) fn schema(field: &str, text: &str) -> Result<Value, OptionError> {
    if text.len() > MAX_SCHEMA_BYTES {
        return Err(too_long(field, text.len()));
    }
    match serde_json::from_str(text) {
        Ok(schema @ Value::Object(_)) => Ok(schema),
        Ok(_) => Err(OptionError::field(field, "is no JSON object: give a JSON schema such as {\"type\":\"object\"}")),
        Err(error) => Err(OptionError::field(field, format!("is not JSON: {error}"))),
    }
}

fn bounded(field: &str, text: String) -> Result<String, OptionError> {
    match text.len() {
        0 => Err(OptionError::field(field, "is empty: it would allow no text")),
        bytes if bytes > MAX_SCHEMA_BYTES => Err(too_long(field, bytes)),
        _ => Ok(text),
    }
}

fn too_long(field: &str, bytes: usize) -> OptionError {
    OptionError::field(field, format!("has {bytes} bytes; at most {MAX_SCHEMA_BYTES} are accepted"))
}

pub(super) fn logprobs(wanted: bool, top: u32) -> Result<Option<u32>, OptionError> {
    if !wanted && top > 0 {
        return Err(OptionError::field("top_logprobs", format!("is {top}, but logprobs is not set")));
    }
    if top > MAX_TOP_LOGPROBS {
        return Err(OptionError::out_of_range("top_logprobs", top, "0 to 20"));
    }
    Ok(wanted.then_some(top))
}

pub(super) fn reasoning(given: Option<v1::Reasoning>) -> Result<Reasoning, OptionError> {
    let v1::Reasoning { enabled, effort } = given.unwrap_or_default();
    if !matches!(effort.as_str(), "" | "low" | "medium" | "high") {
        return Err(OptionError::out_of_range("reasoning.effort", effort, "low, medium or high"));
    }
    if enabled == Some(false) && !effort.is_empty() {
        return Err(OptionError::field("reasoning.effort", format!("is {effort}, but reasoning is switched off")));
    }
    Ok(Reasoning { enabled, effort: Some(effort).filter(|effort| !effort.is_empty()) })
}
