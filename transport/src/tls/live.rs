//! TLS of what runs for months: certificates are replaced while a port serves, and one of a public CA may stand beside the private one.

use std::{path::Path, sync::Arc};

use parking_lot::RwLock;
use rustls::{
    DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    server::{ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert},
    sign::CertifiedKey,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::{TlsError, TlsMaterial, provider, read_pair};

/// A certificate of a public CA, for clients that know no private one.
#[derive(Clone)]
pub struct PublicIdentity {
    /// The leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: Arc<PrivateKeyDer<'static>>,
}

impl PublicIdentity {
    /// Reads PEM files: the certificate with its chain, and its key.
    ///
    /// # Errors
    /// Names the file, and what was wrong with it.
    pub fn from_files(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let (chain, key) = read_pair(cert, key)?;
        Ok(Self { chain, key })
    }

    fn certified(&self) -> Result<Arc<CertifiedKey>, TlsError> {
        certified(&self.chain, &self.key)
    }
}

impl std::fmt::Debug for PublicIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the key.
        f.debug_struct("PublicIdentity").field("chain", &self.chain.len()).finish()
    }
}

/// What a server shows, and whom it trusts.
#[derive(Clone, Debug)]
pub struct Identities {
    /// Of the private CA.
    pub private: TlsMaterial,
    /// Of a public one, if there is one: on TCP only.
    pub public: Option<PublicIdentity>,
}

/// The identities of a server, the newest of them at any time. Whoever sends one here has a running server change over to it.
pub type Renewals = watch::Receiver<Identities>;

/// Has `take` change over to each new identity. Ends when none can come any more.
pub async fn follow<E: std::fmt::Display>(mut renewals: Renewals, take: impl Fn(&Identities) -> Result<(), E>) {
    while renewals.changed().await.is_ok() {
        let identities = renewals.borrow_and_update().clone();
        match take(&identities) {
            Ok(()) => tracing::info!("new connections use the new certificates"),
            Err(error) => tracing::error!(%error, "the new certificates cannot be used: the old ones stay"),
        }
    }
}

/// TLS of a TCP port: HTTP/2 and HTTP/1.1, a client certificate asked for but not required. What it shows can be replaced while it serves; connections that
/// are open go on.
#[derive(Clone, Debug)]
pub struct HttpTls(Arc<RwLock<Arc<rustls::ServerConfig>>>);

impl HttpTls {
    /// Shows the public certificate to those who ask for a name in it, unless they say that they trust the private CA; the private one to all others.
    ///
    /// # Errors
    /// [`TlsError`], where a certificate and its key do not belong together.
    pub fn new(private: &TlsMaterial, public: Option<&PublicIdentity>) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(RwLock::new(server_config(private, public)?))))
    }

    /// From the next connection on.
    ///
    /// # Errors
    /// As [`new`](Self::new); then everything stays as it is.
    pub fn replace(&self, identities: &Identities) -> Result<(), TlsError> {
        let config = server_config(&identities.private, identities.public.as_ref())?;
        *self.0.write() = config;
        Ok(())
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.0.read()))
    }
}

/// Sessions are not resumed: on TCP that would save no round trip, and every connection's certificate is checked anew.
fn server_config(
    private: &TlsMaterial,
    public: Option<&PublicIdentity>,
) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    if private.chain.is_empty() {
        return Err(TlsError::NoIdentity);
    }
    // The CA goes along, for clients that know it by its fingerprint only.
    let with_ca: Vec<_> = private.chain.iter().chain(&private.roots).cloned().collect();
    let shown = Shown {
        private: certified(&with_ca, &private.key)?,
        authorities: private.root_store()?.subjects(),
        public: public.map(PublicIdentity::certified).transpose()?,
    };
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(private.webpki_verifier()?)
        .with_cert_resolver(Arc::new(shown));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

pub(super) fn certified(
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, TlsError> {
    Ok(Arc::new(CertifiedKey::from_der(chain.to_vec(), key.clone_key(), &provider())?))
}

/// Which certificate a client is shown.
#[derive(Debug)]
struct Shown {
    private: Arc<CertifiedKey>,
    /// The names of the private CA.
    authorities: Vec<DistinguishedName>,
    public: Option<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let trusts_ours = hello.certificate_authorities().is_some_and(|trusted| {
            trusted.iter().any(|name| self.authorities.iter().any(|ours| ours.as_ref() == name.as_ref()))
        });
        let public = self.public.as_ref().filter(|public| !trusts_ours && names(public, hello.server_name()));
        Some(Arc::clone(public.unwrap_or(&self.private)))
    }
}

fn names(certificate: &CertifiedKey, name: Option<&str>) -> bool {
    let leaf = certificate.cert.first().and_then(|leaf| ParsedCertificate::try_from(leaf).ok());
    let name = name.and_then(|name| ServerName::try_from(name).ok());
    leaf.zip(name).is_some_and(|(leaf, name)| verify_server_name(&leaf, &name).is_ok())
}

/// For an HTTPS client of our own servers: it trusts the private CA of `material` alone, and says so (RFC 8446 §4.2.4), so that a server with a public certificate
/// beside it shows the private one. Without material it trusts nobody. It shows the client's certificate where `with_identity` and there is one.
///
/// # Errors
/// [`TlsError`], where the material cannot be used.
pub fn https_client_config(
    material: Option<&TlsMaterial>,
    with_identity: bool,
) -> Result<rustls::ClientConfig, TlsError> {
    let builder = rustls::ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
    let Some(material) = material else {
        return Ok(builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth());
    };
    let roots = material.root_store()?;
    let authorities = roots.subjects();
    let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| TlsError::Config(error.to_string()))?;
    let verifier = Arc::new(OfPrivateCa { webpki, authorities });
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    if with_identity && !material.chain.is_empty() {
        return Ok(builder.with_client_auth_cert(material.chain.clone(), material.key.clone_key())?);
    }
    Ok(builder.with_no_client_auth())
}

/// rustls's own verifier, which also names the CA that it trusts.
#[derive(Debug)]
struct OfPrivateCa {
    webpki: Arc<WebPkiServerVerifier>,
    authorities: Vec<DistinguishedName>,
}

impl ServerCertVerifier for OfPrivateCa {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.webpki.verify_server_cert(leaf, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        Some(&self.authorities)
    }
}
