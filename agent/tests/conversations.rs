//! Conversations with the real model: what is kept of them, what a turn costs, and what holds answers to a form.

#![allow(clippy::unwrap_used)]

mod engine_support;

use std::time::Instant;

use engine_support::{Answer, MODEL, answer_to, ask, engine};
use titan_agent::engine::{
    Constraint, Engine, EngineError, Event, FinishReason, Generate, Sampling, mistral::MistralEngine,
};
use titan_proto::v1::Message;

fn message(role: &str, content: &str) -> Message {
    Message { role: role.to_owned(), content: content.to_owned(), ..Message::default() }
}

fn conversation(owner: &str, messages: &[Message], max_tokens: u32) -> Generate {
    Generate { messages: messages.to_vec(), owner: owner.to_owned(), ..ask("", Sampling::greedy(max_tokens)) }
}

fn text_of_words(words: usize) -> String {
    let numbers = ["one", "two", "three", "four", "five", "six", "seven"];
    (0..words).map(|at| numbers[(at * at + at / 3) % numbers.len()]).collect::<Vec<_>>().join(" ")
}

async fn timed(engine: &MistralEngine, asked: Generate) -> (Answer, f64) {
    let begin = Instant::now();
    let mut first = None;
    let mut stream = engine.generate(asked).await.unwrap();
    let mut answer = Answer {
        text: String::new(),
        tokens: Vec::new(),
        events: 0,
        beginnings: Vec::new(),
        usage: engine_support::NO_USAGE,
    };
    while let Some(event) = stream.recv().await {
        match event.unwrap() {
            Event::Piece(piece) => {
                first.get_or_insert(begin.elapsed());
                answer.text.push_str(&piece.text);
                answer.tokens.extend(Vec::from(piece.tokens));
            }
            Event::Done(usage) => answer.usage = usage,
        }
    }
    (answer, first.unwrap_or_default().as_secs_f64())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_costs_what_is_new_in_it() {
    let engine = engine(2).await;
    let mut messages = vec![message("system", "You are a helpful assistant.")];
    let mut computed_before = 0;
    for turn in 1..=10 {
        messages.push(message(
            "user",
            &format!("Question {turn}: tell me something new about {}.", text_of_words(3 + turn)),
        ));
        let (answer, ttft) = timed(&engine, conversation("alice", &messages, 12)).await;
        let usage = answer.usage;
        let new = usage.prompt_tokens - usage.cached_tokens;
        println!(
            "turn {turn}: {} prompt tokens, {new} computed anew, first token after {ttft:.2} s",
            usage.prompt_tokens
        );
        if turn > 1 {
            // Everything up to the end of the last answer is known, but for its last token.
            assert!(usage.cached_tokens + 1 >= computed_before, "{usage:?} after {computed_before}");
        }
        computed_before = usage.prompt_tokens + usage.completion_tokens.saturating_sub(1);
        messages.push(message("assistant", &answer.text));
    }
    // Another client with the same words finds nothing.
    let (answer, ttft) = timed(&engine, conversation("bob", &messages[..20], 2)).await;
    println!("another client: {} prompt tokens, first token after {ttft:.2} s", answer.usage.prompt_tokens);
    assert_eq!(answer.usage.cached_tokens, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_changes_no_answer() {
    let (kept, fresh) = (engine(1).await, engine(1).await);
    let mut messages = vec![message("user", "Name three colours.")];
    for (turn, next) in ["Name three animals.", "Which of those is the largest?", "Thank you. Count from one to five."]
        .iter()
        .enumerate()
    {
        let (a, _) = timed(&kept, conversation("alice", &messages, 24)).await;
        // Each turn by another client: nothing is known of it.
        let (b, _) = timed(&fresh, conversation(&format!("client {turn}"), &messages, 24)).await;
        println!("{} of {} known: {:?}", a.usage.cached_tokens, a.usage.prompt_tokens, a.text);
        assert_eq!(b.usage.cached_tokens, 0);
        assert_eq!(a.text, b.text);
        messages.extend([message("assistant", &a.text), message("user", next)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_is_read_in_pieces_and_cancelled_between_them() {
    let engine = engine(1).await;
    let (long, short) = (text_of_words(400), "Hello.");
    let (_, idle) = timed(&engine, conversation("bob", &[message("user", short)], 2)).await;
    let stream = engine.generate(conversation("alice", &[message("user", &long)], 4)).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(engine.computing(), 1);
    drop(stream);
    assert_eq!(engine.computing(), 1, "its piece is still computed");
    let (answer, after) = timed(&engine, conversation("bob", &[message("user", short)], 2)).await;
    println!("first token of another request: {idle:.2} s when idle, {after:.2} s after a cancelled prompt");
    assert_eq!(answer.usage.completion_tokens, 2);
    while engine.computing() > 0 {
        tokio::task::yield_now().await;
    }
    // More than an engine keeps, twice: what it holds is dropped on the way, but not what it goes on from.
    let huge = text_of_words(1200);
    let (first, ttft) = timed(&engine, conversation("alice", &[message("user", &huge)], 2)).await;
    println!("{} tokens read in {ttft:.1} s", first.usage.prompt_tokens);
    let more = [message("user", &huge), message("assistant", &first.text), message("user", "And now?")];
    let (second, ttft) = timed(&engine, conversation("alice", &more, 2)).await;
    println!("{} tokens more in {ttft:.1} s", second.usage.prompt_tokens - second.usage.cached_tokens);
    assert!(second.usage.cached_tokens + 8 >= first.usage.prompt_tokens);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_keep_to_schemas_and_regular_expressions() {
    let engine = engine(1).await;
    let schema = serde_json::json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 12 },
            "age": { "type": "integer", "minimum": 0, "maximum": 120 },
            "tags": { "type": "array", "items": { "enum": ["a", "b"] }, "maxItems": 3 },
        },
        "required": ["name", "age"],
        "additionalProperties": false,
    });
    let validator = jsonschema::validator_for(&schema).unwrap();
    for seed in 0..answers_to_check() {
        let sampling = Sampling { temperature: 1.0, seed: Some(seed), ..Sampling::greedy(120) };
        let asked = Generate {
            constraint: Some(Constraint::JsonSchema(schema.clone())),
            ..ask("Describe a person.", sampling.clone())
        };
        let answer = answer_to(&engine, asked).await.unwrap();
        assert_eq!(answer.usage.finish_reason, FinishReason::Stop, "{:?}", answer.text);
        let value: serde_json::Value = serde_json::from_str(&answer.text).unwrap();
        assert!(validator.is_valid(&value), "{value}");
        let regex = Constraint::Regex(r"[A-Z][a-z]{2,8} (is|was) [0-9]{1,3} years old\.".to_owned());
        let answer =
            answer_to(&engine, Generate { constraint: Some(regex), ..ask("Who is old?", sampling) }).await.unwrap();
        let words: Vec<&str> = answer.text.split(' ').collect();
        assert!(
            matches!(words[..], [name, "is" | "was", age, "years", "old."] if age.parse::<u32>().is_ok() && name.len() >= 3),
            "{}",
            answer.text
        );
    }
    let wrong = Generate { constraint: Some(Constraint::Regex("(".to_owned())), ..ask("x", Sampling::greedy(4)) };
    let refused = answer_to(&engine, wrong).await.err().unwrap();
    assert!(matches!(&refused, EngineError::InvalidParameter(why) if why.contains("cannot be used")), "{refused}");
}

/// `TITAN_ANSWERS=200` checks as many of each kind.
fn answers_to_check() -> u64 {
    std::env::var("TITAN_ANSWERS").ok().and_then(|number| number.parse().ok()).unwrap_or(8)
}

#[tokio::test(flavor = "multi_thread")]
async fn log_probabilities_are_those_of_the_model() {
    let engine = engine(1).await;
    let asked = Generate { logprobs: Some(3), ..ask("The capital of France is", Sampling::greedy(6)) };
    let mut stream = engine.generate(asked).await.unwrap();
    let mut entries = Vec::new();
    while let Some(Event::Piece(piece)) = stream.recv().await.transpose().unwrap() {
        entries.extend(piece.logprobs);
    }
    assert!(!entries.is_empty());
    for entry in &entries {
        assert_eq!(entry.top.len(), 3);
        assert_eq!(entry.top[0].token_id, entry.token_id, "greedy takes the likeliest");
        assert!(entry.logprob <= 0.0 && (entry.logprob - entry.top[0].logprob).abs() < 1e-6);
        assert!(entry.top[1].logprob <= entry.top[0].logprob && entry.top[2].logprob <= entry.top[1].logprob);
        let together: f32 = entry.top.iter().map(|top| top.logprob.exp()).sum();
        assert!(together <= 1.0 + 1e-3, "{together}");
    }
    assert_eq!(engine.model_info().first().map(|info| info.name.as_str()), Some(MODEL));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_client_begins_anew_and_is_kept_then() {
    let _ = tracing_subscriber::fmt().with_env_filter("mistralrs_core=info").try_init();
    let engine = engine(1).await;
    timed(&engine, conversation("alice", &[message("user", "Hello.")], 2)).await;
    let long = text_of_words(60);
    timed(&engine, conversation("bob", &[message("user", &long)], 2)).await;
    let (_, ttft) = timed(&engine, conversation("alice", &[message("user", "Hello. How are you?")], 2)).await;
    println!("alice again: {ttft:.2} s");
}
