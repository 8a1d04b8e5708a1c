//! Telling the coordinator what came of a request: `POST /api/v1/jobs/{job_id}/outcome`. In the background, and a report may be lost.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use titan_proto::rest::{MAX_OUTCOME_MESSAGE_BYTES, Outcome, OutcomeReport};
use titan_transport::Wire;
use tokio::{runtime::Handle, sync::Semaphore, time::timeout};

use crate::{ClientError, coordinator::Coordinator, error::BrokenBy, route::Route};

/// Reports that are on their way at once. When an agent dies under many answers, the first few say it all.
const MAX_REPORTS: usize = 16;
/// A report that takes longer is given up: it would be news no more.
const REPORT_TIME: Duration = Duration::from_secs(5);
/// Agents whose failures are remembered, as many as a client keeps connections to. One more takes the place of the oldest.
const MAX_AGENTS: usize = 64;

/// Reports failures at once, and the end of a request only at agents that have failed before: [`OutcomeReport`] says why.
pub(crate) struct Outcomes {
    coordinator: Arc<Coordinator>,
    room: Arc<Semaphore>,
    /// Agents that have failed since they last completed a request.
    failed: Mutex<Vec<String>>,
}

impl Outcomes {
    pub(crate) fn new(coordinator: Arc<Coordinator>) -> Self {
        Self { coordinator, room: Arc::new(Semaphore::new(MAX_REPORTS)), failed: Mutex::default() }
    }

    /// Takes note of what came of the job of `route`, and tells it if it is news. Waits for nothing.
    pub(crate) fn tell(&self, route: &Route, outcome: Outcome, wire: Option<Wire>, message: Option<String>) {
        let agent_id = route.place.agent_id.as_str();
        if !is_news(&mut self.failed.lock(), agent_id, outcome) {
            return;
        }
        // Without a runtime the program is about to end.
        let (Ok(place), Ok(runtime)) = (self.room.clone().try_acquire_owned(), Handle::try_current()) else { return };
        let report = OutcomeReport {
            outcome,
            agent_id: agent_id.to_owned(),
            wire: wire.map(|wire| wire.as_str().to_owned()),
            message: message.map(|message| shortened(&message).to_owned()),
            session_token: route.token.clone(),
        };
        let (coordinator, job_id) = (self.coordinator.clone(), route.job_id.clone());
        runtime.spawn(async move {
            let _place = place;
            match timeout(REPORT_TIME, coordinator.report(&job_id, &report)).await {
                Ok(Ok(())) => tracing::debug!(agent = %report.agent_id, ?outcome, "told the coordinator"),
                Ok(Err(error)) => tracing::debug!(%error, ?outcome, "the coordinator was not told"),
                Err(_) => tracing::debug!(?outcome, "the coordinator was not told in time"),
            }
        });
    }
}

/// Whether this is told, with the agents that have failed so far.
fn is_news(failed: &mut Vec<String>, agent_id: &str, outcome: Outcome) -> bool {
    let known = failed.iter().position(|failed| failed == agent_id);
    match outcome {
        Outcome::Completed => known.map(|at| failed.remove(at)).is_some(),
        Outcome::Cancelled => known.is_some(),
        Outcome::Refused | Outcome::Unreachable | Outcome::Broken | Outcome::TimedOut => {
            if known.is_none() {
                if failed.len() >= MAX_AGENTS {
                    failed.remove(0);
                }
                failed.push(agent_id.to_owned());
            }
            true
        }
    }
}

/// What the coordinator is told of an error. In this client's words alone: an agent's own might repeat what it was asked.
pub(crate) fn message(error: &ClientError) -> Option<String> {
    match error {
        ClientError::Unreachable { reason, .. } => Some(reason.clone()),
        ClientError::Refused { code, .. } => Some(format!("it answered {code:?}")),
        ClientError::Broken { by: BrokenBy::Agent, code, .. } => Some(format!("it answered {code:?} in place of text")),
        ClientError::Broken { by: BrokenBy::Connection, .. } => Some("the connection was lost".to_owned()),
        ClientError::Broken { by: BrokenBy::Silence, .. } => Some("nothing came over the connection".to_owned()),
        ClientError::TimedOut { within, .. } => Some(format!("no text within {within:?}")),
        _ => None,
    }
}

fn shortened(message: &str) -> &str {
    let end = (0..=MAX_OUTCOME_MESSAGE_BYTES.min(message.len())).rev().find(|&at| message.is_char_boundary(at));
    &message[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_success_is_news_of_an_agent_that_has_failed_before() {
        let mut failed = Vec::new();
        for (agent, outcome, news) in [
            ("a", Outcome::Completed, false),
            ("a", Outcome::Cancelled, false),
            ("a", Outcome::Broken, true),
            ("a", Outcome::Unreachable, true),
            ("b", Outcome::Completed, false),
            ("a", Outcome::Cancelled, true),
            ("a", Outcome::Completed, true),
            ("a", Outcome::Completed, false),
        ] {
            assert_eq!(is_news(&mut failed, agent, outcome), news, "{agent} {outcome:?}");
        }
    }

    #[test]
    fn few_agents_are_remembered() {
        let mut failed = Vec::new();
        for agent in 0..=MAX_AGENTS {
            assert!(is_news(&mut failed, &agent.to_string(), Outcome::TimedOut));
        }
        assert_eq!((failed.len(), failed[0].as_str()), (MAX_AGENTS, "1"));
    }

    #[test]
    fn a_message_is_short_and_without_the_agents_words() {
        let error = ClientError::Refused {
            agent_id: "a".into(),
            code: tonic::Code::Unauthenticated,
            message: "you asked: my secret".into(),
            retry_after: None,
            reason: None,
        };
        assert_eq!(message(&error).as_deref(), Some("it answered Unauthenticated"));
        let long = "é".repeat(MAX_OUTCOME_MESSAGE_BYTES);
        assert_eq!(shortened(&format!("x{long}")).len(), MAX_OUTCOME_MESSAGE_BYTES - 1);
        assert_eq!(shortened("short"), "short");
    }
}
