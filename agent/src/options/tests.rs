#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use proptest::prelude::*;
use serde_json::json;
use titan_proto::{
    conversation::{MAX_MESSAGES, MAX_TOOL_CALLS, MAX_TOOLS},
    v1::{self, ContentPart, Grammar, ResponseFormat, Tool, ToolCall, grammar::Kind},
};

use super::{sampling::sampling, *};
use crate::engine::{Constraint, Reasoning, Sampling, ToolChoice};

fn request(options: &[(&str, &str)]) -> StreamRequest {
    StreamRequest {
        prompt: "hello".into(),
        options: options.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        ..Default::default()
    }
}

fn sampled(options: &[(&str, &str)]) -> Sampling {
    generate(request(options), "m".into(), "me").unwrap().sampling
}

fn refusal(options: &[(&str, &str)]) -> String {
    generate(request(options), "m".into(), "me").unwrap_err().to_string()
}

#[test]
fn what_is_absent_is_the_default_or_neutral() {
    let generate = generate(request(&[]), "m".into(), "me").unwrap();
    assert_eq!((generate.model.as_str(), generate.messages[0].content.as_str()), ("m", "hello"));
    let sampling = generate.sampling;
    assert_eq!((sampling.max_tokens, sampling.temperature), (100, 0.0));
    assert_eq!((sampling.top_p, sampling.top_k, sampling.min_p, sampling.seed), (None, None, None, None));
    assert!(sampling.stop.is_empty());
}

#[test]
fn every_option_is_read() {
    let sampling = sampled(&[
        ("top_p", "0.9"),
        ("top_k", "40"),
        ("min_p", "0.05"),
        ("stop", "###"),
        ("seed", "18446744073709551615"),
        ("frequency_penalty", "-2"),
        ("presence_penalty", "2.0"),
    ]);
    assert_eq!((sampling.top_p, sampling.top_k, sampling.min_p), (Some(0.9), Some(40), Some(0.05)));
    assert_eq!((sampling.stop.as_slice(), sampling.seed), (["###".to_owned()].as_slice(), Some(u64::MAX)));
    assert_eq!((sampling.frequency_penalty, sampling.presence_penalty), (Some(-2.0), Some(2.0)));
}

#[test]
fn values_out_of_range_are_refused_by_name_value_and_range() {
    for (name, value) in [
        ("top_p", "0"),
        ("top_p", "1.01"),
        ("top_p", "NaN"),
        ("top_p", ""),
        ("top_k", "0"),
        ("top_k", "-1"),
        ("top_k", "1.5"),
        ("min_p", "-0.1"),
        ("min_p", "inf"),
        ("seed", "-1"),
        ("seed", "18446744073709551616"),
        ("frequency_penalty", "2.1"),
        ("presence_penalty", "-3"),
        ("stop", ""),
        ("stop", "[\"a\", \"\"]"),
        ("stop", "[1]"),
    ] {
        let message = refusal(&[(name, value)]);
        assert!(message.starts_with(&format!("{name} is {value:?}; accepted is ")), "{message}");
    }
}

#[test]
fn an_unknown_option_is_refused_with_the_known_ones() {
    let message = refusal(&[("topp", "0.5")]);
    assert!(message.contains("\"topp\"") && message.contains("top_p, top_k"), "{message}");
}

#[test]
fn max_tokens_and_temperature_are_checked() {
    for (max_tokens, temperature, named) in [
        (-1, 0.0, "max_tokens is \"-1\""),
        (i32::MIN, 0.0, "max_tokens"),
        (1, -0.1, "temperature is \"-0.1\""),
        (1, f32::NAN, "temperature is \"NaN\""),
        (1, f32::INFINITY, "temperature is \"inf\""),
        (1, 2.01, "temperature is \"2.01\""),
    ] {
        let message = sampling(max_tokens, temperature, &HashMap::new(), None).unwrap_err().to_string();
        assert!(message.starts_with(named), "{message}");
    }
    assert_eq!(sampling(i32::MAX, 2.0, &HashMap::new(), None).unwrap().max_tokens, i32::MAX as u32);
}

