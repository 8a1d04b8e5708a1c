//! The real model for tests of the engine.

#![allow(clippy::unwrap_used, dead_code)]

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use titan_agent::engine::{
    Engine, EngineError, Event, FinishReason, Generate, Sampling, Usage, fetch,
    mistral::{MistralConfig, MistralEngine, ModelSource, ModelSpec},
};

pub(crate) const MODEL: &str = "smollm2";

/// The model file, fetched if need be.
pub(crate) fn model_file() -> PathBuf {
    fetch::test_model().unwrap()
}

pub(crate) async fn engine(engines: usize) -> MistralEngine {
    let source = ModelSource::GgufFile(model_file());
    let config = MistralConfig {
        models: vec![ModelSpec::new(MODEL, source.clone()), ModelSpec::new("other-name", source)],
        max_jobs: engines,
        engines: Some(engines),
        context_tokens: None,
        force_cpu: true,
        isq: Default::default(),
        gpu: Default::default(),
    };
    MistralEngine::load(config, &|_| {}).await.unwrap()
}

/// Asked by somebody of his own, for whom nothing is kept: what is kept rounds differently. tests/conversations.rs is about that.
pub(crate) fn ask(prompt: &str, sampling: Sampling) -> Generate {
    static ASKED: AtomicU64 = AtomicU64::new(0);
    let owner = format!("client {}", ASKED.fetch_add(1, Ordering::Relaxed));
    Generate { owner, ..Generate::new(MODEL, prompt, sampling) }
}

/// Of an answer that has not come yet.
pub(crate) const NO_USAGE: Usage =
    Usage { prompt_tokens: 0, cached_tokens: 0, completion_tokens: 0, finish_reason: FinishReason::Stop };

pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) tokens: Vec<u32>,
    pub(crate) events: usize,
    /// Text and tokens after each event: what an engine could be asked to go on with.
    pub(crate) beginnings: Vec<(String, Vec<u32>)>,
    pub(crate) usage: Usage,
}

pub(crate) async fn answer(engine: &dyn Engine, prompt: &str, sampling: Sampling) -> Result<Answer, EngineError> {
    answer_to(engine, ask(prompt, sampling)).await
}

pub(crate) async fn answer_to(engine: &dyn Engine, asked: Generate) -> Result<Answer, EngineError> {
    let mut stream = engine.generate(asked).await?;
    let (mut text, mut tokens, mut events) = (String::new(), Vec::new(), 0);
    let mut beginnings = Vec::new();
    while let Some(event) = stream.recv().await {
        match event? {
            Event::Piece(more) => {
                assert!(!more.text.is_empty());
                events += 1;
                text.push_str(&more.text);
                tokens.extend(Vec::from(more.tokens));
                beginnings.push((text.clone(), tokens.clone()));
            }
            Event::Done(usage) => {
                assert!(stream.recv().await.is_none(), "something follows the end");
                return Ok(Answer { text, tokens, events, beginnings, usage });
            }
        }
    }
    Err(EngineError::Failed("the stream ended without an end".to_owned()))
}

/// Resident memory of this process.
#[cfg(target_os = "linux")]
pub(crate) fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}
