//! GGUF files, as far as they are looked at before loading: are they whole, can mistral.rs run them, what do they say about themselves.
//!
//! candle reads the header. What it would believe blindly is checked before ([`guard`]), and what mistral.rs takes for granted after
//! ([`requirements`]). A model may have several files ([`parts`]).

mod error;
mod guard;
mod parts;
mod quantization;
mod requirements;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fs::File,
    io::{BufReader, Read, Seek},
    path::{Path, PathBuf},
};

use candle_core::quantized::gguf_file::{Content, TensorInfo, Value};

pub use self::error::GgufError;
pub(super) use self::parts::PartName;
use super::{
    identity::Tensor,
    vocabulary::{Spelling, TokenKind},
};

/// The header of a model: of one file, or of all its parts.
#[derive(Debug)]
pub(super) struct Gguf {
    metadata: HashMap<String, Value>,
    parts: Vec<Part>,
}

/// One file of a model.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) path: PathBuf,
    pub(super) file_bytes: u64,
    tensors: HashMap<String, TensorInfo>,
    /// Where the weights begin.
    data_offset: u64,
}

/// In a model of several files: how many, and which one this is, from 0 on.
const PART_COUNT: &str = "split.count";
const PART_NUMBER: &str = "split.no";

impl Gguf {
    /// Reads the header of a file and of those that belong to it, and refuses what mistral.rs cannot run. Reads a few MB for usual models: the
    /// vocabulary is in it.
    pub(super) fn open(path: &Path) -> Result<Self, GgufError> {
        let paths = parts::all(path)?;
        let count = paths.len() as u64;
        let (mut metadata, mut parts) = (HashMap::new(), Vec::new());
        for (number, path) in (1..).zip(paths) {
            let file = File::open(&path)?;
            let file_bytes = file.metadata()?.len();
            let content = read(file, file_bytes)?;
            let says = |key| content.metadata.get(key).and_then(|value| value.to_u64().ok());
            let belongs = says(PART_COUNT).unwrap_or(count) == count
                && (count == 1 || says(PART_NUMBER).is_none_or(|at| at + 1 == number));
            if !belongs {
                let (number, count) = (says(PART_NUMBER).unwrap_or(0).saturating_add(1), says(PART_COUNT).unwrap_or(1));
                let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                return Err(GgufError::WrongPart { file, number, count });
            }
            let Content { metadata: more, tensor_infos: tensors, tensor_data_offset: data_offset, .. } = content;
            metadata.extend(more);
            parts.push(Part { path, file_bytes, tensors, data_offset });
        }
        let gguf = Self { metadata, parts };
        requirements::check(&gguf)?;
        Ok(gguf)
    }

    /// Its files, in their order.
    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Bytes of all files.
    pub(super) fn file_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.file_bytes).sum()
    }

    /// Such as `llama`; empty where the file does not say.
    pub(super) fn architecture(&self) -> &str {
        self.text("general.architecture").unwrap_or_default()
    }

    /// A number under the architecture's own prefix, such as `context_length`.
    pub(super) fn number(&self, key: &str) -> Option<u64> {
        self.value(&format!("{}.{key}", self.architecture()))?.to_u64().ok()
    }

    /// Tokens in the vocabulary.
    pub(super) fn vocabulary_len(&self) -> usize {
        self.values("tokenizer.ggml.tokens").len()
    }

    /// The tokens, their kinds (none where the file does not say), and how they are spelled.
    pub(super) fn tokens(&self) -> (Vec<String>, Vec<TokenKind>, Spelling) {
        let text = |value: &Value| value.to_string().cloned().unwrap_or_default();
        let kind = |value: &Value| TokenKind::from_gguf(value.to_i32().unwrap_or_default().into());
        let spelling = match self.text("tokenizer.ggml.model") {
            Some("gpt2") => Spelling::ByteLevel,
            _ => Spelling::SentencePiece,
        };
        let names = self.values("tokenizer.ggml.tokens").iter().map(text).collect();
        (names, self.values("tokenizer.ggml.token_type").iter().map(kind).collect(), spelling)
    }

    /// The chat template, where there is one.
    pub(super) fn chat_template(&self) -> Option<&str> {
        self.text("tokenizer.chat_template")
    }

    /// The token that a name such as `bos` stands for.
    pub(super) fn special_token(&self, name: &str) -> Option<u32> {
        self.value(&format!("tokenizer.ggml.{name}_token_id"))?.to_u32().ok()
    }

    /// The text of a token, as the vocabulary has it.
    pub(super) fn token(&self, id: u32) -> Option<&str> {
        self.values("tokenizer.ggml.tokens").get(id as usize)?.to_string().ok().map(String::as_str)
    }

    /// What the file says about architecture and tokenizer, by key; the template, names and licences are left out.
    pub(super) fn settings(&self) -> Vec<(&str, &Value)> {
        let own = format!("{}.", self.architecture());
        let is_setting = |key: &str| key.starts_with(&own) || key.starts_with("tokenizer.ggml.");
        let mut settings: Vec<_> = self.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        settings.retain(|(key, _)| is_setting(key));
        settings.sort_unstable_by_key(|(key, _)| *key);
        settings
    }

    /// All weights.
    pub(super) fn tensors(&self) -> Vec<Tensor<'_>> {
        self.parts.iter().flat_map(Part::tensors).collect()
    }

    fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.parts.iter().find_map(|part| part.tensors.get(name))
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.value(key)?.to_string().ok().map(String::as_str)
    }

    fn values(&self, key: &str) -> &[Value] {
        self.value(key).and_then(|value| value.to_vec().ok()).map_or(&[], Vec::as_slice)
    }
}

impl Part {
    fn tensors(&self) -> impl Iterator<Item = Tensor<'_>> {
        self.tensors.iter().map(|(name, info)| Tensor {
            name,
            kind: quantization::name(info.ggml_dtype),
            shape: info.shape.dims(),
            path: &self.path,
            offset: self.data_offset + info.offset,
            bytes: size(info).unwrap_or(0),
        })
    }
}

/// The header of one file. Every tensor lies within it.
fn read(mut input: impl Read + Seek, file_bytes: u64) -> Result<Content, GgufError> {
    guard::walk(&mut input, file_bytes)?;
    input.rewind()?;
    let content = Content::read(&mut BufReader::with_capacity(1 << 20, input))
        .map_err(|error| GgufError::Damaged(super::quiet::one_line(&error.to_string())))?;
    for (name, info) in &content.tensor_infos {
        let impossible = || GgufError::Damaged(format!("an impossible shape of tensor {name}"));
        let bytes = size(info).ok_or_else(impossible)?;
        let end = content.tensor_data_offset.checked_add(info.offset).and_then(|begin| begin.checked_add(bytes));
        let end = end.ok_or_else(|| GgufError::Damaged(format!("an impossible place of tensor {name}")))?;
        if end > file_bytes {
            return Err(GgufError::Truncated { have: file_bytes, need: end });
        }
    }
    Ok(content)
}

/// Bytes of a tensor; `None` where its shape is impossible.
fn size(info: &TensorInfo) -> Option<u64> {
    let elements = info.shape.dims().iter().try_fold(1u64, |product, side| product.checked_mul(*side as u64))?;
    let block = info.ggml_dtype.block_size() as u64;
    let is_whole = elements > 0 && info.shape.dims().last().is_none_or(|row| (*row as u64).is_multiple_of(block));
    is_whole.then_some(())?;
    (elements / block).checked_mul(info.ggml_dtype.type_size() as u64)
}
