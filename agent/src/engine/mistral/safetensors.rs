//! A directory of safetensors, as far as it is looked at before loading: is it whole, and what does it say about itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{BufReader, Read},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;

use super::{
    identity::Tensor,
    memory::{F32, KEY_AND_VALUE, Needs},
};

/// Why a directory of safetensors cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum SafetensorsError {
    /// A file that cannot be read, or holds something else.
    #[error("{file}: {reason}")]
    File {
        /// Its name in the directory.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It has no weights, or not all.
    #[error("{} missing: download the model again, all files into one folder", missing.join(", "))]
    Missing {
        /// Names of files.
        missing: Vec<String>,
    },
}

/// What a directory says about itself.
#[derive(Debug)]
pub(super) struct Safetensors {
    pub(super) folder: PathBuf,
    /// The files of weights, in their order.
    pub(super) weights: Vec<PathBuf>,
    config: Value,
    tokenizer: Value,
    /// `tokenizer_config.json`, or null.
    tokenizer_config: Value,
    /// `generation_config.json`, or null.
    generation_config: Value,
    headers: Vec<Header>,
}

/// A file's tensors.
#[derive(Debug)]
struct Header {
    path: PathBuf,
    file_bytes: u64,
    /// Where the weights begin.
    data_offset: u64,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// Bytes of a file's header. The format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;

impl Safetensors {
    /// Reads everything but the weights.
    pub(super) fn open(folder: &Path) -> Result<Self, SafetensorsError> {
        let json = |file: &str| read_json(folder, file);
        let optional = |file: &str| if folder.join(file).exists() { json(file) } else { Ok(Value::Null) };
        let (config, tokenizer) = (json("config.json")?, json("tokenizer.json")?);
        let weights = weight_files(folder, &optional("model.safetensors.index.json")?)?;
        let headers = weights.iter().map(|path| Header::read(path)).collect::<Result<_, _>>()?;
        let (tokenizer_config, generation_config) =
            (optional("tokenizer_config.json")?, optional("generation_config.json")?);
        let read = Self {
            folder: folder.to_owned(),
            weights,
            config,
            tokenizer,
            tokenizer_config,
            generation_config,
            headers,
        };
        read.check_special_tokens()?;
        Ok(read)
    }

    /// Such as `LlamaForCausalLM`; empty where the directory does not say.
    pub(super) fn architecture(&self) -> &str {
        self.config.pointer("/architectures/0").and_then(Value::as_str).unwrap_or_default()
    }

    /// The text of a special token such as `eos_token`.
    pub(super) fn special_token(&self, name: &str) -> Option<&str> {
        let configured = self.tokenizer_config.get(name);
        let text = configured.and_then(|token| token.as_str().or_else(|| token.get("content")?.as_str()));
        let first_end = || self.token(self.configured_end_tokens().next()?.1);
        if name == "eos_token" { text.or_else(first_end) } else { text }
    }

    /// The tokens that end an answer, as the configuration has them.
    pub(super) fn end_tokens(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.configured_end_tokens().map(|(_, id)| id).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// All weights.
    pub(super) fn tensors(&self) -> Vec<Tensor<'_>> {
        self.headers.iter().flat_map(Header::tensors).collect()
    }

    /// What configuration and tokenizer say, without what differs from copy to copy.
    pub(super) fn settings(&self) -> [Value; 2] {
        let mut config = self.config.clone();
        if let Some(fields) = config.as_object_mut() {
            fields.retain(|name, _| !matches!(name.as_str(), "_name_or_path" | "transformers_version"));
        }
        [config, self.tokenizer.clone()]
    }

    /// Memory for one engine.
    pub(super) fn needs(&self) -> Needs {
        let number = |key: &str| self.config.get(key).and_then(Value::as_u64);
        let heads = number("num_attention_heads").unwrap_or(1).max(1);
        let head = number("head_dim").unwrap_or(number("hidden_size").unwrap_or(0) / heads);
        let kv_heads = number("num_key_value_heads").unwrap_or(heads);
        let layers = number("num_hidden_layers").unwrap_or(0);
        Needs {
            weight_bytes: self.headers.iter().map(|header| header.file_bytes).sum(),
            token_bytes: [layers, kv_heads, head, KEY_AND_VALUE, F32].into_iter().fold(1, u64::saturating_mul),
        }
    }