#[test]
fn stop_is_one_text_or_a_json_array() {
    assert_eq!(sampled(&[("stop", "[\"a\", \"b\\n\"]")]).stop, ["a", "b\n"]);
    assert_eq!(sampled(&[("stop", "[END]")]).stop, ["[END]"]);
    assert_eq!(sampled(&[("stop", "\"quoted\"")]).stop, ["\"quoted\""]);
    assert_eq!(sampled(&[("stop", "[]")]).stop, Vec::<String>::new());
}

#[test]
fn stop_texts_are_bounded_in_number_and_length() {
    let many = serde_json::to_string(&vec!["x"; MAX_STOPS + 1]).unwrap();
    assert!(refusal(&[("stop", &many)]).contains("17 texts; at most 16"));
    let long = "x".repeat(MAX_STOP_BYTES + 1);
    assert!(refusal(&[("stop", &long)]).contains("257 bytes; at most 256"));
}

#[test]
fn the_prompt_is_neither_empty_nor_beyond_the_limit() {
    let empty = StreamRequest::default();
    assert_eq!(generate(empty, "m".into(), "me").unwrap_err(), OptionError::EmptyPrompt);
    let long = StreamRequest { prompt: "x".repeat(MAX_PROMPT_BYTES + 1), ..Default::default() };
    assert!(matches!(generate(long, "m".into(), "me"), Err(OptionError::PromptTooLong { .. })));
    let full = StreamRequest { prompt: "x".repeat(MAX_PROMPT_BYTES), ..Default::default() };
    assert!(generate(full, "m".into(), "me").is_ok());
}

#[test]
fn a_continuation_may_have_no_tokens_left_and_names_its_number() {
    let of = |text: &str, token_ids: Vec<u32>, completion_tokens, max_tokens| {
        let continuation =
            Some(v1::Continuation { text: text.into(), token_ids, completion_tokens, ..Default::default() });
        generate(StreamRequest { continuation, max_tokens, ..request(&[]) }, "m".into(), "me")
    };
    let nothing_left = of("a b", vec![1, 2], 2, 0).unwrap();
    assert_eq!(nothing_left.sampling.max_tokens, 0, "not the default");
    assert_eq!(nothing_left.continuation.unwrap().tokens, [1, 2]);
    assert_eq!(of("a b", vec![], 2, 7).unwrap().sampling.max_tokens, 7);
    for wrong in [of("", vec![1], 1, 1), of("a", vec![1], 2, 1), of("a", vec![], u32::MAX, 1)] {
        assert!(wrong.unwrap_err().to_string().starts_with("continuation."));
    }
}

#[test]
fn a_long_value_is_not_sent_back_whole() {
    let message = refusal(&[("top_p", &"9é".repeat(100_000))]);
    assert!(message.len() < 250, "{}", message.len());
}

/// A conversation in which each kind of message has its place.
fn conversation() -> Vec<Message> {
    let call = ToolCall { id: "c1".into(), name: "weather".into(), arguments: "{\"town\":\"Bern\"}".into() };
    vec![
        Message::system("Be brief."),
        Message { role: "developer".into(), ..Message::system("No emoji.") },
        Message::user("Is it warm?"),
        Message { tool_calls: vec![call], reasoning: "I have to look.".into(), ..Message::assistant("") },
        Message { name: "weather".into(), ..Message::tool("c1", "14 °C") },
    ]
}

fn weather() -> Tool {
    let parameters = json!({"type": "object", "properties": {"town": {"type": "string"}}}).to_string();
    Tool { name: "weather".into(), description: "Weather of a town".into(), parameters }
}

fn conversing() -> StreamRequest {
    StreamRequest { messages: conversation(), tools: vec![weather()], ..StreamRequest::default() }
}

fn accepted(request: StreamRequest) -> Generate {
    generate(request, "m".into(), "me").unwrap()
}

/// The refusal of a conversation that `change` has spoilt: one line that begins with the field.
#[track_caller]
fn refused(beginning: &str, change: impl FnOnce(&mut StreamRequest)) {
    let mut request = conversing();
    change(&mut request);
    let message = generate(request, "m".into(), "me").unwrap_err().to_string();
    assert!(message.starts_with(beginning) && !message.contains('\n') && message.len() < 300, "{message}");
}

