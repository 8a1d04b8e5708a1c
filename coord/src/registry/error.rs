//! Why the registry says no.

use std::sync::Arc;

/// Registering failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RegisterError {
    /// As many agents as the registry holds, all with a running lease. Worth trying again later.
    #[error("the coordinator has its {max} agents already; try again when one has left")]
    Full { max: usize },
    /// A newer stream reports for this id: end this one.
    #[error("a newer health stream reports for agent `{id}`; does another process run under the same id?")]
    Replaced { id: String },
    /// A newer process has this id: stop trying.
    #[error("{}", other_process(id))]
    OtherProcess { id: String },
}

fn other_process(id: &str) -> String {
    format!(
        "a newer process has registered as agent `{id}`: stop one of the two, or give it a name of its own (AGENT_ID)"
    )
}

/// A heartbeat was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeartbeatError {
    /// Unknown or deregistered: register (again).
    #[error("no agent `{id}` is registered here; register again")]
    Unregistered { id: String },
    /// A newer stream reports for this id: end this one.
    #[error("a newer health stream reports for agent `{id}`; does another process run under the same id?")]
    Replaced { id: String },
    /// A newer process has this id: stop trying.
    #[error("{}", other_process(id))]
    OtherProcess { id: String },
}

/// No slot could be booked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BookError {
    /// No registered agent names this model, but healthy agents name these (at most [`MAX_MODELS_NAMED`]).
    ModelNotFound { available: Vec<Arc<str>> },
    /// No healthy agent at all, or none for this model, which unhealthy or recently lost agents serve.
    NoAgents,
    /// Agents serve a model of this name, with these digests (at most [`MAX_MODELS_NAMED`]), and none with the one that was asked for.
    OtherDigests { found: Vec<String> },
    /// Healthy agents serve it, and each has all it can run.
    NoCapacity,
    /// Nobody here serves it, and agents that were there before a restart have not come back yet.
    Starting,
}

/// How many models an answer to an unknown one names: enough to find a typing error, short enough to read.
pub(crate) const MAX_MODELS_NAMED: usize = 20;
