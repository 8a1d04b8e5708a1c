//! The way to the coordinator: one channel, mutual TLS.

use std::{sync::Arc, time::Duration};

use parking_lot::RwLock;
use titan_certs::COORDINATOR_SERVER_NAME;
use titan_proto::v1::{PublicKeyRequest, coordinator_service_client::CoordinatorServiceClient};
use titan_transport::{
    causes,
    tls::{TlsMaterial, trouble},
    with_causes,
};
use tonic::transport::{Channel, Endpoint};

use crate::{
    auth::{FetchKeys, KeySource},
    config::ConfigError,
};

/// Longest wait for a connection: three round trips to the other side of the world, and a lost packet.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A coordinator that vanished without a word is noticed after this and [`KEEP_ALIVE_TIMEOUT`] together, well within its own 30 s.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// How long the answer to a keep-alive ping may take.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A client of the coordinator. Connects when it is first used, and again when the connection is lost.
#[derive(Clone, Debug)]
pub(crate) struct Coordinator {
    endpoint: String,
    client: Arc<RwLock<CoordinatorServiceClient<Channel>>>,
}

impl Coordinator {
    /// `endpoint` is `host:port`. Without TLS material plain text is spoken, which a coordinator takes from loopback only, and
    /// not from an agent that wants to register: [`crate::Config::validate`] refuses it for other machines.
    pub(crate) fn new(endpoint: &str, tls: Option<&TlsMaterial>) -> Result<Self, ConfigError> {
        let client = Arc::new(RwLock::new(client(endpoint, tls)?));
        Ok(Self { endpoint: endpoint.to_owned(), client })
    }

    /// For the next call.
    pub(crate) fn client(&self) -> CoordinatorServiceClient<Channel> {
        self.client.read().clone()
    }

    /// Connects with another certificate from the next call on; what runs goes on.
    pub(crate) fn replace_tls(&self, tls: &TlsMaterial) -> Result<(), ConfigError> {
        let new = client(&self.endpoint, Some(tls))?;
        *self.client.write() = new;
        Ok(())
    }
}

fn client(endpoint: &str, tls: Option<&TlsMaterial>) -> Result<CoordinatorServiceClient<Channel>, ConfigError> {
    let refused = |reason: String| ConfigError::Coordinator { endpoint: endpoint.to_owned(), reason };
    let authority = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let scheme = if tls.is_some() { "https" } else { "http" };
    let mut channel = Endpoint::from_shared(format!("{scheme}://{authority}"))
        .map_err(|error| refused(error.to_string()))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    if channel.uri().port().is_none() {
        return Err(refused("the port is missing, for example localhost:50051".into()));
    }
    if let Some(tls) = tls {
        let tls = tls.tonic_client_tls(COORDINATOR_SERVER_NAME);
        channel = channel.tls_config(tls).map_err(|error| refused(error.to_string()))?;
    }
    Ok(CoordinatorServiceClient::new(channel.connect_lazy()))
}

impl KeySource for Coordinator {
    fn fetch(&self) -> FetchKeys<'_> {
        let mut client = self.client();
        Box::pin(async move {
            let answer = client.get_public_key(PublicKeyRequest {}).await.map_err(|status| describe(&status))?;
            Ok(answer.into_inner().jwks)
        })
    }
}

/// A status with the cause beneath it: tonic's "transport error" alone says nothing. Where a certificate is the cause, it says whose.
pub(crate) fn describe(status: &tonic::Status) -> String {
    let text = format!("{:?}: {}", status.code(), status.message());
    let Some(source) = std::error::Error::source(status) else { return text };
    let tls = causes(source).find_map(|cause| cause.downcast_ref());
    let said = tls.and_then(|error| trouble(error, "the coordinator", "this agent", true));
    format!("{text}: {}", said.unwrap_or_else(|| with_causes(source)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn an_endpoint_is_host_and_port_with_or_without_a_scheme() {
        for endpoint in ["localhost:50051", "http://localhost:50051", "https://[::1]:50051"] {
            Coordinator::new(endpoint, None).unwrap();
        }
    }

    #[tokio::test]
    async fn anything_else_is_refused_with_what_was_given() {
        for endpoint in ["", "localhost", "two words:1", "localhost:port"] {
            let message = Coordinator::new(endpoint, None).unwrap_err().to_string();
            assert!(message.contains(&format!("{endpoint:?}")), "{message}");
        }
    }
}
