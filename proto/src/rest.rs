//! JSON bodies of the coordinator's REST interface, `/api/v1/…`.
//!
//! Names and types are the contract with existing clients; fields may be added, never renamed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::v1;

/// Body of `POST /api/v1/inference/request`.
///
/// Everything is optional here so that the coordinator can say which field is missing, each with its own error code.
/// Its `Debug` shows no prompt.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct InferenceRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Defaults to [`crate::DEFAULT_MAX_TOKENS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<i32>,
    /// Defaults to [`crate::DEFAULT_TEMPERATURE`]; 0 is greedy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, String>,
    /// A conversation, in place of `prompt`: of use with `--prefill-ahead` only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<Message>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Tool>,
    /// The chain of digests of the conversation, each 16 hexadecimal digits: `PROTOCOL.md` §19.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefix_digests: Vec<String>,
    /// Only agents whose model has this digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_digest: Option<String>,
}

/// One message of a conversation, as `titancompute.v1.Message`.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Message {
    pub role: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub content: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<ContentPart>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tool_call_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reasoning: String,
}

/// A part of a message's content.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContentPart {
    pub r#type: String,
    pub text: String,
}

/// A function that a model called.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ToolCall {
    pub id: String,
    pub name: String,
    /// A JSON object, as a string.
    pub arguments: String,
}

/// A function that a model may call.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tool {
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// A JSON schema, as a string.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub parameters: String,
}

impl From<Message> for v1::Message {
    fn from(message: Message) -> Self {
        let Message { role, content, parts, tool_calls, tool_call_id, name, reasoning } = message;
        let parts = parts.into_iter().map(|part| v1::ContentPart { r#type: part.r#type, text: part.text }).collect();
        let call = |call: ToolCall| v1::ToolCall { id: call.id, name: call.name, arguments: call.arguments };
        let tool_calls = tool_calls.into_iter().map(call).collect();
        Self { role, content, parts, tool_calls, tool_call_id, name, reasoning }
    }
}

impl From<v1::Message> for Message {
    fn from(message: v1::Message) -> Self {
        let v1::Message { role, content, parts, tool_calls, tool_call_id, name, reasoning } = message;
        let parts = parts.into_iter().map(|part| ContentPart { r#type: part.r#type, text: part.text }).collect();
        let call = |call: v1::ToolCall| ToolCall { id: call.id, name: call.name, arguments: call.arguments };
        let tool_calls = tool_calls.into_iter().map(call).collect();
        Self { role, content, parts, tool_calls, tool_call_id, name, reasoning }
    }
}

impl From<Tool> for v1::Tool {
    fn from(Tool { name, description, parameters }: Tool) -> Self {
        Self { name, description, parameters }
    }
}

impl From<v1::Tool> for Tool {
    fn from(v1::Tool { name, description, parameters }: v1::Tool) -> Self {
        Self { name, description, parameters }
    }
}

/// Answer to an [`InferenceRequest`]: where to go, and the token to show there.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct InferenceResponse {
    /// gRPC, `host:port`.
    pub agent_endpoint: String,
    pub session_token: String,
    /// Unix seconds.
    pub expires_at: i64,
    pub job_id: String,
    /// Measured between coordinator and agent; 0 while there is no measurement yet.
    pub estimated_rtt_ms: f64,
    pub agent_id: String,
    /// QUIC, `host:port`; absent when the agent offers none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic_endpoint: Option<String>,
    #[serde(default)]
    pub endpoints: Endpoints,
    /// Of the model on this agent; absent where the agent does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_digest: Option<String>,
    /// How many generations the token may start; absent where it may start any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generations: Option<u32>,
}

/// Both ways to reach the chosen agent.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Endpoints {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcEndpoint>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic: Option<QuicEndpoint>,
}

/// Standard gRPC over HTTP/2.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct GrpcEndpoint {
    /// `host:port`.
    pub address: String,
    pub tls: GrpcTls,
}

/// What a client of a gRPC endpoint has to speak when it comes from another machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum GrpcTls {
    /// Plain text.
    #[default]
    None,
    /// TLS; the client shows no certificate.
    Server,
    /// TLS; the client shows a certificate of the private CA.
    Mutual,
}

impl GrpcTls {
    /// The word used in JSON and in `AgentRegistration.grpc_tls`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Server => "server",
            Self::Mutual => "mutual",
        }
    }

    /// The inverse of [`as_str`](Self::as_str); an empty string is `None` (plain text).
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "" | "none" => Some(Self::None),
            "server" => Some(Self::Server),
            "mutual" => Some(Self::Mutual),
            _ => Option::None,
        }
    }
}

/// The QUIC fast path.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct QuicEndpoint {
    /// `host:port`.
    pub address: String,
    /// Always [`crate::ALPN`] today.
    pub alpn: String,
    /// The name to verify in the agent's certificate.
    pub server_name: String,
}

