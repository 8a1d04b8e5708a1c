//! The API over a scripted backend, through its router and once over a socket.

#![allow(clippy::unwrap_used)]

mod backend;
mod background;
mod chat;
mod errors;
mod responses;
mod streams;
