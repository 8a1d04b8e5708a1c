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
    time::Duration,
};

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

use super::{ConnectError, QuicConnector, call, watching};
use crate::{QuicOptions, limits::HANDSHAKE_TIMEOUT, repeat::receiver::Inboxes, wire::ErrorCode};

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
    /// The round-trip time of the last connection.
    rtt: Option<Duration>,
}

/// A connection in use.
pub(super) struct Live {
    pub(super) connection: Connection,
    /// Responses that wait for repeated frames.
    pub(super) inboxes: Arc<Inboxes>,
    /// None until the handshake is complete; then whether it succeeded.
    complete: watch::Receiver<Option<Result<(), ConnectError>>>,
    /// The server refuses new calls: the next one needs another connection.
    draining: AtomicBool,
    /// Calls that wait for an answer or read one.
    pub(super) calls: watch::Sender<usize>,
    /// Nothing has come for [`SILENCE_LIMIT`](crate::limits::SILENCE_LIMIT), although the server was asked.
    pub(super) silent: watch::Sender<bool>,
}

/// A call that runs on a connection, for as long as this lives.
pub(super) struct Running(Arc<Live>);

#[derive(Default)]
struct Counters {
    full_handshakes: AtomicU64,
    early_data_accepted: AtomicU64,
    early_data_rejected: AtomicU64,
    stored_sessions: AtomicU64,
    calls: AtomicU64,
    early_calls: AtomicU64,
    repaired: Arc<AtomicU64>,
    network_changes: Arc<AtomicU64>,
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
    /// Of `early_data_accepted`, those whose session came from disk.
    pub stored_sessions: u64,
    /// Calls made.
    pub calls: u64,
    /// Calls that were sent before the handshake was complete.
    pub early_calls: u64,
    /// Messages that a repeat brought before the stream did: what a loss would have held back (PROTOCOL.md §10).
    pub repaired_messages: u64,
    /// Changes of this machine's network that connections followed (PROTOCOL.md §14).
    pub network_changes: u64,
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
        let mut state = self.0.state.lock();
        state.note_rtt();
        if let Some(live) = state.live.take() {
            live.connection.close(code.code(), b"closed by the client");
        }
    }

    /// The smoothed round-trip time of the present connection.
    pub fn rtt(&self) -> Option<Duration> {
        self.current().map(|live| live.connection.rtt())
    }

    /// How much this side may have on its way, in bytes: the floor of PROTOCOL.md §11.1 shows here.
    pub fn congestion_window(&self) -> Option<u64> {
        self.current().map(|live| live.connection.stats().path.cwnd)
    }

    /// Resolves when nothing has come from the server for 3 s, although calls wait and it was asked whether it is there. The connection
    /// stays, and may come back; new calls use another one.
    pub async fn silent(&self) {
        let Some(live) = self.current() else { return std::future::pending().await };
        let mut silent = live.silent.subscribe();
        drop(live);
        if silent.wait_for(|silent| *silent).await.is_err() {
            // The connection has ended, and its calls tell.
            std::future::pending().await
        }
    }

    /// Counts since the channel was made.
    pub fn stats(&self) -> ChannelStats {
        let counters = &self.0.counters;
        ChannelStats {
            full_handshakes: counters.full_handshakes.load(Relaxed),
            early_data_accepted: counters.early_data_accepted.load(Relaxed),
            early_data_rejected: counters.early_data_rejected.load(Relaxed),
            stored_sessions: counters.stored_sessions.load(Relaxed),
            calls: counters.calls.load(Relaxed),
            early_calls: counters.early_calls.load(Relaxed),
            repaired_messages: counters.repaired.load(Relaxed),
            network_changes: counters.network_changes.load(Relaxed),
        }
    }

    pub(super) fn options(&self) -> QuicOptions {
        self.0.connector.options()
    }

    /// A request is about to be written to `live`.
    pub(super) fn request(&self, live: &Live) {
        self.0.connector.request(live.connection.remote_address());
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
                    let task = tokio::spawn(self.clone().make_connection(state.last, state.rtt));
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

    async fn make_connection(self, last: Option<SocketAddr>, rtt: Option<Duration>) -> Result<Arc<Live>, ConnectError> {
        let inner = &self.0;
        let result = inner.connector.connect(&inner.address, &inner.server_name, last, rtt).await;
        let result = result.map(|connected| {
            let (done, complete) = watch::channel(None);
            let (connection, draining) = (connected.connection, AtomicBool::new(false));
            let inboxes = Inboxes::new(&connection, inner.counters.repaired.clone());
            let live = Live { connection, inboxes, complete, draining, calls: watch::Sender::new(0), silent: watch::Sender::new(false) };
            let (live, addr, stored) = (Arc::new(live), connected.addr, connected.stored);
            match connected.early {
                None => {
                    inner.counters.full_handshakes.fetch_add(1, Relaxed);
                    inner.connector.connected(&inner.server_name, addr, &live.connection);
                    done.send_replace(Some(Ok(())));
                    tracing::debug!(%addr, rtt_ms = live.connection.rtt().as_secs_f64() * 1e3, "connected, full handshake");
                }
                Some(accepted) => {
                    tracing::debug!(%addr, stored, "session resumed, early data possible");
                    tokio::spawn(self.clone().watch_early(live.clone(), addr, stored, accepted, done));
                }
            }
            watching::start(&inner.connector, &live, inner.counters.network_changes.clone());
            (live, addr)
        });
        let mut state = inner.state.lock();
        state.note_rtt();
        state.connecting = None;
        state.last = result.as_ref().ok().map(|(_, addr)| *addr);
        state.live = result.as_ref().ok().map(|(live, _)| live.clone());
        result.map(|(live, _)| live)
    }

    async fn watch_early(
        self,
        live: Arc<Live>,
        addr: SocketAddr,
        stored: bool,
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
                    counters.stored_sessions.fetch_add(stored.into(), Relaxed);
                } else {
                    counters.early_data_rejected.fetch_add(1, Relaxed);
                    counters.full_handshakes.fetch_add(1, Relaxed);
                }
                self.0.connector.connected(&self.0.server_name, addr, &live.connection);
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

impl State {
    /// Remembers how far the server was.
    fn note_rtt(&mut self) {
        // Before the handshake is complete it is a guess.
        let live = self.live.as_ref().filter(|live| matches!(*live.complete.borrow(), Some(Ok(()))));
        self.rtt = live.map(|live| live.connection.rtt()).or(self.rtt);
    }
}

impl Live {
    /// Whether a new call can use it.
    pub(super) fn usable(&self) -> bool {
        self.connection.close_reason().is_none() && !self.draining.load(Relaxed) && !*self.silent.borrow()
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
