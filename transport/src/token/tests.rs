#![allow(clippy::unwrap_used)]

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tempfile::TempDir;
use titan_proto::COORDINATOR_NAME;

use super::*;

mod key_sets;
mod tokens;
mod vectors;

const NOW: i64 = 1_729_123_156;

fn at(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap())
}

fn claims() -> Claims {
    Claims {
        iss: COORDINATOR_NAME.into(),
        agent_id: "agent-1".into(),
        client_id: "alice".into(),
        model: "smollm2:135m".into(),
        job_id: "job_abc123".into(),
        jti: new_jti(),
        iat: NOW,
        nbf: NOW,
        exp: NOW + 300,
        request: None,
        key: None,
        generations: None,
    }
}

struct Setup {
    dir: TempDir,
    issuer: TokenIssuer,
    verifier: TokenVerifier,
}

fn setup(algorithm: Algorithm) -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let issuer = TokenIssuer::open(&dir.path().join("keys"), algorithm).unwrap();
    let verifier = verifier_of(&issuer);
    Setup { dir, issuer, verifier }
}

fn verifier_of(issuer: &TokenIssuer) -> TokenVerifier {
    let verifier = TokenVerifier::new(COORDINATOR_NAME);
    verifier.set_keys(&serde_json::to_string(&issuer.jwks()).unwrap()).unwrap();
    verifier
}

impl Setup {
    fn token(&self, claims: &Claims) -> String {
        self.issuer.issue(claims).unwrap()
    }

    fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        self.verifier.verify(token, "agent-1", at(NOW))
    }

    /// A token that another program made: any header, any payload, signed by `sign`.
    fn forged(&self, header: &str, payload: &[u8], sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        let signature = sign(message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn pkcs8_pem(&self) -> Vec<u8> {
        let mut files = fs::read_dir(self.dir.path().join("keys")).unwrap();
        fs::read(files.next().unwrap().unwrap().path()).unwrap()
    }
}
