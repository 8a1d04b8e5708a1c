//! What may stand in a certificate: names of holders, and hosts.

use std::fmt;
use std::net::IpAddr;

use rustls_pki_types::DnsName;
use x509_parser::prelude::{GeneralName, X509Certificate};

use crate::identity::{Identity, RESERVED_SUFFIX, Role, server_name};

/// Longest name of a holder. It becomes part of a DNS name, whose labels hold 63 bytes (RFC 1035 §2.3.4), and of a common
/// name, which holds 64 (RFC 5280 appendix A.1).
pub const MAX_NAME_LEN: usize = 63;

/// Most hosts in one certificate: more names than a machine has, few enough to stay in [`crate::CHAIN_BUDGET_BYTES`].
pub const MAX_HOSTS: usize = 16;

/// Checks the name of a certificate's holder: 1 to [`MAX_NAME_LEN`] of `a-z`, `0-9`, `.`, `_` and `-`, beginning and ending
/// with a letter or digit, and without an empty part between dots. It becomes a file name, a URI segment and a DNS label.
///
/// # Errors
/// [`NameError`] says which rule the name breaks.
pub fn validate_name(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MAX_NAME_LEN {
        return Err(NameError::TooLong { len: name.len() });
    }
    let allowed = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-');
    if let Some(character) = name.chars().find(|&c| !allowed(c)) {
        return Err(NameError::Character { name: name.to_owned(), character });
    }
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let part_ok = |part: &str| edge(part.chars().next()) && edge(part.chars().next_back());
    if !name.split('.').all(part_ok) {
        return Err(NameError::Edge { name: name.to_owned() });
    }
    Ok(())
}

/// Why a name or a host cannot stand in a certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No name at all.
    #[error("the name is empty; give one such as `agent-1`")]
    Empty,
    /// Longer than [`MAX_NAME_LEN`].
    #[error("the name has {len} bytes; at most {MAX_NAME_LEN} fit a DNS label")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// A character that file names, URIs or DNS names do not share.
    #[error("the name {name:?} contains {character:?}; use a-z, 0-9, `.`, `_` and `-`")]
    Character {
        /// The name.
        name: String,
        /// The first such character.
        character: char,
    },
    /// A dot, dash or underscore where DNS allows none.
    #[error("the name `{name}` (and each part of it between dots) must begin and end with a letter or digit")]
    Edge {
        /// The name.
        name: String,
    },
    /// Neither an IP address nor a DNS name.
    #[error("{host:?} is neither an IP address nor a host name; leave out scheme and port")]
    Host {
        /// What was given.
        host: String,
    },
    /// A name that only this crate gives out.
    #[error("the host `{host}` ends in {RESERVED_SUFFIX}, which names roles and cannot be asked for")]
    ReservedHost {
        /// What was given.
        host: String,
    },
    /// More than [`MAX_HOSTS`].
    #[error("{count} hosts; at most {MAX_HOSTS} fit one certificate")]
    TooManyHosts {
        /// How many there are.
        count: usize,
    },
}

/// A subject alternative name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum San {
    Dns(String),
    Ip(IpAddr),
    Uri(String),
}

impl fmt::Display for San {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => write!(f, "DNS:{name}"),
            Self::Ip(address) => write!(f, "IP:{address}"),
            Self::Uri(uri) => write!(f, "URI:{uri}"),
        }
    }
}

/// Everything a certificate for this holder and these hosts has to name, sorted, each once.
pub(crate) fn sans_for(role: Role, name: &str, hosts: &[String]) -> Result<Vec<San>, NameError> {
    validate_name(name)?;
    if hosts.len() > MAX_HOSTS {
        return Err(NameError::TooManyHosts { count: hosts.len() });
    }
    let mut sans = hosts.iter().map(|host| parse_host(host)).collect::<Result<Vec<_>, _>>()?;
    sans.push(San::Uri(Identity { role, name: name.to_owned() }.uri()));
    sans.extend(server_name(role, name).map(San::Dns));
    sans.sort();
    sans.dedup();
    Ok(sans)
}

