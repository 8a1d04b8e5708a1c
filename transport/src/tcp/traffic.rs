//! What passes a TCP port, counted.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Bytes that passed a TCP port, TLS and HTTP included, TCP and IP left out; and the connections that were cut off.
#[derive(Debug, Default)]
pub struct Traffic {
    received: AtomicU64,
    sent: AtomicU64,
    open: AtomicU64,
    cut: [AtomicU64; Cut::ALL.len()],
}

/// Why a connection, or a response on one, was not let go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The port, or the peer's address, has too many connections; or a newer connection got the place of one that had not asked for anything.
    Full,
    /// Plain text from another machine.
    PlainText,
    /// The TLS handshake failed.
    Tls,
    /// No request came in time.
    NoRequest,
    /// No request ran for long.
    Idle,
    /// A request did not arrive in time.
    SlowRequest,
    /// The peer took nothing of a response.
    SlowReader,
    /// Frames of HTTP/2 beyond all relation to the requests.
    Flood,
}

impl Cut {
    /// Every one.
    pub const ALL: [Self; 8] = [
        Self::Full,
        Self::PlainText,
        Self::Tls,
        Self::NoRequest,
        Self::Idle,
        Self::SlowRequest,
        Self::SlowReader,
        Self::Flood,
    ];

    /// In a word or two, as in the name of a metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::PlainText => "plain_text",
            Self::Tls => "tls",
            Self::NoRequest => "no_request",
            Self::Idle => "idle",
            Self::SlowRequest => "slow_request",
            Self::SlowReader => "slow_reader",
            Self::Flood => "flood",
        }
    }
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

    /// Connections that are open now.
    pub fn open(&self) -> u64 {
        self.open.load(Relaxed)
    }

    /// How many were cut off for this reason.
    pub fn cut(&self, why: Cut) -> u64 {
        self.cut[why as usize].load(Relaxed)
    }

    pub(super) fn count_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn count_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn count_cut(&self, why: Cut) {
        self.cut[why as usize].fetch_add(1, Relaxed);
    }

    /// A connection is open as long as the value lives.
    pub(super) fn open_one(self: &Arc<Self>) -> OpenOne {
        self.open.fetch_add(1, Relaxed);
        OpenOne(Arc::clone(self))
    }
}

/// A connection that is open.
pub(super) struct OpenOne(Arc<Traffic>);

impl Drop for OpenOne {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}
