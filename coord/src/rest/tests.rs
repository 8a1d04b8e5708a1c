#![allow(clippy::unwrap_used)]

mod conversations;

use std::collections::BTreeSet;

use axum::response::Response;
use http::{Request, StatusCode, header};
use http_body_util::BodyExt as _;
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use titan_proto::{
    MAX_PROMPT_BYTES, MAX_REST_BODY_BYTES,
    rest::{self, GrpcTls},
    v1::ModelInfo,
};
use titan_transport::token::{Algorithm, TokenIssuer, TokenVerifier};
use tower::ServiceExt as _;

use super::*;
use crate::{
    access::Access,
    caller::QUEUE_TIMEOUT,
    config::Config,
    registry::{Load, Profile, QuicProfile, Report, StreamId},
    routing::MAX_EXCLUDED,
};

const PATH: &str = "/api/v1/inference/request";
/// Of the model `default`.
const DIGEST: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

struct Fixture {
    dispatcher: Arc<Dispatcher>,
    router: Router,
    _keys: TempDir,
}

/// A coordinator without agents, or with one, `agent-1`, of two slots.
fn fixture(with_agent: bool) -> Fixture {
    let keys = tempfile::tempdir().unwrap();
    // Signs fastest; which algorithm makes no difference here.
    let issuer = TokenIssuer::open(keys.path(), Algorithm::ES256).unwrap();
    let dispatcher = Arc::new(Dispatcher::new(&Config::default(), issuer, Access::open(), None).unwrap());
    if with_agent {
        let profile = Profile {
            id: "agent-1".into(),
            origin: String::new(),
            instance: "".into(),
            endpoint: "localhost:50052".into(),
            grpc_tls: GrpcTls::Server,
            quic: Some(QuicProfile { address: "localhost:50053".into(), server_name: "agent-1.example".into() }),
            total_vram_mb: 0,
            total_ram_mb: 16_000,
            max_jobs: 2,
            models: vec!["smollm2:135m".into(), "default".into()],
            model_info: vec![ModelInfo {
                name: "default".into(),
                engine: "mistral.rs".into(),
                digest: DIGEST.into(),
                ..ModelInfo::default()
            }],
        };
        let load = Load { free_ram_mb: 8_000, running_jobs: 0, rtt_ms: Some(12.5), ..Load::default() };
        let mut registry = dispatcher.registry.lock();
        registry.register(profile, None, Instant::now()).unwrap();
        registry.heartbeat("agent-1", StreamId(0), load, Report::default(), Instant::now()).unwrap();
    }
    Fixture { router: router(Arc::clone(&dispatcher), Vec::new(), Ports::default(), None), dispatcher, _keys: keys }
}

impl Fixture {
    async fn send(&self, request: Request<Body>) -> Response {
        self.router.clone().oneshot(request).await.unwrap()
    }

    async fn get(&self, path: &str) -> Value {
        let response = self.send(Request::get(path).body(Body::empty()).unwrap()).await;
        assert_eq!(response.status(), StatusCode::OK);
        json_of(response).await
    }

    async fn post(&self, body: impl Into<Body>) -> Response {
        self.send(Request::post(PATH).body(body.into()).unwrap()).await
    }

    /// The code word and message of a refusal, its shape checked.
    async fn refused(&self, body: impl Into<Body>) -> (u16, String, String) {
        error_of(self.post(body).await).await
    }
}

async fn json_of(response: Response) -> Value {
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
    serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

async fn error_of(response: Response) -> (u16, String, String) {
    let status = response.status().as_u16();
    let body = json_of(response).await;
    // In no particular order: whether serde_json keeps one is decided by whoever else builds it.
    let keys: BTreeSet<_> = body.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, BTreeSet::from(["code", "error", "message"]));
    assert_eq!(body["code"], status);
    (status, body["error"].as_str().unwrap().to_owned(), body["message"].as_str().unwrap().to_owned())
}

fn request() -> Value {
    json!({"client_id": "c", "model": "smollm2:135m", "prompt": "Hello"})
}

fn request_with(name: &str, value: Value) -> String {
    let mut request = request();
    request[name] = value;
    request.to_string()
}

