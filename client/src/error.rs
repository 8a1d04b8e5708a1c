//! What can go wrong, and what a gRPC status means for the request that got it.

use std::{error::Error, io, time::Duration};

use titan_proto::REASON;
use titan_transport::{CallError, ConnectError, ErrorCode, Wire};
use tonic::{Code, Status};

use crate::{CoordinatorError, policy::Fault};

/// Why there is no text, or no more of it.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The coordinator named no agent.
    #[error(transparent)]
    Coordinator(#[from] CoordinatorError),
    /// No connection to the agent came about.
    #[error("cannot reach the agent {agent_id}: {reason}")]
    Unreachable {
        /// Which agent.
        agent_id: String,
        /// What was tried, and what came of it.
        reason: String,
        /// Its machine says that nobody listens there: the agent is gone, and not the way to it.
        gone: bool,
    },
    /// One side does not accept the other's certificate.
    #[error("the agent {agent_id} and this client do not trust each other: {reason}")]
    Certificate {
        /// Which agent.
        agent_id: String,
        /// Which certificate, and why.
        reason: String,
    },
    /// The agent, or this client, is not set up for the wire that was asked for.
    #[error("the agent {agent_id} cannot be reached over {}: {reason}", wire.as_str())]
    WireUnavailable {
        /// Which agent.
        agent_id: String,
        /// Which wire.
        wire: Wire,
        /// What is missing.
        reason: String,
    },
    /// The agent did not run the request.
    #[error("the agent {agent_id} refused the request: {message}")]
    Refused {
        /// Which agent.
        agent_id: String,
        /// The kind of refusal.
        code: Code,
        /// The agent's words.
        message: String,
        /// When the agent expects to have room.
        retry_after: Option<Duration>,
        /// The reason in a word for programs, where there is one, such as [`titan_proto::CONTEXT_LENGTH`].
        reason: Option<String>,
    },
    /// The request reached the agent as early data over QUIC, but no answer came back, and the same request over gRPC was refused
    /// so that it does not run twice.
    #[error("the agent {agent_id} has run this request already, and its answer was lost on the way: {message}")]
    AlreadyRan {
        /// Which agent.
        agent_id: String,
        /// The agent's words.
        message: String,
    },
    /// The answer broke off, or never began.
    #[error("the answer of the agent {agent_id} broke off: {message}")]
    Broken {
        /// Which agent.
        agent_id: String,
        /// The kind of failure.
        code: Code,
        /// The reason.
        message: String,
        /// Whether a model saw the prompt: [`Processed::Yes`] when text had come.
        processed: Processed,
        /// What broke it off.
        by: BrokenBy,
    },
    /// The time for it was over ([`Builder::deadline`](crate::Builder::deadline)).
    #[error("no text came within {within:?}: {tried}")]
    TimedOut {
        /// The time there was.
        within: Duration,
        /// What was tried, and what came of it.
        tried: String,
        /// Whether a model saw the prompt.
        processed: Processed,
        /// What went wrong last; None where nothing did, and it only took too long.
        last: Option<Box<ClientError>>,
    },
}

/// What breaks an answer off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokenBy {
    /// The agent, whose model failed.
    Agent,
    /// The connection, which was lost.
    Connection,
    /// The connection, over which nothing comes any more.
    Silence,
}

/// Whether a model saw the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processed {
    /// It did not: sending it again cannot run it twice.
    No,
    /// Nobody here knows.
    Maybe,
    /// It did.
    Yes,
}

impl ClientError {
    /// Whether a model may have seen the prompt.
    pub fn processed(&self) -> Processed {
        match self {
            Self::AlreadyRan { .. } => Processed::Yes,
            Self::Broken { processed, .. } | Self::TimedOut { processed, .. } => *processed,
            _ => Processed::No,
        }
    }

    /// Whether the same request may succeed at another time. When [`processed`](Self::processed) is not `No` that would be
    /// another run of the model.
    pub fn retryable(&self) -> bool {
        Fault::of(self).passes()
    }

    /// How long to wait before another try, where somebody said so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Coordinator(error) => error.retry_after(),
            Self::Refused { retry_after, .. } => *retry_after,
            Self::TimedOut { last, .. } => last.as_ref()?.retry_after(),
            _ => None,
        }
    }

    /// The same, with the reasons why the answer did not go on.
    pub(crate) fn and_also(mut self, reasons: &str) -> Self {
        if let Self::Broken { message, .. } | Self::AlreadyRan { message, .. } = &mut self {
            message.push_str(reasons);
        }
        self
    }
}

/// How far an answer had come when its status arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The agent had not accepted the call.
    Asked,
    /// It had, and no text had come.
    Accepted,
    /// Text had come.
    Text,
}

