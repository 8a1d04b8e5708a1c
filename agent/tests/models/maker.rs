//! Makes models of some 100 kB that say a text that is known beforehand.
//!
//! One layer of a llama whose attention and feed-forward add nothing, so that the next token follows from the last one alone: the embedding tells
//! which piece of the script a token is (or that it is none), and the output weights give the piece that comes then, and the end token after the
//! last one. So an answer is the script, whatever was asked.

#![allow(dead_code, reason = "each test that includes this file uses a part of it")]

// Named, since other packages' tests take this file in by its path.
#[path = "maker/gguf.rs"]
mod gguf;
#[path = "maker/safetensors.rs"]
mod safetensors;

#[allow(unused_imports)]
pub(crate) use gguf::{GgufFile, Kind, Value};

/// Kinds of tokens, in the numbers of `tokenizer.ggml.token_type`.
pub(crate) const NORMAL: i32 = 1;
pub(crate) const UNKNOWN: i32 = 2;
pub(crate) const CONTROL: i32 = 3;
pub(crate) const USER_DEFINED: i32 = 4;
pub(crate) const UNUSED: i32 = 5;
pub(crate) const BYTE: i32 = 6;

/// A piece of what a model says: one token.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Piece {
    /// An ordinary token.
    Text(&'static str),
    /// A token that is one byte.
    Byte(u8),
    /// A token of another kind, such as a user-defined one.
    Of(i32, &'static str),
}

/// The two tokenizers that GGUF files have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tokens {
    /// SentencePiece, `llama` in GGUF: spaces are `▁`, bytes are tokens such as `<0x0A>`.
    SentencePiece,
    /// Byte-level BPE, `gpt2` in GGUF: each byte is a character.
    ByteLevel,
}

/// A line with every kind of token, and what is to come out.
pub(crate) const SCRIPT: [Piece; 14] = [
    Piece::Text("h"),
    Piece::Text("e"),
    Piece::Text("l"),
    // Hidden, and the text goes on behind it.
    Piece::Of(UNUSED, "<unused0>"),
    Piece::Text("o"),
    Piece::Byte(b'\n'),
    Piece::Byte(0xf0),
    Piece::Byte(0x9f),
    Piece::Byte(0x98),
    Piece::Byte(0x80),
    Piece::Text(" the"),
    Piece::Of(USER_DEFINED, "<tool_call>"),
    Piece::Of(CONTROL, "<|hidden|>"),
    Piece::Text("."),
];

/// What [`SCRIPT`] says.
pub(crate) const SAID: &str = "helo\n😀 the<tool_call>.";

/// A conversation between control tokens, with tools.
pub(crate) const TEMPLATE: &str = "{{ bos_token }}{% if tools %}<|system|>{{ tools | tojson }}{{ eos_token }}{% endif %}\
{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\
{% for call in message.tool_calls or [] %}<tool_call>{{ call.function.name }}{% endfor %}{{ eos_token }}{% endfor %}\
{% if add_generation_prompt %}<|assistant|>{% endif %}";

pub(crate) const BOS: u32 = 1;
pub(crate) const EOS: u32 = 2;

/// A model before it is written.
#[derive(Clone)]
pub(crate) struct SmallModel {
    pub(crate) tokenizer: Tokens,
    /// Texts as the vocabulary has them, and kinds.
    pub(crate) tokens: Vec<(String, i32)>,
    pub(crate) script: Vec<u32>,
    pub(crate) template: Option<String>,
}

impl SmallModel {
    /// Says [`SAID`].
    pub(crate) fn new(tokenizer: Tokens) -> Self {
        Self::saying(tokenizer, &SCRIPT)
    }

    /// Says these pieces, each of them once.
    pub(crate) fn saying(tokenizer: Tokens, script: &[Piece]) -> Self {
        let mut tokens: Vec<(String, i32)> = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
            .map(|(text, kind)| (text.to_owned(), kind))
            .into();
        for role in ["system", "developer", "user", "assistant", "tool"] {
            tokens.push((format!("<|{role}|>"), CONTROL));
        }
        tokens.extend((0..=255).map(|byte| tokenizer.byte(byte)));
        let mut model = Self { tokenizer, tokens, script: Vec::new(), template: Some(TEMPLATE.to_owned()) };
        for piece in script {
            let (text, kind) = match *piece {
                Piece::Text(text) => (tokenizer.text(text), NORMAL),
                Piece::Byte(byte) => tokenizer.byte(byte),
                Piece::Of(kind, text) => (text.to_owned(), kind),
            };
            let id = model.token(&text, kind);
            assert!(!model.script.contains(&id), "{text:?} comes twice, and the model knows only the last token");
            model.script.push(id);
        }
        model
    }

    pub(crate) fn template(mut self, template: &str) -> Self {
        self.template = Some(template.to_owned());
        self
    }

    pub(crate) fn without_template(mut self) -> Self {
        self.template = None;
        self
    }

    /// Numbers in a row of weights: one for each piece and one for all other tokens, in whole blocks of Q8_0.
    pub(crate) fn width(&self) -> usize {
        (self.script.len() + 1).next_multiple_of(32)
    }

    /// What a token is to the model: the number of a piece from 1 on, or 0.
    fn state(&self, id: u32) -> usize {
        self.script.iter().position(|piece| *piece == id).map_or(0, |at| at + 1)
    }

    /// A row for each token, a 1 where its state is.
    pub(crate) fn embedding(&self) -> Vec<f32> {
        self.rows(|id, state| self.state(id) == state)
    }

    /// A row for each token, a 1 at the states that it follows.
    pub(crate) fn output(&self) -> Vec<f32> {
        self.rows(|id, state| match self.script.get(state) {
            Some(next) => *next == id,
            None => state == self.script.len() && id == EOS,
        })
    }

    fn rows(&self, is_set: impl Fn(u32, usize) -> bool) -> Vec<f32> {
        let width = self.width();
        let cell = |id: u32, column: usize| f32::from(u8::from(is_set(id, column)));
        (0..self.tokens.len() as u32)
            .flat_map(|id| (0..width).map(move |column| (id, column)))
            .map(|(id, column)| cell(id, column))
            .collect()
    }

    fn token(&mut self, text: &str, kind: i32) -> u32 {
        let at = self.tokens.iter().position(|(other, _)| other == text).unwrap_or_else(|| {
            self.tokens.push((text.to_owned(), kind));
            self.tokens.len() - 1
        });
        at as u32
    }
}

impl Tokens {
    /// The name of this tokenizer in GGUF files.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::SentencePiece => "llama",
            Self::ByteLevel => "gpt2",
        }
    }

    fn byte(self, byte: u8) -> (String, i32) {
        match self {
            Self::SentencePiece => (format!("<0x{byte:02X}>"), BYTE),
            Self::ByteLevel => (byte_character(byte).to_string(), NORMAL),
        }
    }

    fn text(self, text: &str) -> String {
        match self {
            Self::SentencePiece => text.replace(' ', "▁"),
            Self::ByteLevel => text.bytes().map(byte_character).collect(),
        }
    }
}

/// The character that stands for a byte in a byte-level vocabulary: itself if it can be seen, and one from U+0100 on otherwise.
fn byte_character(byte: u8) -> char {
    let is_visible = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if is_visible(&byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|byte| !is_visible(byte)).count() as u32;
    char::from_u32(0x100 + before).unwrap()
}
