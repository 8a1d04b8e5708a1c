//! Runs whose connection was lost, at the agent that has them: PROTOCOL.md §15.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use crate::{
    ClientError, TitanClient,
    connections::AgentConnections,
    job::Job,
    policy::{Fault, KEPT_TIME, resume_after},
    route::Lease,
    search::{Found, luck},
};

/// A run whose connection was lost.
pub(crate) struct LostRun {
    pub(crate) agent: Arc<AgentConnections>,
    pub(crate) lease: Lease,
    pub(crate) job: Arc<Job>,
    /// How long the coordinator took to name the agent, where it was asked.
    pub(crate) routing: Option<Duration>,
    /// The number of the message to go on with. None where the request may not even have come.
    pub(crate) from: Option<u64>,
}

/// A lost run that is being resumed.
pub(crate) type Resuming = Pin<Box<dyn Future<Output = Result<Found, ClientError>> + Send>>;

/// Has the agent of a lost run go on with it, over whichever wire works now. Asks until the deadline, and no longer than the agent may keep it.
pub(crate) fn resume(client: &TitanClient, run: LostRun, deadline: Instant) -> Resuming {
    let (client, until) = (client.clone(), deadline.min(Instant::now() + KEPT_TIME));
    Box::pin(async move {
        let LostRun { agent, lease, job, routing, mut from } = run;
        let mut faults = 0;
        loop {
            let token = lease.route().token.as_str();
            let request = match from {
                // The agent runs it once, however often it comes.
                None => job.request(token, client.features()),
                Some(from) => job.resumption(token, from),
            };
            let error = match client.dialer().start(&agent, request).await {
                Ok(started) => {
                    if from.is_some() {
                        client.count_resumed();
                    }
                    let agent_id = &agent.place.agent_id;
                    tracing::debug!(agent = %agent_id, ?from, wire = started.wire.as_str(), "the answer goes on there");
                    return Ok(Found { started, agent, lease, job, routing, same_run: true });
                }
                Err(ClientError::AlreadyRan { .. }) if from.is_none() => {
                    from = Some(0);
                    continue;
                }
                Err(error) => error,
            };
            faults += 1;
            let wait: Option<Duration> = resume_after(Fault::of(&error), faults, Instant::now(), until, luck());
            tracing::debug!(%error, ?from, ?wait, "not resumed");
            match wait.filter(|_| !client.is_closed()) {
                Some(wait) => sleep(wait).await,
                None => return Err(error),
            }
        }
    })
}

/// The end of what is resumed, which is not there any more afterwards. Never, where nothing is.
pub(crate) async fn until_resumed(resuming: &mut Option<Resuming>) -> Result<Found, ClientError> {
    let Some(running) = resuming else { return std::future::pending().await };
    let result = running.await;
    *resuming = None;
    result
}
