//! JSON bodies of the coordinator's REST interface, `/api/v1/…`.
//!
//! Names and types are the contract with existing clients; fields may be added, never renamed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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
}

/// Answer to an [`InferenceRequest`]: where to go, and the token to show there.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
}

/// Both ways to reach the chosen agent.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Endpoints {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcEndpoint>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic: Option<QuicEndpoint>,
}

/// Standard gRPC over HTTP/2.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GrpcEndpoint {
    /// `host:port`.
    pub address: String,
    pub tls: GrpcTls,
}

/// What a client of a gRPC endpoint has to speak when it comes from another machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
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
pub struct QuicEndpoint {
    /// `host:port`.
    pub address: String,
    /// Always [`crate::ALPN`] today.
    pub alpn: String,
    /// The name to verify in the agent's certificate.
    pub server_name: String,
}

/// `GET /api/v1/health`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Health {
    pub status: String,
    /// RFC 3339.
    pub timestamp: String,
    pub service: String,
}

/// `GET /api/v1/status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub total_agents: usize,
    pub healthy_agents: usize,
    /// RFC 3339.
    pub timestamp: String,
    /// With `?include_agents=true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agents: Option<Vec<Agent>>,
}

/// One agent in [`Status`].
#[derive(Clone, Debug, Serialize, Deserialize)]
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
}

/// Body of every answer that is not 2xx.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Error {
    /// A code word, such as `missing_model`.
    pub error: String,
    /// The HTTP status.
    pub code: u16,
    /// One sentence for a person.
    pub message: String,
}
