//! Responses that run in the background.

use std::time::Duration;

use serde_json::{Value, json};
use titan_openai::Settings;
use tokio::sync::mpsc;
use tonic::Status;

use crate::backend::{Fixture, Next, done, text, until};

fn body(stream: bool) -> Value {
    json!({"model": "small", "input": "x", "background": true, "stream": stream})
}

/// Begins one, whose words the test says.
async fn begin(fixture: &Fixture) -> (String, mpsc::Sender<Result<titan_proto::v1::StreamResponse, Status>>) {
    let (say, script) = mpsc::channel(8);
    fixture.next(Next::Follow(script)).await;
    let answered = fixture.post("/v1/responses", body(false)).await;
    assert_eq!(answered.status, 200, "{}", answered.body);
    (answered.json()["id"].as_str().unwrap().to_owned(), say)
}

async fn get(fixture: &Fixture, id: &str) -> Value {
    fixture.call("GET", &format!("/v1/responses/{id}"), "key", "").await.json()
}

fn deltas(events: &str) -> String {
    let datas = events.lines().filter_map(|line| line.strip_prefix("data: "));
    datas
        .map(|data| serde_json::from_str::<Value>(data).unwrap())
        .filter(|event| event["type"] == "response.output_text.delta")
        .map(|event| event["delta"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn it_runs_without_a_reader_and_is_read_from_any_event_on() {
    let fixture = Fixture::new();
    let (id, say) = begin(&fixture).await;
    for word in ["one ", "two ", "three"] {
        say.send(Ok(text(word))).await.unwrap();
    }
    until(async || get(&fixture, &id).await["output"][0]["content"][0]["text"] == "one two three").await;
    assert_eq!(get(&fixture, &id).await["status"], "in_progress");
    // A reader that is there while it goes on, and one that comes when it is over.
    let path = format!("/v1/responses/{id}?stream=true");
    let reading = {
        let (router, path) = (fixture.router.clone(), path.clone());
        tokio::spawn(async move {
            let request = crate::backend::request("GET", &path, "key", "");
            let response = tower::ServiceExt::oneshot(router, request).await.unwrap();
            http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes()
        })
    };
    tokio::task::yield_now().await;
    say.send(Ok(text(" four"))).await.unwrap();
    say.send(Ok(done("stop"))).await.unwrap();
    let live = String::from_utf8(reading.await.unwrap().to_vec()).unwrap();
    assert_eq!(deltas(&live), "one two three four");
    let again = fixture.call("GET", &path, "key", "").await.body;
    assert_eq!(again, live);
    // Each beginning with its rest is the whole.
    let events: Vec<&str> = live.split_inclusive("\n\n").collect();
    for at in 0..events.len() {
        let rest = fixture.call("GET", &format!("{path}&starting_after={at}"), "key", "").await.body;
        assert_eq!(events[..=at].concat() + &rest, live, "after {at}");
    }
    let whole = get(&fixture, &id).await;
    assert_eq!(
        (&whole["status"], &whole["background"], &whole["usage"]["output_tokens"]),
        (&json!("completed"), &json!(true), &json!(5))
    );
}

#[tokio::test]
async fn a_reader_that_goes_away_does_not_stop_it() {
    let fixture = Fixture::new();
    let (say, script) = mpsc::channel(8);
    fixture.next(Next::Follow(script)).await;
    let request = crate::backend::request("POST", "/v1/responses", "key", body(true).to_string());
    let response = tower::ServiceExt::oneshot(fixture.router.clone(), request).await.unwrap();
    let mut read = response.into_body();
    let first = http_body_util::BodyExt::frame(&mut read).await.unwrap().unwrap().into_data().unwrap();
    let first = String::from_utf8(first.to_vec()).unwrap();
    let id = first.split("\"id\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    drop(read);
    say.send(Ok(text("still here"))).await.unwrap();
    say.send(Ok(done("stop"))).await.unwrap();
    until(async || get(&fixture, &id).await["status"] == "completed").await;
}

#[tokio::test]
async fn it_can_be_cancelled_and_deleted() {
    let fixture = Fixture::new();
    let (id, say) = begin(&fixture).await;
    say.send(Ok(text("one"))).await.unwrap();
    until(async || !get(&fixture, &id).await["output"][0].is_null()).await;
    let cancelled = fixture.call("POST", &format!("/v1/responses/{id}/cancel"), "key", "").await.json();
    assert_eq!(
        (&cancelled["status"], &cancelled["output"][0]["content"][0]["text"]),
        (&json!("cancelled"), &json!("one"))
    );
    until(async || fixture.dropped() == 1).await;
    // Whoever reads it sees that it is over.
    let events = fixture.call("GET", &format!("/v1/responses/{id}?stream=true"), "key", "").await.body;
    let last: Value = serde_json::from_str(events.trim_end().rsplit("data: ").next().unwrap()).unwrap();
    assert_eq!((&last["type"], &last["response"]["status"]), (&json!("response.incomplete"), &json!("cancelled")));
    let again = fixture.call("POST", &format!("/v1/responses/{id}/cancel"), "key", "").await.json();
    assert_eq!(again["status"], "cancelled");
    let deleted = fixture.call("DELETE", &format!("/v1/responses/{id}"), "key", "").await.json();
    assert_eq!(deleted["deleted"], true);
    assert_eq!(fixture.call("GET", &format!("/v1/responses/{id}"), "key", "").await.status, 404);
}

#[tokio::test]
async fn it_is_nobody_elses() {
    let fixture = Fixture::new();
    let (id, _say) = begin(&fixture).await;
    for (method, path) in [
        ("GET", format!("/v1/responses/{id}")),
        ("GET", format!("/v1/responses/{id}?stream=true")),
        ("POST", format!("/v1/responses/{id}/cancel")),
        ("DELETE", format!("/v1/responses/{id}")),
    ] {
        assert_eq!(fixture.call(method, &path, "other", "").await.status, 404, "{method} {path}");
    }
    until(async || get(&fixture, &id).await["status"] == "in_progress").await;
}

#[tokio::test]
async fn what_goes_wrong_is_told_to_whoever_reads_it() {
    let fixture = Fixture::new();
    let (id, say) = begin(&fixture).await;
    say.send(Ok(text("one"))).await.unwrap();
    say.send(Err(Status::internal("it broke"))).await.unwrap();
    until(async || get(&fixture, &id).await["status"] == "failed").await;
    assert_eq!(get(&fixture, &id).await["error"]["message"], "it broke");
    let events = fixture.call("GET", &format!("/v1/responses/{id}?stream=true"), "key", "").await.body;
    assert!(events.contains("event: response.failed"), "{events}");
    // One that is refused takes no place.
    fixture.next(Next::Refuse(Status::resource_exhausted("full"))).await;
    assert_eq!(fixture.post("/v1/responses", body(false)).await.status, 429);
}

#[tokio::test]
async fn what_is_kept_is_bounded() {
    let settings = Settings { max_kept: 2, max_kept_bytes: 20_000, ..Settings::default() };
    let fixture = Fixture::with(settings);
    let (first, say_first) = begin(&fixture).await;
    let (second, _say_second) = begin(&fixture).await;
    let full = fixture.post("/v1/responses", body(false)).await;
    assert_eq!(full.status, 429, "{}", full.body);
    say_first.send(Ok(done("stop"))).await.unwrap();
    until(async || get(&fixture, &first).await["status"] == "completed").await;
    let (third, say_third) = begin(&fixture).await;
    assert_eq!(fixture.call("GET", &format!("/v1/responses/{first}"), "key", "").await.status, 404);
    until(async || get(&fixture, &second).await["status"] == "in_progress").await;
    for _ in 0..200 {
        if say_third.send(Ok(text("a word"))).await.is_err() {
            break;
        }
    }
    until(async || get(&fixture, &third).await["status"] == "failed").await;
    assert!(get(&fixture, &third).await["error"]["message"].as_str().unwrap().contains("20000 bytes"));
}

#[tokio::test]
async fn the_bytes_of_all_are_bounded() {
    let fixture = Fixture::with(Settings { max_kept_bytes_in_all: 40_000, ..Settings::default() });
    let (ended, say) = begin(&fixture).await;
    for _ in 0..60 {
        say.send(Ok(text("a word"))).await.unwrap();
    }
    say.send(Ok(done("stop"))).await.unwrap();
    until(async || get(&fixture, &ended).await["status"] == "completed").await;
    let (running, say) = begin(&fixture).await;
    let mut sent = 0;
    while say.send(Ok(text("a word"))).await.is_ok() {
        sent += 1;
        assert!(sent < 1000, "there is no bound");
    }
    // What has ended gives way first.
    assert_eq!(fixture.call("GET", &format!("/v1/responses/{ended}"), "key", "").await.status, 404);
    until(async || get(&fixture, &running).await["status"] == "failed").await;
    // And its room comes free again.
    fixture.call("DELETE", &format!("/v1/responses/{running}"), "key", "").await;
    let (next, say) = begin(&fixture).await;
    say.send(Ok(done("stop"))).await.unwrap();
    until(async || get(&fixture, &next).await["status"] == "completed").await;
}

#[tokio::test]
async fn who_keeps_the_most_gives_way() {
    let fixture = Fixture::with(Settings { max_kept: 3, ..Settings::default() });
    let ask = async |key: &str| {
        fixture.next(Next::Say(vec![Ok(done("stop"))])).await;
        let answered = fixture.call("POST", "/v1/responses", key, body(false).to_string()).await;
        let id = answered.json()["id"].as_str().unwrap().to_owned();
        let path = format!("/v1/responses/{id}");
        until(async || fixture.call("GET", &path, key, "").await.json()["status"] == "completed").await;
        path
    };
    let quiet = ask("quiet").await;
    for _ in 0..10 {
        ask("loud").await;
    }
    assert_eq!(fixture.call("GET", &quiet, "quiet", "").await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn it_is_forgotten_after_a_while() {
    let fixture = Fixture::new();
    let (id, say) = begin(&fixture).await;
    say.send(Ok(done("stop"))).await.unwrap();
    until(async || get(&fixture, &id).await["status"] == "completed").await;
    tokio::time::sleep(Duration::from_secs(599)).await;
    assert_eq!(get(&fixture, &id).await["status"], "completed");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(fixture.call("GET", &format!("/v1/responses/{id}"), "key", "").await.status, 404);
}

#[tokio::test]
async fn it_is_found_where_the_router_is_mounted_under_a_prefix() {
    let fixture = Fixture::new();
    let (id, say) = begin(&fixture).await;
    say.send(Ok(done("stop"))).await.unwrap();
    let mounted = axum::Router::new().nest("/s/{token}", fixture.router.clone());
    let request = crate::backend::request("GET", &format!("/s/abc/v1/responses/{id}"), "key", "");
    let response = tower::ServiceExt::oneshot(mounted, request).await.unwrap();
    assert_eq!(response.status(), 200);
}
