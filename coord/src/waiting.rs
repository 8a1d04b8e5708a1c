//! Requests that found no room wait here, in the order of [`queue`](crate::queue), until an agent has room or their patience is over.
//!
//! What they wait for is learnt from events: a heartbeat, an agent that registers, a slot that is given back; and once a second, because
//! bookings run out and circuit breakers half open with time alone. A request whose client hangs up is dropped, and leaves with that.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    sync::oneshot,
    time::{Instant as Moment, timeout},
};

use crate::{
    caller::{Asker, Who},
    queue::{MAX_WAITING, Place, Queue, Ticket},
    registry::{BookError, Booked, Registry, Wanted},
    routing::Dispatcher,
};

/// How long a request waits that does not say: shorter than the 10 s after which scripts commonly give up, and long enough for a burst to pass.
pub(crate) const DEFAULT_PATIENCE: Duration = Duration::from_secs(5);
/// The same at the front door, where no client can say how long, and each is one of a language model: their packages wait for minutes.
pub(crate) const FRONT_DOOR_PATIENCE: Duration = Duration::from_secs(30);
/// The longest wait that is granted: a connection that is silent for longer is dropped by many a network on the way.
pub(crate) const MAX_PATIENCE: Duration = Duration::from_secs(10 * 60);
/// Header and metadata of an answer: how many were to be served up to this one when it joined; of a refusal, when it gave up.
pub(crate) const QUEUE_POSITION: &str = "x-titan-queue-position";
/// Header and metadata: how many milliseconds it waited.
pub(crate) const QUEUE_WAIT: &str = "x-titan-queue-wait-ms";
/// Requests of one line that are tried at an event: the first may want what others do not, such as a model with a certain digest.
const MAX_TRIED: usize = 16;

/// Those who wait.
pub(crate) struct Waiting {
    /// Held before the registry's lock, never while that is held.
    queue: Mutex<Queue<Waiter>>,
    /// Of the queue, to be read without its lock: most of the time nobody waits.
    len: AtomicUsize,
}

/// What a request waits for, and where it is told.
struct Waiter {
    model: Arc<str>,
    model_digest: String,
    except: Vec<String>,
    conversation: Vec<u64>,
    who: Who,
    job_id: String,
    answer: oneshot::Sender<Result<Booked, NoRoom>>,
}

/// Where in the queue a request was, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Queued {
    /// 1 is the next.
    pub(crate) position: usize,
    pub(crate) wait: Duration,
}

/// Why a request got no slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// None was to be had, waiting or not.
    Never(BookError),
    /// It would not wait.
    AtOnce,
    /// It waited for as long as it would.
    InTime(Queued),
    /// As many wait as may, and this one counts no more than they do.
    QueueFull,
}

/// Reads as the end of "every agent that serves the model is full".
impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never(_) | Self::AtOnce => Ok(()),
            Self::InTime(Queued { position, wait }) => {
                write!(f, ", and after {} ms in the queue this request was number {position} there", wait.as_millis())
            }
            Self::QueueFull => write!(f, ", and so is the queue: {MAX_WAITING} requests wait already"),
        }
    }
}

impl Default for Waiting {
    fn default() -> Self {
        Self { queue: Mutex::new(Queue::new(MAX_WAITING)), len: AtomicUsize::new(0) }
    }
}

impl Waiting {
    fn change<R>(&self, change: impl FnOnce(&mut Queue<Waiter>) -> R) -> R {
        let mut queue = self.queue.lock();
        let result = change(&mut queue);
        self.len.store(queue.len(), Ordering::Release);
        result
    }

    fn is_empty(&self) -> bool {
        self.len.load(Ordering::Acquire) == 0
    }
}

impl Waiter {
    fn book(&self, registry: &Mutex<Registry>, now: Instant) -> Result<Booked, BookError> {
        let except: Vec<&str> = self.except.iter().map(String::as_str).collect();
        let wanted = Wanted {
            model: &self.model,
            model_digest: &self.model_digest,
            except: &except,
            conversation: &self.conversation,
            who: Some(&self.who),
        };
        registry.lock().book_for(&wanted, &self.job_id, now)
    }
}

