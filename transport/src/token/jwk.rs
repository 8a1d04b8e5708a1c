//! Public keys as JSON: RFC 7517 (JWK), RFC 7518 §6 (RSA, EC), RFC 8037 §2 (Ed25519), RFC 7638 (thumbprint).

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
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

/// A word that names no [`Algorithm`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no signing algorithm; use RS256, ES256 or EdDSA")]
pub struct UnknownAlgorithm(pub String);

/// A JWK set (RFC 7517 §5).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JwkSet {
    /// The keys; a verifier skips those of kinds it does not know.
    pub keys: Vec<Jwk>,
}

/// A public key. Which of the optional fields are there depends on `kty`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jwk {
    /// `RSA`, `EC` or `OKP`.
    pub kty: String,
    /// The RFC 7638 thumbprint, where this crate wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    /// The only algorithm to use it with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alg: Option<String>,
    /// `sig`.
    #[serde(default, rename = "use", skip_serializing_if = "Option::is_none")]
    pub usage: Option<String>,
    /// RSA: modulus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<String>,
    /// RSA: exponent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub e: Option<String>,
    /// EC, OKP: `P-256`, `Ed25519`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crv: Option<String>,
    /// EC: coordinate; OKP: the key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x: Option<String>,
    /// EC: coordinate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub y: Option<String>,
}

impl Jwk {
    /// `n` and `e` are big-endian without leading zeros (RFC 7518 §6.3.1).
    pub(super) fn rsa(n: &[u8], e: &[u8]) -> Self {
        Self { kty: "RSA".into(), n: Some(b64(n)), e: Some(b64(e)), ..Self::default() }.signing(Algorithm::RS256)
    }

    /// The coordinates are 32 bytes each (RFC 7518 §6.2.1).
    pub(super) fn p256(x: &[u8], y: &[u8]) -> Self {
        Self { kty: "EC".into(), crv: Some("P-256".into()), x: Some(b64(x)), y: Some(b64(y)), ..Self::default() }
            .signing(Algorithm::ES256)
    }

    pub(super) fn ed25519(x: &[u8]) -> Self {
        Self { kty: "OKP".into(), crv: Some("Ed25519".into()), x: Some(b64(x)), ..Self::default() }
            .signing(Algorithm::EdDSA)
    }

    fn signing(mut self, alg: Algorithm) -> Self {
        self.kid = self.thumbprint();
        self.alg = Some(alg.as_str().into());
        self.usage = Some("sig".into());
        self
    }

    /// RFC 7638 §3: the required members in lexicographic order, without white space, hashed with SHA-256. `None` for a
    /// key that is not complete.
    pub fn thumbprint(&self) -> Option<String> {
        // The values are base64url and registered names: nothing in them needs escaping. Foreign ones that do are refused.
        let get = |field: &Option<String>| field.clone().filter(|text| text.bytes().all(plain));
        let canonical = match self.kty.as_str() {
            "RSA" => format!(r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#, get(&self.e)?, get(&self.n)?),
            "EC" => {
                let (crv, x, y) = (get(&self.crv)?, get(&self.x)?, get(&self.y)?);
                format!(r#"{{"crv":"{crv}","kty":"EC","x":"{x}","y":"{y}"}}"#)
            }
            "OKP" => format!(r#"{{"crv":"{}","kty":"OKP","x":"{}"}}"#, get(&self.crv)?, get(&self.x)?),
            _ => return None,
        };
        Some(b64(digest(&SHA256, canonical.as_bytes()).as_ref()))
    }

    /// The key ready for use, under its id. `None` for a key of a kind, size or use that session tokens do not have; a
    /// symmetric key above all.
    pub(super) fn verifying_key(&self) -> Option<(String, VerifyingKey)> {
        if self.usage.as_deref().is_some_and(|usage| usage != "sig") {
            return None;
        }
        let (alg, key) = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => {
                let components = RsaPublicKeyComponents { n: unb64(&self.n)?, e: unb64(&self.e)? };
                let key = components.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256).ok()?;
                // RFC 7518 §3.3; to_parsed_public_key leaves it to each verification to say so.
                let bits = components.n.len() * 8;
                ((2048..=8192).contains(&bits).then_some(Algorithm::RS256)?, key)
            }
            ("EC", Some("P-256")) => {
                let (x, y) = (unb64(&self.x)?, unb64(&self.y)?);
                if x.len() != 32 || y.len() != 32 {
                    return None;
                }
                let point = [&[4], x.as_slice(), y.as_slice()].concat();
                (Algorithm::ES256, ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).ok()?)
            }
            ("OKP", Some("Ed25519")) => (Algorithm::EdDSA, ParsedPublicKey::new(&ED25519, unb64(&self.x)?).ok()?),
            _ => return None,
        };
        if self.alg.as_deref().is_some_and(|named| named != alg.as_str()) {
            return None;
        }
        let kid = self.kid.clone().or_else(|| self.thumbprint())?;
        Some((kid, VerifyingKey { alg, key }))
    }
}

/// A parsed public key and the one algorithm it is for.
pub(super) struct VerifyingKey {
    pub(super) alg: Algorithm,
    pub(super) key: ParsedPublicKey,
}

pub(super) fn b64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn unb64(field: &Option<String>) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(field.as_ref()?).ok()
}

fn plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}
