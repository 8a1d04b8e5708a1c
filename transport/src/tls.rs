//! TLS for both wires: one crypto provider, one kind of key material, every configuration made here.
//!
//! Key material is a private CA's root, a certificate chain and its key: [`TlsMaterial`]. All configurations use
//! TLS 1.3; both wires may ask for a client certificate of that CA. `client`: the QUIC client's, with its sessions. `live`: what servers show,
//! replaced while they run. `pinned`: a server that is known by its CA's fingerprint. `trouble`: whose certificate was refused, and why, in words.

mod client;
mod live;
mod pinned;
mod trouble;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use parking_lot::RwLock;
use quinn::{BloomTokenLog, ValidationTokenConfig, crypto::rustls::QuicServerConfig};
use rustls::{
    RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
    server::danger::ClientCertVerifier,
    server::{ServerSessionMemoryCache, WebPkiClientVerifier},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _};
use titan_files::without_bom;

pub use self::{
    live::{HttpTls, Identities, PublicIdentity, Renewals, follow, https_client_config},
    pinned::{CaPin, PinError, pinned_client_config},
    trouble::trouble,
};
use crate::{QuicOptions, limits};

/// The one crypto provider, aws-lc-rs, with X25519 as the first key exchange.
///
/// The post-quantum hybrid X25519MLKEM768 is offered last: its 1.2 kB key share would push the ClientHello past one packet,
/// and a lost second packet costs a round trip at the worst moment. A peer that insists on it still gets it, and a client that offers
/// it first ([`QuicOptions::post_quantum`](crate::QuicOptions)) is answered in kind.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| {
            let mut provider = aws_lc_rs::default_provider();
            provider.kx_groups = vec![
                aws_lc_rs::kx_group::X25519,
                aws_lc_rs::kx_group::SECP256R1,
                aws_lc_rs::kx_group::SECP384R1,
                aws_lc_rs::kx_group::X25519MLKEM768,
            ];
            Arc::new(provider)
        })
        .clone()
}

/// A private CA's roots and, unless `chain` is empty, an identity issued by it.
#[derive(Clone)]
pub struct TlsMaterial {
    /// Whom to trust.
    pub roots: Vec<CertificateDer<'static>>,
    /// The leaf first. Empty where there is no identity.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: Arc<PrivateKeyDer<'static>>,
}

impl TlsMaterial {
    /// Reads PEM files: the CA's certificate, the leaf's (chain), the leaf's key.
    ///
    /// # Errors
    /// Names the file, and what was wrong with it.
    pub fn from_files(ca: &Path, cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let (chain, key) = read_pair(cert, key)?;
        Ok(Self { roots: read_certs(ca)?, chain, key })
    }

    /// Reads PEM texts: the CA's certificate, the leaf's (chain), the leaf's key.
    ///
    /// # Errors
    /// [`TlsError::Pem`] says which of them is none.
    pub fn from_pem(ca: &str, cert: &str, key: &str) -> Result<Self, TlsError> {
        let roots = certs_of(Path::new("the CA's certificate"), ca.as_bytes())?;
        let chain = certs_of(Path::new("the certificate"), cert.as_bytes())?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| TlsError::Pem {
            path: "the key".into(),
            what: "private key",
            reason: error.to_string(),
        })?;
        Ok(Self { roots, chain, key: Arc::new(key) })
    }

    /// Reads a PEM file with the CA's certificate: for a client that trusts and is not known itself.
    ///
    /// # Errors
    /// Names the file, and what was wrong with it.
    pub fn from_ca(ca: &Path) -> Result<Self, TlsError> {
        let nobody = PrivateKeyDer::Pkcs8(Vec::new().into());
        Ok(Self { roots: read_certs(ca)?, chain: Vec::new(), key: Arc::new(nobody) })
    }

    /// For QUIC: PROTOCOL.md §2. A client certificate is asked for here and demanded by the `titan/1` handler, so that
    /// other protocols can join the port.
    pub fn quic_server_config(&self) -> Result<quinn::ServerConfig, TlsError> {
        self.quic_server_config_with(QuicOptions::default())
    }

    /// The same, without the parts that `options` leaves out.
    pub fn quic_server_config_with(&self, options: QuicOptions) -> Result<quinn::ServerConfig, TlsError> {
        let mut config = self.server_config()?;
        config.alpn_protocols = vec![titan_proto::ALPN.as_bytes().to_vec()];
        // Stateful tickets, each good for one resumption: what early data needs (RFC 8446 §8.1).
        config.session_storage = ServerSessionMemoryCache::new(limits::TLS_SESSIONS);
        // The only value that RFC 9001 §4.6.1 allows besides 0.
        config.max_early_data_size = u32::MAX;
        let crypto = QuicServerConfig::try_from(config).map_err(|e| TlsError::Config(e.to_string()))?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        config.transport_config(Arc::new(limits::server_transport(options)));
        // PROTOCOL.md §2.6.
        let uses = BloomTokenLog::new_expected_items(limits::ADDRESS_TOKEN_LOG_BYTES, limits::ADDRESS_TOKEN_USES);
        let mut tokens = ValidationTokenConfig::default();
        tokens.sent(limits::ADDRESS_TOKENS_SENT).lifetime(limits::SESSION_AGE).log(Arc::new(uses));
        config.validation_token_config(tokens);
        Ok(config)
    }

    /// For a tonic channel over TCP that expects `server_name` in the server's certificate.
    pub fn tonic_client_tls(&self, server_name: &str) -> tonic::transport::ClientTlsConfig {
        use tonic::transport::{Certificate, ClientTlsConfig, Identity};
        let mut config = ClientTlsConfig::new()
            .domain_name(server_name)
            .ca_certificates(self.roots.iter().map(|root| Certificate::from_pem(pem("CERTIFICATE", root))));
        if !self.chain.is_empty() {
            let chain: String = self.chain.iter().map(|cert| pem("CERTIFICATE", cert)).collect();
            let label = match *self.key {
                PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
                PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
                _ => "PRIVATE KEY",
            };
            config = config.identity(Identity::from_pem(chain, pem(label, self.key.secret_der())));
        }
        config
    }

    /// Checks client certificates outside a handshake: a resumed session carries the first one's, unchecked.
    pub fn client_verifier(&self) -> Result<ClientVerifier, TlsError> {
        Ok(ClientVerifier(Arc::new(RwLock::new(self.webpki_verifier()?))))
    }

    fn webpki_verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        WebPkiClientVerifier::builder_with_provider(Arc::new(self.root_store()?), provider())
            .allow_unauthenticated()
            .build()
            .map_err(|e| TlsError::Config(e.to_string()))
    }

    fn server_config(&self) -> Result<rustls::ServerConfig, TlsError> {
        if self.chain.is_empty() {
            return Err(TlsError::NoIdentity);
        }
        let config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(self.webpki_verifier()?)
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        Ok(config)
    }

    fn root_store(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        for root in &self.roots {
            roots.add(root.clone())?;
        }
        Ok(roots)
    }
}

