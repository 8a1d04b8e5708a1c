//! One connection, from its first byte to its end.

use std::{convert::Infallible, error::Error, io, net::SocketAddr, sync::Arc, time::Duration};

use axum::body::Body;
use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{rt::TokioIo, server::conn::auto};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout_at},
};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::{
    Plaintext,
    activity::Activity,
    metered::Metered,
    traffic::{Cut, Traffic},
    watched::Watched,
    writes::{Answering, StreamExecutor},
};
use crate::{
    arrival::Late,
    deadline,
    limits::PortLimits,
    peer::{PeerConnection, PeerInfo, Wire},
    seats::Seat,
    tls::HttpTls,
};

/// First byte of a TLS record that carries a handshake message.
const TLS_HANDSHAKE: u8 = 22;
/// What a browser or curl sees that speaks plain text from another machine.
const PLAINTEXT_REFUSED: &[u8] = b"HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n\
{\"error\":\"plaintext_refused\",\"code\":403,\"message\":\"plain text is accepted from the same machine only: use https\"}\n";
/// A connection that is to be closed for want of requests has so long to close in order: a GOAWAY and a ping of HTTP/2, and their answer, also
/// where one of them is lost on the way.
const FAREWELL: Duration = Duration::from_secs(3);

/// What all connections of a port share.
pub(super) struct Server {
    pub(super) router: axum::Router,
    pub(super) plaintext: Plaintext,
    pub(super) tls: Option<HttpTls>,
    pub(super) traffic: Arc<Traffic>,
    pub(super) limits: PortLimits,
    pub(super) http: auto::Builder<StreamExecutor>,
    pub(super) shutdown: CancellationToken,
}

/// Why a connection did not end by the peer's wish.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Http(Box<dyn Error + Send + Sync>),
    #[error("TLS is not set up on this port")]
    NoTls,
    #[error("cut off: {}", .0.as_str())]
    Cut(Cut),
}

/// A connection that can be asked something.
enum Opened {
    Tls(Box<TlsStream<Watched>>, PeerInfo),
    Plain(Watched, PeerInfo),
    /// There is nobody to answer.
    Silent,
}

impl Server {
    /// Serves one connection to its end.
    pub(super) async fn connection(self: Arc<Self>, stream: TcpStream, addr: SocketAddr, seat: Seat) {
        let _open = self.traffic.open_one();
        if let Err(ended) = self.serve(stream, addr, seat).await {
            // What Watched and Metered have cut off they have counted.
            if let Ended::Cut(why) = ended {
                self.traffic.count_cut(why);
            }
            tracing::debug!(%addr, %ended, "connection ended");
        }
    }

    async fn serve(&self, stream: TcpStream, addr: SocketAddr, seat: Seat) -> Result<(), Ended> {
        let first_by = Instant::now() + self.limits.first_request;
        let opened = tokio::select! {
            opened = timeout_at(first_by, self.open(stream, addr)) => opened.map_err(|_| Ended::Cut(Cut::NoRequest))??,
            () = seat.given_up() => return Err(Ended::Cut(Cut::Full)),
            // Whoever has not said anything yet does not hold up the shutdown.
            () = self.shutdown.cancelled() => return Ok(()),
        };
        match opened {
            Opened::Tls(stream, peer) => self.http(stream, peer, seat, first_by).await,
            Opened::Plain(stream, peer) => self.http(stream, peer, seat, first_by).await,
            Opened::Silent => Ok(()),
        }
    }

    /// To where HTTP begins.
    async fn open(&self, stream: TcpStream, addr: SocketAddr) -> Result<Opened, Ended> {
        stream.set_nodelay(true)?;
        let mut first = [0];
        if stream.peek(&mut first).await? == 0 {
            return Ok(Opened::Silent);
        }
        let (stream, state) = Watched::new(stream, Arc::clone(&self.traffic), self.limits.write);
        let connection = PeerConnection::tcp(state);
        let mut peer = PeerInfo { wire: Wire::Http, addr, tls: false, certificate: None, early_data: None, connection };
        if first[0] == TLS_HANDSHAKE {
            let tls = self.tls.as_ref().ok_or(Ended::NoTls)?;
            let stream = tls.acceptor().accept(stream).await.map_err(|error| {
                // A client with another CA is a mistake worth a line. One that goes away is none.
                if error.kind() == io::ErrorKind::InvalidData {
                    crate::seldom!(warn, %addr, %error, "TLS handshake failed");
                }
                Ended::Cut(Cut::Tls)
            })?;
            peer.tls = true;
            peer.certificate =
                stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(|c| c.clone().into_owned());
            return Ok(Opened::Tls(Box::new(stream), peer));
        }
        if !self.plaintext.allows(addr) {
            crate::seldom!(warn, %addr, "plain text refused: it is accepted from this machine only");
            let mut stream = stream;
            // An HTTP/2 client would not understand it, and need not; nor does it matter whether one that has gone hears of it.
            if stream.write_all(PLAINTEXT_REFUSED).await.is_ok() {
                let _ = stream.shutdown().await;
            }
            return Err(Ended::Cut(Cut::PlainText));
        }
        Ok(Opened::Plain(stream, peer))
    }

    /// Serves requests until the peer ends the connection, or does not use it.
    async fn http<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        stream: S,
        peer: PeerInfo,
        seat: Seat,
        first_by: Instant,
    ) -> Result<(), Ended> {
        let activity = Activity::new(first_by, self.limits.idle);
        let stream = Metered::new(stream, peer.addr, Arc::clone(&self.traffic));
        let service = service_fn(|request: Request<Incoming>| {
            seat.prove();
            let running = activity.begin();
            let (mut request, mut router) = (request.map(Body::new), self.router.clone());
            request.extensions_mut().insert(peer.clone());
            let (limit, traffic) = (self.limits.request, Arc::clone(&self.traffic));
            async move {
                let response = deadline::call(&mut router, request, limit).await;
                if response.extensions().get::<Late>().is_some() {
                    traffic.count_cut(Cut::SlowRequest);
                }
                Ok::<Response<Answering>, Infallible>(response.map(|body| Answering::new(body, running)))
            }
        });
        let mut connection = std::pin::pin!(self.http.serve_connection(TokioIo::new(stream), service));
        let mut expired = std::pin::pin!(activity.expired());
        let mut farewell = std::pin::pin!(sleep(Duration::ZERO));
        let (mut why, mut stopping) = (None, false);
        loop {
            tokio::select! {
                ended = &mut connection => return match why {
                    Some(why) => Err(Ended::Cut(why)),
                    None => ended.map_err(Ended::Http),
                },
                () = seat.given_up() => return Err(Ended::Cut(Cut::Full)),
                () = self.shutdown.cancelled(), if !stopping => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
                reason = &mut expired, if why.is_none() => {
                    why = Some(reason);
                    connection.as_mut().graceful_shutdown();
                    farewell.as_mut().reset(Instant::now() + FAREWELL);
                }
                // A request that came at the last moment is answered all the same.
                () = &mut farewell, if why.is_some() => match why {
                    Some(why) if !activity.is_running() => return Err(Ended::Cut(why)),
                    _ => farewell.as_mut().reset(Instant::now() + FAREWELL),
                },
            }
        }
    }
}
