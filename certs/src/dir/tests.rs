#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration as StdDuration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::server::WebPkiClientVerifier;
use rustls::{CertificateError, RootCertStore};
use rustls_pki_types::{ServerName, UnixTime};
use tempfile::TempDir;

use time::Duration;

use super::*;
use crate::identity::{COORDINATOR_SERVER_NAME, Identity, agent_server_name};
use crate::leaf::{CA_DAYS, CHAIN_BUDGET_BYTES, LEAF_DAYS, RENEW_DAYS};
use crate::names::MAX_NAME_LEN;

fn fresh() -> (TempDir, CertDir) {
    let temp = tempfile::tempdir().unwrap();
    let dir = CertDir::new(temp.path().join("titan").join("certs"));
    assert!(dir.init().unwrap());
    (temp, dir)
}

fn agent(name: &str) -> LeafRequest {
    LeafRequest::new(Role::Agent, name).hosts(["localhost", "127.0.0.1", "::1"])
}

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn unix(time: OffsetDateTime) -> UnixTime {
    UnixTime::since_unix_epoch(StdDuration::from_secs(time.unix_timestamp().try_into().unwrap()))
}

fn der(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

fn roots(dir: &CertDir) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(der(&dir.ca_pem())).unwrap();
    Arc::new(roots)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn verify_server(dir: &CertDir, leaf: &Path, name: &str, at: OffsetDateTime) -> Result<(), rustls::Error> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(dir), provider()).build().unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    verifier.verify_server_cert(&der(leaf), &[], &name, &[], unix(at)).map(|_| ())
}

fn verify_client(dir: &CertDir, leaf: &Path) -> Result<(), rustls::Error> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(dir), provider()).build().unwrap();
    verifier.verify_client_cert(&der(leaf), &[], unix(now())).map(|_| ())
}

#[test]
fn an_agent_is_a_server_under_its_role_name_and_its_hosts_only() {
    let (_temp, dir) = fresh();
    dir.issue(&agent("agent-1")).unwrap();
    let leaf = dir.leaf_pem(Role::Agent, "agent-1");
    for name in [agent_server_name("Agent-1").as_str(), "localhost", "127.0.0.1", "::1"] {
        verify_server(&dir, &leaf, name, now()).unwrap();
    }
    for name in [COORDINATOR_SERVER_NAME, &agent_server_name("agent-2"), "example.com", "127.0.0.2"] {
        let refused = verify_server(&dir, &leaf, name, now()).unwrap_err();
        let about_name = matches!(
            refused,
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
            )
        );
        assert!(about_name, "{name}: {refused:?}");
    }
    verify_client(&dir, &leaf).unwrap();
}

#[test]
fn a_coordinator_is_server_and_client() {
    let (_temp, dir) = fresh();
    dir.issue(&LeafRequest::new(Role::Coordinator, "main")).unwrap();
    let leaf = dir.leaf_pem(Role::Coordinator, "main");
    verify_server(&dir, &leaf, COORDINATOR_SERVER_NAME, now()).unwrap();
    verify_client(&dir, &leaf).unwrap();
    assert!(verify_server(&dir, &leaf, &agent_server_name("main"), now()).is_err());
}

#[test]
fn a_client_is_never_a_server_not_even_under_a_host_it_asked_for() {
    let (_temp, dir) = fresh();
    dir.issue(&LeafRequest::new(Role::Client, "alice").hosts(["localhost"])).unwrap();
    let leaf = dir.leaf_pem(Role::Client, "alice");
    verify_client(&dir, &leaf).unwrap();
    assert!(verify_server(&dir, &leaf, "localhost", now()).is_err());
}

#[test]
fn another_clusters_certificates_are_of_an_unknown_issuer() {
    let ((_a, ours), (_b, theirs)) = (fresh(), fresh());
    theirs.issue(&LeafRequest::new(Role::Client, "mallory")).unwrap();
    let refused = verify_client(&ours, &theirs.leaf_pem(Role::Client, "mallory")).unwrap_err();
    assert_eq!(refused, rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer));
}

#[test]
fn a_leaf_cannot_sign_another_leaf() {
    let (_temp, dir) = fresh();
    dir.issue(&agent("rogue")).unwrap();
    // rcgen signs with anything; it is the verifier that must refuse.
    let rogue = der(&dir.leaf_pem(Role::Agent, "rogue"));
    let key = KeyPair::from_pem(&fs::read_to_string(dir.leaf_key(Role::Agent, "rogue")).unwrap()).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_der(&rogue, key).unwrap();
    let forged = rcgen::CertificateParams::new(vec![COORDINATOR_SERVER_NAME.to_owned()])
        .unwrap()
        .signed_by(&KeyPair::generate().unwrap(), &issuer)
        .unwrap();
    let verifier = WebPkiServerVerifier::builder_with_provider(roots(&dir), provider()).build().unwrap();
    let name = ServerName::try_from(COORDINATOR_SERVER_NAME).unwrap();
    let chained = verifier.verify_server_cert(forged.der(), &[rogue], &name, &[], unix(now()));
    assert!(chained.is_err());
}

