//! Keys of the RFCs, and tokens that another implementation (Python's cryptography, over OpenSSL) signed with them.
//!
//! RS256: RFC 7515 A.2; ES256: RFC 7515 A.3; EdDSA: RFC 8037 A.1.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

use super::*;

struct Vector {
    algorithm: Algorithm,
    private_pem: &'static str,
    public_pem: &'static str,
    jwk: &'static str,
    token: &'static str,
}

macro_rules! vector {
    ($algorithm:ident, $name:literal) => {
        Vector {
            algorithm: Algorithm::$algorithm,
            private_pem: include_str!(concat!("vectors/", $name, ".key.pem")),
            public_pem: include_str!(concat!("vectors/", $name, ".pub.pem")),
            jwk: include_str!(concat!("vectors/", $name, ".jwk.json")),
            token: include_str!(concat!("vectors/", $name, ".jwt")).trim_ascii_end(),
        }
    };
}

const VECTORS: [Vector; 3] = [vector!(RS256, "rs256"), vector!(ES256, "es256"), vector!(EdDSA, "eddsa")];

impl Vector {
    fn jwk(&self) -> Jwk {
        serde_json::from_str(self.jwk).unwrap()
    }

    /// An issuer whose directory holds the vector's key.
    fn issuer(&self) -> TokenIssuer {
        let dir = tempfile::tempdir().unwrap();
        let name = format!("{}.1.{}.pem", self.algorithm, self.jwk().common.key_id.unwrap());
        fs::write(dir.path().join(name), self.private_pem).unwrap();
        TokenIssuer::open(dir.path(), self.algorithm).unwrap()
    }

    fn claims() -> Claims {
        Claims { jti: "00112233445566778899aabbccddeeff".into(), ..claims() }
    }
}

#[test]
fn our_verifier_accepts_the_tokens_of_an_independent_implementation() {
    for vector in VECTORS {
        let verifier = TokenVerifier::new(COORDINATOR_NAME);
        verifier.set_keys(&format!(r#"{{"keys":[{}]}}"#, vector.jwk)).unwrap();
        assert_eq!(verifier.verify(vector.token, "agent-1", at(NOW)), Ok(Vector::claims()), "{}", vector.algorithm);
    }
}

#[test]
fn an_independent_implementation_accepts_our_tokens_by_jwks_and_by_pem() {
    for vector in VECTORS {
        let issuer = vector.issuer();
        let jwk: serde_json::Value = serde_json::from_str(vector.jwk).unwrap();
        assert_eq!(serde_json::to_value(&issuer.jwks().keys[0]).unwrap(), jwk);
        assert_eq!(issuer.public_key_pem(), vector.public_pem);
        let token = issuer.issue(&Vector::claims()).unwrap();
        if vector.algorithm != Algorithm::ES256 {
            assert_eq!(token, vector.token, "RSASSA-PKCS1-v1_5 and Ed25519 have one signature per message");
            continue;
        }
        let (message, signature) = token.rsplit_once('.').unwrap();
        assert_eq!(message, vector.token.rsplit_once('.').unwrap().0);
        let [x, y] = ["x", "y"].map(|name| URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap());
        let point = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, [vec![4], x, y].concat());
        assert!(point.verify(message.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap()).is_ok());
    }
}
