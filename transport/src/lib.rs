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
//! - `causes`: errors in one line. `pages`: web pages that may not ask. `wrong_port`: what is told to those who ask the wrong one.
//! - `tcp`: HTTP/1.1 and HTTP/2, TLS or plain text, on one port. [`token`]: JWTs, issued and verified.
//! - What strangers may cost: `seats`, connections; `arrival`, requests that take their time; [`seldom!`], lines in the log; [`raise_open_files`].
//! - `repeat`: redundant messages. `congestion`: for thin streams. `first_packets`: those that go twice. `network`: that it has changed.
//! - `socket`, `icmp`: how a killed peer is noticed.

mod arrival;
mod body;
mod call;
mod causes;
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
mod open_files;
mod options;
mod pages;
mod peer;
mod repeat;
mod seats;
mod server;
mod socket;
mod stream;
mod tcp;
mod throttle;
pub mod tls;
pub mod token;
mod wire;
mod wrong_port;

pub use causes::{causes, with_causes};
pub use client::{CallError, ChannelStats, ConnectError, EarlyDataSafe, QuicChannel, QuicConnector};
pub use deadline::grpc_timeout;
pub use limits::PortLimits;
pub use open_files::raise_open_files;
pub use options::QuicOptions;
pub use pages::Pages;
pub use peer::{CallEnd, EarlyData, PeerConnection, PeerInfo, Wire};
pub use server::{QuicListener, QuicServerConfig, QuicTls, serve_quic};
pub use tcp::{Cut, Plaintext, TcpConfig, Traffic, serve_tcp, serve_tcp_within};
pub use throttle::Throttle;
pub use wire::ErrorCode;
pub use wrong_port::{grpc_only, is_grpc, no_grpc};
