//! Answers whose connection is lost: PROTOCOL.md §15.
//!
//! The agent keeps such an answer for a while. A request with the same token and nonce, and the number of the messages that have come,
//! continues it over whichever wire works now.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tonic::Code;

use crate::{ClientError, Feature, Processed, TitanClient, agent::Agent, dial::Started, job::Job, route::Route};

/// How long the agent keeps an answer. It may have noticed later than this side.
pub(crate) const RESUME_TIME: Duration = Duration::from_secs(30);
/// How long the agent is tried before another one is asked: enough for a handshake over the longest path, or a lost first packet. When
/// this side's network is what is missing, the coordinator cannot be asked either.
pub(crate) const BEFORE_MOVING: Duration = Duration::from_secs(2);
/// Wait before the second try, twice that before the third, and so on: a network interface that comes up takes a second or so.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// Longest wait between two tries: the pause in the text goes on that much longer than need be, at most.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// Has a request answered by `agent`. Where its answer is lost before it begins, or was lost on a wire tried before, it is resumed.
pub(crate) async fn begin(
    client: &TitanClient,
    agent: &Arc<Agent>,
    route: &Route,
    job: &Job,
) -> Result<Started, ClientError> {
    let request = || job.request(&route.token, client.features());
    let mut result = client.dialer().start(agent, request()).await;
    if !client.features().has(Feature::Resume) || client.is_closed() {
        return result;
    }
    // The agent runs it once, however often it comes.
    if let Err(ClientError::Broken { code: Code::Unavailable, processed: Processed::Maybe, .. }) = result {
        result = client.dialer().start(agent, request()).await;
    }
    match result {
        Err(ran @ ClientError::AlreadyRan { .. }) => {
            resume(client, agent, route, job, 0, RESUME_TIME).await.map_err(|_| ran)
        }
        result => result,
    }
}

/// Continues an answer from message number `from` on. Tries again for so long where the way to the agent is what is missing.
pub(crate) async fn resume(
    client: &TitanClient,
    agent: &Arc<Agent>,
    route: &Route,
    job: &Job,
    from: u64,
    patience: Duration,
) -> Result<Started, ClientError> {
    let begun = Instant::now();
    let mut wait = FIRST_WAIT;
    loop {
        let error = match client.dialer().start(agent, job.resumption(&route.token, from)).await {
            Ok(started) => {
                client.count_resumed();
                tracing::debug!(agent = %route.place.agent_id, from, wire = started.wire.as_str(), "answer resumed");
                return Ok(started);
            }
            Err(error) => error,
        };
        tracing::debug!(%error, from, "not resumed");
        let again = may_come_back(&error) && !client.is_closed() && begun.elapsed() + wait < patience;
        if !again {
            return Err(error);
        }
        tokio::time::sleep(wait.mul_f64(rand::random_range(0.5..1.5))).await;
        wait = (wait * 2).min(MAX_WAIT);
    }
}

/// Whether the way to the agent is what is missing.
fn may_come_back(error: &ClientError) -> bool {
    match error {
        ClientError::Unreachable { gone, .. } => !gone,
        ClientError::Broken { code, .. } => *code == Code::Unavailable,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lost_way_is_tried_again() {
        let unreachable = |gone| ClientError::Unreachable { agent_id: "a".into(), reason: String::new(), gone };
        let refused = |code| ClientError::Refused {
            agent_id: "a".into(),
            code,
            message: String::new(),
            retry_after: None,
            reason: None,
        };
        assert!(may_come_back(&unreachable(false)));
        assert!(!may_come_back(&unreachable(true)), "nobody listens: what it kept is lost with it");
        for code in [Code::NotFound, Code::InvalidArgument, Code::Unavailable] {
            assert!(!may_come_back(&refused(code)), "{code:?}");
        }
    }
}