#[test]
fn validity_begins_a_little_early_and_ends_after_the_days_asked_for() {
    let (_temp, dir) = fresh();
    let start = now();
    let info = dir.issue_at(&agent("a"), start).unwrap();
    let leaf = dir.leaf_pem(Role::Agent, "a");
    let end = start + Duration::days(LEAF_DAYS.into());
    verify_server(&dir, &leaf, "localhost", start - Duration::minutes(59)).unwrap();
    verify_server(&dir, &leaf, "localhost", end - Duration::minutes(1)).unwrap();
    assert!(verify_server(&dir, &leaf, "localhost", start - Duration::minutes(61)).is_err());
    assert!(verify_server(&dir, &leaf, "localhost", end + Duration::minutes(1)).is_err());
    assert!((info.not_after - end).abs() <= Duration::seconds(1));
}

#[test]
fn a_leaf_never_outlives_its_ca_and_an_expired_ca_issues_nothing() {
    let (_temp, dir) = fresh();
    let ca_end = dir.ca().unwrap().not_after;
    let late = dir.issue_at(&agent("a"), ca_end - Duration::days(10)).unwrap();
    assert_eq!(late.not_after, ca_end);
    let refused = dir.issue_at(&agent("a"), ca_end + Duration::days(1)).unwrap_err();
    assert!(matches!(refused, CertsError::Make(MakeError::CaExpired(_))), "{refused}");
    assert!((ca_end - now()) > Duration::days(i64::from(CA_DAYS) - 1));
}

#[test]
fn the_chain_fits_the_first_flight_even_with_many_hosts() {
    let (_temp, dir) = fresh();
    let ca_len = der(&dir.ca_pem()).len();
    let name = "x".repeat(MAX_NAME_LEN);
    let hosts = (0..8).map(|i| format!("gpu-{i}.rack-1.datacentre.example.com"));
    dir.issue(&LeafRequest::new(Role::Agent, name.clone()).hosts(hosts)).unwrap();
    assert!(der(&dir.leaf_pem(Role::Agent, &name)).len() + ca_len <= CHAIN_BUDGET_BYTES);

    dir.issue(&agent("agent-1")).unwrap();
    let usual = der(&dir.leaf_pem(Role::Agent, "agent-1")).len() + ca_len;
    assert!(usual < 1200, "leaf and CA have {usual} bytes");

    let long = (0..16).map(|i| format!("{i}.{}.example.com", "y".repeat(63)));
    let refused = dir.issue(&LeafRequest::new(Role::Agent, "a").hosts(long)).unwrap_err();
    assert!(matches!(refused, CertsError::Make(MakeError::TooLarge { .. })), "{refused}");
}

#[test]
fn certificates_say_what_rfc_5280_wants_of_them() {
    let (_temp, dir) = fresh();
    let first = dir.issue(&agent("a")).unwrap();
    let second = dir.issue(&agent("a")).unwrap();
    assert_ne!(first.serial, second.serial);
    assert_eq!(first.serial.len(), 32);
    let (ca, leaf) = (der(&dir.ca_pem()), der(&dir.leaf_pem(Role::Agent, "a")));
    let (_, ca) = x509_parser::parse_x509_certificate(&ca).unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    assert_eq!(ca.basic_constraints().unwrap().unwrap().value.path_len_constraint, Some(0));
    assert!(!leaf.is_ca());
    use x509_parser::prelude::ParsedExtension as E;
    let subject_key = |c: &x509_parser::prelude::X509Certificate<'_>| {
        c.iter_extensions().find_map(|e| match e.parsed_extension() {
            E::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        })
    };
    let authority_key = leaf.iter_extensions().find_map(|e| match e.parsed_extension() {
        E::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
        _ => None,
    });
    assert!(subject_key(&leaf).is_some());
    assert!(authority_key.is_some());
    assert_eq!(authority_key, subject_key(&ca));
}

#[cfg(unix)]
#[test]
fn keys_are_readable_by_their_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let (_temp, dir) = fresh();
    dir.issue(&agent("a")).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(dir.path()), 0o700);
    assert_eq!(mode(&dir.ca_key()), 0o600);
    assert_eq!(mode(&dir.leaf_key(Role::Agent, "a")), 0o600);
    // Renewal replaces a key whose mode somebody loosened by one that is private again.
    fs::set_permissions(dir.leaf_key(Role::Agent, "a"), fs::Permissions::from_mode(0o644)).unwrap();
    dir.issue(&agent("a")).unwrap();
    assert_eq!(mode(&dir.leaf_key(Role::Agent, "a")), 0o600);
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().ends_with(".tmp")), "{left:?}");
}

