//! The binary, as people run it: every test starts `titan` itself.

#![allow(clippy::unwrap_used)]

mod certs;
mod chat;
mod cluster;
mod conversations;
mod demo;
mod environment;
mod faults;
mod keys;
mod kills;
mod logs;
mod mistakes;
mod models;
mod moves;
mod pages;
mod parts;
mod prefill;
mod proxy;
mod real_conversations;
mod real_model;
mod renewal;
mod signals;
mod support;
