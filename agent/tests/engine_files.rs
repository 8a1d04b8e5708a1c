//! Model files that cannot be loaded, and what is said about them.

#![allow(clippy::unwrap_used)]

mod engine_support;

use std::{fs, path::Path};

use engine_support::model_file;
use titan_agent::engine::mistral::{GgufError, LoadError, MistralConfig, MistralEngine, ModelSource, ModelSpec};

async fn load(path: &Path) -> LoadError {
    let config = MistralConfig {
        models: vec![ModelSpec {
            names: vec!["broken".to_owned()],
            source: ModelSource::parse(&path.display().to_string()).unwrap(),
        }],
        max_jobs: 1,
        engines: Some(1),
        context_tokens: None,
        force_cpu: true,
    };
    let error = MistralEngine::load(config, &|_| {}).await.unwrap_err();
    println!("{error}");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_no_gguf_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("garbage.gguf");
    for content in [&b""[..], b"GG", b"this is a text file and no model at all"] {
        fs::write(&path, content).unwrap();
        let error = load(&path).await;
        assert!(matches!(error, LoadError::Gguf { error: GgufError::NotGguf, .. }), "{error}");
    }
    fs::write(&path, b"GGUF\x01\0\0\0aaaaaaaaaaaaaaaaaaaaaaaaa").unwrap();
    assert!(matches!(load(&path).await, LoadError::Gguf { error: GgufError::Version(1), .. }));
    fs::write(&path, [b"GGUF\x03\0\0\0".as_slice(), &[0xff; 64]].concat()).unwrap();
    assert!(matches!(load(&path).await, LoadError::Gguf { error: GgufError::Damaged(_), .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_file_is_named_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.gguf");
    let whole = fs::read(model_file()).unwrap();
    for length in [100, 1 << 20, whole.len() / 2] {
        fs::write(&path, &whole[..length]).unwrap();
        let error = load(&path).await;
        assert!(matches!(error, LoadError::Gguf { error: GgufError::Truncated { .. }, .. }), "{error}");
    }
    // Within the last tensor: mistral.rs finds it.
    fs::write(&path, &whole[..whole.len() - 10]).unwrap();
    let error = load(&path).await;
    assert!(matches!(error, LoadError::Gguf { .. } | LoadError::Refused { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_holds_no_safetensors_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    assert!(matches!(load(folder.path()).await, LoadError::Refused { hub: false, .. }));
}
