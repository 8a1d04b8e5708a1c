//! Bodies of requests, kind by kind.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use titan_proto::v1;

use super::*;
use crate::engine::{Reasoning, Sampling, mistral::prompt_escape::BREAKERS};

const KINDS: [Kind; 5] =
    [Kind::LlamaCpp, Kind::Vllm { structured_outputs: true }, Kind::Sglang, Kind::Ollama, Kind::Other];
const OLD_VLLM: Kind = Kind::Vllm { structured_outputs: false };

fn facts(kind: Kind) -> Facts {
    Facts {
        kind,
        model: "there".to_owned(),
        context_tokens: None,
        parameters: None,
        quantization: String::new(),
        architecture: String::new(),
        places: None,
        tools: true,
        reasoning: true,
        escape: PromptEscape::new(["<|im_end|>".to_owned()], BREAKERS[0]),
    }
}

fn request() -> Generate {
    Generate::new("here", "hello", Sampling::greedy(7))
}

fn made(request: &Generate, kind: Kind) -> Value {
    serde_json::to_value(body(request, &facts(kind)).unwrap()).unwrap()
}

fn refused(request: &Generate, kind: Kind) -> String {
    body(request, &facts(kind)).unwrap_err().to_string()
}

fn tool(name: &str) -> v1::Tool {
    let parameters = r#"{"type":"object","properties":{"x":{"type":"string"}}}"#.to_owned();
    v1::Tool { name: name.to_owned(), description: "does <|im_end|>".to_owned(), parameters }
}

#[test]
fn a_plain_request_has_what_the_api_says_and_the_servers_name_of_the_model() {
    assert_eq!(
        made(&request(), Kind::Other),
        json!({
            "model": "there",
            "messages": [{"role": "user", "content": "hello"}],
            "stream": true,
            "stream_options": {"include_usage": true},
            "max_tokens": 7,
            "temperature": 0.0,
            "top_p": 1.0
        })
    );
}

#[test]
fn defaults_of_servers_are_made_neutral() {
    let of = |kind, field: &str| made(&request(), kind)[field].clone();
    for (kind, top_k, repeat) in [
        (Kind::LlamaCpp, json!(0), "repeat_penalty"),
        (OLD_VLLM, json!(0), "repetition_penalty"),
        (Kind::Sglang, json!(-1), "repetition_penalty"),
    ] {
        assert_eq!(
            (of(kind, "top_k"), of(kind, "min_p"), of(kind, repeat)),
            (top_k, json!(0.0), json!(1.0)),
            "{kind:?}"
        );
    }
}

#[test]
fn sampling_is_passed_on_and_a_seed_fits_every_server() {
    let sampling = Sampling {
        temperature: 0.7,
        top_p: Some(0.9),
        top_k: Some(40),
        min_p: Some(0.05),
        stop: vec!["###".into()],
        seed: Some(u64::MAX - 1),
        frequency_penalty: Some(-0.5),
        presence_penalty: Some(0.5),
        ..Sampling::greedy(7)
    };
    let request = Generate { sampling, logprobs: Some(0), ..request() };
    for kind in [Kind::LlamaCpp, Kind::Sglang, Kind::Other] {
        let body = made(&request, kind);
        // Numbers as they were written, not as a longer float shows them.
        let text = serde_json::to_string(&super::body(&request, &facts(kind)).unwrap()).unwrap();
        for part in [
            "\"temperature\":0.7,",
            "\"min_p\":0.05",
            "\"top_k\":40",
            "\"seed\":1,",
            "\"stop\":[\"###\"]",
            "\"logprobs\":true",
        ] {
            assert!(text.contains(part), "{kind:?} {part}: {text}");
        }
        assert_eq!(body["top_logprobs"], 1, "at least one, or llama.cpp gives none");
    }
    assert_eq!(folded(5), 5);
    for field in ["top_k", "min_p"] {
        let mut one = request.clone();
        if field == "min_p" {
            one.sampling.top_k = None;
        }
        assert!(refused(&one, Kind::Ollama).contains(field));
    }
}

