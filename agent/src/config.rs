//! What an agent is told before it starts, and what is wrong with it.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use titan_certs::{Identity, Role};
use titan_proto::{
    AGENT_PORT,
    host::{host_of, is_loopback, is_loopback_ip},
    rest::GrpcTls,
};
use titan_transport::{
    QuicOptions,
    tls::{PublicIdentity, Renewals, TlsMaterial},
};

use crate::resumable::KEEP_TIME;

/// What an agent is told. Start from [`Config::new`] and change what differs.
#[derive(Clone, Debug)]
pub struct Config {
    /// The agent's name: `a-z`, `0-9`, `.`, `_`, `-`. With TLS it must be the name in the certificate.
    pub agent_id: String,
    /// Where to listen for gRPC (TCP). Defaults to `127.0.0.1:50052`; port 0 picks a free one.
    pub grpc_addr: SocketAddr,
    /// Where to listen for QUIC (UDP), if there is TLS material. Defaults to the same address and port as gRPC.
    pub quic_addr: Option<SocketAddr>,
    /// Parts of the QUIC wire that can be left out, to measure what they are worth. Defaults to all.
    pub quic: QuicOptions,
    /// The host that clients dial. Defaults to `localhost` when listening on loopback, else to the address listened on.
    pub public_host: Option<String>,
    /// The gRPC port that clients dial, where something between them and this machine maps ports. Defaults to the one listened on.
    pub public_port: Option<u16>,
    /// The QUIC port that clients dial. Defaults to `public_port` where QUIC listens on the number that gRPC listens on, else to the one
    /// listened on.
    pub public_quic_port: Option<u16>,
    /// The coordinator's gRPC endpoint, `host:port`. `None` runs without one; then `keys` must be given.
    pub coordinator: Option<String>,
    /// The keys that tokens are signed with, as a JWK set in JSON. Defaults to what the coordinator says.
    pub keys: Option<String>,
    /// The private CA and this agent's certificate. Without it: loopback only, no QUIC, no registration with a coordinator
    /// that asks for certificates.
    pub tls: Option<TlsMaterial>,
    /// A certificate of a public CA, shown over TCP to those who know no private one, such as the packages of OpenAI. Needs `tls`. Defaults to none.
    pub public_tls: Option<PublicIdentity>,
    /// Certificates that take the place of `tls` and `public_tls` while it runs. Defaults to none.
    pub renewals: Option<Renewals>,
    /// Serve plain text to other machines too. Defaults to false.
    pub insecure_plaintext: bool,
    /// Generations at once. Defaults to 4.
    pub max_jobs: usize,
    /// The models to serve out of the engine's. Empty, the default, means all of them.
    pub models: Vec<String>,
    /// Time between two heartbeats; the coordinator may ask for a shorter one. Defaults to 10 s.
    pub heartbeat_interval: Duration,
    /// How long a prompt that was begun ahead waits for its client. Defaults to 2 s: many times what a client needs to connect from
    /// anywhere, and soon over for one that does not come.
    pub prefill_wait: Duration,
    /// How long running generations may take to finish at shutdown. Defaults to 25 s, under the 30 s after which service
    /// managers kill.
    pub drain_time: Duration,
    /// How long an answer whose connection is lost waits for its reader to come back. Zero keeps none. Defaults to 30 s.
    pub keep_time: Duration,
}

impl Config {
    /// The defaults, for an agent of this name.
    pub fn new(agent_id: impl Into<String>) -> Self {
        Self {
            agent_id: agent_id.into(),
            grpc_addr: SocketAddr::from(([127, 0, 0, 1], AGENT_PORT)),
            quic_addr: None,
            quic: QuicOptions::default(),
            public_host: None,
            public_port: None,
            public_quic_port: None,
            coordinator: None,
            keys: None,
            tls: None,
            public_tls: None,
            renewals: None,
            insecure_plaintext: false,
            max_jobs: 4,
            models: Vec::new(),
            heartbeat_interval: Duration::from_secs(10),
            prefill_wait: Duration::from_secs(2),
            drain_time: Duration::from_secs(25),
            keep_time: KEEP_TIME,
        }
    }

