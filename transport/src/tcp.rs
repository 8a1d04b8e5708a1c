//! The TCP side: one port for HTTP/1.1 and HTTP/2, with TLS or, from this machine, in plain text.
//!
//! A TLS connection begins with byte 22 (RFC 8446 §5.1), no HTTP request does: the first byte tells them apart. So clients that know
//! nothing of certificates work on the same machine, and nothing leaks on a network.
//!
//! Anyone can connect, so every step has its limit ([`PortLimits`]): `connection`, the way of one from its first byte to its end; `activity`, by
//! when a request has to come; `watched` and `writes`, peers that take nothing of an answer; `frames` and `metered`, floods of HTTP/2 frames.

mod activity;
mod connection;
mod frames;
mod metered;
mod traffic;
mod watched;
mod writes;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hyper_util::{rt::TokioTimer, server::conn::auto};
use tokio::{net::TcpListener, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::traffic::{Cut, Traffic};
use self::{connection::Server, writes::StreamExecutor};
use crate::{
    limits::{DRAIN_TIMEOUT, MAX_CALLS_PER_CONNECTION, MAX_HEADERS_BYTES, PortLimits},
    seats::Seats,
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

/// HTTP/2 pings of an otherwise silent connection, so that a peer that vanished is noticed.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(10);
/// A ping not answered for so long ends the connection; with the interval above, about what the QUIC idle timeout is.
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(20);
/// What hyper keeps of one HTTP/2 response that the network has not taken yet: seconds of tokens. Its default, 400 KiB, is for downloads.
const HTTP2_SEND_BUFFER_BYTES: usize = 64 * 1024;
/// After an accept that failed for want of file descriptors or memory: let some connections end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves `router` on `listener` until `shutdown`, then lets running requests finish, for at most
/// [`DRAIN_TIMEOUT`]. Handlers find a [`PeerInfo`](crate::PeerInfo) in each request's extensions.
///
/// # Errors
/// None at present: an accept that fails is tried again.
pub async fn serve_tcp(
    listener: TcpListener,
    router: axum::Router,
    config: TcpConfig,
    shutdown: CancellationToken,
) -> io::Result<()> {
    serve_tcp_within(listener, router, config, PortLimits::default(), shutdown).await
}

/// The same with other limits than the usual ones.
///
/// # Errors
/// As [`serve_tcp`].
pub async fn serve_tcp_within(
    listener: TcpListener,
    router: axum::Router,
    config: TcpConfig,
    limits: PortLimits,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let TcpConfig { tls, plaintext, traffic } = config;
    let seats = Seats::new(limits.connections, limits.connections_per_address);
    let http = http_builder(StreamExecutor { limit: limits.write, traffic: Arc::clone(&traffic) });
    let router = router.with_state(());
    let server = Arc::new(Server { router, plaintext, tls, traffic, limits, http, shutdown: shutdown.clone() });
    let connections = TaskTracker::new();
    loop {
        let (stream, addr) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    crate::seldom!(warn, %error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        match seats.take(addr) {
            Ok(seat) => drop(connections.spawn(Arc::clone(&server).connection(stream, addr, seat))),
            Err(full) => {
                server.traffic.count_cut(Cut::Full);
                crate::seldom!(warn, %addr, "connection refused: {full}");
            }
        }
    }
    drop(listener);
    connections.close();
    if timeout(DRAIN_TIMEOUT, connections.wait()).await.is_err() {
        tracing::warn!("some requests did not finish within {} s", DRAIN_TIMEOUT.as_secs());
    }
    Ok(())
}

fn http_builder(executor: StreamExecutor) -> auto::Builder<StreamExecutor> {
    let mut builder = auto::Builder::new(executor);
    builder
        .http1()
        .timer(TokioTimer::new())
        // `activity` has the time of a request's head; hyper's would run while a connection is idle, too.
        .header_read_timeout(None::<Duration>)
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_CALLS_PER_CONNECTION)
        .max_header_list_size(MAX_HEADERS_BYTES as u32)
        .max_send_buf_size(HTTP2_SEND_BUFFER_BYTES)
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
