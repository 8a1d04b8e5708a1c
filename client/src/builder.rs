//! How a client is told what it needs.

#[cfg(feature = "stored-sessions")]
use std::path::PathBuf;
use std::{fmt, net::IpAddr, time::Duration};

use reqwest::{Url, header::HeaderValue};
use titan_transport::{QuicConnector, QuicOptions, tls::TlsError, tls::TlsMaterial};
use uuid::Uuid;

use crate::{
    Feature, TitanClient, connections::ConnectionPool, coordinator::Coordinator, dial::Dialer, features::Features,
    names::Names,
};

/// How long UDP has for an answer before gRPC is tried beside it. Twice the round trip across an ocean, and still hardly felt.
const QUIC_TIMEOUT: Duration = Duration::from_millis(200);

/// As long as a session token lives. A long prompt on a CPU, or a place in a full fleet, takes minutes; who has waited for longer than this has
/// given up.
const DEADLINE: Duration = Duration::from_secs(300);

/// Which wire to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WirePreference {
    /// QUIC, and gRPC where that does not work.
    #[default]
    Auto,
    /// QUIC or nothing.
    Quic,
    /// gRPC or nothing.
    Grpc,
}

/// What a client needs to know. Made by [`TitanClient::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    coordinator_url: String,
    tls: Option<TlsMaterial>,
    wire: WirePreference,
    client_id: String,
    api_key: Option<ApiKey>,
    quic_timeout: Duration,
    deadline: Duration,
    names: Names,
    features: Features,
    post_quantum: bool,
    #[cfg(feature = "stored-sessions")]
    sessions: Option<PathBuf>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The coordinator's URL is none.
    #[error("{url:?} is not the URL of a coordinator ({reason}): give one such as http://localhost:8080")]
    Url {
        /// What was given.
        url: String,
        /// The reason.
        reason: String,
    },
    /// The coordinator speaks TLS, and there is no CA to check it by.
    #[error("{url} needs the cluster's CA: give TLS material")]
    NoCa {
        /// What was given.
        url: String,
    },
    /// Agents speak QUIC with those alone who show a certificate.
    #[error("QUIC needs a client certificate: `titan certs issue --role client` makes one")]
    NoIdentity,
    /// The API key cannot stand in a header.
    #[error("the API key has characters that no key has: spaces, line ends, or letters beyond ASCII")]
    ApiKey,
    /// The TLS material does not fit together, or there is no UDP.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The HTTP client could not be made.
    #[error("cannot make an HTTP client: {0}")]
    Http(String),
    /// There is no Tokio runtime here.
    #[error("a client is built inside a Tokio runtime")]
    NoRuntime,
}

impl Builder {
    pub(crate) fn new(coordinator_url: String) -> Self {
        Self {
            coordinator_url,
            tls: None,
            wire: WirePreference::Auto,
            client_id: format!("titan-{}", Uuid::new_v4()),
            api_key: None,
            quic_timeout: QUIC_TIMEOUT,
            deadline: DEADLINE,
            names: Names::default(),
            features: Features::default(),
            post_quantum: false,
            #[cfg(feature = "stored-sessions")]
            sessions: None,
        }
    }

    /// Sets whom to trust and who this client is. Defaults to nothing: then requests go over gRPC in plain text. With roots
    /// alone they go over gRPC with TLS, with an identity over QUIC.
    pub fn tls(mut self, material: TlsMaterial) -> Self {
        self.tls = Some(material);
        self
    }

    /// Sets the wire. Defaults to [`WirePreference::Auto`].
    pub fn wire(mut self, wire: WirePreference) -> Self {
        self.wire = wire;
        self
    }

    /// Sets the name that stands in tokens and logs. Defaults to `titan-` and a random UUID.
    pub fn client_id(mut self, client_id: impl Into<String>) -> Self {
        self.client_id = client_id.into();
        self
    }

    /// Sets the API key, for a coordinator that asks for one. Agents never see it. Defaults to none.
    pub fn api_key(mut self, key: impl Into<String>) -> Self {
        self.api_key = Some(ApiKey(key.into()));
        self
    }

    /// Sets how long UDP has for an answer before gRPC is tried beside it. Defaults to 200 ms.
    pub fn quic_timeout(mut self, timeout: Duration) -> Self {
        self.quic_timeout = timeout;
        self
    }

    /// Sets how long a request may take until its first text: a place in a full fleet, agents that fail, and the prompt's own time are all within
    /// it. An answer that flows may go on for as long as it likes; one that breaks off has as long to go on, and 30 s at most. A prompt may
    /// set its own ([`Prompt::deadline`](crate::Prompt::deadline)). Defaults to 300 s.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets the address of a host, for the coordinator's URL and for the endpoints of agents, as `curl --resolve` does. Certificates
    /// are checked for the name all the same. Can be called for several hosts. Defaults to what DNS says.
    pub fn resolve(mut self, host: &str, address: IpAddr) -> Self {
        self.names.put(host, address);
        self
    }

