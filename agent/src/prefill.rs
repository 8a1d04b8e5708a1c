//! Prefill ahead (PROTOCOL.md §17): a prompt is begun before its client has come.
//!
//! The coordinator names the request that it has just routed here. If there is nothing better to do, its generation begins at once and
//! waits; the client that comes with the same request takes it over, and what was computed meanwhile is off its time to the first token.
//!
//! A prefill has no slot and claims no job: the coordinator's booking stands for it until the client comes, as without. It uses room that is
//! free and gives way to every request that comes ([`Table::make_room`], [`Table::give_up`]), so no capacity is lost by it, in the
//! coordinator's eyes or here. Nothing here logs a prompt.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use titan_proto::v1::{Prefill, StreamRequest};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    admission::Admission,
    engine::{Engine, EngineError, Generate, TokenStream},
    options,
};

/// Prefills that wait for their clients at once. They take free slots, so there are hardly more than that; this bounds the table where an
/// agent has thousands.
const MAX_PREFILLS: usize = 64;
/// Bytes of their prompts together: some of the largest.
const MAX_PREFILL_BYTES: usize = 16 << 20;
/// How long a job is remembered whose client has come: a hint that comes later was overtaken on the way. The coordinator sends none that is
/// older than a second.
const REMEMBER: Duration = Duration::from_secs(10);
/// Jobs remembered at most: 400 new ones a second.
const MAX_REMEMBERED: usize = 4_096;

/// The prefills of an agent.
pub(crate) struct Prefills {
    engine: Arc<dyn Engine>,
    /// The models to serve.
    models: Vec<String>,
    admission: Admission,
    /// Ends what still runs when the drain is over.
    abort: CancellationToken,
    table: Mutex<Table<Begun>>,
    /// How long one waits for its client.
    wait: Duration,
}

/// A generation that was begun ahead. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Begun(JoinHandle<Result<TokenStream, EngineError>>);

impl Drop for Begun {
    fn drop(&mut self) {
        // A finished task's stream is dropped with the handle.
        self.0.abort();
    }
}

impl Prefills {
    pub(crate) fn new(
        engine: Arc<dyn Engine>,
        models: Vec<String>,
        admission: Admission,
        abort: CancellationToken,
        wait: Duration,
    ) -> Self {
        Self { engine, models, admission, abort, table: Mutex::default(), wait }
    }

    /// Drops all of them.
    pub(crate) fn clear(&self) {
        self.table.lock().make_room(0);
    }

    /// Begins with a prompt whose client is on its way, if that disturbs nobody. It is only a hint: where it cannot be followed, nothing happens.
    pub(crate) fn begin(self: &Arc<Self>, prefill: Prefill) {
        let job_id = prefill.job_id.clone();
        match self.try_begin(prefill) {
            Ok(()) => tracing::debug!(job_id, "prompt begun ahead"),
            Err(reason) => tracing::debug!(job_id, %reason, "no prefill ahead"),
        }
    }

    fn try_begin(self: &Arc<Self>, prefill: Prefill) -> Result<(), Declined> {
        let Prefill { job_id, model, prompt, max_tokens, temperature, options, messages, tools, client_id, request } =
            prefill;
        if !self.models.contains(&model) {
            return Err(Declined::Invalid);
        }
        // The way of the request itself, so that the two are equal where their fields are. The reason of a refusal may quote a value.
        let parts =
            StreamRequest { prompt, max_tokens, temperature, options, messages, tools, ..StreamRequest::default() };
        let request = request.unwrap_or(parts);
        let generate = options::generate(request, model, &client_id).map_err(|_| Declined::Invalid)?;
        if self.engine.queued() > 0 || !self.engine.idle(&generate.model) {
            return Err(Declined::Busy);
        }
        let mut table = self.table.lock();
        // Under the lock, as in `claim`: of two that see the last free slot, one sees the other.
        let load = self.admission.load();
        if load.draining {
            return Err(Declined::Busy);
        }
        let free = self.admission.max_jobs().saturating_sub(load.running);
        let now = Instant::now();
        let (engine, asked) = (Arc::clone(&self.engine), generate.clone());
        let begin = || Begun(tokio::spawn(async move { engine.generate(asked).await }));
        table.begin(job_id, generate, free, (now, now + self.wait), begin)?;
        drop(table);
        let prefills = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(prefills.wait).await;
            prefills.table.lock().expire(Instant::now());
        });
        Ok(())
    }

    /// The client of `job_id` has come and has been admitted: gives it what was begun for it, if that is what it asks for. Other prefills give
    /// way to it where the room is not enough for both.
    pub(crate) fn claim(&self, job_id: &str, request: &Generate) -> Option<Begun> {
        let mut table = self.table.lock();
        let begun = table.claim(job_id, request, Instant::now());
        table.make_room(self.admission.max_jobs().saturating_sub(self.admission.load().running));
        if begun.is_none() && !table.is_empty() && !self.engine.idle(&request.model) {
            table.give_up(&request.model);
        }
        begun
    }

    /// The stream of what was begun ahead. `None` where that has failed: the request is then run as any other.
    pub(crate) async fn taken_over(&self, begun: Option<Begun>) -> Option<TokenStream> {
        let mut begun = begun?;
        tokio::select! {
            started = &mut begun.0 => match started {
                Ok(Ok(tokens)) => Some(tokens),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a prefill ahead failed");
                    None
                }
                Err(_) => None,
            },
            () = self.abort.cancelled() => None,
        }
    }
}

