//! The TCP side: one port for HTTP/1.1 and HTTP/2, with TLS or, from this machine, in plain text.
//!
//! A TLS connection begins with byte 22 (RFC 8446 §5.1), no HTTP request does: the first byte tells them apart. So clients that know
//! nothing of certificates work on the same machine, and nothing leaks on a network.

use std::{
    convert::Infallible,
    future::Future as _,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Body;
use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Sleep, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    deadline,
    limits::{DRAIN_TIMEOUT, HANDSHAKE_TIMEOUT, MAX_CALLS_PER_CONNECTION, MAX_HEADERS_BYTES},
    peer::{PeerConnection, PeerInfo, TcpState, Wire},
    tls::HttpTls,
};

/// How a TCP port treats its connections.
#[derive(Clone, Debug)]
pub struct TcpConfig {
    /// Without it, TLS connections are refused.
    pub tls: Option<HttpTls>,
    /// Where plain text is accepted from.
    pub plaintext: Plaintext,
    /// Counts what passes.
    pub traffic: Arc<Traffic>,
}

/// Bytes that passed a TCP port, TLS and HTTP included, TCP and IP left out.
#[derive(Debug, Default)]
pub struct Traffic {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Traffic {
    /// From clients.
    pub fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// To clients.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }
}

/// Where plain text is accepted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plaintext {
    /// From this machine only.
    LoopbackOnly,
    /// From anywhere: an operator asked for it by name.
    Anywhere,
}

impl Plaintext {
    fn allows(self, addr: SocketAddr) -> bool {
        // A dual-stack socket shows 127.0.0.1 as ::ffff:127.0.0.1.
        self == Self::Anywhere || addr.ip().to_canonical().is_loopback()
    }
}

/// First byte of a TLS record that carries a handshake message.
const TLS_HANDSHAKE: u8 = 22;
/// HTTP/2 pings of an otherwise silent connection, so that a peer that vanished is noticed.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(10);
/// A ping not answered for so long ends the connection; with the interval above, about what the QUIC idle timeout is.
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(20);
/// The peer's end of a connection is passed on so much later: what it cancelled just before is then known to be cancelled, and not lost
/// with the connection ([`PeerConnection`]).
const END_DELAY: Duration = Duration::from_millis(50);
/// After an accept that failed for want of file descriptors or memory: let some connections end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What a browser or curl sees that speaks plain text from another machine.
const PLAINTEXT_REFUSED: &[u8] = b"HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n\
{\"error\":\"plaintext_refused\",\"code\":403,\"message\":\"plain text is accepted from the same machine only: use https\"}\n";

