//! TLS of a QUIC client, and the sessions that go with it.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

use quinn::crypto::rustls::QuicClientConfig;
use rustls::{
    ClientConfig,
    client::{Resumption, WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs::kx_group},
    version::TLS13,
};

use super::{TlsError, TlsMaterial, provider};
use crate::{
    QuicOptions,
    client::sessions::{Sessions, Stored},
    limits,
};

impl TlsMaterial {
    /// For QUIC. Clone the value instead of calling this again: its sessions live in it.
    pub fn quic_client_config(&self) -> Result<quinn::ClientConfig, TlsError> {
        Ok(self.quic_client(false, None)?.0)
    }

    /// The same, and its sessions, which are kept in `dir` too if that is given. With `post_quantum` the handshake begins with the
    /// hybrid key exchange.
    pub(crate) fn quic_client(
        &self,
        post_quantum: bool,
        dir: Option<&Path>,
    ) -> Result<(quinn::ClientConfig, Sessions), TlsError> {
        let provider = if post_quantum { post_quantum_provider() } else { provider() };
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(self.root_store()?), provider.clone())
            .build()
            .map_err(|error| TlsError::Config(error.to_string()))?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            // Named only to have a hold of it: it is the verifier that `with_root_certificates` would make.
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone());
        let mut config = if self.chain.is_empty() {
            builder.with_no_client_auth()
        } else {
            builder.with_client_auth_cert(self.chain.clone(), self.key.clone_key())?
        };
        config.alpn_protocols = vec![titan_proto::ALPN.as_bytes().to_vec()];
        config.enable_early_data = true;
        let sessions = Sessions::new(self.stored(post_quantum, dir, verifier, &config));
        config.resumption = Resumption::store(Arc::new(sessions.clone()));
        let crypto = QuicClientConfig::try_from(config).map_err(|e| TlsError::Config(e.to_string()))?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(limits::client_transport(QuicOptions::default(), None)));
        config.token_store(Arc::new(sessions.clone()));
        Ok((config, sessions))
    }

    #[cfg(feature = "stored-sessions")]
    fn stored(
        &self,
        post_quantum: bool,
        dir: Option<&Path>,
        verifier: Arc<dyn ServerCertVerifier>,
        config: &ClientConfig,
    ) -> Option<Stored> {
        let suites = config.crypto_provider().cipher_suites.clone();
        let identity = self.identity(post_quantum);
        Some(Stored::new(dir?, identity, suites, verifier, config.client_auth_cert_resolver.clone()))
    }

    #[cfg(not(feature = "stored-sessions"))]
    fn stored(&self, _: bool, _: Option<&Path>, _: Arc<dyn ServerCertVerifier>, _: &ClientConfig) -> Option<Stored> {
        None
    }

    /// Whose sessions these are. A session stands for the certificates that were shown when it began: with others it must not go on.
    /// Nor may one that began without the hybrid key exchange carry early data which that shall protect.
    #[cfg(feature = "stored-sessions")]
    fn identity(&self, post_quantum: bool) -> [u8; 32] {
        use aws_lc_rs::digest::{Context, SHA256};
        let mut digest = Context::new(&SHA256);
        digest.update(&[post_quantum.into()]);
        for list in [&self.roots, &self.chain] {
            digest.update(&(list.len() as u64).to_be_bytes());
            for cert in list {
                digest.update(&(cert.len() as u64).to_be_bytes());
                digest.update(cert);
            }
        }
        let mut identity = [0; 32];
        identity.copy_from_slice(digest.finish().as_ref());
        identity
    }
}

/// [`provider`] with X25519MLKEM768 as the first key exchange.
fn post_quantum_provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| {
            let mut provider = CryptoProvider::clone(&provider());
            provider.kx_groups.sort_by_key(|group| group.name() != kx_group::X25519MLKEM768.name());
            Arc::new(provider)
        })
        .clone()
}

#[cfg(all(test, feature = "stored-sessions"))]
mod tests {
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

    use super::*;

    fn material(roots: &[&[u8]], chain: &[&[u8]]) -> TlsMaterial {
        let certs = |list: &[&[u8]]| list.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let key = Arc::new(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(vec![])));
        TlsMaterial { roots: certs(roots), chain: certs(chain), key }
    }

    #[test]
    fn sessions_are_of_one_ca_one_certificate_and_one_kind_of_key_exchange() {
        let all = [
            material(&[b"ca"], &[b"leaf"]).identity(false),
            material(&[b"ca"], &[b"leaf"]).identity(true),
            material(&[b"other"], &[b"leaf"]).identity(false),
            material(&[b"ca"], &[b"renewed"]).identity(false),
            material(&[b"ca", b"leaf"], &[]).identity(false),
            material(&[b"cal"], &[b"eaf"]).identity(false),
        ];
        for (n, identity) in all.iter().enumerate() {
            assert!(!all[n + 1..].contains(identity), "{n}");
        }
        assert_eq!(all[0], material(&[b"ca"], &[b"leaf"]).identity(false));
    }

    #[test]
    fn the_post_quantum_provider_only_changes_what_comes_first() {
        let names = |provider: Arc<CryptoProvider>| provider.kx_groups.iter().map(|g| g.name()).collect::<Vec<_>>();
        let (plain, post_quantum) = (names(provider()), names(post_quantum_provider()));
        assert_eq!((plain[0], post_quantum[0]), (kx_group::X25519.name(), kx_group::X25519MLKEM768.name()));
        assert_eq!(post_quantum[1..], plain[..plain.len() - 1]);
    }
}
