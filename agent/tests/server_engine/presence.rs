//! Servers that are not there yet, are there no more, or are not what was meant.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use titan_agent::engine::{
    Engine as _, EngineError, Health,
    openai::{ApiKey, ServerEngine, ServerSpec},
};

use crate::{
    MODEL, answer, ask, degraded, failure,
    fixture::eventually,
    healthy,
    scripted::{Reply, Scripted, Step, finish, models, text, usage},
};

fn chunks() -> Reply {
    Reply::events(&[text("a"), finish("stop"), usage(1, 1)])
}

#[tokio::test]
async fn a_server_may_come_after_its_agent() {
    let gone = Scripted::completing(|_| chunks());
    let (spec, addr) = (gone.spec(), gone.addr);
    drop(gone);
    eventually("a closed port", || async { tokio::net::TcpStream::connect(addr).await.is_err() }).await;
    let engine = ServerEngine::start(spec, 4).await.unwrap();
    let reason = degraded(&engine).await;
    assert!(reason.contains(&addr.to_string()) && reason.contains("cannot connect"), "{reason}");
    assert_eq!((engine.idle(MODEL), engine.model_info()[0].continuation.as_str()), (false, "none"));
    let asked = Instant::now();
    let error = failure(&engine, ask(1)).await;
    println!("a request to a server that is not there fails after {:?}", asked.elapsed());
    assert!(matches!(&error, EngineError::Failed(why) if why.contains("cannot be used now")), "{error}");
    assert!(!error.to_string().contains(&addr.to_string()), "where it is, is not for clients: {error}");

    let server = Scripted::start_at(addr, |path, _, _| match path {
        "/v1/chat/completions" => chunks(),
        path => Scripted::well(path),
    });
    let came = Instant::now();
    healthy(&engine).await;
    println!("it is noticed {:?} after it came", came.elapsed());
    assert_eq!(answer(&engine, ask(1)).await.0, "a");
    assert!(engine.idle(MODEL));
    drop(server);
}

#[tokio::test]
async fn a_death_is_a_typed_error_at_once_and_a_return_is_noticed() {
    let script = |path: &str, body: &serde_json::Value, _: &axum::http::HeaderMap| match path {
        "/v1/chat/completions" if body["max_tokens"] == 8 => Reply::Stream(vec![Step::event(&text("a")), Step::Hang]),
        "/v1/chat/completions" => chunks(),
        path => Scripted::well(path),
    };
    let server = Scripted::start(script);
    let engine = server.engine().await;
    let mut stream = engine.generate(ask(8)).await.unwrap();
    stream.recv().await.unwrap().unwrap();
    server.kill();
    let died = Instant::now();
    let error = stream.recv().await.unwrap().unwrap_err();
    let (told, reason) = (died.elapsed(), degraded(&engine).await);
    println!("the reader knows after {told:?}, the engine after {:?}: {error}; {reason}", died.elapsed());
    assert!(matches!(&error, EngineError::Failed(why) if why.contains("was lost")), "{error}");
    assert!(matches!(failure(&engine, ask(1)).await, EngineError::Failed(_)));
    assert_eq!(engine.computing(), 0);

    let _server = Scripted::start_at(server.addr, script);
    let back = Instant::now();
    healthy(&engine).await;
    println!("its return is noticed after {:?}", back.elapsed());
    assert_eq!(answer(&engine, ask(1)).await.0, "a");
}

#[tokio::test]
async fn an_idle_engine_notices_the_death_too() {
    let server = Scripted::completing(|_| chunks());
    let engine = server.engine().await;
    assert_eq!(engine.health(), Health::Healthy);
    server.kill();
    let died = Instant::now();
    degraded(&engine).await;
    println!("noticed without a request after {:?}", died.elapsed());
}

#[tokio::test]
async fn a_server_that_is_ill_or_loads_is_degraded_until_it_is_well() {
    let status = Arc::new(AtomicU16::new(200));
    let says = Arc::clone(&status);
    let server = Scripted::start(move |path, _, _| match path {
        "/health" => Reply::status(says.load(Relaxed), "Loading model"),
        path => Scripted::well(path),
    });
    let engine = server.engine().await;
    status.store(503, Relaxed);
    let reason = degraded(&engine).await;
    assert!(reason.contains("503") && reason.contains("Loading model"), "{reason}");
    status.store(200, Relaxed);
    healthy(&engine).await;
}

#[tokio::test]
async fn where_there_is_no_health_the_models_are_asked_for() {
    let server = Scripted::start(|path, _, _| match path {
        "/health" => Reply::status(404, "no such path"),
        path => Scripted::well(path),
    });
    let engine = server.engine().await;
    // Long enough for a look, which must not take the missing path for an illness.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!(engine.health(), Health::Healthy);
}

#[tokio::test]
async fn a_server_with_several_models_or_without_the_one_is_refused_with_their_names() {
    let server = Scripted::start(|path, _, _| match path {
        "/v1/models" => Reply::json(&models(&["one", "two"], "somebody")),
        path => Scripted::well(path),
    });
    let refusal = async |model: Option<&str>| {
        let spec = ServerSpec { model: model.map(str::to_owned), ..server.spec() };
        ServerEngine::start(spec, 4).await.unwrap_err().to_string()
    };
    let message = refusal(None).await;
    assert!(message.contains("one, two") && message.contains("#MODEL"), "{message}");
    let message = refusal(Some("three")).await;
    assert!(message.contains("no model \"three\"; it has one, two"), "{message}");
    let spec = ServerSpec { model: Some("two".into()), ..server.spec() };
    assert_eq!(ServerEngine::start(spec, 4).await.unwrap().models(), [MODEL]);
    let spec = ServerSpec::parse(&format!("{MODEL}=http://{}/elsewhere", server.addr)).unwrap();
    let message = ServerEngine::start(spec, 4).await.unwrap_err().to_string();
    assert!(message.contains("no OpenAI-compatible API") && message.contains("/elsewhere"), "{message}");
}

#[tokio::test]
async fn the_key_is_sent_and_a_wrong_one_is_refused_without_being_told() {
    let server = Scripted::start(|path, _, headers| {
        let right = headers.get("authorization").is_some_and(|key| key == "Bearer sk-right");
        match path {
            "/v1/models" if !right => Reply::status(401, "Invalid API Key"),
            "/v1/chat/completions" if right => chunks(),
            path => Scripted::well(path),
        }
    });
    let with = |key: &str| ServerSpec { key: Some(ApiKey::from_text(key, "test").unwrap()), ..server.spec() };
    let engine = ServerEngine::start(with("sk-right"), 4).await.unwrap();
    assert_eq!(answer(&engine, ask(1)).await.0, "a");
    for spec in [with("sk-hidden"), server.spec()] {
        let message = ServerEngine::start(spec, 4).await.unwrap_err().to_string();
        assert!(message.contains("401") && message.contains("--model-key"), "{message}");
        assert!(!message.contains("hidden"), "{message}");
    }
}

#[tokio::test]
async fn the_load_is_the_servers_whoever_made_it() {
    let server = Scripted::start(|path, _, _| match path {
        "/v1/models" => Reply::json(&models(&["there"], "vllm")),
        "/metrics" => {
            Reply::Status(200, vec![], "vllm:num_requests_running 3.0\nvllm:num_requests_waiting 2.0\n".to_owned())
        }
        "/version" => Reply::json(&json!({"version": "0.11.0"})),
        path => Scripted::well(path),
    });
    let engine = server.engine().await;
    eventually("the server's load", || async { (engine.computing(), engine.queued()) == (3, 2) }).await;
    assert!(!engine.idle(MODEL), "others wait already");
}
