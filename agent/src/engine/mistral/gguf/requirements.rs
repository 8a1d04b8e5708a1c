//! What mistral.rs takes for granted in a GGUF file: where it is missing, mistral.rs panics, or loads a model that fails at each request.
//!
//! Read in `pipeline/gguf.rs`, `utils/gguf_metadata.rs`, `gguf/gguf_tokenizer.rs` and `models/quantized_*.rs` of mistralrs-core 0.8.1.

use candle_core::quantized::gguf_file::Value;

use super::{Gguf, GgufError};

/// An architecture, and the keys that it needs beside [`EVERY`].
struct Architecture {
    name: &'static str,
    numbers: &'static [&'static str],
    /// The key of the norm's epsilon.
    epsilon: &'static str,
}

const RMS_EPSILON: &str = "attention.layer_norm_rms_epsilon";

const ARCHITECTURES: [Architecture; 8] = [
    Architecture { name: "llama", numbers: &["rope.dimension_count"], epsilon: RMS_EPSILON },
    Architecture { name: "mistral3", numbers: &["rope.dimension_count"], epsilon: RMS_EPSILON },
    Architecture { name: "phi2", numbers: &["rope.dimension_count"], epsilon: RMS_EPSILON },
    Architecture { name: "phi3", numbers: &["rope.dimension_count", "feed_forward_length"], epsilon: RMS_EPSILON },
    Architecture { name: "starcoder2", numbers: &[], epsilon: "attention.layer_norm_epsilon" },
    Architecture { name: "qwen2", numbers: &[], epsilon: RMS_EPSILON },
    Architecture { name: "qwen3", numbers: &[], epsilon: RMS_EPSILON },
    Architecture {
        name: "qwen3moe",
        numbers: &["expert_count", "expert_used_count", "expert_feed_forward_length"],
        epsilon: RMS_EPSILON,
    },
];

const NAMES: [&str; 8] = {
    let mut names = [""; 8];
    let mut at = 0;
    while at < names.len() {
        names[at] = ARCHITECTURES[at].name;
        at += 1;
    }
    names
};

/// Numbers that each architecture needs.
const EVERY: [&str; 5] =
    ["block_count", "embedding_length", "attention.head_count", "attention.head_count_kv", "context_length"];

/// Numbers that may be there.
const OPTIONAL: [&str; 2] = ["attention.key_length", "attention.value_length"];

/// Tokens of the longest context that is believed. mistral.rs computes its tables of positions at once: 16 million take some gigabytes.
const MAX_CONTEXT: u64 = 1 << 24;

/// Numbers in a key of one head; models have 64 to 256.
const MAX_KEY_LENGTH: u64 = 1 << 16;
/// Experts of a layer; models have up to some hundreds.
const MAX_EXPERTS: u64 = 1 << 16;

/// Tokenizers that mistral.rs builds from a GGUF file: SentencePiece and byte-level BPE.
const TOKENIZERS: [&str; 3] = ["llama", "replit", "gpt2"];

/// Refuses what cannot be run.
pub(super) fn check(gguf: &Gguf) -> Result<(), GgufError> {
    let found = gguf.architecture();
    let architecture = ARCHITECTURES.iter().find(|known| known.name == found);
    let architecture =
        architecture.ok_or_else(|| GgufError::Architecture { found: found.to_owned(), supported: &NAMES })?;
    let full = |key: &&str| format!("{found}.{key}");
    let mut needed: Vec<String> = EVERY.iter().chain(architecture.numbers).map(full).collect();
    needed.push(full(&architecture.epsilon));
    needed.extend(["tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.eos_token_id"].map(str::to_owned));
    needed.retain(|key| gguf.value(key).is_none());
    if !needed.is_empty() {
        return Err(GgufError::MissingKeys { keys: needed });
    }
    for key in EVERY.iter().chain(architecture.numbers).map(full) {
        number(gguf, &key)?;
    }
    for key in OPTIONAL.iter().map(full).filter(|key| gguf.value(key).is_some()) {
        number(gguf, &key)?;
    }
    let epsilon = full(&architecture.epsilon);
    if !matches!(gguf.value(&epsilon), Some(Value::F32(value)) if value.is_finite() && *value > 0.0) {
        return Err(wrong(&epsilon, "is no number above 0"));
    }
    shape(gguf, found)?;
    tokenizer(gguf)
}

/// mistral.rs takes the types literally: u32, and for the context u64 as well.
fn number(gguf: &Gguf, key: &str) -> Result<u64, GgufError> {
    let number = match gguf.value(key) {
        Some(Value::U32(number)) => u64::from(*number),
        Some(Value::U64(number)) if key.ends_with(".context_length") => *number,
        Some(Value::Array(_)) => {
            return Err(wrong(key, "differs from layer to layer, which mistral.rs does not run from a GGUF file"));
        }
        _ => return Err(wrong(key, "is no unsigned number")),
    };
    if number == 0 && !key.contains(".expert_") {
        return Err(wrong(key, "is 0"));
    }
    Ok(number)
}

