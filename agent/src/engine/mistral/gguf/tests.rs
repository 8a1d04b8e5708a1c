//! Headers of a few bytes, whole and damaged.

#![allow(clippy::unwrap_used)]

use std::io::Cursor;

use super::*;

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A header with one of each kind of entry, and one tensor.
fn sample() -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend(1u64.to_le_bytes());
    out.extend(5u64.to_le_bytes());
    text(&mut out, "general.architecture");
    out.extend(8u32.to_le_bytes());
    text(&mut out, "llama");
    text(&mut out, "general.alignment");
    out.extend(4u32.to_le_bytes());
    out.extend(32u32.to_le_bytes());
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

fn read(bytes: &[u8]) -> Result<Content, GgufError> {
    super::read(Cursor::new(bytes), bytes.len() as u64)
}

#[test]
fn the_header_gives_the_context_and_the_tokens() {
    let content = read(&sample()).unwrap();
    let gguf = Gguf { metadata: content.metadata, parts: Vec::new() };
    assert_eq!(gguf.number("context_length"), Some(2048));
    assert_eq!(gguf.vocabulary_len(), 3);
    let (names, kinds, _) = gguf.tokens();
    assert_eq!(names, ["<|start|>", "a", "<0x0A>"]);
    assert_eq!(kinds, [TokenKind::Control, TokenKind::Normal, TokenKind::Byte]);
    assert_eq!(gguf.chat_template(), None);
}

#[test]
fn a_file_cut_at_any_place_is_an_error() {
    let sample = sample();
    for length in 0..sample.len() {
        let error = read(&sample[..length]).unwrap_err();
        assert!(matches!(error, GgufError::NotGguf | GgufError::Truncated { .. }), "{length}: {error}");
    }
}

/// The sample with bytes behind `after` replaced.
fn damaged(after: &str, skip: usize, bytes: &[u8]) -> GgufError {
    let mut sample = sample();
    let at = sample.windows(after.len()).position(|window| window == after.as_bytes()).unwrap() + after.len() + skip;
    sample[at..at + bytes.len()].copy_from_slice(bytes);
    read(&sample).unwrap_err()
}

#[test]
fn what_candle_would_believe_is_refused() {
    let most = u64::MAX.to_le_bytes();
    // A text, an array and a name as long as the address space.
    assert!(matches!(damaged("general.architecture", 4, &most), GgufError::Truncated { .. }));
    assert!(matches!(damaged("tokenizer.ggml.token_type", 8, &most), GgufError::Truncated { .. }));
    assert!(matches!(damaged("tokenizer.ggml.tokens", 8, &most), GgufError::Truncated { .. }));
    // candle divides by the alignment.
    assert!(damaged("general.alignment", 4, &[0; 4]).to_string().contains("alignment"));
    // An array of arrays could be as deep as the file is long.
    assert!(damaged("tokenizer.ggml.tokens", 4, &9u32.to_le_bytes()).to_string().contains("array of arrays"));
    assert!(damaged("token_embd.weight", 0, &[0xff; 4]).to_string().contains("dimensions"));
    // A tensor beyond the file, at a place that cannot be, and of a size that cannot be.
    assert!(matches!(damaged("token_embd.weight", 4, &9u64.to_le_bytes()), GgufError::Truncated { .. }));
    assert!(damaged("token_embd.weight", 16, &most).to_string().contains("impossible place"));
    assert!(damaged("token_embd.weight", 4, &most).to_string().contains("impossible"));
    let error = damaged("token_embd.weight", 12, &20u32.to_le_bytes()).to_string();
    assert!(error.contains("IQ4_NL") && error.contains("Q4_K"), "{error}");
}

proptest::proptest! {
    #[test]
    fn damaged_bytes_never_panic(at in 4usize..600, value: u8) {
        let mut bytes = sample();
        let at = at % bytes.len();
        bytes[at] = value;
        let _ = read(&bytes);
    }

    #[test]
    fn damaged_lengths_never_panic(at in 4usize..600, value: [u8; 8]) {
        let mut bytes = sample();
        let at = at % (bytes.len() - 8);
        bytes[at..at + 8].copy_from_slice(&value);
        let _ = read(&bytes);
    }
}
