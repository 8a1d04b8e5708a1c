//! TLS, the same for all: 1.3 only, aws-lc-rs with Titan's key exchange groups, one P-256 certificate that has one name.
//!
//! Its name stands for every address of the server: a certificate with hundreds of addresses would cost QUIC a round trip. Titan
//! also shows a client certificate, as it must.

use std::{fs, net::SocketAddr, path::Path, sync::Arc};

use anyhow::Context as _;
use rustls::{ClientConfig, RootCertStore, ServerConfig, client::Resumption, pki_types::ServerName, version::TLS13};
use titan_certs::agent_server_name;
use titan_transport::tls::{self, TlsMaterial};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::lab::{self, AGENT_ID};

/// Sessions that a client keeps: what rustls does unless told otherwise.
const CLIENT_SESSIONS: usize = 256;

/// Whom peers trust, and who they are.
pub(super) struct Trust {
    material: TlsMaterial,
    pub(super) ca_pem: String,
    pub(super) chain_pem: String,
    pub(super) key_pem: String,
}

impl Trust {
    /// Reads it from the directory of a [`Lab`](crate::lab::Lab).
    pub(super) fn load(lab: &Path) -> anyhow::Result<Self> {
        // tonic takes the process's provider, and would put a larger key exchange first by itself.
        // An error says that there is one already: this one.
        let _ = (*tls::provider()).clone().install_default();
        let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
        let [ca, chain, key] = lab::agent_files(lab);
        let material = lab::agent_material(lab)?;
        Ok(Self { material, ca_pem: read(&ca)?, chain_pem: read(&chain)?, key_pem: read(&key)? })
    }

    /// For a server that speaks `protocol`.
    pub(super) fn server(&self, protocol: &[u8]) -> anyhow::Result<ServerConfig> {
        let mut config = ServerConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_single_cert(self.material.chain.clone(), self.material.key.clone_key())?;
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(config)
    }

    /// For a client that speaks `protocol`, without a session.
    pub(super) fn client(&self, protocol: &[u8]) -> anyhow::Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        for root in &self.material.roots {
            roots.add(root.clone())?;
        }
        let mut config = ClientConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(config)
    }
}

/// The name in the server's certificate.
pub(super) fn server_name() -> String {
    agent_server_name(AGENT_ID)
}

/// A way to one server over TCP and TLS. Its clones share their sessions.
#[derive(Clone)]
pub(super) struct Dialer {
    server: SocketAddr,
    config: Arc<ClientConfig>,
}

impl Dialer {
    pub(super) fn new(server: SocketAddr, trust: &Trust, protocol: &[u8]) -> anyhow::Result<Self> {
        Ok(Self { server, config: Arc::new(trust.client(protocol)?) })
    }

    /// The same without the sessions of earlier connections.
    pub(super) fn fresh(&self) -> Self {
        Self { server: self.server, config: Arc::new(without_sessions(&self.config)) }
    }

    pub(super) fn server(&self) -> SocketAddr {
        self.server
    }

    pub(super) async fn dial(&self) -> anyhow::Result<TlsStream<TcpStream>> {
        let at = || format!("connecting to {}", self.server);
        let tcp = TcpStream::connect(self.server).await.with_context(at)?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(server_name())?;
        TlsConnector::from(self.config.clone()).connect(name, tcp).await.with_context(at)
    }
}

/// A copy that knows of no earlier connection.
pub(super) fn without_sessions(config: &ClientConfig) -> ClientConfig {
    let mut config = config.clone();
    config.resumption = Resumption::in_memory_sessions(CLIENT_SESSIONS);
    config
}
