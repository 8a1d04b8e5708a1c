//! From the engine to a stream of texts, for every server that is not an agent.

use std::sync::Arc;

use futures_util::{Stream, stream};
use titan_agent::engine::{Engine, EngineError, Event, Generate, Sampling, TokenStream, synthetic::SYNTHETIC_MODEL};

/// What every client asks; the engine does not look at it.
pub(super) const PROMPT: &str = "Why is the sky blue?";

/// Starts an answer of so many tokens.
pub(super) async fn start(engine: &Arc<dyn Engine>, tokens: u32) -> Result<TokenStream, EngineError> {
    engine.generate(Generate::new(SYNTHETIC_MODEL, PROMPT, Sampling::greedy(tokens))).await
}

/// What the engine says, one after the other. Dropping it ends the answer.
pub(super) fn events(mut tokens: TokenStream) -> impl Stream<Item = Result<Event, EngineError>> + Send {
    stream::poll_fn(move |cx| tokens.poll_recv(cx))
}