/// Why a prompt was not begun ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Declined {
    #[error("its model or its options are not accepted here")]
    Invalid,
    #[error("the agent is busy")]
    Busy,
    #[error("{MAX_PREFILLS} wait already, or {MAX_PREFILL_BYTES} bytes of them")]
    Full,
    #[error("it is there already")]
    Known,
    #[error("its client was faster")]
    Late,
}

/// What waits for its client. Pure: `T` is what was begun, and time is an argument.
struct Table<T> {
    /// The oldest first.
    waiting: VecDeque<Waiting<T>>,
    /// Of the prompts.
    bytes: usize,
    came: Came,
}

struct Waiting<T> {
    job_id: String,
    request: Generate,
    until: Instant,
    begun: T,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), bytes: 0, came: Came::default() }
    }
}

impl<T> Table<T> {
    fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Has a request begun where there is room. `free`: slots that no request has. `times`: now, and when it is given up.
    fn begin(
        &mut self,
        job_id: String,
        request: Generate,
        free: usize,
        (now, until): (Instant, Instant),
        begin: impl FnOnce() -> T,
    ) -> Result<(), Declined> {
        self.expire(now);
        let bytes = request.prompt_bytes();
        if self.came.contains(&job_id, now) {
            return Err(Declined::Late);
        }
        if self.waiting.iter().any(|waiting| waiting.job_id == job_id) {
            return Err(Declined::Known);
        }
        if self.waiting.len() >= free {
            return Err(Declined::Busy);
        }
        if self.waiting.len() >= MAX_PREFILLS || self.bytes + bytes > MAX_PREFILL_BYTES {
            return Err(Declined::Full);
        }
        self.bytes += bytes;
        self.waiting.push_back(Waiting { job_id, request, until, begun: begin() });
        Ok(())
    }

    /// The client has come. What it asks for otherwise than was said is dropped.
    fn claim(&mut self, job_id: &str, request: &Generate, now: Instant) -> Option<T> {
        self.came.note(job_id, now);
        self.expire(now);
        let position = self.waiting.iter().position(|waiting| waiting.job_id == job_id)?;
        let waiting = self.waiting.remove(position)?;
        self.bytes -= waiting.request.prompt_bytes();
        (waiting.request == *request).then_some(waiting.begun)
    }

    /// Keeps so many at most. The oldest goes first: its client is the least likely to come.
    fn make_room(&mut self, most: usize) {
        let beyond = self.waiting.len().saturating_sub(most);
        let dropped = self.waiting.drain(..beyond);
        self.bytes -= dropped.map(|waiting| waiting.request.prompt_bytes()).sum::<usize>();
    }

    /// Drops all of a model.
    fn give_up(&mut self, model: &str) {
        self.retain(|waiting| waiting.request.model != model);
    }

    fn expire(&mut self, now: Instant) {
        self.retain(|waiting| waiting.until > now);
    }

    fn retain(&mut self, keep: impl Fn(&Waiting<T>) -> bool) {
        self.waiting.retain(keep);
        self.bytes = self.waiting.iter().map(|waiting| waiting.request.prompt_bytes()).sum();
    }
}

/// The jobs whose clients have come in the last seconds.
#[derive(Default)]
struct Came {
    jobs: HashSet<Arc<str>>,
    order: VecDeque<(Instant, Arc<str>)>,
}

