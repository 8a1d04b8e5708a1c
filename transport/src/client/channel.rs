//! One server: its connection, made when needed and made again when lost.

use std::{
    fmt,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use http::{Request, Response};
use parking_lot::Mutex;
use quinn::{Connection, ConnectionError};
use tokio::{sync::watch, time::timeout};
use tonic::{Status, body::Body};
use tower::Service;

use super::{ConnectError, QuicConnector, call};
use crate::{
    limits::{HANDSHAKE_TIMEOUT, PROBE_INTERVAL},
    wire::ErrorCode,
};

/// A gRPC channel over QUIC: `SomeServiceClient::new(channel)`. Cheap to clone; the clones share one connection.
#[derive(Clone)]
pub struct QuicChannel(Arc<Inner>);

struct Inner {
    connector: QuicConnector,
    address: String,
    server_name: String,
    /// Held for moments only, never across a handshake.
    state: Mutex<State>,
    counters: Counters,
}

/// An attempt to connect that several callers can wait for.
type Attempt = Shared<BoxFuture<'static, Result<Arc<Live>, ConnectError>>>;

#[derive(Default)]
struct State {
    live: Option<Arc<Live>>,
    /// The attempt that callers wait for together.
    connecting: Option<Attempt>,
    /// The address that answered last.
    last: Option<SocketAddr>,
}

/// A connection in use.
pub(super) struct Live {
    pub(super) connection: Connection,
    /// None until the handshake is complete; then whether it succeeded.
    complete: watch::Receiver<Option<Result<(), ConnectError>>>,
    /// The server refuses new calls: the next one needs another connection.
    draining: AtomicBool,
    /// Calls that wait for an answer or read one.
    calls: watch::Sender<usize>,
}

/// A call that runs on a connection, for as long as this lives.
pub(super) struct Running(Arc<Live>);

#[derive(Default)]
struct Counters {
    full_handshakes: AtomicU64,
    early_data_accepted: AtomicU64,
    early_data_rejected: AtomicU64,
    calls: AtomicU64,
    early_calls: AtomicU64,
}

/// What a channel has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelStats {
    /// Connections that took a whole handshake, key exchange and certificates included.
    pub full_handshakes: u64,
    /// Connections that resumed a session, and whose early data the server accepted.
    pub early_data_accepted: u64,
    /// Connections whose early data the server refused; what was in it was sent again.
    pub early_data_rejected: u64,
    /// Calls made.
    pub calls: u64,
    /// Calls that were sent before the handshake was complete.
    pub early_calls: u64,
}

impl QuicChannel {
    pub(super) fn new(connector: QuicConnector, address: String, server_name: String) -> Self {
        let (state, counters) = Default::default();
        Self(Arc::new(Inner { connector, address, server_name, state, counters }))
    }

    /// Where it connects to, `host:port`.
    pub fn address(&self) -> &str {
        &self.0.address
    }

    /// Connects, unless there is a connection, and waits until its handshake is complete.
    pub async fn connect(&self) -> Result<(), ConnectError> {
        self.ready().await.map(|_| ())
    }

    /// Drops the connection; the next call makes another. Running calls break off, and the server is told that they may be resumed.
    pub fn disconnect(&self) {
        self.drop_connection(ErrorCode::Reconnecting);
    }

    /// Says goodbye on the connection, which cancels its calls; the next call makes another.
    pub fn close(&self) {
        self.drop_connection(ErrorCode::NoError);
    }

    fn drop_connection(&self, code: ErrorCode) {
        if let Some(live) = self.0.state.lock().live.take() {
            live.connection.close(code.code(), b"closed by the client");
        }
    }

    /// The smoothed round-trip time of the present connection.
    pub fn rtt(&self) -> Option<std::time::Duration> {
        self.current().map(|live| live.connection.rtt())
    }

    /// Counts since the channel was made.
    pub fn stats(&self) -> ChannelStats {
        let Counters { full_handshakes, early_data_accepted, early_data_rejected, calls, early_calls } =
            &self.0.counters;
        ChannelStats {
            full_handshakes: full_handshakes.load(Relaxed),
            early_data_accepted: early_data_accepted.load(Relaxed),
            early_data_rejected: early_data_rejected.load(Relaxed),
            calls: calls.load(Relaxed),
            early_calls: early_calls.load(Relaxed),
        }
    }

    pub(super) fn count_call(&self, early: bool) {
        self.0.counters.calls.fetch_add(1, Relaxed);
        self.0.counters.early_calls.fetch_add(early.into(), Relaxed);
    }

    /// A connection whose handshake is complete.
    pub(super) async fn ready(&self) -> Result<Arc<Live>, ConnectError> {
        let live = self.any().await?;
        live.complete().await?;
        Ok(live)
    }

    /// A connection that calls safe to repeat can use, if need be before its handshake is complete.
    pub(super) async fn any(&self) -> Result<Arc<Live>, ConnectError> {
        let attempt = {
            let mut state = self.0.state.lock();
            if let Some(live) = state.live.as_ref().filter(|live| live.usable()) {
                return Ok(live.clone());
            }
            match &state.connecting {
                Some(attempt) => attempt.clone(),
                None => {
                    // A task of its own: the handshake goes on when the caller who asked first gives up.
                    let task = tokio::spawn(self.clone().make_connection(state.last));
                    let attempt = async move {
                        // Only a panic or the end of the runtime breaks it off.
                        task.await.unwrap_or_else(|error| {
                            Err(ConnectError::Resolve { address: String::new(), reason: error.to_string() })
                        })
                    };
                    state.connecting.insert(attempt.boxed().shared()).clone()
                }
            }
        };
        attempt.await
    }

