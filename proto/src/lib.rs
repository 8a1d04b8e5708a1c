//! What crosses a wire between TitanCompute's parts, and nothing else.
//!
//! - [`v1`]: the gRPC services `CoordinatorService` and `AgentService`, generated from `titancompute/v1/*.proto`.
//! - [`rest`]: the JSON bodies of the coordinator's REST interface.
//! - [`wire`]: the protobuf payloads of the QUIC wire's frames. The wire itself is specified in `PROTOCOL.md`, beside this
//!   crate's sources, and implemented by `titan-transport`.
//! - [`conversation`]: messages and tools, their limits. [`digest`]: the chain of digests by which a conversation is found again.
//! - [`host`]: which hosts are this machine, and which pages may ask what runs on it.
//! - The constants below: names, ports and limits that more than one part must agree on.
//!
//! Nothing here does I/O.

#![allow(missing_docs, reason = "the generated code's documentation stands in the .proto files")]

pub mod conversation;
pub mod digest;
pub mod host;
mod private;
pub mod rest;

/// The gRPC services and messages of package `titancompute.v1`.
pub mod v1 {
    tonic::include_proto!("titancompute.v1");
}

/// Frame payloads of the QUIC wire: `PROTOCOL.md` §4.
pub mod wire {
    tonic::include_proto!("titan.wire.v1");
}

/// Every message and service of this crate as an encoded `FileDescriptorSet`, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// ALPN protocol name of the QUIC wire: `PROTOCOL.md` §2.
pub const ALPN: &str = "titan/1";
/// The coordinator's name in health answers and the issuer of its tokens.
pub const COORDINATOR_NAME: &str = "titancompute-coordinator";

/// Metadata of a refusal that names its reason for programs.
pub const REASON: &str = "titan-reason";
/// [`REASON`]: the prompt is longer than the model's context. OpenAI's word for it.
pub const CONTEXT_LENGTH: &str = "context_length_exceeded";

/// [`REASON`]: a newer process has registered under the agent's name.
pub const REPLACED: &str = "replaced";
/// How far apart the clocks of coordinator and agent may be: tokens are valid from 30 s before they are made, and whoever checks them allows
/// 5 s more (`titan_transport::token::CLOCK_LEEWAY`).
pub const MAX_CLOCK_SKEW: std::time::Duration = std::time::Duration::from_secs(35);

/// Default port of the coordinator's REST interface (TCP); `COORDINATOR_HTTP_PORT`.
pub const COORDINATOR_HTTP_PORT: u16 = 8080;
/// Default port of the coordinator's gRPC service (TCP); `COORDINATOR_PORT`.
pub const COORDINATOR_GRPC_PORT: u16 = 50051;
/// Default port of an agent, gRPC in TCP and QUIC in UDP; `AGENT_PORT`, `AGENT_QUIC_PORT`.
pub const AGENT_PORT: u16 = 50052;

/// The name under which agents serve the model that they fetch by themselves.
pub const DEFAULT_MODEL_NAME: &str = "smollm2:135m";
/// `max_tokens` where a request does not say.
pub const DEFAULT_MAX_TOKENS: i32 = 100;
/// Temperature where a REST request does not say.
pub const DEFAULT_TEMPERATURE: f32 = 0.7;
/// Largest REST body in bytes: a 60,000-token prompt is about 300 KiB.
pub const MAX_REST_BODY_BYTES: usize = 1 << 20;
/// Largest prompt in bytes, on every wire: what fits a REST body with room for the rest of the JSON.
pub const MAX_PROMPT_BYTES: usize = MAX_REST_BODY_BYTES - 64 * 1024;
/// Generation speed that an agent may report, in tokens per second: above any machine's, so that a number past it is a mistake.
pub const MAX_TOKENS_PER_SECOND: f64 = 1e6;
