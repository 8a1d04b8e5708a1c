//! Serves tonic services on a QUIC endpoint: PROTOCOL.md §2 to §6.
//!
//! [`serve_quic`] accepts connections; each connection checks its peer's certificate and accepts calls; each call runs one
//! request through the same router that tonic's own HTTP/2 server would use.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use quinn::{Connection, Incoming, VarInt, ZeroRttAccepted};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::{sync::watch, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;

use crate::{
    QuicOptions, call,
    first_packets::FirstPackets,
    limits::{DRAIN_TIMEOUT, MAX_CALLS_PER_CONNECTION, MAX_HANDSHAKES_BEFORE_RETRY, PortLimits},
    peer::{EarlyData, PeerConnection, PeerInfo, Wire},
    repeat::sender::Repeats,
    seats::{Seat, Seats},
    socket::{self, Unreachable},
    tls::{ClientVerifier, TlsError, TlsMaterial},
    wire::ErrorCode,
};

/// How a QUIC endpoint treats its peers.
#[derive(Clone, Debug)]
pub struct QuicServerConfig {
    /// Checks the peer's certificate at each connection.
    pub verifier: ClientVerifier,
    /// How long running calls may go on after the shutdown. Defaults to [`DRAIN_TIMEOUT`].
    pub drain_timeout: Duration,
    /// What the port bears.
    pub limits: PortLimits,
}

impl QuicServerConfig {
    /// Peers must have a certificate of `material`'s CA.
    pub fn new(material: &TlsMaterial) -> Result<Self, TlsError> {
        Ok(Self { verifier: material.client_verifier()?, drain_timeout: DRAIN_TIMEOUT, limits: PortLimits::default() })
    }
}

/// A QUIC endpoint that [`serve_quic`] takes.
#[derive(Debug)]
pub struct QuicListener {
    endpoint: quinn::Endpoint,
    unreachable: Unreachable,
}

impl QuicListener {
    /// Binds `addr`. An IPv6 wildcard takes IPv4 too.
    pub fn bind(addr: SocketAddr, config: quinn::ServerConfig) -> std::io::Result<Self> {
        Self::bind_with(addr, config, QuicOptions::default())
    }

    /// The same, without the parts that `options` leaves out.
    pub fn bind_with(addr: SocketAddr, config: quinn::ServerConfig, options: QuicOptions) -> std::io::Result<Self> {
        let first = options.repeat_first.then(FirstPackets::default);
        let (endpoint, unreachable) = socket::endpoint(addr, Some(config), first.as_ref())?;
        Ok(Self { endpoint, unreachable })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }
}

/// What a QUIC endpoint shows and whom it trusts, to be replaced while it serves. Connections that are open go on; TLS sessions do not outlive it.
#[derive(Clone, Debug)]
pub struct QuicTls {
    endpoint: quinn::Endpoint,
    verifier: ClientVerifier,
    options: QuicOptions,
}

impl QuicTls {
    /// Of an endpoint that was bound with `options` and will be served with `config`.
    pub fn new(listener: &QuicListener, config: &QuicServerConfig, options: QuicOptions) -> Self {
        Self { endpoint: listener.endpoint.clone(), verifier: config.verifier.clone(), options }
    }

    /// From the next connection on.
    ///
    /// # Errors
    /// [`TlsError`], where `material` cannot be used; then everything stays as it is.
    pub fn replace(&self, material: &TlsMaterial) -> Result<(), TlsError> {
        let config = material.quic_server_config_with(self.options)?;
        self.verifier.replace(material)?;
        self.endpoint.set_server_config(Some(config));
        Ok(())
    }
}

