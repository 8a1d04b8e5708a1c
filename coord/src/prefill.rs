//! Prefill ahead (PROTOCOL.md §17): the agent that was chosen for a request hears of it while the client is still on its way.
//!
//! A hint and no more. It waits in a short queue for its agent's health stream; what finds no room there, or gets old in it, is dropped,
//! and the request goes on as without. Prompts pass through here, so nothing in here is logged and nothing has a `Debug`.

use std::{
    collections::HashMap,
    future,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use titan_proto::{MAX_PROMPT_BYTES, conversation::text_bytes, v1::Prefill};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::registry::StreamId;

/// Hints that wait for one agent. One that reads its stream is hardly ever behind by more than a burst of requests.
const MAX_QUEUED: usize = 16;
/// Bytes of prompts that wait, for all agents together: agents that do not read cannot fill the memory, however many they are.
const MAX_QUEUED_BYTES: usize = 32 * MAX_PROMPT_BYTES;
/// A hint that waited longer is not sent: its client is there by now, or has gone elsewhere.
const MAX_AGE: Duration = Duration::from_secs(1);

/// The queues of all agents that have a health stream.
pub(crate) struct Outboxes {
    /// By the agent's id. Held for lookups only.
    streams: Mutex<HashMap<String, Outbox>>,
    /// Bytes that may still be queued.
    room: Arc<Semaphore>,
}

struct Outbox {
    stream: StreamId,
    queue: mpsc::Sender<Queued>,
}

struct Queued {
    prefill: Prefill,
    since: Instant,
    _room: OwnedSemaphorePermit,
}

/// The other end of an agent's queue. The default one stays empty.
#[derive(Default)]
pub(crate) struct Inbox(Option<mpsc::Receiver<Queued>>);

impl Default for Outboxes {
    fn default() -> Self {
        Self { streams: Mutex::default(), room: Arc::new(Semaphore::new(MAX_QUEUED_BYTES)) }
    }
}

impl Outboxes {
    /// The queue of an agent's new health stream, in place of that of an older one.
    pub(crate) fn open(&self, agent_id: &str, stream: StreamId) -> Inbox {
        let mut streams = self.streams.lock();
        if streams.get(agent_id).is_some_and(|outbox| outbox.stream > stream) {
            return Inbox::default();
        }
        let (queue, inbox) = mpsc::channel(MAX_QUEUED);
        streams.insert(agent_id.to_owned(), Outbox { stream, queue });
        Inbox(Some(inbox))
    }

    /// The stream is gone.
    pub(crate) fn close(&self, agent_id: &str, stream: StreamId) {
        let mut streams = self.streams.lock();
        if streams.get(agent_id).is_some_and(|outbox| outbox.stream == stream) {
            streams.remove(agent_id);
        }
    }

    /// Queues a hint. `false` if it was dropped, because the agent has no stream or there is no room.
    pub(crate) fn offer(&self, agent_id: &str, prefill: Prefill, now: Instant) -> bool {
        let streams = self.streams.lock();
        let Some(outbox) = streams.get(agent_id) else { return false };
        let request = prefill.request.as_ref().map_or(0, |request| text_bytes(&request.messages, &request.tools));
        let bytes = prefill.prompt.len() + text_bytes(&prefill.messages, &prefill.tools) + request;
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(bytes) else { return false };
        outbox.queue.try_send(Queued { prefill, since: now, _room: room }).is_ok()
    }
}

impl Inbox {
    /// The next hint that is still worth sending. Waits for it without end; losing the future loses no hint.
    pub(crate) async fn next(&mut self) -> Prefill {
        let Some(queue) = &mut self.0 else { return future::pending().await };
        while let Some(queued) = queue.recv().await {
            if queued.since.elapsed() <= MAX_AGE {
                return queued.prefill;
            }
        }
        // A newer stream has taken its place.
        future::pending().await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use futures_util::FutureExt as _;
    use titan_proto::v1::Message;

    use super::*;

    fn prefill(job_id: &str) -> Prefill {
        Prefill { job_id: job_id.to_owned(), prompt: "hello".to_owned(), ..Prefill::default() }
    }

    /// The jobs of which `inbox` has heard.
    fn jobs(inbox: &mut Inbox) -> Vec<String> {
        std::iter::from_fn(|| inbox.next().now_or_never()).map(|prefill| prefill.job_id).collect()
    }

    #[test]
    fn hints_come_in_order_to_the_agent_that_was_chosen() {
        let (outboxes, now) = (Outboxes::default(), Instant::now());
        let (mut one, mut two) = (outboxes.open("agent-1", StreamId(0)), outboxes.open("agent-2", StreamId(1)));
        for (agent, job) in [("agent-1", "a"), ("agent-2", "b"), ("agent-1", "c")] {
            assert!(outboxes.offer(agent, prefill(job), now));
        }
        assert!(!outboxes.offer("agent-3", prefill("d"), now), "an agent without a stream hears nothing");
        assert_eq!((jobs(&mut one), jobs(&mut two)), (vec!["a".to_owned(), "c".to_owned()], vec!["b".to_owned()]));
    }

    #[test]
    fn an_agent_that_does_not_read_misses_what_does_not_fit() {
        let (outboxes, now) = (Outboxes::default(), Instant::now());
        let mut inbox = outboxes.open("agent-1", StreamId(0));
        for job in 0..MAX_QUEUED {
            assert!(outboxes.offer("agent-1", prefill(&job.to_string()), now));
        }
        assert!(!outboxes.offer("agent-1", prefill("one more"), now));
        assert_eq!(jobs(&mut inbox).len(), MAX_QUEUED);
        assert!(outboxes.offer("agent-1", prefill("now there is room"), now));
    }

    #[test]
    fn the_bytes_that_wait_are_bounded_over_all_agents_and_come_free_again() {
        let (outboxes, now) = (Outboxes::default(), Instant::now());
        let text = "x".repeat(MAX_PROMPT_BYTES / 2);
        let (prompt, messages) = (text.clone(), vec![Message::user(text)]);
        let large = || Prefill { prompt: prompt.clone(), messages: messages.clone(), ..Prefill::default() };
        let agents: Vec<String> = (0..4).map(|n| format!("agent-{n}")).collect();
        let inboxes: Vec<Inbox> = agents.iter().map(|agent| outboxes.open(agent, StreamId(0))).collect();
        let offered = agents.iter().flat_map(|agent| std::iter::repeat_n(agent, MAX_QUEUED));
        let taken = offered.filter(|agent| outboxes.offer(agent, large(), now)).count();
        assert_eq!(taken, MAX_QUEUED_BYTES / MAX_PROMPT_BYTES);
        assert!(taken < agents.len() * MAX_QUEUED);
        drop(inboxes);
        let _inbox = outboxes.open("agent-0", StreamId(1));
        assert!(outboxes.offer("agent-0", large(), now), "what a lost stream held is free");
    }

    #[test]
    fn a_hint_that_waited_too_long_is_not_sent() {
        let outboxes = Outboxes::default();
        let mut inbox = outboxes.open("agent-1", StreamId(0));
        let now = Instant::now();
        assert!(outboxes.offer("agent-1", prefill("old"), now.checked_sub(MAX_AGE * 2).unwrap()));
        assert!(outboxes.offer("agent-1", prefill("new"), now));
        assert_eq!(jobs(&mut inbox), ["new"]);
    }

    #[test]
    fn the_newest_stream_hears_and_the_end_of_an_older_one_changes_nothing() {
        let (outboxes, now) = (Outboxes::default(), Instant::now());
        let mut old = outboxes.open("agent-1", StreamId(1));
        let mut new = outboxes.open("agent-1", StreamId(2));
        let mut late = outboxes.open("agent-1", StreamId(0));
        outboxes.close("agent-1", StreamId(1));
        assert!(outboxes.offer("agent-1", prefill("a"), now));
        assert_eq!((jobs(&mut old).len(), jobs(&mut late).len(), jobs(&mut new).len()), (0, 0, 1));
        outboxes.close("agent-1", StreamId(2));
        assert!(!outboxes.offer("agent-1", prefill("b"), now));
    }
}
