//! The bytes of the QUIC wire, without any I/O: PROTOCOL.md §3 to §5.
//!
//! - [`frame`]: frames, and the order in which a stream may carry them.
//! - [`metadata`]: HTTP header maps to and from the HEADERS and TRAILERS payloads.
//! - [`datagram`]: what travels in DATAGRAM frames; [`window`], [`arrivals`], [`losses`]: redundant messages, both sides.
//! - [`reframe`]: gRPC's length-prefixed messages, as tonic speaks them, to MESSAGE frames.

pub(crate) mod arrivals;
pub(crate) mod datagram;
pub(crate) mod frame;
pub(crate) mod losses;
pub(crate) mod metadata;
pub(crate) mod reframe;
#[cfg(test)]
mod repeat_tests;
pub(crate) mod window;

use quinn::VarInt;

/// Why a stream was reset, reading was stopped, or a connection was closed: PROTOCOL.md §6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ErrorCode {
    /// Nothing went wrong.
    NoError = 0x0,
    /// The caller lost interest, or its deadline passed.
    Cancelled = 0x1,
    /// The call was not processed at all; it is safe to send it again, elsewhere.
    Refused = 0x2,
    /// The handler broke down.
    Internal = 0x3,
    /// The peer broke the rules of this protocol.
    Protocol = 0x4,
    /// A limit was exceeded.
    Limit = 0x5,
    /// The peer has no certificate of the private CA, or not a valid one. Connections only.
    Unauthenticated = 0x6,
    /// The handshake, or a request's headers, took too long; or the peer took nothing of a response for too long.
    Timeout = 0x7,
    /// The client connects anew and means to resume what it was reading. Connections only.
    Reconnecting = 0x8,
}

impl ErrorCode {
    /// As QUIC carries it.
    pub(crate) fn code(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }

    /// The inverse; None for a code that this version does not know.
    pub(crate) fn from_code(code: VarInt) -> Option<Self> {
        use ErrorCode::*;
        [NoError, Cancelled, Refused, Internal, Protocol, Limit, Unauthenticated, Timeout, Reconnecting]
            .into_iter()
            .find(|known| known.code() == code)
    }
}
