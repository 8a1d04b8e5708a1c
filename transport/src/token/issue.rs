//! The coordinator's side: signing.

use std::path::Path;
use std::time::SystemTime;

use aws_lc_rs::error::Unspecified;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken as jwt;
use jsonwebtoken::jwk::JwkSet;
use serde::Serialize;

use super::keys::{KeyError, KeyStore, SigningKey};
use super::{Algorithm, Claims, MAX_TOKEN_BYTES};

/// Signs session tokens with the newest key of its algorithm, and publishes all keys of its directory.
///
/// Cheap to share behind an `Arc`: signing takes `&self` and no lock.
#[derive(Debug)]
pub struct TokenIssuer {
    key: SigningKey,
    /// The same for every token of a key, in base64url.
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
        let header = jwt::Header { kid: Some(key.kid.clone()), ..jwt::Header::new(algorithm.into()) };
        let header = base64url_json(&header).map_err(|_| KeyError::Generate)?;
        Ok(Self { key, header, jwks })
    }

    /// A signed token.
    ///
    /// # Errors
    /// [`IssueError`] when the claims are too long to be accepted by a verifier. The same claims fail again.
    pub fn issue(&self, claims: &Claims) -> Result<String, IssueError> {
        // RFC 7515 §7.1.
        let mut token = format!("{}.{}", self.header, base64url_json(claims)?);
        let signature = self.key.sign(token.as_bytes())?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        if token.len() > MAX_TOKEN_BYTES {
            return Err(IssueError::TooLong { len: token.len() });
        }
        Ok(token)
    }

    /// Every public key in the directory, the signing one first.
    pub fn jwks(&self) -> JwkSet {
        let mut keys = self.jwks.keys.clone();
        keys.sort_by_key(|key| key.common.key_id.as_deref() != Some(self.kid()));
        JwkSet { keys }
    }

    /// The signing key's public half: PEM of a SubjectPublicKeyInfo (RFC 5280 §4.1.2.7).
    pub fn public_key_pem(&self) -> &str {
        &self.key.public_pem
    }

    /// The signing key's id: its RFC 7638 thumbprint.
    pub fn kid(&self) -> &str {
        &self.key.kid
    }

    /// The algorithm it signs with.
    pub fn algorithm(&self) -> Algorithm {
        self.key.alg
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
    /// The cryptographic library refused.
    #[error("cannot sign the token")]
    Sign(#[from] Unspecified),
    /// The claims cannot be written as JSON.
    #[error("cannot write the token's claims: {0}")]
    Claims(#[from] serde_json::Error),
}

fn base64url_json(part: &impl Serialize) -> serde_json::Result<String> {
    Ok(URL_SAFE_NO_PAD.encode(serde_json::to_vec(part)?))
}
