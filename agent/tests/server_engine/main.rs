//! The engine that is an OpenAI-compatible server: against a server that plays a script, and against a real llama.cpp.

#![allow(clippy::unwrap_used)]

#[path = "../wires/fixture.rs"]
#[allow(dead_code, reason = "shared with the tests of the wires")]
mod fixture;

mod answers;
mod llama;
mod llama_faults;
mod llama_server;
mod presence;
mod scripted;
mod speed;

use std::time::Duration;

use titan_agent::engine::{Engine, EngineError, Event, Generate, Health, Piece, Sampling, TokenStream, Usage};

/// The name that tests give a server's model.
pub(crate) const MODEL: &str = "m";
/// Longest wait for something that happens at once on a machine that is not overloaded.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn ask(max_tokens: u32) -> Generate {
    Generate::new(MODEL, "Count from one to five.", Sampling::greedy(max_tokens))
}

/// Every piece and the end, or the error that took its place.
pub(crate) async fn all(mut stream: TokenStream) -> (Vec<Piece>, Result<Usage, EngineError>) {
    let mut pieces = Vec::new();
    loop {
        let event = tokio::time::timeout(PATIENCE, stream.recv()).await.expect("the stream neither goes on nor ends");
        match event.expect("a stream has an end") {
            Ok(Event::Piece(piece)) => pieces.push(piece),
            Ok(Event::Done(usage)) => return (pieces, Ok(usage)),
            Err(error) => return (pieces, Err(error)),
        }
    }
}

/// An answer that must come whole.
pub(crate) async fn answer(engine: &dyn Engine, request: Generate) -> (String, Vec<Piece>, Usage) {
    let stream = tokio::time::timeout(PATIENCE, engine.generate(request)).await.expect("no answer begins").unwrap();
    let (pieces, usage) = all(stream).await;
    (pieces.iter().map(|piece| piece.text.as_str()).collect(), pieces, usage.unwrap())
}

/// The error of a request, whether it came before or within the stream.
pub(crate) async fn failure(engine: &dyn Engine, request: Generate) -> EngineError {
    match engine.generate(request).await {
        Err(error) => error,
        Ok(stream) => all(stream).await.1.expect_err("the answer came whole"),
    }
}

pub(crate) async fn healthy(engine: &dyn Engine) {
    fixture::eventually("a healthy engine", || async { engine.health() == Health::Healthy }).await;
}

/// Waits until it is degraded, and says why.
pub(crate) async fn degraded(engine: &dyn Engine) -> String {
    fixture::eventually("a degraded engine", || async { engine.health() != Health::Healthy }).await;
    match engine.health() {
        Health::Degraded { reason } => reason,
        other => panic!("{other:?}"),
    }
}
