#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};

use titan_proto::v1::TopLogprob;
use tokio::sync::mpsc;

use super::*;
use crate::engine::{FinishReason, GenerateFuture, Piece, Usage};

/// What an engine does when several prompts run in it at once.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Beside {
    /// The same as alone.
    Same,
    /// Another token in this place, so many nats less likely than its own.
    Other { at: u32, nats: f32 },
    /// Tied tokens in two places.
    TwoTies,
    /// A tie, and after it another prompt's words.
    TieThenWords,
    /// It ends before this token, where the end was so many nats less likely.
    End { at: u32, nats: f32 },
}

/// Its tokens are numbers from 100 on; those of a tie are 1000 higher, and what follows them is the same.
struct Scripted {
    running: std::sync::Arc<AtomicUsize>,
    beside: Beside,
    tells_tokens: bool,
    /// It is on a GPU, and from this token on a long text is another one when it is asked for again.
    forgets_at: Option<u32>,
    long_texts: AtomicUsize,
}

fn scripted(beside: Beside, tells_tokens: bool) -> Scripted {
    Scripted { running: Default::default(), beside, tells_tokens, forgets_at: None, long_texts: AtomicUsize::new(0) }
}

const OTHER: u32 = 1000;
const WORDS: u32 = 5000;

impl Scripted {
    /// The token in this place, and the alternative in nats below the likeliest.
    fn token(&self, at: u32, crowded: bool) -> Option<TokenLogprob> {
        let own = 100 + at;
        let (chosen, second, nats) = match self.beside {
            Beside::Other { at: place, nats } if place == at => {
                (if crowded { own + OTHER } else { own }, own + OTHER, nats)
            }
            Beside::TwoTies if at == 3 || at == 7 => (if crowded { own + OTHER } else { own }, own + OTHER, 0.1),
            Beside::TieThenWords if at == 3 => (if crowded { own + OTHER } else { own }, own + OTHER, 0.1),
            Beside::TieThenWords if at > 3 && crowded => (WORDS + at, own, 0.1),
            Beside::End { at: place, .. } if place == at && crowded => return None,
            Beside::End { at: place, nats } if place == at => (own, 2, nats),
            _ => (own, WORDS - 1, 6.0),
        };
        let top = |token_id, logprob| TopLogprob { token_id, logprob, ..TopLogprob::default() };
        let best = -0.6;
        let others = if chosen == own { second } else { own };
        Some(TokenLogprob {
            token_id: chosen,
            logprob: best,
            top: vec![top(chosen, best), top(others, best - nats)],
            ..TokenLogprob::default()
        })
    }
}

impl Engine for Scripted {
    fn models(&self) -> Vec<String> {
        vec!["scripted".to_owned()]
    }

    fn uses_gpu(&self) -> bool {
        self.forgets_at.is_some()
    }

    fn generate(&self, request: Generate) -> GenerateFuture<'_> {
        Box::pin(async move {
            let is_again =
                request.sampling.max_tokens == LONG_TOKENS && self.long_texts.fetch_add(1, Ordering::SeqCst) > 0;
            let forgets_at = self.forgets_at.filter(|_| is_again).unwrap_or(u32::MAX);
            let (events, stream) = mpsc::channel(256);
            self.running.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            let crowded = self.running.load(Ordering::SeqCst) > 1;
            let from = request.continuation.map_or(0, |begun| begun.completion_tokens);
            for at in from..from + request.sampling.max_tokens {
                let Some(mut token) = self.token(at, crowded) else { break };
                if at >= forgets_at {
                    token.token_id += WORDS;
                }
                let mut piece = Piece::from(format!("{} ", token.token_id));
                piece.logprobs = if self.tells_tokens { vec![token] } else { Vec::new() };
                events.try_send(Ok(Event::Piece(piece))).unwrap();
            }
            let usage =
                Usage { prompt_tokens: 1, cached_tokens: 0, completion_tokens: 1, finish_reason: FinishReason::Stop };
            events.try_send(Ok(Event::Done(usage))).unwrap();
            tokio::task::yield_now().await;
            self.running.fetch_sub(1, Ordering::SeqCst);
            Ok(stream)
        })
    }
}

#[tokio::test]
async fn an_engine_that_keeps_requests_apart_passes() {
    for tells_tokens in [true, false] {
        let report = isolation_test_of_four(&scripted(Beside::Same, tells_tokens), "scripted").await.unwrap();
        assert_eq!((report.texts.len(), report.ties), (4, 0));
    }
}

#[tokio::test]
async fn an_engine_that_rounds_differently_passes() {
    for (beside, ties) in [
        (Beside::Other { at: 0, nats: 0.1 }, 1),
        (Beside::Other { at: TOKENS - 1, nats: 0.4 }, 1),
        (Beside::TwoTies, 2),
        (Beside::End { at: 5, nats: 0.2 }, 1),
    ] {
        let report = isolation_test(&scripted(beside, true), "scripted").await.unwrap();
        assert_eq!(report.ties, 2 * ties, "{beside:?}");
    }
}

#[tokio::test]
async fn an_engine_that_mixes_requests_up_is_found_out() {
    for (beside, tells_tokens) in [
        (Beside::Other { at: 0, nats: 4.0 }, true),
        (Beside::Other { at: TOKENS - 1, nats: 2.0 }, true),
        (Beside::TieThenWords, true),
        (Beside::End { at: 5, nats: 3.0 }, true),
        // Without tokens nothing tells it from rounding.
        (Beside::Other { at: 4, nats: 0.1 }, false),
    ] {
        let error = isolation_test(&scripted(beside, tells_tokens), "scripted").await.unwrap_err();
        assert!(matches!(error, IsolationError::CrossTalk { .. }), "{beside:?}: {error}");
    }
}

#[tokio::test]
async fn on_a_gpu_an_engine_that_says_something_else_the_second_time_is_found_out() {
    let on_gpu = |forgets_at| Scripted { forgets_at: Some(forgets_at), ..scripted(Beside::Same, true) };
    isolation_test(&on_gpu(u32::MAX), "scripted").await.unwrap();
    let error = isolation_test(&on_gpu(130), "scripted").await.unwrap_err();
    assert!(matches!(error, IsolationError::Forgets { .. }), "{error}");
}