/// Serves `router` on `listener` until `shutdown`, then lets running requests finish, for at most
/// [`DRAIN_TIMEOUT`]. Handlers find a [`PeerInfo`] in each request's extensions.
pub async fn serve_tcp(
    listener: TcpListener,
    router: axum::Router,
    config: TcpConfig,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let server = Arc::new(Server {
        router: router.with_state(()),
        plaintext: config.plaintext,
        tls: config.tls,
        traffic: config.traffic,
        http: http_builder(),
        shutdown: shutdown.clone(),
    });
    let graceful = GracefulShutdown::new();
    loop {
        let (stream, addr) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let (server, watcher) = (server.clone(), graceful.watcher());
        tokio::spawn(async move {
            if let Err(error) = server.connection(stream, addr, watcher).await {
                tracing::debug!(%addr, error = %*error, "connection ended");
            }
        });
    }
    drop(listener);
    if timeout(DRAIN_TIMEOUT, graceful.shutdown()).await.is_err() {
        tracing::warn!("some requests did not finish within {} s", DRAIN_TIMEOUT.as_secs());
    }
    Ok(())
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

struct Server {
    router: axum::Router,
    plaintext: Plaintext,
    tls: Option<HttpTls>,
    traffic: Arc<Traffic>,
    http: auto::Builder<TokioExecutor>,
    shutdown: CancellationToken,
}

impl Server {
    async fn connection(
        &self,
        stream: TcpStream,
        addr: SocketAddr,
        watcher: hyper_util::server::graceful::Watcher,
    ) -> Result<(), BoxError> {
        stream.set_nodelay(true)?;
        let mut first = [0];
        let peeked = tokio::select! {
            peeked = timeout(HANDSHAKE_TIMEOUT, stream.peek(&mut first)) => peeked??,
            // Whoever has not said anything yet does not hold up the shutdown.
            () = self.shutdown.cancelled() => 0,
        };
        if peeked == 0 {
            return Ok(());
        }
        let (stream, state) = Watched::new(stream, Arc::clone(&self.traffic));
        let connection = PeerConnection::tcp(state);
        let mut peer = PeerInfo { wire: Wire::Http, addr, tls: false, certificate: None, early_data: None, connection };
        if first[0] == TLS_HANDSHAKE {
            let tls = self.tls.as_ref().ok_or("TLS is not set up on this port")?;
            let stream = timeout(HANDSHAKE_TIMEOUT, tls.acceptor().accept(stream)).await??;
            peer.tls = true;
            peer.certificate =
                stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(|c| c.clone().into_owned());
            return self.http(stream, peer, watcher).await;
        }
        if !self.plaintext.allows(addr) {
            tracing::warn!(%addr, "plain text refused: it is accepted from this machine only");
            let mut stream = stream;
            // An HTTP/2 client would not understand it, and need not.
            stream.write_all(PLAINTEXT_REFUSED).await?;
            stream.shutdown().await?;
            return Ok(());
        }
        self.http(stream, peer, watcher).await
    }

    async fn http<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        stream: S,
        peer: PeerInfo,
        watcher: hyper_util::server::graceful::Watcher,
    ) -> Result<(), BoxError> {
        let router = self.router.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(peer.clone());
            let mut router = router.clone();
            async move { Ok::<Response<Body>, Infallible>(deadline::call(&mut router, request).await) }
        });
        watcher.watch(self.http.serve_connection(TokioIo::new(stream), service).into_owned()).await
    }
}

/// A connection that counts its bytes, and tells when the peer has ended it: before hyper knows, and so before any call is dropped for that reason.
struct Watched {
    io: TcpStream,
    traffic: Arc<Traffic>,
    state: watch::Sender<TcpState>,
    /// Runs once the peer has ended the connection.
    end: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    fn new(io: TcpStream, traffic: Arc<Traffic>) -> (Self, watch::Receiver<TcpState>) {
        let (state, receiver) = watch::channel(TcpState::Open);
        (Self { io, traffic, state, end: None }, receiver)
    }

    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if result.is_err() {
            self.state.send_replace(TcpState::Ended);
        }
        result
    }

    fn sent(&self, result: io::Result<usize>) -> io::Result<usize> {
        if let Ok(bytes) = result {
            self.traffic.sent.fetch_add(bytes as u64, Relaxed);
        }
        self.note(result)
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.end.is_none() {
            let before = buf.filled().len();
            let result = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
            self.traffic.received.fetch_add((buf.filled().len() - before) as u64, Relaxed);
            if result.is_err() || buf.filled().len() > before || buf.remaining() == 0 {
                return Poll::Ready(self.note(result));
            }
        }
        ready!(self.end.get_or_insert_with(|| Box::pin(sleep(END_DELAY))).as_mut().poll(cx));
        self.state.send_replace(TcpState::Ended);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.io).poll_write(cx, bytes));
        Poll::Ready(self.sent(result))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, slices));
        Poll::Ready(self.sent(result))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

fn http_builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_TIMEOUT)
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_CALLS_PER_CONNECTION)
        .max_header_list_size(MAX_HEADERS_BYTES as u32)
        .keep_alive_interval(HTTP2_PING_INTERVAL)
        .keep_alive_timeout(HTTP2_PING_TIMEOUT);
    builder
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn plain_text_is_for_this_machine_unless_asked_for() {
        for (addr, here) in [
            ("127.0.0.1:1", true),
            ("127.9.9.9:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("10.0.0.1:1", false),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("[::ffff:10.0.0.1]:1", false),
            ("[fe80::1]:1", false),
        ] {
            let addr = addr.parse().unwrap();
            assert_eq!(Plaintext::LoopbackOnly.allows(addr), here, "{addr}");
            assert!(Plaintext::Anywhere.allows(addr));
        }
    }
}
