//! The agent over real sockets: every case on both wires. One binary, since each one links the model runtime.

#![allow(clippy::unwrap_used, missing_docs)]

mod auth;
mod conversations;
mod coordinator;
mod fixture;
mod openai;
mod prefill;
#[path = "../../../transport/tests/support/relay.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the tests of the transport")]
mod relay;
mod resuming;
mod serving;
mod streams;
