//! Places for sequences. A place is taken by a request and comes back when the engine has let go of the request's sequence. An engine that does
//! not let go loses its places; the one that is built in its stead gets new ones.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::super::{EngineError, Event};

/// How long the end of a sequence takes at most, and how often it is looked whether it is over: an engine lets go of it a step later.
const FINISH_TIME: Duration = Duration::from_millis(500);
const FINISH_PAUSE: Duration = Duration::from_millis(2);

/// A model's places: which engine each is in, and who waits.
#[derive(Debug)]
pub(super) struct Pool {
    permits: Arc<Semaphore>,
    /// Of each engine.
    places: usize,
    table: Mutex<Table>,
    waiting: AtomicUsize,
}

#[derive(Debug)]
struct Table {
    /// Engines with a free place, one entry a place. The last one freed is taken first: its memory is warm.
    free: Vec<usize>,
    engines: Vec<Engine>,
    /// Sequences that hold a place.
    sequences: Vec<Sequence>,
    next_id: u64,
}

#[derive(Clone, Debug)]
struct Engine {
    /// Of those that have been at this position. A place of an earlier one does not come back.
    number: u64,
    /// Places that are free or will come back.
    places: usize,
    /// It has hung, and there is no other one yet.
    withdrawn: bool,
}

#[derive(Debug)]
struct Sequence {
    id: u64,
    engine: usize,
    events: mpsc::WeakSender<Result<Event, EngineError>>,
    /// Its last token is computed, and the engine will let go of it in a moment.
    finishing: bool,
}

impl Pool {
    /// `engines` engines with `places` sequences each. On a CPU `places` is 1: two sequences in one engine corrupt each other (see [`super`]).
    pub(super) fn new(engines: usize, places: usize) -> Arc<Self> {
        let free: Vec<usize> = (0..engines).rev().flat_map(|engine| std::iter::repeat_n(engine, places)).collect();
        let engine = Engine { number: 0, places, withdrawn: false };
        Arc::new(Self {
            permits: Arc::new(Semaphore::new(free.len())),
            places,
            table: Mutex::new(Table { free, engines: vec![engine; engines], sequences: Vec::new(), next_id: 0 }),
            waiting: AtomicUsize::new(0),
        })
    }

