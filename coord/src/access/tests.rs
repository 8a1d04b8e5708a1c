#![allow(clippy::unwrap_used)]

use std::time::SystemTime;

use tempfile::TempDir;
use titan_certs::{CertDir, LeafRequest, Role};
use titan_transport::tls::TlsMaterial;

use super::*;
use crate::keys::Limits;

struct Fixture {
    _dir: TempDir,
    file: KeyFile,
    access: Access,
}

fn fixture(required: bool) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let file = KeyFile::in_dir(dir.path());
    let access = Access::with_keys(file.clone(), required).unwrap();
    Fixture { _dir: dir, file, access }
}

impl Fixture {
    /// A key, and the header that shows it.
    fn add(&self, name: &str, limits: Limits) -> String {
        let (_, text) = self.file.add(name, limits, SystemTime::now()).unwrap();
        self.access.look().unwrap();
        format!("Bearer {text}")
    }

    fn revoke(&self, name: &str) {
        self.file.revoke(name, SystemTime::now()).unwrap();
        self.access.look().unwrap();
    }

    fn caller(&self, header: &str) -> Caller {
        self.access.authenticate(Some(header), None).unwrap()
    }

    fn refused(&self, header: Option<&str>) -> AccessError {
        self.access.authenticate(header, None).unwrap_err()
    }
}

/// A client's certificate.
fn certificate(name: &str) -> CertificateDer<'static> {
    let dir = tempfile::tempdir().unwrap();
    let certs = CertDir::new(dir.path());
    certs.init().unwrap();
    certs.ensure(&LeafRequest::new(Role::Client, name)).unwrap();
    let (cert, key) = (certs.leaf_pem(Role::Client, name), certs.leaf_key(Role::Client, name));
    TlsMaterial::from_files(&certs.ca_pem(), &cert, &key).unwrap().chain.remove(0)
}

#[test]
fn without_keys_on_this_machine_nobody_needs_one() {
    assert!(!Access::open().asks());
    let fixture = fixture(false);
    assert!(!fixture.access.asks());
    assert!(fixture.access.authenticate(None, None).unwrap().key.is_none());
    assert!(fixture.access.authenticate(Some("Bearer any"), None).is_ok(), "OpenAI's packages send some key always");
}

#[test]
fn the_first_key_closes_the_door_and_the_last_one_does_not_open_it() {
    let fixture = fixture(false);
    let header = fixture.add("alice", Limits::default());
    assert_eq!(fixture.caller(&header).key.unwrap().name, "alice");
    assert_eq!(fixture.refused(None), AccessError::MissingKey);
    fixture.revoke("alice");
    assert_eq!(fixture.refused(Some(&header)), AccessError::Revoked { name: "alice".to_owned() });
    assert_eq!(fixture.refused(None), AccessError::MissingKey);
    assert!(fixture.access.is_closed());
}

#[test]
fn a_file_that_is_moved_away_closes_the_door() {
    let fixture = fixture(false);
    let header = fixture.add("alice", Limits::default());
    fs::remove_file(fixture.file.path()).unwrap();
    fixture.access.look().unwrap();
    assert_eq!(fixture.refused(None), AccessError::MissingKey);
    assert_eq!(fixture.refused(Some(&header)), AccessError::UnknownKey);
    let new = fixture.add("bob", Limits::default());
    assert!(fixture.access.authenticate(Some(&new), None).is_ok());
}

#[test]
fn where_others_can_reach_it_a_key_is_asked_for_from_the_start() {
    let fixture = fixture(true);
    assert!(fixture.access.asks() && fixture.access.is_closed());
    assert_eq!(fixture.refused(None), AccessError::MissingKey);
    fixture.add("alice", Limits::default());
    assert!(!fixture.access.is_closed());
}

#[test]
fn what_is_no_key_of_ours_is_refused() {
    let fixture = fixture(true);
    let header = fixture.add("alice", Limits::default());
    let other = format!("{header}x");
    let unknown = "Bearer titan-00000000-AAAA";
    for wrong in ["Bearer any", "Basic YTpi", "Bearer", "Bearer ", &other, unknown, "titan-00000000-AAAA"] {
        let error = fixture.refused(Some(wrong));
        assert!(matches!(error, AccessError::UnknownKey | AccessError::MissingKey), "{wrong}: {error}");
    }
    assert!(fixture.access.authenticate(Some(&header.replace("Bearer", "bearer")), None).is_ok());
}

