//! What agents say of themselves. Checked: see `agent_input`.

use std::sync::Arc;

use titan_proto::{rest::GrpcTls, v1::ModelInfo};

/// What an agent says about itself when it registers. Checked: see `agent_input`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Profile {
    pub(crate) id: Arc<str>,
    /// The id in ids of responses: [`titan_proto::digest::origin`].
    pub(crate) origin: String,
    /// Another word for each process; empty where it does not tell.
    pub(crate) instance: Arc<str>,
    pub(crate) endpoint: String,
    pub(crate) grpc_tls: GrpcTls,
    pub(crate) quic: Option<QuicProfile>,
    pub(crate) total_vram_mb: i64,
    pub(crate) total_ram_mb: i64,
    pub(crate) max_jobs: u32,
    /// No name twice.
    pub(crate) models: Vec<Arc<str>>,
    /// What some of them are, or all.
    pub(crate) model_info: Vec<ModelInfo>,
}

impl Profile {
    /// The digest of a model, if the agent tells.
    pub(crate) fn digest(&self, model: &str) -> Option<&str> {
        let info = self.model_info.iter().find(|info| info.name == model)?;
        Some(info.digest.as_str()).filter(|digest| !digest.is_empty())
    }
}

/// Where an agent's QUIC endpoint is, and the name in its certificate.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct QuicProfile {
    pub(crate) address: String,
    pub(crate) server_name: String,
}

/// What an agent's last heartbeat said. Zero and `None` until the first.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Load {
    pub(crate) free_vram_mb: i64,
    pub(crate) free_ram_mb: i64,
    pub(crate) running_jobs: u32,
    pub(crate) queued_jobs: u32,
    pub(crate) rtt_ms: Option<f64>,
    pub(crate) tokens_per_second: Option<f64>,
    pub(crate) draining: bool,
    /// Sequences that its engines compute: more than `running_jobs` while a cancelled prompt is still computed.
    pub(crate) computing: u32,
}

/// How an agent sees itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Condition {
    #[default]
    Healthy,
    /// Its engine has failed several times in a row.
    Degraded { reason: Arc<str> },
    /// Its engine was built anew and is tried.
    HalfOpen { reason: Arc<str> },
}

impl Condition {
    /// Why it is not healthy.
    pub(crate) fn reason(&self) -> Option<&str> {
        match self {
            Self::Healthy => None,
            Self::Degraded { reason } | Self::HalfOpen { reason } => Some(reason),
        }
    }
}

/// The digests of what an agent's engines hold (PROTOCOL.md §19), as its last report listed them: at most
/// [`MAX_CACHED_PREFIXES`](titan_proto::digest::MAX_CACHED_PREFIXES). Sorted, since each request looks for some of them.
#[derive(Debug, Default)]
pub(super) struct Prefixes(Box<[u64]>);

impl Prefixes {
    pub(super) fn of(mut digests: Vec<u64>) -> Self {
        digests.sort_unstable();
        digests.dedup();
        Self(digests.into_boxed_slice())
    }

    /// How many messages of a conversation are held, whose beginnings have these digests, the shortest first.
    pub(super) fn messages_of(&self, conversation: &[u64]) -> usize {
        if self.0.is_empty() {
            return 0;
        }
        let held = |digest: &u64| self.0.binary_search(digest).is_ok();
        conversation.iter().rposition(held).map_or(0, |longest| longest + 1)
    }
}

/// One health stream. A later stream has a larger number; that is how the newest wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StreamId(pub(crate) u64);
