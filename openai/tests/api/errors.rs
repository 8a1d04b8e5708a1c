//! What is refused, and in which words.

use async_openai::types::{
    chat::CreateChatCompletionRequest, completions::CreateCompletionRequest, responses::CreateResponse,
};
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::backend::{Fixture, Next, done, request};

const CHAT: &str = "/v1/chat/completions";

fn chat(fields: Value) -> Value {
    merged(json!({"model": "small", "messages": [{"role": "user", "content": "Hello."}]}), fields)
}

fn merged(mut body: Value, fields: Value) -> Value {
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn message(fields: Value) -> Value {
    chat(json!({"messages": [{"role": "user", "content": "x"}, fields]}))
}

fn completion(fields: Value) -> Value {
    merged(json!({"model": "small", "prompt": "x"}), fields)
}

fn response(fields: Value) -> Value {
    merged(json!({"model": "small", "input": "x"}), fields)
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let fixture = Fixture::new();
    let text = |kind: &str| json!({"role": "user", "content": [{"type": kind, kind: {}}]});
    for (path, body, param) in [
        (CHAT, json!({"messages": []}), "model"),
        (CHAT, json!({"model": 1, "messages": []}), "model"),
        (CHAT, json!({"model": "small"}), "messages"),
        (CHAT, json!({"model": "small", "messages": []}), "messages"),
        (CHAT, json!({"model": "small", "messages": "x"}), "messages"),
        (CHAT, message(json!("x")), "messages[1]"),
        (CHAT, message(json!({"content": "x"})), "messages[1].role"),
        (CHAT, message(json!({"role": "function", "content": "x", "name": "f"})), "messages[1].role"),
        (CHAT, message(json!({"role": "user", "content": 1})), "messages[1].content"),
        (CHAT, message(text("image_url")), "messages[1].content[0].type"),
        (CHAT, message(text("input_audio")), "messages[1].content[0].type"),
        (CHAT, message(text("file")), "messages[1].content[0].type"),
        (CHAT, message(json!({"role": "assistant", "audio": {"id": "x"}})), "messages[1].audio"),
        (CHAT, message(json!({"role": "assistant", "function_call": {"name": "x"}})), "messages[1].function_call"),
        (
            CHAT,
            message(json!({"role": "assistant", "tool_calls": [{"type": "custom", "id": "x"}]})),
            "messages[1].tool_calls[0].type",
        ),
        (
            CHAT,
            message(json!({"role": "assistant", "tool_calls": [{"id": "x"}]})),
            "messages[1].tool_calls[0].function",
        ),
        (CHAT, chat(json!({"tools": [{"type": "custom", "custom": {"name": "x"}}]})), "tools[0].type"),
        (CHAT, chat(json!({"tools": [{"type": "function", "function": {}}]})), "tools[0].function.name"),
        (
            CHAT,
            chat(json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": 1}}]})),
            "tools[0].function.parameters",
        ),
        (CHAT, chat(json!({"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}})), "tool_choice.type"),
        (CHAT, chat(json!({"tool_choice": "any"})), "tool_choice"),
        (CHAT, chat(json!({"tool_choice": {"function": {"name": ""}}})), "tool_choice.function.name"),
        (CHAT, chat(json!({"temperature": 2.000_000_000_000_000_4})), "temperature"),
        (CHAT, chat(json!({"top_p": 0})), "top_p"),
        (CHAT, chat(json!({"presence_penalty": -2.1})), "presence_penalty"),
        ("/v1/responses", response(json!({"metadata": [null]})), "metadata"),
        ("/v1/responses", response(json!({"metadata": {"a": 1}})), "metadata.a"),
        (CHAT, chat(json!({"top_logprobs": 3})), "top_logprobs"),
        (CHAT, chat(json!({"guided_json": {}, "guided_regex": "a"})), "guided_json"),
        (CHAT, chat(json!({"guided_regex": "a", "response_format": {"type": "json_object"}})), "response_format"),
        (CHAT, chat(json!({"guided_json": {}, "response_format": {"type": "json_object"}})), "response_format"),
        (CHAT, chat(json!({"n": 2})), "n"),
        (CHAT, chat(json!({"logit_bias": {"5": 1}})), "logit_bias"),
        (CHAT, chat(json!({"modalities": ["text", "audio"]})), "modalities"),
        (CHAT, chat(json!({"audio": {"voice": "x"}})), "audio"),
        (CHAT, chat(json!({"prediction": {"type": "content"}})), "prediction"),
        (CHAT, chat(json!({"web_search_options": {"search_context_size": "low"}})), "web_search_options"),
        (CHAT, chat(json!({"functions": [{"name": "x"}]})), "functions"),
        (CHAT, chat(json!({"function_call": {"name": "x"}})), "function_call"),
        (CHAT, chat(json!({"verbosity": "low"})), "verbosity"),
        (CHAT, chat(json!({"guided_choice": ["x"]})), "guided_choice"),
        (CHAT, chat(json!({"structured_outputs": {"grammar": "x"}})), "structured_outputs.grammar"),
        (CHAT, chat(json!({"chat_template_kwargs": {"x": 1}})), "chat_template_kwargs.x"),
        (CHAT, chat(json!({"response_format": {"type": "xml"}})), "response_format.type"),
        (CHAT, chat(json!({"response_format": {"type": "json_schema"}})), "response_format.json_schema"),
        (
            CHAT,
            chat(json!({"response_format": {"type": "json_schema", "json_schema": {}}})),
            "response_format.json_schema.schema",
        ),
        (CHAT, chat(json!({"reasoning_effort": "huge"})), "reasoning_effort"),
        (CHAT, chat(json!({"max_tokens": 0})), "max_tokens"),
        (CHAT, chat(json!({"max_completion_tokens": 1.5})), "max_completion_tokens"),
        (CHAT, chat(json!({"max_tokens": "many"})), "max_tokens"),
        (CHAT, chat(json!({"temperature": "hot"})), "temperature"),
        (CHAT, chat(json!({"top_logprobs": 21})), "top_logprobs"),
        (CHAT, chat(json!({"stop": [1]})), "stop[0]"),
        (CHAT, chat(json!({"stream": "yes"})), "stream"),
        (CHAT, chat(json!({"seed": 1e300})), "seed"),
        ("/v1/completions", json!({"model": "small"}), "prompt"),
        ("/v1/completions", completion(json!({"prompt": ["a", "b"]})), "prompt"),
        ("/v1/completions", completion(json!({"prompt": [1, 2]})), "prompt"),
        ("/v1/completions", completion(json!({"suffix": "x"})), "suffix"),
        ("/v1/completions", completion(json!({"echo": true})), "echo"),
        ("/v1/completions", completion(json!({"best_of": 2})), "best_of"),
        ("/v1/completions", completion(json!({"logprobs": 6})), "logprobs"),
        ("/v1/responses", json!({"model": "small"}), "input"),
        ("/v1/responses", response(json!({"input": 1})), "input"),
        ("/v1/responses", response(json!({"previous_response_id": "resp_1"})), "previous_response_id"),
        ("/v1/responses", response(json!({"conversation": "c"})), "conversation"),
        ("/v1/responses", response(json!({"prompt": {"id": "p"}})), "prompt"),
        ("/v1/responses", response(json!({"truncation": "auto"})), "truncation"),
        ("/v1/responses", response(json!({"include": ["file_search_call.results"]})), "include[0]"),
        ("/v1/responses", response(json!({"tools": [{"type": "web_search"}]})), "tools[0].type"),
        ("/v1/responses", response(json!({"input": [{"type": "item_reference", "id": "x"}]})), "input[0].type"),
        ("/v1/responses", response(json!({"input": [{"role": "tool", "content": "x"}]})), "input[0].role"),
        (
            "/v1/responses",
            response(json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]})),
            "input[0].content[0].type",
        ),
        ("/v1/responses", response(json!({"text": {"format": {"type": "json_schema"}}})), "text.format.schema"),
    ] {
        let answered = fixture.post(path, body.clone()).await;
        assert_eq!(answered.status, 400, "{body}: {}", answered.body);
        let error = &answered.json()["error"];
        assert_eq!((&error["param"], &error["type"]), (&json!(param), &json!("invalid_request_error")), "{body}");
        let message = error["message"].as_str().unwrap();
        assert!(
            message.starts_with(param.split(".json_schema").next().unwrap().split(".schema").next().unwrap()),
            "{body}: {message}"
        );
        assert!(!fixture.was_asked().await, "{body}");
    }
}

#[tokio::test]
async fn what_asks_for_nothing_is_not_refused() {
    let fixture = Fixture::new();
    let body = chat(json!({
        "n": 1, "logit_bias": {}, "modalities": ["text"], "functions": [], "verbosity": "medium", "audio": null, "stop": null,
        "tools": [], "response_format": {"type": "text"}, "logprobs": false, "parallel_tool_calls": true,
    }));
    fixture.next(Next::Say(vec![Ok(done("stop"))])).await;
    let answered = fixture.post(CHAT, body).await;
    assert_eq!(answered.status, 200, "{}", answered.body);
    assert!(!answered.headers.contains_key("x-titan-ignored"));
}

#[tokio::test]
async fn a_field_that_nobody_knows_is_named_and_ignored() {
    let fixture = Fixture::new();
    for (path, body) in [
        (CHAT, chat(json!({"zebra": 1, "a\nb": 2, "yak": {}}))),
        (CHAT, chat(json!({"zebra": 1, "yak": {}, "stream": true}))),
        ("/v1/completions", completion(json!({"zebra": 1, "yak": {}}))),
        ("/v1/responses", response(json!({"zebra": 1, "yak": {}}))),
    ] {
        fixture.next(Next::Say(vec![Ok(done("stop"))])).await;
        let answered = fixture.post(path, body).await;
        assert_eq!(answered.status, 200, "{}", answered.body);
        let mut names: Vec<&str> = answered.headers["x-titan-ignored"].to_str().unwrap().split(", ").collect();
        names.sort_unstable();
        assert_eq!(names, ["yak", "zebra"]);
    }
}

/// The names of a type's fields, from what serde says when it is given all of them as numbers or none.
fn fields_of<T: serde::de::DeserializeOwned>() -> Vec<&'static str> {
    struct Names(Vec<&'static str>);
    impl<'de> serde::Deserializer<'de> for &mut Names {
        type Error = serde::de::value::Error;
        fn deserialize_any<V: serde::de::Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
            Err(serde::de::Error::custom("no struct"))
        }
        fn deserialize_struct<V: serde::de::Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, Self::Error> {
            self.0 = fields.to_vec();
            Err(serde::de::Error::custom("seen"))
        }
        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
            unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }
    let mut names = Names(Vec::new());
    let _ = T::deserialize(&mut names);
    names.0
}

#[tokio::test]
async fn every_field_that_openai_has_is_known() {
    let fixture = Fixture::new();
    for (path, fields, base) in [
        (CHAT, fields_of::<CreateChatCompletionRequest>(), chat(json!({}))),
        ("/v1/completions", fields_of::<CreateCompletionRequest>(), completion(json!({}))),
        ("/v1/responses", fields_of::<CreateResponse>(), response(json!({}))),
    ] {
        assert!(fields.len() > 15, "{fields:?}");
        for field in fields {
            // A value that no field takes: what is known is refused, or skipped without a word.
            let body = merged(base.clone(), json!({field: [[1]]}));
            fixture.next(Next::Say(vec![Ok(done("stop"))])).await;
            let answered = fixture.post(path, body).await;
            assert!(!answered.headers.contains_key("x-titan-ignored"), "{path} does not know {field}");
        }
    }
}

#[tokio::test]
async fn each_refusal_of_the_backend_has_its_status() {
    let fixture = Fixture::new();
    for (code, http, kind) in [
        (Code::InvalidArgument, 400, "invalid_request_error"),
        (Code::FailedPrecondition, 400, "invalid_request_error"),
        (Code::Unauthenticated, 401, "authentication_error"),
        (Code::PermissionDenied, 403, "permission_error"),
        (Code::NotFound, 404, "not_found_error"),
        (Code::ResourceExhausted, 429, "rate_limit_error"),
        (Code::Internal, 500, "server_error"),
        (Code::Unavailable, 503, "server_error"),
    ] {
        for stream in [false, true] {
            for late in [false, true] {
                let status = Status::new(code, "top_p is odd");
                // Before its first word an answer that goes wrong is an error with a status, streamed or not.
                fixture.next(if late { Next::Say(vec![Err(status)]) } else { Next::Refuse(status) }).await;
                let answered = fixture.post(CHAT, chat(json!({"stream": stream}))).await;
                assert_eq!(answered.status.as_u16(), http, "{code:?}");
                let error = answered.json()["error"].clone();
                assert_eq!((&error["type"], &error["message"]), (&json!(kind), &json!("top_p is odd")));
                assert_eq!(error["param"], if http == 400 { json!("top_p") } else { Value::Null });
                assert_eq!(answered.headers.contains_key("retry-after"), http == 429 || http == 503);
                assert_eq!(answered.headers["content-type"], "application/json");
            }
        }
    }
}

#[tokio::test]
async fn a_prompt_that_the_context_does_not_hold_has_openais_word_for_it() {
    let fixture = Fixture::new();
    for (path, body, param) in [
        (CHAT, chat(json!({})), "messages"),
        ("/v1/completions", completion(json!({})), "prompt"),
        ("/v1/responses", response(json!({})), "input"),
    ] {
        let mut status = Status::invalid_argument("the prompt has 9 tokens");
        status.metadata_mut().insert(titan_proto::REASON, titan_proto::CONTEXT_LENGTH.parse().unwrap());
        fixture.next(Next::Refuse(status)).await;
        let error = fixture.post(path, body).await.json()["error"].clone();
        assert_eq!((&error["code"], &error["param"]), (&json!("context_length_exceeded"), &json!(param)));
    }
}

#[tokio::test]
async fn who_has_no_key_is_told_before_the_body_is_read() {
    let fixture = Fixture::new();
    for (method, path) in
        [("POST", CHAT), ("POST", "/v1/responses"), ("GET", "/v1/models"), ("GET", "/v1/responses/resp_x")]
    {
        let answered = fixture.call(method, path, "wrong", "not JSON").await;
        assert_eq!((answered.status.as_u16(), &answered.json()["error"]["code"]), (401, &json!("invalid_api_key")));
        assert_eq!(answered.headers["www-authenticate"], "Bearer");
    }
}

#[tokio::test]
async fn a_body_that_is_none_is_told_so() {
    let fixture = Fixture::new();
    for (body, says) in [("", "empty"), ("{", "not JSON"), ("[]", "JSON object"), ("\u{0}", "not JSON")] {
        let answered = fixture.call("POST", CHAT, "key", body).await;
        assert_eq!(
            (answered.status.as_u16(), &answered.json()["error"]["code"]),
            (400, &json!("invalid_json")),
            "{body:?}"
        );
        assert!(answered.body.contains(says), "{}", answered.body);
    }
    let large = format!("{{\"model\":\"{}\"}}", "x".repeat(3 << 20));
    let answered = fixture.call("POST", CHAT, "key", large).await;
    assert_eq!(answered.status, 413, "{}", answered.body);
    let mut other = request("POST", CHAT, "key", chat(json!({})).to_string());
    other.headers_mut().insert("content-type", "text/plain".parse().unwrap());
    let response = tower::ServiceExt::oneshot(fixture.router.clone(), other).await.unwrap();
    assert_eq!(response.status(), 415);
    for (method, path, status) in
        [("GET", CHAT, 405), ("POST", "/v1/models", 405), ("GET", "/v1/files", 404), ("POST", "/v1/embeddings", 404)]
    {
        let answered = fixture.call(method, path, "key", "").await;
        assert_eq!(
            (answered.status.as_u16(), answered.json()["error"]["message"].is_string()),
            (status, true),
            "{path}"
        );
    }
}
