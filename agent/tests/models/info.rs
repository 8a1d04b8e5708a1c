//! What a model says it is.

use std::fs;

use titan_agent::engine::{Engine, mistral::Isq};
use titan_proto::v1::ModelInfo;

use super::{
    load, load_as,
    maker::{GgufFile, Kind, SmallModel, TEMPLATE, Tokens},
    said,
};

async fn info_of(file: &GgufFile) -> ModelInfo {
    let folder = tempfile::tempdir().unwrap();
    let path = file.write(&folder.path().join("small.gguf"));
    info_at(&path).await
}

async fn info_at(path: &std::path::Path) -> ModelInfo {
    load(path, None).await.unwrap().model_info().remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_says_what_it_is() {
    let model = SmallModel::new(Tokens::SentencePiece);
    let folder = tempfile::tempdir().unwrap();
    let path = model.gguf_of("llama", Kind::Q8_0).write(&folder.path().join("small.gguf"));
    let info = info_at(&path).await;
    let (width, vocabulary) = (model.width() as i64, model.tokens.len() as i64);
    assert_eq!(info.name, "small");
    assert_eq!(info.engine, "mistral.rs");
    assert_eq!(info.source, fs::canonicalize(&path).unwrap().display().to_string());
    assert_eq!(info.architecture, "llama");
    assert_eq!(info.parameters, 2 * vocabulary * width + 3 * width + 7 * width * width);
    // Its matrices of zeros are 32-bit, and more bytes.
    assert_eq!(info.quantization, "F32");
    assert_eq!(info.context_tokens, 2048);
    assert_eq!((info.places, info.continuation.as_str()), (1, "tokens"));
    assert!(info.digest.len() == 64 && info.digest.bytes().all(|digit| digit.is_ascii_hexdigit()), "{}", info.digest);
    assert!(info.tools, "its template has tools");
    assert!(!info.reasoning);

    let plain = model.clone().template("{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{{ eos_token }}{% endfor %}<|assistant|>");
    let plain = info_of(&plain.gguf()).await;
    assert!(!plain.tools);
    assert_ne!(plain.digest, info.digest);
    let thinking =
        format!("{TEMPLATE}{{% if enable_thinking is defined and not enable_thinking %}}<think></think>{{% endif %}}");
    assert!(info_of(&model.template(&thinking).gguf()).await.reasoning);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_digest_is_of_weights_tokenizer_and_template_and_of_nothing_else() {
    let model = SmallModel::new(Tokens::SentencePiece);
    let file = model.gguf();
    let own = info_of(&file).await.digest;
    assert_eq!(info_of(&file).await.digest, own, "in another folder");

    let mut reordered = file.clone();
    reordered.entries.reverse();
    reordered.tensors.reverse();
    assert_eq!(info_of(&reordered).await.digest, own, "in another order");

    let mut renamed = file.clone();
    renamed.set("general.name", super::maker::Value::text("another name"));
    assert_eq!(info_of(&renamed).await.digest, own, "under another name");

    let folder = tempfile::tempdir().unwrap();
    let parts = file.write_parts(folder.path(), "m", 3);
    assert_eq!(info_at(&parts[1]).await.digest, own, "in parts");

    let mut trained = file.clone();
    *trained.tensor("blk.0.ffn_up.weight").data.last_mut().unwrap() = 1;
    let other_weights = info_of(&trained).await.digest;
    let other_template = info_of(&model.clone().template(&format!("{TEMPLATE} ")).gguf()).await.digest;
    let mut tokens = model.clone();
    tokens.tokens.last_mut().unwrap().0 = "!".to_owned();
    let other_tokens = info_of(&tokens.gguf()).await.digest;
    let mut all = vec![own, other_weights, other_template, other_tokens];
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 4, "{all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn safetensors_say_what_they_run_as() {
    let folder = tempfile::tempdir().unwrap();
    SmallModel::new(Tokens::ByteLevel).write_safetensors(folder.path());
    let info = info_at(folder.path()).await;
    assert_eq!(info.architecture, "LlamaForCausalLM");
    // Brought to eight bits for the CPU.
    assert_eq!(info.quantization, "Q8_0");
    assert!(info.parameters > 0);
    let config = folder.path().join("config.json");
    let renamed = fs::read_to_string(&config).unwrap().replacen('{', r#"{"_name_or_path": "x", "#, 1);
    fs::write(&config, renamed).unwrap();
    assert_eq!(info_at(folder.path()).await.digest, info.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_weights_are_brought_to_the_type_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    SmallModel::new(Tokens::ByteLevel).write_safetensors(folder.path());
    let own = said(&load(folder.path(), None).await.unwrap()).await;
    let mut digests = Vec::new();
    for (isq, quantization) in [("auto", "Q8_0"), ("none", "F32"), ("Q4_0", "Q4_0"), ("Q8_0", "Q8_0"), ("q5_1", "Q5_1")]
    {
        let model = load_as(folder.path(), None, isq.parse().unwrap()).await.unwrap();
        let info = model.model_info().remove(0);
        assert_eq!(info.quantization, quantization, "{isq}");
        assert_eq!(said(&model).await, own, "{isq}");
        digests.push(info.digest);
    }
    assert_eq!(digests[0], digests[3]);
    // Answers of models that round differently do not go on with each other.
    let mut different = digests.clone();
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), digests.len() - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gguf_file_has_its_type_already() {
    let folder = tempfile::tempdir().unwrap();
    let path = SmallModel::new(Tokens::SentencePiece).gguf().write(&folder.path().join("small.gguf"));
    for isq in [Isq::None, "Q4_K".parse().unwrap()] {
        let message = load_as(&path, None, isq).await.unwrap_err().to_string();
        assert!(message.starts_with(&format!("--isq {isq}: ")) && message.contains("give a file"), "{message}");
    }
}
