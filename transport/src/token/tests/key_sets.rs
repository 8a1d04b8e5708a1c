use std::path::Path;

use jsonwebtoken::jwk::ThumbprintHash;
use serde_json::json;

use super::*;

#[test]
fn thumbprints_are_those_of_the_rfcs() {
    let n = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3\
             oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZ\
             Hzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kE\
             gU8awapJzKnqDKgw";
    let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    for (jwk, thumbprint, rfc) in [
        (json!({"kty": "RSA", "n": n, "e": "AQAB"}), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs", "RFC 7638 §3.1"),
        (
            json!({"kty": "OKP", "crv": "Ed25519", "x": x}),
            "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
            "RFC 8037 A.3",
        ),
    ] {
        let jwk: Jwk = serde_json::from_value(jwk).unwrap();
        assert_eq!(jwk.thumbprint(ThumbprintHash::SHA256).unwrap(), thumbprint, "{rfc}");
    }
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
    assert_eq!(changed.jwks().keys[0].common.key_id.as_deref(), Some(changed.kid()), "the signing key comes first");
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
    let off_the_curve = r#"[{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","kid":"a"}]"#;
    let n = URL_SAFE_NO_PAD.encode([0xff; 128]);
    let rsa_1024 = format!(r#"[{{"kty":"RSA","n":"{n}","e":"AQAB","kid":"a"}}]"#);
    for (keys, given) in [
        (r#"[]"#, 0),
        (r#"[{"kty":"oct","k":"c2VjcmV0","kid":"a","alg":"HS256"}]"#, 1),
        (r#"[{"kty":"RSA","n":"AQAB","e":"AQAB","kid":"a"},{"kty":"EC","crv":"P-521","x":"","y":"","kid":"b"}]"#, 2),
        (off_the_curve, 1),
        (&rsa_1024, 1),
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
fn a_key_without_an_id_goes_by_its_thumbprint() {
    let setup = setup(Algorithm::EdDSA);
    let mut set = setup.issuer.jwks();
    set.keys[0].common.key_id = None;
    setup.verifier.set_keys(&serde_json::to_string(&set).unwrap()).unwrap();
    assert!(setup.verify(&setup.token(&claims())).is_ok());
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
fn algorithms_are_read_from_configuration() {
    assert_eq!("eddsa".parse(), Ok(Algorithm::EdDSA));
    assert_eq!(Algorithm::default().to_string(), "RS256");
    assert!("HS256".parse::<Algorithm>().is_err());
}
