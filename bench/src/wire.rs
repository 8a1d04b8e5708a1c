//! One client for both wires: the same generated code over another channel, so that the wire is what differs.

use std::fmt;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use titan_certs::agent_server_name;
use titan_proto::v1::{StreamRequest, StreamResponse, agent_service_client::AgentServiceClient};
use titan_transport::{QuicChannel, QuicConnector};
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::lab::{AGENT_ID, Lab};

/// A way from client to agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Wire {
    Grpc,
    Quic,
}

impl Wire {
    /// As tables name it.
    pub(crate) fn label(self, plaintext: bool) -> &'static str {
        match (self, plaintext) {
            (Self::Grpc, false) => "gRPC (TLS)",
            (Self::Grpc, true) => "gRPC (plain text)",
            (Self::Quic, _) => "QUIC",
        }
    }
}

impl fmt::Display for Wire {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Grpc => "gRPC",
            Self::Quic => "QUIC",
        })
    }
}

/// Where an agent listens on loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ports {
    pub(crate) grpc: u16,
    pub(crate) quic: u16,
}

/// A client with a connection of its own, which its clones share.
#[derive(Clone)]
pub(crate) enum Client {
    Grpc(AgentServiceClient<Channel>),
    Quic(AgentServiceClient<QuicChannel>),
}

impl Client {
    /// Connects.
    pub(crate) async fn connect(wire: Wire, ports: Ports, lab: &Lab, plaintext: bool) -> anyhow::Result<Self> {
        match wire {
            Wire::Grpc => {
                let scheme = if plaintext { "http" } else { "https" };
                let mut endpoint = Endpoint::from_shared(format!("{scheme}://127.0.0.1:{}", ports.grpc))?;
                if !plaintext {
                    endpoint = endpoint.tls_config(lab.client.tonic_client_tls(&agent_server_name(AGENT_ID)))?;
                }
                let channel = endpoint.connect().await.context("connecting over gRPC")?;
                Ok(Self::Grpc(AgentServiceClient::new(channel)))
            }
            Wire::Quic => {
                let connector = QuicConnector::new(&lab.client)?;
                let channel = connector.channel(format!("127.0.0.1:{}", ports.quic), agent_server_name(AGENT_ID));
                channel.connect().await.context("connecting over QUIC")?;
                Ok(Self::Quic(AgentServiceClient::new(channel)))
            }
        }
    }

    /// Starts a generation.
    pub(crate) async fn stream(&mut self, request: StreamRequest) -> Result<Streaming<StreamResponse>, Status> {
        let response = match self {
            Self::Grpc(client) => client.stream_inference(request).await?,
            Self::Quic(client) => client.stream_inference(request).await?,
        };
        Ok(response.into_inner())
    }
}
