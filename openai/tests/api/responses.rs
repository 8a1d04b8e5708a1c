//! The Responses API in the foreground.

use async_openai::types::responses::{Response, ResponseStreamEvent};
use serde_json::{Value, json};
use titan_proto::v1::{StreamResponse, TokenLogprob};

use crate::backend::{Fixture, call, done, text, thought};

const RESPONSES: &str = "/v1/responses";

fn events(body: &str) -> Vec<Value> {
    let events: Vec<Value> = body
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    let names: Vec<&str> = body.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    let types: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(names, types);
    for (at, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], at, "{event}");
        serde_json::from_value::<ResponseStreamEvent>(event.clone()).unwrap_or_else(|error| panic!("{error}: {event}"));
    }
    events
}

#[tokio::test]
async fn items_become_a_conversation() {
    let fixture = Fixture::new();
    let body = json!({
        "model": "small",
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": "How warm is Bern?"},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "I look."}]},
            {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "content": [{"type": "output_text", "text": "A moment.", "annotations": []}]},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": ""},
            {"type": "function_call_output", "call_id": "c1", "output": "14"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "15"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "And now?"}]},
        ],
        "tools": [{"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": true}],
        "tool_choice": {"type": "function", "name": "weather"},
        "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
        "reasoning": {"effort": "high", "summary": "auto"},
        "max_output_tokens": 16, "temperature": 0, "metadata": {"a": "b"}, "include": ["reasoning.encrypted_content"],
    });
    let answered = fixture.say(vec![text("14"), done("stop")], RESPONSES, body).await;
    assert_eq!(answered.status, 200, "{}", answered.body);
    let asked = fixture.asked().await;
    let seen: Vec<(&str, &str, usize)> = asked
        .messages
        .iter()
        .map(|message| (message.role.as_str(), message.content.as_str(), message.tool_calls.len()))
        .collect();
    assert_eq!(
        seen,
        [
            ("system", "Be brief.", 0),
            ("user", "How warm is Bern?", 0),
            ("assistant", "A moment.", 2),
            ("tool", "14", 0),
            ("tool", "", 0),
            ("user", "", 0)
        ]
    );
    assert_eq!(asked.messages[2].reasoning, "I look.");
    assert_eq!(asked.messages[5].parts[0].text, "And now?");
    assert_eq!(asked.tool_choice.unwrap().name, "weather");
    assert_eq!(asked.response_format.unwrap().json_schema, "{\"type\":\"object\"}");
    assert_eq!((asked.reasoning.unwrap().effort.as_str(), asked.max_tokens, asked.temperature), ("high", 16, 0.0));

    let json = answered.json();
    serde_json::from_value::<Response>(json.clone()).unwrap();
    assert_eq!(
        (&json["status"], &json["metadata"]["a"], &json["max_output_tokens"]),
        (&json!("completed"), &json!("b"), &json!(16))
    );
    assert_eq!(json["output"][0]["content"][0]["text"], "14");
    assert_eq!((&json["usage"]["input_tokens"], &json["usage"]["total_tokens"]), (&json!(7), &json!(12)));
    assert!(json["id"].as_str().unwrap().starts_with("resp_here_"));
    assert_eq!(titan_openai::origin_of(json["id"].as_str().unwrap()), Some("here"));
}

#[tokio::test]
async fn events_come_in_the_order_of_the_field() {
    let fixture = Fixture::new();
    let messages = vec![
        thought("I "),
        thought("look."),
        text("A "),
        text("moment."),
        call(0, "c1", "weather", ""),
        call(0, "", "", "{}"),
        call(1, "c2", "now", "{}"),
        done("tool_calls"),
    ];
    let answered = fixture.say(messages, RESPONSES, json!({"model": "small", "input": "x", "stream": true})).await;
    assert!(!answered.body.contains("[DONE]"));
    let events = events(&answered.body);
    let types: Vec<&str> =
        events.iter().map(|event| event["type"].as_str().unwrap().trim_start_matches("response.")).collect();
    assert_eq!(
        types,
        [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "reasoning_text.delta",
            "reasoning_text.delta",
            "reasoning_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "completed",
        ]
    );
    let last = &events.last().unwrap()["response"];
    let kinds: Vec<&Value> = last["output"].as_array().unwrap().iter().map(|item| &item["type"]).collect();
    assert_eq!(kinds, ["reasoning", "message", "function_call", "function_call"]);
    assert_eq!(
        last["output"][2],
        json!({"id": last["output"][2]["id"], "type": "function_call", "status": "completed", "call_id": "c1", "name": "weather", "arguments": "{}"})
    );
    let text: String = events
        .iter()
        .filter(|event| event["type"] == "response.output_text.delta")
        .map(|event| event["delta"].as_str().unwrap())
        .collect();
    assert_eq!(text, last["output"][1]["content"][0]["text"].as_str().unwrap());
}

#[tokio::test]
async fn an_answer_that_was_cut_short_is_incomplete() {
    let fixture = Fixture::new();
    for stream in [false, true] {
        let body = json!({"model": "small", "input": "x", "stream": stream});
        let answered = fixture.say(vec![text("A"), done("length")], RESPONSES, body).await;
        let json = if stream { events(&answered.body).pop().unwrap()["response"].clone() } else { answered.json() };
        assert_eq!(
            (&json["status"], &json["incomplete_details"]["reason"]),
            (&json!("incomplete"), &json!("max_output_tokens"))
        );
    }
}

#[tokio::test]
async fn a_call_that_was_cut_short_is_not_one_to_act_upon() {
    let fixture = Fixture::new();
    let messages = vec![call(0, "c1", "weather", "{\"to"), done("length")];
    let json = fixture.say(messages, RESPONSES, json!({"model": "small", "input": "x"})).await.json();
    assert_eq!((&json["status"], &json["output"][0]["status"]), (&json!("incomplete"), &json!("incomplete")));
}

#[tokio::test]
async fn the_probabilities_of_all_tokens_of_a_text_are_given() {
    let fixture = Fixture::new();
    let token = |text: &str| TokenLogprob { token: text.as_bytes().to_vec(), logprob: -0.5, ..TokenLogprob::default() };
    // The first bytes of a character show nothing yet.
    let silent = StreamResponse { logprobs: vec![token("a"), token("b")], ..StreamResponse::default() };
    let said = StreamResponse { logprobs: vec![token("c")], ..text("é") };
    let body = json!({"model": "small", "input": "x", "include": ["message.output_text.logprobs"]});
    let json = fixture.say(vec![silent, said, done("stop")], RESPONSES, body).await.json();
    assert_eq!(json["output"].as_array().unwrap().len(), 1);
    let logprobs = json["output"][0]["content"][0]["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.iter().map(|token| token["token"].as_str().unwrap()).collect::<String>(), "abc");
}