impl Dispatcher {
    /// Books a slot, waiting for one if need be, for as long as `patience`. With where it waited, if it did.
    pub(crate) async fn book_or_wait(
        &self,
        wanted: &Wanted<'_>,
        job_id: &str,
        asker: &Asker,
        patience: Duration,
    ) -> Result<(Booked, Option<Queued>), NoRoom> {
        // Those who wait already go first.
        let overtakes = !self.waiting.is_empty() && self.waiting.queue.lock().waits_for(wanted.model);
        if overtakes && patience.is_zero() {
            return Err(NoRoom::AtOnce);
        }
        if !overtakes {
            match self.registry.lock().book_for(wanted, job_id, Instant::now()) {
                Ok(booked) => return Ok((booked, None)),
                Err(BookError::NoCapacity) if patience.is_zero() => return Err(NoRoom::AtOnce),
                Err(BookError::NoCapacity) => {}
                Err(error) => return Err(NoRoom::Never(error)),
            }
        }
        let joined = Moment::now();
        let (mut place, position) = self.join(wanted, job_id, asker)?;
        // A slot may have come free since it was looked for.
        self.serve(wanted.model, Instant::now());
        match timeout(patience.min(MAX_PATIENCE), &mut place.answer).await {
            Ok(Ok(answer)) => Ok((answer?, Some(Queued { position, wait: joined.elapsed() }))),
            Ok(Err(_)) => Err(NoRoom::AtOnce),
            Err(_) => {
                let before = self.waiting.queue.lock().before(place.ticket).unwrap_or(0);
                Err(NoRoom::InTime(Queued { position: before + 1, wait: joined.elapsed() }))
            }
        }
    }

    fn join(&self, wanted: &Wanted<'_>, job_id: &str, asker: &Asker) -> Result<(PlaceHeld<'_>, usize), NoRoom> {
        let who = wanted.who.cloned().unwrap_or_else(|| asker.who(""));
        let model: Arc<str> = wanted.model.into();
        let (sender, answer) = oneshot::channel();
        let waiter = Waiter {
            model: Arc::clone(&model),
            model_digest: wanted.model_digest.to_owned(),
            except: wanted.except.iter().map(|&id| id.to_owned()).collect(),
            conversation: wanted.conversation.to_vec(),
            who: who.clone(),
            job_id: job_id.to_owned(),
            answer: sender,
        };
        let place = Place { model: Arc::clone(&model), priority: asker.caller.priority(), who };
        let (joined, position) = self.waiting.change(|queue| -> Result<_, NoRoom> {
            let joined = queue.join(place, waiter).map_err(|_| NoRoom::QueueFull)?;
            let before = queue.before(joined.ticket).unwrap_or(0);
            Ok((joined, before + 1))
        })?;
        if let Some(displaced) = joined.displaced {
            // Its client may have gone.
            let _ = displaced.answer.send(Err(NoRoom::QueueFull));
        }
        let job_id = job_id.to_owned();
        Ok((PlaceHeld { dispatcher: self, model, ticket: joined.ticket, job_id, answer }, position))
    }

    /// An agent may have room now: those who wait for its models are tried.
    pub(crate) fn room_at(&self, agent_id: &str) {
        if self.waiting.is_empty() {
            return;
        }
        let now = Instant::now();
        let models = self.registry.lock().models_with_room(agent_id, now);
        for model in models {
            self.serve(&model, now);
        }
    }

    /// Tries all who wait: for what time alone changes.
    pub(crate) fn serve_all(&self, now: Instant) {
        if self.waiting.is_empty() {
            return;
        }
        let models = self.waiting.queue.lock().models();
        for model in models {
            self.serve(&model, now);
        }
    }

    /// Gives the slots that there are to those who wait for the model, in their order.
    fn serve(&self, model: &str, now: Instant) {
        self.waiting.change(|queue| {
            let mut passed_over = 0;
            while passed_over < MAX_TRIED
                && let Some((ticket, waiter)) = queue.nth(model, passed_over)
            {
                let answer = match waiter.book(&self.registry, now) {
                    Err(BookError::NoCapacity) => {
                        passed_over += 1;
                        continue;
                    }
                    Ok(booked) => Ok(booked),
                    Err(error) => Err(NoRoom::Never(error)),
                };
                let Some(waiter) = queue.serve(ticket) else { break };
                if let Err(Ok(booked)) = waiter.answer.send(answer) {
                    // Its client has gone this moment.
                    self.registry.lock().release(&booked.profile.id, &waiter.job_id, now);
                }
            }
        });
    }
}

/// A place in the queue, given up when it is dropped.
struct PlaceHeld<'a> {
    dispatcher: &'a Dispatcher,
    model: Arc<str>,
    ticket: Ticket,
    job_id: String,
    answer: oneshot::Receiver<Result<Booked, NoRoom>>,
}

impl Drop for PlaceHeld<'_> {
    fn drop(&mut self) {
        let dispatcher = self.dispatcher;
        dispatcher.waiting.change(|queue| queue.leave(self.ticket));
        // A slot that was booked, and of which nobody heard, is the next one's.
        self.answer.close();
        if let Ok(Ok(booked)) = self.answer.try_recv() {
            let now = Instant::now();
            dispatcher.registry.lock().release(&booked.profile.id, &self.job_id, now);
            dispatcher.serve(&self.model, now);
        }
    }
}

#[cfg(test)]
mod tests;
