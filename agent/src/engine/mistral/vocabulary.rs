//! What each token of a model says, and whether a reader sees it.
//!
//! mistral.rs makes every token of a GGUF file that is not "normal" a special one and hides special tokens when it decodes: newlines, emoji and
//! CJK of SentencePiece models (byte tokens) and `<tool_call>` of Qwen (user-defined) vanish. So texts are put together here, from token ids
//! and the file's own token types: control, unknown and unused tokens are hidden, and nothing else.

use std::{collections::HashMap, sync::Arc};

use mistralrs::core::llguidance::{
    ParserFactory,
    toktrie::{ApproximateTokEnv, TokRxInfo, TokTrie},
};
use serde_json::Value;
use tokenizers::Tokenizer;

/// A token's type in `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl TokenKind {
    /// By its number in a GGUF file. Numbers that nobody has defined are text, so that nothing is lost.
    pub(super) fn from_gguf(number: i64) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }

    fn is_hidden(self) -> bool {
        matches!(self, Self::Control | Self::Unknown | Self::Unused)
    }
}

/// How a tokenizer writes bytes in its tokens' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// SentencePiece: `▁` is a space, `<0x0A>` is a byte, and one space before the text is the tokenizer's own.
    SentencePiece,
    /// Byte-level BPE: each character stands for a byte.
    ByteLevel,
}

/// Why a model's tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum VocabularyError {
    #[error("its tokenizer has no token")]
    Empty,
    #[error("its tokenizer has neither a byte-level nor a byte-fallback decoder, so what its tokens say is not known")]
    Decoder,
    #[error("its end-of-sequence token is number {id}, and it has {tokens} tokens")]
    EndOutOfRange { id: u32, tokens: usize },
    #[error("it has no end-of-sequence token, so its answers would never end")]
    NoEnd,
    #[error("its tokenizer cannot be read: {0}")]
    Tokenizer(String),
}

struct Token {
    bytes: Box<[u8]>,
    hidden: bool,
}

/// The tokens of a model, and its tokenizer.
pub(super) struct Vocabulary {
    tokenizer: Tokenizer,
    tokens: Vec<Token>,
    spelling: Spelling,
    bos: Option<u32>,
    /// Any of these ends an answer.
    ends: Vec<u32>,
    /// Tokens that may stand for "the end" towards mistral.rs: [`Vocabulary::sentinel`].
    sentinels: Vec<u32>,
    grammars: Arc<ParserFactory>,
}

impl Vocabulary {
    /// Of a GGUF file: `names` and `kinds` are its `tokenizer.ggml.tokens` and `token_type`; where it has no types, every token is normal
    /// but for the beginning, the end and the unknown one. `tokenizer` is what mistral.rs made of the file.
    pub(super) fn of_gguf(
        tokenizer: &Tokenizer,
        names: &[String],
        kinds: &[TokenKind],
        spelling: Spelling,
        bos: Option<u32>,
        ends: Vec<u32>,
    ) -> Result<Self, VocabularyError> {
        let kind = |id: usize| match kinds.get(id) {
            Some(kind) => *kind,
            None if id_in(bos, id) || ends.iter().any(|end| *end as usize == id) => TokenKind::Control,
            None => TokenKind::Normal,
        };
        let tokens: Vec<Token> = (names.iter().enumerate())
            .map(|(id, name)| Token { bytes: spelled(name, kind(id), spelling), hidden: kind(id).is_hidden() })
            .collect();
        // Byte tokens are "added" tokens for mistral.rs: the text `<0x0A>` in a prompt would be read as a newline.
        let is_byte = |id: u64| usize::try_from(id).is_ok_and(|id| kind(id) == TokenKind::Byte);
        let tokenizer = match (0..names.len()).any(|id| kind(id) == TokenKind::Byte) {
            true => without_added(tokenizer, is_byte)?,
            false => tokenizer.clone(),
        };
        Self::new(tokenizer, tokens, spelling, bos, ends)
    }

