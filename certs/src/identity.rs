//! Who a certificate says its holder is.

use std::fmt;
use std::str::FromStr;

use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::names::{NameError, validate_name};

/// The DNS name in every coordinator's certificate.
pub const COORDINATOR_SERVER_NAME: &str = "coordinator.titan.internal";

/// Every DNS name that this crate derives from a role ends in this; requests for such names as hosts are refused, so that
/// nobody gets a certificate for somebody else's name. `.internal` is reserved for private use and never resolves publicly.
pub(crate) const RESERVED_SUFFIX: &str = ".titan.internal";

const URI_PREFIX: &str = "spiffe://titancompute/";

/// What the holder of a certificate may act as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Routes requests and signs session tokens.
    Coordinator,
    /// Runs models; a TLS server for clients and a TLS client of the coordinator.
    Agent,
    /// Asks; never a server.
    Client,
}

impl Role {
    /// All roles, in the order in which they are listed to people.
    pub const ALL: [Self; 3] = [Self::Coordinator, Self::Agent, Self::Client];

    /// The word in certificates, file names and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Agent => "agent",
            Self::Client => "client",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(word: &str) -> Result<Self, UnknownRole> {
        Self::ALL.into_iter().find(|role| role.as_str() == word).ok_or_else(|| UnknownRole(word.to_owned()))
    }
}

/// A word that names no [`Role`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no role; the roles are coordinator, agent and client")]
pub struct UnknownRole(pub String);

/// The holder of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// What it may act as.
    pub role: Role,
    /// Its name; for an agent, the agent id.
    pub name: String,
}

impl Identity {
    /// Reads the identity from a certificate. The chain must have been verified before: this trusts what it reads.
    ///
    /// # Errors
    /// [`IdentityError`] when the bytes are no certificate, or one that does not carry exactly one TitanCompute identity.
    pub fn from_der(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let (rest, certificate) = X509Certificate::from_der(certificate).map_err(|_| IdentityError::Malformed)?;
        if !rest.is_empty() {
            return Err(IdentityError::Malformed);
        }
        Self::from_x509(&certificate)
    }

    pub(crate) fn from_x509(certificate: &X509Certificate<'_>) -> Result<Self, IdentityError> {
        let names = certificate.subject_alternative_name().map_err(|_| IdentityError::Malformed)?;
        let mut uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        // SPIFFE X509-SVID §2: exactly one URI, so that no verifier picks another one than we do.
        match (uris.next(), uris.next()) {
            (Some(uri), None) => Self::from_uri(uri),
            (None, _) => Err(IdentityError::Absent),
            (Some(_), Some(_)) => Err(IdentityError::Several),
        }
    }

    fn from_uri(uri: &str) -> Result<Self, IdentityError> {
        let foreign = || IdentityError::Foreign(uri.chars().take(200).collect());
        let (role, name) = uri.strip_prefix(URI_PREFIX).and_then(|path| path.split_once('/')).ok_or_else(foreign)?;
        let role = role.parse().map_err(|_| foreign())?;
        validate_name(name)?;
        Ok(Self { role, name: name.to_owned() })
    }

    /// The URI that a certificate carries: `spiffe://titancompute/<role>/<name>`.
    pub fn uri(&self) -> String {
        format!("{URI_PREFIX}{}/{}", self.role, self.name)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.name)
    }
}

/// Why a certificate names no holder. Trying again with the same certificate cannot help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not DER, or not an X.509 certificate.
    #[error("not an X.509 certificate")]
    Malformed,
    /// There is no URI subject alternative name.
    #[error("the certificate carries no identity ({URI_PREFIX}<role>/<name>); issue one with `titan certs issue`")]
    Absent,
    /// There is more than one URI subject alternative name.
    #[error("the certificate carries more than one URI, so its identity is ambiguous")]
    Several,
    /// The URI is not one of ours.
    #[error("the certificate's URI `{0}` is not {URI_PREFIX}<role>/<name> with a known role")]
    Foreign(String),
    /// The URI is ours, but its name is not acceptable.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// The DNS name in an agent's certificate that QUIC clients verify: `<agent-id>.agent.titan.internal`, lower-case.
pub fn agent_server_name(agent_id: &str) -> String {
    format!("{}.agent{RESERVED_SUFFIX}", agent_id.to_ascii_lowercase())
}

/// The DNS name that TLS clients verify for a holder of this role and name; `None` for a role that is never a server.
pub fn server_name(role: Role, name: &str) -> Option<String> {
    match role {
        Role::Coordinator => Some(COORDINATOR_SERVER_NAME.to_owned()),
        Role::Agent => Some(agent_server_name(name)),
        Role::Client => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn certificate(uris: &[&str]) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.subject_alt_names.extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())));
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn exactly_one_identity_of_ours_is_accepted() {
        let read = |uris: &[&str]| Identity::from_der(&certificate(uris));
        let ours = Identity { role: Role::Agent, name: "a.b".to_owned() };
        assert_eq!(read(&[&ours.uri()]), Ok(ours.clone()));
        assert_eq!(read(&[]), Err(IdentityError::Absent));
        assert_eq!(read(&[&ours.uri(), "spiffe://titancompute/agent/b"]), Err(IdentityError::Several));
        assert_eq!(read(&[&ours.uri(), "https://example.com"]), Err(IdentityError::Several));
        for uri in [
            "https://example.com/agent/a",
            "spiffe://titancompute.evil/agent/a",
            "spiffe://titancompute/agent",
            "spiffe://titancompute/root/a",
            "spiffe://titancompute/Agent/a",
        ] {
            assert!(matches!(read(&[uri]), Err(IdentityError::Foreign(_))), "{uri}");
        }
        for uri in ["spiffe://titancompute/agent/", "spiffe://titancompute/agent/a/b", "spiffe://titancompute/agent/A"]
        {
            assert!(matches!(read(&[uri]), Err(IdentityError::Name(_))), "{uri}");
        }
    }

    /// Small and fast, and the same bytes in every run.
    fn xorshift(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    #[test]
    fn no_bytes_make_the_parser_panic() {
        let good = certificate(&["spiffe://titancompute/agent/a"]);
        for end in 0..good.len() {
            assert_eq!(Identity::from_der(&CertificateDer::from(&good[..end])), Err(IdentityError::Malformed));
        }
        let longer = [good.as_ref(), &[0]].concat();
        assert_eq!(Identity::from_der(&CertificateDer::from(longer)), Err(IdentityError::Malformed));
        let mut random = 0x9e37_79b9_7f4a_7c15;
        for _ in 0..20_000 {
            let mut changed = good.to_vec();
            for _ in 0..1 + xorshift(&mut random) % 4 {
                let at = xorshift(&mut random) as usize % changed.len();
                changed[at] = xorshift(&mut random) as u8;
            }
            let _ = Identity::from_der(&CertificateDer::from(changed));
        }
        for _ in 0..2_000 {
            let len = xorshift(&mut random) % 300;
            let noise: Vec<u8> = (0..len).map(|_| xorshift(&mut random) as u8).collect();
            assert!(Identity::from_der(&CertificateDer::from(noise)).is_err());
        }
    }
}