fn shape(gguf: &Gguf, architecture: &str) -> Result<(), GgufError> {
    let key = |name: &str| format!("{architecture}.{name}");
    let of = |name: &str| gguf.number(name).unwrap_or(0);
    let (heads, kv_heads) = (of("attention.head_count"), of("attention.head_count_kv"));
    if heads % kv_heads.max(1) != 0 {
        return Err(wrong(&key("attention.head_count"), &format!("is {heads}, no multiple of {kv_heads} key heads")));
    }
    let own = of("embedding_length") / heads.max(1);
    let (keys, values) = OPTIONAL.map(|name| gguf.number(name).unwrap_or(own)).into();
    if keys != values {
        return Err(wrong(
            &key(OPTIONAL[0]),
            &format!("is {keys}, and the values' is {values}: mistral.rs needs them equal"),
        ));
    }
    // mistral.rs reserves memory for all of these before it looks at a weight.
    for (name, most) in [(OPTIONAL[0], MAX_KEY_LENGTH), ("rope.dimension_count", keys), ("expert_count", MAX_EXPERTS)] {
        let number = gguf.number(name).unwrap_or(0);
        if number > most {
            return Err(wrong(&key(name), &format!("is {number}, more than {most}")));
        }
    }
    let context = of("context_length");
    if context > MAX_CONTEXT {
        return Err(wrong(&key("context_length"), &format!("is {context}, more than {MAX_CONTEXT}")));
    }
    let blocks = of("block_count");
    // Each block is looked for before memory is reserved for all of them.
    for block in 0..blocks {
        let norm = format!("blk.{block}.attn_norm.weight");
        if gguf.tensor(&norm).is_none() {
            return Err(GgufError::MissingTensor(norm));
        }
    }
    for name in ["token_embd.weight", "output_norm.weight"] {
        if gguf.tensor(name).is_none() {
            return Err(GgufError::MissingTensor(name.to_owned()));
        }
    }
    let (tokens, width) = (gguf.vocabulary_len() as u64, of("embedding_length"));
    for name in ["token_embd.weight", "output.weight"] {
        let Some(info) = gguf.tensor(name) else { continue };
        let fits = matches!(info.shape.dims(), [rows, columns] if *rows as u64 >= tokens && *columns as u64 == width);
        if !fits {
            let problem = format!(
                "has the shape {:?}, and {tokens} tokens with {width} numbers each are needed",
                info.shape.dims()
            );
            return Err(wrong(name, &problem));
        }
    }
    Ok(())
}

fn tokenizer(gguf: &Gguf) -> Result<(), GgufError> {
    let Some(Value::String(kind)) = gguf.value("tokenizer.ggml.model") else {
        return Err(wrong("tokenizer.ggml.model", "is no text"));
    };
    if !TOKENIZERS.contains(&kind.as_str()) {
        return Err(GgufError::Tokenizer { found: kind.clone(), supported: &TOKENIZERS });
    }
    let tokens = array(gguf, "tokenizer.ggml.tokens", "texts", |value| matches!(value, Value::String(_)))?;
    let count = tokens.map_or(0, <[Value]>::len);
    if count == 0 {
        return Err(wrong("tokenizer.ggml.tokens", "is empty: the model has no vocabulary"));
    }
    let as_long = |key: &str, values: Option<&[Value]>| match values {
        Some(values) if values.len() != count => {
            Err(wrong(key, &format!("has {} entries for {count} tokens", values.len())))
        }
        _ => Ok(()),
    };
    let types = array(gguf, "tokenizer.ggml.token_type", "numbers (i32)", |value| matches!(value, Value::I32(_)))?;
    as_long("tokenizer.ggml.token_type", types)?;
    if kind == "gpt2" {
        let is_pair = |value: &Value| matches!(value, Value::String(text) if text.contains(' '));
        let merges = array(gguf, "tokenizer.ggml.merges", "pairs of tokens", is_pair)?;
        merges.ok_or_else(|| GgufError::MissingKeys { keys: vec!["tokenizer.ggml.merges".to_owned()] })?;
    } else {
        let is_score = |value: &Value| matches!(value, Value::F32(score) if score.is_finite());
        let scores = array(gguf, "tokenizer.ggml.scores", "numbers (f32)", is_score)?;
        as_long("tokenizer.ggml.scores", scores)?;
        scores.ok_or_else(|| GgufError::MissingKeys { keys: vec!["tokenizer.ggml.scores".to_owned()] })?;
    }
    for name in ["eos", "bos", "unknown", "eot", "eom"] {
        let key = format!("tokenizer.ggml.{name}_token_id");
        match gguf.value(&key) {
            None => {}
            Some(Value::U32(id)) if (*id as usize) < count => {}
            Some(Value::U32(id)) => return Err(wrong(&key, &format!("is {id}, and there are {count} tokens"))),
            Some(_) => return Err(wrong(&key, "is no unsigned number (u32)")),
        }
    }
    Ok(())
}

/// The elements of an array, all of one kind; `None` where there is no such key.
fn array<'a>(
    gguf: &'a Gguf,
    key: &str,
    kind: &str,
    is_right: impl Fn(&Value) -> bool,
) -> Result<Option<&'a [Value]>, GgufError> {
    match gguf.value(key) {
        None => Ok(None),
        Some(Value::Array(values)) if values.iter().all(is_right) => Ok(Some(values)),
        Some(_) => Err(wrong(key, &format!("is no list of {kind}"))),
    }
}

fn wrong(key: &str, problem: &str) -> GgufError {
    GgufError::Key { key: key.to_owned(), problem: problem.to_owned() }
}
