//! Signing keys and the directory they live in.
//!
//! One file per key, `<algorithm>.<created>.<kid>.pem`: PKCS#8, mode 0600; `created` in Unix milliseconds, so that which key
//! is the newest does not depend on a file's date, which copying changes. The newest of the configured algorithm signs; all
//! are published. Other files are left alone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use jsonwebtoken::EncodingKey;
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse, ThumbprintHash};
use pem::{EncodeConfig, LineEnding, Pem};
use titan_files::{Access, make_dir, others_can_read, without_bom, write};

use super::Algorithm;

/// Why the signing keys are not available.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A file could not be read or written. Trying again helps only after its cause is gone.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A key file holds no key, or another one than its name says.
    #[error("{} does not hold the key that its name says; restore it, or delete it: tokens signed with it are refused then", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The cryptographic library made no key. Trying again may help.
    #[error("cannot generate a signing key")]
    Generate,
}

/// A private key with its public half as JWK and PEM.
#[derive(Debug)]
pub(super) struct SigningKey {
    pub(super) alg: Algorithm,
    private: PrivateKey,
    pub(super) kid: String,
    pub(super) public_pem: String,
    jwk: Jwk,
}

impl SigningKey {
    /// From PEM of PKCS#8. `None` where that holds no private key of this algorithm.
    fn from_pem(alg: Algorithm, pem: &[u8]) -> Option<Self> {
        let key = match alg {
            Algorithm::RS256 => EncodingKey::from_rsa_pem(pem),
            Algorithm::ES256 => EncodingKey::from_ec_pem(pem),
            Algorithm::EdDSA => EncodingKey::from_ed_pem(pem),
        };
        let key = key.ok()?;
        let mut jwk = Jwk::from_encoding_key(&key, alg.into()).ok()?;
        let kid = jwk.thumbprint(ThumbprintHash::SHA256).ok()?;
        jwk.common.key_id = Some(kid.clone());
        jwk.common.public_key_use = Some(PublicKeyUse::Signature);
        let private = PrivateKey::from_der(alg, key.as_bytes())?;
        let public_pem = to_pem("PUBLIC KEY", private.public_der()?.as_ref());
        Some(Self { alg, private, kid, public_pem, jwk })
    }

    /// The signature of a JWS (RFC 7515 §5.1).
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Unspecified> {
        self.private.sign(message)
    }
}

/// A private key ready for use. The jsonwebtoken crate would read it anew for every signature, which for RSA (it checks the key's
/// parts) takes longer than signing.
#[derive(Debug)]
enum PrivateKey {
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl PrivateKey {
    /// From the form that [`EncodingKey`] keeps: PKCS#1 for RSA, else PKCS#8.
    fn from_der(alg: Algorithm, der: &[u8]) -> Option<Self> {
        Some(match alg {
            Algorithm::RS256 => Self::Rsa(RsaKeyPair::from_der(der).ok()?),
            Algorithm::ES256 => Self::P256(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der).ok()?),
            Algorithm::EdDSA => Self::Ed25519(Ed25519KeyPair::from_pkcs8(der).ok()?),
        })
    }

    /// SubjectPublicKeyInfo.
    fn public_der(&self) -> Option<PublicKeyX509Der<'static>> {
        match self {
            Self::Rsa(pair) => pair.public_key().as_der(),
            Self::P256(pair) => pair.public_key().as_der(),
            Self::Ed25519(pair) => pair.public_key().as_der(),
        }
        .ok()
    }

    /// RFC 7518 §3.3 and §3.4, RFC 8037 §3.1.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Unspecified> {
        match self {
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)?;
                Ok(signature)
            }
            Self::P256(pair) => Ok(pair.sign(&SystemRandom::new(), message)?.as_ref().to_vec()),
            Self::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
        }
    }
}

