//! Signing keys and the directory they live in.
//!
//! One file per key, `<algorithm>.<created>.<kid>.pem`: PKCS#8, mode 0600; `created` in Unix milliseconds, so that which key
//! is the newest does not depend on a file's date, which copying changes. The newest of the configured algorithm signs; all
//! are published. Other files are left alone.

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::error::{KeyRejected, Unspecified};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;

use super::jwk::{Algorithm, Jwk, JwkSet};

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

/// A private key, parsed once, with its public half as JWK and PEM.
pub(super) struct SigningKey {
    pair: Pair,
    jwk: Jwk,
    kid: String,
    public_pem: String,
}

enum Pair {
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl SigningKey {
    fn from_pkcs8(alg: Algorithm, der: &[u8]) -> Result<Self, KeyRejected> {
        let (pair, jwk, spki): (_, _, PublicKeyX509Der<'_>) = match alg {
            Algorithm::RS256 => {
                let pair = RsaKeyPair::from_pkcs8(der)?;
                let public = pair.public_key();
                let (n, e) = (public.modulus(), public.exponent());
                let jwk = Jwk::rsa(n.big_endian_without_leading_zero(), e.big_endian_without_leading_zero());
                let spki = public.as_der()?;
                (Pair::Rsa(pair), jwk, spki)
            }
            Algorithm::ES256 => {
                let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der)?;
                // SEC 1 §2.3.3: 4, x, y.
                let point = pair.public_key().as_ref();
                let (x, y) = point.get(1..).filter(|xy| xy.len() == 64).ok_or(Unspecified)?.split_at(32);
                let jwk = Jwk::p256(x, y);
                let spki = pair.public_key().as_der()?;
                (Pair::P256(pair), jwk, spki)
            }
            Algorithm::EdDSA => {
                let pair = Ed25519KeyPair::from_pkcs8(der)?;
                let jwk = Jwk::ed25519(pair.public_key().as_ref());
                let spki = pair.public_key().as_der()?;
                (Pair::Ed25519(pair), jwk, spki)
            }
        };
        let kid = jwk.kid.clone().ok_or(Unspecified)?;
        Ok(Self { pair, jwk, kid, public_pem: pem("PUBLIC KEY", spki.as_ref()) })
    }

    pub(super) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).ok()?;
                Some(signature)
            }
            Pair::P256(pair) => Some(pair.sign(&SystemRandom::new(), message).ok()?.as_ref().to_vec()),
            Pair::Ed25519(pair) => Some(pair.try_sign(message).ok()?.as_ref().to_vec()),
        }
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        match self.pair {
            Pair::Rsa(_) => Algorithm::RS256,
            Pair::P256(_) => Algorithm::ES256,
            Pair::Ed25519(_) => Algorithm::EdDSA,
        }
    }

    pub(super) fn kid(&self) -> &str {
        &self.kid
    }

    pub(super) fn public_pem(&self) -> &str {
        &self.public_pem
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("alg", &self.algorithm()).field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// PKCS#8 version 1 (RFC 5208): what every other tool reads.
fn generate(alg: Algorithm) -> Result<Vec<u8>, Unspecified> {
    Ok(match alg {
        Algorithm::RS256 => {
            let der: Pkcs8V1Der<'_> = RsaKeyPair::generate(KeySize::Rsa2048)?.as_der()?;
            der.as_ref().to_vec()
        }
        Algorithm::ES256 => EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?.to_pkcs8v1()?.as_ref().to_vec(),
        Algorithm::EdDSA => Ed25519KeyPair::generate()?.to_pkcs8v1()?.as_ref().to_vec(),
    })
}

/// All keys of a directory, oldest first.
pub(super) struct KeyStore {
    dir: PathBuf,
    keys: Vec<(u64, SigningKey)>,
}

impl KeyStore {
    pub(super) fn load(dir: &Path) -> Result<Self, KeyError> {
        let io = |action| move |source| KeyError::Io { action, path: dir.to_owned(), source };
        make_private_dir(dir).map_err(io("create"))?;
        let mut keys = Vec::new();
        for entry in fs::read_dir(dir).map_err(io("read"))? {
            let path = entry.map_err(io("read"))?.path();
            let Some((alg, created_ms, kid)) = path.file_name().and_then(|name| parse_name(name.to_str()?)) else {
                continue;
            };
            let text = fs::read(&path).map_err(|source| KeyError::Io { action: "read", path: path.clone(), source })?;
            let key = PrivatePkcs8KeyDer::from_pem_slice(&text)
                .ok()
                .and_then(|der| SigningKey::from_pkcs8(alg, der.secret_pkcs8_der()).ok())
                .filter(|key| key.kid == kid);
            keys.push((created_ms, key.ok_or(KeyError::Damaged { path })?));
        }
        keys.sort_by(|(a, ka), (b, kb)| (a, &ka.kid).cmp(&(b, &kb.kid)));
        Ok(Self { dir: dir.to_owned(), keys })
    }

    pub(super) fn create(&mut self, alg: Algorithm, now: SystemTime) -> Result<(), KeyError> {
        let der = generate(alg).map_err(|_| KeyError::Generate)?;
        let key = SigningKey::from_pkcs8(alg, &der).map_err(|_| KeyError::Generate)?;
        let now_ms = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        // Newer than all others even where the clock went back.
        let created_ms = self.keys.last().map_or(now_ms, |(newest, _)| now_ms.max(newest + 1));
        let path = self.dir.join(format!("{alg}.{created_ms}.{}.pem", key.kid));
        write_private(&path, pem("PRIVATE KEY", &der).as_bytes()).map_err(|source| KeyError::Io {
            action: "write",
            path,
            source,
        })?;
        self.keys.push((created_ms, key));
        Ok(())
    }

    pub(super) fn newest(&self, alg: Algorithm) -> Option<&SigningKey> {
        self.keys.iter().rev().map(|(_, key)| key).find(|key| key.algorithm() == alg)
    }

    pub(super) fn into_newest(self, alg: Algorithm) -> Option<SigningKey> {
        self.keys.into_iter().rev().map(|(_, key)| key).find(|key| key.algorithm() == alg)
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

/// RFC 7468 §2: lines of 64 characters.
fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for start in (0..body.len()).step_by(64) {
        text.push_str(&body[start..body.len().min(start + 64)]);
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

/// New directories get mode 0700; an existing one is left as it is, its owner may share it on purpose.
fn make_private_dir(dir: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)
}

/// Complete or absent after a crash, and never readable by others, not even for a moment.
fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(&temporary).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    });
    if written.is_err() {
        // The first error is the one to report; a leftover has a name that nothing reads.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    // A rename is durable only once its directory is.
    match path.parent() {
        Some(dir) if cfg!(unix) && !dir.as_os_str().is_empty() => fs::File::open(dir)?.sync_all(),
        _ => Ok(()),
    }
}
