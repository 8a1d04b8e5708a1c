//! Responses that run in the background: their events are kept, and read by anyone of the same owner, from any of them on, as often as they like.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::events::Answer;
use crate::{
    backend::Backend,
    error::ApiError,
    generation::broke_off,
    router::Settings,
    sse::{self, Encoder as _},
};

/// What is kept.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    kept: Arc<Mutex<HashMap<String, Arc<Kept>>>>,
    keep_time: Duration,
    max_kept: usize,
    max_bytes: usize,
    /// Bytes of the events of all of them.
    bytes: Arc<AtomicUsize>,
    max_bytes_in_all: usize,
}

impl Store {
    pub(crate) fn new(settings: &Settings) -> Self {
        let Settings { keep_time, max_kept, max_kept_bytes, max_kept_bytes_in_all, .. } = *settings;
        Self {
            kept: Arc::default(),
            keep_time,
            max_kept,
            max_bytes: max_kept_bytes,
            bytes: Arc::default(),
            max_bytes_in_all: max_kept_bytes_in_all,
        }
    }

    /// Makes room for a response. What runs stays.
    pub(super) fn place(&self, answer: Answer, owner: &str) -> Result<Place, ApiError> {
        let mut all = self.kept.lock();
        if all.len() >= self.max_kept && !give_way(&mut all) {
            let message = format!("{} background responses run already: wait until one has ended", self.max_kept);
            return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, Some("rate_limit_exceeded"), message));
        }
        let (changed, _) = watch::channel(());
        let id = answer.id.clone();
        let state = State { answer, events: Vec::new(), bytes: 0, ended: None };
        let kept = Arc::new(Kept {
            owner: owner.to_owned(),
            state: Mutex::new(state),
            changed,
            cancel: CancellationToken::new(),
            bytes_of_all: Arc::clone(&self.bytes),
        });
        all.insert(id.clone(), Arc::clone(&kept));
        Ok(Place { store: self.clone(), id, kept: Some(kept) })
    }

    /// The response with this id, if it is this owner's.
    pub(crate) fn find(&self, id: &str, owner: &str) -> Result<Arc<Kept>, ApiError> {
        let found = self.kept.lock().get(id).filter(|kept| kept.owner == owner).cloned();
        found.ok_or_else(|| {
            let id: String = id.chars().take(80).collect();
            let message = format!(
                "there is no response {id:?} of yours: only those with background are kept, for {} s after their end",
                self.keep_time.as_secs()
            );
            ApiError::new(StatusCode::NOT_FOUND, None, message)
        })
    }

    /// Whether there is room for what has been added, in one response of so many bytes and in all of them.
    fn has_room(&self, bytes: usize) -> bool {
        let mut all = self.kept.lock();
        while self.bytes.load(Relaxed) > self.max_bytes_in_all {
            if !give_way(&mut all) {
                return false;
            }
        }
        bytes <= self.max_bytes
    }

    pub(crate) fn remove(&self, id: &str) {
        self.kept.lock().remove(id);
    }
}

/// Drops one that has ended: of the owner who keeps the most, so that nobody drives out what others keep, the oldest.
fn give_way(all: &mut HashMap<String, Arc<Kept>>) -> bool {
    let mut counts = HashMap::<&str, usize>::new();
    for kept in all.values() {
        *counts.entry(&kept.owner).or_default() += 1;
    }
    let ended = all.iter().filter_map(|(id, kept)| Some((id, kept, kept.state.lock().ended?)));
    let first = ended.max_by_key(|(_, kept, ended)| (counts[kept.owner.as_str()], std::cmp::Reverse(*ended)));
    let first = first.map(|(id, ..)| id.clone());
    first.is_some_and(|id| all.remove(&id).is_some())
}

/// Room for a response that has not begun. Dropped, it is free again.
pub(super) struct Place {
    store: Store,
    id: String,
    kept: Option<Arc<Kept>>,
}

impl Place {
    /// Runs it to its end, whoever reads it.
    pub(super) fn run<B: Backend>(mut self, stream: B::Stream) -> Arc<Kept> {
        let Some(kept) = self.kept.take() else { unreachable!("a place is taken once") };
        tokio::spawn(run::<B>(self.store.clone(), self.id.clone(), Arc::clone(&kept), stream));
        kept
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.kept.is_some() {
            self.store.remove(&self.id);
        }
    }
}

