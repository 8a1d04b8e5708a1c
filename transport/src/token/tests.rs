#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken as jwt;
use proptest::prelude::*;
use tempfile::TempDir;
use titan_proto::COORDINATOR_NAME;

use super::*;

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

#[test]
fn every_algorithm_carries_the_claims_to_the_agent() {
    for algorithm in Algorithm::ALL {
        let setup = setup(algorithm);
        let claims = claims();
        assert_eq!(setup.verify(&setup.token(&claims)), Ok(claims), "{algorithm}");
        assert_eq!(setup.issuer.algorithm(), algorithm);
    }
}

#[test]
fn an_independent_implementation_accepts_our_tokens_by_jwks_and_by_pem() {
    for (ours, theirs) in [
        (Algorithm::RS256, jwt::Algorithm::RS256),
        (Algorithm::ES256, jwt::Algorithm::ES256),
        (Algorithm::EdDSA, jwt::Algorithm::EdDSA),
    ] {
        let setup = setup(ours);
        let claims = claims();
        let token = setup.token(&claims);
        let mut validation = jwt::Validation::new(theirs);
        validation.validate_exp = false;
        let set: jwt::jwk::JwkSet = serde_json::from_value(serde_json::to_value(setup.issuer.jwks()).unwrap()).unwrap();
        let jwk = set.find(jwt::decode_header(&token).unwrap().kid.unwrap().as_str()).unwrap();
        let thumbprint = jwk.thumbprint(jwt::jwk::ThumbprintHash::SHA256).unwrap();
        assert_eq!(Some(thumbprint), jwk.common.key_id);
        let pem = setup.issuer.public_key_pem().as_bytes();
        let by_pem = match ours {
            Algorithm::RS256 => jwt::DecodingKey::from_rsa_pem(pem),
            Algorithm::ES256 => jwt::DecodingKey::from_ec_pem(pem),
            Algorithm::EdDSA => jwt::DecodingKey::from_ed_pem(pem),
        };
        for key in [jwt::DecodingKey::from_jwk(jwk).unwrap(), by_pem.unwrap()] {
            assert_eq!(jwt::decode::<Claims>(&token, &key, &validation).unwrap().claims, claims, "{ours}");
        }
    }
}

#[test]
fn our_verifier_accepts_the_tokens_of_an_independent_implementation() {
    let setup = setup(Algorithm::RS256);
    let mut header = jwt::Header::new(jwt::Algorithm::RS256);
    header.kid = Some(setup.issuer.kid().into());
    let key = jwt::EncodingKey::from_rsa_pem(&setup.pkcs8_pem()).unwrap();
    let claims = claims();
    assert_eq!(setup.verify(&jwt::encode(&header, &claims, &key).unwrap()), Ok(claims));
}

