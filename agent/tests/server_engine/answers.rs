//! What servers answer, well and badly.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use axum::body::Bytes;
use serde_json::json;
use titan_agent::engine::{Engine as _, EngineError, FinishReason, Generate, Usage};

use crate::{
    MODEL, all, answer, ask, failure,
    fixture::eventually,
    scripted::{Reply, Scripted, Step, delta, finish, models, text, usage},
};

#[tokio::test]
async fn an_answer_comes_whole_however_the_network_cuts_it() {
    let chunks = [text("é🙂"), delta(&json!({"reasoning_content": "hm"})), text(" b"), finish("length"), usage(9, 3)];
    let events: String = chunks.iter().map(|chunk| format!(": ping\r\n\r\ndata: {chunk}\r\n\r\n")).collect();
    let bytes = format!("{events}data: [DONE]\r\n\r\n").into_bytes();
    for size in [1, 2, 3, 7, bytes.len()] {
        let steps: Vec<Step> = bytes.chunks(size).map(|cut| Step::Send(Bytes::copy_from_slice(cut))).collect();
        let server = Scripted::completing(move |_| Reply::Stream(steps.clone()));
        let engine = server.engine().await;
        let (whole, pieces, end) = answer(&engine, ask(8)).await;
        assert_eq!((whole.as_str(), pieces.len()), ("é🙂 b", 3), "cut every {size} bytes");
        assert_eq!(pieces[1].reasoning, "hm");
        assert_eq!(
            end,
            Usage { prompt_tokens: 9, cached_tokens: 0, completion_tokens: 3, finish_reason: FinishReason::Length }
        );
    }
}

#[tokio::test]
async fn the_server_is_asked_with_its_own_name_of_the_model() {
    let server = Scripted::completing(|_| Reply::events(&[text("a"), finish("stop"), usage(1, 1)]));
    let engine = server.engine().await;
    answer(&engine, ask(5)).await;
    let asked = server.asked.lock()[0].clone();
    assert_eq!((&asked["model"], &asked["max_tokens"], &asked["stream"]), (&json!("there"), &json!(5), &json!(true)));
    let other = failure(&engine, Generate { model: "other".into(), ..ask(1) }).await;
    assert!(matches!(&other, EngineError::UnknownModel { .. }) && other.to_string().contains(MODEL), "{other}");
}

#[tokio::test]
async fn tool_calls_and_logprobs_come_as_they_are_made() {
    let call = |arguments: &str| {
        let function = json!({"name": "f", "arguments": arguments});
        delta(&json!({"tool_calls": [{"index": 0, "id": "c9", "type": "function", "function": function}]}))
    };
    let mut said = text("x");
    said["choices"][0]["logprobs"] = json!({"content": [{"id": 7, "token": "x", "bytes": [120], "logprob": -0.25,
        "top_logprobs": [{"id": 7, "token": "x", "bytes": [120], "logprob": -0.25}]}]});
    let chunks = vec![said, call("{\"a\""), call(":1}"), finish("tool_calls"), usage(5, 4)];
    let server = Scripted::completing(move |_| Reply::events(&chunks));
    let request = Generate { logprobs: Some(1), ..ask(8) };
    let (_, pieces, end) = answer(&server.engine().await, request).await;
    let logprob = &pieces[0].logprobs[0];
    assert_eq!((logprob.token_id, logprob.token.as_slice(), logprob.top.len()), (7, b"x".as_slice(), 1));
    let calls: Vec<_> = pieces.iter().flat_map(|piece| &piece.tool_calls).collect();
    assert_eq!((calls[0].id.as_str(), calls[0].name.as_str(), calls[1].id.as_str()), ("c9", "f", ""));
    assert_eq!(calls.iter().map(|call| call.arguments.as_str()).collect::<String>(), "{\"a\":1}");
    assert_eq!(end.finish_reason, FinishReason::ToolCalls);
}

#[tokio::test]
async fn without_usage_the_pieces_are_counted() {
    let server = Scripted::completing(|_| Reply::events(&[text("a"), text("b"), finish("stop")]));
    let (_, _, end) = answer(&server.engine().await, ask(8)).await;
    assert_eq!((end.prompt_tokens, end.completion_tokens), (0, 2));
}

