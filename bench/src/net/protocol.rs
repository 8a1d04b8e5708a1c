//! What the runner and the hosts' processes tell each other: one JSON object a line, orders in on standard input, answers out on
//! standard output, told apart by a number. A host ends when its standard input does.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::record::Delivery;
use crate::usage::Usage;

/// To a host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Numbered<T> {
    pub(crate) id: u64,
    pub(crate) body: T,
}

/// What a host is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// Client: starts of each kind, one after another: [`Answer::Starts`].
    Start { server: IpAddr, deadline_ms: u64 },
    /// Client: a start, and another one when what the first left has come: [`Answer::Returned`].
    Return { server: IpAddr, deadline_ms: u64 },
    /// Client: a client with a warm connection, for [`Order::Stream`] under the same number: [`Answer::Done`].
    Open { server: IpAddr, deadline_ms: u64 },
    /// Client: so many streams at once, read to their end: [`Answer::Stream`].
    Stream { opened: u64, streams: u32, tokens: u32, interval_ns: u64, one_way_ns: u64, deadline_ms: u64 },
    /// Client: what is opened is at an end: [`Answer::Done`].
    Close { opened: u64 },
    /// Client: its address has changed or its agent was killed, at this time in nanoseconds since 1970: [`Answer::Done`].
    Moved { at_ns: u64 },
    /// Client: so many more connections that stay open and idle: [`Answer::Done`].
    Hold { server: IpAddr, connections: u32 },
    /// Client: so many more streams that have begun and stay, over a hundredth as many clients: [`Answer::Done`].
    HoldStreams { server: IpAddr, streams: u32 },
    /// Server: start another agent, and answer when it is registered: [`Answer::Done`].
    SpareAgent,
    /// Server: kill the first agent: [`Answer::Done`].
    KillAgent,
    /// What the process has used: [`Answer::Used`].
    Usage,
}

/// What a host says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// A server, once it serves: its settings and version, for the report.
    Ready {
        note: String,
    },
    Done,
    Starts(Starts),
    Returned(Result<Start, String>),
    Stream(Box<Streamed>),
    Used(Usage),
    Failed {
        error: String,
    },
}

/// One start of each kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Starts {
    /// `Err`: why there is none.
    pub(crate) connect_ms: Result<f64, String>,
    pub(crate) cold: Result<Start, String>,
    pub(crate) resumed: Result<Start, String>,
    pub(crate) warm: Result<Start, String>,
}

/// From asking to the first token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Start {
    /// Finding the server not included.
    pub(crate) ttft_ms: f64,
    /// Finding the server, for subjects that do.
    pub(crate) routing_ms: Option<f64>,
}

/// Streams read to their end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Streamed {
    pub(crate) delivery: Delivery,
    pub(crate) failed: Option<String>,
    pub(crate) recovery_ms: Option<f64>,
}