#[test]
fn a_conversation_comes_through_as_it_was_said() {
    let generate = accepted(conversing());
    assert_eq!((generate.messages, generate.tools), (conversation(), vec![weather()]));
    assert_eq!((generate.owner.as_str(), generate.tool_choice), ("me", ToolChoice::Auto));
    assert_eq!((generate.constraint, generate.logprobs, generate.reasoning), (None, None, Reasoning::default()));
    let one = accepted(StreamRequest { messages: vec![Message::user("hello")], ..StreamRequest::default() });
    assert_eq!(one, accepted(request(&[])), "a prompt means one message of the user");
}

#[test]
fn parts_are_read_as_one_text_and_images_are_refused_by_name() {
    let part = |kind: &str, text: &str| ContentPart { r#type: kind.into(), text: text.into() };
    let with = |parts| StreamRequest { messages: vec![Message { parts, ..Message::user("") }], ..Default::default() };
    let generate = accepted(with(vec![part("text", "a"), part("text", "b")]));
    assert_eq!((generate.messages[0].content.as_str(), generate.messages[0].parts.len()), ("ab", 0));
    let message = super::generate(with(vec![part("text", "a"), part("image_url", "")]), "m".into(), "me").unwrap_err();
    let said = "messages[0].parts[1].type is \"image_url\"; accepted is text alone: this agent reads no images yet";
    assert_eq!(message.to_string(), said);
    let both = Message { parts: vec![part("text", "a")], ..Message::user("b") };
    refused("messages[0].parts stand beside content", |r| r.messages = vec![both]);
}

#[test]
fn messages_are_refused_by_place_and_field() {
    refused("messages stand beside a prompt", |r| r.prompt = "hello".into());
    refused("messages are 4097; at most 4096", |r| r.messages = vec![Message::user("x"); MAX_MESSAGES + 1]);
    refused("messages[0].role is \"bot\"; accepted is system, developer, user", |r| r.messages[0].role = "bot".into());
    refused("messages[0].role is \"\"", |r| r.messages[0].role.clear());
    refused("messages[2] has neither content nor parts", |r| r.messages[2].content.clear());
    refused("messages[3] has neither", |r| {
        r.messages[3].tool_calls.clear();
        r.messages[3].reasoning.clear();
    });
    refused("messages[2].tool_calls stand in a message of role \"user\"", |r| {
        r.messages[2].tool_calls = r.messages[3].tool_calls.clone();
    });
    refused("messages[2].reasoning stand in", |r| r.messages[2].reasoning = "hm".into());
    refused("messages[2].tool_call_id stands in", |r| r.messages[2].tool_call_id = "c1".into());
    refused("messages[2].name has 257 bytes", |r| r.messages[2].name = "n".repeat(257));
    refused("messages[4].tool_call_id is \"c2\": give the id of a call in an earlier", |r| {
        r.messages[4].tool_call_id = "c2".into();
    });
    refused("messages[3].tool_call_id is \"c1\"", |r| r.messages.swap(3, 4));
    refused("messages end with the assistant's", |r| {
        r.messages.pop();
    });
    refused("messages[3].tool_calls[0].id has 0 bytes", |r| r.messages[3].tool_calls[0].id.clear());
    refused("messages[3].tool_calls[1].id is \"c1\" a second time", |r| {
        let call = r.messages[3].tool_calls[0].clone();
        r.messages[3].tool_calls.push(call);
    });
    refused("messages[3].tool_calls[0].name is \"a b\"; accepted is 1 to 64", |r| {
        r.messages[3].tool_calls[0].name = "a b".into();
    });
    for arguments in ["", "[]", "{\"town\":"] {
        refused("messages[3].tool_calls[0].arguments are", |r| {
            r.messages[3].tool_calls[0].arguments = arguments.into()
        });
    }
    refused("messages[3].tool_calls are 129; at most 128", |r| {
        r.messages[3].tool_calls = vec![ToolCall::default(); MAX_TOOL_CALLS + 1];
    });
    refused("prompt has ", |r| r.messages[2].content = "x".repeat(MAX_PROMPT_BYTES));
    refused("prompt has ", |r| r.tools[0].description = "x".repeat(MAX_PROMPT_BYTES));
}

#[test]
fn a_tool_may_give_nothing_and_a_conversation_may_end_with_the_system() {
    let mut request = conversing();
    request.messages[4].content.clear();
    request.messages.push(Message::system("Answer now."));
    assert_eq!(accepted(request).messages.len(), 6);
}

#[test]
fn tools_are_refused_by_place_and_field() {
    refused("tools are 129; at most 128", |r| r.tools = vec![weather(); MAX_TOOLS + 1]);
    refused("tools[0].name is \"\"", |r| r.tools[0].name.clear());
    refused("tools[0].name is \"wétter\"", |r| r.tools[0].name = "wétter".into());
    refused("tools[0].name is", |r| r.tools[0].name = "n".repeat(65));
    refused("tools[1].name is \"weather\" a second time", |r| r.tools.push(weather()));
    refused("tools[0].parameters is not JSON", |r| r.tools[0].parameters = "{".into());
    refused("tools[0].parameters is no JSON object", |r| r.tools[0].parameters = "true".into());
    refused("tools[0].parameters has 65537 bytes", |r| r.tools[0].parameters = " ".repeat(MAX_SCHEMA_BYTES + 1));
    refused("tools[0].parameters is not JSON", |r| r.tools[0].parameters = "[".repeat(1000) + &"]".repeat(1000));
    let mut request = conversing();
    request.tools[0].parameters.clear();
    assert_eq!(accepted(request).tools[0].parameters, "", "no arguments");
}

#[test]
fn a_tool_choice_fits_the_tools() {
    let choice = |mode: &str, name: &str| Some(v1::ToolChoice { mode: mode.into(), name: name.into() });
    for (given, read) in [
        (choice("", ""), ToolChoice::Auto),
        (choice("auto", ""), ToolChoice::Auto),
        (choice("none", ""), ToolChoice::None),
        (choice("required", ""), ToolChoice::Required),
        (choice("", "weather"), ToolChoice::Named("weather".into())),
    ] {
        assert_eq!(accepted(StreamRequest { tool_choice: given, ..conversing() }).tool_choice, read);
    }
    refused("tool_choice.mode is \"any\"; accepted is auto, none or required", |r| r.tool_choice = choice("any", ""));
    refused("tool_choice.name is \"time\", which is none of the tools: weather", |r| {
        r.tool_choice = choice("", "time")
    });
    refused("tool_choice names \"weather\", which mode \"none\" contradicts", |r| {
        r.tool_choice = choice("none", "weather");
    });
    for (mode, name) in [("required", ""), ("", "weather")] {
        refused("tool_choice wants a call, and there are no tools", |r| {
            (r.tools, r.tool_choice) = (Vec::new(), choice(mode, name));
        });
    }
}

#[test]
fn what_the_text_has_to_be_is_read_and_checked() {
    let format = |kind: &str, schema: &str| Some(ResponseFormat { r#type: kind.into(), json_schema: schema.into() });
    let grammar = |kind| Some(Grammar { kind: Some(kind) });
    let schema = "{\"type\":\"object\"}";
    let read =
        |response_format, grammar| accepted(StreamRequest { response_format, grammar, ..conversing() }).constraint;
    assert_eq!((read(format("text", ""), None), read(None, Some(Grammar::default()))), (None, None));
    assert_eq!(read(format("json_object", ""), None), Some(Constraint::JsonObject));
    let parsed = serde_json::from_str(schema).unwrap();
    assert_eq!(read(format("json_schema", schema), None), Some(Constraint::JsonSchema(parsed)));
    assert_eq!(read(None, grammar(Kind::Regex("a+".into()))), Some(Constraint::Regex("a+".into())));
    assert_eq!(read(None, grammar(Kind::Lark("start: \"a\"".into()))), Some(Constraint::Lark("start: \"a\"".into())));

    refused("response_format.type is \"xml\"; accepted is", |r| r.response_format = format("xml", ""));
    refused("response_format.json_schema is not JSON", |r| r.response_format = format("json_schema", ""));
    refused("response_format.json_schema is no JSON object", |r| r.response_format = format("json_schema", "1"));
    refused("response_format.json_schema is given, but", |r| r.response_format = format("json_object", schema));
    refused("grammar stands beside a response_format", |r| {
        (r.response_format, r.grammar) = (format("json_object", ""), grammar(Kind::Regex("a".into())));
    });
    refused("grammar.regex is empty", |r| r.grammar = grammar(Kind::Regex(String::new())));
    refused("grammar.lark has 65537 bytes", |r| r.grammar = grammar(Kind::Lark("x".repeat(MAX_SCHEMA_BYTES + 1))));
    refused("tool_choice wants a call, and response_format or grammar a text", |r| {
        r.tool_choice = Some(v1::ToolChoice { mode: "required".into(), ..Default::default() });
        r.response_format = format("json_object", "");
    });
}

#[test]
fn logprobs_and_reasoning_are_checked() {
    let logprobs = |logprobs, top_logprobs| accepted(StreamRequest { logprobs, top_logprobs, ..conversing() }).logprobs;
    assert_eq!((logprobs(false, 0), logprobs(true, 0), logprobs(true, 20)), (None, Some(0), Some(20)));
    refused("top_logprobs is 3, but logprobs is not set", |r| r.top_logprobs = 3);
    refused("top_logprobs is \"21\"; accepted is 0 to 20", |r| (r.logprobs, r.top_logprobs) = (true, 21));

    let reasoning = |enabled, effort: &str| Some(v1::Reasoning { enabled, effort: effort.into() });
    let read = accepted(StreamRequest { reasoning: reasoning(Some(true), "low"), ..conversing() }).reasoning;
    assert_eq!(read, Reasoning { enabled: Some(true), effort: Some("low".into()) });
    refused("reasoning.effort is \"max\"; accepted is low, medium or high", |r| r.reasoning = reasoning(None, "max"));
    refused("reasoning.effort is low, but reasoning is switched off", |r| r.reasoning = reasoning(Some(false), "low"));
}

#[test]
fn sampling_as_fields_is_the_same_as_by_name() {
    let typed = v1::Sampling {
        top_p: Some(0.5),
        top_k: Some(40),
        min_p: Some(0.25),
        stop: vec!["a".into(), "b".into()],
        seed: Some(7),
        frequency_penalty: Some(-2.0),
        presence_penalty: Some(1.5),
    };
    let by_name = sampled(&[
        ("top_p", "0.5"),
        ("top_k", "40"),
        ("min_p", "0.25"),
        ("stop", "[\"a\",\"b\"]"),
        ("seed", "7"),
        ("frequency_penalty", "-2"),
        ("presence_penalty", "1.5"),
    ]);
    assert_eq!(accepted(StreamRequest { sampling: Some(typed.clone()), ..request(&[]) }).sampling, by_name);
    let mixed = StreamRequest {
        sampling: Some(v1::Sampling { seed: Some(7), ..Default::default() }),
        ..request(&[("top_k", "1")])
    };
    assert_eq!(accepted(mixed).sampling, Sampling { seed: Some(7), top_k: Some(1), ..Sampling::greedy(100) });

    for name in ["top_p", "top_k", "min_p", "stop", "seed", "frequency_penalty", "presence_penalty"] {
        refused(&format!("sampling.{name} stands in options too"), |r| {
            r.sampling = Some(typed.clone());
            r.options = HashMap::from([(name.to_owned(), "1".to_owned())]);
        });
    }
    type Change = fn(&mut v1::Sampling);
    let wrong: [(&str, Change); 7] = [
        ("sampling.top_p is \"NaN\"; accepted is", |s| s.top_p = Some(f32::NAN)),
        ("sampling.top_k is \"0\"", |s| s.top_k = Some(0)),
        ("sampling.min_p is \"-1\"", |s| s.min_p = Some(-1.0)),
        ("sampling.frequency_penalty is \"inf\"", |s| s.frequency_penalty = Some(f32::INFINITY)),
        ("sampling.presence_penalty is \"2.5\"", |s| s.presence_penalty = Some(2.5)),
        ("sampling.stop is \"\"; accepted is texts that are not empty", |s| s.stop = vec![String::new()]),
        ("stop has 17 texts", |s| s.stop = vec!["x".into(); MAX_STOPS + 1]),
    ];
    for (beginning, change) in wrong {
        refused(beginning, |r| change(r.sampling.get_or_insert_default()));
    }
}

#[test]
fn a_continuation_may_hold_reasoning_or_calls_alone() {
    let call = |name: &str| ToolCall { id: "c2".into(), name: name.into(), arguments: "{\"town\":\"Be".into() };
    let begun = v1::Continuation {
        token_ids: vec![1, 2],
        completion_tokens: 2,
        tool_calls: vec![call("weather")],
        ..Default::default()
    };
    let with =
        |continuation: &v1::Continuation| StreamRequest { continuation: Some(continuation.clone()), ..conversing() };
    assert_eq!(accepted(with(&begun)).continuation.unwrap().tool_calls, [call("weather")], "half a call");
    let thought = v1::Continuation { reasoning: "hm".into(), completion_tokens: 1, ..Default::default() };
    assert_eq!(accepted(with(&thought)).continuation.unwrap().reasoning, "hm");

    let of = |change: fn(&mut v1::Continuation)| {
        let mut changed = begun.clone();
        change(&mut changed);
        Some(changed)
    };
    refused("continuation.text is \"0\"", |r| r.continuation = of(|c| c.tool_calls.clear()));
    refused("continuation.tool_calls need token_ids", |r| r.continuation = of(|c| c.token_ids.clear()));
    refused("continuation.tool_calls are 129", |r| {
        r.continuation = of(|c| c.tool_calls = vec![c.tool_calls[0].clone(); 129])
    });
    refused("continuation.tool_calls[0].id has 0 bytes", |r| r.continuation = of(|c| c.tool_calls[0].id.clear()));
    refused("continuation.tool_calls[0].name is \"time\", which is none", |r| {
        r.continuation = of(|c| c.tool_calls[0].name = "time".into());
    });
}

prop_compose! {
    fn any_message()(
        role in "system|developer|user|assistant|tool|bot|",
        content in ".{0,4}",
        id in "c1|c2|",
        call in proptest::option::of(("c1|c2|", "weather|a b|", "\\{\\}|x|")),
        reasoning in "|hm",
    ) -> Message {
        let tool_calls = call.map(|(id, name, arguments)| ToolCall { id, name, arguments }).into_iter().collect();
        Message { role, content, tool_calls, tool_call_id: id, reasoning, ..Message::default() }
    }
}

proptest! {
    #[test]
    fn whatever_is_accepted_is_in_range(name in "top_p|top_k|min_p|stop|seed|presence_penalty", value in ".{0,12}") {
        if let Ok(generate) = generate(request(&[(&name, &value)]), "m".into(), "me") {
            in_range(&generate.sampling)?;
        }
    }

    #[test]
    fn whatever_is_accepted_as_a_field_is_in_range(
        top_p in proptest::option::of(any::<f32>()),
        top_k in proptest::option::of(0u32..3),
        min_p in proptest::option::of(-1f32..2.0),
        stop in proptest::collection::vec("[ab]{0,2}", 0..3),
        presence_penalty in proptest::option::of(-3f32..3.0),
    ) {
        let sampling = v1::Sampling { top_p, top_k, min_p, stop, presence_penalty, ..Default::default() };
        if let Ok(generate) = generate(StreamRequest { sampling: Some(sampling), ..request(&[]) }, "m".into(), "me") {
            in_range(&generate.sampling)?;
        }
    }

    #[test]
    fn whatever_conversation_is_accepted_can_be_answered(messages in proptest::collection::vec(any_message(), 0..6)) {
        let request = StreamRequest { messages, tools: vec![weather()], ..StreamRequest::default() };
        if let Ok(generate) = generate(request, "m".into(), "me") {
            let messages = generate.messages;
            prop_assert!(messages.last().is_some_and(|last| last.role != "assistant"));
            let mut called = Vec::new();
            for message in messages {
                prop_assert!(["system", "developer", "user", "assistant", "tool"].contains(&&*message.role));
                prop_assert!(message.role != "tool" || called.contains(&message.tool_call_id));
                prop_assert!(message.role == "assistant" || message.tool_calls.is_empty() && message.reasoning.is_empty());
                for call in message.tool_calls {
                    let well_formed = call.arguments == "{}" && call.name == "weather";
                    prop_assert!(well_formed);
                    called.push(call.id);
                }
            }
        }
    }
}

fn in_range(sampling: &Sampling) -> Result<(), TestCaseError> {
    prop_assert!(sampling.top_p.is_none_or(|v| v > 0.0 && v <= 1.0));
    prop_assert!(sampling.top_k.is_none_or(|v| v >= 1));
    prop_assert!(sampling.min_p.is_none_or(|v| (0.0..=1.0).contains(&v)));
    prop_assert!(sampling.presence_penalty.is_none_or(|v| v.abs() <= titan_proto::conversation::MAX_PENALTY));
    prop_assert!(sampling.stop.iter().all(|stop| !stop.is_empty()));
    Ok(())
}