    /// Of a `tokenizer.json`: its special tokens are hidden.
    pub(super) fn of_tokenizer(tokenizer: &Tokenizer, ends: Vec<u32>) -> Result<Self, VocabularyError> {
        let decoder = serde_json::to_string(&tokenizer.get_decoder()).unwrap_or_default();
        let spelling = match () {
            () if decoder.contains("\"ByteLevel\"") => Spelling::ByteLevel,
            () if decoder.contains("\"ByteFallback\"") => Spelling::SentencePiece,
            () => return Err(VocabularyError::Decoder),
        };
        let added = tokenizer.get_added_tokens_decoder();
        let size = tokenizer.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1);
        let token = |id: usize| {
            let id = u32::try_from(id).unwrap_or(u32::MAX);
            let name = tokenizer.id_to_token(id).unwrap_or_default();
            match added.get(&id) {
                Some(token) => Token { bytes: name.into_bytes().into(), hidden: token.special },
                None => {
                    let is_byte = spelling == Spelling::SentencePiece && byte(&name).is_some();
                    let kind = if is_byte { TokenKind::Byte } else { TokenKind::Normal };
                    Token { bytes: spelled(&name, kind, spelling), hidden: false }
                }
            }
        };
        Self::new(tokenizer.clone(), (0..size).map(token).collect(), spelling, None, ends)
    }

    fn new(
        tokenizer: Tokenizer,
        tokens: Vec<Token>,
        spelling: Spelling,
        bos: Option<u32>,
        ends: Vec<u32>,
    ) -> Result<Self, VocabularyError> {
        if tokens.is_empty() {
            return Err(VocabularyError::Empty);
        }
        if let Some(id) = ends.iter().find(|id| **id as usize >= tokens.len()) {
            return Err(VocabularyError::EndOutOfRange { id: *id, tokens: tokens.len() });
        }
        let first_end = *ends.first().ok_or(VocabularyError::NoEnd)?;
        let trie = TokTrie::from(&TokRxInfo::new(size(&tokens), first_end), &marked(&tokens));
        // A stop token of mistral.rs must not be the beginning of another one in its own trie; hidden tokens are marked there and are none.
        let sentinels = (0u32..).zip(&tokens).filter(|(id, token)| token.hidden && !ends.contains(id));
        let sentinels = sentinels.map(|(id, _)| id).collect();
        let env: Arc<_> = Arc::new(ApproximateTokEnv::new(trie));
        let grammars = ParserFactory::new_simple(&(env as _)).map_err(|error| tokenizer_error(&error))?;
        Ok(Self { tokenizer, tokens, spelling, bos, ends, sentinels, grammars: Arc::new(grammars) })
    }

    /// The tokens of a rendered conversation.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>, VocabularyError> {
        let encoding = self.tokenizer.encode_fast(text, true).map_err(|error| tokenizer_error(&error))?;
        let mut ids = encoding.get_ids().to_vec();
        // The template writes the first token, and some tokenizers add it once more.
        if let [first, second, ..] = ids[..]
            && first == second
            && Some(first) == self.bos
        {
            ids.remove(0);
        }
        Ok(ids)
    }

    /// The tokens of a piece of plain text within an answer.
    pub(super) fn encode_answer(&self, text: &str) -> Result<Vec<u32>, VocabularyError> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|error| tokenizer_error(&error))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Whether the token ends an answer: an end-of-sequence token, or a hidden one that means the end to mistral.rs.
    pub(super) fn is_end(&self, token: u32) -> bool {
        self.ends.contains(&token) || self.sentinels().contains(&token)
    }

    /// A token that ends a sequence in mistral.rs and is not `next`. What mistral.rs caches of a sequence counts its last token although that one
    /// was never computed: it must be one that does not come there when the conversation goes on. `None` where the model has no such token.
    pub(super) fn sentinel(&self, next: Option<u32>) -> Option<u32> {
        self.sentinels.iter().copied().find(|token| Some(*token) != next)
    }

    /// Whether there is always a [`Vocabulary::sentinel`]: without one nothing can be kept of a conversation.
    pub(super) fn can_end_unseen(&self) -> bool {
        self.sentinels.len() > 1
    }

    /// All tokens that [`Vocabulary::sentinel`] may give: the first two are enough.
    pub(super) fn sentinels(&self) -> &[u32] {
        &self.sentinels[..self.sentinels.len().min(2)]
    }

    /// The token that tells mistral.rs to end a sequence.
    pub(super) fn last_token(&self, cached: bool) -> u32 {
        let sentinel = if cached { self.sentinel(None) } else { None };
        sentinel.or_else(|| self.ends.first().copied()).unwrap_or_default()
    }

    /// A token's bytes, hidden or not.
    pub(super) fn bytes(&self, token: u32) -> &[u8] {
        self.tokens.get(token as usize).map_or(&[], |token| &token.bytes)
    }

    /// A token's bytes as a reader sees them.
    pub(super) fn shown(&self, token: u32) -> &[u8] {
        match self.tokens.get(token as usize) {
            Some(token) if !token.hidden => &token.bytes,
            _ => &[],
        }
    }

    /// Hidden tokens whose text is more than one character, to keep out of what users write: their numbers and texts.
    pub(super) fn control_tokens(&self) -> impl Iterator<Item = (u32, String)> {
        let hidden = (0u32..).zip(&self.tokens).filter(|(_, token)| token.hidden);
        hidden.map(|(id, token)| (id, String::from_utf8_lossy(&token.bytes).into_owned()))
    }

    /// The text of these tokens from the beginning of an answer.
    #[cfg(test)]
    pub(super) fn text(self: &Arc<Self>, tokens: &[u32]) -> String {
        let mut text = TextStream::new(self.clone());
        tokens.iter().map(|token| text.push(*token)).collect()
    }

    /// Makes parsers of grammars over these tokens.
    pub(super) fn grammars(&self) -> &Arc<ParserFactory> {
        &self.grammars
    }

    /// How many tokens there are.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }
}