    async fn make_connection(self, last: Option<SocketAddr>) -> Result<Arc<Live>, ConnectError> {
        let inner = &self.0;
        let result = inner.connector.connect(&inner.address, &inner.server_name, last).await;
        let result = result.map(|connected| {
            let (done, complete) = watch::channel(None);
            let (connection, draining) = (connected.connection, AtomicBool::new(false));
            let live = Live { connection, complete, draining, calls: watch::Sender::new(0) };
            let (live, addr) = (Arc::new(live), connected.addr);
            match connected.early {
                None => {
                    inner.counters.full_handshakes.fetch_add(1, Relaxed);
                    done.send_replace(Some(Ok(())));
                    tracing::debug!(%addr, rtt_ms = live.connection.rtt().as_secs_f64() * 1e3, "connected, full handshake");
                }
                Some(accepted) => {
                    tracing::debug!(%addr, "session resumed, early data possible");
                    tokio::spawn(self.clone().watch_early(live.clone(), addr, accepted, done));
                }
            }
            let calls = live.calls.subscribe();
            tokio::spawn(watch_peer(inner.connector.clone(), live.connection.clone(), calls));
            (live, addr)
        });
        let mut state = inner.state.lock();
        state.connecting = None;
        state.last = result.as_ref().ok().map(|(_, addr)| *addr);
        state.live = result.as_ref().ok().map(|(live, _)| live.clone());
        result.map(|(live, _)| live)
    }

    async fn watch_early(
        self,
        live: Arc<Live>,
        addr: SocketAddr,
        accepted: quinn::ZeroRttAccepted,
        done: watch::Sender<Option<Result<(), ConnectError>>>,
    ) {
        let accepted = tokio::select! {
            accepted = timeout(HANDSHAKE_TIMEOUT, accepted) => Some(accepted),
            () = self.0.connector.unreachable().hint(addr) => None,
        };
        let outcome = match (accepted, live.connection.close_reason()) {
            (None, _) => Err(ConnectError::PortClosed { addr }),
            (Some(Ok(accepted)), None) => {
                let counters = &self.0.counters;
                if accepted {
                    counters.early_data_accepted.fetch_add(1, Relaxed);
                } else {
                    counters.early_data_rejected.fetch_add(1, Relaxed);
                    counters.full_handshakes.fetch_add(1, Relaxed);
                }
                tracing::debug!(%addr, accepted, "handshake complete, early data (0-RTT)");
                Ok(())
            }
            (Some(Err(_)), _) | (_, Some(ConnectionError::TimedOut)) => Err(ConnectError::NoAnswer { addr }),
            (_, Some(error)) => Err(ConnectError::Handshake { addr, error }),
        };
        if outcome.is_err() {
            live.connection.close(ErrorCode::Timeout.code(), b"the handshake failed");
            // The address may be stale: the next attempt resolves the name anew and tries them all.
            self.0.state.lock().last = None;
        }
        done.send_replace(Some(outcome));
    }

    fn current(&self) -> Option<Arc<Live>> {
        self.0.state.lock().live.clone()
    }
}

impl Live {
    /// Whether a new call can use it.
    pub(super) fn usable(&self) -> bool {
        self.connection.close_reason().is_none() && !self.draining.load(Relaxed)
    }

    /// Whether the handshake is complete, as far as it is known now.
    pub(super) fn is_complete(&self) -> bool {
        self.complete.borrow().is_some()
    }

    /// Waits for the handshake.
    pub(super) async fn complete(&self) -> Result<(), ConnectError> {
        let mut complete = self.complete.clone();
        match complete.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Ok(())),
            Err(_) => Err(ConnectError::Handshake {
                addr: self.connection.remote_address(),
                error: self.connection.close_reason().unwrap_or(ConnectionError::LocallyClosed),
            }),
        }
    }

    /// The server takes no more calls here.
    pub(super) fn set_draining(&self) {
        self.draining.store(true, Relaxed);
    }
}

impl Running {
    pub(super) fn new(live: &Arc<Live>) -> Self {
        live.calls.send_modify(|calls| *calls += 1);
        Self(live.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.calls.send_modify(|calls| *calls -= 1);
    }
}

/// Gives a connection up when its server's port is closed, long before the idle timeout.
async fn watch_peer(connector: QuicConnector, connection: Connection, calls: watch::Receiver<usize>) {
    tokio::select! {
        () = connector.unreachable().watch(&connection) => {
            connection.close(ErrorCode::NoError.code(), b"the server's port is closed");
        }
        () = probe(&connection, calls) => {}
        _ = connection.closed() => {}
    }
}

/// PROTOCOL.md §9: whoever only reads sends nothing, and so would not learn that the other end is gone.
async fn probe(connection: &Connection, mut calls: watch::Receiver<usize>) {
    let mut heard = 0;
    // Ends when nobody holds the connection any more.
    while calls.wait_for(|calls| *calls > 0).await.is_ok() {
        tokio::time::sleep(PROBE_INTERVAL).await;
        let now = connection.stats().udp_rx.datagrams;
        if now == heard {
            // An error means that the server takes no datagrams, or is gone already.
            let _ = connection.send_datagram(Bytes::new());
        }
        heard = now;
    }
    connection.closed().await;
}

impl Service<Request<Body>> for QuicChannel {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(call::call(self.clone(), request))
    }
}

impl fmt::Debug for QuicChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuicChannel")
            .field("address", &self.0.address)
            .field("server_name", &self.0.server_name)
            .field("stats", &self.stats())
            .finish()
    }
}