#[tokio::test]
async fn an_answer_has_every_field_of_the_contract() {
    let fixture = fixture(true);
    let response = fixture.post(request().to_string()).await;
    assert_eq!(response.status(), StatusCode::OK);
    let mut answer = json_of(response).await;
    let token = answer["session_token"].take();
    let job_id = answer["job_id"].take();
    let expires_at = answer["expires_at"].take().as_i64().unwrap();
    assert_eq!(
        answer,
        json!({
            "agent_endpoint": "localhost:50052", "agent_id": "agent-1", "estimated_rtt_ms": 12.5,
            "session_token": null, "job_id": null, "expires_at": null,
            "quic_endpoint": "localhost:50053",
            "endpoints": {
                "grpc": {"address": "localhost:50052", "tls": "server"},
                "quic": {"address": "localhost:50053", "alpn": "titan/1", "server_name": "agent-1.example"},
            },
        })
    );
    assert!(job_id.as_str().unwrap().starts_with("job_"));

    // The token says the same, and the published keys verify it.
    let verifier = TokenVerifier::new(COORDINATOR_NAME);
    verifier.set_keys(&fixture.get("/.well-known/jwks.json").await.to_string()).unwrap();
    let claims = verifier.verify(token.as_str().unwrap(), "agent-1", SystemTime::now()).unwrap();
    assert_eq!((claims.client_id.as_str(), claims.model.as_str()), ("c", "smollm2:135m"));
    assert_eq!((Value::from(claims.job_id), claims.exp), (job_id, expires_at));
    assert_eq!(claims.exp - claims.iat, 300);
}