    /// Checks everything that can be checked before anything is bound.
    ///
    /// # Errors
    /// The first thing that is wrong, and what to do about it.
    pub fn validate(&self) -> Result<(), ConfigError> {
        titan_certs::validate_name(&self.agent_id)
            .map_err(|reason| ConfigError::AgentId { agent_id: self.agent_id.clone(), reason })?;
        if self.max_jobs == 0 {
            return Err(ConfigError::NoJobs);
        }
        if self.heartbeat_interval.is_zero() {
            return Err(ConfigError::NoHeartbeat);
        }
        if self.public_host.as_deref().is_some_and(|host| !is_host(host)) {
            return Err(ConfigError::PublicHost { host: self.public_host.clone().unwrap_or_default() });
        }
        if self.public_host.is_none() && self.grpc_addr.ip().is_unspecified() {
            return Err(ConfigError::NoPublicHost { address: self.grpc_addr });
        }
        if self.public_port == Some(0) || self.public_quic_port == Some(0) {
            return Err(ConfigError::PublicPort);
        }
        match &self.tls {
            Some(tls) => self.check_certificate(tls)?,
            None if !is_loopback_ip(self.grpc_addr.ip()) && !self.insecure_plaintext => {
                return Err(ConfigError::PublicWithoutTls { address: self.grpc_addr });
            }
            None => {}
        }
        match &self.coordinator {
            None if self.keys.is_none() => Err(ConfigError::NoKeys),
            Some(endpoint) if self.tls.is_none() && !is_loopback(host_of(endpoint)) => {
                Err(ConfigError::CoordinatorWithoutTls { endpoint: endpoint.clone() })
            }
            Some(endpoint) if self.public_host.is_none() && self.is_local_to(endpoint) => {
                Err(ConfigError::NotDialable { endpoint: endpoint.clone(), address: self.grpc_addr })
            }
            _ => Ok(()),
        }
    }

    fn check_certificate(&self, tls: &TlsMaterial) -> Result<(), ConfigError> {
        let leaf = tls.chain.first().ok_or(ConfigError::NoCertificate)?;
        let Identity { role, name } = Identity::from_der(leaf)?;
        if role == Role::Agent && name == self.agent_id {
            return Ok(());
        }
        Err(ConfigError::OtherIdentity { agent_id: self.agent_id.clone(), role, name })
    }

    /// Whether a coordinator elsewhere would be told an address that only this machine can dial.
    pub fn is_local_to(&self, coordinator: &str) -> bool {
        let advertised = match &self.public_host {
            Some(host) => is_loopback(host),
            None => is_loopback_ip(self.grpc_addr.ip()),
        };
        advertised && !is_loopback(host_of(coordinator))
    }

    /// `host:port` of gRPC, as clients should dial it.
    pub(crate) fn advertised(&self, bound: SocketAddr) -> String {
        self.dialled(bound, self.public_port.unwrap_or(bound.port()))
    }

    /// `host:port` of QUIC, as clients should dial it; gRPC is bound to the port `grpc`.
    pub(crate) fn advertised_quic(&self, bound: SocketAddr, grpc: u16) -> String {
        let same = self.public_port.filter(|_| bound.port() == grpc);
        self.dialled(bound, self.public_quic_port.or(same).unwrap_or(bound.port()))
    }

    fn dialled(&self, bound: SocketAddr, port: u16) -> String {
        let host = match &self.public_host {
            Some(host) => host.clone(),
            None if is_loopback_ip(bound.ip()) => "localhost".to_owned(),
            None => bound.ip().to_string(),
        };
        match host.parse() {
            Ok(IpAddr::V6(v6)) => format!("[{v6}]:{port}"),
            _ => format!("{host}:{port}"),
        }
    }

    /// What a client of the advertised gRPC endpoint has to speak.
    pub(crate) fn grpc_tls(&self) -> GrpcTls {
        let plain = self.insecure_plaintext || is_loopback_ip(self.grpc_addr.ip());
        if plain { GrpcTls::None } else { GrpcTls::Server }
    }
}

