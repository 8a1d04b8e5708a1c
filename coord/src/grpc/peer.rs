//! Who is calling: only an agent may speak for an agent, and only for the one in its certificate.

use titan_certs::{Identity, Role};
use titan_transport::PeerInfo;
use tonic::{Request, Status};

/// The agent id in the caller's certificate.
///
/// # Errors
/// UNAUTHENTICATED without a certificate, PERMISSION_DENIED with one of another role.
pub(super) fn agent_name<T>(request: &Request<T>) -> Result<String, Status> {
    let certificate = request.extensions().get::<PeerInfo>().and_then(|peer| peer.certificate.as_ref());
    let certificate = certificate.ok_or_else(|| {
        Status::unauthenticated(
            "agents show a certificate of this coordinator's CA: run `titan certs issue --role agent --name AGENT_ID` \
             where the CA is, and connect by TLS with it",
        )
    })?;
    match Identity::from_der(certificate) {
        Ok(Identity { role: Role::Agent, name }) => Ok(name),
        Ok(other) => Err(Status::permission_denied(format!(
            "this takes a certificate of the role agent, and the one shown is for {other}: run `titan certs issue \
             --role agent --name AGENT_ID`"
        ))),
        Err(error) => Err(Status::permission_denied(error.to_string())),
    }
}

/// Is the agent that `name` (from a certificate) stands for the one that a message is about?
///
/// # Errors
/// PERMISSION_DENIED if not.
pub(super) fn speaks_for(name: &str, agent_id: &str) -> Result<(), Status> {
    if name == agent_id {
        return Ok(());
    }
    const SHOWN_CHARS: usize = 80;
    let agent_id: String = agent_id.chars().take(SHOWN_CHARS).collect();
    Err(Status::permission_denied(format!(
        "the certificate is for agent `{name}`, the message for `{agent_id}`: set AGENT_ID to `{name}`, or issue a \
         certificate for `{agent_id}`"
    )))
}