fn id_in(id: Option<u32>, number: usize) -> bool {
    id.is_some_and(|id| id as usize == number)
}

fn size(tokens: &[Token]) -> u32 {
    u32::try_from(tokens.len()).unwrap_or(u32::MAX)
}

fn tokenizer_error(error: &dyn std::fmt::Display) -> VocabularyError {
    VocabularyError::Tokenizer(error.to_string())
}

/// For grammars: hidden tokens are marked, so that no text is matched by one.
fn marked(tokens: &[Token]) -> Vec<Vec<u8>> {
    let mark = |token: &Token| match token.hidden {
        true => [&[TokTrie::SPECIAL_TOKEN_MARKER], &*token.bytes].concat(),
        false => token.bytes.to_vec(),
    };
    tokens.iter().map(mark).collect()
}

/// The tokenizer without some of its added tokens. Tokenizers have no function that takes one away.
fn without_added(tokenizer: &Tokenizer, drop: impl Fn(u64) -> bool) -> Result<Tokenizer, VocabularyError> {
    let json = tokenizer.to_string(false).map_err(|error| tokenizer_error(&error))?;
    let mut json: Value = serde_json::from_str(&json).map_err(|error| tokenizer_error(&error))?;
    if let Some(added) = json.get_mut("added_tokens").and_then(Value::as_array_mut) {
        added.retain(|token| !token.get("id").and_then(Value::as_u64).is_some_and(&drop));
    }
    Tokenizer::from_bytes(json.to_string()).map_err(|error| tokenizer_error(&error))
}

/// The bytes that a token's name stands for.
fn spelled(name: &str, kind: TokenKind, spelling: Spelling) -> Box<[u8]> {
    match (kind, spelling) {
        (TokenKind::Byte, _) => byte(name).map_or_else(|| name.as_bytes().into(), |byte| Box::new([byte]) as Box<[u8]>),
        (TokenKind::Normal, Spelling::SentencePiece) => name.replace('▁', " ").into_bytes().into(),
        // A character that stands for no byte: the name of a token that was added without being marked so.
        (TokenKind::Normal, Spelling::ByteLevel) => name
            .chars()
            .map(|character| BYTE_LEVEL.get(&character).copied())
            .collect::<Option<Vec<u8>>>()
            .unwrap_or_else(|| name.as_bytes().to_vec())
            .into(),
        // Of the others the name is the text.
        _ => name.as_bytes().into(),
    }
}

/// `<0x0A>` is byte 10.
fn byte(name: &str) -> Option<u8> {
    let digits = name.strip_prefix("<0x")?.strip_suffix('>').filter(|digits| digits.len() == 2)?;
    u8::from_str_radix(digits, 16).ok()
}

/// The character that stands for each byte in byte-level BPE, the other way round: printable characters of Latin-1 stand for themselves, and the
/// other bytes, in order, for the characters from U+0100 on.
static BYTE_LEVEL: std::sync::LazyLock<HashMap<char, u8>> = std::sync::LazyLock::new(|| {
    let itself = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let others =
        (0..=u8::MAX).filter(|byte| !itself(*byte)).zip('\u{100}'..).map(|(byte, character)| (character, byte));
    (0..=u8::MAX).filter(|byte| itself(*byte)).map(|byte| (char::from(byte), byte)).chain(others).collect()
});

