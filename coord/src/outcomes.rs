//! What clients report of the agents that they were sent to (PROTOCOL.md §21): who may, about what, and once. What follows from it is
//! `registry::breaker`'s to say.

use std::{
    collections::HashSet,
    mem,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use titan_proto::{COORDINATOR_NAME, rest::Outcome};
use titan_transport::token::{Claims, TokenError, TokenIssuer, TokenVerifier, unix_seconds};
use tracing::{debug, error, warn};

use crate::{
    caller::Asker,
    registry::{Fault, Met, ReportedJob},
    routing::Dispatcher,
};

/// Bytes of a report's words for the log: a sentence.
pub(crate) const MAX_MESSAGE_BYTES: usize = 256;
/// How long after its token's end a job may be reported: an answer that began with it may take that much longer.
const REPORT_FOR: Duration = Duration::from_secs(60 * 60);
/// Reported jobs that are remembered at least, and half of what is remembered at most: 30 MB. Should one be forgotten and reported again, it counts for the
/// same client once more, and no client's word alone closes an agent to others.
const MAX_REMEMBERED: usize = 100_000;

/// A report as it came. No `Debug`: it holds a token.
#[derive(Clone, Copy)]
pub(crate) struct Report<'a> {
    pub(crate) job_id: &'a str,
    pub(crate) agent_id: &'a str,
    pub(crate) session_token: &'a str,
    pub(crate) outcome: Outcome,
    /// `quic`, `grpc`, or empty.
    pub(crate) wire: &'a str,
    pub(crate) message: &'a str,
}

/// Why a report is not taken. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OutcomeError {
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(
        "the session token is for the job {token:?}, the report is about another one: report with the token that came with the job"
    )]
    OtherJob { token: String },
    #[error("the job {job_id} has been reported already: each is reported once")]
    Reported { job_id: String },
    #[error("{name} {must}")]
    Invalid { name: &'static str, must: String },
}

impl OutcomeError {
    /// What programs compare.
    pub(crate) fn code_word(&self) -> &'static str {
        match self {
            Self::Token(_) => "invalid_token",
            Self::OtherJob { .. } => "wrong_job",
            Self::Reported { .. } => "already_reported",
            Self::Invalid { .. } => "invalid_parameter",
        }
    }
}

/// The word of the contract.
pub(crate) fn parse(word: &str) -> Result<Outcome, OutcomeError> {
    serde_json::from_value(word.into()).map_err(|_| OutcomeError::Invalid {
        name: "outcome",
        must: "must be completed, refused, unreachable, broken, timed_out or cancelled".to_owned(),
    })
}

/// Checks reports.
pub(crate) struct Outcomes {
    /// With the keys that tokens are signed with here.
    verifier: TokenVerifier,
    reported: Mutex<Reported>,
}

/// The jobs of the last reports.
#[derive(Debug, Default)]
struct Reported {
    newer: HashSet<String>,
    older: HashSet<String>,
}

impl Reported {
    /// `false` if it was there.
    fn insert(&mut self, job_id: &str) -> bool {
        if self.newer.contains(job_id) || self.older.contains(job_id) {
            return false;
        }
        if self.newer.len() >= MAX_REMEMBERED {
            self.older = mem::take(&mut self.newer);
        }
        self.newer.insert(job_id.to_owned())
    }
}

impl Outcomes {
    pub(crate) fn new(issuer: &TokenIssuer) -> Self {
        let verifier = TokenVerifier::new(COORDINATOR_NAME);
        let keys = serde_json::to_string(&issuer.jwks()).map_err(|error| error.to_string());
        if let Err(cause) = keys.and_then(|keys| verifier.set_keys(&keys).map_err(|error| error.to_string())) {
            error!(cause, "reports of clients cannot be checked and are refused");
        }
        Self { verifier, reported: Mutex::default() }
    }

    /// What the token says.
    fn check(&self, report: &Report<'_>, now: SystemTime) -> Result<Claims, OutcomeError> {
        let Report { job_id, agent_id, session_token, wire, message, .. } = *report;
        let invalid = |name, must: &str| Err(OutcomeError::Invalid { name, must: must.to_owned() });
        if message.len() > MAX_MESSAGE_BYTES {
            return invalid("message", &format!("must have at most {MAX_MESSAGE_BYTES} bytes"));
        }
        if !matches!(wire, "" | "quic" | "grpc") {
            return invalid("wire", "must be quic or grpc");
        }
        let claims = self.verifier.verify_begun(session_token, agent_id, now)?;
        let late = unix_seconds(now).saturating_sub(claims.exp);
        if late > REPORT_FOR.as_secs() as i64 {
            return Err(TokenError::Expired { seconds: late }.into());
        }
        if claims.job_id != job_id || job_id.is_empty() {
            return Err(OutcomeError::OtherJob { token: claims.job_id });
        }
        if !self.reported.lock().insert(job_id) {
            return Err(OutcomeError::Reported { job_id: job_id.to_owned() });
        }
        Ok(claims)
    }
}

