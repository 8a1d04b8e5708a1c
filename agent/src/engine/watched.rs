//! An engine that watches itself.
//!
//! [`Watched`] stands around any engine. It gives up on a generation that hangs and has the engine built anew, counts for each model what
//! succeeds and what fails (`super::health`), and while a model is degraded tries it with one token, until that comes.

#[cfg(test)]
mod tests;

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use titan_proto::v1::ModelInfo;
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Engine, EngineError, Event, Generate, GenerateFuture, Health, RestartFuture, Sampling, TokenStream,
    health::{Era, ModelHealth, Probe, is_refusal},
};

/// The time between two tokens after which an engine is taken for hung, where nobody says another: a large model on a slow CPU needs
/// seconds for a token, and a machine that is short of memory some more.
pub const DEFAULT_ENGINE_TIMEOUT: Duration = Duration::from_secs(60);

/// The first token may take as long as another, and once more for each so many bytes of the prompt. With 60 s that is 0.1 s a byte, twice what
/// a model of 7 billion parameters needs on two cores (5 tokens/s, 4 bytes a token), or one of 135 million for a prompt of 8,000 tokens.
const PROMPT_BYTES: u32 = 600;

/// Events that wait for a slow reader. What is beyond that waits in the engine's own channel, as without a watch.
const BUFFERED_EVENTS: usize = 64;

/// Whose conversation a probe is: nobody's else.
const PROBE_OWNER: &str = "titan: probe";
/// The shortest thing that one says.
const PROBE_PROMPT: &str = "Hi";

/// An engine around another one, which it watches.
pub struct Watched {
    watch: Arc<Watch>,
}

struct Watch {
    engine: Arc<dyn Engine>,
    models: Vec<WatchedModel>,
    timeout: Duration,
}

struct WatchedModel {
    name: String,
    health: Mutex<ModelHealth>,
    /// Held while it is built anew.
    restarting: tokio::sync::Mutex<()>,
    /// It has hung, and has not been built anew since.
    restart_owed: AtomicBool,
    /// Tries it while it is degraded. A new one takes the place of the last one, so there is never more than one.
    prober: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl Watched {
    /// Takes the engine for hung where a token does not come within `timeout` of the last one. The first one gets more, by the length of
    /// its prompt. The time that a generation waits for a free place does not count. Needs a tokio runtime.
    pub fn new(engine: Arc<dyn Engine>, timeout: Duration) -> Self {
        let models = engine.models().into_iter().map(WatchedModel::new).collect();
        Self { watch: Arc::new(Watch { engine, models, timeout }) }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        for model in &self.watch.models {
            model.prober.lock().take();
        }
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Watched")
            .field("models", &self.models())
            .field("health", &self.health())
            .finish_non_exhaustive()
    }
}

impl Engine for Watched {
    fn models(&self) -> Vec<String> {
        self.watch.engine.models()
    }

    fn generate(&self, request: Generate) -> GenerateFuture<'_> {
        Box::pin(self.watch.generate(request))
    }

    fn model_info(&self) -> Vec<ModelInfo> {
        self.watch.engine.model_info()
    }

    fn computing(&self) -> usize {
        self.watch.engine.computing()
    }

    /// The worst of the engine's own and its models'.
    fn health(&self) -> Health {
        let (mut degraded, mut half_open) = (Vec::new(), Vec::new());
        let own = (None, self.watch.engine.health());
        let models = self.watch.models.iter().map(|model| (Some(&model.name), model.health.lock().health()));
        for (name, health) in std::iter::once(own).chain(models) {
            let say = |reason| match name {
                Some(name) => format!("{name}: {reason}"),
                None => reason,
            };
            match health {
                Health::Healthy => {}
                Health::Degraded { reason } => degraded.push(say(reason)),
                Health::HalfOpen { reason } => half_open.push(say(reason)),
            }
        }
        if !degraded.is_empty() {
            return Health::Degraded { reason: degraded.join("; ") };
        }
        if !half_open.is_empty() {
            return Health::HalfOpen { reason: half_open.join("; ") };
        }
        Health::Healthy
    }

