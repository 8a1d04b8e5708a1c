//! The coordinator answers one question: which agent should serve this request? It never carries a token of model output.
//!
//! Start at [`Coordinator::bind`] with a [`Config`], then [`Coordinator::run`]. Inside, a request goes
//! `rest` or `grpc` → `routing` (checks it, books a slot, signs a token) → `registry` → `scheduler`:
//!
//! - `registry` and `agent_input`: which agents there are, a lease for each, and what they may say. Plain data and `now`;
//!   no socket, no clock.
//! - `scheduler`: which of them is best; a pure function, [`choose`].
//! - `rest` and `grpc`: the two interfaces over the same `routing`. An agent's health stream is `grpc::health_stream`.
//! - `front_door`: the OpenAI API, answered by redirects to agents; `client_ids` names its clients.
//! - `keys` and `access`: who may ask, and how much of it; `usage`: what was generated for whom.
//! - `caller`: whom a request counts for. `outcomes`: what clients say they met at an agent; `registry::breaker` makes up its mind.
//! - `waiting`: requests that found no room, in the order of `queue`.
//! - `known_agents`: who was there before a restart, in a file.
//! - `prefill`: hints to agents of requests whose clients are still on their way; an option.
//! - `server`: two ports, each with TLS and, from this machine, plain text (`titan-transport` tells them apart).
//!
//! Prompts are checked for their length and forgotten, or with the option passed on to the chosen agent; nothing logs them. Not here: engines, retries, and a shared
//! registry of several coordinators.

mod access;
mod agent_input;
mod caller;
mod client_ids;
mod config;
mod front_door;
mod grpc;
pub mod keys;
mod known_agents;
mod outcomes;
mod prefill;
mod queue;
mod registry;
mod rest;
mod routing;
mod scheduler;
mod server;
pub mod usage;
mod waiting;

pub use config::{Config, ConfigError, MAX_BOOKING_TIMEOUT, MAX_HEARTBEAT_TIMEOUT, MAX_TOKEN_TTL};
pub use routing::PROMPT_DIGEST;
pub use scheduler::{Candidate, Weights, WeightsError, choose};
pub use server::{BindError, Coordinator};
