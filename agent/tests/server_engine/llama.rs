//! Conversations with a real llama.cpp server.

use serde_json::{Value, json};
use titan_agent::engine::{
    Constraint, Continuation, Engine as _, EngineError, Event, FinishReason, Generate, Sampling, ToolChoice,
};
use titan_proto::v1::{Message, Tool};

use crate::{
    PATIENCE, answer, ask, failure,
    llama_server::{LlamaServer, SLOTS},
};

/// A template that offers tools in the words that Qwen and Hermes models know.
const TOOLS_TEMPLATE: &str = r#"{%- if tools %}
{{- '<|im_start|>system\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
{{- '# Tools\n\nYou may call one or more functions.\n<tools>' }}
{%- for tool in tools %}{{- '\n' + (tool | tojson) }}{%- endfor %}
{{- '\n</tools>\n\nFor each call, return a json object in <tool_call></tool_call>:\n<tool_call>\n{"name": <name>, "arguments": <arguments>}\n</tool_call><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}
{{- '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}
{%- elif message.role == 'assistant' %}
{{- '<|im_start|>assistant\n' }}
{%- if message.content %}{{- message.content }}{%- endif %}
{%- if message.tool_calls %}
{%- for call in message.tool_calls %}
{{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) + '}\n</tool_call>' }}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"#;

fn message(role: &str, content: &str) -> Message {
    Message { role: role.to_owned(), content: content.to_owned(), ..Message::default() }
}

fn weather() -> Tool {
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    Tool { name: "weather".into(), description: "The weather in a city.".into(), parameters: schema.to_string() }
}

#[tokio::test]
async fn a_conversation_is_answered_and_the_model_is_known() {
    let Some(server) = LlamaServer::start(&[]).await else { return };
    let engine = server.engine().await;
    let info = &engine.model_info()[0];
    assert_eq!((info.engine.as_str(), info.continuation.as_str(), info.places), ("openai", "text", 4));
    assert!(info.context_tokens > 0 && info.parameters > 100_000_000 && !info.quantization.is_empty(), "{info:?}");
    let messages = vec![
        message("system", "You answer in one word."),
        message("user", "My name is Ada. Say hello."),
        message("assistant", "Hello."),
        message("user", "What is my name?"),
    ];
    let request = Generate { messages, ..ask(12) };
    let (first, pieces, end) = answer(&engine, request.clone()).await;
    assert!(pieces.len() > 1 && !first.is_empty());
    // Each role of the conversation is in the prompt.
    assert!(end.prompt_tokens > 35 && end.completion_tokens <= 12, "{end:?}");
    let short = answer(&engine, Generate { messages: vec![message("user", "What is my name?")], ..ask(12) }).await;
    assert!(short.2.prompt_tokens < end.prompt_tokens);
    let seeded = |seed| {
        let sampling = Sampling { temperature: 1.0, seed: Some(seed), ..Sampling::greedy(12) };
        Generate { sampling, ..request.clone() }
    };
    let texts = [answer(&engine, seeded(1)).await.0, answer(&engine, seeded(2)).await.0];
    assert_ne!(texts[0], texts[1], "another seed is another answer");
    let stopped = Sampling { stop: vec!["3".into()], ..Sampling::greedy(64) };
    let (text, _, end) = answer(&engine, Generate { sampling: stopped, ..ask(64) }).await;
    assert!(!text.contains('3') && end.finish_reason == FinishReason::Stop, "{text:?}");
}

#[tokio::test]
async fn control_tokens_in_a_text_are_plain_text_to_the_server() {
    let Some(server) = LlamaServer::start(&[]).await else { return };
    let engine = server.engine().await;
    let tokens =
        async |text: &str| answer(&engine, Generate::new("m", text, Sampling::greedy(1))).await.2.prompt_tokens;
    // A control token is one token; what only looks like one is several.
    let (without, with) = (tokens("a b").await, tokens("a <|im_end|><|im_end|> b").await);
    assert!(with >= without + 8, "{without} tokens, and {with} with two control tokens in it");
}

#[tokio::test]
async fn tools_are_refused_where_the_template_has_none_and_called_where_it_has() {
    let Some(server) = LlamaServer::start(&[]).await else { return };
    // A model of 135 million parameters calls nothing by itself, but repeats what it is told, and llama.cpp reads it.
    let call = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>";
    let request = Generate {
        messages: vec![
            message("user", &format!("Say it:\n{call}")),
            message("assistant", call),
            message("user", &format!("Say it once more:\n{call}")),
            message("assistant", call),
            message("user", &format!("Once more, and nothing else:\n{call}")),
        ],
        tools: vec![weather()],
        tool_choice: ToolChoice::Required,
        ..ask(200)
    };
    let error = failure(&server.engine().await, request.clone()).await;
    assert!(matches!(&error, EngineError::Unsupported(why) if why.contains("has no tools")), "{error}");
    drop(server);

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), TOOLS_TEMPLATE).unwrap();
    let template = file.path().display().to_string();
    let server = LlamaServer::start(&["--jinja", "--chat-template-file", &template]).await.unwrap();
    let engine = server.engine().await;
    assert!(engine.model_info()[0].tools);
    let (text, pieces, end) = answer(&engine, request.clone()).await;
    let calls: Vec<_> = pieces.iter().flat_map(|piece| &piece.tool_calls).filter(|call| call.index == 0).collect();
    let first = calls.first().unwrap_or_else(|| panic!("no call, but {text:?}"));
    assert!(!first.id.is_empty() && first.name == "weather", "{first:?}");
    assert!(calls[1..].iter().all(|part| part.id.is_empty() && part.name.is_empty()));
    let arguments: String = calls.iter().map(|call| call.arguments.as_str()).collect();
    let arguments: Value = serde_json::from_str(&arguments).unwrap();
    assert_eq!(arguments, json!({"city": "Paris"}));
    assert_eq!(end.finish_reason, FinishReason::ToolCalls);
    println!("called with {arguments} in {} parts", calls.len());

    // The result goes back, and an answer in words comes.
    let call =
        titan_proto::v1::ToolCall { id: first.id.clone(), name: "weather".into(), arguments: arguments.to_string() };
    let mut messages = request.messages.clone();
    messages.push(Message { role: "assistant".into(), tool_calls: vec![call], ..Message::default() });
    messages.push(Message {
        tool_call_id: first.id.clone(),
        name: "weather".into(),
        ..message("tool", "sunny, 24 degrees")
    });
    let request = Generate { messages, tool_choice: ToolChoice::None, ..request };
    let (text, _, _) = answer(&engine, Generate { sampling: Sampling::greedy(16), ..request.clone() }).await;
    assert!(!text.is_empty());
    // What llama.cpp does not do comes back in its own words.
    let error = failure(&engine, Generate { logprobs: Some(1), tool_choice: ToolChoice::Auto, ..request }).await;
    assert!(matches!(&error, EngineError::InvalidParameter(why) if why.contains("logprobs")), "{error}");
}

#[tokio::test]
async fn four_answers_at_once_come_interleaved() {
    let Some(server) = LlamaServer::start(&[]).await else { return };
    let engine = server.engine().await;
    let (news, mut order) = tokio::sync::mpsc::unbounded_channel();
    for number in 0..SLOTS {
        let mut stream = engine
            .generate(Generate { messages: vec![message("user", &format!("Tell story {number}."))], ..ask(40) })
            .await
            .unwrap();
        let news = news.clone();
        tokio::spawn(async move {
            while let Some(event) = stream.recv().await {
                news.send((number, matches!(event.unwrap(), Event::Done(_)))).unwrap();
            }
        });
    }
    drop(news);
    let (mut seen, mut done, mut changes, mut last) = ([0usize; SLOTS], 0, 0, SLOTS);
    while let Some((number, end)) = tokio::time::timeout(PATIENCE, order.recv()).await.unwrap() {
        if end {
            // The first to end does not end before the last has begun.
            assert!(done > 0 || seen.iter().all(|&pieces| pieces > 1), "{seen:?}");
            done += 1;
        }
        changes += usize::from(std::mem::replace(&mut last, number) != number);
        seen[number] += 1;
    }
    assert_eq!(done, SLOTS);
    assert!(changes > 2 * SLOTS, "the answers came one after another: {changes} changes");
    println!("{seen:?} pieces, {changes} changes from one answer to another");
}

#[tokio::test]
async fn schemas_and_expressions_hold() {
    let Some(server) = LlamaServer::start(&[]).await else { return };
    let engine = server.engine().await;
    let schema = json!({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
        "required": ["name", "age"],
        "additionalProperties": false
    });
    let validator = jsonschema::validator_for(&schema).unwrap();
    let sampled = |seed, max_tokens| Sampling { temperature: 1.0, seed: Some(seed), ..Sampling::greedy(max_tokens) };
    for seed in 0..4 {
        let constraint = Some(Constraint::JsonSchema(schema.clone()));
        let request = Generate {
            messages: vec![message("user", "Who are you?")],
            constraint,
            sampling: sampled(seed, 120),
            ..ask(1)
        };
        let (text, _, end) = answer(&engine, request).await;
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        assert!(validator.is_valid(&value) && end.finish_reason == FinishReason::Stop, "{text}");
        let constraint = Some(Constraint::Regex("^(yes|no), [a-c]{2,4}-[0-9]{3}$".to_owned()));
        let (text, _, _) = answer(&engine, Generate { constraint, sampling: sampled(seed, 60), ..ask(1) }).await;
        let rest =
            text.strip_prefix("yes, ").or_else(|| text.strip_prefix("no, ")).unwrap_or_else(|| panic!("{text:?}"));
        let (letters, digits) = rest.split_once('-').unwrap();
        assert!(
            (2..=4).contains(&letters.len()) && letters.bytes().all(|letter| (b'a'..=b'c').contains(&letter)),
            "{text:?}"
        );
        assert!(digits.len() == 3 && digits.bytes().all(|digit| digit.is_ascii_digit()), "{text:?}");
    }
    let error =
        failure(&engine, Generate { constraint: Some(Constraint::Lark("start: \"a\"".into())), ..ask(1) }).await;
    assert!(matches!(&error, EngineError::Unsupported(why) if why.contains("grammar.lark")), "{error}");
}

#[tokio::test]
async fn logprobs_are_of_each_token_and_their_bytes_are_the_text() {
    let Some(server) = LlamaServer::start(&[]).await else { return };
    let engine = server.engine().await;
    for alternatives in [0, 3] {
        let (text, pieces, end) = answer(&engine, Generate { logprobs: Some(alternatives), ..ask(10) }).await;
        let logprobs: Vec<_> = pieces.iter().flat_map(|piece| &piece.logprobs).collect();
        let bytes: Vec<u8> = logprobs.iter().flat_map(|logprob| logprob.token.clone()).collect();
        assert!(bytes.starts_with(text.as_bytes()), "{:?} and {text:?}", String::from_utf8_lossy(&bytes));
        assert!(logprobs.len().abs_diff(end.completion_tokens as usize) <= 1);
        for logprob in logprobs {
            assert!(logprob.logprob <= 0.0 && logprob.top.len() == alternatives as usize, "{logprob:?}");
            assert!(alternatives == 0 || logprob.top[0].token_id == logprob.token_id, "greedy takes the likeliest");
        }
    }
}

#[tokio::test]
async fn an_answer_goes_on_after_its_beginning_and_nothing_is_repeated() {
    let Some(server) = LlamaServer::start(&[]).await else { return };
    let engine = server.engine().await;
    let (whole, pieces, _) = answer(&engine, ask(24)).await;
    let cut = 10;
    let begun: String = pieces[..cut].iter().map(|piece| piece.text.as_str()).collect();
    let completion_tokens = u32::try_from(cut).unwrap();
    let continuation = Continuation {
        text: begun.clone(),
        tokens: vec![],
        completion_tokens,
        reasoning: String::new(),
        tool_calls: vec![],
    };
    let request = |left| Generate { continuation: Some(continuation.clone()), ..ask(left) };
    let (rest, more, end) = answer(&engine, request(24 - completion_tokens)).await;
    assert_eq!(more[0].text, pieces[cut].text, "{begun:?} and then {rest:?}");
    assert_eq!(end.completion_tokens, 24);
    println!("continued as undisturbed: {}", begun + &rest == whole);
    // Nothing left to come.
    let (rest, _, end) = answer(&engine, request(0)).await;
    assert_eq!(
        (rest.as_str(), end.completion_tokens, end.finish_reason),
        ("", completion_tokens, FinishReason::Length)
    );
}

#[tokio::test]
async fn a_prompt_beyond_the_context_is_refused_with_both_numbers() {
    let Some(server) = LlamaServer::start(&[]).await else { return };
    let error = failure(&server.engine().await, Generate::new("m", "word ".repeat(3_000), Sampling::greedy(1))).await;
    let EngineError::PromptTooLong { model, prompt_tokens, context_tokens } = error else { panic!("{error}") };
    assert!(model == "m" && prompt_tokens > 3_000 && context_tokens == 2_048);
}
