//! The coordinator's side: signing.

use std::path::Path;
use std::time::SystemTime;

use super::MAX_TOKEN_BYTES;
use super::claims::Claims;
use super::jwk::{Algorithm, JwkSet, b64};
use super::keys::{KeyError, KeyStore, SigningKey};

/// Signs session tokens with the newest key of its algorithm, and publishes all keys of its directory.
///
/// Cheap to share behind an `Arc`: signing takes `&self` and no lock.
#[derive(Debug)]
pub struct TokenIssuer {
    key: SigningKey,
    /// base64url of the header and the dot after it; the same for every token of a key.
    header: String,
    jwks: JwkSet,
}

impl TokenIssuer {
    /// Loads the keys in a directory. Makes the directory, and a key where there is none of this algorithm: so keys outlive
    /// a restart, and after a change of algorithm the tokens of the old key are still verified.
    ///
    /// Reads and writes files, and making an RSA key takes up to a second: call it before serving.
    ///
    /// # Errors
    /// [`KeyError`] when a file cannot be read or written, or is damaged.
    pub fn open(dir: &Path, algorithm: Algorithm) -> Result<Self, KeyError> {
        let mut store = KeyStore::load(dir)?;
        if store.newest(algorithm).is_none() {
            store.create(algorithm, SystemTime::now())?;
        }
        Self::from_store(store, algorithm)
    }

    /// Makes a new key and signs with that. Older ones stay in the directory and in the JWK set until their files are
    /// deleted, which is safe once the last token signed with them has expired.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn rotate(dir: &Path, algorithm: Algorithm) -> Result<Self, KeyError> {
        let mut store = KeyStore::load(dir)?;
        store.create(algorithm, SystemTime::now())?;
        Self::from_store(store, algorithm)
    }

    fn from_store(store: KeyStore, algorithm: Algorithm) -> Result<Self, KeyError> {
        let jwks = store.jwks();
        let key = store.into_newest(algorithm).ok_or(KeyError::Generate)?;
        // The kid is base64url: nothing in it needs escaping.
        let header = format!(r#"{{"alg":"{algorithm}","kid":"{}","typ":"JWT"}}"#, key.kid());
        Ok(Self { key, header: b64(header.as_bytes()) + ".", jwks })
    }

    /// A signed token.
    ///
    /// # Errors
    /// [`IssueError`] when the claims are too long to be accepted by a verifier. The same claims fail again.
    pub fn issue(&self, claims: &Claims) -> Result<String, IssueError> {
        let claims = serde_json::to_vec(claims)?;
        let message = format!("{}{}", self.header, b64(&claims));
        let signature = self.key.sign(message.as_bytes()).ok_or(IssueError::Sign)?;
        let token = format!("{message}.{}", b64(&signature));
        if token.len() > MAX_TOKEN_BYTES {
            return Err(IssueError::TooLong { len: token.len() });
        }
        Ok(token)
    }

    /// Every public key in the directory, the signing one first.
    pub fn jwks(&self) -> JwkSet {
        let mut keys = self.jwks.keys.clone();
        keys.sort_by_key(|key| key.kid.as_deref() != Some(self.kid()));
        JwkSet { keys }
    }

    /// The signing key's public half: PEM of a SubjectPublicKeyInfo (RFC 5280 §4.1.2.7).
    pub fn public_key_pem(&self) -> &str {
        self.key.public_pem()
    }

    /// The signing key's id: its RFC 7638 thumbprint.
    pub fn kid(&self) -> &str {
        self.key.kid()
    }

    /// The algorithm it signs with.
    pub fn algorithm(&self) -> Algorithm {
        self.key.algorithm()
    }
}

/// Why a token could not be issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// It would be refused for its length; client id or model are too long.
    #[error("the token would have {len} bytes, more than {MAX_TOKEN_BYTES}; client_id or model are too long")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// The claims could not be written as JSON.
    #[error("cannot encode the claims: {0}")]
    Encode(#[from] serde_json::Error),
    /// The cryptographic library refused.
    #[error("cannot sign with this key")]
    Sign,
}