#[test]
fn renewing_a_leaf_keeps_the_ca_and_makes_a_new_key() {
    let (_temp, dir) = fresh();
    dir.issue(&agent("a")).unwrap();
    let ca = (fs::read(dir.ca_pem()).unwrap(), fs::read(dir.ca_key()).unwrap());
    let key = fs::read(dir.leaf_key(Role::Agent, "a")).unwrap();
    dir.issue(&agent("a")).unwrap();
    assert!(!dir.init().unwrap());
    assert_eq!(ca, (fs::read(dir.ca_pem()).unwrap(), fs::read(dir.ca_key()).unwrap()));
    assert_ne!(key, fs::read(dir.leaf_key(Role::Agent, "a")).unwrap());
    verify_server(&dir, &dir.leaf_pem(Role::Agent, "a"), "localhost", now()).unwrap();
}

#[test]
fn half_a_ca_is_refused_and_left_alone() {
    for half in ["ca.pem", "ca.key"] {
        let (_temp, dir) = fresh();
        fs::remove_file(dir.path().join(half)).unwrap();
        for refused in [dir.init().unwrap_err(), dir.issue(&agent("a")).unwrap_err()] {
            assert!(matches!(&refused, CertsError::HalfCa { missing, .. } if missing.ends_with(half)), "{refused}");
        }
        assert!(!dir.path().join(half).exists());
    }
}

#[test]
fn a_directory_that_is_there_and_empty_gets_its_ca_too() {
    let temp = tempfile::tempdir().unwrap();
    let dir = CertDir::new(temp.path());
    assert!(dir.init().unwrap());
    assert!(!dir.init().unwrap());
    dir.issue(&agent("a")).unwrap();
}

#[test]
fn files_that_an_editor_put_a_byte_order_mark_before_are_read() {
    let (_temp, dir) = fresh();
    dir.issue(&agent("a")).unwrap();
    for file in [dir.ca_pem(), dir.ca_key(), dir.leaf_pem(Role::Agent, "a"), dir.leaf_key(Role::Agent, "a")] {
        let text = fs::read(&file).unwrap();
        fs::write(&file, [b"\xef\xbb\xbf".as_slice(), &text].concat()).unwrap();
    }
    assert_eq!(dir.ensure(&agent("a")).unwrap(), Ensured::Kept);
    assert!(!dir.init().unwrap());
    dir.issue(&agent("b")).unwrap();
}

#[test]
fn a_ca_whose_files_do_not_belong_together_is_refused() {
    let ((_a, ours), (_b, theirs)) = (fresh(), fresh());
    fs::copy(theirs.ca_key(), ours.ca_key()).unwrap();
    assert!(matches!(ours.init(), Err(CertsError::Make(MakeError::CaMismatch))));
    fs::write(ours.ca_key(), "nonsense").unwrap();
    assert!(matches!(ours.issue(&agent("a")), Err(CertsError::Make(MakeError::Ca { part: "key", .. }))));
    fs::write(ours.ca_pem(), [0xff, 0xfe]).unwrap();
    assert!(matches!(ours.init(), Err(CertsError::BadCertificate { .. })));
}

#[test]
fn nothing_is_issued_without_a_ca_or_for_wrong_input() {
    let temp = tempfile::tempdir().unwrap();
    let dir = CertDir::new(temp.path());
    assert!(matches!(dir.issue(&agent("a")), Err(CertsError::NoCa { .. })));
    assert!(matches!(dir.list(), Err(CertsError::NoCa { .. })));
    dir.init().unwrap();
    for request in [agent("../../etc/x"), agent(""), agent("a").hosts(["https://x"]), agent("a").days(0)] {
        let refused = dir.issue(&request).unwrap_err();
        assert!(matches!(refused, CertsError::Make(MakeError::Name(_) | MakeError::Days(0))), "{refused}");
    }
    assert!(matches!(dir.issue(&agent("a").days(3651)), Err(CertsError::Make(MakeError::Days(3651)))));
    assert_eq!(dir.list().unwrap(), []);
}