#[test]
fn thumbprints_are_those_of_the_rfcs() {
    let rsa = Jwk {
        kty: "RSA".into(),
        n: Some(
            "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3\
             oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZ\
             Hzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kE\
             gU8awapJzKnqDKgw"
                .into(),
        ),
        e: Some("AQAB".into()),
        ..Jwk::default()
    };
    assert_eq!(rsa.thumbprint().unwrap(), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs", "RFC 7638 §3.1");
    let ed25519 = Jwk {
        kty: "OKP".into(),
        crv: Some("Ed25519".into()),
        x: Some("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo".into()),
        ..Jwk::default()
    };
    assert_eq!(ed25519.thumbprint().unwrap(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k", "RFC 8037 A.3");
}

#[test]
fn an_absent_token_is_said_to_be_absent() {
    assert_eq!(setup(Algorithm::EdDSA).verify(""), Err(TokenError::Absent));
}

#[test]
fn garbage_is_malformed() {
    let setup = setup(Algorithm::EdDSA);
    let good = setup.token(&claims());
    let no_signature = good.rsplit_once('.').unwrap().0;
    for garbage in ["x", "a.b", "a.b.c", "..", "a.b.c.d", "eyJ.eyJ.x", "\u{1f600}.a.b", no_signature] {
        assert!(matches!(setup.verify(garbage), Err(TokenError::Malformed(_))), "{garbage}");
    }
    assert!(matches!(setup.verify(&format!("{good}=")), Err(TokenError::Malformed(_))));
    assert!(setup.verify(&format!("{good}.{good}")).is_err());
}

#[test]
fn a_token_that_is_too_long_is_not_looked_at() {
    let setup = setup(Algorithm::EdDSA);
    let long = "x".repeat(MAX_TOKEN_BYTES + 1);
    assert_eq!(setup.verify(&long), Err(TokenError::TooLong { len: MAX_TOKEN_BYTES + 1 }));
    let model = "m".repeat(MAX_TOKEN_BYTES);
    assert!(matches!(setup.issuer.issue(&Claims { model, ..claims() }), Err(IssueError::TooLong { .. })));
}

#[test]
fn alg_none_is_unsigned_however_it_is_spelt() {
    let setup = setup(Algorithm::RS256);
    let payload = serde_json::to_vec(&claims()).unwrap();
    for alg in ["none", "None", "NONE", "nOnE"] {
        for kid in ["", &format!(r#","kid":"{}""#, setup.issuer.kid())] {
            let token = setup.forged(&format!(r#"{{"alg":"{alg}"{kid}}}"#), &payload, |_| Vec::new());
            assert_eq!(setup.verify(&token), Err(TokenError::Unsigned));
        }
    }
}

#[test]
fn hs256_with_the_public_key_as_the_secret_is_the_wrong_algorithm() {
    let setup = setup(Algorithm::RS256);
    let mut header = jwt::Header::new(jwt::Algorithm::HS256);
    header.kid = Some(setup.issuer.kid().into());
    let secret = jwt::EncodingKey::from_secret(setup.issuer.public_key_pem().as_bytes());
    let token = jwt::encode(&header, &claims(), &secret).unwrap();
    let refused = TokenError::WrongAlgorithm { token: "HS256".into(), key: Algorithm::RS256 };
    assert_eq!(setup.verify(&token), Err(refused));
}

#[test]
fn the_same_key_under_another_algorithm_is_the_wrong_algorithm() {
    let setup = setup(Algorithm::RS256);
    let mut header = jwt::Header::new(jwt::Algorithm::RS512);
    header.kid = Some(setup.issuer.kid().into());
    let key = jwt::EncodingKey::from_rsa_pem(&setup.pkcs8_pem()).unwrap();
    let token = jwt::encode(&header, &claims(), &key).unwrap();
    assert!(matches!(setup.verify(&token), Err(TokenError::WrongAlgorithm { .. })));
}

#[test]
fn an_unknown_key_is_named_and_a_missing_one_is_said_to_be_missing() {
    let (ours, theirs) = (setup(Algorithm::EdDSA), setup(Algorithm::EdDSA));
    let refused = ours.verify(&theirs.token(&claims()));
    assert_eq!(refused, Err(TokenError::UnknownKey { kid: theirs.issuer.kid().into() }));

    let payload = serde_json::to_vec(&claims()).unwrap();
    let no_kid = ours.forged(r#"{"alg":"EdDSA"}"#, &payload, |_| vec![0; 64]);
    assert_eq!(ours.verify(&no_kid), Err(TokenError::NoKeyId));
    let header = format!(r#"{{"alg":"EdDSA","kid":"{}"}}"#, "k".repeat(2000));
    let Err(TokenError::UnknownKey { kid }) = ours.verify(&ours.forged(&header, b"{}", |_| Vec::new())) else {
        panic!("an unknown key")
    };
    assert_eq!(kid.len(), 64, "an error message does not repeat 2000 bytes");
}

#[test]
fn a_key_of_our_own_name_but_another_value_does_not_verify() {
    let (ours, theirs) = (setup(Algorithm::ES256), setup(Algorithm::ES256));
    let header = format!(r#"{{"alg":"ES256","kid":"{}","typ":"JWT"}}"#, ours.issuer.kid());
    let key = jwt::EncodingKey::from_ec_pem(&theirs.pkcs8_pem()).unwrap();
    let sign = |message: &[u8]| {
        URL_SAFE_NO_PAD.decode(jwt::crypto::sign(message, &key, jwt::Algorithm::ES256).unwrap()).unwrap()
    };
    let token = ours.forged(&header, &serde_json::to_vec(&claims()).unwrap(), sign);
    assert_eq!(ours.verify(&token), Err(TokenError::BadSignature));
}

#[test]
fn a_changed_payload_has_a_bad_signature() {
    for algorithm in Algorithm::ALL {
        let setup = setup(algorithm);
        let token = setup.token(&claims());
        let parts: Vec<_> = token.split('.').collect();
        let changed = serde_json::to_vec(&Claims { client_id: "mallory".into(), exp: NOW + 9999, ..claims() }).unwrap();
        let changed = format!("{}.{}.{}", parts[0], URL_SAFE_NO_PAD.encode(changed), parts[2]);
        assert_eq!(setup.verify(&changed), Err(TokenError::BadSignature), "{algorithm}");
        // Nothing about its claims is said, either, of a token that nobody signed.
        let expired = setup.verifier.verify(&changed, "agent-2", at(NOW + 99_999));
        assert_eq!(expired, Err(TokenError::BadSignature));
    }
}

#[test]
fn critical_header_extensions_are_refused() {
    let setup = setup(Algorithm::EdDSA);
    let header = format!(r#"{{"alg":"EdDSA","kid":"{}","crit":["b64"],"b64":false}}"#, setup.issuer.kid());
    assert!(matches!(setup.verify(&setup.forged(&header, b"{}", |_| vec![0; 64])), Err(TokenError::Malformed(_))));
}

#[test]
fn a_well_signed_token_of_another_kind_is_no_session_token() {
    let setup = setup(Algorithm::RS256);
    let mut header = jwt::Header::new(jwt::Algorithm::RS256);
    header.kid = Some(setup.issuer.kid().into());
    let key = jwt::EncodingKey::from_rsa_pem(&setup.pkcs8_pem()).unwrap();
    for claims in [serde_json::json!({"sub": "alice"}), serde_json::json!([]), serde_json::json!({"exp": "soon"})] {
        let token = jwt::encode(&header, &claims, &key).unwrap();
        assert_eq!(setup.verify(&token), Err(TokenError::Claims), "{claims}");
    }
}

#[test]
fn a_token_lives_from_nbf_to_exp_and_a_clock_may_be_a_little_off() {
    let setup = setup(Algorithm::EdDSA);
    let token = setup.token(&claims());
    let leeway = CLOCK_LEEWAY.as_secs() as i64;
    let verify = |seconds| setup.verifier.verify(&token, "agent-1", at(seconds));
    for good in [NOW - leeway, NOW, NOW + 299, NOW + 300 + leeway - 1] {
        assert!(verify(good).is_ok(), "{good}");
    }
    assert_eq!(verify(NOW - leeway - 1), Err(TokenError::NotYetValid { seconds: leeway + 1 }));
    assert_eq!(verify(NOW + 300 + leeway), Err(TokenError::Expired { seconds: leeway }));
    assert_eq!(claims().dead_at(), at(NOW + 300 + leeway));
    assert!(matches!(setup.verifier.verify(&token, "agent-1", UNIX_EPOCH), Err(TokenError::NotYetValid { .. })));
}

#[test]
fn times_at_the_ends_of_the_range_do_not_overflow() {
    let setup = setup(Algorithm::EdDSA);
    for (nbf, exp) in [(i64::MIN, i64::MAX), (i64::MAX, i64::MIN), (i64::MIN, i64::MIN), (i64::MAX, i64::MAX)] {
        let claims = Claims { nbf, exp, ..claims() };
        let _ = claims.dead_at();
        assert_eq!(setup.verify(&setup.token(&claims)).is_ok(), nbf == i64::MIN && exp == i64::MAX);
    }
}

#[test]
fn another_issuer_is_refused() {
    let setup = setup(Algorithm::EdDSA);
    let refused = setup.verify(&setup.token(&Claims { iss: "somebody".into(), ..claims() })).unwrap_err();
    assert_eq!(refused, TokenError::WrongIssuer { token: "somebody".into(), expected: COORDINATOR_NAME.into() });
    assert!(!refused.is_permission());
}

#[test]
fn another_agent_or_model_is_a_matter_of_permission() {
    let setup = setup(Algorithm::EdDSA);
    let refused = setup.verify(&setup.token(&Claims { agent_id: "agent-2".into(), ..claims() })).unwrap_err();
    assert_eq!(refused, TokenError::WrongAgent { token: "agent-2".into(), this: "agent-1".into() });
    assert!(refused.is_permission());

    let claims = claims();
    assert_eq!(claims.check_model("smollm2:135m"), Ok(()));
    assert_eq!(claims.check_model(""), Ok(()), "a request that names no model means the token's");
    let refused = claims.check_model("llama").unwrap_err();
    assert!(refused.is_permission());
    assert!(refused.to_string().contains("smollm2:135m") && refused.to_string().contains("llama"), "{refused}");
}

#[test]
fn keys_survive_a_restart() {
    for algorithm in Algorithm::ALL {
        let setup = setup(algorithm);
        let token = setup.token(&claims());
        let again = TokenIssuer::open(&setup.dir.path().join("keys"), algorithm).unwrap();
        assert_eq!(again.kid(), setup.issuer.kid());
        assert_eq!(again.jwks(), setup.issuer.jwks());
        assert!(verifier_of(&again).verify(&token, "agent-1", at(NOW)).is_ok());
    }
}

#[test]
fn a_change_of_algorithm_signs_with_a_new_key_and_still_verifies_the_old_ones() {
    let setup = setup(Algorithm::RS256);
    let old = setup.token(&claims());
    let dir = setup.dir.path().join("keys");
    let changed = TokenIssuer::open(&dir, Algorithm::ES256).unwrap();
    let new = changed.issue(&claims()).unwrap();
    assert_eq!(changed.jwks().keys.len(), 2);
    assert_eq!(changed.jwks().keys[0].kid.as_deref(), Some(changed.kid()), "the signing key comes first");
    let verifier = verifier_of(&changed);
    for token in [&old, &new] {
        assert!(verifier.verify(token, "agent-1", at(NOW)).is_ok());
    }
    let back = TokenIssuer::open(&dir, Algorithm::RS256).unwrap();
    assert_eq!(back.kid(), setup.issuer.kid(), "changing back uses the key that is there");
}

#[test]
fn a_rotated_key_signs_after_a_restart_too() {
    let setup = setup(Algorithm::ES256);
    let dir = setup.dir.path().join("keys");
    let rotated = TokenIssuer::rotate(&dir, Algorithm::ES256).unwrap();
    assert_ne!(rotated.kid(), setup.issuer.kid());
    assert_eq!(TokenIssuer::open(&dir, Algorithm::ES256).unwrap().kid(), rotated.kid());
    assert!(verifier_of(&rotated).verify(&setup.token(&claims()), "agent-1", at(NOW)).is_ok());
}

#[cfg(unix)]
#[test]
fn signing_keys_are_readable_by_their_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let setup = setup(Algorithm::EdDSA);
    let dir = setup.dir.path().join("keys");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    for entry in fs::read_dir(&dir).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
}

#[test]
fn a_damaged_key_file_is_named_and_foreign_files_are_left_alone() {
    let setup = setup(Algorithm::EdDSA);
    let dir = setup.dir.path().join("keys");
    fs::write(dir.join("notes.pem"), "mine").unwrap();
    fs::write(dir.join("EdDSA.x.y.pem"), "mine").unwrap();
    assert!(TokenIssuer::open(&dir, Algorithm::EdDSA).is_ok());

    let file = format!("EdDSA.1.{}.pem", "A".repeat(43));
    for content in [&b"nonsense"[..], &[0xff, 0], setup.issuer.public_key_pem().as_bytes()] {
        fs::write(dir.join(&file), content).unwrap();
        let refused = TokenIssuer::open(&dir, Algorithm::EdDSA).unwrap_err();
        assert!(matches!(&refused, KeyError::Damaged { path } if path.ends_with(&file)), "{refused}");
    }
}

#[test]
fn a_key_set_without_a_usable_key_changes_nothing() {
    let setup = setup(Algorithm::EdDSA);
    let token = setup.token(&claims());
    assert!(matches!(setup.verifier.set_keys("<html>"), Err(KeySetError::Json(_))));
    for (keys, given) in [
        (r#"[]"#, 0),
        (r#"[{"kty":"oct","k":"c2VjcmV0","kid":"a","alg":"HS256"}]"#, 1),
        (r#"[{"kty":"RSA","n":"AQAB","e":"AQAB","kid":"a"},{"kty":"EC","crv":"P-521","x":"","y":"","kid":"b"}]"#, 2),
        (r#"[{"kty":"OKP","crv":"Ed25519","x":"AQAB","kid":"a"},{"kty":"AKP","kid":"b"}]"#, 2),
    ] {
        let refused = setup.verifier.set_keys(&format!(r#"{{"keys":{keys}}}"#)).unwrap_err();
        assert!(matches!(refused, KeySetError::NoUsableKey { given: n } if n == given), "{keys}: {refused}");
    }
    for change in [("use", "enc"), ("alg", "ES256")] {
        let mut set = serde_json::to_value(setup.issuer.jwks()).unwrap();
        set["keys"][0][change.0] = change.1.into();
        assert!(setup.verifier.set_keys(&set.to_string()).is_err(), "{change:?}");
    }
    assert!(setup.verify(&token).is_ok());
}

#[test]
fn keys_can_be_replaced_while_tokens_are_verified() {
    let (old, new) = (setup(Algorithm::EdDSA), setup(Algorithm::EdDSA));
    let token = old.token(&claims());
    let jwks = [&old, &new].map(|setup| serde_json::to_string(&setup.issuer.jwks()).unwrap());
    std::thread::scope(|scope| {
        scope.spawn(|| (0..200).for_each(|i| assert_eq!(old.verifier.set_keys(&jwks[i % 2]).unwrap(), 1)));
        for _ in 0..200 {
            assert!(matches!(old.verify(&token), Ok(_) | Err(TokenError::UnknownKey { .. })));
        }
    });
}

#[test]
fn token_ids_do_not_repeat() {
    let ids: std::collections::HashSet<_> = (0..1000).map(|_| new_jti()).collect();
    assert_eq!(ids.len(), 1000);
    assert!(ids.iter().all(|id| id.len() == 32));
}

#[test]
fn algorithms_are_read_from_configuration() {
    assert_eq!("eddsa".parse(), Ok(Algorithm::EdDSA));
    assert_eq!(Algorithm::default().to_string(), "RS256");
    assert!("HS256".parse::<Algorithm>().is_err());
}

fn shared() -> &'static Setup {
    static SHARED: std::sync::OnceLock<Setup> = std::sync::OnceLock::new();
    SHARED.get_or_init(|| setup(Algorithm::ES256))
}

proptest! {
    #[test]
    fn no_text_makes_the_verifier_panic_or_pass(text in ".{0,200}") {
        prop_assert!(shared().verify(&text).is_err());
    }

    #[test]
    fn any_changed_byte_is_refused(at in 0usize..4096, to in "[A-Za-z0-9_.-]") {
        let token = shared().token(&claims());
        let at = at % token.len();
        prop_assume!(token.as_bytes()[at] != to.as_bytes()[0]);
        let changed = format!("{}{to}{}", &token[..at], &token[at + 1..]);
        prop_assert!(shared().verify(&changed).is_err());
    }
}
