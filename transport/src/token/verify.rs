//! The agent's side: verifying. Pure: neither clock nor network.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken as jwt;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::JwkSet;
use parking_lot::RwLock;
use serde::Deserialize;

use super::claims::{CLOCK_LEEWAY, Claims, unix_seconds};
use super::jwk::VerifyingKey;
use super::{Algorithm, MAX_TOKEN_BYTES};

/// Longest part of a token that an error message repeats: a thumbprint has 43 characters.
const MAX_QUOTED_CHARS: usize = 64;

/// Verifies session tokens of one issuer. Shared by all calls of an agent; every method takes `&self`.
#[derive(Debug)]
pub struct TokenVerifier {
    issuer: String,
    /// Replaced as a whole; a call that verifies holds its own reference, never the lock.
    keys: RwLock<Arc<Keys>>,
}

/// By their ids.
type Keys = HashMap<String, VerifyingKey>;

impl TokenVerifier {
    /// A verifier without keys: every token is of an unknown key until [`set_keys`](Self::set_keys).
    pub fn new(issuer: impl Into<String>) -> Self {
        Self { issuer: issuer.into(), keys: RwLock::default() }
    }

    /// Replaces the keys by those of a JWK set (RFC 7517 §5), and returns how many of them are usable. Keys of other kinds
    /// are skipped, as §5 asks; symmetric keys are always.
    ///
    /// # Errors
    /// [`KeySetError`]; the keys stay as they were.
    pub fn set_keys(&self, jwks_json: &str) -> Result<usize, KeySetError> {
        let set: JwkSet = serde_json::from_str(jwks_json)?;
        let keys: Keys = set.keys.iter().filter_map(VerifyingKey::from_jwk).collect();
        if keys.is_empty() {
            return Err(KeySetError::NoUsableKey { given: set.keys.len() });
        }
        let count = keys.len();
        *self.keys.write() = Arc::new(keys);
        Ok(count)
    }

    /// The claims of a token that is valid for this agent at this time. The model is the caller's to check
    /// ([`Claims::check_model`]): it stands in the request.
    ///
    /// # Errors
    /// [`TokenError`] says the first thing that is wrong with it. Nothing of a token is believed before its signature is
    /// checked; nothing about time, agent or model is said of one whose signature is wrong.
    pub fn verify(&self, token: &str, agent_id: &str, now: SystemTime) -> Result<Claims, TokenError> {
        let claims = self.verify_signature(token)?;
        self.check_claims(&claims, agent_id, unix_seconds(now))?;
        Ok(claims)
    }

    /// The same for a request that resumes what was begun with the token: it may have expired since.
    ///
    /// # Errors
    /// As [`verify`](Self::verify), without [`TokenError::Expired`].
    pub fn verify_begun(&self, token: &str, agent_id: &str, now: SystemTime) -> Result<Claims, TokenError> {
        let claims = self.verify_signature(token)?;
        let before_the_end = unix_seconds(now).min(claims.exp);
        self.check_claims(&claims, agent_id, before_the_end)?;
        Ok(claims)
    }

    fn verify_signature(&self, token: &str) -> Result<Claims, TokenError> {
        if token.is_empty() {
            return Err(TokenError::Absent);
        }
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong { len: token.len() });
        }
        let keys = Arc::clone(&self.keys.read());
        let header = jwt::decode_header(token).map_err(|error| refused_header(token, &error, &keys))?;
        if header.crit.is_some() {
            // RFC 7515 §4.1.11: what must be understood and is not, is refused.
            return Err(TokenError::Malformed("its header has critical extensions"));
        }
        let key = find(&keys, header.kid)?;
        let decoded = jwt::decode(token, &key.key, &key.validation).map_err(|error| match error.kind() {
            ErrorKind::InvalidAlgorithm => {
                TokenError::WrongAlgorithm { token: format!("{:?}", header.alg), key: key.alg }
            }
            ErrorKind::Base64(_) => TokenError::Malformed("its signature is not base64url"),
            ErrorKind::Json(_) => TokenError::Claims,
            _ => TokenError::BadSignature,
        })?;
        Ok(decoded.claims)
    }

    fn check_claims(&self, claims: &Claims, agent_id: &str, now: i64) -> Result<(), TokenError> {
        let leeway = CLOCK_LEEWAY.as_secs() as i64;
        if claims.iss != self.issuer {
            return Err(TokenError::WrongIssuer { token: quoted(&claims.iss), expected: self.issuer.clone() });
        }
        // RFC 7519 §4.1.5, §4.1.4.
        if now.saturating_add(leeway) < claims.nbf {
            return Err(TokenError::NotYetValid { seconds: claims.nbf.saturating_sub(now) });
        }
        if now >= claims.exp.saturating_add(leeway) {
            return Err(TokenError::Expired { seconds: now.saturating_sub(claims.exp) });
        }
        if claims.agent_id != agent_id {
            return Err(TokenError::WrongAgent { token: quoted(&claims.agent_id), this: agent_id.to_owned() });
        }
        Ok(())
    }
}

fn find(keys: &Keys, kid: Option<String>) -> Result<&VerifyingKey, TokenError> {
    let kid = kid.ok_or(TokenError::NoKeyId)?;
    keys.get(&kid).ok_or_else(|| TokenError::UnknownKey { kid: quoted(&kid) })
}