/// Serves `routes` until `shutdown`. Then new connections and calls are refused, running calls finish (for at most
/// `config.drain_timeout`), and the endpoint is closed.
///
/// Handlers find a [`PeerInfo`] in each request's extensions.
pub async fn serve_quic(listener: QuicListener, routes: Routes, config: QuicServerConfig, shutdown: CancellationToken) {
    let QuicListener { endpoint, unreachable } = listener;
    let server = Arc::new(Server {
        router: routes.prepare().into_axum_router(),
        verifier: config.verifier,
        limits: config.limits,
        handshakes: AtomicUsize::new(0),
        unreachable,
        draining: shutdown.clone(),
        killed: CancellationToken::new(),
    });
    let connections = TaskTracker::new();
    let seats = Seats::new(config.limits.connections, config.limits.connections_per_address);
    loop {
        let incoming = tokio::select! {
            () = shutdown.cancelled() => break,
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => incoming,
                None => break,
            },
        };
        // Who brings an address token has proven its address already.
        let proven = incoming.remote_address_validated();
        if server.handshakes.load(Relaxed) >= MAX_HANDSHAKES_BEFORE_RETRY && !proven && incoming.may_retry() {
            // It only fails where `may_retry` is false.
            let _ = incoming.retry();
            continue;
        }
        // An address that nobody has proven yet may be a victim's. It is counted all the same: there are never more of them than a fraction of
        // what one address may have.
        match seats.take(incoming.remote_address()) {
            Ok(seat) => drop(connections.spawn(server.clone().connection(incoming, seat))),
            Err(full) => {
                crate::seldom!(warn, addr = %incoming.remote_address(), "QUIC connection refused: {full}");
                incoming.refuse();
            }
        }
    }
    // PROTOCOL.md §7: whoever comes now is told, instead of being left to wait.
    let refusals = async {
        while let Some(incoming) = endpoint.accept().await {
            incoming.refuse();
        }
    };
    connections.close();
    let drained = timeout(config.drain_timeout, connections.wait());
    let drained = tokio::select! {
        drained = drained => drained.is_ok(),
        () = refusals => false,
    };
    if !drained {
        tracing::warn!("some calls did not finish within {} s", config.drain_timeout.as_secs_f32());
        server.killed.cancel();
        connections.wait().await;
    }
    endpoint.close(ErrorCode::NoError.code(), b"shut down");
    // Gives the farewell packets a moment; peers that are gone would hold it up.
    let _ = timeout(Duration::from_millis(200), endpoint.wait_idle()).await;
}

struct Server {
    router: axum::Router,
    verifier: ClientVerifier,
    limits: PortLimits,
    /// Connections whose handshake is not complete.
    handshakes: AtomicUsize,
    unreachable: Unreachable,
    draining: CancellationToken,
    /// The drain has taken too long.
    killed: CancellationToken,
}

impl Server {
    async fn connection(self: Arc<Self>, incoming: Incoming, seat: Seat) {
        let seat = Arc::new(seat);
        let addr = incoming.remote_address();
        let (connection, confirmed) = match incoming.accept().map(quinn::Connecting::into_0rtt) {
            Ok(Ok(early)) => early,
            // A server can always send early.
            Ok(Err(_)) => return,
            Err(error) => {
                tracing::debug!(%addr, %error, "connection not accepted");
                return;
            }
        };
        let complete = self.clone().watch_handshake(connection.clone(), confirmed, Arc::clone(&seat));
        let peer = PeerConnection::quic(&connection);
        match self.calls(&connection, &peer, complete).await {
            Ok(()) => connection.close(ErrorCode::NoError.code(), b"shut down"),
            Err((code, reason)) => {
                tracing::debug!(%addr, %reason, "connection closed");
                // Closing it again would hide how the peer closed it, which calls may still ask: `PeerConnection`.
                if connection.close_reason().is_none() {
                    connection.close(code.code(), reason.as_bytes());
                }
            }
        }
        peer.ended();
    }

    /// Follows the handshake, which goes on while early data is served.
    fn watch_handshake(
        self: Arc<Self>,
        connection: Connection,
        confirmed: ZeroRttAccepted,
        seat: Arc<Seat>,
    ) -> watch::Receiver<Option<bool>> {
        let (done, complete) = watch::channel(None);
        self.handshakes.fetch_add(1, Relaxed);
        tokio::spawn(async move {
            let result = tokio::select! {
                result = timeout(self.limits.first_request, confirmed) => result.map_err(|_| ErrorCode::Timeout),
                () = seat.given_up() => Err(ErrorCode::Limit),
            };
            self.handshakes.fetch_sub(1, Relaxed);
            match result {
                Ok(_) => seat.prove(),
                Err(code @ ErrorCode::Limit) => connection.close(code.code(), b"too many connections"),
                Err(code) => connection.close(code.code(), b"the handshake took too long"),
            }
            // On the server quinn resolves this with whatever the handshake's outcome was: ask the connection.
            done.send_replace(Some(result.is_ok() && connection.close_reason().is_none()));
        });
        complete
    }