#[test]
fn a_certificate_stands_in_for_a_key_and_has_the_limits_and_the_fate_of_its_name() {
    let fixture = fixture(true);
    let laptop = certificate("laptop");
    assert!(fixture.access.authenticate(None, Some(&laptop)).unwrap().key.is_none());
    assert!(fixture.access.authenticate(Some("Bearer any"), Some(&laptop)).is_ok());
    fixture.add("laptop", Limits::default());
    assert_eq!(fixture.access.authenticate(None, Some(&laptop)).unwrap().key.unwrap().name, "laptop");
    fixture.revoke("laptop");
    let refused = fixture.access.authenticate(None, Some(&laptop)).unwrap_err();
    assert_eq!(refused, AccessError::Revoked { name: "laptop".to_owned() });
    // One that was had with a key is good as long as the key is.
    let header = fixture.add("alice", Limits::default());
    let id = fixture.caller(&header).key_id().unwrap().to_owned();
    let enrolled = certificate(&crate::keys::certificate_name(&id));
    assert_eq!(fixture.access.authenticate(None, Some(&enrolled)).unwrap().key_id(), Some(id.as_str()));
    fixture.revoke("alice");
    assert!(fixture.access.authenticate(None, Some(&enrolled)).is_err());
    let of_nobody = certificate(&crate::keys::certificate_name("00000000"));
    assert_eq!(fixture.access.authenticate(None, Some(&of_nobody)).unwrap_err(), AccessError::UnknownKey);
    let wrong = fixture.access.authenticate(Some("Bearer titan-00000000-AAAA"), Some(&laptop)).unwrap_err();
    assert_eq!(wrong, AccessError::UnknownKey, "whoever shows a key is asked for a good one");
}

#[test]
fn each_limit_is_named_when_it_is_reached() {
    let fixture = fixture(true);
    let now = Instant::now();
    let header = fixture.add(
        "alice",
        Limits {
            requests_per_second: Some(2),
            tokens_per_minute: Some(60),
            concurrent: Some(3),
            models: vec!["m".to_owned()],
            ..Limits::default()
        },
    );
    let caller = fixture.caller(&header);
    assert_eq!(caller.generations(), Some(1), "each is asked for");
    let admit = |model, now| fixture.access.admit(&caller, model, "one more", now + MINUTE, now).map(drop);
    let book = |job, now| fixture.access.admit(&caller, "m", job, now + MINUTE, now).unwrap().book(now + MINUTE);
    let limit = |now| admit("m", now).unwrap_err().limit().unwrap();

    assert!(matches!(admit("other", now), Err(AccessError::ModelNotAllowed { .. })));
    assert_eq!((admit("m", now), admit("m", now)), (Ok(()), Ok(())));
    assert_eq!(limit(now), "requests_per_second");

    let later = now + SECOND;
    fixture.access.charge(caller.key_id().unwrap(), 90, later);
    let error = admit("m", later).unwrap_err();
    assert_eq!((error.limit(), error.retry_after()), (Some("tokens_per_minute"), Some(Duration::from_secs(31))));
    let later = later + MINUTE;
    assert_eq!(admit("m", later), Ok(()));

    let later = later + MINUTE;
    fixture.access.runs("agent-1", &[], HashMap::from([(caller.key_id().unwrap().to_owned(), 2)]));
    book("job", later);
    assert_eq!(limit(later), "concurrent");
    fixture.access.runs("agent-1", &["job".to_owned()], HashMap::from([(caller.key_id().unwrap().to_owned(), 2)]));
    assert_eq!(admit("m", later), Ok(()));
    let later = later + MINUTE;
    book("job-2", later);
    assert_eq!(limit(later), "concurrent");
    fixture.access.gone("agent-1");
    assert_eq!(admit("m", later), Ok(()));
}

#[test]
fn limits_that_change_hold_from_then_on() {
    let fixture = fixture(true);
    let header = fixture.add("alice", Limits::default());
    let now = Instant::now();
    let caller = fixture.caller(&header);
    assert_eq!(caller.generations(), None, "a token without a limit may be used again");
    assert!((0..100).all(|_| fixture.access.admit(&caller, "m", "job", now, now).is_ok()));
    fixture.file.limit("alice", |limits| limits.requests_per_second = Some(1)).unwrap();
    fixture.access.look().unwrap();
    let caller = fixture.caller(&header);
    assert!(fixture.access.admit(&caller, "m", "job", now, now).is_ok());
    assert!(fixture.access.admit(&caller, "m", "job", now, now).is_err());
}

#[test]
fn a_file_that_breaks_while_it_runs_changes_nothing() {
    let fixture = fixture(true);
    let header = fixture.add("alice", Limits::default());
    fs::write(fixture.file.path(), "{").unwrap();
    assert!(fixture.access.look().is_err());
    assert!(fixture.access.look().is_ok(), "the same is not read again for every stranger");
    assert!(fixture.access.authenticate(Some(&header), None).is_ok());
    assert!(Access::with_keys(fixture.file.clone(), true).is_err(), "and does not let one start");
}
