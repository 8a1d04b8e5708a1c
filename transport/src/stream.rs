//! The outgoing half of a call: a QUIC stream that is reset, not finished, when whoever writes to it is dropped.

use std::time::Duration;

use bytes::Bytes;
use quinn::{SendStream, WriteError};
use tokio::time::timeout;

use crate::wire::ErrorCode;

/// quinn finishes a stream that is dropped, so a panic or an aborted task would look like a proper end. This resets it.
pub(crate) struct OutgoingStream {
    stream: SendStream,
    open: bool,
    on_drop: ErrorCode,
}

impl OutgoingStream {
    /// Resets `stream` with `on_drop` unless it is finished or aborted before.
    pub(crate) fn new(stream: SendStream, on_drop: ErrorCode) -> Self {
        Self { stream, open: true, on_drop }
    }

    /// Writes all of `chunks` and empties it. Waits while the peer reads too slowly.
    pub(crate) async fn write(&mut self, chunks: &mut Vec<Bytes>) -> Result<(), WriteError> {
        if !chunks.is_empty() {
            self.stream.write_all_chunks(chunks).await?;
            chunks.clear();
        }
        Ok(())
    }

    /// The same, unless the peer takes nothing for `limit`.
    pub(crate) async fn write_within(&mut self, chunks: &mut Vec<Bytes>, limit: Duration) -> Result<(), SendError> {
        let mut rest = &mut chunks[..];
        while !rest.is_empty() {
            let written = timeout(limit, self.stream.write_chunks(rest)).await;
            let written = written.map_err(|_| SendError::Stalled(limit))??;
            rest = &mut rest[written.chunks..];
        }
        chunks.clear();
        Ok(())
    }

    /// Ends the stream: everything written will arrive.
    pub(crate) fn finish(&mut self) {
        self.open = false;
        // An error means that the peer has stopped the stream: it wants no end.
        let _ = self.stream.finish();
    }

    /// Breaks the stream off.
    pub(crate) fn abort(&mut self, code: ErrorCode) {
        self.open = false;
        let _ = self.stream.reset(code.code());
    }
}

/// Why a response was not sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("writing to the peer: {0}")]
    Write(#[from] WriteError),
    #[error("the peer has taken nothing for {0:?}")]
    Stalled(Duration),
}

impl Drop for OutgoingStream {
    fn drop(&mut self) {
        if self.open {
            self.abort(self.on_drop);
        }
    }
}
