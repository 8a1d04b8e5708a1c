//! What a handler may know about the wire under a request: a request extension, the same on both wires.

use std::net::SocketAddr;

use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

/// Who sent a request, and over what. Every request of both wires has it as an extension.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// Which wire.
    pub wire: Wire,
    /// The peer's address when the call began; on QUIC it may change later.
    pub addr: SocketAddr,
    /// Whether the wire is encrypted. Always true on QUIC.
    pub tls: bool,
    /// The peer's certificate, checked for this connection. Always present on QUIC.
    pub certificate: Option<CertificateDer<'static>>,
    /// Present when the request came as early data and may be a replay of an earlier one (RFC 8446 §8).
    pub early_data: Option<EarlyData>,
}

/// The two wires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// gRPC or REST over TCP.
    Http,
    /// gRPC over QUIC.
    Quic,
}

impl Wire {
    /// `grpc` or `quic`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "grpc",
            Self::Quic => "quic",
        }
    }
}

/// Marks a request that came as early data (0-RTT).
#[derive(Clone, Debug)]
pub struct EarlyData(pub(crate) watch::Receiver<Option<bool>>);

impl EarlyData {
    /// Waits until the handshake is complete: from then on the request cannot be a replay.
    /// Returns false when the connection died first.
    pub async fn confirmed(&self) -> bool {
        let mut complete = self.0.clone();
        complete.wait_for(Option::is_some).await.is_ok_and(|state| *state == Some(true))
    }
}
