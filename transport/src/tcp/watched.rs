//! The socket under a connection: its bytes are counted, its end is noticed, and a peer that takes nothing does not hold it for ever.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::watch,
    time::{Sleep, sleep},
};

use super::traffic::{Cut, Traffic};
use crate::peer::TcpState;

/// The peer's end of a connection is passed on so much later: what it cancelled just before is then known to be cancelled, and not lost
/// with the connection ([`PeerConnection`](crate::PeerConnection)).
const END_DELAY: Duration = Duration::from_millis(50);

/// A connection that counts its bytes, and tells when the peer has ended it: before hyper knows, and so before any call is dropped for that reason.
pub(super) struct Watched {
    io: TcpStream,
    traffic: Arc<Traffic>,
    state: watch::Sender<TcpState>,
    /// Runs once the peer has ended the connection.
    end: Option<Pin<Box<Sleep>>>,
    /// How long the peer may take nothing of what is to be sent.
    write_limit: Duration,
    /// Runs while it takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Watched {
    pub(super) fn new(
        io: TcpStream,
        traffic: Arc<Traffic>,
        write_limit: Duration,
    ) -> (Self, watch::Receiver<TcpState>) {
        let (state, receiver) = watch::channel(TcpState::Open);
        (Self { io, traffic, state, end: None, write_limit, stalled: None }, receiver)
    }

    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if result.is_err() {
            self.state.send_replace(TcpState::Ended);
        }
        result
    }

    /// What became of an attempt to write.
    fn wrote(&mut self, attempt: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(result) = attempt {
            self.stalled = None;
            if let Ok(bytes) = result {
                self.traffic.count_sent(bytes);
            }
            return Poll::Ready(self.note(result));
        }
        let limit = self.write_limit;
        ready!(self.stalled.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(cx));
        self.stalled = None;
        self.traffic.count_cut(Cut::SlowReader);
        let error = io::Error::new(io::ErrorKind::TimedOut, format!("the peer has taken nothing for {limit:?}"));
        Poll::Ready(self.note(Err(error)))
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.end.is_none() {
            let before = buf.filled().len();
            let result = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
            self.traffic.count_received(buf.filled().len() - before);
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
        let attempt = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.wrote(attempt, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let attempt = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.wrote(attempt, cx)
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
