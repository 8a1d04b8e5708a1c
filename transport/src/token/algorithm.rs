//! The algorithms of session tokens: three of those that the jsonwebtoken crate knows.

use std::fmt;
use std::str::FromStr;

use jsonwebtoken as jwt;
use serde::{Deserialize, Serialize};

/// How tokens are signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256, 2048 bits. The default: every JWT library knows it, and it verifies fastest.
    #[default]
    RS256,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// Ed25519.
    EdDSA,
}

impl Algorithm {
    /// All algorithms.
    pub const ALL: [Self; 3] = [Self::RS256, Self::ES256, Self::EdDSA];

    /// The name in JOSE headers (RFC 7518 §3.1, RFC 8037 §3.1).
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RS256 => "RS256",
            Self::ES256 => "ES256",
            Self::EdDSA => "EdDSA",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    fn from_str(word: &str) -> Result<Self, UnknownAlgorithm> {
        let known = Self::ALL.into_iter().find(|alg| alg.as_str().eq_ignore_ascii_case(word));
        known.ok_or_else(|| UnknownAlgorithm(word.to_owned()))
    }
}

impl From<Algorithm> for jwt::Algorithm {
    fn from(alg: Algorithm) -> Self {
        match alg {
            Algorithm::RS256 => Self::RS256,
            Algorithm::ES256 => Self::ES256,
            Algorithm::EdDSA => Self::EdDSA,
        }
    }
}

/// A word that names no [`Algorithm`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no signing algorithm; use RS256, ES256 or EdDSA")]
pub struct UnknownAlgorithm(pub String);
