//! `titan proxy`: the OpenAI API on this machine, over the fast path.

use std::{collections::BTreeMap, io::BufRead as _, time::Duration};

use futures_util::{StreamExt as _, future::join_all};
use serde_json::{Value, json};
use titan_client::Prompt;

use crate::{
    moves::agent,
    parts::coordinator,
    support::{Process, Up, User, http, stderr, synthetic_text},
};

/// A proxy, and the URL of its API.
fn proxy(user: &User, coordinator: &str, more: &[&str]) -> (Process, String) {
    let fixed = ["proxy", "--json", "--listen", "127.0.0.1:0", "--coordinator", coordinator];
    let (process, mut stdout) = Process::spawn(user.titan(fixed.iter().chain(more).copied()), user.dir.path());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    let printed: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line:?}:\n{}", process.log()));
    (process, printed["url"].as_str().unwrap().to_owned())
}

fn chat(max_tokens: u32, stream: bool) -> String {
    let messages = json!([{"role": "user", "content": "hello"}]);
    json!({"model": "synthetic", "messages": messages, "max_tokens": max_tokens, "stream": stream}).to_string()
}

async fn post(url: &str, key: &str, body: String) -> reqwest::Response {
    let request = http().post(format!("{url}/chat/completions")).bearer_auth(key);
    request.header("content-type", "application/json").body(body).send().await.unwrap()
}

/// The text of streamed chunks, which have to end as they should.
fn text_of(events: &str) -> String {
    let data: Vec<&str> = events.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(data.last(), Some(&"[DONE]"), "{events}");
    let chunk = |data: &&str| serde_json::from_str::<Value>(data).unwrap();
    let chunks = data[..data.len() - 1].iter().map(chunk);
    chunks.filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect()
}

#[tokio::test]
async fn an_application_gets_its_text_and_each_error() {
    let up = Up::synthetic(0, &[]);
    let (_proxy, url) = proxy(&up.user, &up.rest, &["--require-key", "secret"]);
    let streamed = post(&url, "secret", chat(20, true)).await.text().await.unwrap();
    assert_eq!(text_of(&streamed), synthetic_text(20));
    let whole: Value = post(&url, "secret", chat(20, false)).await.json().await.unwrap();
    assert_eq!(whole["choices"][0]["message"]["content"], synthetic_text(20));
    assert_eq!(whole["usage"]["completion_tokens"], 20);
    for (key, body, status) in [
        ("wrong", chat(1, false), 401),
        ("secret", chat(1, false).replace("synthetic", "other"), 404),
        ("secret", "{".to_owned(), 400),
    ] {
        let refused = post(&url, key, body).await;
        assert_eq!(refused.status(), status);
        assert!(refused.json::<Value>().await.unwrap()["error"]["message"].is_string());
    }
    let root = url.trim_end_matches("/v1");
    assert_eq!(http().get(format!("{root}/healthz")).send().await.unwrap().text().await.unwrap(), "ok\n");
    let metrics = http().get(format!("{root}/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("\ntitan_proxy_completion_tokens_total 40\n"), "{metrics}");
}

#[tokio::test]
async fn it_may_start_before_the_coordinator() {
    let user = User::new();
    let (mut coord, rest, _) = coordinator(&user);
    coord.kill();
    let (_proxy, url) = proxy(&user, &rest, &[]);
    let early = post(&url, "any", chat(1, false)).await;
    assert_eq!(early.status(), 503);
    assert!(early.headers().contains_key("retry-after"));
    let message = early.json::<Value>().await.unwrap()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("no coordinator answers") && message.contains(&rest), "{message}");
    let port = rest.rsplit(':').next().unwrap();
    let command = user.titan(["coord", "--http-port", port, "--grpc-port", "0", "--token-algorithm", "EdDSA"]);
    let (mut coord, _) = Process::spawn(command, user.dir.path());
    let grpc = coord.logged("coordinator ready")["grpc"].as_str().unwrap().to_owned();
    let _agent = agent(&user, "agent-1", &grpc);
    assert_eq!(post(&url, "any", chat(1, false)).await.status(), 200);
}

#[tokio::test]
async fn an_applications_answer_survives_the_death_of_its_agent() {
    let user = User::new();
    let (_coord, rest, grpc) = coordinator(&user);
    let mut agents = [agent(&user, "agent-1", &grpc), agent(&user, "agent-2", &grpc)];
    let (_proxy, url) = proxy(&user, &rest, &[]);
    let response = post(&url, "any", chat(200, true)).await;
    let mut body = response.bytes_stream();
    let mut events = String::new();
    while events.matches("data: ").count() < 40 {
        events.push_str(std::str::from_utf8(&body.next().await.unwrap().unwrap()).unwrap());
    }
    let status: Value =
        http().get(format!("{rest}/api/v1/status?include_agents=true")).send().await.unwrap().json().await.unwrap();
    // The booking counts until the agent has reported, so this is known at once.
    let busy = status["agents"].as_array().unwrap().iter().find(|agent| agent["running_jobs"] == 1);
    let busy = busy.unwrap_or_else(|| panic!("nobody answers: {status}"))["id"].as_str().unwrap();
    agents[usize::from(busy == "agent-2")].kill();
    while let Some(piece) = body.next().await {
        events.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
    }
    assert_eq!(text_of(&events), synthetic_text(200));
    let root = url.trim_end_matches("/v1");
    let metrics = http().get(format!("{root}/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("\ntitan_proxy_moved_total 1\n"), "{metrics}");
}

#[tokio::test]
async fn what_other_machines_can_reach_needs_a_key() {
    let user = User::new();
    let refused = user.output(["proxy", "--listen", "0.0.0.0:0"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("--require-key"), "{}", stderr(&refused));
}

/// 200 requests at once by one client, after one that left a route: no agent of four gets more than twice its share.
#[tokio::test]
async fn a_burst_is_spread_over_the_agents() {
    let up = Up::synthetic(50, &["--agents", "4", "--max-jobs", "128"]);
    let client = up.client().build().unwrap();
    let prompt = || Prompt { max_tokens: 50, ..Prompt::new("synthetic", "hello") };
    let ask = async || {
        let mut generation = client.generate(prompt()).await.unwrap();
        let agent = generation.agent_id().to_owned();
        while generation.next().await.transpose().unwrap().is_some() {}
        agent
    };
    ask().await;
    for burst in 1..=2 {
        let mut shares = BTreeMap::<String, usize>::new();
        for agent in join_all((0..200).map(|_| ask())).await {
            *shares.entry(agent).or_default() += 1;
        }
        println!("burst {burst}: {shares:?}, {} questions to the coordinator", client.stats().rest_calls);
        assert!(shares.values().all(|share| *share <= 2 * 200 / 4), "{shares:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    client.close().await;
}