impl Dispatcher {
    /// Takes a client's word for how its job went.
    pub(crate) fn report_outcome(&self, report: &Report<'_>, asker: &Asker) -> Result<(), OutcomeError> {
        let now = SystemTime::now();
        let claims = self.outcomes.check(report, now)?;
        let Report { job_id, agent_id, outcome, wire, message, .. } = *report;
        let who = asker.who(&claims.client_id);
        // Words from outside are quoted, so that they cannot pass for a line of their own.
        debug!(job_id, agent = agent_id, ?outcome, wire, ?message, %who, "reported");
        let met = match outcome {
            Outcome::Completed => Met::Answer,
            Outcome::Cancelled => Met::Nothing,
            Outcome::Refused => Met::Fault(Fault::Refused),
            Outcome::Unreachable => Met::Fault(Fault::Unreachable),
            Outcome::Broken => Met::Fault(Fault::Broken),
            Outcome::TimedOut => Met::Fault(Fault::TimedOut),
        };
        // Its time of issue is in whole seconds.
        let age = u64::try_from(unix_seconds(now).saturating_sub(claims.iat).saturating_sub(1)).unwrap_or(0);
        let job = ReportedJob { job_id, who: &who, age: Duration::from_secs(age) };
        if self.registry.lock().met(agent_id, &job, met, Instant::now()) {
            warn!(agent = agent_id, last = ?outcome, "clients' requests there failed in a row: no more for a while, then one to try it");
        }
        self.room_at(agent_id);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use titan_transport::token::{Algorithm, new_jti};

    use super::*;

    const REPORT: Report<'static> = Report {
        job_id: "job_1",
        agent_id: "agent-1",
        session_token: "",
        outcome: Outcome::Completed,
        wire: "quic",
        message: "",
    };

    struct Fixture {
        issuer: TokenIssuer,
        outcomes: Outcomes,
        now: SystemTime,
        _keys: tempfile::TempDir,
    }

    fn fixture() -> Fixture {
        let keys = tempfile::tempdir().unwrap();
        let issuer = TokenIssuer::open(keys.path(), Algorithm::ES256).unwrap();
        Fixture { outcomes: Outcomes::new(&issuer), issuer, now: SystemTime::now(), _keys: keys }
    }

    impl Fixture {
        fn token(&self, job_id: &str) -> String {
            let now = unix_seconds(self.now);
            let claims = Claims {
                iss: COORDINATOR_NAME.to_owned(),
                agent_id: "agent-1".to_owned(),
                client_id: "c".to_owned(),
                model: "m".to_owned(),
                job_id: job_id.to_owned(),
                jti: new_jti(),
                iat: now,
                nbf: now,
                exp: now + 300,
                request: None,
                key: None,
                generations: None,
            };
            self.issuer.issue(&claims).unwrap()
        }

        fn refused(&self, report: &Report<'_>, after: Duration) -> String {
            self.outcomes.check(report, self.now + after).unwrap_err().code_word().to_owned()
        }
    }

    #[test]
    fn a_job_is_reported_once_by_who_has_its_token() {
        let fixture = fixture();
        let token = fixture.token("job_1");
        let report = Report { session_token: &token, ..REPORT };
        let forged = format!("{}AAAA", &token[..token.len() - 4]);
        for (wrong, word) in [
            (Report { session_token: "", ..report }, "invalid_token"),
            (Report { session_token: &forged, ..report }, "invalid_token"),
            (Report { agent_id: "agent-2", ..report }, "invalid_token"),
            (Report { job_id: "job_2", ..report }, "wrong_job"),
            (Report { job_id: "", ..report }, "wrong_job"),
            (Report { wire: "pigeon", ..report }, "invalid_parameter"),
            (Report { message: &"m".repeat(MAX_MESSAGE_BYTES + 1), ..report }, "invalid_parameter"),
        ] {
            assert_eq!(fixture.refused(&wrong, Duration::ZERO), word);
        }
        let visit = fixture.token("");
        assert_eq!(
            fixture.refused(&Report { session_token: &visit, job_id: "", ..report }, Duration::ZERO),
            "wrong_job"
        );
        // None of these has used the job up.
        assert_eq!(fixture.outcomes.check(&report, fixture.now).unwrap().client_id, "c");
        assert_eq!(fixture.refused(&report, Duration::ZERO), "already_reported");
    }

    #[test]
    fn an_answer_may_outlive_its_token_and_a_token_is_no_good_for_ever() {
        let fixture = fixture();
        let token = fixture.token("job_1");
        let report = Report { session_token: &token, ..REPORT };
        let end = Duration::from_secs(300) + REPORT_FOR;
        assert_eq!(fixture.refused(&report, end + Duration::from_secs(1)), "invalid_token");
        fixture.outcomes.check(&report, fixture.now + end).unwrap();
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut reported = Reported::default();
        let jobs = 5 * MAX_REMEMBERED / 2;
        for job in 0..jobs {
            assert!(reported.insert(&job.to_string()));
        }
        assert_eq!(reported.newer.len() + reported.older.len(), 3 * MAX_REMEMBERED / 2);
        assert!(!reported.insert(&(jobs - MAX_REMEMBERED).to_string()));
    }

    #[test]
    fn every_outcome_has_a_word() {
        for outcome in ["completed", "refused", "unreachable", "broken", "timed_out", "cancelled"] {
            assert_eq!(serde_json::to_value(parse(outcome).unwrap()).unwrap(), outcome);
        }
        assert!(parse("fine").unwrap_err().to_string().contains("timed_out"));
    }
}
