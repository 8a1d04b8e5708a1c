//! Who may have what generated here: the session token, and on an encrypted wire the certificate.

use std::{
    future::Future,
    pin::Pin,
    time::{Duration, Instant, SystemTime},
};

use titan_certs::{Identity, Role};
use titan_transport::{
    PeerInfo, Wire,
    token::{Claims, KeySetError, TokenError, TokenVerifier},
};
use tokio::sync::Mutex;
use tonic::{Status, metadata::MetadataMap};

/// Least time between two fetches of the keys: tokens with invented key ids must not become requests to the coordinator.
const MIN_REFETCH: Duration = Duration::from_secs(5);
/// Longest wait for the keys while a request waits: a coordinator that is up answers in a round trip or two.
const FETCH_TIMEOUT: Duration = Duration::from_secs(2);

/// The future of [`KeySource::fetch`]: a JWK set, or why there is none.
pub(crate) type FetchKeys<'a> = Pin<Box<dyn Future<Output = Result<String, String>> + Send + 'a>>;

/// Where the keys come from that tokens are signed with.
pub(crate) trait KeySource: Send + Sync + 'static {
    /// The current keys as a JWK set in JSON.
    fn fetch(&self) -> FetchKeys<'_>;
}

/// What a token is shown for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose<'a> {
    /// To have something generated.
    Begin,
    /// To read on in an answer that began with it. It may have expired since: a long answer outlives its token.
    Resume,
    /// The one request, as [`Claims::request_line`] has it, whose address it stands in.
    Address(&'a str),
}

impl Purpose<'_> {
    /// The request that the token has to be for.
    fn request(&self) -> Option<&str> {
        match self {
            Self::Begin | Self::Resume => None,
            Self::Address(request) => Some(request),
        }
    }
}

/// Checks tokens for one agent.
pub(crate) struct Authenticator {
    agent_id: String,
    verifier: TokenVerifier,
    source: Option<Box<dyn KeySource>>,
    /// When the keys were last fetched. Held during a fetch, by those alone whose token names an unknown key.
    fetched: Mutex<Option<Instant>>,
}

impl Authenticator {
    pub(crate) fn new(agent_id: String, verifier: TokenVerifier, source: Option<Box<dyn KeySource>>) -> Self {
        Self { agent_id, verifier, source, fetched: Mutex::new(None) }
    }

    /// Replaces the keys.
    pub(crate) fn set_keys(&self, jwks: &str) -> Result<(), KeySetError> {
        self.verifier.set_keys(jwks).map(|_| ())
    }

    /// The claims of a request's token. A key that is not known yet is asked for, once.
    pub(crate) async fn authenticate(
        &self,
        session_token: &str,
        metadata: &MetadataMap,
        purpose: Purpose<'_>,
    ) -> Result<Claims, Status> {
        let token = token(session_token, metadata)?;
        let asked_at = Instant::now();
        let refused = match self.verify(token, purpose) {
            Err(refused @ TokenError::UnknownKey { .. }) => refused,
            Err(refused) => return Err(refusal(&refused)),
            Ok(claims) => return Ok(claims),
        };
        match self.refetch(asked_at).await {
            Ok(true) => self.verify(token, purpose).map_err(|refused| refusal(&refused)),
            Ok(false) => Err(refusal(&refused)),
            Err(reason) => {
                tracing::warn!(%reason, "cannot fetch the coordinator's keys");
                Err(Status::unauthenticated(format!("{refused}; the coordinator could not be asked for newer keys")))
            }
        }
    }

    fn verify(&self, token: &str, purpose: Purpose<'_>) -> Result<Claims, TokenError> {
        let now = SystemTime::now();
        let claims = match purpose {
            Purpose::Begin | Purpose::Address(_) => self.verifier.verify(token, &self.agent_id, now)?,
            Purpose::Resume => self.verifier.verify_begun(token, &self.agent_id, now)?,
        };
        claims.check_request(purpose.request())?;
        Ok(claims)
    }

    /// Whether the keys are newer now than at `asked_at`.
    async fn refetch(&self, asked_at: Instant) -> Result<bool, String> {
        let Some(source) = &self.source else { return Ok(false) };
        let mut fetched = self.fetched.lock().await;
        match *fetched {
            // Somebody else fetched them while this request waited for the lock.
            Some(at) if at >= asked_at => return Ok(true),
            Some(at) if at.elapsed() < MIN_REFETCH => return Ok(false),
            _ => {}
        }
        let fetch = tokio::time::timeout(FETCH_TIMEOUT, source.fetch()).await;
        *fetched = Some(Instant::now());
        let jwks = fetch.map_err(|_| format!("no answer within {FETCH_TIMEOUT:?}"))??;
        self.set_keys(&jwks).map_err(|error| error.to_string())?;
        Ok(true)
    }
}

/// The model that a request may use: the token's, which it may repeat but not change.
pub(crate) fn allowed_model<'a>(claims: &'a Claims, requested: &str) -> Result<&'a str, Status> {
    claims.check_model(requested).map_err(|refused| refusal(&refused))?;
    Ok(&claims.model)
}

/// Refuses a peer whose certificate is not a client's (or a coordinator's). Whether it is valid the wire has checked already.
pub(crate) fn check_role(peer: Option<&PeerInfo>) -> Result<(), Status> {
    let Some(peer) = peer else { return Ok(()) };
    let Some(certificate) = &peer.certificate else {
        return match peer.wire {
            Wire::Http => Ok(()),
            Wire::Quic => Err(Status::unauthenticated("QUIC needs a client certificate of this cluster's CA")),
        };
    };
    match Identity::from_der(certificate) {
        Ok(Identity { role: Role::Client | Role::Coordinator, .. }) => Ok(()),
        Ok(Identity { role, name }) => Err(Status::permission_denied(format!(
            "the certificate is that of the {role} {name:?}: requests need a client's, `titan certs issue --role client` makes one"
        ))),
        Err(error) => Err(Status::permission_denied(format!("the certificate names no TitanCompute role: {error}"))),
    }
}

/// The field first: existing clients use it. gRPC's own custom, a bearer token (RFC 6750 §2.1), where it is empty.
fn token<'a>(session_token: &'a str, metadata: &'a MetadataMap) -> Result<&'a str, Status> {
    if !session_token.is_empty() {
        return Ok(session_token);
    }
    let header = metadata.get("authorization").ok_or_else(|| refusal(&TokenError::Absent))?;
    let bearer = header.to_str().ok().and_then(|header| {
        let (scheme, token) = header.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    match bearer {
        Some(token) if !token.is_empty() => Ok(token),
        _ => Err(Status::unauthenticated("the metadata `authorization` is not `Bearer …` with a session token")),
    }
}

fn refusal(error: &TokenError) -> Status {
    if error.is_permission() {
        Status::permission_denied(error.to_string())
    } else {
        Status::unauthenticated(error.to_string())
    }
}
