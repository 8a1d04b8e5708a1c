//! The OpenAPI document of `/v1`.
//!
//! Its types say what [`crate::chat`], [`crate::completions`] and [`crate::responses`] read and write; a test asks the readers about every field that stands here.
//! What a request may say beyond it is OpenAI's and refused by name, or nobody's and named in the answer's header `x-titan-ignored`.

#![allow(dead_code, reason = "these types are read by utoipa's derive alone")]

mod answers;
mod requests;

use std::sync::LazyLock;

use serde_json::json;
use utoipa::OpenApi;

use self::{
    answers::{ChatCompletion, Completion, Deleted, Model, ModelList, Refusals, Response, StreamEvent},
    requests::{ChatRequest, CompletionRequest, ResponseRequest},
};

/// The OpenAI API, straight from the machine that runs the model.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "TitanCompute: the OpenAI API",
        description = "Served by agents, by `titan proxy`, and by a coordinator, which redirects (307) to an agent."
    ),
    paths(chat, completions, create_response, get_response, delete_response, cancel_response, models, model),
    components(schemas(requests::Item, requests::Part))
)]
struct Document;

/// The document, as JSON.
pub fn document() -> &'static str {
    static DOCUMENT: LazyLock<String> = LazyLock::new(written);
    &DOCUMENT
}

fn written() -> String {
    let mut document = json!(Document::openapi());
    // What a derive cannot say: alternatives are given with probabilities only, and who wants a call gives functions.
    let alternatives = json!({"anyOf": [
        {"properties": {"logprobs": {"const": true}}, "required": ["logprobs"]},
        {"properties": {"top_logprobs": {"enum": [null, 0]}}},
    ]});
    let calls = json!({"anyOf": [
        {"properties": {"tool_choice": {"enum": [null, "auto", "none"]}}},
        {"properties": {"tools": {"type": "array", "minItems": 1}}, "required": ["tools"]},
    ]});
    let schemas = &mut document["components"]["schemas"];
    schemas["ChatRequest"]["allOf"] = json!([alternatives, calls]);
    schemas["ResponseRequest"]["allOf"] = json!([calls]);
    format!("{document:#}")
}

#[utoipa::path(post, path = "/v1/chat/completions", request_body = ChatRequest, responses(
    (status = 200, description = "The answer; with `stream` events, each a chunk of it, and `[DONE]` at the end", content(
        (ChatCompletion = "application/json"), (StreamEvent = "text/event-stream")
    )),
    Refusals
))]
fn chat() {}

#[utoipa::path(post, path = "/v1/completions", request_body = CompletionRequest, responses(
    (status = 200, description = "The text; with `stream` events, each a chunk of it, and `[DONE]` at the end", content(
        (Completion = "application/json"), (StreamEvent = "text/event-stream")
    )),
    Refusals
))]
fn completions() {}

#[utoipa::path(post, path = "/v1/responses", request_body = ResponseRequest, responses(
    (status = 200, description = "The response; with `stream` its events", content(
        (Response = "application/json"), (StreamEvent = "text/event-stream")
    )),
    Refusals
))]
fn create_response() {}

#[utoipa::path(get, path = "/v1/responses/{id}", params(
    ("id" = String, Path, description = "Of a response that was created with `background`"),
    ("stream" = Option<bool>, Query, description = "Its events, those that are to come included"),
    ("starting_after" = Option<u64>, Query, description = "With `stream`: only events behind the one with this number"),
), responses(
    (status = 200, description = "The response as far as it is", content(
        (Response = "application/json"), (StreamEvent = "text/event-stream")
    )),
    Refusals
))]
fn get_response() {}

#[utoipa::path(delete, path = "/v1/responses/{id}", params(("id" = String, Path)), responses(
    (status = 200, description = "It is gone", body = Deleted),
    Refusals
))]
fn delete_response() {}

#[utoipa::path(post, path = "/v1/responses/{id}/cancel", params(("id" = String, Path)), responses(
    (status = 200, description = "It has ended", body = Response),
    Refusals
))]
fn cancel_response() {}

#[utoipa::path(get, path = "/v1/models", responses(
    (status = 200, description = "What is served now", body = ModelList),
    Refusals
))]
fn models() {}

#[utoipa::path(get, path = "/v1/models/{id}", params(("id" = String, Path)), responses(
    (status = 200, description = "The model", body = Model),
    Refusals
))]
fn model() {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::Value;

    use super::*;
    use crate::{chat, completions, fields::Fields, responses};

    /// A request that says nothing but these fields, each with nothing in it but what has to be there.
    fn ignored(schema: &str, required: Value, read: fn(Fields) -> Vec<String>) -> Vec<String> {
        let document: Value = serde_json::from_str(document()).unwrap();
        let properties = document["components"]["schemas"][schema]["properties"].as_object().unwrap();
        let mut body = required;
        for name in properties.keys() {
            body.as_object_mut().unwrap().entry(name).or_insert(Value::Null);
        }
        // `null` is as good as absent but for whoever asks what is left.
        read(Fields::parse(body.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn the_readers_know_every_field_of_the_document() {
        let chat_body = json!({"model": "m", "messages": [{"role": "user", "content": "x"}]});
        let of = [
            ignored("ChatRequest", chat_body, |fields| chat::read(fields).unwrap().ignored),
            ignored("CompletionRequest", json!({"model": "m", "prompt": "x"}), |fields| {
                completions::read(fields).unwrap().ignored
            }),
            ignored("ResponseRequest", json!({"model": "m", "input": "x"}), |fields| {
                responses::read(fields).unwrap().ignored
            }),
        ];
        assert_eq!(of, [const { Vec::<String>::new() }; 3]);
    }
}
