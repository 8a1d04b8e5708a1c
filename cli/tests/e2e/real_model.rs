//! The real model: the same text whichever way it takes.

use std::{path::PathBuf, sync::Arc};

use titan_agent::engine::{
    Engine, Event, Generate, Sampling, fetch,
    mistral::{MistralConfig, MistralEngine, ModelSource, ModelSpec},
};

use crate::support::{Up, User, read_json, stderr, stdout};

const PROMPTS: [&str; 4] = [
    "Name three fruits.",
    "What is the capital of France?",
    "Write the numbers from one to ten.",
    "Why is the sky blue?",
];
const TOKENS: u32 = 16;

/// `TITAN_TEST_MODEL`, or the default model, fetched if it is not in the cache. Without it the test fails and says what to do.
async fn model_file() -> PathBuf {
    if let Some(path) = std::env::var_os("TITAN_TEST_MODEL") {
        return PathBuf::from(path);
    }
    let fetched = tokio::task::spawn_blocking(|| fetch::default_model(&|_| {})).await.unwrap();
    fetched.unwrap_or_else(|error| {
        panic!("this test needs the default model: {error}; or name a copy in TITAN_TEST_MODEL")
    })
}

async fn direct(engine: &MistralEngine, prompt: &str) -> String {
    let sampling = Sampling::greedy(TOKENS);
    let request = Generate::new("tiny", prompt, sampling);
    let mut stream = engine.generate(request).await.unwrap();
    let mut text = String::new();
    while let Some(Event::Piece(more)) = stream.recv().await.transpose().unwrap() {
        text.push_str(&more.text);
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_the_model_gives_the_same_text_alone_and_in_a_crowd() {
    let file = model_file().await;
    let config = MistralConfig {
        models: vec![ModelSpec::new("tiny", ModelSource::GgufFile(file.clone()))],
        max_jobs: 1,
        engines: Some(1),
        context_tokens: None,
        force_cpu: true,
        isq: Default::default(),
        gpu: Default::default(),
    };
    let engine = MistralEngine::load(config, &|_| {}).await.unwrap();
    let mut expected = Vec::new();
    for prompt in PROMPTS {
        expected.push(direct(&engine, prompt).await);
    }
    drop(engine);

    let up = Arc::new(Up::start(vec!["--cpu", "--engines", "2", "--model", &format!("tiny={}", file.display())]));
    let ask = |wire: &'static str, prompt: &'static str| {
        let up = Arc::clone(&up);
        tokio::task::spawn_blocking(move || {
            let tokens = TOKENS.to_string();
            let arguments = ["--json", "--temperature", "0", "--wire", wire, "--max-tokens", &tokens, prompt];
            let done = up.run(arguments).output().unwrap();
            assert!(done.status.success(), "{}", stderr(&done));
            let (text, end) = read_json(&done.stdout);
            assert_eq!(end["wire"], wire);
            text
        })
    };
    for wire in ["grpc", "quic"] {
        assert_eq!(ask(wire, PROMPTS[3]).await.unwrap(), expected[3], "{wire}, alone");
        let together: Vec<_> = PROMPTS.iter().map(|prompt| ask(wire, prompt)).collect();
        for (answer, expected) in together.into_iter().zip(&expected) {
            assert_eq!(answer.await.unwrap(), *expected, "{wire}, four at once");
        }
    }
}

#[tokio::test]
async fn run_needs_nothing_prepared() {
    let file = model_file().await.display().to_string();
    let user = User::new();
    // A file is always run in this process, whatever listens on the default ports.
    let done = user.output(["run", "--model", &file, "--temperature", "0", "--max-tokens", "8", "Say hello."]);
    assert!(done.status.success(), "{}", stderr(&done));
    assert!(!stdout(&done).trim().is_empty());
    let last = stderr(&done).lines().last().unwrap_or_default().to_owned();
    assert!(last.starts_with("agent-1 · quic · TTFT "), "{}", stderr(&done));
}
