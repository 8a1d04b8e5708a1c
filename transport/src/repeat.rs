//! Redundant messages (PROTOCOL.md §10): the pure state of `wire` with a connection and timers around it.
//!
//! [`sender`] is the server's side, [`receiver`] the client's.

pub(crate) mod receiver;
pub(crate) mod sender;
