//! The header of a GGUF file, as far as it is needed before loading: is the file whole, how much memory will it take, which texts are control tokens.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Read, Seek},
    path::Path,
};

use super::{
    template::SpecialTokens,
    vocabulary::{Spelling, TokenKind},
};

/// What a GGUF file says about itself.
#[derive(Debug)]
pub(super) struct Gguf {
    metadata: HashMap<String, Value>,
    /// Bytes of the file.
    pub(super) file_bytes: u64,
}

/// Why a file is not a GGUF file that can be loaded.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file cannot be opened or read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The first four bytes are others.
    #[error("it does not begin with \"GGUF\": this is no GGUF file")]
    NotGguf,
    /// A version that nobody knows here.
    #[error("it is GGUF version {0}; versions 2 and 3 can be read")]
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
    Damaged(&'static str),
}

impl Gguf {
    /// Reads the header. Reads a few MB at most for usual models: the vocabulary is in it.
    pub(super) fn open(path: &Path) -> Result<Self, GgufError> {
        let file = File::open(path)?;
        let file_bytes = file.metadata()?.len();
        Header { input: BufReader::with_capacity(1 << 20, file), file_bytes }.read()
    }

    /// A number under the architecture's own prefix, such as `context_length`.
    pub(super) fn number(&self, key: &str) -> Option<u64> {
        let Some(Value::Text(architecture)) = self.metadata.get("general.architecture") else { return None };
        self.metadata.get(&format!("{architecture}.{key}"))?.number()
    }

    /// Tokens in the vocabulary.
    pub(super) fn vocabulary_len(&self) -> usize {
        self.texts("tokenizer.ggml.tokens").map_or(0, <[String]>::len)
    }

    /// The chat template is in the file.
    pub(super) fn has_chat_template(&self) -> bool {
        self.metadata.contains_key("tokenizer.chat_template")
    }

    pub(super) fn chat_template(&self) -> Option<&str> {
        match self.metadata.get("tokenizer.chat_template") {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The tokens, their kinds, and how they are spelled.
    pub(super) fn tokens(&self) -> (Vec<String>, Vec<TokenKind>, Spelling) {
        let names = self.texts("tokenizer.ggml.tokens").unwrap_or_default().to_vec();
        let kinds = match self.metadata.get("tokenizer.ggml.token_type") {
            Some(Value::Numbers(kinds)) => kinds.iter().map(|kind| TokenKind::from_gguf(*kind as i64)).collect(),
            _ => Vec::new(),
        };
        let spelling = match self.metadata.get("tokenizer.ggml.model") {
            Some(Value::Text(model)) if model == "gpt2" => Spelling::ByteLevel,
            _ => Spelling::SentencePiece,
        };
        (names, kinds, spelling)
    }

    pub(super) fn special_tokens(&self) -> SpecialTokens {
        let named = |name: &str| {
            let id = self.metadata.get(&format!("tokenizer.ggml.{name}_token_id"))?.number()?;
            self.texts("tokenizer.ggml.tokens")?.get(usize::try_from(id).ok()?).cloned()
        };
        SpecialTokens { bos: named("bos"), eos: named("eos"), unk: named("unknown") }
    }

    fn texts(&self, key: &str) -> Option<&[String]> {
        match self.metadata.get(key) {
            Some(Value::Texts(texts)) => Some(texts),
            _ => None,
        }
    }
}

#[derive(Debug)]
enum Value {
    Number(u64),
    Text(String),
    Numbers(Vec<u64>),
    Texts(Vec<String>),
    /// Floats, booleans, and arrays of them: nothing here asks for one.
    Other,
}

impl Value {
    fn number(&self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(*number),
            // Some architectures give one value a layer; the largest is what memory is reckoned by.
            Self::Numbers(numbers) => numbers.iter().copied().max(),
            _ => None,
        }
    }
}

struct Header<R> {
    input: R,
    file_bytes: u64,
}

/// A tensor has one to four dimensions.
const MAX_DIMENSIONS: u32 = 4;
/// Largest number of metadata entries and of tensors that is believed; the largest models have some thousands.
const MAX_ENTRIES: u64 = 1_000_000;

impl<R: Read + Seek> Header<R> {
    fn read(mut self) -> Result<Gguf, GgufError> {
        let mut magic = [0; 4];
        self.input.read_exact(&mut magic).map_err(|_| GgufError::NotGguf)?;
        if &magic != b"GGUF" {
            return Err(GgufError::NotGguf);
        }
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            return Err(GgufError::Version(version));
        }
        let (tensors, entries) = (self.u64()?, self.u64()?);
        if tensors > MAX_ENTRIES || entries > MAX_ENTRIES {
            return Err(GgufError::Damaged("impossible counts"));
        }
        let mut metadata = HashMap::new();
        for _ in 0..entries {
            let key = self.text()?;
            let kind = self.u32()?;
            let value = self.value(kind)?;
            metadata.insert(key, value);
        }
        let mut last_offset = 0;
        for _ in 0..tensors {
            last_offset = last_offset.max(self.tensor_offset()?);
        }
        let alignment = metadata.get("general.alignment").and_then(Value::number).unwrap_or(32).max(1);
        let data = self.input.stream_position()?.next_multiple_of(alignment);
        // At least one byte of the last tensor. Its exact size would need a table of all quantisations; the loader checks the rest.
        let need = data.saturating_add(last_offset).saturating_add(1);
        if tensors > 0 && need > self.file_bytes {
            return Err(GgufError::Truncated { have: self.file_bytes, need });
        }
        Ok(Gguf { metadata, file_bytes: self.file_bytes })
    }

