//! The engines of a model, and how one that hangs is replaced.
//!
//! A hung engine cannot be stopped: its thread is somewhere in mistral.rs. It is left alone, with the sequences that it holds, and another one is loaded
//! in its stead. Its memory is free again when its thread comes back, if ever.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use mistralrs::Model;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    super::EngineError,
    load::{LoadError, Loaded},
    reading::Held,
};

/// Loads one more engine of a model.
pub(super) type Build = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Result<Model, LoadError>> + Send>> + Send + Sync>;

/// The engines of a model, by position.
pub(super) struct Engines {
    current: Vec<Mutex<Arc<LoadedEngine>>>,
    build: Build,
    /// Held while some are replaced.
    restarting: tokio::sync::Mutex<()>,
    /// Why there is no engine at all.
    broken: watch::Sender<Option<String>>,
}

/// One engine of a model.
pub(super) struct LoadedEngine {
    pub(super) model: Model,
    pub(super) held: Arc<Mutex<Held>>,
    /// Ends what waits for it.
    pub(super) hung: CancellationToken,
}

impl LoadedEngine {
    fn new(model: Model) -> Arc<Self> {
        Arc::new(Self { model, held: Arc::default(), hung: CancellationToken::new() })
    }
}

impl Engines {
    pub(super) fn new(models: Vec<Model>, build: Build) -> Self {
        let current = models.into_iter().map(|model| Mutex::new(LoadedEngine::new(model))).collect();
        Self { current, build, restarting: tokio::sync::Mutex::default(), broken: watch::Sender::new(None) }
    }

    /// The one that is at this position now.
    pub(super) fn get(&self, at: usize) -> Arc<LoadedEngine> {
        self.current[at].lock().clone()
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = Arc<LoadedEngine>> {
        self.current.iter().map(|engine| engine.lock().clone())
    }

    /// Waits until there is no engine left, and the last one could not be built anew; returns why.
    pub(super) async fn broken(&self) -> String {
        let mut broken = self.broken.subscribe();
        let reason = match broken.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone(),
            Err(_) => None,
        };
        reason.unwrap_or_default()
    }

    #[cfg(test)]
    pub(super) fn set_build(&mut self, wrap: impl FnOnce(Build) -> Build) {
        let none: Build = Box::new(|| Box::pin(std::future::ready(Err(LoadError::NoModel))));
        self.build = wrap(std::mem::replace(&mut self.build, none));
    }
}

/// An engine that works lets go of a sequence without a reader at its next step. This is a long time for one where nothing is known of its speed.
const LET_GO: Duration = Duration::from_secs(5);
/// A step may take so many times as long as the longest that is meant to be.
const SLOW_STEPS: u32 = 4;
const LET_GO_POLL: Duration = Duration::from_millis(50);

impl Loaded {
    /// Replaces the engines that do not let go of sequences whose readers went away, and those that could not be replaced before.
    pub(super) async fn restart(&self) -> Result<(), EngineError> {
        let _one_at_a_time = self.engines.restarting.lock().await;
        let abandoned = self.pool.abandoned();
        let asked = Instant::now();
        let patience = LET_GO.max(self.reading_speed.longest_step() * SLOW_STEPS);
        while self.pool.holds(&abandoned) && asked.elapsed() < patience {
            tokio::time::sleep(LET_GO_POLL).await;
        }
        for beside in self.pool.withdraw(&abandoned) {
            if let Some(events) = beside.upgrade() {
                let why = "it hung with another request and is built anew; a new request may succeed";
                // Fails where that reader went away as well.
                let _ = events.try_send(Err(EngineError::Failed(why.to_owned())));
            }
        }
        let withdrawn = self.pool.withdrawn();
        for at in &withdrawn {
            self.engines.get(*at).hung.cancel();
        }
        for at in withdrawn {
            match (self.engines.build)().await {
                Ok(model) => *self.engines.current[at].lock() = LoadedEngine::new(model),
                Err(error) => {
                    let reason = format!("it hung and could not be built anew: {error}");
                    if self.pool.is_empty() {
                        self.engines.broken.send_replace(Some(reason.clone()));
                    }
                    return Err(EngineError::Failed(reason));
                }
            }
            self.pool.restore(at);
            self.engines.broken.send_replace(None);
        }
        Ok(())
    }
}