/// What a certificate names, sorted like [`sans_for`]. Kinds of names that this crate never writes are left out.
pub(crate) fn sans_of(certificate: &X509Certificate<'_>) -> Vec<San> {
    let extension = certificate.subject_alternative_name().ok().flatten();
    let names = extension.iter().flat_map(|names| &names.value.general_names);
    let mut sans: Vec<San> = names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(San::Dns(name.to_ascii_lowercase())),
            GeneralName::URI(uri) => Some(San::Uri((*uri).to_owned())),
            GeneralName::IPAddress(bytes) => {
                let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from).ok();
                v4.or_else(|| <[u8; 16]>::try_from(*bytes).map(IpAddr::from).ok()).map(San::Ip)
            }
            _ => None,
        })
        .collect();
    sans.sort();
    sans
}

fn parse_host(host: &str) -> Result<San, NameError> {
    // `[::1]` is how people write an IPv6 host beside a port.
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse() {
        return Ok(San::Ip(address));
    }
    // The root's dot is legal in a URL and never stands in a certificate (RFC 6125 §6.4).
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    if DnsName::try_from(name.as_str()).is_err() {
        return Err(NameError::Host { host: host.to_owned() });
    }
    if name.ends_with(RESERVED_SUFFIX) {
        return Err(NameError::ReservedHost { host: host.to_owned() });
    }
    Ok(San::Dns(name))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_that_would_leave_the_directory_or_break_dns_are_refused() {
        for name in ["agent-1", "a", "0", "gpu_box.rack-2", &"x".repeat(MAX_NAME_LEN)] {
            assert_eq!(validate_name(name), Ok(()), "{name}");
        }
        assert_eq!(validate_name(""), Err(NameError::Empty));
        assert!(matches!(validate_name(&"x".repeat(64)), Err(NameError::TooLong { len: 64 })));
        for name in ["../ca", "a/b", "a\\b", "Agent-1", "a b", "ä", "a\0"] {
            assert!(matches!(validate_name(name), Err(NameError::Character { .. })), "{name:?}");
        }
        for name in ["..", ".a", "a.", "a..b", "-a", "a-", "a.-b", "_a"] {
            assert!(matches!(validate_name(name), Err(NameError::Edge { .. })), "{name}");
        }
    }

    #[test]
    fn every_valid_agent_name_makes_a_valid_dns_name() {
        for name in ["agent-1", "a_b", "1", "1.2.3.4", &"x".repeat(MAX_NAME_LEN), &["a"; 32].join(".")] {
            validate_name(name).unwrap();
            assert!(DnsName::try_from(server_name(Role::Agent, name).unwrap()).is_ok(), "{name}");
        }
    }

    #[test]
    fn hosts_are_addresses_or_dns_names_in_one_spelling() {
        let hosts = ["GPU.example.com.", "gpu.example.com", "127.0.0.1", "[::1]", "0:0::1", "localhost"];
        let sans = sans_for(Role::Client, "c", &hosts.map(String::from)).unwrap();
        let shown: Vec<_> = sans.iter().map(San::to_string).collect();
        assert_eq!(
            shown,
            ["DNS:gpu.example.com", "DNS:localhost", "IP:127.0.0.1", "IP:::1", "URI:spiffe://titancompute/client/c"]
        );
    }

    #[test]
    fn hosts_that_are_no_hosts_or_are_somebody_elses_name_are_refused() {
        for host in ["", "http://a", "a:50052", "*.example.com", "a b", "fe80::1%eth0", "256.1.1.1"] {
            let refused = sans_for(Role::Agent, "a", &[host.to_owned()]);
            assert!(matches!(refused, Err(NameError::Host { .. })), "{host:?}: {refused:?}");
        }
        for host in ["coordinator.titan.internal", "b.agent.Titan.Internal."] {
            let refused = sans_for(Role::Agent, "a", &[host.to_owned()]);
            assert!(matches!(refused, Err(NameError::ReservedHost { .. })), "{host}");
        }
        let many = vec!["a".to_owned(); MAX_HOSTS + 1];
        assert!(matches!(sans_for(Role::Agent, "a", &many), Err(NameError::TooManyHosts { .. })));
    }
}