/// Text out of tokens, as it becomes certain: a token may end within a character.
pub(super) struct TextStream {
    vocabulary: Arc<Vocabulary>,
    /// The beginning of a character.
    pending: Vec<u8>,
    at_start: bool,
}

impl TextStream {
    pub(super) fn new(vocabulary: Arc<Vocabulary>) -> Self {
        Self { vocabulary, pending: Vec::new(), at_start: true }
    }

    /// The text that is certain with this token.
    pub(super) fn push(&mut self, token: u32) -> String {
        let mut bytes = self.vocabulary.shown(token);
        if bytes.is_empty() {
            return String::new();
        }
        if std::mem::take(&mut self.at_start) && self.vocabulary.spelling == Spelling::SentencePiece {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(std::str::from_utf8(valid).unwrap_or_default());
                    // `None`: the bytes may still become a character.
                    let Some(wrong) = error.error_len() else {
                        rest = after;
                        break;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &after[wrong..];
                }
            }
        }
        self.pending = rest.to_vec();
        text
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn vocabulary(spelling: Spelling, tokens: &[(&str, i64)]) -> Arc<Vocabulary> {
        let names: Vec<String> = tokens.iter().map(|(name, _)| (*name).to_owned()).collect();
        let kinds: Vec<TokenKind> = tokens.iter().map(|(_, kind)| TokenKind::from_gguf(*kind)).collect();
        let bpe = tokenizers::models::bpe::BPE::default();
        let vocabulary = Vocabulary::of_gguf(&Tokenizer::new(bpe), &names, &kinds, spelling, None, vec![0]);
        Arc::new(vocabulary.unwrap())
    }

    #[test]
    fn only_control_unknown_and_unused_tokens_are_hidden() {
        let tokens = [
            ("</s>", 3),
            ("<unk>", 2),
            ("<pad>", 5),
            ("▁he", 1),
            ("lo", 1),
            ("<0x0A>", 6),
            ("<0xF0>", 6),
            ("<0x9F>", 6),
            ("<0x98>", 6),
            ("<0x80>", 6),
            ("▁the", 1),
            ("<tool_call>", 4),
            ("。", 1),
        ];
        let vocabulary = vocabulary(Spelling::SentencePiece, &tokens);
        assert_eq!(vocabulary.text(&[3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 1, 2]), "helo\n😀 the<tool_call>。");
        assert_eq!(vocabulary.control_tokens().map(|(id, _)| id).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(vocabulary.sentinel(None), Some(1));
        assert_eq!(vocabulary.sentinel(Some(1)), Some(2));
    }

    #[test]
    fn byte_level_names_are_bytes_and_added_ones_are_texts() {
        let tokens = [("<|im_end|>", 3), ("Ġhi", 1), ("Ċ", 1), ("ðŁĺ", 1), ("Ģ", 1), ("<tool_call>", 4), ("日本", 1)];
        let vocabulary = vocabulary(Spelling::ByteLevel, &tokens);
        assert_eq!(vocabulary.text(&[1, 2, 3, 4, 5, 6]), " hi\n😀<tool_call>日本");
    }

    #[test]
    fn a_character_comes_when_it_is_whole_and_what_is_none_is_replaced() {
        let tokens = [("</s>", 3), ("<0xE6>", 6), ("<0x97>", 6), ("<0xA5>", 6), ("a", 1)];
        let mut text = TextStream::new(vocabulary(Spelling::SentencePiece, &tokens));
        assert_eq!([1, 2, 3].map(|token| text.push(token)), ["", "", "日"]);
        assert_eq!([1, 4, 3].map(|token| text.push(token)), ["", "\u{fffd}a", "\u{fffd}"]);
    }

    #[test]
    fn an_end_outside_the_vocabulary_is_refused() {
        let bpe = Tokenizer::new(tokenizers::models::bpe::BPE::default());
        let of =
            |ends| Vocabulary::of_gguf(&bpe, &["a".to_owned()], &[], Spelling::ByteLevel, None, ends).err().unwrap();
        assert!(of(vec![7]).to_string().contains("number 7, and it has 1"));
        assert!(matches!(of(vec![]), VocabularyError::NoEnd));
    }
}