#[test]
fn list_shows_every_leaf_by_role_and_name() {
    let (_temp, dir) = fresh();
    for (role, name) in [(Role::Client, "zoe"), (Role::Agent, "b"), (Role::Agent, "a"), (Role::Coordinator, "main")] {
        dir.issue(&LeafRequest::new(role, name).hosts(["10.0.0.1"])).unwrap();
    }
    fs::write(dir.path().join("notes.txt"), "not a certificate").unwrap();
    let listed = dir.list().unwrap();
    let names: Vec<_> = listed.iter().map(|leaf| format!("{} {}", leaf.role, leaf.name)).collect();
    assert_eq!(names, ["coordinator main", "agent a", "agent b", "client zoe"]);
    assert_eq!(listed[1].sans, ["DNS:a.agent.titan.internal", "IP:10.0.0.1", "URI:spiffe://titancompute/agent/a"]);
    assert!(listed.iter().all(|leaf| leaf.signed_by_this_ca && leaf.fingerprint_sha256.len() == 64));

    fs::write(dir.leaf_pem(Role::Agent, "b"), "nonsense").unwrap();
    let refused = dir.list().unwrap_err();
    assert!(refused.to_string().contains("agent-b.pem"), "{refused}");
}

#[test]
fn ensure_issues_only_for_a_reason() {
    let (_temp, dir) = fresh();
    let request = agent("a");
    assert_eq!(dir.ensure(&request).unwrap(), Ensured::Issued(Reason::Absent));
    assert_eq!(dir.ensure(&request).unwrap(), Ensured::Kept);

    let more = request.clone().hosts(["localhost", "127.0.0.1", "::1", "gpu.example.com"]);
    assert_eq!(dir.ensure(&more).unwrap(), Ensured::Issued(Reason::NamesChanged));
    let other_order = more.clone().hosts(["GPU.example.com", "::1", "localhost", "127.0.0.1"]);
    assert_eq!(dir.ensure(&other_order).unwrap(), Ensured::Kept);

    let late = now() + Duration::days(i64::from(LEAF_DAYS - RENEW_DAYS));
    assert_eq!(dir.ensure_at(&more, late - Duration::days(1)).unwrap(), Ensured::Kept);
    assert_eq!(dir.ensure_at(&more, late + Duration::days(1)).unwrap(), Ensured::Issued(Reason::Expiring));

    fs::write(dir.leaf_pem(Role::Agent, "a"), "nonsense").unwrap();
    assert_eq!(dir.ensure(&more).unwrap(), Ensured::Issued(Reason::Damaged));
    dir.issue(&agent("b")).unwrap();
    fs::copy(dir.leaf_key(Role::Agent, "b"), dir.leaf_key(Role::Agent, "a")).unwrap();
    assert_eq!(dir.ensure(&more).unwrap(), Ensured::Issued(Reason::Damaged));

    fs::remove_file(dir.ca_pem()).unwrap();
    fs::remove_file(dir.ca_key()).unwrap();
    dir.init().unwrap();
    assert_eq!(dir.ensure(&more).unwrap(), Ensured::Issued(Reason::OtherCa));
}

#[test]
fn a_short_lived_leaf_is_not_renewed_at_every_start() {
    let (_temp, dir) = fresh();
    let request = agent("a").days(7);
    dir.ensure(&request).unwrap();
    assert_eq!(dir.ensure(&request).unwrap(), Ensured::Kept);
    let later = now() + Duration::days(5);
    assert_eq!(dir.ensure_at(&request, later).unwrap(), Ensured::Issued(Reason::Expiring));
}

#[test]
fn a_machine_without_the_cas_key_keeps_its_good_leaf() {
    let (_temp, dir) = fresh();
    dir.ensure(&agent("a")).unwrap();
    fs::remove_file(dir.ca_key()).unwrap();
    assert_eq!(dir.ensure(&agent("a")).unwrap(), Ensured::Kept);
    assert!(matches!(dir.ensure(&agent("b")), Err(CertsError::HalfCa { .. })));
}

#[test]
fn clusters_that_start_together_share_one_ca() {
    let temp = tempfile::tempdir().unwrap();
    let dir = CertDir::new(temp.path().join("certs"));
    let (made, issued) = std::thread::scope(|scope| {
        let start = || (dir.init().unwrap(), dir.ensure(&agent("a")).unwrap() != Ensured::Kept);
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
        let done: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        (done.iter().filter(|(made, _)| *made).count(), done.iter().filter(|(_, issued)| *issued).count())
    });
    assert_eq!((made, issued), (1, 1));
    verify_server(&dir, &dir.leaf_pem(Role::Agent, "a"), "localhost", now()).unwrap();
}

#[test]
fn identities_are_read_from_certificates() {
    let (_temp, dir) = fresh();
    for role in Role::ALL {
        dir.issue(&LeafRequest::new(role, "n-1")).unwrap();
        let identity = Identity::from_der(&der(&dir.leaf_pem(role, "n-1"))).unwrap();
        assert_eq!(identity, Identity { role, name: "n-1".to_owned() });
    }
}