/// Body of `POST /api/v1/jobs/{job_id}/outcome`: what a client met at the agent that it was sent to.
///
/// A client tells failures at once, and a success only of an agent that has failed it before: an agent that answers everybody needs no praise,
/// and a report for each request would double what the coordinator is asked, while one that is on trial after failures (`half_open`) waits
/// for exactly that word. A report may be lost. Its `Debug` shows no token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct OutcomeReport {
    pub outcome: Outcome,
    pub agent_id: String,
    /// `quic` or `grpc`, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wire: Option<String>,
    /// What happened, in at most [`MAX_OUTCOME_MESSAGE_BYTES`]. Never a prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Of this job: who can show it was sent to this agent.
    pub session_token: String,
}

/// Longest [`OutcomeReport::message`]: a line of a log.
pub const MAX_OUTCOME_MESSAGE_BYTES: usize = 256;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Outcome {
    /// The answer came to its end.
    Completed,
    /// The agent did not take it.
    Refused,
    /// No connection to the agent came about.
    Unreachable,
    /// The answer broke off: the connection was lost, or the model failed.
    Broken,
    /// No text came in the time that the client had.
    TimedOut,
    /// The client lost interest.
    Cancelled,
}

/// `GET /api/v1/health`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Health {
    pub status: String,
    /// RFC 3339.
    pub timestamp: String,
    pub service: String,
}

/// `GET /api/v1/status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Status {
    pub total_agents: usize,
    pub healthy_agents: usize,
    /// RFC 3339.
    pub timestamp: String,
    /// With `?include_agents=true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agents: Option<Vec<Agent>>,
    /// What has passed the coordinator itself: no answer's text is in it.
    #[serde(default)]
    pub traffic: Traffic,
}

/// The [`status`](Agent::status) of an agent that is not there.
pub const OFFLINE: &str = "offline";

impl Status {
    /// The models of agents that are there, the first agent's first one first. Agents stay in the status for a while after they have gone.
    pub fn models(self) -> Vec<ModelInfo> {
        let mut models = Vec::<ModelInfo>::new();
        for agent in self.agents.into_iter().flatten().filter(|agent| agent.status != OFFLINE) {
            for name in agent.supported_models {
                if models.iter().any(|model| model.name == name) {
                    continue;
                }
                let known = agent.model_info.iter().find(|info| info.name == name).cloned();
                models.push(known.unwrap_or_else(|| ModelInfo { name, ..ModelInfo::default() }));
            }
        }
        models
    }
}

/// Bytes through a coordinator's ports since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Traffic {
    /// REST and the OpenAI API.
    pub http: Bytes,
    /// Agents, and clients that ask for routes over gRPC.
    pub grpc: Bytes,
}

/// Bytes through a port, TLS and HTTP included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Bytes {
    pub received: u64,
    pub sent: u64,
}

/// One agent in [`Status`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Agent {
    pub id: String,
    pub endpoint: String,
    /// `healthy`, `degraded`, `half_open` or `offline`.
    pub status: String,
    pub total_vram_mb: i64,
    pub free_vram_mb: i64,
    pub total_ram_mb: i64,
    pub free_ram_mb: i64,
    pub running_jobs: i32,
    pub queued_jobs: i32,
    pub max_jobs: i32,
    /// Measured between coordinator and agent; 0 while there is no measurement yet.
    pub rtt_ms: f64,
    /// RFC 3339.
    pub last_heartbeat: String,
    pub supported_models: Vec<String>,
    /// Sequences that its engines compute now.
    #[serde(default)]
    pub computing: i32,
    /// Why it is not `healthy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_reason: Option<String>,
    /// Since when it is, RFC 3339; absent while it is `healthy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_since: Option<String>,
    /// What its models are, where it tells.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub model_info: Vec<ModelInfo>,
}

/// What a model is, as `titancompute.v1.ModelInfo`. What is not known is empty or 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ModelInfo {
    pub name: String,
    pub engine: String,
    pub source: String,
    pub architecture: String,
    pub parameters: i64,
    pub quantization: String,
    pub context_tokens: i64,
    pub digest: String,
    pub tools: bool,
    pub reasoning: bool,
    pub continuation: String,
    pub places: i32,
}

impl From<v1::ModelInfo> for ModelInfo {
    fn from(info: v1::ModelInfo) -> Self {
        Self {
            name: info.name,
            engine: info.engine,
            source: info.source,
            architecture: info.architecture,
            parameters: info.parameters,
            quantization: info.quantization,
            context_tokens: info.context_tokens,
            digest: info.digest,
            tools: info.tools,
            reasoning: info.reasoning,
            continuation: info.continuation,
            places: info.places,
        }
    }
}

/// Body of `POST /api/v1/certificates`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct CertificateRequest {
    /// A signing request (PKCS#10, RFC 2986) in PEM. Its key counts, and nothing else that it says.
    pub csr: String,
}

/// Answer to a [`CertificateRequest`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct IssuedCertificate {
    /// The client's certificate in PEM.
    pub certificate: String,
    /// The certificate of the CA that signed it, and those of agents, in PEM.
    pub ca: String,
    /// Unix seconds.
    pub expires_at: i64,
}

/// Body of every answer that is not 2xx.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Error {
    /// A code word, such as `missing_model`.
    pub error: String,
    /// The HTTP status.
    pub code: u16,
    /// One sentence for a person.
    pub message: String,
    /// With 429, the limit that was reached: `requests_per_second`, `tokens_per_minute` or `concurrent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
}
