//! The public keys of a JWK set (RFC 7517, RFC 7518 §6, RFC 8037 §2) that can verify session tokens.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{self as jwt, DecodingKey, DecodingKeyKind, Validation};

use super::Algorithm;

/// A public key and the one algorithm it is for, which its validation pins.
#[derive(Debug)]
pub(super) struct VerifyingKey {
    pub(super) alg: Algorithm,
    pub(super) key: DecodingKey,
    pub(super) validation: Validation,
}

impl VerifyingKey {
    /// The key ready for use, under its id. `None` for a key of a kind, size or use that session tokens do not have; a
    /// symmetric key above all.
    pub(super) fn from_jwk(jwk: &Jwk) -> Option<(String, Self)> {
        let alg = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => Algorithm::ES256,
            AlgorithmParameters::OctetKeyPair(okp) if okp.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
            _ => return None,
        };
        let common = &jwk.common;
        let other_use = common.public_key_use.as_ref().is_some_and(|named| *named != PublicKeyUse::Signature);
        let other_alg =
            common.key_algorithm.is_some_and(|named| named != KeyAlgorithm::from(jwt::Algorithm::from(alg)));
        if other_use || other_alg {
            return None;
        }
        let key = DecodingKey::from_jwk(jwk).ok().filter(|key| can_verify(key, alg))?;
        let kid = common.key_id.clone().or_else(|| jwk.thumbprint(ThumbprintHash::SHA256).ok())?;
        Some((kid, Self { alg, key, validation: signature_only(alg) }))
    }
}

/// The jsonwebtoken crate looks at a key's value when it verifies with it, and calls every token's signature wrong where the
/// key is no good. A key set is better refused as a whole, when it arrives.
fn can_verify(key: &DecodingKey, alg: Algorithm) -> bool {
    match (key.kind(), alg) {
        (DecodingKeyKind::RsaModulusExponent { n, e }, _) => {
            let components = RsaPublicKeyComponents { n, e };
            // RFC 7518 §3.3; to_parsed_public_key leaves the size to each verification.
            (2048..=8192).contains(&(n.len() * 8))
                && components.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256).is_ok()
        }
        (DecodingKeyKind::SecretOrDer(point), Algorithm::ES256) => {
            ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).is_ok()
        }
        (DecodingKeyKind::SecretOrDer(point), _) => ParsedPublicKey::new(&ED25519, point).is_ok(),
    }
}

/// The claims are checked by [`TokenVerifier`](super::TokenVerifier): the jsonwebtoken crate reads the system's clock.
fn signature_only(alg: Algorithm) -> Validation {
    let mut validation = Validation::new(alg.into());
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation
}
