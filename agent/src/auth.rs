//! Who may have what generated here: the session token, and on an encrypted wire the certificate.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::RwLock;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use titan_certs::{Identity, Role};
use titan_proto::MAX_CLOCK_SKEW;
use titan_transport::{
    PeerInfo, Wire,
    token::{Claims, KeySetError, TokenError, TokenVerifier, unix_seconds},
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
    /// As they were last compared; `None` without a coordinator that tells.
    clocks: RwLock<Option<Clocks>>,
}

/// What two clocks showed when they were compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clocks {
    pub(crate) coordinator_unix_ms: i64,
    /// How far this machine's clock was ahead; below 0 it was behind.
    pub(crate) ahead_ms: i64,
}

impl Clocks {
    /// Farther than session tokens allow.
    pub(crate) fn too_far_apart(self) -> bool {
        Duration::from_millis(self.ahead_ms.unsigned_abs()) > MAX_CLOCK_SKEW
    }

    /// Whether the coordinator's clock, had this machine it, would find a token valid that expired so many seconds ago here; below 0: that
    /// becomes valid in so many.
    fn explain(self, seconds: i64) -> bool {
        let ahead_seconds = self.ahead_ms / 1000;
        if seconds < 0 { ahead_seconds < 0 } else { ahead_seconds > seconds }
    }
}

impl fmt::Display for Clocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { coordinator_unix_ms, ahead_ms } = *self;
        let (own, theirs) = (utc(coordinator_unix_ms.saturating_add(ahead_ms)), utc(coordinator_unix_ms));
        let (seconds, way) = (ahead_ms.unsigned_abs() / 1000, if ahead_ms < 0 { "behind" } else { "ahead of" });
        write!(f, "this agent's clock says {own} and the coordinator's {theirs}, so it is {seconds} s {way} that")
    }
}

/// RFC 3339, to the second.
fn utc(unix_ms: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(unix_ms / 1000).ok();
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| format!("{unix_ms} ms after 1970"))
}

impl Authenticator {
    pub(crate) fn new(agent_id: String, verifier: TokenVerifier, source: Option<Box<dyn KeySource>>) -> Self {
        Self { agent_id, verifier, source, fetched: Mutex::new(None), clocks: RwLock::default() }
    }

    /// Notes how far the coordinator's clock is from this machine's.
    pub(crate) fn set_clocks(&self, clocks: Clocks) {
        *self.clocks.write() = Some(clocks);
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
            Err(refused) => return Err(self.refusal(&refused)),
            Ok(claims) => return Ok(claims),
        };
        match self.refetch(asked_at).await {
            Ok(true) => self.verify(token, purpose).map_err(|refused| self.refusal(&refused)),
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

    /// A token that only this machine's clock finds wrong is as good as any at another agent, so the client is to go there: UNAVAILABLE.
    fn refusal(&self, error: &TokenError) -> Status {
        let clocks = *self.clocks.read();
        let seconds_off = match *error {
            TokenError::NotYetValid { seconds } => -seconds,
            TokenError::Expired { seconds } => seconds,
            _ => return refusal(error),
        };
        match clocks {
            Some(clocks) if clocks.explain(seconds_off) => {
                let (seconds, what) =
                    (seconds_off.abs(), if seconds_off < 0 { "is valid only in" } else { "expired before" });
                Status::unavailable(format!(
                    "the session token {what} {seconds} s here, because {clocks}; another agent may take it"
                ))
            }
            // The coordinator has never said what its clock shows; it does not make tokens for later, though.
            _ if seconds_off < 0 => {
                let own = utc(unix_seconds(SystemTime::now()).saturating_mul(1000));
                Status::unavailable(format!("{error} This agent's clock says {own}; another agent may take it"))
            }
            _ => refusal(error),
        }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tonic::Code;

    use super::*;

    const AGO: TokenError = TokenError::Expired { seconds: 100 };
    const SOON: TokenError = TokenError::NotYetValid { seconds: 100 };

    fn authenticator(ahead_seconds: Option<i64>) -> Authenticator {
        let authenticator = Authenticator::new("agent-1".into(), TokenVerifier::new("issuer"), None);
        if let Some(ahead) = ahead_seconds {
            authenticator.set_clocks(Clocks { coordinator_unix_ms: 1_800_000_000_000, ahead_ms: ahead * 1000 });
        }
        authenticator
    }

    #[test]
    fn a_token_that_a_wrong_clock_refuses_is_for_another_agent_and_both_clocks_are_named() {
        for (ahead, error, says) in [(-130, SOON, "130 s behind"), (400, AGO, "400 s ahead")] {
            let status = authenticator(Some(ahead)).refusal(&error);
            assert_eq!(status.code(), Code::Unavailable);
            assert!(status.message().contains(says) && status.message().contains("2027-01-15T08:00:00Z"), "{status}");
        }
        let unknown = authenticator(None).refusal(&SOON);
        assert_eq!(unknown.code(), Code::Unavailable);
        assert!(unknown.message().contains("This agent's clock says 20"), "{unknown}");
    }

    #[test]
    fn a_token_that_has_expired_by_both_clocks_is_the_clients_to_renew() {
        for ahead in [None, Some(0), Some(-50), Some(100)] {
            assert_eq!(authenticator(ahead).refusal(&AGO).code(), Code::Unauthenticated, "{ahead:?}");
        }
        let wrong = TokenError::WrongModel { token: "a".into(), requested: "b".into() };
        assert_eq!(authenticator(Some(400)).refusal(&wrong).code(), Code::PermissionDenied);
    }

    #[test]
    fn clocks_may_differ_as_far_as_tokens_tolerate() {
        let apart = |ahead_ms| Clocks { coordinator_unix_ms: 1, ahead_ms }.too_far_apart();
        assert!(!apart(0) && !apart(35_000) && !apart(-35_000));
        assert!(apart(35_001) && apart(-35_001) && apart(i64::MIN) && apart(i64::MAX));
        assert!(Clocks { coordinator_unix_ms: i64::MAX, ahead_ms: i64::MAX }.to_string().contains("after 1970"));
    }
}
