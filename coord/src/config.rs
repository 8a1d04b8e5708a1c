//! Everything that can be set, its defaults, and what is checked before anything is bound.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use http::HeaderValue;
use titan_certs::CertDir;
use titan_proto::{COORDINATOR_GRPC_PORT, COORDINATOR_HTTP_PORT, host::is_loopback_ip};
use titan_transport::{
    tls::{PublicIdentity, Renewals, TlsMaterial},
    token::Algorithm,
};

use crate::scheduler::{Weights, WeightsError};

/// Longest life of a token: agents remember what was run for as long as its token lives, so it must be bounded.
pub const MAX_TOKEN_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// Longest time without a heartbeat. An agent that died gets requests for so long if its connection stays silent.
pub const MAX_HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(60 * 60);
/// Longest wait for a booking to be claimed.
pub const MAX_BOOKING_TIMEOUT: Duration = Duration::from_secs(10 * 60);
/// The unit of everything that crosses a wire in whole seconds: shorter would read as 0.
const SECOND: Duration = Duration::from_secs(1);

/// How to run a coordinator.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where REST listens. Defaults to 127.0.0.1:8080.
    pub http_addr: SocketAddr,
    /// Where gRPC listens. Defaults to 127.0.0.1:50051.
    pub grpc_addr: SocketAddr,
    /// Certificate, key and roots. Without it agents cannot register, because they must show a certificate. Defaults to none.
    pub tls: Option<TlsMaterial>,
    /// A certificate of a public CA, shown to those who know no private one, such as the packages of OpenAI. Needs `tls`. Defaults to none.
    pub public_tls: Option<PublicIdentity>,
    /// Certificates that take the place of `tls` and `public_tls` while it runs. Defaults to none.
    pub renewals: Option<Renewals>,
    /// Accept plain text from other machines too. Defaults to false.
    pub insecure_plaintext: bool,
    /// How long a session token is good for. Defaults to 300 s.
    pub token_ttl: Duration,
    /// How tokens are signed. Defaults to RS256.
    pub token_algorithm: Algorithm,
    /// Where the signing keys are kept, and the API keys. Defaults to `keys` in the working directory.
    pub key_dir: PathBuf,
    /// Whether API keys are asked for: on an address that other machines reach always, on this machine as soon as there is one
    /// ([`KeyFile`](crate::keys::KeyFile)). Without, whoever reaches the coordinator has text generated. Defaults to true.
    pub api_keys: bool,
    /// The directory of the CA, whose key certifies those of clients that show an API key. Defaults to none: then certificates are issued by hand.
    pub enrolment: Option<CertDir>,
    /// Where it is written down what was generated for whom: [`usage`](crate::usage). Defaults to nowhere.
    pub usage_log: Option<PathBuf>,
    /// An agent is gone after so long without a heartbeat. Defaults to 30 s.
    pub heartbeat_timeout: Duration,
    /// What agents are told to keep between two heartbeats. Defaults to 10 s: two may be lost before the third is missed.
    pub heartbeat_interval: Duration,
    /// How long a slot stays booked for a job that no agent has claimed. Defaults to 5 s: many times what a client needs to
    /// dial, and soon over for one that never does.
    pub booking_timeout: Duration,
    /// How the scheduler compares agents. Defaults to 40 : 30 : 20 : 10.
    pub weights: Weights,
    /// Tell an agent of a request at once, prompt included, so that it begins while the client still connects. Where routing requests
    /// carry no prompt it changes nothing. Defaults to false: prompts then go no further than here.
    pub prefill_ahead: bool,
    /// Origins (`https://example.com`) whose pages may call REST; empty means any. Defaults to any.
    pub cors_origins: Vec<String>,
    /// Names under which this machine is dialled in plain text, as behind a reverse proxy beside it. Others in the header `Host` are taken for
    /// a page's attempt to pass for this machine, but for those that nobody can register. Defaults to none.
    pub allowed_hosts: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Self {
            http_addr: SocketAddr::new(localhost, COORDINATOR_HTTP_PORT),
            grpc_addr: SocketAddr::new(localhost, COORDINATOR_GRPC_PORT),
            tls: None,
            public_tls: None,
            renewals: None,
            insecure_plaintext: false,
            token_ttl: Duration::from_secs(300),
            token_algorithm: Algorithm::default(),
            key_dir: PathBuf::from("keys"),
            api_keys: true,
            enrolment: None,
            usage_log: None,
            heartbeat_timeout: Duration::from_secs(30),
            heartbeat_interval: Duration::from_secs(10),
            booking_timeout: Duration::from_secs(5),
            weights: Weights::default(),
            prefill_ahead: false,
            cors_origins: Vec::new(),
            allowed_hosts: Vec::new(),
        }
    }
}