/// What `status` means.
pub(crate) fn classify(agent_id: &str, status: &Status, progress: Progress) -> ClientError {
    let agent_id = agent_id.to_owned();
    let (code, message) = (status.code(), status.message().to_owned());
    let processed = if progress == Progress::Text { Processed::Yes } else { Processed::Maybe };
    let retry_after = pushback(status);
    let reason = status.metadata().get(REASON).and_then(|reason| Some(reason.to_str().ok()?.to_owned()));
    let refused = |code| ClientError::Refused {
        agent_id: agent_id.clone(),
        code,
        message: message.clone(),
        retry_after,
        reason: reason.clone(),
    };
    let broken = |message, by| ClientError::Broken { agent_id: agent_id.clone(), code, message, processed, by };
    match CallError::of(status) {
        Some(CallError::NotSent(error)) => return not_connected(&agent_id, error),
        Some(CallError::Refused | CallError::EarlyDataRejected) => return refused(Code::Unavailable),
        Some(CallError::Lost(error)) if is_certificate(error) => {
            return ClientError::Certificate { agent_id, reason: error.to_string() };
        }
        Some(CallError::Lost(_)) => return broken(message, BrokenBy::Connection),
        None => {}
    }
    if let Some(source) = Error::source(status) {
        return match grpc_not_connected(&agent_id, source) {
            Some(error) => error,
            // The connection went away, as one to a draining agent does, before the request was on it.
            None if never_sent(source) => refused(Code::Unavailable),
            // tonic's own words ("transport error") do not say what happened.
            None => broken(chain(source), if is_silence(source) { BrokenBy::Silence } else { BrokenBy::Connection }),
        };
    }
    // From here on it is the agent's own word.
    match (code, progress) {
        (_, Progress::Text) => broken(message, BrokenBy::Agent),
        (Code::AlreadyExists, _) => ClientError::AlreadyRan { agent_id, message },
        // Sent instead of an answer. The same from a stream that had begun is a model that failed.
        (Code::Unavailable, Progress::Asked) => refused(code),
        (
            Code::ResourceExhausted
            | Code::InvalidArgument
            | Code::NotFound
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented,
            _,
        ) => refused(code),
        _ => broken(message, BrokenBy::Agent),
    }
}

/// What a QUIC connection that did not come about means.
pub(crate) fn not_connected(agent_id: &str, error: &ConnectError) -> ClientError {
    let (agent_id, reason) = (agent_id.to_owned(), error.to_string());
    match error {
        ConnectError::Handshake { error, .. } if is_certificate(error) => ClientError::Certificate { agent_id, reason },
        _ => ClientError::Unreachable { agent_id, reason, gone: matches!(error, ConnectError::PortClosed { .. }) },
    }
}

/// What an error of a gRPC channel means, if it is about connecting.
pub(crate) fn grpc_not_connected(agent_id: &str, error: &(dyn Error + 'static)) -> Option<ClientError> {
    let agent_id = agent_id.to_owned();
    if is_tls(error) {
        return Some(ClientError::Certificate { agent_id, reason: chain(error) });
    }
    let connecting = causes(error).any(|cause| cause.is::<tonic::ConnectError>());
    connecting.then(|| ClientError::Unreachable { agent_id, reason: chain(error), gone: is_refused(error) })
}

/// Whether a TCP port turned out closed.
pub(crate) fn is_refused(error: &(dyn Error + 'static)) -> bool {
    let kind = |cause: &(dyn Error + 'static)| cause.downcast_ref().map(io::Error::kind);
    causes(error).any(|cause| kind(cause) == Some(io::ErrorKind::ConnectionRefused))
}

/// Whether TLS refused a connection, on either side: RFC 9001 §4.8, PROTOCOL.md §6.
fn is_certificate(error: &quinn::ConnectionError) -> bool {
    let tls_alert = |code: quinn::TransportErrorCode| (0x100..0x200).contains(&u64::from(code));
    match error {
        quinn::ConnectionError::TransportError(error) => tls_alert(error.code),
        quinn::ConnectionError::ConnectionClosed(close) => tls_alert(close.error_code),
        quinn::ConnectionError::ApplicationClosed(close) => {
            close.error_code.into_inner() == ErrorCode::Unauthenticated as u64
        }
        _ => false,
    }
}

/// hyper's client over HTTP/2 calls a request cancelled when it gives it back unsent.
fn never_sent(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| cause.downcast_ref().is_some_and(hyper::Error::is_canceled))
}

/// Whether the other end has not answered a ping over HTTP/2.
fn is_silence(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| cause.downcast_ref().is_some_and(hyper::Error::is_timeout))
}

/// Whether TLS over TCP failed, and not the network under it.
pub(crate) fn is_tls(error: &(dyn Error + 'static)) -> bool {
    is_caused_by::<rustls::Error>(error)
}

/// An error and what caused it, in one line.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for cause in causes(error) {
        let cause = cause.to_string();
        // Many wrappers repeat what they wrap.
        if !text.ends_with(&cause) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&cause);
        }
    }
    text
}

