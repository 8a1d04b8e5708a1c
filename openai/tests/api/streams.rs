//! What happens while an answer comes.

use std::time::Duration;

use http_body_util::BodyExt as _;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tonic::Status;
use tower::ServiceExt as _;

use crate::backend::{Fixture, Next, done, request, text, until};

const CHAT: &str = "/v1/chat/completions";

fn streamed() -> String {
    json!({"model": "small", "messages": [{"role": "user", "content": "Hello."}], "stream": true}).to_string()
}

#[tokio::test(start_paused = true)]
async fn a_comment_comes_while_there_is_nothing_to_say() {
    let fixture = Fixture::new();
    let (say, script) = mpsc::channel(1);
    fixture.next(Next::Follow(script)).await;
    let response = fixture.router.clone().oneshot(request("POST", CHAT, "key", streamed())).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    let mut next =
        async || String::from_utf8(body.frame().await.unwrap().unwrap().into_data().unwrap().to_vec()).unwrap();
    assert_eq!(next().await, ": waiting\n\n");
    assert_eq!(next().await, ": waiting\n\n");
    say.send(Ok(text("Hi"))).await.unwrap();
    assert!(next().await.contains("\"Hi\""));
    assert_eq!(next().await, ": waiting\n\n");
    say.send(Ok(done("stop"))).await.unwrap();
    assert!(next().await.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn each_piece_leaves_when_it_is_there() {
    let fixture = Fixture::new();
    let (say, script) = mpsc::channel(1);
    fixture.next(Next::Follow(script)).await;
    say.send(Ok(text("a"))).await.unwrap();
    let response = fixture.router.clone().oneshot(request("POST", CHAT, "key", streamed())).await.unwrap();
    let mut body = response.into_body();
    for letter in ["a", "b", "c"] {
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        let expected = format!("\"content\":\"{letter}\"");
        assert!(String::from_utf8_lossy(&frame).contains(&expected), "{frame:?}");
        let next = if letter == "a" { "b" } else { "c" };
        say.send(Ok(text(next))).await.unwrap();
    }
}

#[tokio::test]
async fn an_answer_that_goes_wrong_half_way_ends_with_an_error() {
    let fixture = Fixture::new();
    for (last, says) in [(Some(Err(Status::internal("it broke"))), "it broke"), (None, "broke off")] {
        let messages = [Ok(text("Hi"))].into_iter().chain(last).collect();
        fixture.next(Next::Say(messages)).await;
        let answered = fixture.call("POST", CHAT, "key", streamed()).await;
        let last = answered.body.trim_end().rsplit("data: ").next().unwrap();
        let error: serde_json::Value = serde_json::from_str(last).unwrap();
        assert!(error["error"]["message"].as_str().unwrap().contains(says), "{last}");
        assert!(!answered.body.contains("[DONE]"));
    }
}

#[tokio::test]
async fn a_client_that_goes_away_stops_the_generation() {
    let fixture = Fixture::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, fixture.router.clone()).into_future());
    for stream in [true, false] {
        let before = fixture.dropped();
        let (say, script) = mpsc::channel(1);
        fixture.next(Next::Follow(script)).await;
        let mut socket = TcpStream::connect(address).await.unwrap();
        let body = json!({"model": "small", "messages": [{"role": "user", "content": "Hello."}], "stream": stream})
            .to_string();
        let head = format!(
            "POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer key\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        socket.write_all((head + &body).as_bytes()).await.unwrap();
        say.send(Ok(text("Hi"))).await.unwrap();
        if stream {
            let mut read = [0; 4096];
            let bytes = timeout(Duration::from_secs(10), socket.read(&mut read)).await.unwrap().unwrap();
            assert!(String::from_utf8_lossy(&read[..bytes]).starts_with("HTTP/1.1 200"));
        } else {
            until(async || fixture.was_asked().await).await;
        }
        drop(socket);
        until(async || fixture.dropped() > before).await;
    }
}

#[tokio::test(start_paused = true)]
async fn many_messages_that_say_nothing_hold_nothing_up() {
    let fixture = Fixture::new();
    let hidden = (0..500).map(|_| Ok(crate::backend::thought("hm")));
    let messages = hidden.chain([Ok(text("Hi")), Ok(done("stop"))]).collect();
    fixture.next(Next::Say(messages)).await;
    let began = tokio::time::Instant::now();
    let body = json!({"model": "small", "messages": [{"role": "user", "content": "x"}], "stream": true, "include_reasoning": false});
    let answered = fixture.post(CHAT, body).await;
    assert!(answered.body.contains("\"Hi\"") && !answered.body.contains("waiting"), "{}", answered.body);
    assert_eq!(began.elapsed(), Duration::ZERO);
}