/// The jsonwebtoken crate reads no header whose algorithm it does not know, `none` among them. Whoever sent it is to learn
/// which it was: nothing here accepts a token.
fn refused_header(token: &str, error: &jwt::errors::Error, keys: &Keys) -> TokenError {
    #[derive(Deserialize)]
    struct Named {
        alg: String,
        kid: Option<String>,
    }
    if matches!(error.kind(), ErrorKind::InvalidToken) {
        return TokenError::Malformed("it has not three parts");
    }
    let header = token.split('.').next().and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    match header.and_then(|json| serde_json::from_slice(&json).ok()) {
        Some(Named { alg, .. }) if alg.eq_ignore_ascii_case("none") => TokenError::Unsigned,
        Some(Named { alg, kid }) if alg.parse::<jwt::Algorithm>().is_err() => match find(keys, kid) {
            Ok(key) => TokenError::WrongAlgorithm { token: quoted(&alg), key: key.alg },
            Err(refused) => refused,
        },
        _ => TokenError::Malformed("its header is not JSON in base64url"),
    }
}

/// Why a JWK set was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum KeySetError {
    /// Not the JSON of a JWK set.
    #[error("not a JWK set: {0}")]
    Json(#[from] serde_json::Error),
    /// No key in it can verify a session token.
    #[error("none of the {given} keys in the JWK set can verify session tokens (RS256, ES256 or EdDSA)")]
    NoUsableKey {
        /// How many keys it had.
        given: usize,
    },
}

/// Why a token is refused. Asking the coordinator for a new one helps in most cases; trying again with the same one helps
/// only after [`UnknownKey`](Self::UnknownKey) (once the keys are fetched) and [`NotYetValid`](Self::NotYetValid).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// There is none.
    #[error(
        "no session token; ask the coordinator for one, and send it in session_token or as `authorization: Bearer …`"
    )]
    Absent,
    /// Longer than [`MAX_TOKEN_BYTES`].
    #[error("the session token has {len} bytes; none is longer than {MAX_TOKEN_BYTES}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// Not a JWS in compact form.
    #[error("the session token is not a JSON web token: {0}")]
    Malformed(&'static str),
    /// `alg: none`.
    #[error("the session token is not signed")]
    Unsigned,
    /// Its header names no key.
    #[error("the session token's header names no key (kid)")]
    NoKeyId,
    /// Its header names a key that is not known here. It may be new: fetch the keys, once, and try again.
    #[error(
        "the session token is signed with the unknown key {kid:?}; it is from another coordinator, or its key is gone"
    )]
    UnknownKey {
        /// The key that it names, at most 64 characters of it.
        kid: String,
    },
    /// Its header names another algorithm than its key is for.
    #[error("the session token says it is signed with {token:?}, but its key is for {key}")]
    WrongAlgorithm {
        /// What the token says.
        token: String,
        /// What the key is for.
        key: Algorithm,
    },
    /// It was changed, or signed with another key.
    #[error("the session token's signature is wrong; it was changed, or not signed by the coordinator")]
    BadSignature,
    /// It is signed well, but its claims are not those of a session token.
    #[error("the token is well signed, but is no session token: claims are missing or of the wrong type")]
    Claims,
    /// Somebody else issued it.
    #[error("the session token was issued by {token:?}; this agent accepts {expected:?}")]
    WrongIssuer {
        /// Who issued it.
        token: String,
        /// Who should have.
        expected: String,
    },
    /// `nbf` lies in the future.
    #[error("the session token is valid only in {seconds} s; are the clocks of coordinator and agent apart?")]
    NotYetValid {
        /// How long until then.
        seconds: i64,
    },
    /// `exp` lies in the past.
    #[error("the session token expired {seconds} s ago; ask the coordinator for a new one")]
    Expired {
        /// How long ago.
        seconds: i64,
    },
    /// It is for another agent.
    #[error("the session token is for agent {token:?}, this is {this:?}; go to the endpoint that came with the token")]
    WrongAgent {
        /// Whom it is for.
        token: String,
        /// Who refuses it.
        this: String,
    },
    /// It is for another model.
    #[error("the session token is for model {token:?}, the request names {requested:?}; ask the coordinator again")]
    WrongModel {
        /// What it is for.
        token: String,
        /// What the request names.
        requested: String,
    },
    /// It is for another way to ask.
    #[error("{}", match token {
        Some(request) => format!("this token is for the one request {request}, in its address: ask the coordinator for a session token"),
        None => "a session token does not belong into an address: send it as `authorization: Bearer …`".to_owned(),
    })]
    OtherRequest {
        /// The request that it is for, if it is for one.
        token: Option<String>,
    },
}

impl TokenError {
    /// Whether the token is genuine but does not allow this: PERMISSION_DENIED. All else is UNAUTHENTICATED.
    pub fn is_permission(&self) -> bool {
        matches!(self, Self::WrongAgent { .. } | Self::WrongModel { .. } | Self::OtherRequest { .. })
    }
}

fn quoted(text: &str) -> String {
    text.chars().take(MAX_QUOTED_CHARS).collect()
}