    /// Waits for a place, first come first served: in the engine for which `worth` is largest, or the one that was freed last. Dropping the future
    /// leaves the queue.
    pub(super) async fn acquire(self: &Arc<Self>, worth: impl Fn(usize) -> usize) -> Option<Place> {
        let began = Instant::now();
        // Whoever goes on with a conversation at once comes before its engine has let go of the last turn.
        while self.better_one_finishes(&worth) && began.elapsed() < FINISH_TIME {
            tokio::time::sleep(FINISH_PAUSE).await;
        }
        let permit = match self.permits.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let _waiting = Waiting::new(&self.waiting);
                self.permits.clone().acquire_owned().await.ok()?
            }
        };
        let mut table = self.table.lock();
        // The last of equals.
        let (best, _) = table.free.iter().enumerate().max_by_key(|(_, engine)| worth(**engine))?;
        let engine = table.free.remove(best);
        table.next_id += 1;
        let (id, number) = (table.next_id, table.engines[engine].number);
        Some(Place { pool: self.clone(), engine, number, id, permit: Some(permit) })
    }

    fn better_one_finishes(&self, worth: impl Fn(usize) -> usize) -> bool {
        let table = self.table.lock();
        let finishing = table.sequences.iter().filter(|sequence| sequence.finishing).map(|sequence| sequence.engine);
        let best = |engines: &mut dyn Iterator<Item = usize>| engines.map(&worth).max().unwrap_or(0);
        best(&mut { finishing }) > best(&mut table.free.iter().copied())
    }

    /// How many wait in [`Pool::acquire`].
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// All places, taken or not.
    pub(super) fn places(&self) -> usize {
        self.table.lock().engines.len() * self.places
    }

    /// Places of each engine.
    pub(super) fn places_each(&self) -> usize {
        self.places
    }

    /// Places that nobody holds.
    pub(super) fn free(&self) -> usize {
        self.permits.available_permits()
    }

    /// Sequences whose reader went away: an engine that works lets go of them at its next step.
    pub(super) fn abandoned(&self) -> Vec<u64> {
        let gone = |sequence: &&Sequence| sequence.events.upgrade().is_none_or(|events| events.is_closed());
        self.table.lock().sequences.iter().filter(gone).map(|sequence| sequence.id).collect()
    }

    /// Whether one of these sequences still holds its place.
    pub(super) fn holds(&self, sequences: &[u64]) -> bool {
        self.table.lock().sequences.iter().any(|sequence| sequences.contains(&sequence.id))
    }

    /// Takes all places from the engines that still hold one of these sequences. Returns where the readers of the others in them listen.
    pub(super) fn withdraw(&self, sequences: &[u64]) -> Vec<mpsc::WeakSender<Result<Event, EngineError>>> {
        let mut table = self.table.lock();
        let table = &mut *table;
        let hung = |sequence: &&Sequence| sequences.contains(&sequence.id);
        let mut engines: Vec<usize> = table.sequences.iter().filter(hung).map(|sequence| sequence.engine).collect();
        engines.sort_unstable();
        engines.dedup();
        for at in &engines {
            // Who has a permit finds an entry: so many entries stay as there are permits on their way to one.
            table
                .free
                .retain(|engine| engine != at || self.permits.try_acquire().map(|permit| permit.forget()).is_err());
            let engine = &mut table.engines[*at];
            engine.number += 1;
            engine.places = table.free.iter().filter(|engine| *engine == at).count();
            engine.withdrawn = true;
        }
        let (lost, kept) = table.sequences.drain(..).partition(|sequence| engines.contains(&sequence.engine));
        table.sequences = kept;
        let lost: Vec<Sequence> = lost;
        lost.into_iter().filter(|sequence| !sequences.contains(&sequence.id)).map(|sequence| sequence.events).collect()
    }

    /// Engines that have to be built anew.
    pub(super) fn withdrawn(&self) -> Vec<usize> {
        let table = self.table.lock();
        (0..table.engines.len()).filter(|at| table.engines[*at].withdrawn).collect()
    }

    /// Whether no engine is left.
    pub(super) fn is_empty(&self) -> bool {
        self.table.lock().engines.iter().all(|engine| engine.withdrawn)
    }

    /// There is a new engine at this position: it gets its places.
    pub(super) fn restore(&self, at: usize) {
        let mut table = self.table.lock();
        let engine = &mut table.engines[at];
        engine.withdrawn = false;
        let missing = self.places.saturating_sub(engine.places);
        engine.places = self.places;
        table.free.extend(std::iter::repeat_n(at, missing));
        self.permits.add_permits(missing);
    }
}

/// A taken place; dropping it frees it.
#[derive(Debug)]
pub(super) struct Place {
    pool: Arc<Pool>,
    engine: usize,
    number: u64,
    id: u64,
    /// Given back after `Drop::drop` has put the engine back, so whoever gets it finds an engine.
    permit: Option<OwnedSemaphorePermit>,
}

impl Place {
    /// Its sequence has come to its end: the place will be free in a moment.
    pub(super) fn finishes(&self) {
        let mut table = self.pool.table.lock();
        if let Some(sequence) = table.sequences.iter_mut().find(|sequence| sequence.id == self.id) {
            sequence.finishing = true;
        }
    }

    /// The engine that it is in.
    pub(super) fn engine(&self) -> usize {
        self.engine
    }