/// PKCS#8 version 1 (RFC 5208): what every other tool reads.
fn generate(alg: Algorithm) -> Result<String, Unspecified> {
    let to_pem = |der: &[u8]| to_pem("PRIVATE KEY", der);
    Ok(match alg {
        Algorithm::RS256 => {
            let der: Pkcs8V1Der<'_> = RsaKeyPair::generate(KeySize::Rsa2048)?.as_der()?;
            to_pem(der.as_ref())
        }
        Algorithm::ES256 => to_pem(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?.to_pkcs8v1()?.as_ref()),
        Algorithm::EdDSA => to_pem(Ed25519KeyPair::generate()?.to_pkcs8v1()?.as_ref()),
    })
}

fn to_pem(label: &str, der: &[u8]) -> String {
    pem::encode_config(&Pem::new(label, der), EncodeConfig::new().set_line_ending(LineEnding::LF))
}

/// All keys of a directory, oldest first.
pub(super) struct KeyStore {
    dir: PathBuf,
    keys: Vec<(u64, SigningKey)>,
}

impl KeyStore {
    pub(super) fn load(dir: &Path) -> Result<Self, KeyError> {
        let io = |action| move |source| KeyError::Io { action, path: dir.to_owned(), source };
        make_dir(dir).map_err(io("create"))?;
        let mut keys = Vec::new();
        for entry in fs::read_dir(dir).map_err(io("read"))? {
            let path = entry.map_err(io("read"))?.path();
            let Some((alg, created_ms, kid)) = path.file_name().and_then(|name| parse_name(name.to_str()?)) else {
                continue;
            };
            let text = fs::read(&path).map_err(|source| KeyError::Io { action: "read", path: path.clone(), source })?;
            if others_can_read(&path) {
                tracing::warn!(file = %path.display(), "others on this machine can read this key and sign tokens with it: chmod 600");
            }
            let key = SigningKey::from_pem(alg, without_bom(&text)).filter(|key| key.kid == kid);
            keys.push((created_ms, key.ok_or(KeyError::Damaged { path })?));
        }
        keys.sort_by(|(a, ka), (b, kb)| (a, &ka.kid).cmp(&(b, &kb.kid)));
        Ok(Self { dir: dir.to_owned(), keys })
    }

    pub(super) fn create(&mut self, alg: Algorithm, now: SystemTime) -> Result<(), KeyError> {
        let private_pem = generate(alg).map_err(|_| KeyError::Generate)?;
        let key = SigningKey::from_pem(alg, private_pem.as_bytes()).ok_or(KeyError::Generate)?;
        let now_ms = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        // Newer than all others even where the clock went back.
        let created_ms = self.keys.last().map_or(now_ms, |(newest, _)| now_ms.max(newest + 1));
        let path = self.dir.join(format!("{alg}.{created_ms}.{}.pem", key.kid));
        write(&path, private_pem.as_bytes(), Access::Private).map_err(|source| KeyError::Io {
            action: "write",
            path,
            source,
        })?;
        self.keys.push((created_ms, key));
        Ok(())
    }

    pub(super) fn newest(&self, alg: Algorithm) -> Option<&SigningKey> {
        self.keys.iter().rev().map(|(_, key)| key).find(|key| key.alg == alg)
    }

    pub(super) fn into_newest(self, alg: Algorithm) -> Option<SigningKey> {
        self.keys.into_iter().rev().map(|(_, key)| key).find(|key| key.alg == alg)
    }

    pub(super) fn jwks(&self) -> JwkSet {
        JwkSet { keys: self.keys.iter().rev().map(|(_, key)| key.jwk.clone()).collect() }
    }
}

/// `None` for a file that is none of ours.
fn parse_name(name: &str) -> Option<(Algorithm, u64, &str)> {
    let mut parts = name.strip_suffix(".pem")?.splitn(3, '.');
    let (alg, created_ms, kid) = (parts.next()?, parts.next()?, parts.next()?);
    Some((Algorithm::ALL.into_iter().find(|known| known.as_str() == alg)?, created_ms.parse().ok()?, kid))
}
