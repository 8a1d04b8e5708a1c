//! A token's text that says when it was sent.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

/// What a token of an engine with [`SyntheticEngine::timestamps`](super::SyntheticEngine::timestamps) says, in as many characters as a longer word has: 24 bits of index
/// and 48 bits of nanoseconds since 1970, in base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The token's index in its stream. The text holds its low 24 bits.
    pub index: u32,
    /// When it was sent, in nanoseconds since 1970. The text holds the low 48 bits: enough for three days.
    pub sent_ns: u64,
}

const STAMP_INDEX_BYTES: usize = 3;
const STAMP_TIME_BYTES: usize = 6;
const STAMP_TIME_MASK: u64 = (1 << (8 * STAMP_TIME_BYTES)) - 1;

impl Stamp {
    /// As a token's text.
    pub fn text(self) -> String {
        let mut bytes = [0; STAMP_INDEX_BYTES + STAMP_TIME_BYTES];
        bytes[..STAMP_INDEX_BYTES].copy_from_slice(&self.index.to_be_bytes()[4 - STAMP_INDEX_BYTES..]);
        bytes[STAMP_INDEX_BYTES..].copy_from_slice(&self.sent_ns.to_be_bytes()[8 - STAMP_TIME_BYTES..]);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a token's text at `now_ns`, by the clock of the machine that sent it. `None` for a text that is no stamp.
    pub fn read(text: &str, now_ns: u64) -> Option<Self> {
        let bytes =
            URL_SAFE_NO_PAD.decode(text).ok().filter(|bytes| bytes.len() == STAMP_INDEX_BYTES + STAMP_TIME_BYTES)?;
        let number = |bytes: &[u8]| bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte));
        let (index, sent) = bytes.split_at(STAMP_INDEX_BYTES);
        let age = now_ns.wrapping_sub(number(sent)) & STAMP_TIME_MASK;
        Some(Self { index: u32::try_from(number(index)).ok()?, sent_ns: now_ns.saturating_sub(age) })
    }
}

/// Nanoseconds since 1970, by the clock that stamps are made with.
pub fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_as_it_was_written() {
        for (index, sent_ns) in [(0, 0), (1, 1 << 48), ((1 << 24) - 1, u64::MAX >> 1), (7, now_ns())] {
            let stamp = Stamp { index, sent_ns };
            assert_eq!(Stamp::read(&stamp.text(), sent_ns + 5_000_000_000), Some(stamp));
        }
        for wrong in ["", "00000001 tok ", "AAAA", "AAAAAAAAAAAAAAAA", "AAAAAAAAAA=="] {
            assert_eq!(Stamp::read(wrong, now_ns()), None, "{wrong:?}");
        }
    }
}