/// A value that cannot be used. Trying again with the same configuration cannot help.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// A public address without TLS.
    #[error(
        "{addr} can be reached from other machines and there is no TLS material: run `titan certs init` and \
         `titan certs issue --role coordinator --name coordinator`, listen on 127.0.0.1, or accept plain text from \
         everywhere with --insecure-plaintext"
    )]
    PublicWithoutTls {
        /// The address.
        addr: SocketAddr,
    },
    /// REST and gRPC on one port.
    #[error("REST and gRPC cannot share {addr}: choose two ports (COORDINATOR_HTTP_PORT, COORDINATOR_PORT)")]
    SamePort {
        /// The address.
        addr: SocketAddr,
    },
    /// A time out of range.
    #[error("{name} is {value:?}: it must be between {min:?} and {max:?}")]
    Time {
        /// The field.
        name: &'static str,
        /// What it was set to.
        value: Duration,
        /// The least.
        min: Duration,
        /// The most.
        max: Duration,
    },
    /// Agents would be told to report less often than they must.
    #[error("heartbeat_interval ({interval:?}) must be below heartbeat_timeout ({timeout:?}), better a third of it")]
    Interval {
        /// The interval.
        interval: Duration,
        /// The timeout.
        timeout: Duration,
    },
    /// An origin that no browser sends.
    #[error("the CORS origin {origin:?} is not of the form https://host or https://host:port")]
    Origin {
        /// What was given.
        origin: String,
    },
    /// Weights that compare nothing.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

impl Config {
    /// Checks every value; [`Coordinator::bind`](crate::Coordinator::bind) does it before anything else.
    ///
    /// # Errors
    /// [`ConfigError`] names the first value that cannot be used, and what to do.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if let Some(addr) = self.public_addr().filter(|_| self.tls.is_none() && !self.insecure_plaintext) {
            return Err(ConfigError::PublicWithoutTls { addr });
        }
        if self.http_addr == self.grpc_addr && self.http_addr.port() != 0 {
            return Err(ConfigError::SamePort { addr: self.http_addr });
        }
        check_time("token_ttl", self.token_ttl, MAX_TOKEN_TTL)?;
        check_time("heartbeat_timeout", self.heartbeat_timeout, MAX_HEARTBEAT_TIMEOUT)?;
        check_time("heartbeat_interval", self.heartbeat_interval, MAX_HEARTBEAT_TIMEOUT)?;
        check_time("booking_timeout", self.booking_timeout, MAX_BOOKING_TIMEOUT)?;
        if self.heartbeat_interval >= self.heartbeat_timeout {
            let (interval, timeout) = (self.heartbeat_interval, self.heartbeat_timeout);
            return Err(ConfigError::Interval { interval, timeout });
        }
        self.weights.normalized()?;
        self.origins().map(|_| ())
    }

    /// An address that other machines can reach.
    pub(crate) fn public_addr(&self) -> Option<SocketAddr> {
        [self.http_addr, self.grpc_addr].into_iter().find(|addr| !is_loopback_ip(addr.ip()))
    }

    /// The allowed origins as header values.
    pub(crate) fn origins(&self) -> Result<Vec<HeaderValue>, ConfigError> {
        let parse = |origin: &String| {
            // RFC 6454 §6.2: scheme, host and port; no path, not even "/".
            let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            let valid = host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '*', ' ', '?', '#']));
            let value = if valid { HeaderValue::from_str(origin).ok() } else { None };
            value.ok_or_else(|| ConfigError::Origin { origin: origin.clone() })
        };
        self.cors_origins.iter().map(parse).collect()
    }
}

fn check_time(name: &'static str, value: Duration, max: Duration) -> Result<(), ConfigError> {
    if (SECOND..=max).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::Time { name, value, min: SECOND, max })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn refused(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::default();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_are_valid_and_local() {
        let config = Config::default();
        config.validate().unwrap();
        assert!(config.http_addr.ip().is_loopback() && config.grpc_addr.ip().is_loopback());
    }

    #[test]
    fn a_public_address_without_tls_is_refused_with_what_to_run() {
        for public in ["0.0.0.0:8080", "[::]:8080", "192.0.2.1:8080", "[::ffff:192.0.2.1]:8080"] {
            let message = refused(|config| config.http_addr = public.parse().unwrap());
            assert!(message.contains("titan certs init") && message.contains("--insecure-plaintext"), "{message}");
            assert!(refused(|config| config.grpc_addr = public.parse().unwrap()).contains("titan certs init"));
        }
        for local in ["127.0.0.1:0", "[::1]:0", "127.1.2.3:0", "[::ffff:127.0.0.1]:0"] {
            Config { http_addr: local.parse().unwrap(), ..Config::default() }.validate().unwrap();
        }
        let spelt_out =
            Config { http_addr: "0.0.0.0:0".parse().unwrap(), insecure_plaintext: true, ..Config::default() };
        spelt_out.validate().unwrap();
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        assert!(refused(|config| config.token_ttl = Duration::ZERO).contains("token_ttl"));
        assert!(refused(|config| config.token_ttl = Duration::from_secs(86_401)).contains("token_ttl"));
        assert!(refused(|config| config.heartbeat_timeout = Duration::from_millis(1)).contains("heartbeat_timeout"));
        assert!(refused(|config| config.booking_timeout = Duration::MAX).contains("booking_timeout"));
        assert!(refused(|config| config.heartbeat_interval = config.heartbeat_timeout).contains("must be below"));
        assert!(refused(|config| config.weights.load = -1.0).contains("`load`"));
        assert!(refused(|config| config.grpc_addr = config.http_addr).contains("two ports"));
        for origin in ["example.com", "https://", "https://a/", "*", "https://a b", "https://*.a"] {
            assert!(refused(|config| config.cors_origins = vec![origin.into()]).contains("CORS"), "{origin}");
        }
    }
}
