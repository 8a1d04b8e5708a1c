//! Who is answered: API keys over each interface, their limits, and what is written down.

#![allow(clippy::unwrap_used)]

mod support;

use std::{collections::HashMap, time::SystemTime};

use reqwest::{Method, Response, redirect::Policy};
use serde_json::{Value, json};
use support::{Agent, Harness, claims, material, until};
use titan_certs::{CertDir, Identity, Role, signing_request};
use titan_coord::{
    Config,
    keys::{KeyFile, Limits},
    usage::{self, Line, Outcome},
};
use titan_proto::{
    rest::IssuedCertificate,
    v1::{FinishedGeneration, HealthUpdate, InferenceRequest, StatusRequest},
};
use titan_transport::{tls::TlsMaterial, token::unix_seconds};
use tonic::{Code, Request};

const MODEL: &str = "smollm2:135m";
const ROUTE: &str = "/api/v1/inference/request";
const CHAT: &str = "/v1/chat/completions";

fn client() -> reqwest::Client {
    let _ = titan_transport::tls::provider().as_ref().clone().install_default();
    reqwest::Client::builder().no_proxy().redirect(Policy::none()).build().unwrap()
}

fn question(path: &str) -> Value {
    match path {
        CHAT => json!({"model": MODEL, "messages": [{"role": "user", "content": "Hello."}]}),
        _ => json!({"client_id": "c", "model": MODEL, "prompt": "Hello."}),
    }
}

async fn ask(harness: &Harness, method: Method, path: &str, key: Option<&str>) -> Response {
    let mut request = client().request(method.clone(), harness.http(path)).header("content-type", "application/json");
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    if method == Method::POST {
        request = request.body(question(path).to_string());
    }
    request.send().await.unwrap()
}

