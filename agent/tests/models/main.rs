//! Small models of every kind that people have: their text is exact, or the refusal names the fault and the remedy in one line.

#![allow(clippy::unwrap_used)]

mod changed;
mod info;
mod maker;
mod refused;
mod served;

use std::path::{Path, PathBuf};

use titan_agent::engine::{
    Engine, Event, Generate, Sampling,
    mistral::{Isq, LoadError, MistralConfig, MistralEngine, ModelSource, ModelSpec},
};

/// Loads the model at a path, with its own template or that of a file.
async fn load(path: &Path, chat_template: Option<PathBuf>) -> Result<MistralEngine, LoadError> {
    load_as(path, chat_template, Isq::Auto).await
}

async fn load_as(path: &Path, chat_template: Option<PathBuf>, isq: Isq) -> Result<MistralEngine, LoadError> {
    let source = ModelSource::parse(&path.display().to_string())?;
    let config = MistralConfig {
        models: vec![ModelSpec { chat_template, ..ModelSpec::new("small", source) }],
        max_jobs: 1,
        engines: Some(1),
        context_tokens: None,
        force_cpu: true,
        isq,
        gpu: Default::default(),
    };
    MistralEngine::load(config, &|_| {}).await
}

/// What it answers, whatever was asked.
async fn said(engine: &MistralEngine) -> String {
    let mut stream = engine.generate(Generate::new("small", "Hello, you.", Sampling::greedy(64))).await.unwrap();
    let mut text = String::new();
    while let Some(event) = stream.recv().await {
        match event.unwrap() {
            Event::Piece(piece) => text.push_str(&piece.text),
            Event::Done(_) => return text,
        }
    }
    panic!("no end after {text:?}")
}
