//! Connecting: name to addresses to a QUIC connection.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use parking_lot::Mutex;
use quinn::{Connecting, Connection, ConnectionError};
use tokio::{sync::watch, time::timeout};

use super::{QuicChannel, sessions::Sessions};
use crate::{
    QuicOptions,
    first_packets::FirstPackets,
    limits::{self, HANDSHAKE_TIMEOUT},
    socket::{self, Unreachable},
    tls::{TlsError, TlsMaterial},
};

/// Between the attempts at a name's addresses (RFC 8305 §5 recommends 250 ms; a QUIC attempt costs the server less).
const NEXT_ADDRESS_DELAY: Duration = Duration::from_millis(100);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 6;

/// A UDP socket, an identity and the session tickets: what all channels of a program share.
#[derive(Clone, Debug)]
pub struct QuicConnector(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    endpoint: quinn::Endpoint,
    config: quinn::ClientConfig,
    sessions: Sessions,
    options: QuicOptions,
    unreachable: Unreachable,
    first: Option<FirstPackets>,
    /// Counts changes of the network; None where nobody tells.
    changes: Option<watch::Receiver<u64>>,
    /// The change that the socket was last bound anew for.
    rebound: Mutex<u64>,
}

/// Why there is no connection.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not `host:port`, or a name that does not resolve.
    #[error("cannot resolve {address:?}: {reason}")]
    Resolve {
        /// What was to be resolved.
        address: String,
        /// The reason.
        reason: String,
    },
    /// The server name is not one, or the socket cannot reach such addresses.
    #[error("cannot connect to {addr}: {reason}")]
    Local {
        /// The address tried.
        addr: SocketAddr,
        /// The reason.
        reason: String,
    },
    /// The handshake failed.
    #[error("the handshake with {addr} failed: {error}")]
    Handshake {
        /// The address tried.
        addr: SocketAddr,
        /// The reason.
        error: ConnectionError,
    },
    /// The machine is there, and nobody listens on the port.
    #[error("nobody listens on UDP port {} of {}", addr.port(), addr.ip())]
    PortClosed {
        /// The address tried.
        addr: SocketAddr,
    },
    /// Nothing came back: UDP is blocked on the way, or nobody listens.
    #[error("no answer from {addr} within {} s over UDP", HANDSHAKE_TIMEOUT.as_secs())]
    NoAnswer {
        /// The address tried last.
        addr: SocketAddr,
    },
}

/// A connection to use now, and how to learn whether its handshake completes.
pub(super) struct Connected {
    pub(super) connection: Connection,
    pub(super) addr: SocketAddr,
    /// None when the handshake is complete. Otherwise calls that may be repeated can go out now; resolves to whether the
    /// server accepted them.
    pub(super) early: Option<quinn::ZeroRttAccepted>,
    /// The session, if one was resumed, comes from disk.
    pub(super) stored: bool,
}

impl QuicConnector {
    /// Binds a UDP socket, for IPv6 and IPv4 where the machine has both.
    ///
    /// # Errors
    /// When no socket can be bound, or the key material does not fit together.
    pub fn new(material: &TlsMaterial) -> Result<Self, TlsError> {
        Self::with_options(material, QuicOptions::default())
    }

