//! Conversations, digests, and what models are.

use super::*;
use crate::registry::Condition;

#[tokio::test]
async fn a_conversation_or_its_digests_stand_for_the_prompt() {
    let call = json!({"id": "c1", "name": "f", "arguments": "{}"});
    for (name, value) in [
        (
            "messages",
            json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c1"}]),
        ),
        ("messages", json!([{"role": "user", "parts": [{"type": "text", "text": "Hi"}], "content": null}])),
        ("prefix_digests", json!(["0123456789abcdef", "00000000000000ff"])),
    ] {
        let tools = json!([{"name": "f", "description": "d", "parameters": "{}"}]);
        let body = json!({"client_id": "c", "model": "default", "tools": tools, name: value});
        let response = fixture(true).post(body.to_string()).await;
        assert_eq!(response.status(), StatusCode::OK, "{body}");
        assert_eq!(json_of(response).await["model_digest"], DIGEST);
    }
}

#[tokio::test]
async fn what_is_wrong_in_a_conversation_is_named_by_its_place() {
    let fixture = fixture(true);
    let body = |name: &str, value: Value| {
        let mut body = json!({"client_id": "c", "model": "default", "parameters": {"prompt_digest": "x"}});
        body[name] = value;
        body.to_string()
    };
    for (name, value, code_word, message) in [
        ("messages", json!({}), "invalid_json", "messages must be a list of objects, not an object"),
        ("messages", json!(["hi"]), "invalid_json", "messages[0] must be an object, not a string"),
        ("messages", json!([{"role": 1}]), "invalid_json", "messages[0].role must be a string, not 1"),
        (
            "messages",
            json!([{"parts": [{"type": []}]}]),
            "invalid_json",
            "messages[0].parts[0].type must be a string, not a list",
        ),
        (
            "messages",
            json!([{}, {"tool_calls": [{"arguments": {}}]}]),
            "invalid_json",
            "messages[1].tool_calls[0].arguments must be a string, not an object",
        ),
        ("tools", json!([{"parameters": {}}]), "invalid_json", "tools[0].parameters must be a string, not an object"),
        ("prefix_digests", json!([7]), "invalid_json", "prefix_digests[0] must be a string, not 7"),
        (
            "prefix_digests",
            json!(["0123456789abcdef", "xyz"]),
            "invalid_parameter",
            "prefix_digests[1] must be 16 hexadecimal digits",
        ),
        (
            "prefix_digests",
            json!(vec!["0123456789abcdef"; 65]),
            "invalid_parameter",
            "prefix_digests are 65: at most 64 are accepted",
        ),
        (
            "messages",
            json!(vec![json!({"role": "user"}); 4097]),
            "invalid_parameter",
            "messages are 4097: at most 4096 are accepted",
        ),
        (
            "model_digest",
            json!("abc"),
            "invalid_parameter",
            "model_digest must be 64 hexadecimal digits, a-f in lower case",
        ),
    ] {
        assert_eq!(fixture.refused(body(name, value)).await, (400, code_word.to_owned(), message.to_owned()));
    }
    let both = request_with("messages", json!([{"role": "user", "content": "x"}]));
    assert!(fixture.refused(both).await.2.contains("messages stand beside a prompt"));
    let long = json!([{"role": "user", "content": "x".repeat(MAX_PROMPT_BYTES + 1)}]);
    assert_eq!(fixture.refused(body("messages", long)).await.1, "prompt_too_large");
}

#[tokio::test]
async fn a_request_for_another_digest_is_told_which_there_are() {
    let fixture = fixture(true);
    let wanted = "f".repeat(64);
    let mut body = json!({"client_id": "c", "model": "default", "prompt": "Hi", "model_digest": wanted});
    let (status, code_word, message) = fixture.refused(body.to_string()).await;
    assert_eq!((status, code_word.as_str()), (503, "no_agents"));
    assert!(message.contains(&wanted) && message.contains(DIGEST) && message.contains("same weights"), "{message}");
    body["model"] = "smollm2:135m".into();
    assert!(fixture.refused(body.to_string()).await.2.contains("one that is not known"));
    body["model"] = "default".into();
    body["model_digest"] = DIGEST.into();
    assert_eq!(fixture.post(body.to_string()).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn status_shows_what_models_are_and_how_an_agent_is() {
    let fixture = fixture(true);
    let load = Load { computing: 2, ..Load::default() };
    let condition = Condition::HalfOpen { reason: "it gave no token for 60 s".into() };
    let report = Report { condition, ..Report::default() };
    fixture.dispatcher.registry.lock().heartbeat("agent-1", StreamId(0), load, report, Instant::now()).unwrap();
    let agent = &fixture.get("/api/v1/status?include_agents=true").await["agents"][0];
    assert_eq!((&agent["status"], &agent["computing"]), (&json!("half_open"), &json!(2)));
    assert_eq!(agent["health_reason"], "it gave no token for 60 s");
    assert_eq!(
        (&agent["model_info"][0]["name"], &agent["model_info"][0]["digest"]),
        (&json!("default"), &json!(DIGEST))
    );
}
