//! Chat and legacy completions: what is asked, and what comes back.

use async_openai::types::{
    chat::{CreateChatCompletionResponse, CreateChatCompletionStreamResponse},
    completions::CreateCompletionResponse,
    models::ListModelResponse,
};
use serde_json::{Value, json};
use titan_proto::v1::{StreamResponse, TokenLogprob, TopLogprob, grammar};

use crate::backend::{Fixture, call, done, text, thought};

const CHAT: &str = "/v1/chat/completions";

fn hello() -> Value {
    json!({"model": "small", "messages": [{"role": "user", "content": "Hello."}]})
}

fn with(fields: Value) -> Value {
    let mut body = hello();
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[tokio::test]
async fn a_request_says_all_that_the_agent_knows() {
    let fixture = Fixture::new();
    let body = json!({
        "model": "small",
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "How warm is "}, {"type": "text", "text": "Bern?"}], "name": "ann"},
            {"role": "assistant", "content": null, "reasoning_content": "I look.", "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{\"town\":\"Bern\"}"}},
                {"id": "call_2", "type": "function", "function": {"name": "now", "arguments": ""}}]},
            {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "14"}]},
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "description": "It.", "strict": true, "parameters": {"type": "object"}}}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "logprobs": true, "top_logprobs": 2, "reasoning_effort": "minimal",
        "seed": -1, "stop": ["a", "b"], "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1,
        "frequency_penalty": 0.25, "presence_penalty": -0.5, "max_tokens": 9, "max_completion_tokens": 8.0,
        "user": "u", "metadata": {"a": "b"}, "store": true,
    });
    let answered = fixture.say(vec![text("Hi"), done("stop")], CHAT, body).await;
    assert_eq!(answered.status, 200, "{}", answered.body);
    assert!(!answered.headers.contains_key("x-titan-ignored"));
    let asked = fixture.asked().await;
    let roles: Vec<&str> = asked.messages.iter().map(|message| message.role.as_str()).collect();
    assert_eq!(roles, ["developer", "user", "assistant", "tool"]);
    assert_eq!(asked.messages[1].parts[1].text, "Bern?");
    assert_eq!(asked.messages[1].name, "ann");
    assert_eq!(asked.messages[2].reasoning, "I look.");
    assert_eq!(asked.messages[2].tool_calls[1].arguments, "{}");
    assert_eq!(asked.messages[3].tool_call_id, "call_1");
    assert_eq!(
        (asked.tools[0].name.as_str(), asked.tools[0].parameters.as_str()),
        ("weather", "{\"type\":\"object\"}")
    );
    assert_eq!(asked.tool_choice.unwrap().name, "weather");
    assert_eq!((asked.logprobs, asked.top_logprobs, asked.max_tokens), (true, 2, 8));
    assert_eq!(asked.reasoning.unwrap().effort, "low");
    let sampling = asked.sampling.unwrap();
    assert_eq!((sampling.seed, sampling.top_k), (Some(u64::MAX), Some(40)));
    assert_eq!(sampling.stop, ["a", "b"]);
    assert_eq!((sampling.top_p, sampling.min_p), (Some(0.9), Some(0.1)));
    assert_eq!((sampling.frequency_penalty, sampling.presence_penalty), (Some(0.25), Some(-0.5)));
    assert_eq!(asked.temperature, 0.5);
}

#[tokio::test]
async fn without_a_word_an_answer_is_as_long_as_the_model_wants() {
    let fixture = Fixture::new();
    fixture.say(vec![done("stop")], CHAT, hello()).await;
    let asked = fixture.asked().await;
    assert_eq!((asked.max_tokens, asked.temperature), (i32::MAX, 1.0));
    assert_eq!(asked.reasoning, None);
}

