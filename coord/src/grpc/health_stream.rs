//! One agent's health stream: each update renews the lease and is acknowledged at once. Between the acknowledgements go hints of
//! requests whose clients are on their way (PROTOCOL.md §17), where that is on.
//!
//! Nothing runs beside it: the stream of acknowledgements, polled by the connection, reads the updates. An agent that reads no
//! acknowledgements is therefore read no further, and one that goes away drops everything here.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use futures_util::{Stream, stream};
use titan_proto::v1::{HealthAck, HealthUpdate, Prefill};
use titan_transport::seldom;
use tokio::time::{Instant as Moment, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::debug;

use crate::{
    agent_input,
    prefill::Inbox,
    registry::{HeartbeatError, Report, StreamId},
    routing::Dispatcher,
};

pub(crate) type AckStream = Pin<Box<dyn Stream<Item = Result<HealthAck, Status>> + Send>>;

pub(super) struct HealthStream {
    id: StreamId,
    /// The agent id in the certificate.
    name: String,
    updates: Streaming<HealthUpdate>,
    last_update: Moment,
    hints: Inbox,
    /// The process that has registered on it, if it tells.
    instance: String,
    dispatcher: Arc<Dispatcher>,
}

impl HealthStream {
    pub(super) fn new(
        id: StreamId,
        name: String,
        updates: Streaming<HealthUpdate>,
        dispatcher: Arc<Dispatcher>,
    ) -> Self {
        let hints = dispatcher.prefill.as_ref().map(|outboxes| outboxes.open(&name, id)).unwrap_or_default();
        Self { id, name, updates, last_update: Moment::now(), hints, instance: String::new(), dispatcher }
    }

    /// Ends after the first error, when the agent ends it, and at `shutdown`.
    pub(super) fn into_acks(self, shutdown: CancellationToken) -> AckStream {
        Box::pin(stream::unfold(Some(self), move |state| {
            let shutdown = shutdown.clone();
            async move {
                let mut stream = state?;
                let answer = tokio::select! {
                    () = shutdown.cancelled() => Err(Status::unavailable("the coordinator is shutting down: connect again")),
                    answer = stream.next() => answer?,
                };
                let rest = answer.is_ok().then_some(stream);
                Some((answer, rest))
            }
        }))
    }

    async fn next(&mut self) -> Option<Result<HealthAck, Status>> {
        let limit = self.dispatcher.heartbeat_timeout;
        let update = tokio::select! {
            update = timeout_at(self.last_update + limit, self.updates.message()) => update,
            prefill = self.hints.next() => return Some(Ok(self.hint(prefill))),
        };
        match update {
            Ok(Ok(Some(update))) => {
                self.last_update = Moment::now();
                Some(self.accept(update))
            }
            Ok(Ok(None)) => None,
            Ok(Err(error)) => {
                debug!(agent = self.name, %error, "health stream broke");
                None
            }
            // Its lease has ended by now; the stream only holds memory.
            Err(_) => Some(Err(Status::deadline_exceeded(format!("no update for {} s", limit.as_secs())))),
        }
    }

    /// The words of an acknowledgement, of no update: that is what an agent takes it for that does not know of hints.
    fn hint(&self, prefill: Prefill) -> HealthAck {
        HealthAck {
            agent_id: self.name.clone(),
            status: "ok".to_owned(),
            message: String::new(),
            timestamp: 0,
            heartbeat_interval_seconds: self.dispatcher.heartbeat_interval_seconds(),
            prefill: Some(prefill),
            ..HealthAck::default()
        }
    }

    fn accept(&mut self, update: HealthUpdate) -> Result<HealthAck, Status> {
        super::peer::speaks_for(&self.name, &update.agent_id)?;
        let refused = |error: agent_input::InputError| {
            seldom!(warn, agent = self.name, %error, "update refused");
            Status::invalid_argument(error.to_string())
        };
        let load = agent_input::load(&update).map_err(refused)?;
        let condition = agent_input::condition(&update).map_err(refused)?;
        let prefixes = agent_input::prefixes(&update).map_err(refused)?;
        let finished = agent_input::finished(&update).map_err(refused)?;
        let by_key = agent_input::running_by_key(&update).map_err(refused)?;
        let clock_unix_ms = unix_milliseconds(SystemTime::now());
        let clock_ahead_ms = agent_input::clock_ahead_ms(&update, clock_unix_ms);
        if let Some(registration) = update.registration {
            self.instance.clone_from(&registration.instance);
            self.dispatcher.register(&self.name, registration, Some(self.id))?;
        }
        let now = Instant::now();
        let (claimed, instance) = (&update.claimed_job_ids, &self.instance);
        let report = Report { claimed, condition, prefixes, instance, clock_ahead_ms };
        let accepted = self.dispatcher.registry.lock().heartbeat(&self.name, self.id, load, report, now);
        let (status, message) = match accepted {
            Ok(()) => {
                self.dispatcher.access.runs(&self.name, &update.claimed_job_ids, by_key);
                self.dispatcher.room_at(&self.name);
                ("ok", String::new())
            }
            Err(error @ HeartbeatError::Unregistered { .. }) => ("unregistered", error.to_string()),
            Err(error @ HeartbeatError::Replaced { .. }) => {
                seldom!(warn, agent = self.name, %error, "health stream replaced");
                return Err(Status::aborted(error.to_string()));
            }
            Err(error @ HeartbeatError::OtherProcess { .. }) => {
                seldom!(warn, agent = self.name, %error, "health stream replaced");
                return Err(super::replaced(error.to_string()));
            }
        };
        // What was generated was, whatever becomes of the agent; and with the acknowledgement it is not told again.
        self.dispatcher.account(&self.name, finished, now);
        Ok(HealthAck {
            agent_id: update.agent_id,
            status: status.to_owned(),
            message,
            timestamp: update.timestamp,
            heartbeat_interval_seconds: self.dispatcher.heartbeat_interval_seconds(),
            prefill: None,
            clock_unix_ms,
            clock_skew_ms: clock_ahead_ms.unwrap_or(0),
        })
    }
}

fn unix_milliseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

impl Drop for HealthStream {
    fn drop(&mut self) {
        if let Some(outboxes) = &self.dispatcher.prefill {
            outboxes.close(&self.name, self.id);
        }
        if self.dispatcher.registry.lock().stream_closed(&self.name, self.id, Instant::now()) {
            self.dispatcher.access.gone(&self.name);
            seldom!(info, agent = self.name, "health stream closed: no requests until it reports again");
        }
    }
}
