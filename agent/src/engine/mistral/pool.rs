//! Places for sequences. A place is taken by a request and comes back when the engine has let go of the request's sequence.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A model's places: which engine each is in, and who waits.
#[derive(Debug)]
pub(super) struct Pool {
    permits: Arc<Semaphore>,
    places: usize,
    /// Engines with a free place, one entry a place. The last one freed is taken first: its memory is warm.
    free: Mutex<Vec<usize>>,
    waiting: AtomicUsize,
}

impl Pool {
    /// `engines` engines with `places` sequences each. On a CPU `places` is 1: two sequences in one engine corrupt each other (see [`super`]).
    pub(super) fn new(engines: usize, places: usize) -> Arc<Self> {
        let free: Vec<usize> = (0..engines).rev().flat_map(|engine| std::iter::repeat_n(engine, places)).collect();
        Arc::new(Self {
            permits: Arc::new(Semaphore::new(free.len())),
            places: free.len(),
            free: Mutex::new(free),
            waiting: AtomicUsize::new(0),
        })
    }

    /// Waits for a place, first come first served: in the engine for which `worth` is largest, or the one that was freed last. Dropping the future
    /// leaves the queue.
    pub(super) async fn acquire(self: &Arc<Self>, worth: impl Fn(usize) -> usize) -> Option<Place> {
        let permit = match self.permits.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let _waiting = Waiting::new(&self.waiting);
                self.permits.clone().acquire_owned().await.ok()?
            }
        };
        let engine = {
            let mut free = self.free.lock();
            // The last of equals.
            let (best, _) = free.iter().enumerate().max_by_key(|(_, engine)| worth(**engine))?;
            free.remove(best)
        };
        Some(Place { pool: self.clone(), engine, _permit: permit })
    }

    /// How many wait in [`Pool::acquire`].
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// All places, taken or not.
    pub(super) fn places(&self) -> usize {
        self.places
    }

    /// Places that nobody holds.
    pub(super) fn free(&self) -> usize {
        self.permits.available_permits()
    }
}

/// A taken place; dropping it frees it.
#[derive(Debug)]
pub(super) struct Place {
    pool: Arc<Pool>,
    engine: usize,
    // Dropped after `Drop::drop` has put the engine back, so whoever gets the permit finds an engine.
    _permit: OwnedSemaphorePermit,
}

impl Place {
    /// The engine that it is in.
    pub(super) fn engine(&self) -> usize {
        self.engine
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pool.free.lock().push(self.engine);
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
}
