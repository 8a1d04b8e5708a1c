//! The client: ask the coordinator once which agent serves a model, then stream its text straight from that agent.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use futures_util::StreamExt as _;
//! use titan_client::{Prompt, TitanClient};
//!
//! let client = TitanClient::builder("http://localhost:8080").build()?;
//! let mut text = client.generate(Prompt::new("smollm2:135m", "Why is the sky blue?")).await?;
//! while let Some(piece) = text.next().await {
//!     print!("{}", piece?);
//! }
//! # Ok(()) }
//! ```
//!
//! - The coordinator's answer, agent and token, is kept until shortly before the token expires: further requests for the same
//!   model go straight to the agent.
//! - With [TLS material](Builder::tls) the text comes over QUIC; where UDP gets no answer it comes over gRPC.
//!   [`Generation::wire`] says which it was. Connections race, prompts do not: a prompt runs once.
//! - An answer whose connection is lost goes on over a new one ([`Feature::Resume`]), one whose agent is lost at another agent
//!   ([`Feature::Move`]): its reader sees a pause.
//! - What fails is tried again, at other agents where there are any, until the request's deadline ([`Builder::deadline`]). What is done about
//!   which fault is one table, `policy`. Everything else is an error that says whether a model may have seen the prompt
//!   ([`ClientError::processed`]) and whether another try would help ([`ClientError::retryable`]).
//! - While the coordinator is away, requests use the routes that are held, until their tokens expire.
//!
//! The prompt goes to the agent alone; the coordinator gets its digest, unless [`Feature::PrefillAhead`] is switched on.
//!
//! A [`Prompt`] can be a conversation with tools ([`Prompt::conversation`]); [`Generation::next_piece`] gives reasoning, tool calls and log
//! probabilities beside the text.
//!
//! # Where things are
//!
//! `client`: what a request does, from top to bottom. `policy`: what is done about each fault, in one table, without a clock. `search`: one agent
//! after another, as the policy says; `resume`: a lost run at the agent that has it. `coordinator`: the REST calls. `route`: its answers
//! kept, without a clock. `enrol`: a certificate for an API key. `connections`: those to one agent, and the pool of all. `dial`: the race
//! between the wires. `generation`: the stream of text. `job`: one run of a prompt. `outcome`: what the coordinator is told. `features`: what
//! can be switched off. `error`: what can go wrong, and what a status means. `names`: hosts with addresses of their own.

mod builder;
mod client;
mod connections;
mod coordinator;
mod dial;
mod enrol;
mod error;
mod features;
mod generation;
mod job;
mod names;
mod outcome;
mod policy;
mod prompt;
mod resume;
mod route;
mod search;
mod tried;

pub use builder::{BuildError, Builder, WirePreference};
pub use client::{ClientStats, TitanClient};
pub use coordinator::CoordinatorError;
pub use enrol::{EnrolError, Enrolled, EnrolledPem, ca_pin, enrol};
pub use error::{BrokenBy, ClientError, Processed};
pub use features::Feature;
pub use generation::{Generation, Piece, Usage};
pub use prompt::{Format, Prompt, ToolChoice};
pub use titan_proto::rest::ModelInfo;
pub use titan_proto::v1::{
    ContentPart, Message, Reasoning, Sampling, TokenLogprob, Tool, ToolCall, ToolCallDelta, TopLogprob,
};
pub use titan_transport::{ChannelStats, Wire, tls::TlsMaterial};