async fn json_of(response: Response) -> Value {
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

fn keys(harness: &Harness) -> KeyFile {
    KeyFile::in_dir(&harness.dir.path().join("keys"))
}

/// A key that the running coordinator knows.
async fn add(harness: &Harness, name: &str, limits: Limits) -> String {
    let (_, key) = keys(harness).add(name, limits, SystemTime::now()).unwrap();
    until(async || ask(harness, Method::GET, "/api/v1/models", Some(&key)).await.status() == 200).await;
    key
}

/// On an address that other machines reach, as an operator would have it.
async fn public(change: impl FnOnce(&mut Config)) -> (Harness, Agent) {
    let harness = Harness::start_in(tempfile::tempdir().unwrap(), |config| {
        config.http_addr = "0.0.0.0:0".parse().unwrap();
        change(config);
    })
    .await;
    let mut agent = harness.agent("agent-1").await;
    agent.register().await;
    (harness, agent)
}

#[tokio::test]
async fn on_a_public_address_nobody_is_answered_without_a_key() {
    let (harness, _agent) = public(|_| ()).await;
    let guarded = [
        (Method::POST, ROUTE),
        (Method::POST, CHAT),
        (Method::GET, "/api/v1/status?include_agents=true"),
        (Method::GET, "/api/v1/models"),
        (Method::GET, "/v1/models"),
        (Method::GET, "/v1/models/smollm2:135m"),
        (Method::GET, "/v1/responses/resp_1"),
    ];
    for (key, word) in [(None, "missing_api_key"), (Some("any"), "invalid_api_key")] {
        for (method, path) in guarded.clone() {
            let refused = ask(&harness, method, path, key).await;
            assert_eq!(refused.status(), 401, "{path}");
            let body = json_of(refused).await;
            let is_openai = path.starts_with("/v1/");
            let message = if is_openai { &body["error"]["message"] } else { &body["message"] };
            assert!(message.as_str().unwrap().contains("titan keys"), "{path}: {body}");
            assert!(is_openai || body["error"] == word, "{path}: {body}");
        }
    }
    let mut grpc = harness.plain().await;
    let request =
        || InferenceRequest { client_id: "c".into(), model: MODEL.into(), prompt: "Hi".into(), ..Default::default() };
    let refused = grpc.request_inference(request()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().starts_with("missing_api_key: "), "{refused}");
    assert_eq!(grpc.query_system_status(StatusRequest::default()).await.unwrap_err().code(), Code::Unauthenticated);
    // What says nothing of anybody is for everybody.
    for open in
        ["/api/v1/health", "/api/v1/status", "/.well-known/jwks.json", "/api/v1/openapi.json", "/v1/openapi.json"]
    {
        assert_eq!(ask(&harness, Method::GET, open, None).await.status(), 200, "{open}");
    }

    let key = add(&harness, "alice", Limits::default()).await;
    for (method, path) in guarded {
        let status = ask(&harness, method, path, Some(&key)).await.status();
        assert!(![401, 403].contains(&status.as_u16()), "{path}: {status}");
    }
    let mut with_key = Request::new(request());
    with_key.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    let answer = grpc.request_inference(with_key).await.unwrap().into_inner();
    let claims = claims(&harness, &answer.session_token).await;
    assert_eq!((claims.key.as_deref(), claims.generations, answer.generations), (Some(&key[6..14]), None, 0));

    keys(&harness).revoke("alice", SystemTime::now()).unwrap();
    until(async || ask(&harness, Method::POST, ROUTE, Some(&key)).await.status() == 401).await;
    let body = json_of(ask(&harness, Method::POST, ROUTE, Some(&key)).await).await;
    assert_eq!(body["error"], "revoked_api_key");
}

#[tokio::test]
async fn a_certificate_of_the_private_ca_stands_in_for_a_key() {
    let (harness, _agent) = public(|_| ()).await;
    let mut grpc = harness.over_tls(&material(&harness.dir, Role::Client, "laptop")).await.unwrap();
    let request =
        || InferenceRequest { client_id: "c".into(), model: MODEL.into(), prompt: "Hi".into(), ..Default::default() };
    grpc.request_inference(request()).await.unwrap();
    // By its name it is limited and revoked.
    add(&harness, "laptop", Limits { requests_per_second: Some(1), ..Limits::default() }).await;
    until(async || {
        let mut grpc = grpc.clone();
        matches!(grpc.request_inference(request()).await, Err(status) if status.code() == Code::ResourceExhausted)
    })
    .await;
    keys(&harness).revoke("laptop", SystemTime::now()).unwrap();
    until(async || {
        let mut grpc = grpc.clone();
        matches!(grpc.request_inference(request()).await, Err(status) if status.code() == Code::Unauthenticated)
    })
    .await;
}

#[tokio::test]
async fn where_it_is_spelt_out_nobody_needs_a_key() {
    let (harness, _agent) = public(|config| config.api_keys = false).await;
    assert_eq!(ask(&harness, Method::POST, ROUTE, None).await.status(), 200);
    assert_eq!(ask(&harness, Method::POST, CHAT, Some("any")).await.status(), 307);
}

#[tokio::test]
async fn each_limit_is_429_with_its_name_and_when_to_come_again() {
    let (harness, mut agent) = public(|_| ()).await;
    let refused = async |key: &str, path: &str| {
        let refused = ask(&harness, Method::POST, path, Some(key)).await;
        assert_eq!(refused.status(), 429);
        let wait: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        (wait, json_of(refused).await)
    };

    let limits = Limits { concurrent: Some(2), ..Limits::default() };
    let key = add(&harness, "two", limits).await;
    let mut jobs = Vec::new();
    for _ in 0..2 {
        let answer = json_of(ask(&harness, Method::POST, ROUTE, Some(&key)).await).await;
        assert_eq!(answer["generations"], 1, "each is asked for");
        let claims = claims(&harness, answer["session_token"].as_str().unwrap()).await;
        assert_eq!((claims.generations, claims.key.as_deref()), (Some(1), Some(&key[6..14])));
        jobs.push(answer["job_id"].as_str().unwrap().to_owned());
    }
    let (wait, body) = refused(&key, ROUTE).await;
    assert_eq!((body["error"].as_str(), body["limit"].as_str()), (Some("rate_limited"), Some("concurrent")));
    assert!(wait > 0 && body["message"].as_str().unwrap().contains("concurrent = 2"), "{body}");
    let (_, body) = refused(&key, CHAT).await;
    assert!(body["error"]["message"].as_str().unwrap().contains("concurrent = 2"), "{body}");
    // They run, and still count; then one has ended.
    let running = |count: u32| HashMap::from([(key[6..14].to_owned(), count)]);
    let update =
        HealthUpdate { claimed_job_ids: jobs, running_by_key: running(2), running_jobs: 2, ..Default::default() };
    agent.report(update).await.unwrap();
    refused(&key, ROUTE).await;
    agent.report(HealthUpdate { running_by_key: running(1), running_jobs: 1, ..Default::default() }).await.unwrap();
    assert_eq!(ask(&harness, Method::POST, ROUTE, Some(&key)).await.status(), 200);

    let key = add(&harness, "tokens", Limits { tokens_per_minute: Some(100), ..Limits::default() }).await;
    assert_eq!(ask(&harness, Method::POST, ROUTE, Some(&key)).await.status(), 200);
    agent.report(HealthUpdate { finished: vec![finished("1", &key, 60, 90)], ..Default::default() }).await.unwrap();
    let (wait, body) = refused(&key, ROUTE).await;
    assert_eq!(body["limit"], "tokens_per_minute");
    assert!((1..=31).contains(&wait), "{wait}");

    let key = add(&harness, "model", Limits { models: vec!["other".to_owned()], ..Limits::default() }).await;
    let body = ask(&harness, Method::POST, ROUTE, Some(&key)).await;
    assert_eq!(body.status(), 403);
    assert_eq!(json_of(body).await["error"], "model_not_allowed");
    assert_eq!(json_of(ask(&harness, Method::GET, "/v1/models", Some(&key)).await).await["data"], json!([]));
}

#[tokio::test]
async fn whoever_shows_a_key_has_one_of_its_own_certified_for_a_day() {
    let (harness, _agent) = public(|_| ()).await;
    let off = post_csr(&harness, &add(&harness, "early", Limits::default()).await, "x").await;
    assert_eq!((off.status().as_u16(), json_of(off).await["error"].as_str()), (403, Some("enrolment_off")));
    let dir = harness.stop().await;
    let certs = CertDir::new(dir.path());
    let harness = Harness::start_in(dir, |config| {
        config.http_addr = "0.0.0.0:0".parse().unwrap();
        config.enrolment = Some(certs);
    })
    .await;
    let mut agent = harness.agent("agent-1").await;
    agent.register().await;
    let key = add(&harness, "alice", Limits::default()).await;
    let request = signing_request().unwrap();
    let issued = post_csr(&harness, &key, &request.csr).await;
    assert_eq!(issued.status(), 201);
    let issued: IssuedCertificate = serde_json::from_value(json_of(issued).await).unwrap();
    let day = 24 * 60 * 60;
    let left = issued.expires_at - unix_seconds(SystemTime::now());
    assert!((day - 60..=day).contains(&left), "{left}");
    let tls = TlsMaterial::from_pem(&issued.ca, &issued.certificate, &request.key).unwrap();
    let identity = Identity::from_der(&tls.chain[0]).unwrap();
    assert_eq!((identity.role, identity.name), (Role::Client, format!("key-{}", &key[6..14])));
    // It is the key's: what the coordinator answers is on its account.
    let mut grpc = harness.over_tls(&tls).await.unwrap();
    let question =
        InferenceRequest { client_id: "c".into(), model: MODEL.into(), prompt: "Hi".into(), ..Default::default() };
    let answer = grpc.request_inference(question).await.unwrap().into_inner();
    assert_eq!(claims(&harness, &answer.session_token).await.key.as_deref(), Some(&key[6..14]));

    for (csr, says) in [("", "PKCS#10"), (issued.certificate.as_str(), "PKCS#10"), (&"x".repeat(20_000), "bytes")] {
        let refused = post_csr(&harness, &key, csr).await;
        assert_eq!(refused.status(), 400);
        let body = json_of(refused).await;
        assert!(body["error"] == "invalid_csr" && body["message"].as_str().unwrap().contains(says), "{body}");
    }
    assert_eq!(post_csr(&harness, "any", &request.csr).await.status(), 401);
}

async fn post_csr(harness: &Harness, key: &str, csr: &str) -> Response {
    let request = client().post(harness.http("/api/v1/certificates")).bearer_auth(key);
    request.body(json!({"csr": csr}).to_string()).send().await.unwrap()
}

fn finished(id: &str, key: &str, prompt_tokens: i64, completion_tokens: i64) -> FinishedGeneration {
    FinishedGeneration {
        id: id.to_owned(),
        job_id: format!("job_{id}"),
        key: key.get(6..14).unwrap_or_default().to_owned(),
        client_id: "c".to_owned(),
        model: MODEL.to_owned(),
        prompt_tokens,
        completion_tokens,
        duration_ms: 20,
        outcome: "cancelled".to_owned(),
        ..Default::default()
    }
}

#[tokio::test]
async fn what_was_generated_is_written_down_with_the_name_of_the_key() {
    let log = tempfile::tempdir().unwrap();
    let path = log.path().join("usage.jsonl");
    let (harness, mut agent) = public(|config| config.usage_log = Some(path.clone())).await;
    let key = add(&harness, "alice", Limits::default()).await;
    let both = vec![finished("1", &key, 7, 3), finished("2", "", 1, 2)];
    agent.report(HealthUpdate { finished: both, ..Default::default() }).await.unwrap();
    let nonsense = FinishedGeneration { prompt_tokens: -1, ..finished("3", &key, 0, 0) };
    assert_eq!(
        agent.report(HealthUpdate { finished: vec![nonsense], ..Default::default() }).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let lines = || {
        let mut lines: Vec<Line> = Vec::new();
        assert_eq!(usage::read(&path, |line| lines.push(line)).unwrap(), 0);
        lines
    };
    // A thread writes it, a moment later.
    until(async || lines().len() == 2).await;
    let lines = lines();
    assert_eq!(
        (lines[0].key_name.as_deref(), lines[0].agent.as_str(), lines[0].job.as_str()),
        (Some("alice"), "agent-1", "job_1")
    );
    assert_eq!((lines[0].prompt_tokens, lines[0].completion_tokens, lines[0].outcome), (7, 3, Outcome::Cancelled));
    assert_eq!((lines[1].key.as_deref(), lines[1].key_name.as_deref()), (None, None));
}
