//! Writes GGUF files, right ones and wrong ones.

use std::path::{Path, PathBuf};

use super::{BOS, EOS, SmallModel, Tokens};

/// A value in a header.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    U16(u16),
    U32(u32),
    U64(u64),
    I32(i32),
    F32(f32),
    Bool(bool),
    /// Bytes, which need not be UTF-8.
    Text(Vec<u8>),
    Texts(Vec<Vec<u8>>),
    I32s(Vec<i32>),
    U32s(Vec<u32>),
    F32s(Vec<f32>),
}

impl Value {
    pub(crate) fn text(text: &str) -> Self {
        Self::Text(text.as_bytes().to_vec())
    }

    fn kind(&self) -> u32 {
        match self {
            Self::U16(_) => 2,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::Text(_) => 8,
            Self::U64(_) => 10,
            Self::Texts(_) | Self::I32s(_) | Self::U32s(_) | Self::F32s(_) => 9,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let array = |out: &mut Vec<u8>, kind: u32, length: usize| {
            out.extend(kind.to_le_bytes());
            out.extend((length as u64).to_le_bytes());
        };
        match self {
            Self::U16(value) => out.extend(value.to_le_bytes()),
            Self::U32(value) => out.extend(value.to_le_bytes()),
            Self::U64(value) => out.extend(value.to_le_bytes()),
            Self::I32(value) => out.extend(value.to_le_bytes()),
            Self::F32(value) => out.extend(value.to_le_bytes()),
            Self::Bool(value) => out.push(u8::from(*value)),
            Self::Text(text) => bytes(out, text),
            Self::Texts(texts) => {
                array(out, 8, texts.len());
                texts.iter().for_each(|text| bytes(out, text));
            }
            Self::I32s(values) => {
                array(out, 5, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
            Self::U32s(values) => {
                array(out, 4, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
            Self::F32s(values) => {
                array(out, 6, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
        }
    }
}

fn bytes(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}

/// Types of weights. All weights here are 0 or 1.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    F32,
    F16,
    Bf16,
    Q8_0,
}

impl Kind {
    fn number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 8,
            Self::Bf16 => 30,
        }
    }

    fn encode(self, values: &[f32]) -> Vec<u8> {
        let each = |one: &[u8]| {
            values.iter().flat_map(|value| one.iter().map(|byte| if *value == 1.0 { *byte } else { 0 })).collect()
        };
        match self {
            Self::F32 => each(&1f32.to_le_bytes()),
            Self::F16 => each(&0x3c00u16.to_le_bytes()),
            Self::Bf16 => each(&0x3f80u16.to_le_bytes()),
            // A scale of 1/127 as 16-bit number, and 32 numbers of which 127 is the largest.
            Self::Q8_0 => {
                let block = |block: &[f32]| {
                    [vec![0x08, 0x20], block.iter().map(|value| (*value as u8) * 127).collect()].concat()
                };
                values.chunks(32).flat_map(block).collect()
            }
        }
    }
}

/// A file before it is written.
#[derive(Clone)]
pub(crate) struct GgufFile {
    pub(crate) entries: Vec<(String, Value)>,
    pub(crate) tensors: Vec<Weights>,
}

/// A tensor before it is written.
#[derive(Clone)]
pub(crate) struct Weights {
    pub(crate) name: String,
    /// The length of a row first.
    pub(crate) shape: Vec<u64>,
    /// The number of its type.
    pub(crate) kind: u32,
    pub(crate) data: Vec<u8>,
}

impl SmallModel {
    /// A llama with 32-bit weights.
    pub(crate) fn gguf(&self) -> GgufFile {
        self.gguf_of("llama", Kind::F32)
    }

    /// Of an architecture that is made like a llama, with embedding and output in this type.
    pub(crate) fn gguf_of(&self, architecture: &str, kind: Kind) -> GgufFile {
        let mut file = GgufFile { entries: Vec::new(), tensors: Vec::new() };
        let width = self.width();
        file.set("general.architecture", Value::text(architecture));
        for (key, value) in [
            ("block_count", 1),
            ("embedding_length", width as u32),
            ("feed_forward_length", width as u32),
            ("attention.head_count", 1),
            ("attention.head_count_kv", 1),
            ("rope.dimension_count", width as u32),
            ("context_length", 2048),
        ] {
            file.set(&format!("{architecture}.{key}"), Value::U32(value));
        }
        file.set(&format!("{architecture}.attention.layer_norm_rms_epsilon"), Value::F32(1e-5));
        file.set("tokenizer.ggml.model", Value::text(self.tokenizer.name()));
        file.set(
            "tokenizer.ggml.tokens",
            Value::Texts(self.tokens.iter().map(|(text, _)| text.clone().into_bytes()).collect()),
        );
        file.set("tokenizer.ggml.token_type", Value::I32s(self.tokens.iter().map(|(_, kind)| *kind).collect()));
        match self.tokenizer {
            Tokens::SentencePiece => file.set("tokenizer.ggml.scores", Value::F32s(vec![-1.0; self.tokens.len()])),
            Tokens::ByteLevel => file.set("tokenizer.ggml.merges", Value::Texts(Vec::new())),
        }
        file.set("tokenizer.ggml.bos_token_id", Value::U32(BOS));
        file.set("tokenizer.ggml.eos_token_id", Value::U32(EOS));
        file.set("tokenizer.ggml.unknown_token_id", Value::U32(0));
        if let Some(template) = &self.template {
            file.set("tokenizer.chat_template", Value::text(template));
        }
        let vocabulary = self.tokens.len();
        file.matrix("token_embd.weight", &self.embedding(), vocabulary, width, kind);
        file.matrix("output.weight", &self.output(), vocabulary, width, kind);
        for norm in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"] {
            file.vector(&format!("{norm}.weight"), &vec![1.0; width]);
        }
        for part in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"] {
            file.matrix(&format!("blk.0.{part}.weight"), &vec![0.0; width * width], width, width, Kind::F32);
        }
        let more: &[(&str, f32)] = match architecture {
            "qwen2" => &[("attn_q.bias", 0.0), ("attn_k.bias", 0.0), ("attn_v.bias", 0.0)],
            "qwen3" => &[("attn_q_norm.weight", 1.0), ("attn_k_norm.weight", 1.0)],
            _ => &[],
        };
        for (name, value) in more {
            file.vector(&format!("blk.0.{name}"), &vec![*value; width]);
        }
        file
    }
}

impl GgufFile {
    /// Puts a value in, in place of the one that is there.
    pub(crate) fn set(&mut self, key: &str, value: Value) {
        self.remove(key);
        self.entries.push((key.to_owned(), value));
    }

    pub(crate) fn remove(&mut self, key: &str) {
        self.entries.retain(|(other, _)| other != key);
    }

    /// The tensor of this name.
    pub(crate) fn tensor(&mut self, name: &str) -> &mut Weights {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
    }

    fn matrix(&mut self, name: &str, values: &[f32], rows: usize, columns: usize, kind: Kind) {
        let shape = vec![columns as u64, rows as u64];
        self.tensors.push(Weights { name: name.to_owned(), shape, kind: kind.number(), data: kind.encode(values) });
    }

    fn vector(&mut self, name: &str, values: &[f32]) {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensors.push(Weights { name: name.to_owned(), shape: vec![values.len() as u64], kind: 0, data });
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            bytes(&mut out, key.as_bytes());
            out.extend(value.kind().to_le_bytes());
            value.write(&mut out);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            bytes(&mut out, tensor.name.as_bytes());
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().for_each(|side| out.extend(side.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset = (offset + tensor.data.len() as u64).next_multiple_of(32);
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(&tensor.data);
        }
        out
    }

    /// Writes it as one file.
    pub(crate) fn write(&self, path: &Path) -> PathBuf {
        std::fs::write(path, self.bytes()).unwrap();
        path.to_owned()
    }

    /// Writes it in `count` parts, the header's values in the first one, and gives their paths.
    pub(crate) fn write_parts(&self, folder: &Path, name: &str, count: usize) -> Vec<PathBuf> {
        let part = |number: usize| {
            let entries = if number == 0 { self.entries.clone() } else { Vec::new() };
            let tensors = self.tensors.iter().skip(number).step_by(count).cloned().collect();
            let mut part = Self { entries, tensors };
            part.set("split.no", Value::U16(number as u16));
            part.set("split.count", Value::U16(count as u16));
            part.write(&folder.join(format!("{name}-{:05}-of-{count:05}.gguf", number + 1)))
        };
        (0..count).map(part).collect()
    }
}