impl fmt::Debug for TlsMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the key.
        f.debug_struct("TlsMaterial").field("roots", &self.roots.len()).field("chain", &self.chain.len()).finish()
    }
}

/// Checks that a client certificate was issued by the private CA and is valid now. Its clones are one.
#[derive(Clone, Debug)]
pub struct ClientVerifier(Arc<RwLock<Arc<dyn ClientCertVerifier>>>);

impl ClientVerifier {
    /// Checks `chain` (leaf first) at the time `now`.
    pub fn verify(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), rustls::Error> {
        let (leaf, intermediates) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        let verifier = Arc::clone(&self.0.read());
        verifier.verify_client_cert(leaf, intermediates, now).map(|_| ())
    }

    /// Trusts the CA of `material` from now on.
    pub(crate) fn replace(&self, material: &TlsMaterial) -> Result<(), TlsError> {
        let verifier = material.webpki_verifier()?;
        *self.0.write() = verifier;
        Ok(())
    }
}

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}; `titan certs init` makes certificates")]
    Read {
        /// Which file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{path} holds no PEM {what}: {reason}")]
    Pem {
        /// Which file.
        path: PathBuf,
        /// "certificate" or "private key".
        what: &'static str,
        /// The reason.
        reason: String,
    },
    /// A server needs a certificate of its own.
    #[error("a server needs a certificate and its key; `titan certs issue` makes them")]
    NoIdentity,
    /// A certificate's key is another one.
    #[error("the key in {key} is not that of the certificate in {cert}: give the two that were issued together")]
    OtherKey {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The pieces do not fit together.
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
    /// A configuration that QUIC cannot use.
    #[error("TLS configuration: {0}")]
    Config(String),
}

/// A certificate with its chain, and its key.
fn read_pair(cert: &Path, key: &Path) -> Result<(Vec<CertificateDer<'static>>, Arc<PrivateKeyDer<'static>>), TlsError> {
    let (chain, private) = (read_certs(cert)?, read_key(key)?);
    match live::certified(&chain, &private) {
        Err(TlsError::Rustls(rustls::Error::InconsistentKeys(_))) => {
            Err(TlsError::OtherKey { cert: cert.into(), key: key.into() })
        }
        Err(other) => Err(other),
        Ok(_) => Ok((chain, Arc::new(private))),
    }
}

fn read_certs(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = fs::read(path).map_err(|source| TlsError::Read { path: path.into(), source })?;
    certs_of(path, &text)
}

fn certs_of(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem_error = |reason: String| TlsError::Pem { path: path.into(), what: "certificate", reason };
    let certs: Vec<_> = CertificateDer::pem_slice_iter(without_bom(text))
        .collect::<Result<_, _>>()
        .map_err(|e| pem_error(e.to_string()))?;
    if certs.is_empty() { Err(pem_error("there is no CERTIFICATE section".into())) } else { Ok(certs) }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = fs::read(path).map_err(|source| TlsError::Read { path: path.into(), source })?;
    PrivateKeyDer::from_pem_slice(without_bom(&text)).map_err(|e| TlsError::Pem {
        path: path.into(),
        what: "private key",
        reason: e.to_string(),
    })
}

/// RFC 7468 textual encoding; tonic takes nothing else.
fn pem(label: &str, der: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        text.push_str(std::str::from_utf8(line).unwrap_or_default());
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
