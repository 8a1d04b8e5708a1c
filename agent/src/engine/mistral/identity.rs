//! What a model is: how many parameters, how they are quantised, and a digest by which two agents find out that they have the same.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use aws_lc_rs::digest::{Context, SHA256};
use candle_core::quantized::gguf_file::Value;

use super::{gguf::Gguf, safetensors::Safetensors};

/// A tensor, and where its weights lie.
pub(super) struct Tensor<'a> {
    pub(super) name: &'a str,
    /// Such as `Q4_K` or `BF16`.
    pub(super) kind: String,
    pub(super) shape: &'a [usize],
    pub(super) path: &'a Path,
    /// From the beginning of its file.
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// What [`titan_proto::v1::ModelInfo`] says about the weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) architecture: String,
    pub(super) parameters: u64,
    pub(super) quantization: String,
    /// 64 hexadecimal digits.
    pub(super) digest: String,
}

impl Identity {
    /// Of a GGUF model, with the template that it is given.
    pub(super) fn of_gguf(gguf: &Gguf, template: &str) -> io::Result<Self> {
        let mut digest = Digest::new();
        digest.text(gguf.architecture());
        for (key, value) in gguf.settings() {
            digest.text(key);
            digest.value(value);
        }
        digest.text(template);
        Self::of(gguf.architecture(), gguf.tensors(), None, digest)
    }

    /// Of a directory of safetensors. `quantized`: the type that its weights are brought to when they are loaded.
    pub(super) fn of_safetensors(model: &Safetensors, template: &str, quantized: Option<&str>) -> io::Result<Self> {
        let mut digest = Digest::new();
        digest.text(model.architecture());
        for json in model.settings() {
            // The fields of an object are in one order, whatever the file's.
            digest.text(&sorted(json).to_string());
        }
        digest.text(template);
        digest.text(quantized.unwrap_or_default());
        Self::of(model.architecture(), model.tensors(), quantized, digest)
    }

    fn of(
        architecture: &str,
        mut tensors: Vec<Tensor<'_>>,
        quantized: Option<&str>,
        mut digest: Digest,
    ) -> io::Result<Self> {
        // In one order, however they are spread over files.
        tensors.sort_unstable_by_key(|tensor| tensor.name);
        let (mut parameters, mut bytes_of) = (0u64, HashMap::<&str, u64>::new());
        let mut open: Option<(&Path, File)> = None;
        for tensor in &tensors {
            let elements = tensor.shape.iter().fold(1, |product: u64, side| product.saturating_mul(*side as u64));
            parameters = parameters.saturating_add(elements);
            *bytes_of.entry(&tensor.kind).or_default() += tensor.bytes;
            let file = match &mut open {
                Some((path, file)) if *path == tensor.path => file,
                other => &mut other.insert((tensor.path, File::open(tensor.path)?)).1,
            };
            digest.tensor(tensor, file)?;
        }
        let most = bytes_of.into_iter().max_by_key(|(kind, bytes)| (*bytes, *kind)).map(|(kind, _)| kind.to_owned());
        Ok(Self {
            architecture: architecture.to_owned(),
            parameters,
            quantization: quantized.map(ToOwned::to_owned).or(most).unwrap_or_default(),
            digest: digest.finish(),
        })
    }
}

/// SHA-256 over names, types, shapes and settings, and of each tensor over a sample of its weights: the whole of a large model would take minutes to
/// read, and one that was trained further differs in every one of its large tensors.
struct Digest(Context);

/// Pieces of a tensor that are read, evenly spread from its beginning to its end.
const PIECES: u64 = 16;
/// Bytes of a piece. Tensors up to 64 kB are read as a whole.
const PIECE_BYTES: u64 = 4096;

impl Digest {
    fn new() -> Self {
        let mut digest = Self(Context::new(&SHA256));
        // Whoever changes what goes in changes this.
        digest.text("titancompute model digest 1");
        digest
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text.as_bytes());
    }

    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::U8(number) => self.number((*number).into()),
            Value::U16(number) => self.number((*number).into()),
            Value::U32(number) => self.number((*number).into()),
            Value::U64(number) => self.number(*number),
            Value::I8(number) => self.number(i64::from(*number).cast_unsigned()),
            Value::I16(number) => self.number(i64::from(*number).cast_unsigned()),
            Value::I32(number) => self.number(i64::from(*number).cast_unsigned()),
            Value::I64(number) => self.number(number.cast_unsigned()),
            Value::F32(number) => self.number(number.to_bits().into()),
            Value::F64(number) => self.number(number.to_bits()),
            Value::Bool(value) => self.number((*value).into()),
            Value::String(text) => self.text(text),
            Value::Array(values) => {
                self.number(values.len() as u64);
                for value in values {
                    self.value(value);
                }
            }
        }
    }

    fn tensor(&mut self, tensor: &Tensor<'_>, file: &mut File) -> io::Result<()> {
        self.text(tensor.name);
        self.text(&tensor.kind);
        self.number(tensor.shape.len() as u64);
        for side in tensor.shape {
            self.number(*side as u64);
        }
        self.number(tensor.bytes);
        for (begin, length) in pieces(tensor.bytes) {
            file.seek(SeekFrom::Start(tensor.offset + begin))?;
            let mut piece = vec![0; length as usize];
            file.read_exact(&mut piece)?;
            self.0.update(&piece);
        }
        Ok(())
    }

    fn finish(self) -> String {
        self.0.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Where the pieces of a tensor begin, and how long each is.
fn pieces(bytes: u64) -> Vec<(u64, u64)> {
    if bytes <= PIECES * PIECE_BYTES {
        return vec![(0, bytes)];
    }
    (0..PIECES).map(|piece| ((bytes - PIECE_BYTES) / (PIECES - 1) * piece, PIECE_BYTES)).collect()
}

/// With the fields of all objects in the order of their names.
fn sorted(json: serde_json::Value) -> serde_json::Value {
    match json {
        serde_json::Value::Object(fields) => {
            let mut fields: Vec<_> = fields.into_iter().map(|(name, value)| (name, sorted(value))).collect();
            fields.sort_by(|(one, _), (other, _)| one.cmp(other));
            fields.into_iter().collect()
        }
        serde_json::Value::Array(values) => values.into_iter().map(sorted).collect(),
        other => other,
    }
}