    /// The text of a token.
    fn token(&self, id: u32) -> Option<&str> {
        let is_it = |value: &Value| value.as_u64() == Some(id.into());
        let added = self.added_tokens().iter().find(|token| token.get("id").is_some_and(is_it));
        if let Some(token) = added {
            return token.get("content")?.as_str();
        }
        match self.tokenizer.pointer("/model/vocab")? {
            Value::Object(tokens) => tokens.iter().find(|(_, id)| is_it(id)).map(|(text, _)| text.as_str()),
            tokens => tokens.get(id as usize)?.get(0)?.as_str(),
        }
    }

    fn added_tokens(&self) -> &[Value] {
        self.tokenizer.get("added_tokens").and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    fn configured_end_tokens(&self) -> impl Iterator<Item = (&'static str, u32)> + '_ {
        let files = [("config.json", &self.config), ("generation_config.json", &self.generation_config)];
        files.into_iter().flat_map(|(file, json)| {
            let field = json.get("eos_token_id").unwrap_or(&Value::Null);
            let ids = field.as_array().map_or(std::slice::from_ref(field), Vec::as_slice);
            ids.iter().filter_map(move |id| Some((file, u32::try_from(id.as_u64()?).ok()?)))
        })
    }

    /// mistral.rs panics where a special token is not in the vocabulary.
    fn check_special_tokens(&self) -> Result<(), SafetensorsError> {
        let vocabulary = self.tokenizer.pointer("/model/vocab").unwrap_or(&Value::Null);
        let added = |text: &str| {
            self.added_tokens().iter().any(|token| token.get("content").and_then(Value::as_str) == Some(text))
        };
        let is_there = |text: &str| match vocabulary {
            Value::Object(tokens) => tokens.contains_key(text) || added(text),
            Value::Array(tokens) => {
                tokens.iter().any(|token| token.get(0).and_then(Value::as_str) == Some(text)) || added(text)
            }
            _ => added(text),
        };
        if let Some(text) = self.special_token("eos_token").filter(|text| !is_there(text)) {
            return Err(SafetensorsError::File {
                file: "tokenizer_config.json".to_owned(),
                reason: format!(
                    "its eos_token {text:?} is not in the vocabulary of tokenizer.json: correct one of them"
                ),
            });
        }
        let size = self.vocabulary_size(vocabulary);
        if let Some((file, id)) = self.configured_end_tokens().find(|(_, id)| u64::from(*id) >= size) {
            return Err(SafetensorsError::File {
                file: file.to_owned(),
                reason: format!("its eos_token_id is {id}, and there are {size} tokens: correct it"),
            });
        }
        Ok(())
    }

    /// One more than the largest id.
    fn vocabulary_size(&self, vocabulary: &Value) -> u64 {
        let largest = |ids: &mut dyn Iterator<Item = u64>| ids.max().map_or(0, |id| id + 1);
        let own = match vocabulary {
            Value::Object(tokens) => largest(&mut tokens.values().filter_map(Value::as_u64)),
            Value::Array(tokens) => tokens.len() as u64,
            _ => 0,
        };
        own.max(largest(&mut self.added_tokens().iter().filter_map(|token| token.get("id")?.as_u64())))
    }
}

/// The files that hold the weights: those of the index, or parts by their names, or the one file.
fn weight_files(folder: &Path, index: &Value) -> Result<Vec<PathBuf>, SafetensorsError> {
    let present: BTreeSet<String> = std::fs::read_dir(folder)
        .map_err(|error| SafetensorsError::File { file: folder.display().to_string(), reason: error.to_string() })?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_str()?.to_owned()))
        .filter(|name| name.ends_with(".safetensors") && folder.join(name).is_file())
        .collect();
    let indexed = index.get("weight_map").and_then(Value::as_object);
    let indexed: Option<BTreeSet<String>> =
        indexed.map(|map| map.values().filter_map(|file| file.as_str().map(ToOwned::to_owned)).collect());
    let wanted = indexed.unwrap_or_else(|| {
        let by_number = present.iter().find_map(|name| numbered(name));
        let alone = ["model.safetensors", "consolidated.safetensors"].into_iter().find(|name| present.contains(*name));
        let all_parts = |count: usize| (1..=count).map(|n| format!("model-{n:05}-of-{count:05}.safetensors")).collect();
        by_number.map_or_else(|| BTreeSet::from([alone.unwrap_or("model.safetensors").to_owned()]), all_parts)
    });
    let missing: Vec<String> = wanted.difference(&present).cloned().collect();
    if !missing.is_empty() {
        return Err(SafetensorsError::Missing { missing });
    }
    Ok(wanted.iter().map(|name| folder.join(name)).collect())
}

/// Of how many parts this is one.
fn numbered(name: &str) -> Option<usize> {
    let (number, count) = name.strip_prefix("model-")?.strip_suffix(".safetensors")?.split_once("-of-")?;
    let is_part = number.len() == 5 && count.len() == 5 && number.parse::<usize>().is_ok();
    is_part.then(|| count.parse().ok()).flatten()
}

/// Bytes of a JSON file that are read: vocabularies take up to some 30 MB.
const MAX_JSON_BYTES: u64 = 256 << 20;

fn read_json(folder: &Path, file: &str) -> Result<Value, SafetensorsError> {
    let wrong = |reason: String| SafetensorsError::File { file: file.to_owned(), reason };
    let path = folder.join(file);
    let input = File::open(&path).map_err(|error| wrong(error.to_string()))?;
    let json = serde_json::from_reader(BufReader::new(input.take(MAX_JSON_BYTES)));
    json.map_err(|error| wrong(format!("it is no JSON ({error}): download it again")))
}

impl Header {
    fn read(path: &Path) -> Result<Self, SafetensorsError> {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let wrong = |reason: String| SafetensorsError::File { file: file.clone(), reason };
        let read = || -> std::io::Result<(u64, u64, Vec<u8>)> {
            let mut input = File::open(path)?;
            let file_bytes = input.metadata()?.len();
            let mut length = [0; 8];
            input.read_exact(&mut length)?;
            let length = u64::from_le_bytes(length);
            let mut header = Vec::new();
            if length <= MAX_HEADER_BYTES {
                input.take(length).read_to_end(&mut header)?;
            }
            Ok((file_bytes, length, header))
        };
        let (file_bytes, length, header) = read().map_err(|error| wrong(error.to_string()))?;
        if header.len() as u64 != length {
            return Err(wrong("it is cut short, or no safetensors file: download it again".to_owned()));
        }
        let no_header = |error| wrong(format!("its header is damaged ({error}): download it again"));
        let mut json: BTreeMap<String, Value> = serde_json::from_slice(&header).map_err(no_header)?;
        json.remove("__metadata__");
        let (mut tensors, data_offset) = (BTreeMap::new(), 8 + length);
        for (name, value) in json {
            let entry: Entry = serde_json::from_value(value).map_err(no_header)?;
            let (begin, end) = entry.data_offsets;
            let need = data_offset.saturating_add(end);
            if begin > end || need > file_bytes {
                return Err(wrong(format!(
                    "it is cut short: {file_bytes} bytes, and its tensor {name} ends at {need}; download it again"
                )));
            }
            tensors.insert(name, entry);
        }
        Ok(Self { path: path.to_owned(), file_bytes, data_offset, tensors })
    }

    fn tensors(&self) -> impl Iterator<Item = Tensor<'_>> {
        self.tensors.iter().map(|(name, entry)| Tensor {
            name,
            kind: entry.dtype.clone(),
            shape: &entry.shape,
            path: &self.path,
            offset: self.data_offset + entry.data_offsets.0,
            bytes: entry.data_offsets.1 - entry.data_offsets.0,
        })
    }
}