/// Whether `cause` is behind an error.
pub(crate) fn is_caused_by<T: Error + 'static>(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|cause| cause.is::<T>())
}

/// An error and its sources. What an `io::Error` wraps is not its source but itself, so it is looked at too.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner as &(dyn Error + 'static)),
        None => error.source(),
    })
}

/// gRFC A6: when a refused caller should come again.
fn pushback(status: &Status) -> Option<Duration> {
    let value = status.metadata().get("grpc-retry-pushback-ms")?;
    Some(Duration::from_millis(value.to_str().ok()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: &Status, progress: Progress) -> (Processed, bool) {
        let error = classify("agent-1", status, progress);
        (error.processed(), error.retryable())
    }

    #[test]
    fn a_refusal_before_the_model_was_not_processed() {
        use Progress::{Accepted, Asked};
        for (status, progress, retryable) in [
            (Status::resource_exhausted("full"), Asked, true),
            (Status::unavailable("draining"), Asked, true),
            (Status::unauthenticated("expired"), Asked, false),
            (Status::permission_denied("other agent"), Asked, false),
            (Status::not_found("no such model"), Asked, false),
            (Status::invalid_argument("top_q"), Asked, false),
            (Status::invalid_argument("the prompt is too long"), Accepted, false),
        ] {
            assert_eq!(of(&status, progress), (Processed::No, retryable), "{status:?}");
        }
    }

    #[test]
    fn after_the_first_text_every_end_is_a_broken_answer() {
        for status in [Status::resource_exhausted(""), Status::unavailable(""), Status::internal("")] {
            assert_eq!(of(&status, Progress::Text), (Processed::Yes, true), "{status:?}");
        }
    }

    #[test]
    fn what_failed_at_the_agent_may_have_been_processed() {
        assert_eq!(of(&Status::unavailable("it failed"), Progress::Accepted), (Processed::Maybe, true));
        assert_eq!(of(&Status::internal(""), Progress::Asked), (Processed::Maybe, true));
        assert_eq!(of(&Status::already_exists(""), Progress::Asked), (Processed::Yes, true));
    }

    #[test]
    fn a_lost_connection_is_told_from_the_agents_word() {
        let by = |status: &Status| match classify("agent-1", status, Progress::Text) {
            ClientError::Broken { by, .. } => by,
            error => panic!("{error:?}"),
        };
        let reset = Status::from_error(Box::new(io::Error::from(io::ErrorKind::ConnectionReset)));
        assert_eq!(by(&reset), BrokenBy::Connection);
        for said in [Status::unavailable("draining"), Status::internal("it failed"), Status::cancelled("")] {
            assert_eq!(by(&said), BrokenBy::Agent, "{said:?}");
        }
    }

    #[test]
    fn what_took_too_long_is_as_good_as_what_went_wrong_last() {
        let late = |last: Option<ClientError>| ClientError::TimedOut {
            within: Duration::from_secs(1),
            tried: "all agents were full (3 times)".to_owned(),
            processed: Processed::No,
            last: last.map(Box::new),
        };
        let mut full = Status::resource_exhausted("full");
        full.metadata_mut().insert("grpc-retry-pushback-ms", tonic::metadata::MetadataValue::from(250));
        let error = late(Some(classify("a", &full, Progress::Asked)));
        assert_eq!((error.retryable(), error.retry_after()), (true, Some(Duration::from_millis(250))));
        assert_eq!(error.to_string(), "no text came within 1s: all agents were full (3 times)");
        assert_eq!((late(None).retryable(), late(None).retry_after()), (true, None));
    }

    #[test]
    fn the_agents_pushback_is_handed_on() {
        let mut status = Status::resource_exhausted("full");
        status.metadata_mut().insert("grpc-retry-pushback-ms", tonic::metadata::MetadataValue::from(250));
        let error = classify("a", &status, Progress::Asked);
        assert_eq!(error.retry_after(), Some(Duration::from_millis(250)));
    }

    #[test]
    fn what_an_io_error_wraps_is_found() {
        let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        assert!(is_tls(&io::Error::new(io::ErrorKind::InvalidData, tls)));
        assert!(!is_tls(&io::Error::from(io::ErrorKind::ConnectionRefused)));
    }
}
