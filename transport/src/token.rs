//! Session tokens: JSON web tokens that the coordinator signs and any agent verifies offline.
//!
//! - [`TokenIssuer`] signs [`Claims`] with a key that persists in a directory, and publishes the public keys ([`JwkSet`]).
//! - [`TokenVerifier`] checks a token against those keys. It reads neither clock nor network: `now` is an argument, and an
//!   unknown key is an error ([`TokenError::UnknownKey`]) upon which its owner may fetch the keys once and try again.
//!
//! A token is a JWS in compact form (RFC 7515 §7.1) whose header is `{"alg","kid","typ":"JWT"}`. The algorithm is a property
//! of the key that `kid` names; what the header says must agree with it and decides nothing (RFC 8725 §3.1).
//!
//! The jsonwebtoken crate decodes and verifies, over aws-lc-rs; the types of headers and of keys as JSON are its own. What is here
//! is what it leaves open: which keys there are and where they live, which a verifier takes, what the claims must say; and the
//! signing, with a key that is read once.

mod algorithm;
mod claims;
mod issue;
mod jwk;
mod keys;
mod verify;

pub use algorithm::{Algorithm, UnknownAlgorithm};
pub use claims::{CLOCK_LEEWAY, Claims, new_jti, unix_seconds};
pub use issue::{IssueError, TokenIssuer};
pub use jsonwebtoken::jwk::{Jwk, JwkSet};
pub use keys::KeyError;
pub use verify::{KeySetError, TokenError, TokenVerifier};

/// Longest token in bytes that is issued or looked at. One with the usual claims has about 800; the rest is room for long
/// model names. It stays below the 16 KiB that HTTP/2 peers commonly accept as the size of all headers together.
pub const MAX_TOKEN_BYTES: usize = 4096;

#[cfg(test)]
mod tests;
