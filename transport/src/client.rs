//! The client half: a channel that tonic-generated clients take.
//!
//! A [`QuicConnector`] owns the UDP socket and the session tickets; [`QuicConnector::channel`] gives a [`QuicChannel`] to one
//! server. A channel connects when the first call needs it, carries all calls on one connection, and connects again when
//! that is lost.

mod call;
mod channel;
mod connector;
pub(crate) mod sessions;
mod watching;

pub use channel::{ChannelStats, QuicChannel};
pub use connector::{ConnectError, QuicConnector};

use std::sync::Arc;

use quinn::ConnectionError;
use tonic::Status;

/// Put this into a request's extensions to let it travel as early data (0-RTT): it may then reach the server twice (RFC 8446 §8),
/// so only for requests that do no harm then. Requests with a streamed body wait for the handshake all the same.
#[derive(Clone, Copy, Debug)]
pub struct EarlyDataSafe;

/// Why a call failed below gRPC. It is the `source()` of the [`Status`] that a caller gets.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// There is no connection. The request was not sent.
    #[error("{0}")]
    NotSent(ConnectError),
    /// The server takes no new calls. The request was not processed.
    #[error("the server is shutting down and takes no new calls")]
    Refused,
    /// The server took none of the early data. The request was not processed. Calls are repeated by themselves; it is seen only
    /// when that fails too.
    #[error("the server did not accept early data")]
    EarlyDataRejected,
    /// The connection broke. The request may have been processed.
    #[error("the connection was lost: {}", lost(.0))]
    Lost(ConnectionError),
}

fn lost(error: &ConnectionError) -> String {
    match error {
        // quinn keeps no reason for what this side closed.
        ConnectionError::LocallyClosed => {
            "closed on this side, because the server is gone or the program said so".into()
        }
        error => error.to_string(),
    }
}

impl CallError {
    /// Whether it is certain that no handler saw the request, so that sending it again cannot do it twice.
    pub fn not_processed(&self) -> bool {
        !matches!(self, Self::Lost(_))
    }

    /// The error behind a status, if it came from here.
    pub fn of(status: &Status) -> Option<&Self> {
        std::error::Error::source(status)?.downcast_ref()
    }

    pub(crate) fn into_status(self) -> Status {
        let mut status = Status::unavailable(self.to_string());
        status.set_source(Arc::new(self));
        status
    }
}