#[tokio::test]
async fn what_the_text_has_to_be_can_be_said_in_each_dialect() {
    let fixture = Fixture::new();
    let schema = json!({"type": "object"});
    for fields in [
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}}}),
        json!({"guided_json": schema}),
        json!({"structured_outputs": {"json": schema}}),
    ] {
        fixture.say(vec![done("stop")], CHAT, with(fields.clone())).await;
        let format = fixture.asked().await.response_format.unwrap();
        assert_eq!(
            (format.r#type.as_str(), format.json_schema.as_str()),
            ("json_schema", "{\"type\":\"object\"}"),
            "{fields}"
        );
    }
    for fields in [json!({"guided_regex": "a+"}), json!({"structured_outputs": {"regex": "a+"}})] {
        fixture.say(vec![done("stop")], CHAT, with(fields)).await;
        assert_eq!(fixture.asked().await.grammar.unwrap().kind, Some(grammar::Kind::Regex("a+".to_owned())));
    }
    // A model that is held to a schema writes its properties in their order.
    let ordered = r#"{"type":"object","properties":{"z":{},"a":{},"m":{}}}"#;
    let body = format!(
        r#"{{"model":"small","messages":[{{"role":"user","content":"x"}}],"response_format":{{"type":"json_schema","json_schema":{{"schema":{ordered}}}}}}}"#
    );
    fixture.next(crate::backend::Next::Say(vec![Ok(done("stop"))])).await;
    fixture.call("POST", CHAT, "key", body).await;
    assert_eq!(fixture.asked().await.response_format.unwrap().json_schema, ordered);
    for (fields, enabled) in [
        (json!({"reasoning_effort": "none"}), Some(false)),
        (json!({"chat_template_kwargs": {"enable_thinking": true}}), Some(true)),
        (json!({"chat_template_kwargs": {"enable_thinking": false}}), Some(false)),
    ] {
        fixture.say(vec![done("stop")], CHAT, with(fields)).await;
        assert_eq!(fixture.asked().await.reasoning.unwrap().enabled, enabled);
    }
}

/// Reasoning, a text and two calls, in pieces.
fn all() -> Vec<StreamResponse> {
    vec![
        thought("I "),
        thought("look."),
        text("Ah: \"\n"),
        text("é"),
        call(0, "call_1", "weather", "{\"to"),
        call(0, "", "", "wn\":1}"),
        call(1, "call_2", "now", "{}"),
        done("tool_calls"),
    ]
}

#[tokio::test]
async fn a_whole_answer_has_what_came() {
    let fixture = Fixture::new();
    let answered = fixture.say(all(), CHAT, hello()).await;
    let json = answered.json();
    let typed: CreateChatCompletionResponse = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(typed.choices[0].message.content.as_deref(), Some("Ah: \"\né"));
    assert_eq!(typed.choices[0].message.tool_calls.as_ref().unwrap().len(), 2);
    let usage = typed.usage.unwrap();
    assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens), (7, 5, 12));
    assert_eq!(json["choices"][0]["message"]["reasoning_content"], "I look.");
    assert_eq!(json["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"], "{\"town\":1}");
    assert_eq!(json["choices"][0]["finish_reason"], "tool_calls");
    assert!(json["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(json["model"], "small");

    let answered = fixture.say(vec![call(0, "c", "f", "{}"), done("tool_calls")], CHAT, hello()).await;
    assert!(answered.json()["choices"][0]["message"]["content"].is_null());
}

#[tokio::test]
async fn a_streamed_answer_has_the_same() {
    let fixture = Fixture::new();
    for options in [json!({"stream": true}), json!({"stream": true, "stream_options": {"include_usage": true}})] {
        let usage = options["stream_options"]["include_usage"] == true;
        let answered = fixture.say(all(), CHAT, with(options)).await;
        assert_eq!(answered.headers["content-type"], "text/event-stream; charset=utf-8");
        assert_eq!(answered.headers["x-accel-buffering"], "no");
        let mut chunks = answered.chunks();
        for chunk in &chunks {
            serde_json::from_value::<CreateChatCompletionStreamResponse>(chunk.clone()).unwrap();
        }
        if usage {
            let last = chunks.pop().unwrap();
            assert_eq!((&last["choices"], &last["usage"]["total_tokens"]), (&json!([]), &json!(12)));
        }
        let deltas: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
        let joined = |field: &str| deltas.iter().filter_map(|delta| delta[field].as_str()).collect::<String>();
        assert_eq!((joined("content"), joined("reasoning_content")), ("Ah: \"\né".to_owned(), "I look.".to_owned()));
        assert_eq!(joined("role"), "assistant");
        let calls: Vec<&Value> = deltas.iter().filter_map(|delta| delta["tool_calls"].get(0)).collect();
        assert_eq!(
            calls[0],
            &json!({"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{\"to"}})
        );
        assert_eq!(calls[1], &json!({"index": 0, "function": {"arguments": "wn\":1}"}}));
        assert_eq!(calls[2]["index"], 1);
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
        assert!(chunks[..chunks.len() - 1].iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null()));
        assert!(chunks.iter().all(|chunk| chunk.get("usage").is_some() == usage));
    }
}