    /// Accepts calls until the connection ends (Err) or the drain is over (Ok).
    async fn calls(
        self: &Arc<Self>,
        connection: &Connection,
        peer_connection: &PeerConnection,
        mut complete: watch::Receiver<Option<bool>>,
    ) -> Result<(), (ErrorCode, String)> {
        let mut certificate: Option<CertificateDer<'static>> = None;
        let calls = TaskTracker::new();
        let mut many = false;
        let mut watching = true;
        // Made for the first call: a connection that has none needs no task that listens.
        let mut repeats: Option<Option<Arc<Repeats>>> = None;
        let mut gone = std::pin::pin!(self.unreachable.watch(connection));
        loop {
            let (send, recv) = tokio::select! {
                () = self.draining.cancelled() => break,
                () = &mut gone => return Err((ErrorCode::NoError, "the peer's port is closed".into())),
                // A peer without a valid certificate is told when the handshake is complete, also if it never calls.
                state = complete.wait_for(Option::is_some), if watching => {
                    watching = false;
                    if state.is_ok_and(|state| *state == Some(true)) && certificate.is_none() {
                        certificate = Some(self.authenticate(connection)?);
                    }
                    continue;
                }
                stream = connection.accept_bi() => stream.map_err(|e| (ErrorCode::NoError, e.to_string()))?,
            };
            // Early data: the certificate is that of the session it resumes, and so is this check (PROTOCOL.md §2.4).
            let certificate = match &certificate {
                Some(certificate) => certificate.clone(),
                None => certificate.insert(self.authenticate(connection)?).clone(),
            };
            let early_data = recv.is_0rtt() && complete.borrow().is_none();
            let peer = PeerInfo {
                wire: Wire::Quic,
                addr: connection.remote_address(),
                tls: true,
                certificate: Some(certificate),
                early_data: early_data.then(|| EarlyData(complete.clone())),
                connection: peer_connection.clone(),
            };
            if !many && !calls.is_empty() {
                many = true;
                connection.set_max_concurrent_bi_streams(VarInt::from_u32(MAX_CALLS_PER_CONNECTION));
            }
            let repeats = repeats.get_or_insert_with(|| {
                let repeats = Repeats::new(connection)?;
                tokio::spawn(repeats.clone().listen());
                Some(repeats)
            });
            calls.spawn(call::serve(
                self.router.clone(),
                peer,
                send,
                recv,
                repeats.clone(),
                self.limits,
                self.killed.clone(),
            ));
        }
        // Draining: what runs goes on, what is new is refused and may safely be sent elsewhere.
        calls.close();
        loop {
            tokio::select! {
                () = calls.wait() => return Ok(()),
                () = &mut gone => return Err((ErrorCode::NoError, "the peer's port is closed".into())),
                stream = connection.accept_bi() => {
                    let (mut send, mut recv) = stream.map_err(|e| (ErrorCode::NoError, e.to_string()))?;
                    let refused = ErrorCode::Refused.code();
                    let _ = (send.reset(refused), recv.stop(refused));
                }
            }
        }
    }

    /// PROTOCOL.md §2.4: the peer's certificate, checked now. A resumed session carries the one of its first connection, which
    /// TLS does not check again.
    fn authenticate(&self, connection: &Connection) -> Result<CertificateDer<'static>, (ErrorCode, String)> {
        let refuse = |reason: String| Err((ErrorCode::Unauthenticated, reason));
        let chain = connection.peer_identity().and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
        let Some(chain) = chain.filter(|chain| !chain.is_empty()) else {
            return refuse("a client certificate is required; `titan certs issue --role client` makes one".into());
        };
        match self.verifier.verify(&chain, UnixTime::now()) {
            Ok(()) => Ok(chain[0].clone()),
            Err(error) => refuse(format!("the client certificate is not valid: {error}")),
        }
    }
}