    /// Where the reader of the sequence listens. It is known so whether there is one.
    pub(super) fn set_events(&self, events: &mpsc::Sender<Result<Event, EngineError>>) {
        let sequence = Sequence { id: self.id, engine: self.engine, events: events.downgrade(), finishing: false };
        let mut table = self.pool.table.lock();
        if table.engines[self.engine].number == self.number {
            table.sequences.push(sequence);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.pool.table.lock();
        table.sequences.retain(|sequence| sequence.id != self.id);
        if table.engines[self.engine].number == self.number {
            table.free.push(self.engine);
        } else if let Some(permit) = self.permit.take() {
            // The engine has hung, and its places are another one's.
            permit.forget();
        }
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn each_place_is_given_once_and_comes_back() {
        let pool = Pool::new(3, 1);
        let mut places = vec![];
        for _ in 0..3 {
            places.push(pool.acquire(|_| 0).await.unwrap());
        }
        let mut engines: Vec<usize> = places.iter().map(Place::engine).collect();
        engines.sort_unstable();
        assert_eq!(engines, [0, 1, 2]);
        assert_eq!(pool.free(), 0);
        let second = places.remove(1);
        let freed = second.engine();
        drop(second);
        assert_eq!(pool.acquire(|_| 0).await.unwrap().engine(), freed);
    }

    #[tokio::test]
    async fn leaving_the_queue_gives_the_turn_to_the_next() {
        let pool = Pool::new(1, 1);
        let held = pool.acquire(|_| 0).await.unwrap();
        let impatient = tokio::spawn({
            let pool = pool.clone();
            async move { pool.acquire(|_| 0).await }
        });
        let patient = tokio::spawn({
            let pool = pool.clone();
            async move { pool.acquire(|_| 0).await }
        });
        while pool.waiting() < 2 {
            tokio::task::yield_now().await;
        }
        impatient.abort();
        assert!(impatient.await.unwrap_err().is_cancelled());
        assert_eq!(pool.waiting(), 1);
        drop(held);
        assert!(patient.await.unwrap().is_some());
        assert_eq!((pool.waiting(), pool.free()), (0, 1));
    }

    type Events<T> = Result<T, EngineError>;

    fn sequence(place: &Place) -> (mpsc::Sender<Events<Event>>, mpsc::Receiver<Events<Event>>) {
        let (events, stream) = mpsc::channel(1);
        place.set_events(&events);
        (events, stream)
    }

    #[tokio::test]
    async fn a_hung_engine_loses_its_places_and_the_next_one_has_them_all() {
        let pool = Pool::new(2, 2);
        let mut places = vec![];
        for _ in 0..3 {
            places.push(pool.acquire(|engine| engine).await.unwrap());
        }
        let engines: Vec<usize> = places.iter().map(Place::engine).collect();
        assert_eq!(engines, [1, 1, 0]);
        let (mut events, mut streams): (Vec<_>, Vec<_>) = places.iter().map(sequence).unzip();
        assert_eq!(pool.abandoned(), [0u64; 0]);
        drop(streams.remove(0));
        let abandoned = pool.abandoned();
        assert!(abandoned.len() == 1 && pool.holds(&abandoned));

        let beside = pool.withdraw(&abandoned);
        assert_eq!(beside.len(), 1, "the other one in the same engine");
        assert!(beside[0].upgrade().unwrap().same_channel(&events[1]));
        assert_eq!((pool.withdrawn(), pool.free(), pool.places(), pool.is_empty()), (vec![1], 1, 4, false));
        assert!(!pool.holds(&abandoned) && pool.withdraw(&abandoned).is_empty(), "it is withdrawn once");
        let waits = |pool: &Arc<Pool>| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.acquire(|_| 0).await.unwrap() })
        };
        let last = pool.acquire(|engine| engine).await.unwrap();
        assert_eq!(last.engine(), 0, "the free place of the hung one is gone");
        let waiting = waits(&pool);
        while pool.waiting() < 1 {
            tokio::task::yield_now().await;
        }
        // One of the lost places comes back before the new engine is there, the other one after.
        drop(places.remove(0));
        assert_eq!((pool.free(), pool.waiting()), (0, 1));
        pool.restore(1);
        let first = waiting.await.unwrap();
        assert_eq!((first.engine(), pool.free(), pool.withdrawn()), (1, 1, vec![]));
        drop(places.remove(0));
        assert_eq!(pool.free(), 1, "a late release counts for nothing");
        drop((places, last, first));
        events.clear();
        assert_eq!((pool.free(), pool.abandoned().len()), (4, 0));
        for engine in [1, 1, 0, 0] {
            let place = pool.acquire(|engine| engine).await.unwrap();
            assert_eq!(place.engine(), engine);
            std::mem::forget(place);
        }
        assert_eq!(pool.free(), 0);
    }

    #[tokio::test]
    async fn free_places_of_a_hung_engine_are_taken_away_too() {
        let pool = Pool::new(1, 3);
        let place = pool.acquire(|_| 0).await.unwrap();
        let (_events, stream) = sequence(&place);
        drop(stream);
        assert!(pool.withdraw(&pool.abandoned()).is_empty());
        assert_eq!((pool.free(), pool.is_empty()), (0, true));
        pool.restore(0);
        drop(place);
        assert_eq!((pool.free(), pool.is_empty()), (3, false));
    }
}
