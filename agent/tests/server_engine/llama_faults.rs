//! A real llama.cpp server that is killed, through a real agent on both wires.

use std::time::{Duration, Instant};

use titan_proto::v1::StreamRequest;
use titan_transport::{Wire, token::Claims};

use crate::{
    MODEL, PATIENCE, ask, degraded, failure,
    fixture::{self, Running, WIRES, eventually},
    healthy,
    llama_server::LlamaServer,
};

fn request(max_tokens: i32) -> StreamRequest {
    let claims = Claims { model: MODEL.to_owned(), ..fixture::claims() };
    StreamRequest {
        session_token: fixture::token(&claims),
        prompt: "Tell a long story.".to_owned(),
        ..fixture::request(max_tokens)
    }
}

#[tokio::test]
async fn a_killed_server_is_a_typed_error_at_once_and_its_return_is_noticed() {
    let Some(mut server) = LlamaServer::start(&[]).await else { return };
    let agent = Running::start_with(server.engine().await, |_| ()).await;
    for wire in WIRES {
        let mut client = agent.client(wire).await;
        let whole = client.all(request(8)).await.unwrap();
        let last = whole.last().unwrap();
        assert!(last.done && last.metadata["completion_tokens"] == "8", "{last:?}");
        assert!(whole.len() > 2, "it is streamed");

        let mut stream = client.stream(request(1_500)).await.unwrap();
        for _ in 0..3 {
            stream.message().await.unwrap().unwrap();
        }
        server.kill();
        let killed = Instant::now();
        let status = loop {
            match tokio::time::timeout(PATIENCE, stream.message()).await.expect("no news of the death") {
                Ok(Some(message)) => assert!(!message.done, "an end"),
                Ok(None) => panic!("an end"),
                Err(status) => break status,
            }
        };
        println!("{wire:?}: {:?} after kill -9: {status}", killed.elapsed());
        assert_eq!(status.code(), tonic::Code::Internal, "part of the answer has come: {status}");
        let asked = Instant::now();
        let status = client.refused(request(8)).await;
        println!("{wire:?}: the next request is refused in {:?}: {status}", asked.elapsed());
        assert_eq!(status.code(), tonic::Code::Unavailable, "nothing was produced, another agent may: {status}");

        server.start_again().await;
        let back = Instant::now();
        let served = async {
            while client.all(request(4)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        fixture::soon("an answer from the server that is back", served).await;
        println!("{wire:?}: it serves {:?} after the server is well again", back.elapsed());
    }
    eventually("an idle server", async || agent.status().await.computing == 0).await;
}

#[tokio::test]
async fn an_idle_engine_knows_of_the_death_and_of_the_return() {
    let Some(mut server) = LlamaServer::start(&[]).await else { return };
    let engine = server.engine().await;
    server.kill();
    let killed = Instant::now();
    let reason = degraded(&engine).await;
    println!("known after {:?}: {reason}", killed.elapsed());
    let error = failure(&engine, ask(1)).await;
    println!("{error}");
    server.start_again().await;
    let back = Instant::now();
    healthy(&engine).await;
    println!("the return is known after {:?}", back.elapsed());
}

#[tokio::test]
async fn a_cancelled_answer_ends_in_the_server() {
    let Some(server) = LlamaServer::start(&[]).await else { return };
    let agent = Running::start_with(server.engine().await, |_| ()).await;
    let mut client = agent.client(Wire::Quic).await;
    let mut stream = client.stream(request(1_500)).await.unwrap();
    stream.message().await.unwrap().unwrap();
    eventually("a computing server", async || agent.status().await.computing == 1).await;
    drop(stream);
    let cancelled = Instant::now();
    // What the status says is the server's own word, a second old at most.
    eventually("an idle server", async || agent.status().await.computing == 0).await;
    println!("idle {:?} after the reader went away", cancelled.elapsed());
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(agent.status().await.computing, 0, "also by the server's next word");
}
