//! Certificates for tests, made once per program.

use std::sync::{Arc, OnceLock};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::PrivateKeyDer;
use time::{Duration, OffsetDateTime, ext::NumericalDuration as _};
use titan_transport::tls::TlsMaterial;

pub const SERVER_NAME: &str = "server.test";

pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    root: rustls_pki_types::CertificateDer<'static>,
}

impl Ca {
    pub fn new() -> Self {
        Self::named("test CA")
    }

    pub fn named(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), root }
    }

    /// Valid from an hour ago until `lifetime` from now.
    pub fn leaf(&self, name: &str, lifetime: Duration) -> TlsMaterial {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = OffsetDateTime::now_utc() - 1.hours();
        params.not_after = OffsetDateTime::now_utc() + lifetime;
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        TlsMaterial {
            roots: vec![self.root.clone()],
            chain: vec![cert.der().clone()],
            key: Arc::new(PrivateKeyDer::try_from(key.serialize_der()).unwrap()),
        }
    }
}

const DAY: Duration = Duration::DAY;

pub fn ca() -> &'static Ca {
    static CA: OnceLock<Ca> = OnceLock::new();
    CA.get_or_init(Ca::new)
}

pub fn server() -> &'static TlsMaterial {
    static SERVER: OnceLock<TlsMaterial> = OnceLock::new();
    SERVER.get_or_init(|| ca().leaf(SERVER_NAME, DAY))
}

pub fn client() -> &'static TlsMaterial {
    static CLIENT: OnceLock<TlsMaterial> = OnceLock::new();
    CLIENT.get_or_init(|| ca().leaf("client.test", DAY))
}