/// What is wrong with a [`Config`]. Trying again with the same one gives the same error.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not a name that a certificate can carry.
    #[error("agent id {agent_id:?}: {reason}")]
    AgentId {
        /// The name.
        agent_id: String,
        /// The rule that it breaks.
        reason: titan_certs::NameError,
    },
    /// `max_jobs` is 0.
    #[error("max_jobs is 0: an agent that may run nothing serves nobody; say 1 or more (MAX_CONCURRENT_JOBS)")]
    NoJobs,
    /// `heartbeat_interval` is 0.
    #[error("heartbeat_interval is 0: say how often to report, for example 10s (HEARTBEAT_INTERVAL)")]
    NoHeartbeat,
    /// The public host has a scheme, a port or blanks.
    #[error(
        "public_host {host:?} is no host: give a name or an address without scheme and port (PUBLIC_HOST); a port that is mapped is public_port \
         (PUBLIC_PORT)"
    )]
    PublicHost {
        /// What was given.
        host: String,
    },
    /// Nobody can dial port 0.
    #[error(
        "public_port 0 is no port that can be dialled: give the one that clients dial (PUBLIC_PORT, PUBLIC_QUIC_PORT)"
    )]
    PublicPort,
    /// Clients of a coordinator elsewhere would dial their own machines.
    #[error(
        "the coordinator {endpoint} is on another machine, and its clients would be told to dial this agent at localhost: listen on an address that \
         they reach ({address} is none: --bind, TITAN_BIND), or say what they dial (--public-host, PUBLIC_HOST)"
    )]
    NotDialable {
        /// The coordinator's endpoint.
        endpoint: String,
        /// The address to listen on.
        address: SocketAddr,
    },
    /// Clients cannot dial an unspecified address.
    #[error("{address} listens on every address, but clients need one to dial: set public_host (PUBLIC_HOST)")]
    NoPublicHost {
        /// The address to listen on.
        address: SocketAddr,
    },
    /// Plain text would leave the machine.
    #[error(
        "{address} can be reached from other machines, but there is no TLS certificate: run `titan certs init` and \
         `titan certs issue --role agent --name AGENT_ID`, or say --insecure-plaintext if the network is trusted"
    )]
    PublicWithoutTls {
        /// The address to listen on.
        address: SocketAddr,
    },
    /// TLS material without a certificate of its own.
    #[error(
        "the TLS material has no certificate of its own: `titan certs issue --role agent --name AGENT_ID` makes one"
    )]
    NoCertificate,
    /// The certificate names nobody.
    #[error("the agent's certificate: {0}")]
    Identity(#[from] titan_certs::IdentityError),
    /// The certificate is somebody else's.
    #[error(
        "the certificate is that of the {role} {name:?}, the agent id is {agent_id:?}: an agent speaks only for the id in its \
         certificate; run `titan certs issue --role agent --name {agent_id}`"
    )]
    OtherIdentity {
        /// The agent's id.
        agent_id: String,
        /// The certificate's role.
        role: Role,
        /// The certificate's name.
        name: String,
    },
    /// Nothing could check a token.
    #[error(
        "neither a coordinator nor keys are given, so no token could be checked: set coordinator (COORDINATOR_ENDPOINT)"
    )]
    NoKeys,
    /// A remote coordinator speaks TLS only.
    #[error(
        "the coordinator {endpoint} is on another machine and takes agents by certificate only: run `titan certs issue --role \
         agent --name AGENT_ID` where the CA is, and give the agent the files"
    )]
    CoordinatorWithoutTls {
        /// The coordinator's endpoint.
        endpoint: String,
    },
    /// The coordinator's endpoint cannot be dialled.
    #[error("the coordinator's endpoint {endpoint:?} is not host:port: {reason}")]
    Coordinator {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The engine has no such model.
    #[error("the engine has no model {model:?}; it has {} (SUPPORTED_MODELS)", available.join(", "))]
    UnknownModel {
        /// The model to serve.
        model: String,
        /// The engine's.
        available: Vec<String>,
    },
}