#[tokio::test]
async fn everything_but_client_model_and_prompt_may_be_left_out_or_null() {
    let fixture = fixture(true);
    let body = r#"{"client_id":"c","model":"default","prompt":"Hi","max_tokens":null,"parameters":null,"extra":[1]}"#;
    assert_eq!(fixture.post(body).await.status(), StatusCode::OK);
    let body = r#"{"client_id":"c","model":"default","prompt":"Hi","max_tokens":5,"temperature":0,"parameters":{"top_p":"0.9"}}"#;
    assert_eq!(fixture.post(body).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn the_content_type_is_of_no_importance() {
    for content_type in ["application/x-www-form-urlencoded", "text/plain", "nonsense"] {
        let request = Request::post(PATH).header(header::CONTENT_TYPE, content_type);
        let response = fixture(true).send(request.body(request_with("prompt", "Hi".into()).into()).unwrap()).await;
        assert_eq!(response.status(), StatusCode::OK, "{content_type}");
    }
}

#[tokio::test]
async fn a_digest_may_stand_for_the_prompt() {
    let body = json!({"client_id": "c", "model": "default", "parameters": {PROMPT_DIGEST: "sha256:00"}});
    assert_eq!(fixture(true).post(body.to_string()).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn what_is_missing_is_named_in_the_order_of_the_contract() {
    let fixture = fixture(true);
    for (body, code_word) in [
        (json!({}), "missing_client_id"),
        (json!({"client_id": ""}), "missing_client_id"),
        (json!({"client_id": null}), "missing_client_id"),
        (json!({"client_id": "c"}), "missing_model"),
        (json!({"client_id": "c", "model": "m"}), "missing_prompt"),
        (json!({"client_id": "c", "model": "m", "prompt": ""}), "missing_prompt"),
    ] {
        let (status, found, _) = fixture.refused(body.to_string()).await;
        assert_eq!((status, found.as_str()), (400, code_word), "{body}");
    }
}

#[tokio::test]
async fn what_is_no_json_or_has_a_wrong_type_is_invalid_json_and_names_the_field() {
    let fixture = fixture(true);
    for (body, named) in [
        (String::new(), "empty"),
        ("{".into(), "not JSON"),
        ("client_id=c".into(), "not JSON"),
        ("\u{feff}{}".into(), "not JSON"),
        ("[]".into(), "the body must be an object, not a list"),
        ("[".repeat(100_000), "not JSON"),
        (request_with("client_id", 1.into()), "client_id must be a string, not 1"),
        (request_with("prompt", json!(["a"])), "prompt must be a string, not a list"),
        (request_with("max_tokens", "10".into()), "max_tokens must be a whole number"),
        (request_with("max_tokens", json!(1.5)), "max_tokens must be a whole number of 32 bits, not 1.5"),
        (request_with("max_tokens", json!(1i64 << 31)), "max_tokens"),
        (request_with("temperature", "0".into()), "temperature must be a number"),
        (request_with("parameters", json!({"top_k": 3})), "parameters.top_k must be a string, not 3"),
        (request_with("parameters", json!([])), "parameters must be an object"),
        (r#"{"temperature":1e999}"#.into(), "not JSON"),
        (r#"{"temperature":NaN}"#.into(), "not JSON"),
    ] {
        let (status, code_word, message) = fixture.refused(body.clone()).await;
        assert_eq!((status, code_word.as_str()), (400, "invalid_json"), "{message}");
        assert!(message.contains(named), "{message}");
    }
    let (_, code_word, _) = fixture.refused(b"{\"client_id\":\"\xff\"}".to_vec()).await;
    assert_eq!(code_word, "invalid_json");
}

#[tokio::test]
async fn values_out_of_range_are_invalid_parameters() {
    let fixture = fixture(true);
    for (name, value) in [
        ("max_tokens", json!(-1)),
        ("temperature", json!(-0.1)),
        ("temperature", json!(1e39)),
        ("client_id", json!("c".repeat(257))),
        ("client_id", json!("a\nb")),
        ("model", json!("m".repeat(257))),
    ] {
        let (status, code_word, message) = fixture.refused(request_with(name, value)).await;
        assert_eq!((status, code_word.as_str()), (400, "invalid_parameter"), "{name}");
        assert!(message.starts_with(name), "{message}");
    }
}

#[tokio::test]
async fn a_client_excludes_a_bounded_number_of_agents() {
    let fixture = fixture(true);
    let excluding = |ids: &str| request_with("parameters", json!({EXCLUDE_AGENTS: ids}));
    let most = vec!["agent-1"; MAX_EXCLUDED].join(", ");
    assert_eq!(fixture.post(excluding(&most)).await.status(), StatusCode::OK);
    assert_eq!(fixture.post(excluding(&",".repeat(500_000))).await.status(), StatusCode::OK, "nobody");
    for (ids, count) in [(most + ",agent-2", "names 65 agents"), ("a,".repeat(500_000), "names 500000 agents")] {
        let (status, code_word, message) = fixture.refused(excluding(&ids)).await;
        assert_eq!((status, code_word.as_str()), (400, "invalid_parameter"));
        assert!(message.starts_with("exclude_agents") && message.contains(count), "{message}");
    }
}

#[tokio::test]
async fn sizes_are_limited() {
    let fixture = fixture(true);
    let largest = request_with("prompt", "p".repeat(MAX_PROMPT_BYTES).into());
    assert_eq!(fixture.post(largest).await.status(), StatusCode::OK);
    let (status, code_word, _) = fixture.refused(request_with("prompt", "p".repeat(MAX_PROMPT_BYTES + 1).into())).await;
    assert_eq!((status, code_word.as_str()), (413, "prompt_too_large"));
    let (status, code_word, _) = fixture.refused(vec![b' '; MAX_REST_BODY_BYTES + 1]).await;
    assert_eq!((status, code_word.as_str()), (413, "payload_too_large"));
    // Without a declared length, and endless.
    let endless = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 100_000]));
    let (status, code_word, _) = fixture.refused(Body::from_stream(endless)).await;
    assert_eq!((status, code_word.as_str()), (413, "payload_too_large"));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_comes_is_not_waited_for() {
    let silent = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    let (status, code_word, _) = fixture(true).refused(Body::from_stream(silent)).await;
    assert_eq!((status, code_word.as_str()), (408, "request_timeout"));
}

#[tokio::test]
async fn an_unknown_model_is_404_and_names_those_that_exist() {
    let (status, code_word, message) = fixture(true).refused(request_with("model", "gpt".into())).await;
    assert_eq!((status, code_word.as_str()), (404, "model_not_found"));
    assert!(message.contains("`gpt`") && message.contains("default, smollm2:135m"), "{message}");
}

#[tokio::test]
async fn without_agents_it_is_503_no_agents() {
    let (status, code_word, _) = fixture(false).refused(request().to_string()).await;
    assert_eq!((status, code_word.as_str()), (503, "no_agents"));
}

#[tokio::test]
async fn without_room_it_is_503_no_capacity_with_a_time_to_wait() {
    let fixture = fixture(true);
    for _ in 0..2 {
        assert_eq!(fixture.post(request().to_string()).await.status(), StatusCode::OK);
    }
    let at_once = Request::post(PATH).header(QUEUE_TIMEOUT, "0").body(request().to_string().into()).unwrap();
    let response = fixture.send(at_once).await;
    assert_eq!(response.headers()[header::RETRY_AFTER], "2");
    assert!(!response.headers().contains_key(QUEUE_POSITION));
    let (status, code_word, _) = error_of(response).await;
    assert_eq!((status, code_word.as_str()), (503, "no_capacity"));

    let wrong = Request::post(PATH).header(QUEUE_TIMEOUT, "soon").body(request().to_string().into()).unwrap();
    let (status, code_word, message) = error_of(fixture.send(wrong).await).await;
    assert_eq!((status, code_word.as_str()), (400, "invalid_parameter"));
    assert!(message.starts_with(QUEUE_TIMEOUT), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_does_not_say_waits_a_little_for_room() {
    let fixture = fixture(true);
    for _ in 0..2 {
        assert_eq!(fixture.post(request().to_string()).await.status(), StatusCode::OK);
    }
    let response = fixture.post(request().to_string()).await;
    assert_eq!(
        (&response.headers()[QUEUE_POSITION], &response.headers()[QUEUE_WAIT]),
        (&HeaderValue::from_static("1"), &HeaderValue::from_static("5000"))
    );
    let (status, code_word, message) = error_of(response).await;
    assert_eq!((status, code_word.as_str()), (503, "no_capacity"));
    assert!(message.contains("after 5000 ms in the queue this request was number 1"), "{message}");
}

#[tokio::test]
async fn health_and_status_have_every_field_of_the_contract() {
    let fixture = fixture(true);
    let is_now = |value: &Value| {
        let time = OffsetDateTime::parse(value.as_str().unwrap(), &Rfc3339).unwrap();
        assert!((OffsetDateTime::now_utc() - time).abs() < time::Duration::minutes(1));
        json!(null)
    };
    let mut health = fixture.get("/api/v1/health").await;
    health["timestamp"] = is_now(&health["timestamp"]);
    assert_eq!(health, json!({"status": "healthy", "timestamp": null, "service": "titancompute-coordinator"}));

    let mut status = fixture.get("/api/v1/status").await;
    status["timestamp"] = is_now(&status["timestamp"]);
    let none = json!({"received": 0, "sent": 0});
    let traffic = json!({"http": none, "grpc": none});
    assert_eq!(status, json!({"total_agents": 1, "healthy_agents": 1, "timestamp": null, "traffic": traffic}));

    for query in ["true", "True", "1"] {
        let mut status = fixture.get(&format!("/api/v1/status?include_agents={query}")).await;
        let agent = &mut status["agents"][0];
        agent["last_heartbeat"] = is_now(&agent["last_heartbeat"]);
        assert_eq!(
            *agent,
            json!({
                "id": "agent-1", "endpoint": "localhost:50052", "status": "healthy", "total_vram_mb": 0, "free_vram_mb": 0,
                "total_ram_mb": 16000, "free_ram_mb": 8000, "running_jobs": 0, "queued_jobs": 0, "max_jobs": 2,
                "rtt_ms": 12.5, "last_heartbeat": null, "supported_models": ["smollm2:135m", "default"],
                "computing": 0, "model_info": [{
                    "name": "default", "engine": "mistral.rs", "source": "", "architecture": "", "parameters": 0, "quantization": "",
                    "context_tokens": 0, "digest": DIGEST, "tools": false, "reasoning": false, "continuation": "", "places": 0,
                }],
            })
        );
    }
    fixture.dispatcher.registry.lock().deregister("agent-1", Instant::now());
    let status = fixture.get("/api/v1/status?include_agents=true").await;
    assert_eq!((&status["healthy_agents"], &status["agents"][0]["status"]), (&json!(0), &json!("offline")));
}

#[tokio::test]
async fn models_are_listed_with_their_agents() {
    let listed = json!([{"name": "default", "agents": 1}, {"name": "smollm2:135m", "agents": 1}]);
    assert_eq!(fixture(true).get("/api/v1/models").await, listed);
    assert_eq!(fixture(false).get("/api/v1/models").await, json!([]));
}

#[tokio::test]
async fn unknown_paths_and_methods_answer_in_the_same_shape() {
    let fixture = fixture(true);
    let (status, code_word, message) =
        error_of(fixture.send(Request::get("/api/v2/x").body(Body::empty()).unwrap()).await).await;
    assert_eq!((status, code_word.as_str()), (404, "not_found"));
    assert!(message.contains("/api/v2/x"));
    let response = fixture.send(Request::get(PATH).body(Body::empty()).unwrap()).await;
    assert_eq!(response.headers()[header::ALLOW], "POST");
    let (status, code_word, _) = error_of(response).await;
    assert_eq!((status, code_word.as_str()), (405, "method_not_allowed"));
}

#[tokio::test]
async fn pages_of_any_origin_may_call_unless_origins_are_named() {
    let fixture = fixture(true);
    let preflight = || {
        Request::options(PATH)
            .header(header::ORIGIN, "https://a.example")
            .header(header::ACCESS_CONTROL_REQUEST_METHOD, "POST")
            .header(header::ACCESS_CONTROL_REQUEST_HEADERS, "content-type,authorization")
            .body(Body::empty())
            .unwrap()
    };
    let response = fixture.send(preflight()).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
    assert_eq!(response.headers()[header::ACCESS_CONTROL_ALLOW_METHODS], "GET,POST,OPTIONS");
    assert_eq!(response.headers()[header::ACCESS_CONTROL_ALLOW_HEADERS], "content-type,authorization");
    let refused = Request::post(PATH).header(header::ORIGIN, "https://a.example").body("{".into()).unwrap();
    assert_eq!(fixture.send(refused).await.headers()[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*", "errors too");

    let named = router(
        Arc::clone(&fixture.dispatcher),
        vec![HeaderValue::from_static("https://b.example")],
        Ports::default(),
        None,
    );
    let response = named.oneshot(preflight()).await.unwrap();
    assert!(!response.headers().contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));
}

proptest! {
    #[test]
    fn no_body_whatever_makes_the_parser_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = body::parse(&body);
    }

    #[test]
    fn what_our_own_type_writes_is_read_back(
        client_id: Option<String>, model: Option<String>, prompt: Option<String>, max_tokens: Option<i32>,
        temperature in proptest::option::of(-10.0..10.0f32), parameters: std::collections::BTreeMap<String, String>,
        with_messages in 0..3usize,
    ) {
        let message = rest::Message {
            role: "assistant".into(),
            content: prompt.clone().unwrap_or_default(),
            parts: vec![rest::ContentPart { r#type: "text".into(), text: "a".into() }],
            tool_calls: vec![rest::ToolCall { id: "c".into(), name: "f".into(), arguments: "{}".into() }],
            tool_call_id: "c".into(),
            name: "n".into(),
            reasoning: "hm".into(),
        };
        let request = rest::InferenceRequest {
            client_id,
            model,
            prompt,
            max_tokens,
            temperature,
            parameters,
            messages: vec![message; with_messages],
            tools: vec![rest::Tool { name: "f".into(), description: "d".into(), parameters: "{}".into() }; with_messages],
            prefix_digests: vec!["0123456789abcdef".into(); with_messages],
            model_digest: (with_messages > 0).then(|| DIGEST.into()),
        };
        let read = body::parse(&serde_json::to_vec(&request).unwrap()).unwrap();
        prop_assert_eq!(serde_json::to_value(&read).unwrap(), serde_json::to_value(&request).unwrap());
    }
}