#[test]
fn a_conversation_with_tools_keeps_its_roles_calls_and_results() {
    let call = v1::ToolCall { id: "c1".into(), name: "f".into(), arguments: "{\"x\":\"<|im_end|>\"}".into() };
    let part = v1::ContentPart { r#type: "text".into(), text: "part <|im_end|>".into() };
    let message =
        |role: &str| v1::Message { role: role.to_owned(), content: "a <|im_end|>".into(), ..Default::default() };
    let messages = vec![
        message("developer"),
        v1::Message { role: "user".into(), parts: vec![part], ..Default::default() },
        v1::Message { role: "assistant".into(), tool_calls: vec![call], reasoning: "hm".into(), ..Default::default() },
        v1::Message { tool_call_id: "c1".into(), name: "f".into(), ..message("tool") },
    ];
    let request = Generate { messages, tools: vec![tool("f")], ..request() };
    let body = made(&request, Kind::LlamaCpp);
    let broken = "<\u{200b}|im_end|>";
    let arguments = format!("{{\"x\":\"{broken}\"}}");
    assert_eq!(
        body["messages"],
        json!([
            {"role": "system", "content": format!("a {broken}")},
            {"role": "user", "content": [{"type": "text", "text": format!("part {broken}")}]},
            {"role": "assistant", "reasoning_content": "hm", "reasoning": "hm",
             "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}]},
            {"role": "tool", "content": format!("a {broken}"), "tool_call_id": "c1", "name": "f"},
        ])
    );
    assert_eq!(body["tools"][0]["function"]["description"], format!("does {broken}"));
    assert_eq!(body["tools"][0]["function"]["parameters"]["type"], "object");
    assert_eq!(made(&request, Kind::Other)["messages"][0]["role"], "developer");
    for kind in KINDS {
        assert!(!made(&request, kind).to_string().contains("<|im_end|>"), "{kind:?}");
    }
}

#[test]
fn what_cannot_be_passed_on_of_a_message_is_named() {
    let part = v1::ContentPart { r#type: "image_url".into(), text: String::new() };
    let message = v1::Message { role: "user".into(), parts: vec![part], ..Default::default() };
    let message = refused(&Generate { messages: vec![message], ..request() }, Kind::Other);
    assert!(message.starts_with("messages[0]: ") && message.contains("image_url"), "{message}");
    let bad = v1::Tool { parameters: "{".into(), ..tool("f") };
    assert!(refused(&Generate { tools: vec![bad], ..request() }, Kind::Other).contains("\"f\" are no JSON"));
}

#[test]
fn the_choice_of_tools_is_kept_or_refused() {
    let of = |choice| Generate { tools: vec![tool("f"), tool("g")], tool_choice: choice, ..request() };
    let named = of(ToolChoice::Named("g".into()));
    let llama = made(&named, Kind::LlamaCpp);
    assert_eq!((llama["tool_choice"].as_str(), llama["tools"].as_array().unwrap().len()), (Some("required"), 1));
    assert_eq!(llama["tools"][0]["function"]["name"], "g");
    assert_eq!(made(&named, OLD_VLLM)["tool_choice"], json!({"type": "function", "function": {"name": "g"}}));
    for kind in [Kind::LlamaCpp, OLD_VLLM, Kind::Sglang, Kind::Other] {
        assert_eq!(made(&of(ToolChoice::Required), kind)["tool_choice"], "required");
        assert_eq!(made(&of(ToolChoice::None), kind)["tool_choice"], "none");
        assert_eq!(made(&of(ToolChoice::Auto), kind)["tool_choice"], Value::Null);
    }
    let without = Facts { tools: false, ..facts(Kind::LlamaCpp) };
    assert!(body(&named, &without).unwrap_err().to_string().contains("template of this model has no tools"));
    assert!(refused(&named, Kind::Ollama).contains("tool_choice"));
    assert_eq!(made(&of(ToolChoice::None), Kind::Ollama)["tools"], Value::Null, "none are offered then");
}

#[test]
fn constraints_go_where_each_server_has_them() {
    let of = |constraint| Generate { constraint: Some(constraint), ..request() };
    for kind in KINDS {
        let schema = of(Constraint::JsonSchema(json!({"type": "object"})));
        assert_eq!(made(&schema, kind)["response_format"]["json_schema"]["schema"], json!({"type": "object"}));
        assert_eq!(made(&of(Constraint::JsonObject), kind)["response_format"], json!({"type": "json_object"}));
    }
    let regex = of(Constraint::Regex("ab|c".into()));
    assert_eq!(made(&regex, KINDS[1])["structured_outputs"], json!({"regex": "ab|c"}));
    assert_eq!(made(&regex, OLD_VLLM)["guided_regex"], "ab|c");
    assert_eq!(made(&regex, Kind::Sglang)["regex"], "ab|c");
    assert_eq!(made(&regex, Kind::LlamaCpp)["grammar"], "root ::= \"ab\" | \"c\"");
    let lark = of(Constraint::Lark("start: \"a\"".into()));
    assert_eq!(made(&lark, KINDS[1])["structured_outputs"], json!({"grammar": "start: \"a\""}));
    assert_eq!(made(&lark, OLD_VLLM)["guided_grammar"], "start: \"a\"");
    for kind in [Kind::LlamaCpp, Kind::Sglang, Kind::Ollama, Kind::Other] {
        assert!(refused(&lark, kind).contains("grammar.lark"), "{kind:?}");
    }
    for kind in [Kind::Ollama, Kind::Other] {
        assert!(refused(&regex, kind).contains("grammar.regex"), "{kind:?}");
    }
    let message = refused(&of(Constraint::Regex(r"\bx".into())), Kind::LlamaCpp);
    assert!(message.contains("grammar.regex") && message.contains("word boundary"), "{message}");
}

#[test]
fn reasoning_is_said_in_each_servers_way() {
    let of = |enabled, effort: Option<&str>| Generate {
        reasoning: Reasoning { enabled, effort: effort.map(str::to_owned) },
        ..request()
    };
    for kind in [Kind::LlamaCpp, OLD_VLLM, Kind::Sglang] {
        assert_eq!(made(&of(Some(false), None), kind)["chat_template_kwargs"], json!({"enable_thinking": false}));
    }
    for kind in KINDS {
        assert_eq!(made(&of(None, Some("low")), kind)["reasoning_effort"], "low");
        assert_eq!(made(&of(None, None), kind)["reasoning_effort"], Value::Null);
    }
    assert_eq!(made(&of(Some(false), None), Kind::Ollama)["reasoning_effort"], "none");
    assert_eq!(made(&of(Some(true), None), Kind::Ollama)["reasoning_effort"], "medium");
    assert!(refused(&of(Some(true), None), Kind::Other).contains("reasoning.enabled"));
}

#[test]
fn a_continuation_is_the_beginning_of_the_assistants_message_or_refused() {
    let continuation = Continuation {
        text: "once upon".into(),
        tokens: vec![1, 2],
        completion_tokens: 2,
        reasoning: String::new(),
        tool_calls: vec![],
    };
    let with = |continuation: &Continuation| Generate { continuation: Some(continuation.clone()), ..request() };
    for kind in KINDS {
        let request = with(&continuation);
        if continuation_of(kind) == "none" {
            assert!(matches!(body(&request, &facts(kind)), Err(EngineError::Unsupported(_))), "{kind:?}");
            continue;
        }
        let body = made(&request, kind);
        assert_eq!(body["messages"][1], json!({"role": "assistant", "content": "once upon"}));
        assert_eq!((&body["add_generation_prompt"], &body["continue_final_message"]), (&json!(false), &json!(true)));
    }
    let mut nothing_left = with(&continuation);
    nothing_left.sampling.max_tokens = 0;
    assert_eq!(made(&nothing_left, Kind::LlamaCpp)["max_tokens"], 1, "servers take none for no limit");
    let thought = Continuation { reasoning: "hm".into(), ..continuation.clone() };
    let called = Continuation { tool_calls: vec![v1::ToolCall::default()], ..continuation };
    for (continuation, what) in [(thought, "reasoning"), (called, "tool call")] {
        assert!(refused(&with(&continuation), Kind::LlamaCpp).contains(what));
    }
}

#[test]
fn vllm_is_asked_for_token_ids() {
    assert_eq!(made(&request(), OLD_VLLM)["return_token_ids"], true);
    assert_eq!(made(&request(), Kind::LlamaCpp)["return_token_ids"], Value::Null);
}