#[tokio::test]
async fn a_refusal_is_told_in_the_servers_words() {
    let server = Scripted::completing(|body| match body["max_tokens"].as_u64().unwrap() {
        code @ 300.. => {
            Reply::Status(code as u16, vec![("retry-after", "3")], r#"{"error":{"message":"said so"}}"#.into())
        }
        _ => Reply::Status(502, vec![], "<html>gateway</html>".into()),
    });
    let engine = server.engine().await;
    for code in [400, 404, 422] {
        let error = failure(&engine, ask(code)).await;
        assert!(matches!(&error, EngineError::InvalidParameter(why) if why.ends_with("said so")), "{code}: {error}");
    }
    for code in [401, 403] {
        let error = failure(&engine, ask(code)).await;
        assert!(
            matches!(&error, EngineError::Unsupported(why) if why.contains("--model-key m=FILE")),
            "{code}: {error}"
        );
    }
    for code in [429, 503] {
        let error = failure(&engine, ask(code)).await;
        assert!(matches!(&error, EngineError::Failed(why) if why.contains("try again after 3 s")), "{code}: {error}");
    }
    let error = failure(&engine, ask(1)).await;
    assert!(matches!(&error, EngineError::Failed(why) if why.contains("gateway")), "{error}");
}

/// The script's server writes when it has nothing else to do; what it breaks off before is never sent.
fn flushed() -> Step {
    Step::Pause(Duration::from_millis(100))
}

#[tokio::test]
async fn a_stream_that_breaks_ends_early_or_is_none_is_an_error_and_never_an_end() {
    let said = || Step::event(&text("a"));
    let done = || Step::text("data: [DONE]\n\n");
    let ended = || Step::event(&finish("stop"));
    let cases: Vec<(Vec<Step>, &str)> = vec![
        (vec![said(), flushed(), Step::Break], "was lost"),
        (vec![said()], "ended the stream before"),
        (vec![said(), ended()], "ended the stream before"),
        (vec![said(), ended(), Step::text("data: [DONE]")], "ended the stream before"),
        (vec![said(), done()], "without a finish reason"),
        (vec![said(), Step::event(&json!({"error": {"message": "out of memory", "code": 500}}))], "out of memory"),
        (vec![said(), Step::text("data: nonsense\n\n")], "no piece of an answer"),
        (vec![said(), Step::Send(Bytes::from_static(b"data: \xff\n\n"))], "not UTF-8"),
        (vec![Step::Send(vec![b'x'; (1 << 20) + 1].into())], "more than 1048576 bytes"),
        (vec![], "ended the stream before"),
    ];
    for (steps, expected) in cases {
        let server = Scripted::completing(move |_| Reply::Stream(steps.clone()));
        let error = failure(&server.engine().await, ask(8)).await;
        assert!(matches!(&error, EngineError::Failed(why) if why.contains(expected)), "{expected}: {error}");
    }
    let server = Scripted::completing(|_| Reply::json(&json!({"choices": []})));
    let error = failure(&server.engine().await, ask(8)).await;
    assert!(matches!(&error, EngineError::Failed(why) if why.contains("application/json")), "{error}");
}

#[tokio::test]
async fn what_came_before_the_break_has_come() {
    let steps = vec![Step::event(&text("a")), Step::event(&text("b")), flushed(), Step::Break];
    let server = Scripted::completing(move |_| Reply::Stream(steps.clone()));
    let engine = server.engine().await;
    let (pieces, end) = all(engine.generate(ask(8)).await.unwrap()).await;
    assert_eq!(pieces.iter().map(|piece| piece.text.as_str()).collect::<String>(), "ab");
    assert!(end.is_err());
}

#[tokio::test]
async fn dropping_the_stream_or_the_request_closes_the_connection() {
    let server = Scripted::completing(|body| match body["max_tokens"].as_u64() {
        Some(1) => Reply::Silence,
        _ => Reply::Stream(vec![Step::event(&text("a")), Step::Hang]),
    });
    let engine = server.engine().await;
    let mut stream = engine.generate(ask(8)).await.unwrap();
    stream.recv().await.unwrap().unwrap();
    assert_eq!((server.open(), engine.computing()), (1, 1));
    drop(stream);
    eventually("a closed connection", || async { server.open() == 0 && engine.computing() == 0 }).await;
    // Before there is a stream: the server has sent no headers yet.
    let waiting = tokio::time::timeout(Duration::from_millis(200), engine.generate(ask(1))).await;
    assert!(waiting.is_err(), "it sends nothing");
    eventually("a closed connection", || async { server.open() == 0 && engine.computing() == 0 }).await;
}

#[tokio::test]
async fn a_reader_who_does_not_read_holds_the_server_back() {
    const PIECES: usize = 2_000;
    let piece = Step::event(&text(&"x".repeat(16 * 1024)));
    let server = Scripted::completing(move |_| Reply::Stream(vec![piece.clone(); PIECES]));
    let engine = server.engine().await;
    let mut stream = engine.generate(ask(8)).await.unwrap();
    stream.recv().await.unwrap().unwrap();
    // What was sent settles far below all of it.
    let mut before = 0;
    eventually("the server waits", || {
        let now = server.sent.load(Relaxed);
        let settled = now == std::mem::replace(&mut before, now);
        async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            settled
        }
    })
    .await;
    assert!(before < PIECES, "{before} of {PIECES} pieces were taken though nobody reads");
}

