//! The OpenAI API on the TCP port: the same handler, with the session token as the key or in the address.

use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use titan_agent::engine::synthetic::{SYNTHETIC_MODEL, SyntheticEngine};
use titan_proto::v1::StreamRequest;
use titan_transport::{
    Wire,
    tls::provider,
    token::{Claims, new_jti},
};
use tonic::Code;

use crate::fixture::{Running, claims, token as token_of};

const CHAT: &str = "/v1/chat/completions";

fn chat(fields: Value) -> Value {
    let mut body =
        json!({"model": SYNTHETIC_MODEL, "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 5});
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn client() -> Client {
    // Needed for any client, also for one that speaks plain text.
    let _ = provider().as_ref().clone().install_default();
    Client::builder().no_proxy().build().unwrap()
}

async fn post(agent: &Running, path: &str, key: &str, body: Value) -> Response {
    let request = client().post(format!("http://{}{path}", agent.grpc)).bearer_auth(key);
    request.header("content-type", "application/json").body(body.to_string()).send().await.unwrap()
}

async fn json_of(response: Response) -> Value {
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

/// A token as the coordinator puts it into an address.
fn for_request(method: &str, path: &str) -> String {
    token_of(&Claims { request: Some(Claims::request_line(method, path)), jti: new_jti(), ..claims() })
}

#[tokio::test]
async fn the_session_token_is_the_key() {
    let agent = Running::start(0.0).await;
    let key = token_of(&claims());
    let whole = json_of(post(&agent, CHAT, &key, chat(json!({}))).await).await;
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert_eq!(
        (&whole["choices"][0]["finish_reason"], &whole["usage"]["completion_tokens"]),
        (&json!("length"), &json!(5))
    );
    let streamed = post(&agent, CHAT, &key, chat(json!({"stream": true}))).await.text().await.unwrap();
    let deltas = streamed.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    let joined: String = deltas
        .map(|data| serde_json::from_str::<Value>(data).unwrap())
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(joined, text);
    let request =
        StreamRequest { session_token: key.clone(), prompt: "Hello.".into(), max_tokens: 5, ..Default::default() };
    let answer = agent.client(Wire::Http).await.all(request).await.unwrap();
    assert_eq!(answer.iter().map(|message| message.content.as_str()).collect::<String>(), text, "over gRPC");
    let models = client().get(format!("http://{}/v1/models", agent.grpc)).bearer_auth(&key).send().await.unwrap();
    assert_eq!(json_of(models).await["data"][0]["id"], SYNTHETIC_MODEL);
}

#[tokio::test]
async fn without_a_good_key_there_is_nothing() {
    let agent = Running::start(0.0).await;
    let expired = Claims { exp: 1, ..claims() };
    for (key, status) in [
        ("", 401),
        ("sk-anything", 401),
        (&*token_of(&expired), 401),
        (&*token_of(&Claims { agent_id: "other".into(), ..claims() }), 403),
        (&*token_of(&Claims { model: "other".into(), ..claims() }), 403),
        (&*for_request("POST", CHAT), 403),
    ] {
        let response = post(&agent, CHAT, key, chat(json!({}))).await;
        assert_eq!(response.status(), status, "{key}");
        assert!(json_of(response).await["error"]["message"].is_string());
    }
}

#[tokio::test]
async fn a_token_in_the_address_is_for_one_request() {
    let agent = Running::start(0.0).await;
    let token = for_request("POST", CHAT);
    let there = |token: &str| format!("/s/{token}{CHAT}");
    let other =
        post(&agent, &format!("/s/{token}/v1/completions"), "any", json!({"model": SYNTHETIC_MODEL, "prompt": "x"}))
            .await;
    assert_eq!(other.status(), 403);
    let first = post(&agent, &there(&token), "any", chat(json!({}))).await;
    assert_eq!(first.status(), 200, "{}", first.text().await.unwrap());
    let again = post(&agent, &there(&token), "any", chat(json!({}))).await;
    assert_eq!(again.status(), 401);
    assert!(json_of(again).await["error"]["message"].as_str().unwrap().contains("one request"));
    for (token, status) in [
        (token_of(&claims()), 403),
        ("x".to_owned(), 401),
        (token_of(&Claims { exp: 1, request: Some(Claims::request_line("POST", CHAT)), ..claims() }), 401),
    ] {
        assert_eq!(post(&agent, &there(&token), "any", chat(json!({}))).await.status(), status);
    }
    for path in ["/", "/chat/completions", "/s/x/", "/s/x/y", "/s/x/titancompute.v1.AgentService/StreamInference"] {
        assert_eq!(post(&agent, path, "any", json!({})).await.status(), 404, "{path}");
    }
    // Nor is it a session token on another wire.
    for wire in crate::fixture::WIRES {
        let request =
            StreamRequest { session_token: for_request("POST", CHAT), prompt: "x".into(), ..Default::default() };
        let refused = agent.client(wire).await.refused(request).await;
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    }
}

#[tokio::test]
async fn a_full_agent_says_when_to_come_again_and_a_client_that_leaves_makes_room() {
    let agent = Running::start_with(SyntheticEngine::new(20.0), |config| config.max_jobs = 1).await;
    let key = token_of(&claims());
    let mut running = post(&agent, CHAT, &key, chat(json!({"stream": true, "max_tokens": 10_000}))).await;
    assert!(running.chunk().await.unwrap().is_some());
    let full = post(&agent, CHAT, &key, chat(json!({}))).await;
    assert_eq!(full.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(full.headers().contains_key("retry-after"));
    drop(running);
    agent.running(0).await;
    assert_eq!(post(&agent, CHAT, &key, chat(json!({}))).await.status(), 200);
}

#[tokio::test]
async fn a_background_response_outlives_its_token_and_is_its_clients() {
    let agent = Running::start(0.0).await;
    let body = json!({"model": SYNTHETIC_MODEL, "input": "x", "background": true, "max_output_tokens": 5});
    let begun = json_of(post(&agent, "/v1/responses", &token_of(&claims()), body).await).await;
    let id = begun["id"].as_str().unwrap();
    assert_eq!(titan_openai::origin_of(id), Some(&*titan_proto::digest::origin(crate::fixture::AGENT)));
    let get = async |key: String| {
        let request = client().get(format!("http://{}/v1/responses/{id}?stream=true&starting_after=1", agent.grpc));
        request.bearer_auth(key).send().await.unwrap()
    };
    let later = get(token_of(&Claims { iat: 0, nbf: 0, exp: 1, ..claims() })).await;
    assert_eq!(later.status(), 200);
    assert!(later.text().await.unwrap().contains("response.incomplete"));
    assert_eq!(get(token_of(&Claims { client_id: "mallory".into(), ..claims() })).await.status(), 404);
    let path = format!("/v1/responses/{id}");
    let address = format!("http://{}/s/{}{path}", agent.grpc, for_request("GET", &path));
    let redirected = client().get(address).send().await.unwrap();
    assert_eq!(json_of(redirected).await["id"], id);
    // The address of a look at it is none for deleting it.
    let address = format!("http://{}/s/{}{path}", agent.grpc, for_request("GET", &path));
    assert_eq!(client().delete(&address).send().await.unwrap().status(), 403);
}
