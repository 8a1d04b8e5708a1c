//! The agent: runs models and streams their text straight to the client, over standard gRPC and over QUIC.
//!
//! Start at [`Agent`]: `Agent::bind(config, engine).await?.run(shutdown).await`.
//!
//! The way of a request, in reading order:
//!
//! 1. `server`: one set of gRPC services on two wires, TCP (gRPC over HTTP/2) and UDP (gRPC over QUIC); the drain.
//! 2. `service`: the one handler of both wires. What it asks, it asks in this order:
//!    `auth` (whose token, for what), [`options`] (what to generate), `admission` (is there room; `account`: what it uses), `replay` (did this
//!    run already), `token_uses` (may the token start another one), [`engine`] (generate).
//!    `openai_api` asks it in the words of OpenAI's API, on the TCP port.
//! 3. `response`: the engine's stream as gRPC messages, with the usage on the last one. `resumable`: the same for answers that can be resumed.
//!
//! Beside it, `heartbeat` tells the coordinator that the agent is there and how busy it is (`telemetry`), and brings its keys, and hints of
//! requests whose clients are on their way: `prefill` begins with those.
//!
//! It does not choose agents, queue for other agents, or issue tokens: that is the coordinator's work.

mod account;
mod admission;
mod auth;
mod config;
mod coordinator;
pub mod engine;
mod heartbeat;
mod openai_api;
pub mod options;
mod prefill;
mod replay;
mod response;
mod resumable;
mod server;
mod service;
mod telemetry;
mod token_uses;

pub use config::{Config, ConfigError};
pub use server::{Agent, BindError};