#[tokio::test]
async fn vllm_gives_token_ids_goes_on_with_a_text_and_is_asked_for_no_more_than_fits() {
    let mut said = text("c");
    said["choices"][0]["token_ids"] = json!([3, 4]);
    let chunks = vec![said, finish("stop"), usage(12, 2)];
    let server = Scripted::start(move |path, body, _| match path {
        "/v1/models" => Reply::json(&models(&["there"], "vllm")),
        "/version" => Reply::json(&json!({"version": "0.11.0"})),
        "/v1/chat/completions" if body["max_tokens"].as_u64().is_some_and(|tokens| tokens > 100) => {
            Reply::status(400, "'max_tokens' or 'max_completion_tokens' is too large: 200")
        }
        "/v1/chat/completions" => Reply::events(&chunks),
        path => Scripted::well(path),
    });
    let engine = server.engine().await;
    assert_eq!(engine.model_info()[0].continuation, "text");
    let continuation = titan_agent::engine::Continuation {
        text: "a b".into(),
        tokens: vec![1, 2],
        completion_tokens: 2,
        reasoning: String::new(),
        tool_calls: vec![],
    };
    let (_, pieces, end) = answer(&engine, Generate { continuation: Some(continuation), ..ask(200) }).await;
    assert_eq!(Vec::from(pieces[0].tokens.clone()), [3, 4]);
    assert_eq!((end.prompt_tokens, end.completion_tokens), (10, 4));
    let asked = server.asked.lock();
    assert_eq!((&asked[0]["max_tokens"], asked[1].get("max_tokens")), (&json!(200), None));
    assert_eq!(
        (&asked[1]["messages"][1]["content"], &asked[1]["continue_final_message"]),
        (&json!("a b"), &json!(true))
    );
}

#[tokio::test]
async fn what_a_kind_of_server_ignores_is_refused_by_name_and_not_sent() {
    let server = Scripted::start(|path, _, _| match path {
        "/v1/models" => Reply::json(&models(&["there:latest", "more"], "library")),
        "/api/version" => Reply::json(&json!({"version": "0.9.0"})),
        "/api/show" => {
            Reply::json(&json!({"capabilities": ["completion", "tools"], "details": {"quantization_level": "Q4_0"}}))
        }
        path => Scripted::well(path),
    });
    let spec = titan_agent::engine::openai::ServerSpec { model: Some("there".into()), ..server.spec() };
    let engine = titan_agent::engine::openai::ServerEngine::start(spec, 4).await.unwrap();
    let info = &engine.model_info()[0];
    assert_eq!((info.quantization.as_str(), info.tools, info.continuation.as_str()), ("Q4_0", true, "none"));
    let mut request = ask(1);
    request.sampling.top_k = Some(5);
    let error = failure(&engine, request).await;
    assert!(matches!(&error, EngineError::Unsupported(why) if why.contains("top_k")), "{error}");
    assert!(server.asked.lock().is_empty());
}
