//! The OpenAI API at the coordinator: who is sent where, and with what.

#![allow(clippy::unwrap_used)]

mod support;

use reqwest::{Response, redirect::Policy};
use serde_json::{Value, json};
use support::{Harness, claims};
use titan_proto::{
    digest,
    v1::{DeregistrationRequest, InferenceRequest},
};
use titan_transport::token::Claims;

const CHAT: &str = "/v1/chat/completions";
const MODEL: &str = "smollm2:135m";

fn chat() -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": "Hello."}]})
}

/// A client that stays where it is.
fn client() -> reqwest::Client {
    let _ = titan_transport::tls::provider().as_ref().clone().install_default();
    reqwest::Client::builder().no_proxy().redirect(Policy::none()).build().unwrap()
}

async fn call(harness: &Harness, method: &str, path: &str, key: &str, body: String) -> Response {
    let request = client().request(method.parse().unwrap(), harness.http(path)).bearer_auth(key);
    let request = request.header("x-titan-queue-timeout-ms", "0");
    request.header("content-type", "application/json").body(body).send().await.unwrap()
}

async fn json_of(response: Response) -> Value {
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

/// Where a client is sent, as scheme and host, token, and the rest.
fn location(response: &Response) -> (String, String, String) {
    assert_eq!(response.status(), 307);
    let location = response.headers()["location"].to_str().unwrap();
    let (host, rest) = location.split_once("/s/").unwrap();
    let (token, rest) = rest.split_once('/').unwrap();
    (host.to_owned(), token.to_owned(), format!("/{rest}"))
}

#[tokio::test]
async fn a_request_is_sent_to_an_agent_with_a_token_for_it_alone() {
    let harness = Harness::start().await;
    let mut agent = harness.agent("agent-1").await;
    agent.register().await;
    let prompt = json!({"model": MODEL, "prompt": "Hello."});
    let input = json!({"model": MODEL, "input": "Hello.", "stream": true});
    for (path, body) in [(CHAT, chat()), ("/v1/completions", prompt), ("/v1/responses", input)] {
        let response = call(&harness, "POST", path, "any", body.to_string()).await;
        assert_eq!(response.headers()["cache-control"], "no-store");
        let (host, token, rest) = location(&response);
        assert_eq!((host.as_str(), rest.as_str()), ("http://localhost:50052", path));
        let claims = claims(&harness, &token).await;
        assert_eq!((claims.request, claims.model.as_str()), (Some(Claims::request_line("POST", path)), MODEL));
        assert_eq!(claims.exp - claims.iat, 30);
        let says = json_of(response).await;
        assert!(says["error"]["message"].as_str().unwrap().contains("follow the redirect"), "{says}");
    }
}

#[tokio::test]
async fn clients_with_different_keys_are_different_clients() {
    let harness = Harness::start().await;
    let mut agent = harness.agent("agent-1").await;
    agent.register().await;
    let mut names = Vec::new();
    for key in ["one", "two", "one"] {
        let (_, token, _) = location(&call(&harness, "POST", CHAT, key, chat().to_string()).await);
        let name = claims(&harness, &token).await.client_id;
        assert!(!name.contains(key), "{name}");
        names.push(name);
    }
    assert_ne!(names[0], names[1]);
    assert_eq!(names[0], names[2]);
    // Nobody else can take such a name, and with it what belongs to its owner.
    let forged = json!({"client_id": names[0], "model": MODEL, "prompt": "x"});
    let refused = call(&harness, "POST", "/api/v1/inference/request", "one", forged.to_string()).await;
    assert_eq!(refused.status(), 400);
    assert!(json_of(refused).await["message"].as_str().unwrap().starts_with("client_id must not begin with"));
    let forged =
        InferenceRequest { client_id: names[0].clone(), model: MODEL.into(), prompt: "x".into(), ..Default::default() };
    let refused = harness.plain().await.request_inference(forged).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    // The same after a restart: a background response is found again.
    let dir = harness.stop().await;
    let harness = Harness::start_in(dir, |_| ()).await;
    let mut agent = harness.agent("agent-1").await;
    agent.register().await;
    let (_, token, _) = location(&call(&harness, "POST", CHAT, "one", chat().to_string()).await);
    assert_eq!(claims(&harness, &token).await.client_id, names[0]);
}

#[tokio::test]
async fn what_no_agent_could_answer_is_refused_in_the_fields_words() {
    let harness = Harness::start().await;
    let nobody = call(&harness, "POST", CHAT, "any", chat().to_string()).await;
    assert!([404, 503].contains(&nobody.status().as_u16()));
    let mut agent = harness.agent("agent-1").await;
    agent.register().await;
    let large = format!("{{\"model\":\"{}\"}}", "x".repeat(2 << 20));
    for (method, path, body, status, says) in [
        ("POST", CHAT, "{".to_owned(), 400, "not JSON"),
        ("POST", CHAT, "{}".to_owned(), 400, "model"),
        (
            "POST",
            CHAT,
            json!({"model": "other", "messages": [{"role": "user", "content": "x"}]}).to_string(),
            404,
            MODEL,
        ),
        (
            "POST",
            CHAT,
            json!({"model": MODEL, "messages": [{"role": "user", "content": "x"}], "n": 2}).to_string(),
            400,
            "n is not",
        ),
        ("POST", CHAT, large, 413, "bytes"),
        ("GET", CHAT, String::new(), 405, "GET"),
        ("POST", "/v1/embeddings", String::new(), 404, "/v1/chat/completions"),
        ("GET", "/v1/responses/resp_0_x", String::new(), 404, "no such response"),
        ("GET", "/v1/models/other", String::new(), 404, MODEL),
    ] {
        let response = call(&harness, method, path, "any", body).await;
        assert_eq!(response.status(), status, "{method} {path}");
        let message = json_of(response).await["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(says), "{message}");
    }
}

#[tokio::test]
async fn a_full_fleet_says_when_to_come_again() {
    let harness = Harness::start().await;
    let mut agent = harness.agent("agent-1").await;
    agent.register().await;
    for _ in 0..100 {
        let response = call(&harness, "POST", CHAT, "any", chat().to_string()).await;
        if response.status() == 429 {
            assert_eq!(response.headers()["retry-after"], "2");
            assert_eq!(json_of(response).await["error"]["type"], "rate_limit_error");
            return;
        }
        assert_eq!(response.status(), 307);
    }
    panic!("an agent with room for everyone");
}

#[tokio::test]
async fn a_background_response_is_sought_at_its_agent() {
    let harness = Harness::start().await;
    let mut agent = harness.agent("agent-1").await;
    agent.register().await;
    let id = format!("resp_{}_0123", digest::origin("agent-1"));
    for (method, path) in [
        ("GET", format!("/v1/responses/{id}")),
        ("GET", format!("/v1/responses/{id}?stream=true&starting_after=4")),
        ("DELETE", format!("/v1/responses/{id}")),
        ("POST", format!("/v1/responses/{id}/cancel")),
    ] {
        let (_, token, rest) = location(&call(&harness, method, &path, "any", String::new()).await);
        assert_eq!(rest, path);
        let claims = claims(&harness, &token).await;
        assert_eq!(claims.request, Some(Claims::request_line(method, path.split('?').next().unwrap())));
    }
}

#[tokio::test]
async fn what_an_agent_kept_that_is_gone_is_not_sought_there() {
    let harness = Harness::start().await;
    let mut agent = harness.agent("agent-1").await;
    agent.register().await;
    agent
        .client
        .deregister_agent(DeregistrationRequest { agent_id: "agent-1".into(), ..Default::default() })
        .await
        .unwrap();
    let id = format!("resp_{}_0123", digest::origin("agent-1"));
    let response = call(&harness, "GET", &format!("/v1/responses/{id}"), "any", String::new()).await;
    assert_eq!(response.status(), 503);
}

#[tokio::test]
async fn a_body_that_no_agent_would_read_books_nothing() {
    let harness = Harness::start().await;
    let mut agent = harness.agent("agent-1").await;
    agent.register().await;
    let request = client().post(harness.http(CHAT)).header("content-type", "text/plain").body(chat().to_string());
    assert_eq!(request.send().await.unwrap().status(), 415);
    let status = client().get(harness.http("/api/v1/status?include_agents=true")).send().await.unwrap();
    assert_eq!(json_of(status).await["agents"][0]["running_jobs"], 0);
}

#[tokio::test]
async fn the_fleets_models_are_listed() {
    let harness = Harness::start().await;
    let mut agent = harness.agent("agent-1").await;
    agent.register().await;
    let list = json_of(call(&harness, "GET", "/v1/models", "any", String::new()).await).await;
    assert_eq!((&list["object"], &list["data"][0]["id"]), (&json!("list"), &json!(MODEL)));
    let one = json_of(call(&harness, "GET", &format!("/v1/models/{MODEL}"), "any", String::new()).await).await;
    assert_eq!(one["id"], MODEL);
}