/// A host name or address, without scheme, port or path.
fn is_host(host: &str) -> bool {
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    host.parse::<IpAddr>().is_ok() || (!host.is_empty() && host.chars().all(name))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn config() -> Config {
        Config { keys: Some("{\"keys\":[]}".into()), ..Config::new("agent-1") }
    }

    #[test]
    fn the_defaults_of_a_local_agent_are_valid() {
        config().validate().unwrap();
        Config { coordinator: Some("localhost:50051".into()), ..Config::new("agent-1") }.validate().unwrap();
    }

    #[test]
    fn a_public_address_without_tls_is_refused_with_what_to_run() {
        let mut config = Config { grpc_addr: "192.0.2.1:50052".parse().unwrap(), ..config() };
        let message = config.validate().unwrap_err().to_string();
        assert!(message.contains("titan certs") && message.contains("--insecure-plaintext"), "{message}");
        config.insecure_plaintext = true;
        config.validate().unwrap();
    }

    #[test]
    fn every_refusal_names_what_was_wrong() {
        let refused: Vec<(Config, &str)> = vec![
            (Config { agent_id: "Agent 1".into(), ..config() }, "Agent 1"),
            (Config { max_jobs: 0, ..config() }, "max_jobs"),
            (Config { heartbeat_interval: Duration::ZERO, ..config() }, "heartbeat_interval"),
            (Config { public_host: Some("http://x:1".into()), ..config() }, "http://x:1"),
            (Config { public_host: Some(String::new()), ..config() }, "public_host"),
            (Config { public_port: Some(0), ..config() }, "PUBLIC_PORT"),
            (Config { grpc_addr: "0.0.0.0:1".parse().unwrap(), insecure_plaintext: true, ..config() }, "PUBLIC_HOST"),
            (Config::new("agent-1"), "COORDINATOR_ENDPOINT"),
            (Config { coordinator: Some("192.0.2.9:50051".into()), ..config() }, "192.0.2.9:50051"),
        ];
        for (config, named) in refused {
            let message = config.validate().unwrap_err().to_string();
            assert!(message.contains(named), "{named}: {message}");
        }
    }

    #[test]
    fn clients_are_told_an_address_that_they_can_dial() {
        let at = |address: &str| address.parse::<SocketAddr>().unwrap();
        assert_eq!(config().advertised(at("127.0.0.1:50052")), "localhost:50052");
        assert_eq!(config().advertised(at("192.0.2.1:50052")), "192.0.2.1:50052");
        assert_eq!(config().advertised(at("[2001:db8::1]:50052")), "[2001:db8::1]:50052");
        let named = Config { public_host: Some("gpu.example".into()), ..config() };
        assert_eq!(named.advertised(at("0.0.0.0:50052")), "gpu.example:50052");
    }

    #[test]
    fn remote_clients_speak_tls_unless_plain_text_was_asked_for() {
        assert_eq!(config().grpc_tls(), GrpcTls::None);
        let public = Config { grpc_addr: "192.0.2.1:50052".parse().unwrap(), ..config() };
        assert_eq!(public.grpc_tls(), GrpcTls::Server);
        assert_eq!(Config { insecure_plaintext: true, ..public }.grpc_tls(), GrpcTls::None);
    }

    #[test]
    fn ports_that_are_mapped_are_advertised_on_both_wires() {
        let at = |address: &str| address.parse::<SocketAddr>().unwrap();
        let (grpc, quic) = (at("0.0.0.0:50052"), at("0.0.0.0:50060"));
        let named = Config { public_host: Some("gpu.example".into()), ..config() };
        assert_eq!(named.advertised_quic(quic, 50052), "gpu.example:50060");
        let mapped = Config { public_port: Some(31000), ..named };
        assert_eq!(mapped.advertised(grpc), "gpu.example:31000");
        assert_eq!(mapped.advertised_quic(grpc, 50052), "gpu.example:31000", "one number for both");
        assert_eq!(mapped.advertised_quic(quic, 50052), "gpu.example:50060", "another number is mapped by its own");
        let both = Config { public_quic_port: Some(31001), ..mapped };
        assert_eq!(
            (both.advertised(grpc), both.advertised_quic(quic, 50052)),
            ("gpu.example:31000".into(), "gpu.example:31001".into())
        );
    }

    #[test]
    fn a_coordinator_elsewhere_is_not_told_localhost_unless_that_is_asked_for() {
        let elsewhere = "192.0.2.9:50051";
        let here = config();
        assert!(here.is_local_to(elsewhere) && !here.is_local_to("localhost:50051") && !here.is_local_to("[::1]:1"));
        let public = Config { grpc_addr: "192.0.2.1:50052".parse().unwrap(), ..config() };
        assert!(!public.is_local_to(elsewhere));
        let named = |host: &str| Config { public_host: Some(host.into()), ..config() };
        assert!(!named("gpu.example").is_local_to(elsewhere));
        assert!(named("localhost").is_local_to(elsewhere) && named("127.0.0.1").is_local_to(elsewhere));
    }
}