    /// The same, without the parts that `options` leaves out.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_options(material: &TlsMaterial, options: QuicOptions) -> Result<Self, TlsError> {
        Self::make(material, options, None)
    }

    /// The same, with sessions kept in the directory `dir` too, so that a new process starts with early data where an earlier one has
    /// been: PROTOCOL.md §13. Several processes may use one directory. It is made when there is something to keep; where it cannot be
    /// used, sessions are kept in memory, as without it.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    #[cfg(feature = "stored-sessions")]
    pub fn with_sessions(material: &TlsMaterial, options: QuicOptions, dir: &Path) -> Result<Self, TlsError> {
        Self::make(material, options, Some(dir))
    }

    fn make(material: &TlsMaterial, options: QuicOptions, dir: Option<&Path>) -> Result<Self, TlsError> {
        let (config, sessions) = material.quic_client(options.post_quantum, dir)?;
        let first = options.repeat_first.then(FirstPackets::default);
        let (endpoint, unreachable) = socket::endpoint((Ipv6Addr::UNSPECIFIED, 0).into(), None, first.as_ref())
            .or_else(|_| socket::endpoint((Ipv4Addr::UNSPECIFIED, 0).into(), None, first.as_ref()))
            .map_err(|error: io::Error| TlsError::Config(format!("cannot bind a UDP socket: {error}")))?;
        let changes = options.migration.then(watch_network).flatten();
        let rebound = Mutex::new(0);
        Ok(Self(Arc::new(Inner { endpoint, config, sessions, options, unreachable, first, changes, rebound })))
    }

    /// A channel to the server at `address` (`host:port`) whose certificate holds `server_name`. Connects when needed.
    pub fn channel(&self, address: impl Into<String>, server_name: impl Into<String>) -> QuicChannel {
        QuicChannel::new(self.clone(), address.into(), server_name.into())
    }

    /// Goes on from a new UDP socket: after a change of network that this library does not see by itself. Connections move with it, and
    /// calls go on.
    ///
    /// # Errors
    /// When no socket can be bound; then the old one stays.
    pub fn rebind(&self) -> io::Result<()> {
        let Inner { endpoint, unreachable, first, .. } = &*self.0;
        let any = match endpoint.local_addr()? {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        endpoint.rebind_abstract(socket::bind(any, unreachable, first.as_ref(), false)?)
    }

    /// Counts changes of the network.
    pub(super) fn changes(&self) -> Option<watch::Receiver<u64>> {
        self.0.changes.clone()
    }

    /// The same for the change with this number: the first of the connections that noticed it does it for all.
    pub(super) fn rebind_for(&self, change: u64) {
        let mut rebound = self.0.rebound.lock();
        if *rebound < change {
            *rebound = change;
            match self.rebind() {
                Ok(()) => tracing::debug!("the network has changed: a new socket"),
                Err(error) => tracing::warn!(%error, "the network has changed, and no new socket can be bound"),
            }
        }
    }

    /// The round-trip time to the server of this name that was measured last, by this program or, with stored sessions, by an earlier one.
    /// Known once a channel to it has begun to connect.
    pub fn known_rtt(&self, server_name: &str) -> Option<Duration> {
        self.0.sessions.rtt(server_name)
    }

    /// Packets that went out again by themselves: PROTOCOL.md §12.
    pub fn copied_packets(&self) -> u64 {
        self.0.first.as_ref().map_or(0, FirstPackets::copied)
    }

    /// Waits until the sessions of the present connections have come: for at most a quarter of a second, and after the first round trip
    /// of a connection not at all. Whether they have. For a program that is about to connect anew.
    pub async fn sessions_arrive(&self) -> bool {
        self.0.sessions.arrive().await
    }

    /// Waits until the sessions of the present connections are on disk, if that is where they are kept: for at most half a second, and
    /// after the first round trip of a connection not at all. False if that took too long. For a program that is about to end; before it
    /// closes its connections.
    pub async fn save_sessions(&self) -> bool {
        self.0.sessions.settle().await
    }

    /// Says goodbye on every connection and waits until that is sent, for at most 200 ms.
    pub async fn close(&self) {
        self.0.endpoint.close(crate::ErrorCode::NoError.code(), b"closed by the client");
        let _ = timeout(Duration::from_millis(200), self.0.endpoint.wait_idle()).await;
    }

    pub(super) fn options(&self) -> QuicOptions {
        self.0.options
    }

    /// A request is about to be written to `peer`.
    pub(super) fn request(&self, peer: SocketAddr) {
        if let Some(first) = &self.0.first {
            first.request(peer);
        }
    }

    /// What the machines at the other end say of their ports.
    pub(super) fn unreachable(&self) -> &Unreachable {
        &self.0.unreachable
    }

    /// Connects. Where a session can be resumed, returns before anything was sent.
    ///
    /// `last` is the address that answered before: it is tried alone, as the one that the ticket was issued at. `rtt` is what is known of
    /// the path.
    pub(super) async fn connect(
        &self,
        address: &str,
        server_name: &str,
        last: Option<SocketAddr>,
        rtt: Option<Duration>,
    ) -> Result<Connected, ConnectError> {
        let (addrs, stored) = tokio::join!(resolve(address), self.0.sessions.load(server_name));
        let addrs = addrs?;
        let last = last.or_else(|| self.0.sessions.take_address(server_name));
        let rtt = rtt.or_else(|| self.known_rtt(server_name));
        let mut config = self.0.config.clone();
        config.transport_config(Arc::new(limits::client_transport(self.0.options, rtt)));
        let addrs = match last.filter(|last| addrs.contains(last)) {
            Some(last) => vec![last],
            None => addrs,
        };
        if let [addr] = addrs[..] {
            let connecting = self.begin(&config, addr, server_name)?;
            if !self.0.options.early_data {
                return self.handshake(addr, connecting).await;
            }
            return match connecting.into_0rtt() {
                Ok((connection, accepted)) => Ok(Connected { connection, addr, early: Some(accepted), stored }),
                Err(connecting) => self.handshake(addr, connecting).await,
            };
        }
        // Several addresses: each gets a start, the first to complete its handshake wins (RFC 8305).
        let mut attempts = FuturesUnordered::new();
        for (n, addr) in addrs.into_iter().enumerate() {
            let config = &config;
            attempts.push(async move {
                tokio::time::sleep(NEXT_ADDRESS_DELAY * n as u32).await;
                self.handshake(addr, self.begin(config, addr, server_name)?).await
            });
        }
        let mut failed = None;
        while let Some(result) = attempts.next().await {
            match result {
                Ok(connected) => return Ok(connected),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| unresolved(address, "the name has no address")))
    }

    /// A handshake with the server at `addr` is complete.
    pub(super) fn connected(&self, server_name: &str, addr: SocketAddr, connection: &Connection) {
        self.0.sessions.connected(server_name, addr, connection.rtt());
    }

    fn begin(
        &self,
        config: &quinn::ClientConfig,
        addr: SocketAddr,
        server_name: &str,
    ) -> Result<Connecting, ConnectError> {
        self.0
            .endpoint
            .connect_with(config.clone(), addr, server_name)
            .map_err(|error| ConnectError::Local { addr, reason: error.to_string() })
    }

    async fn handshake(&self, addr: SocketAddr, connecting: Connecting) -> Result<Connected, ConnectError> {
        let result = tokio::select! {
            result = timeout(HANDSHAKE_TIMEOUT, connecting) => result,
            () = self.unreachable().hint(addr) => return Err(ConnectError::PortClosed { addr }),
        };
        match result {
            Ok(Ok(connection)) => Ok(Connected { connection, addr, early: None, stored: false }),
            Ok(Err(ConnectionError::TimedOut)) | Err(_) => Err(ConnectError::NoAnswer { addr }),
            Ok(Err(error)) => Err(ConnectError::Handshake { addr, error }),
        }
    }
}

fn watch_network() -> Option<watch::Receiver<u64>> {
    #[cfg(target_os = "linux")]
    return crate::network::changes()
        .inspect_err(|error| tracing::debug!(%error, "changes of the network are not noticed here"))
        .ok();
    #[cfg(not(target_os = "linux"))]
    None
}

async fn resolve(address: &str) -> Result<Vec<SocketAddr>, ConnectError> {
    let found = tokio::net::lookup_host(address).await.map_err(|error| unresolved(address, &error.to_string()))?;
    let mut addrs: Vec<_> = found.collect();
    addrs.dedup();
    // `localhost` is both ::1 and 127.0.0.1, and servers here bind the latter.
    addrs.sort_by_key(|addr| addr.ip().is_loopback() && addr.is_ipv6());
    addrs.truncate(MAX_ADDRESSES);
    if addrs.is_empty() { Err(unresolved(address, "the name has no address")) } else { Ok(addrs) }
}

fn unresolved(address: &str, reason: &str) -> ConnectError {
    ConnectError::Resolve { address: address.into(), reason: reason.into() }
}
