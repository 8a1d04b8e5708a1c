//! With the real model: an engine's thread that never comes back from a step, made by a logits processor that blocks.

#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use mistralrs::{CustomLogitsProcessor, Tensor};
use parking_lot::{Condvar, Mutex};
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};

use super::{
    super::{
        super::{Engine, EngineError, Event, Generate, Sampling, TokenStream},
        MistralEngine,
        load::{LoadError, Loaded},
        pool::Place,
        request,
    },
    last_event, loaded,
};

/// Longer than anything here takes that comes at all.
const PATIENCE: Duration = Duration::from_secs(120);

/// Holds its place, as a sequence does, and the engine's thread until it is told to let go.
struct Blocks {
    entered: Mutex<Option<oneshot::Sender<()>>>,
    open: Arc<(Mutex<bool>, Condvar)>,
    dropped: Arc<AtomicBool>,
    place: Option<Place>,
}

impl CustomLogitsProcessor for Blocks {
    fn apply(&self, logits: &Tensor, _context: &[u32]) -> mistralrs::Result<Tensor> {
        if let Some(entered) = self.entered.lock().take() {
            entered.send(()).unwrap();
        }
        let mut open = self.open.0.lock();
        while !*open {
            self.open.1.wait(&mut open);
        }
        request::only(0, logits)
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        drop(self.place.take());
        self.dropped.store(true, SeqCst);
    }
}

/// A sequence that hangs in its engine.
struct Hung {
    engine: usize,
    open: Arc<(Mutex<bool>, Condvar)>,
    dropped: Arc<AtomicBool>,
    stream: TokenStream,
    /// The reader's task would hold it.
    _events: mpsc::Sender<Result<Event, EngineError>>,
}

impl Hung {
    async fn new(model: &Loaded) -> Self {
        let place = model.pool.acquire(|_| 0).await.unwrap();
        let engine = place.engine();
        let (events, stream) = mpsc::channel(1);
        place.set_events(&events);
        let (entered, has_entered) = oneshot::channel();
        let (open, dropped): (Arc<(Mutex<bool>, Condvar)>, Arc<AtomicBool>) = Default::default();
        let blocks = Blocks {
            entered: Mutex::new(Some(entered)),
            open: open.clone(),
            dropped: dropped.clone(),
            place: Some(place),
        };
        // The sequence's own responses are read by nobody, and hold nothing up: it makes none before it has a token.
        let sequence = request::begin(&model.engines.get(engine).model, vec![1, 2], 4, &[], Arc::new(blocks)).await;
        tokio::spawn(sequence.unwrap().finish());
        timeout(PATIENCE, has_entered).await.unwrap().unwrap();
        Self { engine, open, dropped, stream, _events: events }
    }
}

fn asked(max_tokens: u32) -> Generate {
    Generate::new("test", "Write a long story.", Sampling::greedy(max_tokens))
}

async fn answers(engine: &MistralEngine) {
    let answer = async { last_event(engine.generate(asked(2)).await.unwrap()).await };
    let last = timeout(PATIENCE, answer).await.unwrap();
    assert!(matches!(last, Ok(Event::Done(_))), "{last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_engine_is_replaced_and_those_beside_it_go_on() {
    let fails = Arc::new(AtomicBool::new(false));
    let mut model = loaded(2).await;
    let failing = fails.clone();
    model.engines.set_build(|build| {
        Box::new(move || match failing.load(SeqCst) {
            true => Box::pin(std::future::ready(Err(LoadError::NoModel))),
            false => build(),
        })
    });
    let model = Arc::new(model);
    let engine = MistralEngine { models: vec![model.clone()] };
    only_what_hangs_is_replaced(&engine, &model).await;
    where_none_is_left_requests_hear_why(&engine, &model, &fails).await;
}

async fn only_what_hangs_is_replaced(engine: &MistralEngine, model: &Arc<Loaded>) {
    let hung = Hung::new(model).await;
    let beside = engine.generate(asked(100)).await.unwrap();
    let before = [0, 1].map(|at| model.engines.get(at));
    engine.restart("test").await.unwrap();
    assert_eq!(engine.free_places(), 0, "each has its reader: nothing is known to hang");

    drop(hung.stream);
    engine.restart("test").await.unwrap();
    let after = [0, 1].map(|at| model.engines.get(at));
    for at in 0..2 {
        assert_eq!(Arc::ptr_eq(&before[at], &after[at]), at != hung.engine, "engine {at}");
    }
    drop((before, after));
    assert!(matches!(last_event(beside).await, Ok(Event::Done(_))), "the other engine has gone on");
    answers(engine).await;
    all_places_are_free(engine).await;
    assert!(!hung.dropped.load(SeqCst), "the hung one has not come back meanwhile");
    let two = (engine.generate(asked(20)).await.unwrap(), engine.generate(asked(20)).await.unwrap());
    let two = tokio::join!(last_event(two.0), last_event(two.1));
    assert!(matches!(two, (Ok(Event::Done(_)), Ok(Event::Done(_)))), "both places can be used: {two:?}");
    all_places_are_free(engine).await;

    *hung.open.0.lock() = true;
    hung.open.1.notify_all();
    while !hung.dropped.load(SeqCst) {
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!((engine.free_places(), engine.places()), (2, 2), "its place was given back already");

    // A reader who goes away is no hang: the engine lets go by itself.
    let mut stream = engine.generate(asked(200)).await.unwrap();
    stream.recv().await.unwrap().unwrap();
    let before = [0, 1].map(|at| model.engines.get(at));
    drop(stream);
    engine.restart("test").await.unwrap();
    all_places_are_free(engine).await;
    assert!((0..2).all(|at| Arc::ptr_eq(&before[at], &model.engines.get(at))));
    assert!(matches!(engine.restart("other").await, Err(EngineError::UnknownModel { .. })));
}

async fn where_none_is_left_requests_hear_why(engine: &MistralEngine, model: &Arc<Loaded>, fails: &AtomicBool) {
    let hung = [Hung::new(model).await, Hung::new(model).await];
    let begun = async {
        sleep(Duration::from_millis(100)).await;
        fails.store(true, SeqCst);
        let (opens, dropped): (Vec<_>, Vec<_>) = hung.into_iter().map(|hung| (hung.open, hung.dropped)).unzip();
        let error = engine.restart("test").await.unwrap_err();
        assert!(error.to_string().contains("could not be built anew"), "{error}");
        (opens, dropped)
    };
    // One waits for a place when it happens, and one comes after.
    let (waiting, (opens, dropped)) = tokio::join!(timeout(PATIENCE, engine.generate(asked(2))), begun);
    for refused in [waiting.unwrap(), timeout(PATIENCE, engine.generate(asked(2))).await.unwrap()] {
        assert!(matches!(&refused, Err(EngineError::Failed(why)) if why.contains("could not be built anew")));
    }
    fails.store(false, SeqCst);
    engine.restart("test").await.unwrap();
    assert_eq!((engine.free_places(), engine.queued()), (2, 0));
    answers(engine).await;
    for open in opens {
        *open.0.lock() = true;
        open.1.notify_all();
    }
    while !dropped.iter().all(|dropped| dropped.load(SeqCst)) {
        sleep(Duration::from_millis(10)).await;
    }
    all_places_are_free(engine).await;
}

/// An engine lets go a moment after the last event.
async fn all_places_are_free(engine: &MistralEngine) {
    let free = async {
        while engine.free_places() < engine.places() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, free).await.unwrap();
    assert_eq!(engine.free_places(), 2);
}