    fn cached_prefixes(&self) -> Vec<u64> {
        self.watch.engine.cached_prefixes()
    }

    fn uses_gpu(&self) -> bool {
        self.watch.engine.uses_gpu()
    }

    fn queued(&self) -> usize {
        self.watch.engine.queued()
    }

    fn idle(&self, model: &str) -> bool {
        self.watch.engine.idle(model)
    }

    fn restart(&self, model: &str) -> RestartFuture<'_> {
        self.watch.engine.restart(model)
    }
}

impl WatchedModel {
    fn new(name: String) -> Self {
        Self {
            name,
            health: Mutex::new(ModelHealth::new()),
            restarting: tokio::sync::Mutex::default(),
            restart_owed: AtomicBool::new(false),
            prober: Mutex::default(),
        }
    }
}

impl Watch {
    async fn generate(self: &Arc<Self>, request: Generate) -> Result<TokenStream, EngineError> {
        let Some(at) = self.models.iter().position(|model| model.name == request.model) else {
            return self.engine.generate(request).await;
        };
        let limit = self.first_limit(&request);
        let asked = self.models[at].health.lock().era();
        let stream = self.engine.generate(request).await.inspect_err(|error| self.failed(at, asked, error))?;
        let begun = self.models[at].health.lock().era();
        let (events, watched) = mpsc::channel(BUFFERED_EVENTS);
        tokio::spawn(Arc::clone(self).pass_on(at, begun, stream, limit, events));
        Ok(watched)
    }

    /// How long the first event of this request may take.
    fn first_limit(&self, request: &Generate) -> Duration {
        let tools = request.tools.iter().map(|tool| tool.name.len() + tool.description.len() + tool.parameters.len());
        // A continuation is read, or generated again, before its first event.
        let begun = request.continuation.as_ref().map_or(0, |begun| begun.text.len().max(begun.tokens.len()));
        let bytes = request.prompt_bytes() + tools.sum::<usize>() + begun;
        let reading = self.timeout.saturating_mul(u32::try_from(bytes).unwrap_or(u32::MAX)) / PROMPT_BYTES;
        self.timeout.saturating_add(reading)
    }

    /// From the engine to the reader, until one of them ends it, or nothing comes for too long.
    async fn pass_on(
        self: Arc<Self>,
        at: usize,
        begun: Era,
        mut stream: TokenStream,
        mut limit: Duration,
        events: mpsc::Sender<Result<Event, EngineError>>,
    ) {
        loop {
            let next = tokio::select! {
                biased;
                () = events.closed() => return,
                next = timeout(limit, stream.recv()) => next,
            };
            let event = match next {
                Ok(Some(event)) => event,
                Ok(None) => return self.failed(at, begun, &stopped()),
                Err(_) => {
                    drop(stream);
                    let hung = self.hung(at, limit);
                    self.failed(at, begun, &hung);
                    // Fails where the reader went away just now.
                    let _ = events.send(Err(hung)).await;
                    return;
                }
            };
            limit = self.timeout;
            let is_last = !matches!(event, Ok(Event::Piece(_)));
            match &event {
                Ok(Event::Piece(_)) => {}
                Ok(Event::Done(_)) => self.succeeded(at, begun),
                Err(error) => self.failed(at, begun, error),
            }
            // The time that a slow reader takes is not the engine's.
            if events.send(event).await.is_err() || is_last {
                return;
            }
        }
    }

    fn succeeded(&self, at: usize, begun: Era) {
        let model = &self.models[at];
        if model.health.lock().succeeded(begun) {
            titan_transport::seldom!(info, model = model.name, "healthy again: a request has been answered");
        }
    }

    fn failed(self: &Arc<Self>, at: usize, begun: Era, error: &EngineError) {
        let model = &self.models[at];
        if !is_refusal(error) && model.health.lock().failed(begun, error.to_string(), Instant::now()) {
            self.degraded(at, error);
        }
    }