    fn tensor_offset(&mut self) -> Result<u64, GgufError> {
        self.text()?;
        let dimensions = self.u32()?;
        if dimensions > MAX_DIMENSIONS {
            return Err(GgufError::Damaged("a tensor of more than four dimensions"));
        }
        for _ in 0..dimensions {
            self.u64()?;
        }
        self.u32()?;
        self.u64()
    }

    fn value(&mut self, kind: u32) -> Result<Value, GgufError> {
        Ok(match kind {
            0 => Value::Number(u64::from(self.bytes::<1>()?[0])),
            2 => Value::Number(u64::from(u16::from_le_bytes(self.bytes()?))),
            4 => Value::Number(u64::from(self.u32()?)),
            5 => u64::try_from(i32::from_le_bytes(self.bytes()?)).map_or(Value::Other, Value::Number),
            10 => Value::Number(self.u64()?),
            11 => u64::try_from(i64::from_le_bytes(self.bytes()?)).map_or(Value::Other, Value::Number),
            8 => Value::Text(self.text()?),
            9 => self.array()?,
            1 | 7 => self.skip(1)?,
            3 => self.skip(2)?,
            6 => self.skip(4)?,
            12 => self.skip(8)?,
            _ => return Err(GgufError::Damaged("an unknown type of value")),
        })
    }

    fn array(&mut self) -> Result<Value, GgufError> {
        let kind = self.u32()?;
        let length = self.u64()?;
        // Each element is one byte at least: no honest array is longer than the file, and no memory is reserved for one that is.
        if length > self.file_bytes {
            return Err(GgufError::Truncated { have: self.file_bytes, need: length });
        }
        match kind {
            8 => (0..length).map(|_| self.text()).collect::<Result<_, _>>().map(Value::Texts),
            0 | 2 | 4 | 5 | 10 | 11 => {
                let numbers = (0..length).map(|_| self.value(kind).map(|value| value.number().unwrap_or(0)));
                numbers.collect::<Result<_, _>>().map(Value::Numbers)
            }
            9 => Err(GgufError::Damaged("an array of arrays")),
            _ => {
                for _ in 0..length {
                    self.value(kind)?;
                }
                Ok(Value::Other)
            }
        }
    }

    fn text(&mut self) -> Result<String, GgufError> {
        let length = self.u64()?;
        let position = self.input.stream_position()?;
        if length > self.file_bytes.saturating_sub(position) {
            return Err(GgufError::Truncated { have: self.file_bytes, need: position.saturating_add(length) });
        }
        let mut bytes =
            vec![0; usize::try_from(length).map_err(|_| GgufError::Damaged("a text of impossible length"))?];
        self.fill(&mut bytes)?;
        // Vocabularies of some models hold tokens that are no UTF-8.
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn skip(&mut self, bytes: i64) -> Result<Value, GgufError> {
        self.input.seek_relative(bytes)?;
        Ok(Value::Other)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), GgufError> {
        match self.input.read_exact(bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(GgufError::Truncated { have: self.file_bytes, need: self.file_bytes.saturating_add(1) })
            }
            other => Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::io::Cursor;

    fn text(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }

    fn sample() -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend(1u64.to_le_bytes());
        out.extend(4u64.to_le_bytes());
        text(&mut out, "general.architecture");
        out.extend(8u32.to_le_bytes());
        text(&mut out, "llama");
        text(&mut out, "llama.context_length");
        out.extend(4u32.to_le_bytes());
        out.extend(2048u32.to_le_bytes());
        text(&mut out, "tokenizer.ggml.tokens");
        out.extend(9u32.to_le_bytes());
        out.extend(8u32.to_le_bytes());
        out.extend(3u64.to_le_bytes());
        for token in ["<|start|>", "a", "<0x0A>"] {
            text(&mut out, token);
        }
        text(&mut out, "tokenizer.ggml.token_type");
        out.extend(9u32.to_le_bytes());
        out.extend(5u32.to_le_bytes());
        out.extend(3u64.to_le_bytes());
        for kind in [3i32, 1, 6] {
            out.extend(kind.to_le_bytes());
        }
        text(&mut out, "token_embd.weight");
        out.extend(1u32.to_le_bytes());
        out.extend(8u64.to_le_bytes());
        out.extend(0u32.to_le_bytes());
        out.extend(0u64.to_le_bytes());
        out.resize(out.len().next_multiple_of(32) + 32, 0);
        out
    }

    fn read(bytes: &[u8]) -> Result<Gguf, GgufError> {
        Header { input: BufReader::new(Cursor::new(bytes)), file_bytes: bytes.len() as u64 }.read()
    }

    #[test]
    fn the_header_gives_the_context_and_the_control_tokens() {
        let gguf = read(&sample()).unwrap();
        assert_eq!(gguf.number("context_length"), Some(2048));
        assert_eq!(gguf.vocabulary_len(), 3);
        assert!(!gguf.has_chat_template());
    }

    #[test]
    fn a_file_cut_at_any_place_is_an_error() {
        let sample = sample();
        for length in 0..sample.len() - 32 {
            let error = read(&sample[..length]).unwrap_err();
            assert!(matches!(error, GgufError::NotGguf | GgufError::Truncated { .. }), "{length}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn damaged_bytes_never_panic(at in 4usize..400, value: u8) {
            let mut bytes = sample();
            let at = at % bytes.len();
            bytes[at] = value;
            let _ = read(&bytes);
        }
    }
}