async fn run<B: Backend>(store: Store, id: String, kept: Arc<Kept>, mut stream: B::Stream) {
    kept.add(|answer, events| answer.begin(events));
    loop {
        let next = tokio::select! {
            next = stream.next() => next,
            () = kept.cancel.cancelled() => {
                kept.end(Answer::cancelled);
                break;
            }
        };
        match next {
            Some(Ok(message)) if message.done => {
                kept.end(|answer, events| answer.message(message, events));
                break;
            }
            Some(Ok(message)) => {
                if !store.has_room(kept.add(|answer, events| answer.message(message, events))) {
                    let error = Status::resource_exhausted(format!(
                        "there is no room for this response: {} bytes of one are kept, and {} of all: stream it instead",
                        store.max_bytes, store.max_bytes_in_all
                    ));
                    kept.end(|answer, events| answer.failed(&error.into(), events));
                    break;
                }
            }
            Some(Err(status)) => {
                kept.end(|answer, events| answer.failed(&status.into(), events));
                break;
            }
            None => {
                kept.end(|answer, events| answer.failed(&broke_off(), events));
                break;
            }
        }
    }
    drop(stream);
    let weak: Weak<_> = Arc::downgrade(&store.kept);
    let until = Instant::now() + store.keep_time;
    drop((kept, store));
    sleep_until(until).await;
    if let Some(all) = weak.upgrade() {
        all.lock().remove(&id);
    }
}

/// A response that is kept.
#[derive(Debug)]
pub(crate) struct Kept {
    owner: String,
    state: Mutex<State>,
    changed: watch::Sender<()>,
    cancel: CancellationToken,
    bytes_of_all: Arc<AtomicUsize>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.bytes_of_all.fetch_sub(self.state.get_mut().bytes, Relaxed);
    }
}

#[derive(Debug)]
struct State {
    answer: Answer,
    /// Encoded; the number of each is its place.
    events: Vec<Bytes>,
    bytes: usize,
    ended: Option<Instant>,
}

impl Kept {
    /// Adds what an answer says now. Returns the bytes of all events.
    fn add(&self, say: impl FnOnce(&mut Answer, &mut Vec<u8>)) -> usize {
        let mut said = Vec::new();
        let mut state = self.state.lock();
        say(&mut state.answer, &mut said);
        state.bytes += said.len();
        self.bytes_of_all.fetch_add(said.len(), Relaxed);
        let said = Bytes::from(said);
        let mut from = 0;
        while from < said.len() {
            let end = said[from..].windows(2).position(|two| two == b"\n\n").map_or(said.len(), |at| from + at + 2);
            state.events.push(said.slice(from..end));
            from = end;
        }
        let bytes = state.bytes;
        drop(state);
        self.changed.send_replace(());
        bytes
    }

    fn end(&self, say: impl FnOnce(&mut Answer, &mut Vec<u8>)) {
        self.add(|answer, events| say(answer, events));
        self.state.lock().ended = Some(Instant::now());
        self.changed.send_replace(());
    }

    /// The response as it is now.
    pub(crate) fn json(&self) -> Response {
        Json(self.state.lock().answer.json()).into_response()
    }

    /// Its events behind the one with this number, and then those that come.
    pub(crate) fn stream(self: &Arc<Self>, after: Option<u64>, comment_interval: Duration) -> Response {
        let from = after.map_or(0, |after| usize::try_from(after).unwrap_or(usize::MAX).saturating_add(1));
        let reader = (Arc::clone(self), self.changed.subscribe(), from);
        sse::events(stream::unfold(reader, move |(kept, mut changed, from)| async move {
            loop {
                let (events, until, ended) = {
                    let state = kept.state.lock();
                    let new = state.events.get(from..).unwrap_or_default();
                    (new.concat(), from + new.len(), state.ended.is_some())
                };
                if !events.is_empty() {
                    return Some((Bytes::from(events), (kept, changed, until)));
                }
                if ended {
                    return None;
                }
                if timeout(comment_interval, changed.changed()).await.is_err() {
                    return Some((Bytes::from_static(b": waiting\n\n"), (kept, changed, from)));
                }
            }
        }))
    }

    /// Stops it, and waits until it has.
    pub(crate) async fn cancel(&self) {
        self.cancel.cancel();
        let mut changed = self.changed.subscribe();
        while self.state.lock().ended.is_none() {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}
