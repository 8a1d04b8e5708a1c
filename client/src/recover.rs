//! Answers that break off: first the agent is asked to go on over another connection, then another agent is. PROTOCOL.md §15, §16.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tonic::Code;

use crate::{
    ClientError, CoordinatorError, Feature, TitanClient,
    agent::Agent,
    dial::Started,
    job::{Job, SoFar},
    resume,
    route::Route,
};

/// How often one answer may move: a prompt that brings its agent down must not bring all of them down.
pub(crate) const MAX_MOVES: usize = 3;
/// How long another agent is looked for: an agent that was restarted registers again within a few seconds.
const MOVE_TIME: Duration = Duration::from_secs(5);
/// Wait before the second try, twice that before the third, and so on: half of the shortest heartbeat interval is the longest.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const MAX_WAIT: Duration = Duration::from_millis(500);

/// An answer that broke off.
pub(crate) struct Broken {
    pub(crate) client: TitanClient,
    pub(crate) agent: Arc<Agent>,
    pub(crate) route: Arc<Route>,
    pub(crate) job: Arc<Job>,
    /// Messages of this job that have come.
    pub(crate) received: u64,
    /// What has come of the answer, also from agents before this one.
    pub(crate) so_far: SoFar,
    /// How often the answer has moved.
    pub(crate) moves: usize,
    /// The connection broke; otherwise the agent failed.
    pub(crate) lost: bool,
    pub(crate) error: ClientError,
}

/// How it goes on.
pub(crate) struct Recovered {
    pub(crate) started: Started,
    /// Where, if not where it was.
    pub(crate) moved: Option<Moved>,
}

/// Another agent, and what it was asked.
pub(crate) struct Moved {
    pub(crate) agent: Arc<Agent>,
    pub(crate) route: Arc<Route>,
    pub(crate) job: Arc<Job>,
}

impl Broken {
    /// Whether there is anything to try.
    pub(crate) fn is_recoverable(&self) -> bool {
        let features = self.client.features();
        !self.client.is_closed()
            && (self.lost && features.has(Feature::Resume) || features.has(Feature::Move) && self.moves < MAX_MOVES)
    }

    /// Gets the answer going again.
    ///
    /// # Errors
    /// Why it broke off, and why it does not go on.
    pub(crate) async fn recover(self) -> Result<Recovered, ClientError> {
        let features = self.client.features();
        let mut reasons = String::new();
        // Whether the agent itself may be asked to go on with what it has not kept.
        let mut failed = !self.lost;
        if self.lost && features.has(Feature::Resume) {
            let patience = if features.has(Feature::Move) { resume::BEFORE_MOVING } else { resume::RESUME_TIME };
            let resumed = resume::resume(&self.client, &self.agent, &self.route, &self.job, self.received, patience);
            // An attempt that gets no answer takes longer than there is time for.
            let resumed = tokio::time::timeout(patience, resumed).await.unwrap_or_else(|_| {
                let reason = format!("no answer within {} s", patience.as_secs());
                Err(ClientError::Unreachable { agent_id: self.agent.place.agent_id.clone(), reason, gone: false })
            });
            match resumed {
                Ok(started) => return Ok(Recovered { started, moved: None }),
                Err(error) => reasons = format!("; it could not be resumed: {error}"),
            }
        }
        if features.has(Feature::Move) && self.moves < MAX_MOVES {
            match self.so_far.obstacle(&self.job.prompt) {
                Some(obstacle) => reasons.push_str(&format!("; it cannot go on at another agent: {obstacle}")),
                None => match self.go_elsewhere(&mut failed).await {
                    Ok(recovered) => return Ok(recovered),
                    Err(error) => reasons.push_str(&format!("; it could not go on at another agent: {error}")),
                },
            }
        }
        Err(self.error.and_also(&reasons))
    }

    async fn go_elsewhere(&self, failed: &mut bool) -> Result<Recovered, ClientError> {
        let client = &self.client;
        client.forget_route(&self.route);
        let mut excluded = vec![self.route.place.agent_id.clone()];
        let job = Arc::new(self.job.after(self.so_far.clone()));
        let (begun, mut wait, mut failures) = (Instant::now(), FIRST_WAIT, 0);
        loop {
            let error = match self.try_elsewhere(&job, &mut excluded, *failed).await {
                Ok(recovered) => return Ok(recovered),
                Err(error) => error,
            };
            tracing::debug!(%error, "the answer has not moved yet");
            let pause = wait.mul_f64(rand::random_range(0.5..1.5));
            // An agent that failed at once counts as one that the answer moved to.
            failures += usize::from(matches!(error, ClientError::Broken { .. }));
            let enough = failures + self.moves >= MAX_MOVES || begun.elapsed() + pause > MOVE_TIME;
            if enough || !may_help(&error) || client.is_closed() {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            wait = (wait * 2).min(MAX_WAIT);
        }
    }

    async fn try_elsewhere(
        &self,
        job: &Arc<Job>,
        excluded: &mut Vec<String>,
        failed: bool,
    ) -> Result<Recovered, ClientError> {
        let client = &self.client;
        // What has begun goes on with the same weights, or not at all.
        let begun_with = if self.so_far.has_come() { self.so_far.model_digest.as_str() } else { "" };
        let route = client.ask_route(&job.prompt, excluded, begun_with).await?;
        let agent_id = &route.place.agent_id;
        let other_model = !begun_with.is_empty() && !route.model_digest.is_empty() && route.model_digest != begun_with;
        if other_model {
            let here = &route.model_digest;
            let message =
                format!("its model has the digest {here}, and the answer began with {begun_with}: another model");
            let (agent_id, code) = (agent_id.clone(), Code::FailedPrecondition);
            return Err(ClientError::Refused { agent_id, code, message, retry_after: None, reason: None });
        }
        if failed && *agent_id == self.route.place.agent_id {
            let message = "the coordinator knows no other agent than the one that failed".to_owned();
            let (agent_id, code) = (agent_id.clone(), Code::FailedPrecondition);
            return Err(ClientError::Refused { agent_id, code, message, retry_after: None, reason: None });
        }
        let agent = client.agent_at(&route);
        match resume::begin(client, &agent, &route, job).await {
            Ok(started) => {
                tracing::debug!(from = %self.route.place.agent_id, to = %agent_id, tokens = self.so_far.tokens(), "answer moved");
                client.count_moved(&route);
                Ok(Recovered { started, moved: Some(Moved { agent, route, job: job.clone() }) })
            }
            Err(error) => {
                if !excluded.contains(agent_id) {
                    excluded.push(agent_id.clone());
                }
                Err(error)
            }
        }
    }
}

/// Whether another try, at another agent or a moment later, may succeed.
fn may_help(error: &ClientError) -> bool {
    match error {
        ClientError::Coordinator(CoordinatorError::Unreachable { .. }) => true,
        ClientError::Coordinator(error) => error.retryable(),
        ClientError::Unreachable { .. } | ClientError::Broken { .. } => true,
        ClientError::Refused { code, .. } => matches!(code, Code::ResourceExhausted | Code::Unavailable),
        _ => false,
    }
}
