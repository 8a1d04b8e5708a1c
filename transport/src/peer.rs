//! What a handler may know about the wire under a request: a request extension, the same on both wires.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use quinn::ConnectionError;
use rustls_pki_types::CertificateDer;
use tokio::{sync::watch, time::timeout};

use crate::wire::ErrorCode;

/// How long a call over TCP that was dropped waits for news of its connection. hyper drops the calls of a connection whose peer
/// stopped answering about when it gives the connection up; a cancelled call's connection lives on.
const TCP_NEWS_TIME: Duration = Duration::from_millis(100);

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
    /// The connection that the request came over.
    pub connection: PeerConnection,
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

/// A connection, for a handler that wants to know why its response is not read any more.
#[derive(Clone, Debug)]
pub struct PeerConnection(Connection);

#[derive(Clone, Debug)]
enum Connection {
    Quic(Arc<Mutex<QuicState>>),
    Tcp(watch::Receiver<TcpState>),
}

/// A QUIC connection, or how it ended. Whoever keeps a handle of quinn's keeps its socket, and so the port.
#[derive(Clone, Debug)]
enum QuicState {
    Open(quinn::Connection),
    Ended(Option<ConnectionError>),
}

/// What a TCP connection has shown. Its sender is dropped with the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TcpState {
    Open,
    /// The peer's end of stream, or an error.
    Ended,
}

/// Why a response was dropped before it was complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallEnd {
    /// The caller does not want it any more: it cancelled the call, or said goodbye on the whole connection; or the call's deadline passed.
    Cancelled,
    /// The connection was lost: the caller may still want it.
    ConnectionLost,
}

impl PeerConnection {
    pub(crate) fn quic(connection: &quinn::Connection) -> Self {
        Self(Connection::Quic(Arc::new(Mutex::new(QuicState::Open(connection.clone())))))
    }

    /// The connection is over, and is to be let go.
    pub(crate) fn ended(&self) {
        if let Connection::Quic(state) = &self.0 {
            let mut state = state.lock();
            if let QuicState::Open(connection) = &*state {
                *state = QuicState::Ended(connection.close_reason());
            }
        }
    }

    pub(crate) fn tcp(state: watch::Receiver<TcpState>) -> Self {
        Self(Connection::Tcp(state))
    }

    /// One that is lost already: to test handlers with.
    pub fn lost() -> Self {
        Self::tcp(watch::channel(TcpState::Ended).1)
    }

    /// Why a response over this connection was dropped. To be called when that happens, in its `Drop`; the future takes 100 ms at most.
    ///
    /// A QUIC connection that the client closes with NO_ERROR is a goodbye: all its calls are cancelled. On TCP the end of the
    /// connection says nothing, and counts as a loss unless the call was cancelled before.
    pub fn call_end(&self) -> impl Future<Output = CallEnd> + Send + use<> {
        let known = match &self.0 {
            Connection::Quic(state) => Err(of_quic(match &*state.lock() {
                QuicState::Open(connection) => connection.close_reason(),
                QuicState::Ended(reason) => reason.clone(),
            })),
            Connection::Tcp(state) if *state.borrow() == TcpState::Ended => Err(CallEnd::ConnectionLost),
            Connection::Tcp(state) => Ok(state.clone()),
        };
        async move {
            let mut state = match known {
                Err(end) => return end,
                Ok(state) => state,
            };
            match timeout(TCP_NEWS_TIME, state.changed()).await {
                // Given up on this side: the peer stopped answering, or the server shuts down.
                Ok(Err(_)) => CallEnd::ConnectionLost,
                // The call ended first, so it was cancelled, and the connection after it.
                Ok(Ok(())) | Err(_) => CallEnd::Cancelled,
            }
        }
    }
}

fn of_quic(closed: Option<ConnectionError>) -> CallEnd {
    match closed {
        None => CallEnd::Cancelled,
        Some(ConnectionError::ApplicationClosed(close)) if close.error_code == ErrorCode::NoError.code() => {
            CallEnd::Cancelled
        }
        Some(_) => CallEnd::ConnectionLost,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp() -> (watch::Sender<TcpState>, PeerConnection) {
        let (sender, state) = watch::channel(TcpState::Open);
        (sender, PeerConnection::tcp(state))
    }

    #[tokio::test(start_paused = true)]
    async fn over_tcp_what_ends_first_is_the_reason() {
        let (sender, connection) = tcp();
        assert_eq!(connection.call_end().await, CallEnd::Cancelled, "the connection lives on");
        let cancelled = connection.call_end();
        sender.send_replace(TcpState::Ended);
        assert_eq!(cancelled.await, CallEnd::Cancelled, "the process ended after it had cancelled");
        assert_eq!(connection.call_end().await, CallEnd::ConnectionLost);

        let (sender, connection) = tcp();
        let unanswered = connection.call_end();
        drop(sender);
        assert_eq!(unanswered.await, CallEnd::ConnectionLost);
        assert_eq!(connection.call_end().await, CallEnd::ConnectionLost);
    }

    #[test]
    fn over_quic_only_a_goodbye_cancels() {
        let closed = |code: ErrorCode| {
            ConnectionError::ApplicationClosed(quinn::ApplicationClose {
                error_code: code.code(),
                reason: Default::default(),
            })
        };
        for (reason, end) in [
            (None, CallEnd::Cancelled),
            (Some(closed(ErrorCode::NoError)), CallEnd::Cancelled),
            (Some(closed(ErrorCode::Reconnecting)), CallEnd::ConnectionLost),
            (Some(ConnectionError::TimedOut), CallEnd::ConnectionLost),
            (Some(ConnectionError::Reset), CallEnd::ConnectionLost),
            (Some(ConnectionError::LocallyClosed), CallEnd::ConnectionLost),
        ] {
            assert_eq!(of_quic(reason.clone()), end, "{reason:?}");
        }
    }
}
