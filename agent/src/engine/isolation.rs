//! The isolation test: prompts at temperature 0 give the same texts at the same time as alone.
//!
//! Sequences that share an engine have corrupted each other in mistral.rs (see [`super::mistral`]), and whether a driver, a device or a new
//! version does it again can only be tried. `--self-test` runs this at start-up.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::{Engine, EngineError, Event, Generate, Sampling};

/// What the isolation test did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IsolationReport {
    /// The model.
    pub model: String,
    /// The texts, one a prompt.
    pub texts: Vec<String>,
    /// Time for all of it.
    pub elapsed: Duration,
}

/// Why the isolation test failed.
#[derive(Debug, thiserror::Error)]
pub enum IsolationError {
    /// A text changed when others were generated beside it: the engine must not be used with more than one sequence.
    #[error(
        "isolation test of {model}: {prompt:?} alone gives {alone:?}, and beside others {together:?}. Requests corrupt each other on this machine: run one at a time (MAX_CONCURRENT_JOBS=1)"
    )]
    CrossTalk {
        /// The model.
        model: String,
        /// The prompt.
        prompt: String,
        /// Its text alone.
        alone: String,
        /// Its text beside the others.
        together: String,
    },
    /// A generation failed.
    #[error("isolation test: {0}")]
    Engine(#[from] EngineError),
}

/// Tokens of each text. The cross-talk that was seen began with the first.
const TOKENS: u32 = 12;

/// Different subjects and lengths, so that a word out of place is seen.
const PROMPTS: [&str; 4] = [
    "Name three fruits.",
    "What is the capital of France? Answer in one short sentence.",
    "Write the numbers from one to ten.",
    "Why is the sky blue? Explain it to a child who has never asked that before.",
];

/// Two prompts.
pub async fn isolation_test(engine: &dyn Engine, model: &str) -> Result<IsolationReport, IsolationError> {
    isolation_test_of(engine, model, &PROMPTS[..2]).await
}

/// Four prompts.
pub async fn isolation_test_of_four(engine: &dyn Engine, model: &str) -> Result<IsolationReport, IsolationError> {
    isolation_test_of(engine, model, &PROMPTS).await
}

async fn isolation_test_of(
    engine: &dyn Engine,
    model: &str,
    prompts: &[&str],
) -> Result<IsolationReport, IsolationError> {
    let begin = Instant::now();
    let mut alone = Vec::new();
    for prompt in prompts {
        alone.push(text_of(engine, model, prompt).await?);
    }
    let together = join_all(prompts.iter().map(|prompt| text_of(engine, model, prompt))).await;
    for ((prompt, alone), together) in prompts.iter().zip(&alone).zip(together) {
        let together = together?;
        if *alone != together {
            let (model, prompt, alone) = (model.to_owned(), (*prompt).to_owned(), alone.clone());
            return Err(IsolationError::CrossTalk { model, prompt, alone, together });
        }
    }
    Ok(IsolationReport { model: model.to_owned(), texts: alone, elapsed: begin.elapsed() })
}

async fn text_of(engine: &dyn Engine, model: &str, prompt: &str) -> Result<String, EngineError> {
    let request = Generate::new(model, prompt, Sampling::greedy(TOKENS));
    let mut stream = engine.generate(request).await?;
    let mut text = String::new();
    while let Some(event) = stream.recv().await {
        match event? {
            Event::Piece(more) => text.push_str(&more.text),
            Event::Done(_) => return Ok(text),
        }
    }
    Err(EngineError::Failed("the stream ended without an end".to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::mpsc;

    use super::*;
    use crate::engine::{FinishReason, GenerateFuture, Usage};

    /// Answers with the prompt's own words, and where two run at once, with how many there are.
    #[derive(Default)]
    struct Leaky {
        running: std::sync::Arc<AtomicUsize>,
        leaks: bool,
    }

    impl Engine for Leaky {
        fn models(&self) -> Vec<String> {
            vec!["leaky".to_owned()]
        }

        fn generate(&self, request: Generate) -> GenerateFuture<'_> {
            Box::pin(async move {
                let (events, stream) = mpsc::channel(4);
                let (running, leaks) = (self.running.clone(), self.leaks);
                running.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    tokio::task::yield_now().await;
                    let beside = if leaks { running.load(Ordering::SeqCst) } else { 1 };
                    let usage = Usage {
                        prompt_tokens: 1,
                        cached_tokens: 0,
                        completion_tokens: 1,
                        finish_reason: FinishReason::Stop,
                    };
                    events
                        .send(Ok(Event::Piece(format!("{} {beside}", request.messages[0].content).into())))
                        .await
                        .unwrap();
                    events.send(Ok(Event::Done(usage))).await.unwrap();
                    running.fetch_sub(1, Ordering::SeqCst);
                });
                Ok(stream)
            })
        }
    }

    #[tokio::test]
    async fn an_engine_that_keeps_requests_apart_passes() {
        let report = isolation_test_of_four(&Leaky::default(), "leaky").await.unwrap();
        assert_eq!(report.texts.len(), 4);
    }

    #[tokio::test]
    async fn an_engine_that_mixes_requests_up_is_found_out() {
        let error = isolation_test(&Leaky { leaks: true, ..Leaky::default() }, "leaky").await.unwrap_err();
        assert!(matches!(error, IsolationError::CrossTalk { .. }), "{error}");
    }
}