#[tokio::test]
async fn an_answer_without_a_word_has_a_role_and_an_end() {
    let fixture = Fixture::new();
    let chunks = fixture.say(vec![done("stop")], CHAT, with(json!({"stream": true}))).await.chunks();
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(chunks[1]["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn reasoning_and_further_calls_are_left_out_where_that_is_asked_for() {
    let fixture = Fixture::new();
    let fields = json!({"include_reasoning": false, "parallel_tool_calls": false});
    let json = fixture.say(all(), CHAT, with(fields.clone())).await.json();
    let message = &json["choices"][0]["message"];
    assert!(message.get("reasoning_content").is_none());
    assert_eq!(message["tool_calls"].as_array().unwrap().len(), 1);
    let mut streamed = with(fields);
    streamed["stream"] = json!(true);
    let answered = fixture.say(all(), CHAT, streamed).await;
    assert!(!answered.body.contains("reasoning_content") && !answered.body.contains("call_2"), "{}", answered.body);
}

#[tokio::test]
async fn the_length_of_an_event_does_not_tell_the_length_of_its_token() {
    let fixture = Fixture::new();
    let words: Vec<StreamResponse> =
        ["a", "of", "the", "token", "elephant", "\n", "\"", "é"].map(text).into_iter().chain([done("stop")]).collect();
    let lengths = |body: &str| -> Vec<usize> {
        let events: Vec<usize> = body.split_inclusive("\n\n").map(str::len).collect();
        // The first one has the role, the last two are the end.
        events[1..events.len() - 2].to_vec()
    };
    let padded = fixture.say(words.clone(), CHAT, with(json!({"stream": true}))).await;
    let all = lengths(&padded.body);
    assert!(all.iter().all(|length| *length == all[0]), "{all:?}");
    let plain = with(json!({"stream": true, "stream_options": {"include_obfuscation": false}}));
    let plain = fixture.say(words, CHAT, plain).await;
    assert!(!plain.body.contains("obfuscation"));
    let all = lengths(&plain.body);
    assert!(all.iter().any(|length| *length != all[0]), "{all:?}");
}

fn with_logprobs() -> Vec<StreamResponse> {
    let top = vec![
        TopLogprob { token_id: 1, token: b"H".to_vec(), logprob: -0.5 },
        TopLogprob { token_id: 2, token: vec![0xc3], logprob: -1.5 },
    ];
    let token = TokenLogprob { token_id: 1, token: b"H".to_vec(), logprob: -0.5, top };
    vec![StreamResponse { logprobs: vec![token.clone(), token], ..text("HH") }, done("stop")]
}

#[tokio::test]
async fn probabilities_come_as_existing_clients_read_them() {
    let fixture = Fixture::new();
    let fields = json!({"logprobs": true, "top_logprobs": 2});
    let json = fixture.say(with_logprobs(), CHAT, with(fields.clone())).await.json();
    let typed: CreateChatCompletionResponse = serde_json::from_value(json).unwrap();
    let tokens = typed.choices[0].logprobs.as_ref().unwrap().content.as_ref().unwrap();
    assert_eq!((tokens.len(), tokens[0].top_logprobs.len()), (2, 2));
    assert_eq!(tokens[0].top_logprobs[1].bytes, Some(vec![0xc3]));
    let mut streamed = with(fields);
    streamed["stream"] = json!(true);
    let chunks = fixture.say(with_logprobs(), CHAT, streamed).await.chunks();
    assert_eq!(chunks[0]["choices"][0]["logprobs"]["content"][1]["logprob"], -0.5);

    for stream in [false, true] {
        let body = json!({"model": "small", "prompt": ["Hello"], "logprobs": 2, "stream": stream});
        let answered = fixture.say(with_logprobs(), "/v1/completions", body).await;
        let json = if stream { answered.chunks().remove(0) } else { answered.json() };
        let typed: CreateCompletionResponse = serde_json::from_value(json).unwrap();
        assert_eq!(typed.choices[0].text, "HH");
        let logprobs = typed.choices[0].logprobs.as_ref().unwrap();
        assert_eq!(
            (logprobs.tokens.clone(), logprobs.text_offset.clone()),
            (vec!["H".to_owned(), "H".to_owned()], vec![0, 1])
        );
        assert_eq!(fixture.asked().await.prompt, "Hello");
    }
}

#[tokio::test]
async fn models_are_listed_and_found() {
    let fixture = Fixture::new();
    let list = fixture.call("GET", "/v1/models", "key", "").await.json();
    let typed: ListModelResponse = serde_json::from_value(list).unwrap();
    assert_eq!(typed.data.len(), 2);
    let one = fixture.call("GET", "/v1/models/org/big:7b", "key", "").await.json();
    assert_eq!((&one["id"], &one["max_model_len"]), (&json!("org/big:7b"), &json!(2048)));
    let none = fixture.call("GET", "/v1/models/other", "key", "").await;
    assert_eq!((none.status.as_u16(), &none.json()["error"]["code"]), (404, &json!("model_not_found")));
}
