//! The text of an API key: `titan-`, an id by which it is found, and 256 random bits.

use std::fmt;

use aws_lc_rs::{constant_time::verify_slices_are_equal, rand};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest as _, Sha256};

/// Tells people, and programs that look for secrets in the wrong places, what it is.
const PREFIX: &str = "titan-";
const ID_BYTES: usize = 4;
const SECRET_BYTES: usize = 32;
/// Bytes that a key has: what is longer is none, and is not hashed.
const MAX_BYTES: usize = 128;

/// A key as its owner has it. No `Debug`: it would end in a log.
pub(super) struct Secret {
    text: String,
    id: String,
}

impl Secret {
    /// A new one, with an id that is not `taken`. `None` where the system has no random numbers.
    pub(super) fn new(taken: impl Fn(&str) -> bool) -> Option<Self> {
        let (mut id, mut secret) = ([0; ID_BYTES], [0; SECRET_BYTES]);
        rand::fill(&mut secret).ok()?;
        let id = loop {
            rand::fill(&mut id).ok()?;
            let text = hex(&id);
            if !taken(&text) {
                break text;
            }
        };
        let text = format!("{PREFIX}{id}-{}", URL_SAFE_NO_PAD.encode(secret));
        Some(Self { text, id })
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn hash(&self) -> Hash {
        Hash::of(&self.text)
    }
}

/// The id in a key that somebody shows, if it looks like one.
pub(crate) fn id_of(shown: &str) -> Option<&str> {
    let (id, secret) = shown.strip_prefix(PREFIX).filter(|_| shown.len() <= MAX_BYTES)?.split_once('-')?;
    (id.len() == 2 * ID_BYTES && !secret.is_empty()).then_some(id)
}

/// The SHA-256 of a key. No slow hash is needed: nobody guesses 256 random bits.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Hash([u8; 32]);

impl Hash {
    /// What follows a full stop is for the client: by which CA it knows the coordinator.
    fn of(text: &str) -> Self {
        let secret = text.split_once('.').map_or(text, |(secret, _)| secret);
        Self(Sha256::digest(secret).into())
    }

    /// That no key has.
    #[cfg(test)]
    pub(super) fn of_nothing() -> Self {
        Self([0; 32])
    }

    /// Whether this key is the one, in a time that tells nothing of it.
    pub(crate) fn is_of(&self, shown: &str) -> bool {
        verify_slices_are_equal(&self.0, &Self::of(shown).0).is_ok()
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex(&self.0))
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut bytes = [0; 32];
        let digits = text.as_bytes();
        if digits.len() != 2 * bytes.len() || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(D::Error::custom("a hash has 64 hexadecimal digits"));
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(D::Error::custom)?;
            *byte = u8::from_str_radix(pair, 16).map_err(D::Error::custom)?;
        }
        Ok(Self(bytes))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_key_is_found_by_its_id_and_known_by_its_hash() {
        let key = Secret::new(|_| false).unwrap();
        assert_eq!(id_of(key.text()), Some(key.id()));
        assert!(key.hash().is_of(key.text()));
        assert!(key.hash().is_of(&format!("{}.of-some-ca", key.text())));
        assert!(!key.hash().is_of(Secret::new(|_| false).unwrap().text()));
        let json = serde_json::to_string(&key.hash()).unwrap();
        assert_eq!(serde_json::from_str::<Hash>(&json).unwrap(), key.hash());
    }

    #[test]
    fn an_id_that_is_taken_is_not_given_again() {
        let first = std::cell::RefCell::new(None);
        let key = Secret::new(|id| first.borrow_mut().get_or_insert(id.to_owned()) == id).unwrap();
        assert_ne!(first.into_inner().unwrap(), key.id());
    }

    #[test]
    fn what_is_no_key_has_no_id() {
        let long = format!("titan-01234567-{}", "a".repeat(MAX_BYTES));
        for text in ["", "titan-", "titan-0123456-x", "titan-01234567-", "sk-01234567-x", "titan-é1234567-x", &long] {
            assert_eq!(id_of(text), None, "{text}");
        }
    }

    #[test]
    fn a_hash_that_is_none_is_refused() {
        for json in ["\"\"", "\"zz\"", "1", &format!("\"{}\"", "é".repeat(32)), &format!("\"{}\"", "+1".repeat(32))] {
            assert!(serde_json::from_str::<Hash>(json).is_err(), "{json}");
        }
    }
}
