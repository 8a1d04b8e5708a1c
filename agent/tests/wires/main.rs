//! The agent over real sockets: every case on both wires. One binary, since each one links the model runtime.

#![allow(clippy::unwrap_used, missing_docs)]

mod auth;
mod conversations;
mod coordinator;
mod fixture;
mod prefill;
mod resuming;
mod serving;
mod streams;
