//! Why a GGUF file cannot be loaded: each message names the fault and what to do about it.

use std::io;

/// Why a file is not a GGUF file that can be loaded.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file cannot be opened or read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The first four bytes are others.
    #[error("it does not begin with \"GGUF\": this is no GGUF file; give a .gguf file, or a directory of safetensors")]
    NotGguf,
    /// A version that nobody knows here.
    #[error("it is GGUF version {0}; versions 2 and 3 can be read: convert the model again with a current llama.cpp")]
    Version(u32),
    /// The file ends before its content does.
    #[error("it is cut short: {have} bytes, and its header speaks of at least {need}; download it again")]
    Truncated {
        /// Bytes of the file.
        have: u64,
        /// Bytes that the header asks for.
        need: u64,
    },
    /// The header contradicts itself.
    #[error("its header is damaged ({0}); download it again")]
    Damaged(String),
    /// One of several files that make up a model, without the others.
    #[error("it is one of {count} parts of a model, and {} beside it: put all parts into one folder", listed(missing))]
    MissingParts {
        /// Names of the files that are not there.
        missing: Vec<String>,
        /// How many there should be.
        count: u64,
    },
    /// Parts that do not belong together, or whose names do not say where the others are.
    #[error(
        "{file} says that it is part {number} of {count}: give the parts of one model, named NAME-00001-of-{count:05}.gguf and so on"
    )]
    WrongPart {
        /// Its name.
        file: String,
        /// Which part it says it is, from 1 on.
        number: u64,
        /// How many there are.
        count: u64,
    },
    /// mistral.rs runs other architectures.
    #[error(
        "its architecture {found:?} cannot be run from a GGUF file; {} can: give one of these, or serve the model with another engine",
        supported.join(", ")
    )]
    Architecture {
        /// What the file says; empty where it says nothing.
        found: String,
        /// What can be run.
        supported: &'static [&'static str],
    },
    /// Keys that every model of this architecture has.
    #[error("its header lacks {}: convert the model again with a current llama.cpp", keys.join(", "))]
    MissingKeys {
        /// Their names.
        keys: Vec<String>,
    },
    /// A key whose value cannot be.
    #[error("its {key} {problem}: convert the model again with a current llama.cpp")]
    Key {
        /// The key.
        key: String,
        /// What is wrong with its value.
        problem: String,
    },
    /// Weights that every model of this architecture has.
    #[error("it has no tensor {0}: convert the model again with a current llama.cpp")]
    MissingTensor(String),
    /// A quantisation that candle does not read.
    #[error(
        "its tensor {tensor} is quantised as {found}, which cannot be read; {supported} can: take another quantisation of the model"
    )]
    Quantization {
        /// The tensor.
        tensor: String,
        /// Its type.
        found: String,
        /// Those that can be read.
        supported: String,
    },
    /// A tokenizer that mistral.rs does not build from a GGUF file.
    #[error("its tokenizer is of the kind {found:?}; {} can be used: give another conversion of the model, or its safetensors", supported.join(", "))]
    Tokenizer {
        /// What the file says.
        found: String,
        /// What can be used.
        supported: &'static [&'static str],
    },
}

/// How many names of missing files are given.
const MOST_NAMES: usize = 5;

fn listed(missing: &[String]) -> String {
    let names = missing.iter().take(MOST_NAMES).map(String::as_str).collect::<Vec<_>>().join(", ");
    match (missing.len().saturating_sub(MOST_NAMES), missing.len()) {
        (0, 1) => format!("{names} is not"),
        (0, _) => format!("{names} are not"),
        (more, _) => format!("{names} and {more} more are not"),
    }
}
