#![allow(clippy::unwrap_used)]

use titan_proto::{
    conversation::add_to,
    v1::{Tool, ToolCall},
};

use super::*;
use crate::engine::{Constraint, Continuation, Reasoning, Sampling, ToolChoice};

fn request(max_tokens: u32) -> Generate {
    let sampling = Sampling { max_tokens, ..Sampling::greedy(1) };
    Generate::new(SYNTHETIC_MODEL, "one two three", sampling)
}

#[tokio::test(start_paused = true)]
async fn tokens_come_in_order_on_an_absolute_schedule() {
    let engine = SyntheticEngine::new(50.0);
    let start = Instant::now();
    let mut stream = engine.generate(request(100)).await.unwrap();
    for index in 0..100u32 {
        let Some(Ok(Event::Piece(Piece { text, tokens, .. }))) = stream.recv().await else { panic!("no text") };
        assert_eq!((token_index(&text), Vec::from(tokens)), (Some(index), vec![index]));
        assert_eq!(text.len(), 13);
        assert!(start.elapsed() >= Duration::from_millis(20) * index);
        // A reader that is late now and then does not shift what follows.
        if index % 10 == 0 {
            tokio::time::sleep(Duration::from_millis(35)).await;
        }
    }
    let Some(Ok(Event::Done(usage))) = stream.recv().await else { panic!("no end") };
    assert_eq!(
        usage,
        Usage { prompt_tokens: 3, cached_tokens: 0, completion_tokens: 100, finish_reason: FinishReason::Length }
    );
    assert_eq!(start.elapsed().as_millis(), 99 * 20);
    assert!(stream.recv().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_continuation_goes_on_at_the_next_index() {
    for (left, events) in [(2, 3), (0, 1)] {
        let continuation = Continuation {
            text: (0..98).map(|index| format!("{index:08} tok ")).collect(),
            tokens: (0..98).collect(),
            completion_tokens: 98,
            reasoning: String::new(),
            tool_calls: vec![],
        };
        let asked = Generate { continuation: Some(continuation), ..request(left) };
        let start = Instant::now();
        let mut stream = SyntheticEngine::new(1.0).generate(asked).await.unwrap();
        for index in 98..98 + left {
            let Some(Ok(Event::Piece(piece))) = stream.recv().await else { panic!("no text") };
            assert_eq!(token_index(&piece.text), Some(index));
        }
        let Some(Ok(Event::Done(usage))) = stream.recv().await else { panic!("not {events} events") };
        assert_eq!((usage.completion_tokens, usage.finish_reason), (98 + left, FinishReason::Length));
        assert_eq!(start.elapsed().as_secs(), u64::from(left.saturating_sub(1)), "the first one comes at once");
    }
}

#[tokio::test(start_paused = true)]
async fn dropping_the_stream_ends_the_generation() {
    let engine = SyntheticEngine::new(1.0);
    let stream = engine.generate(request(1_000_000)).await.unwrap();
    drop(stream);
    while tokio::runtime::Handle::current().metrics().num_alive_tasks() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn without_a_rate_it_is_as_fast_as_its_reader_and_loses_nothing() {
    let mut stream = SyntheticEngine::new(0.0).timestamps(true).generate(request(10_000)).await.unwrap();
    let before = now_ns();
    for index in 0..10_000 {
        let Some(Ok(Event::Piece(Piece { text, .. }))) = stream.recv().await else { panic!("no text") };
        let stamp = Stamp::read(&text, now_ns()).unwrap();
        assert_eq!((stamp.index, text.len()), (index, 12));
        assert!(stamp.sent_ns + 1_000_000_000 > before);
    }
}

#[tokio::test]
async fn with_words_its_answer_is_the_book() {
    let mut stream = SyntheticEngine::new(0.0).words(true).generate(request(40)).await.unwrap();
    let mut text = String::new();
    while let Some(Ok(Event::Piece(word))) = stream.recv().await {
        text.push_str(&word.text);
    }
    assert_eq!(text, (0..40).map(word).collect::<String>());
}

#[tokio::test(start_paused = true)]
async fn the_first_token_comes_after_the_prompt() {
    let engine = SyntheticEngine::new(50.0).prefill(Duration::from_millis(300));
    let start = Instant::now();
    let mut stream = engine.generate(request(2)).await.unwrap();
    for due in [300, 320] {
        assert!(matches!(stream.recv().await, Some(Ok(Event::Piece(_)))));
        assert_eq!(start.elapsed().as_millis(), due);
    }
}

#[tokio::test]
async fn it_serves_its_own_names_only() {
    let engine = SyntheticEngine::new(1.0);
    let error = engine.generate(Generate { model: "smollm2".into(), ..request(1) }).await.unwrap_err();
    assert!(error.to_string().contains("synthetic"), "{error}");
}

/// A request whose answer thinks, and then calls a function or says something.
fn thinking(call: bool, stop: &[&str], max_tokens: u32) -> Generate {
    let tools = vec![Tool { name: "weather".into(), ..Tool::default() }];
    let tool_choice = if call { ToolChoice::Required } else { ToolChoice::Auto };
    let reasoning = Reasoning { enabled: Some(true), effort: None };
    let mut asked = Generate { tools, tool_choice, reasoning, ..request(max_tokens) };
    asked.sampling.stop = stop.iter().map(ToString::to_string).collect();
    asked
}

/// What came of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
struct Heard {
    text: String,
    reasoning: String,
    calls: Vec<ToolCall>,
    tokens: Vec<u32>,
    usage: Option<Usage>,
}

/// The first `pieces` of an answer.
async fn hear(engine: &SyntheticEngine, asked: Generate, pieces: usize) -> Heard {
    let mut stream = engine.generate(asked).await.unwrap();
    let mut heard = Heard::default();
    for _ in 0..pieces {
        match stream.recv().await.unwrap().unwrap() {
            Event::Piece(piece) => {
                heard.text.push_str(&piece.text);
                heard.reasoning.push_str(&piece.reasoning);
                piece.tool_calls.iter().for_each(|delta| add_to(&mut heard.calls, delta));
                heard.tokens.extend(Vec::from(piece.tokens));
            }
            Event::Done(usage) => {
                heard.usage = Some(usage);
                break;
            }
        }
    }
    heard
}

#[tokio::test]
async fn a_demanded_call_comes_after_the_reasoning_and_holds_what_would_be_said() {
    for engine in [SyntheticEngine::new(0.0), SyntheticEngine::new(0.0).words(true)] {
        let said = hear(&engine, request(40), 99).await.text;
        let heard = hear(&engine, thinking(true, &[], 40), 99).await;
        assert_eq!((heard.text.as_str(), heard.tokens), ("", (0..40).collect()));
        assert!(!heard.reasoning.is_empty() && said.starts_with(&heard.reasoning));
        let [call] = heard.calls.as_slice() else { panic!("{:?}", heard.calls) };
        assert_eq!((call.id.as_str(), call.name.as_str()), ("call_1", "weather"));
        let arguments: serde_json::Value = serde_json::from_str(&call.arguments).unwrap();
        assert!(said[heard.reasoning.len()..].contains(arguments["said"].as_str().unwrap()));
        assert_eq!(heard.usage.unwrap().finish_reason, FinishReason::ToolCalls);
    }
    let one = hear(&SyntheticEngine::new(0.0), thinking(true, &[], REASONING_TOKENS + 1), 99).await;
    assert_eq!(one.calls[0].arguments, r#"{"said":""}"#);
    let cut = hear(&SyntheticEngine::new(0.0), thinking(true, &[], 3), 99).await;
    assert_eq!((cut.calls, cut.usage.unwrap().finish_reason), (vec![], FinishReason::Length), "it only thought");
}

#[tokio::test]
async fn an_answer_goes_on_from_any_token_on_and_is_the_same() {
    let engine = SyntheticEngine::new(0.0).words(true);
    // The second one spans tokens; none of them is in the first eight, which are reasoning.
    for stop in [&[][..], &["her sister on the", "\u{1f600}"]] {
        for call in [true, false] {
            let whole = hear(&engine, thinking(call, stop, 20), 99).await;
            for pieces in 1..20 {
                let begun = hear(&engine, thinking(call, stop, 20), pieces).await;
                if begun.usage.is_some() {
                    break;
                }
                let completion_tokens = begun.tokens.len() as u32;
                let continuation = Continuation {
                    text: begun.text.clone(),
                    tokens: begun.tokens.clone(),
                    completion_tokens,
                    reasoning: begun.reasoning.clone(),
                    tool_calls: begun.calls.clone(),
                };
                let asked = thinking(call, stop, 20 - completion_tokens);
                let rest = hear(&engine, Generate { continuation: Some(continuation), ..asked }, 99).await;
                assert_eq!(begun.text + &rest.text, whole.text);
                assert_eq!(begun.reasoning + &rest.reasoning, whole.reasoning);
                assert_eq!([begun.tokens, rest.tokens].concat(), whole.tokens);
                assert_eq!(rest.usage, whole.usage);
                let mut calls = begun.calls;
                for (call, more) in calls.iter_mut().zip(&rest.calls) {
                    call.arguments.push_str(&more.arguments);
                }
                let calls = if calls.is_empty() { rest.calls } else { calls };
                assert_eq!(calls, whole.calls);
            }
        }
    }
}

#[tokio::test]
async fn a_stop_text_ends_the_answer_and_is_not_in_it() {
    let mut asked = request(40);
    asked.sampling.stop = vec!["sister on".into()];
    let heard = hear(&SyntheticEngine::new(0.0).words(true), asked, 99).await;
    assert!(heard.text.ends_with("by her "), "{}", heard.text);
    let usage = heard.usage.unwrap();
    assert_eq!((usage.finish_reason, usage.completion_tokens as usize), (FinishReason::Stop, heard.tokens.len()));
}

#[tokio::test]
async fn what_is_not_its_own_beginning_is_refused() {
    let engine = SyntheticEngine::new(0.0);
    let text = (0..2).map(|index| format!("{index:08} tok ")).collect::<String>();
    let own =
        Continuation { text, tokens: vec![0, 1], completion_tokens: 2, reasoning: String::new(), tool_calls: vec![] };
    let of = |continuation: Continuation| Generate { continuation: Some(continuation), ..request(1) };
    engine.generate(of(own.clone())).await.unwrap();
    for other in [
        Continuation { text: "hello".into(), ..own.clone() },
        Continuation { tokens: vec![0, 2], ..own.clone() },
        Continuation { reasoning: "hm".into(), ..own.clone() },
        Continuation { tool_calls: vec![ToolCall::default()], ..own.clone() },
    ] {
        let error = engine.generate(of(other)).await.unwrap_err();
        assert!(matches!(&error, EngineError::InvalidParameter(why) if why.contains("something else")), "{error}");
    }
    let constrained = Generate { constraint: Some(Constraint::JsonObject), ..request(1) };
    let error = engine.generate(constrained).await.unwrap_err();
    assert!(error.to_string().contains("response_format"), "{error}");
}

#[tokio::test]
async fn every_token_is_certain() {
    let mut stream = SyntheticEngine::new(0.0).generate(Generate { logprobs: Some(1), ..request(1) }).await.unwrap();
    let Some(Ok(Event::Piece(piece))) = stream.recv().await else { panic!("no text") };
    let logprob = &piece.logprobs[0];
    assert_eq!((logprob.token_id, logprob.logprob, logprob.token.as_slice()), (0, 0.0, piece.text.as_bytes()));
    assert_eq!((logprob.top.len(), &logprob.top[0].token), (1, &logprob.token));
}

#[test]
fn models_that_say_the_same_have_the_same_digest() {
    let digest = |engine: SyntheticEngine| {
        let [info] = engine.model_info().try_into().unwrap();
        assert_eq!((info.name.as_str(), info.engine.as_str(), info.digest.len()), (SYNTHETIC_MODEL, "synthetic", 64));
        info.digest
    };
    assert_eq!(digest(SyntheticEngine::new(1.0)), digest(SyntheticEngine::new(9.0).prefill(Duration::from_secs(1))));
    let all = [
        digest(SyntheticEngine::new(1.0)),
        digest(SyntheticEngine::new(1.0).words(true)),
        digest(SyntheticEngine::new(1.0).timestamps(true)),
    ];
    assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2]);
}

#[tokio::test]
async fn what_runs_is_counted_until_it_ends() {
    let engine = SyntheticEngine::new(1.0);
    let stream = engine.generate(request(1_000_000)).await.unwrap();
    assert_eq!(engine.clone().computing(), 1);
    drop(stream);
    while engine.computing() > 0 {
        tokio::task::yield_now().await;
    }
}
