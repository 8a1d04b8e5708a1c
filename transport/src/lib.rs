//! gRPC over QUIC, for any tonic service and any tonic client; and what surrounds it: TLS, the TCP side, session tokens.
//!
//! It does not know what a language model is. The QUIC wire is specified in `proto/PROTOCOL.md`, whose sections the code cites.
//!
//! # Serving
//!
//! A tonic `Routes`, the value that tonic's own HTTP/2 server takes, is served on a QUIC endpoint by [`serve_quic`] and
//! on a TCP port by [`serve_tcp`]. Handlers find a [`PeerInfo`] in each request's extensions: which wire, whose certificate,
//! whether it is early data.
//!
//! # Calling
//!
//! ```no_run
//! # use titan_transport::{QuicConnector, tls::TlsMaterial};
//! # fn connect(material: &TlsMaterial) -> Result<(), Box<dyn std::error::Error>> {
//! let connector = QuicConnector::new(material)?;
//! let channel = connector.channel("agent.example:50052", "agent-1.agent.titan.internal");
//! // Any tonic-generated client: AgentServiceClient::new(channel)
//! # let _ = channel; Ok(()) }
//! ```
//!
//! # Where things are
//!
//! - `wire`: frames and metadata, without I/O; `body`, `stream`: the two halves of a call on a QUIC stream.
//! - `server`, `call`: connections and calls on the server. `client`: the channel, its connection, and sessions that outlive it.
//! - [`tls`]: every TLS configuration. [`limits`]: every limit, with its reason. `deadline`: `grpc-timeout`, on both wires.
//! - `tcp`: HTTP/1.1 and HTTP/2, TLS or plain text, on one port. [`token`]: JWTs, issued and verified.
//! - `repeat`: redundant messages. `congestion`: for thin streams. `first_packets`: those that go twice. `network`: that it has changed.
//! - `socket`, `icmp`: how a killed peer is noticed.

mod body;
mod call;
mod client;
mod congestion;
mod deadline;
mod first_packets;
#[cfg(fuzzing)]
pub mod fuzzing;
#[cfg(target_os = "linux")]
mod icmp;
pub mod limits;
#[cfg(target_os = "linux")]
mod network;
mod options;
mod peer;
mod repeat;
mod server;
mod socket;
mod stream;
mod tcp;
pub mod tls;
pub mod token;
mod wire;

pub use client::{CallError, ChannelStats, ConnectError, EarlyDataSafe, QuicChannel, QuicConnector};
pub use deadline::grpc_timeout;
pub use options::QuicOptions;
pub use peer::{CallEnd, EarlyData, PeerConnection, PeerInfo, Wire};
pub use server::{QuicListener, QuicServerConfig, QuicTls, serve_quic};
pub use tcp::{Plaintext, TcpConfig, Traffic, serve_tcp};
pub use wire::ErrorCode;
