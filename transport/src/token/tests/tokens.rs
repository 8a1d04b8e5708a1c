use jsonwebtoken as jwt;
use proptest::prelude::*;

use super::*;

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
fn the_jsonwebtoken_crate_makes_the_same_tokens() {
    // Those of ES256 differ each time: its signatures hold a random number.
    for (algorithm, read) in [
        (Algorithm::RS256, jwt::EncodingKey::from_rsa_pem as fn(&[u8]) -> _),
        (Algorithm::EdDSA, jwt::EncodingKey::from_ed_pem),
    ] {
        let setup = setup(algorithm);
        let claims = claims();
        let header = jwt::Header { kid: Some(setup.issuer.kid().into()), ..jwt::Header::new(algorithm.into()) };
        let expected = jwt::encode(&header, &claims, &read(&setup.pkcs8_pem()).unwrap()).unwrap();
        assert_eq!(setup.token(&claims), expected, "{algorithm}");
    }
}

#[test]
fn one_issuer_signs_in_many_threads_at_once() {
    for algorithm in Algorithm::ALL {
        let setup = setup(algorithm);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let setup = &setup;
                scope.spawn(move || {
                    let claims = Claims { job_id: format!("job_{thread}"), ..claims() };
                    for _ in 0..10 {
                        assert_eq!(setup.verify(&setup.token(&claims)).as_ref(), Ok(&claims), "{algorithm}");
                    }
                });
            }
        });
    }
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
fn an_algorithm_that_no_library_knows_is_the_wrong_algorithm() {
    let setup = setup(Algorithm::ES256);
    let forged = |kid: &str| setup.forged(&format!(r#"{{"alg":"ES256K"{kid}}}"#), b"{}", |_| vec![0; 64]);
    let refused = TokenError::WrongAlgorithm { token: "ES256K".into(), key: Algorithm::ES256 };
    assert_eq!(setup.verify(&forged(&format!(r#","kid":"{}""#, setup.issuer.kid()))), Err(refused));
    assert_eq!(setup.verify(&forged(r#","kid":"other""#)), Err(TokenError::UnknownKey { kid: "other".into() }));
    assert_eq!(setup.verify(&forged("")), Err(TokenError::NoKeyId));
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
fn what_was_begun_with_a_token_may_go_on_after_it_has_expired() {
    let (setup, claims) = (setup(Algorithm::EdDSA), claims());
    let token = setup.token(&claims);
    let verify = |token: &str, agent, seconds| setup.verifier.verify_begun(token, agent, at(seconds));
    assert_eq!(verify(&token, "agent-1", NOW + 3_000), Ok(claims));
    let leeway = CLOCK_LEEWAY.as_secs() as i64;
    assert!(matches!(verify(&token, "agent-1", NOW - leeway - 1), Err(TokenError::NotYetValid { .. })));
    assert!(matches!(verify(&token, "agent-2", NOW + 3_000), Err(TokenError::WrongAgent { .. })));
    assert!(verify(&token[..token.len() - 4], "agent-1", NOW).is_err());
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
fn token_ids_do_not_repeat() {
    let ids: std::collections::HashSet<_> = (0..1000).map(|_| new_jti()).collect();
    assert_eq!(ids.len(), 1000);
    assert!(ids.iter().all(|id| id.len() == 32));
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
