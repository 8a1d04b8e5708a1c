//! A connection, above TLS, whose HTTP/2 frames are counted: [`frames`](super::frames).

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    frames::Meter,
    traffic::{Cut, Traffic},
};

/// Gives an error in place of what a flood brings.
pub(super) struct Metered<S> {
    io: S,
    peer: SocketAddr,
    meter: Meter,
    traffic: Arc<Traffic>,
}

impl<S> Metered<S> {
    pub(super) fn new(io: S, peer: SocketAddr, traffic: Arc<Traffic>) -> Self {
        Self { io, peer, meter: Meter::new(Instant::now()), traffic }
    }

    fn sent<'a>(&mut self, written: usize, slices: impl Iterator<Item = &'a [u8]>) {
        let mut left = written;
        for slice in slices {
            let taken = slice.len().min(left);
            self.meter.sent(&slice[..taken]);
            left -= taken;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let metered = self.meter.received(&buf.filled()[before..], Instant::now());
        Poll::Ready(metered.map_err(|flood| {
            self.traffic.count_cut(Cut::Flood);
            crate::seldom!(warn, addr = %self.peer, "connection cut off: {flood}");
            io::Error::new(io::ErrorKind::ConnectionAborted, flood)
        }))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, bytes))?;
        self.sent(written, [bytes].into_iter());
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, slices))?;
        self.sent(written, slices.iter().map(|slice| &**slice));
        Poll::Ready(Ok(written))
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
