//! A model's files, whatever their format: what is known before mistral.rs sees them.

use std::{io, path::Path};

use tokenizers::Tokenizer;

use super::{
    LoadError, ModelSource,
    gguf::Gguf,
    identity::Identity,
    isq::QuantizedType,
    memory::{F32, KEY_AND_VALUE, Needs},
    safetensors::Safetensors,
    template::SpecialTokens,
    template_source::TemplateSource,
    vocabulary::{Vocabulary, VocabularyError},
};

/// The files of one model, looked at and found whole.
#[derive(Debug)]
pub(super) enum ModelFiles {
    /// One GGUF file, or several that belong together.
    Gguf(Gguf),
    /// A directory of safetensors.
    Safetensors(Box<Safetensors>),
}

impl ModelFiles {
    /// Names what is wrong with them. Blocks.
    pub(super) fn open(name: &str, source: &ModelSource) -> Result<Self, LoadError> {
        match source {
            ModelSource::GgufFile(path) => {
                Gguf::open(path).map(Self::Gguf).map_err(|error| LoadError::Gguf { path: path.clone(), error })
            }
            ModelSource::SafetensorsDir(path) => Safetensors::open(path)
                .map(|model| Self::Safetensors(Box::new(model)))
                .map_err(|error| LoadError::Safetensors { path: path.clone(), error }),
            ModelSource::Hub(_) => Err(LoadError::Refused {
                model: name.to_owned(),
                origin: source.clone(),
                reason: "its files are not in the hub's cache".to_owned(),
                hub: true,
            }),
        }
    }

    /// The model's own template.
    pub(super) fn chat_template(&self) -> Result<Option<TemplateSource>, LoadError> {
        match self {
            Self::Gguf(gguf) => Ok(gguf.chat_template().and_then(TemplateSource::own)),
            Self::Safetensors(model) => Ok(TemplateSource::of_directory(&model.folder)?),
        }
    }

    /// What the tokens say. `tokenizer` is what mistral.rs made of the files; `ends` are all tokens that end an answer, those that mistral.rs knows
    /// first.
    pub(super) fn vocabulary(&self, tokenizer: &Tokenizer, ends: Vec<u32>) -> Result<Vocabulary, VocabularyError> {
        match self {
            Self::Gguf(gguf) => {
                let (names, kinds, spelling) = gguf.tokens();
                Vocabulary::of_gguf(tokenizer, &names, &kinds, spelling, gguf.special_token("bos"), ends)
            }
            Self::Safetensors(_) => Vocabulary::of_tokenizer(tokenizer, ends),
        }
    }

    /// The texts of the tokens that templates write.
    pub(super) fn special_tokens(&self) -> SpecialTokens {
        let [bos, eos, unk] = ["bos", "eos", "unk"].map(|name| self.special_token(name));
        SpecialTokens { bos, eos, unk }
    }

    /// The text of a special token: `bos`, `eos` or `unk`.
    pub(super) fn special_token(&self, name: &str) -> Option<String> {
        match self {
            Self::Gguf(gguf) => {
                let key = if name == "unk" { "unknown" } else { name };
                gguf.token(gguf.special_token(key)?).map(ToOwned::to_owned)
            }
            Self::Safetensors(model) => model.special_token(&format!("{name}_token")).map(ToOwned::to_owned),
        }
    }

    /// Tokens that end an answer. mistral.rs knows others from the template, and not all of these.
    pub(super) fn end_tokens(&self) -> Vec<u32> {
        match self {
            Self::Gguf(gguf) => ["eos", "eot", "eom"].iter().filter_map(|name| gguf.special_token(name)).collect(),
            Self::Safetensors(model) => model.end_tokens(),
        }
    }

    /// Memory for one engine.
    pub(super) fn needs(&self) -> Needs {
        match self {
            Self::Gguf(gguf) => {
                let number = |key| gguf.number(key).unwrap_or(0);
                let heads = number("attention.head_count").max(1);
                let head = gguf.number("attention.key_length").unwrap_or(number("embedding_length") / heads);
                let kv_heads = gguf.number("attention.head_count_kv").unwrap_or(heads);
                let product = |factors: &[u64]| factors.iter().copied().fold(1, u64::saturating_mul);
                // The embedding is unpacked.
                let embedding = product(&[gguf.vocabulary_len() as u64, number("embedding_length"), F32]);
                Needs {
                    weight_bytes: gguf.file_bytes().saturating_add(embedding),
                    token_bytes: product(&[number("block_count"), kv_heads, head, KEY_AND_VALUE, F32]),
                }
            }
            Self::Safetensors(model) => model.needs(),
        }
    }

    /// What the weights are, with this template, when plain ones are brought to `isq`. Reads some of them: blocks.
    pub(super) fn identity(&self, template: &str, isq: Option<QuantizedType>) -> io::Result<Identity> {
        match self {
            Self::Gguf(gguf) => Identity::of_gguf(gguf, template),
            Self::Safetensors(model) => Identity::of_safetensors(model, template, isq.map(QuantizedType::name)),
        }
    }

    /// The files of weights, in their order.
    pub(super) fn weights(&self) -> Vec<&Path> {
        match self {
            Self::Gguf(gguf) => gguf.parts().iter().map(|part| part.path.as_path()).collect(),
            Self::Safetensors(model) => model.weights.iter().map(AsRef::as_ref).collect(),
        }
    }
}