    /// Keeps TLS sessions in this directory, so that a new process starts with early data (0-RTT) at agents that an earlier one has met.
    /// Made when there is something to keep, for this user alone; several processes may use one. Where it cannot be used, sessions
    /// are kept in memory. Call [`TitanClient::close`] before a process ends, so that the newest get there. Defaults to none.
    #[cfg(feature = "stored-sessions")]
    pub fn sessions(mut self, dir: impl Into<PathBuf>) -> Self {
        self.sessions = Some(dir.into());
        self
    }

    /// Sets whether QUIC handshakes begin with the post-quantum hybrid key exchange X25519MLKEM768. The first flight then takes two
    /// packets, either of which can be lost. Defaults to no: X25519.
    pub fn post_quantum(mut self, on: bool) -> Self {
        self.post_quantum = on;
        self
    }

    /// Switches a feature on. Defaults to all but [`Feature::PrefillAhead`].
    pub fn with(mut self, feature: Feature) -> Self {
        self.features.set(feature, true);
        self
    }

    /// Switches a feature off.
    pub fn without(mut self, feature: Feature) -> Self {
        self.features.set(feature, false);
        self
    }

    /// Makes the client. Connects nowhere. Must run inside a Tokio runtime.
    ///
    /// # Errors
    /// When something given does not fit together.
    pub fn build(self) -> Result<TitanClient, BuildError> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(BuildError::NoRuntime);
        }
        let url = self.url()?;
        let ahead = self.features.has(Feature::PrefillAhead);
        let key = self.api_key.as_ref().map(ApiKey::bearer).transpose()?;
        let coordinator =
            Coordinator::new(url, self.tls.as_ref(), key, self.names.clone(), ahead).map_err(BuildError::Http)?;
        let connector = self.connector()?;
        let dialer = Dialer::new(self.wire, self.quic_timeout);
        let agents = ConnectionPool::new(connector, self.tls);
        Ok(TitanClient::new(self.client_id, coordinator, agents, dialer, self.features, self.deadline))
    }

    fn url(&self) -> Result<Url, BuildError> {
        let given = self.coordinator_url.as_str();
        let bad = |reason: &str| BuildError::Url { url: given.to_owned(), reason: reason.to_owned() };
        let url = Url::parse(given).map_err(|error| bad(&error.to_string()))?;
        match url.scheme() {
            _ if url.host().is_none() => Err(bad("it does not begin with http:// or https://")),
            "http" => Ok(url),
            "https" if self.tls.is_some() => Ok(url),
            "https" => Err(BuildError::NoCa { url: given.to_owned() }),
            _ => Err(bad("it does not begin with http:// or https://")),
        }
    }

    fn quic(&self, material: &TlsMaterial) -> Result<QuicConnector, TlsError> {
        let options = QuicOptions {
            redundancy: self.features.has(Feature::Redundancy),
            thin_stream: self.features.has(Feature::ThinStream),
            early_data: self.features.has(Feature::EarlyData),
            migration: self.features.has(Feature::Migration),
            repeat_first: self.features.has(Feature::RepeatFirst),
            post_quantum: self.post_quantum,
        };
        #[cfg(feature = "stored-sessions")]
        if let Some(dir) = self.sessions.as_deref().filter(|_| self.features.has(Feature::StoredSessions)) {
            return QuicConnector::with_sessions(material, options, dir);
        }
        QuicConnector::with_options(material, options)
    }

    fn connector(&self) -> Result<Option<QuicConnector>, BuildError> {
        let identity = self.tls.as_ref().filter(|material| !material.chain.is_empty());
        match (self.wire, identity) {
            (WirePreference::Grpc, _) | (WirePreference::Auto, None) => Ok(None),
            (WirePreference::Quic, None) => Err(BuildError::NoIdentity),
            (WirePreference::Quic, Some(material)) => Ok(Some(self.quic(material)?)),
            (WirePreference::Auto, Some(material)) => {
                // Material that does not fit together is an error on any wire; a machine without UDP is not.
                material.quic_client_config()?;
                self.quic(material).map(Some).or_else(|error| {
                    tracing::warn!(%error, "no QUIC here, only gRPC");
                    Ok(None)
                })
            }
        }
    }
}

/// Shows in no log.
#[derive(Clone)]
struct ApiKey(String);

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl ApiKey {
    /// The header `authorization`: RFC 6750 §2.1.
    fn bearer(&self) -> Result<HeaderValue, BuildError> {
        let graphic = !self.0.is_empty() && self.0.bytes().all(|byte| byte.is_ascii_graphic());
        let header = HeaderValue::from_str(&format!("Bearer {}", self.0)).ok().filter(|_| graphic);
        let mut header = header.ok_or(BuildError::ApiKey)?;
        header.set_sensitive(true);
        Ok(header)
    }
}