impl Came {
    fn note(&mut self, job_id: &str, now: Instant) {
        self.forget(now);
        if self.jobs.contains(job_id) {
            return;
        }
        if self.order.len() == MAX_REMEMBERED
            && let Some((_, oldest)) = self.order.pop_front()
        {
            self.jobs.remove(&oldest);
        }
        let job_id: Arc<str> = job_id.into();
        self.jobs.insert(Arc::clone(&job_id));
        self.order.push_back((now, job_id));
    }

    fn contains(&mut self, job_id: &str, now: Instant) -> bool {
        self.forget(now);
        self.jobs.contains(job_id)
    }

    fn forget(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(since, _)| now.saturating_duration_since(*since) >= REMEMBER) {
            if let Some((_, job_id)) = self.order.pop_front() {
                self.jobs.remove(&job_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use titan_proto::v1::{Message, Tool, ToolCall};

    use super::*;
    use crate::engine::Sampling;

    const WAIT: Duration = Duration::from_secs(2);

    fn request(prompt: &str) -> Generate {
        Generate::new("m", prompt, Sampling::greedy(10))
    }

    fn begin(table: &mut Table<u32>, job_id: &str, free: usize, now: Instant) -> Result<(), Declined> {
        table.begin(job_id.to_owned(), request("hello"), free, (now, now + WAIT), || 7)
    }

    #[test]
    fn the_same_request_takes_over_what_was_begun_and_only_once() {
        let (mut table, now) = (Table::default(), Instant::now());
        begin(&mut table, "a", 4, now).unwrap();
        assert_eq!(table.claim("b", &request("hello"), now), None, "another job");
        assert_eq!(table.claim("a", &request("hello"), now), Some(7));
        assert_eq!(table.claim("a", &request("hello"), now), None);
        assert_eq!((table.waiting.len(), table.bytes), (0, 0));
    }

    #[test]
    fn any_difference_drops_what_was_begun() {
        let now = Instant::now();
        let differing = [
            Generate { model: "n".to_owned(), ..request("hello") },
            request("hello!"),
            Generate { sampling: Sampling::greedy(11), ..request("hello") },
            Generate { sampling: Sampling { temperature: 0.1, ..Sampling::greedy(10) }, ..request("hello") },
            Generate { sampling: Sampling { seed: Some(0), ..Sampling::greedy(10) }, ..request("hello") },
            Generate { messages: vec![Message::system("hello")], ..request("hello") },
            Generate { tools: vec![Tool::default()], ..request("hello") },
            Generate { logprobs: Some(0), ..request("hello") },
            Generate { owner: "another client".to_owned(), ..request("hello") },
        ];
        for other in differing {
            let mut table = Table::default();
            begin(&mut table, "a", 4, now).unwrap();
            assert_eq!(table.claim("a", &other, now), None);
            assert!(table.is_empty());
        }
    }

    #[test]
    fn a_client_that_does_not_come_in_time_finds_nothing() {
        let (mut table, now) = (Table::default(), Instant::now());
        begin(&mut table, "a", 4, now).unwrap();
        table.expire(now + WAIT - Duration::from_millis(1));
        assert!(!table.is_empty());
        assert_eq!(table.claim("a", &request("hello"), now + WAIT), None);
        assert_eq!((table.waiting.len(), table.bytes), (0, 0));
    }

    #[test]
    fn a_hint_that_its_client_has_overtaken_begins_nothing() {
        let (mut table, now) = (Table::default(), Instant::now());
        assert_eq!(table.claim("a", &request("hello"), now), None);
        assert_eq!(begin(&mut table, "a", 4, now), Err(Declined::Late));
        assert_eq!(begin(&mut table, "a", 4, now + REMEMBER), Ok(()), "it is forgotten after a while");
        assert_eq!(begin(&mut table, "a", 4, now + REMEMBER), Err(Declined::Known));
    }

    #[test]
    fn prefills_take_free_slots_only_and_the_oldest_gives_way_first() {
        let (mut table, now) = (Table::default(), Instant::now());
        for job in ["a", "b"] {
            begin(&mut table, job, 2, now).unwrap();
        }
        assert_eq!(begin(&mut table, "c", 2, now), Err(Declined::Busy));
        table.make_room(2);
        assert_eq!(table.waiting.len(), 2);
        table.make_room(1);
        assert_eq!(table.claim("a", &request("hello"), now), None);
        assert_eq!(table.claim("b", &request("hello"), now), Some(7));
    }

    #[test]
    fn a_model_without_an_idle_sequence_drops_its_prefills_and_no_others() {
        let (mut table, now) = (Table::default(), Instant::now());
        begin(&mut table, "a", 4, now).unwrap();
        table.give_up("n");
        assert!(!table.is_empty());
        table.give_up("m");
        assert!(table.is_empty());
    }

    #[test]
    fn all_that_a_conversation_says_counts() {
        let half = "x".repeat(MAX_PREFILL_BYTES / 2 + 1);
        let calling = ToolCall { arguments: half.clone(), ..ToolCall::default() };
        for large in [
            Generate { messages: vec![Message { tool_calls: vec![calling], ..Message::default() }], ..request("") },
            Generate { tools: vec![Tool { description: half.clone(), ..Tool::default() }], ..request("") },
            Generate { messages: vec![Message::user("a"), Message::assistant(half.as_str())], ..request("") },
        ] {
            let (mut table, now) = (Table::default(), Instant::now());
            let times = (now, now + WAIT);
            table.begin("a".to_owned(), large.clone(), 4, times, || 1).unwrap();
            assert_eq!(table.begin("b".to_owned(), large.clone(), 4, times, || 2), Err(Declined::Full));
            assert_eq!(table.claim("a", &large, now), Some(1));
            assert_eq!(table.bytes, 0);
        }
    }

    #[test]
    fn their_number_and_their_bytes_are_bounded() {
        let (mut table, now) = (Table::default(), Instant::now());
        for job in 0..MAX_PREFILLS {
            begin(&mut table, &job.to_string(), usize::MAX, now).unwrap();
        }
        assert_eq!(begin(&mut table, "one more", usize::MAX, now), Err(Declined::Full));
        let large = request(&"x".repeat(MAX_PREFILL_BYTES / 2 + 1));
        let mut table = Table::default();
        let times = (now, now + WAIT);
        table.begin("a".to_owned(), large.clone(), 4, times, || 1).unwrap();
        assert_eq!(table.begin("b".to_owned(), large, 4, times, || 2), Err(Declined::Full));
    }

    #[test]
    fn the_memory_of_jobs_that_came_is_bounded() {
        let (mut came, now) = (Came::default(), Instant::now());
        for job in 0..=MAX_REMEMBERED {
            came.note(&job.to_string(), now);
        }
        assert_eq!((came.jobs.len(), came.order.len()), (MAX_REMEMBERED, MAX_REMEMBERED));
        assert!(!came.contains("0", now) && came.contains("1", now));
        came.forget(now + REMEMBER);
        assert!(came.jobs.is_empty() && came.order.is_empty());
    }

    proptest! {
        /// Whatever comes in whatever order: never more than the slots that were free, no byte miscounted, each given out once at most.
        #[test]
        fn the_books_balance(steps in prop::collection::vec((0u8..5, 0u8..6, 0usize..4, 0u64..1500), 0..60)) {
            let (mut table, mut now) = (Table::default(), Instant::now());
            let (mut begun, mut taken) = (0u32, HashSet::new());
            for (action, job, free, pause) in steps {
                now += Duration::from_millis(pause);
                let (job, prompt) = (job.to_string(), "x".repeat(usize::from(job) + 1));
                match action {
                    0 | 1 => {
                        let before = table.waiting.len();
                        let made = table.begin(job, request(&prompt), free, (now, now + WAIT), || { begun += 1; begun });
                        prop_assert!(made.is_err() || table.waiting.len() <= free.max(before));
                    }
                    2 => {
                        if let Some(number) = table.claim(&job, &request(&prompt), now) {
                            prop_assert!(taken.insert(number), "given out twice");
                        }
                    }
                    3 => {
                        table.make_room(free);
                        prop_assert!(table.waiting.len() <= free);
                    }
                    _ => table.expire(now),
                }
                prop_assert_eq!(table.bytes, table.waiting.iter().map(|waiting| waiting.request.prompt_bytes()).sum::<usize>());
                prop_assert!(table.waiting.iter().all(|waiting| !taken.contains(&waiting.begun)));
            }
            table.expire(now + WAIT);
            prop_assert!(table.is_empty() && table.bytes == 0);
        }
    }
}