    fn degraded(self: &Arc<Self>, at: usize, error: &EngineError) {
        let model = &self.models[at];
        titan_transport::seldom!(warn, model = model.name, %error, "degraded: it will be tried with one token from time to time");
        let prober = tokio::spawn(probe_until_healthy(Arc::downgrade(self), at));
        *model.prober.lock() = Some(AbortOnDropHandle::new(prober));
    }

    /// Nothing came for so long. The stream has been dropped.
    fn hung(self: &Arc<Self>, at: usize, limit: Duration) -> EngineError {
        let seconds = limit.as_secs();
        tracing::error!(
            model = self.models[at].name,
            seconds,
            "no token came: the engine is taken for hung and built anew"
        );
        drop(self.restart(at));
        EngineError::Hung { seconds }
    }

    /// Has the engine built anew, in a task of its own: half a restart would be worse than none.
    fn restart(self: &Arc<Self>, at: usize) -> JoinHandle<Result<(), EngineError>> {
        let watch = Arc::clone(self);
        watch.models[at].restart_owed.store(true, Relaxed);
        tokio::spawn(async move {
            let model = &watch.models[at];
            let _one_at_a_time = model.restarting.lock().await;
            let restarted = watch.engine.restart(&model.name).await;
            match &restarted {
                Ok(()) => {
                    model.restart_owed.store(false, Relaxed);
                    tracing::info!(model = model.name, "built anew");
                }
                Err(error) => {
                    tracing::error!(model = model.name, %error, "not built anew");
                    if model.health.lock().broken(error.to_string(), Instant::now()) {
                        watch.degraded(at, error);
                    }
                }
            }
            restarted
        })
    }

    /// Has what has to be built anew built, and asks for one token.
    async fn probe(self: &Arc<Self>, at: usize) {
        let model = &self.models[at];
        let restarted = if model.restart_owed.load(Relaxed) {
            self.restart(at).await.unwrap_or_else(|panic| Err(EngineError::Failed(format!("its restart: {panic}"))))
        } else {
            // One that is going on.
            drop(model.restarting.lock().await);
            Ok(())
        };
        if !model.health.lock().begin_probe(Instant::now()) {
            return;
        }
        let probe = match restarted {
            Ok(()) => self.one_token(at).await,
            Err(error) => Probe::Failed { reason: error.to_string() },
        };
        tracing::info!(model = model.name, ?probe, "tried with one token");
        if model.health.lock().end_probe(probe, Instant::now()) {
            tracing::info!(model = model.name, "healthy again");
        }
    }

    async fn one_token(self: &Arc<Self>, at: usize) -> Probe {
        let asked = Generate::new(&self.models[at].name, PROBE_PROMPT, Sampling::greedy(1));
        let asked = Generate { owner: PROBE_OWNER.to_owned(), ..asked };
        let mut limit = self.first_limit(&asked);
        let failed = |error: EngineError| match is_refusal(&error) {
            // It does answer, and what a client's request needs more than this one will be seen with the next.
            true => Probe::Succeeded,
            false => Probe::Failed { reason: error.to_string() },
        };
        // Clients' requests may hold all places for long, and tell more than a probe.
        let Ok(begun) = timeout(limit, self.engine.generate(asked)).await else { return Probe::NotTried };
        let mut stream = match begun {
            Ok(stream) => stream,
            Err(error) => return failed(error),
        };
        loop {
            match timeout(limit, stream.recv()).await {
                Ok(Some(Ok(Event::Piece(_)))) => limit = self.timeout,
                Ok(Some(Ok(Event::Done(_)))) => return Probe::Succeeded,
                Ok(Some(Err(error))) => return failed(error),
                Ok(None) => return failed(stopped()),
                Err(_) => {
                    drop(stream);
                    return failed(self.hung(at, limit));
                }
            }
        }
    }
}

async fn probe_until_healthy(watch: Weak<Watch>, at: usize) {
    let due = || watch.upgrade().and_then(|watch| watch.models[at].health.lock().probe_at());
    while let Some(due) = due() {
        sleep_until(due).await;
        let Some(watch) = watch.upgrade() else { return };
        watch.probe(at).await;
    }
}

/// A stream that ended without an end.
fn stopped() -> EngineError {
    EngineError::Failed("it stopped without saying why".to_owned())
}
