//! An engine that does what a test tells it: each generation of a model takes the next script, and answers well where there is none.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::mpsc, time::sleep};

use super::super::super::{
    Engine, EngineError, Event, FinishReason, Generate, GenerateFuture, Health, RestartFuture, Usage,
};

/// What a generation does before the first of its steps, in `generate`, and then one after another.
#[derive(Clone, Debug, Default)]
pub(super) struct Script {
    pub(super) place: Place,
    pub(super) steps: Vec<Step>,
}

/// What becomes of its wait for a place.
#[derive(Clone, Debug, Default)]
pub(super) enum Place {
    #[default]
    Free,
    After(Duration),
    Never,
    Refused(EngineError),
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Says(&'static str),
    Takes(Duration),
    Fails(EngineError),
    /// Says no more, until nobody listens.
    Hangs,
    /// The task is gone, and the channel with it.
    Panics,
    /// The channel closes.
    Stops,
    Ends,
}

#[derive(Default)]
pub(super) struct Seen {
    /// Owner and model of each generation that was asked for.
    pub(super) asked: Vec<(String, String)>,
    /// Generations whose reader went away while they hung.
    pub(super) let_go: usize,
    pub(super) restarts: Vec<String>,
    restarting: HashMap<String, usize>,
    pub(super) most_restarting: usize,
    /// Probes that are asked for or computed now, and the most at once.
    pub(super) probing: usize,
    pub(super) most_probing: usize,
}

#[derive(Default)]
struct State {
    scripts: Mutex<HashMap<String, VecDeque<Script>>>,
    restarts: Mutex<VecDeque<(Duration, Result<(), EngineError>)>>,
    own_health: Mutex<Health>,
    seen: Mutex<Seen>,
}

#[derive(Clone)]
pub(super) struct Scripted {
    models: Vec<String>,
    state: std::sync::Arc<State>,
}

impl Scripted {
    pub(super) fn new(models: &[&str]) -> Self {
        Self { models: models.iter().map(ToString::to_string).collect(), state: Default::default() }
    }

    pub(super) fn next(&self, model: &str, steps: &[Step]) {
        self.script(model, Script { steps: steps.to_vec(), ..Script::default() });
    }

    pub(super) fn script(&self, model: &str, script: Script) {
        self.state.scripts.lock().entry(model.to_owned()).or_default().push_back(script);
    }

    /// How long the next restart takes, and how it ends.
    pub(super) fn next_restart(&self, takes: Duration, ends: Result<(), EngineError>) {
        self.state.restarts.lock().push_back((takes, ends));
    }

    pub(super) fn own_health(&self, health: Health) {
        *self.state.own_health.lock() = health;
    }

    pub(super) fn seen<T>(&self, what: impl FnOnce(&Seen) -> T) -> T {
        what(&self.state.seen.lock())
    }

    /// Probes so far.
    pub(super) fn probes(&self) -> usize {
        self.seen(|seen| seen.asked.iter().filter(|(owner, _)| owner == super::super::PROBE_OWNER).count())
    }
}

struct Probing(Option<Scripted>);

impl Probing {
    fn new(engine: &Scripted, owner: &str) -> Self {
        if owner != super::super::PROBE_OWNER {
            return Self(None);
        }
        let mut seen = engine.state.seen.lock();
        seen.probing += 1;
        seen.most_probing = seen.most_probing.max(seen.probing);
        Self(Some(engine.clone()))
    }
}

impl Drop for Probing {
    fn drop(&mut self) {
        if let Some(engine) = &self.0 {
            engine.state.seen.lock().probing -= 1;
        }
    }
}

impl Engine for Scripted {
    fn models(&self) -> Vec<String> {
        self.models.clone()
    }

    fn generate(&self, request: Generate) -> GenerateFuture<'_> {
        Box::pin(async move {
            let probing = Probing::new(self, &request.owner);
            self.state.seen.lock().asked.push((request.owner.clone(), request.model.clone()));
            let script = self.state.scripts.lock().get_mut(&request.model).and_then(VecDeque::pop_front);
            let well = || Script { steps: vec![Step::Says("well"), Step::Ends], ..Script::default() };
            let Script { place, steps } = script.unwrap_or_else(well);
            match place {
                Place::Free => {}
                Place::After(time) => sleep(time).await,
                Place::Never => std::future::pending().await,
                Place::Refused(error) => return Err(error),
            }
            let (events, stream) = mpsc::channel(64);
            let engine = self.clone();
            tokio::spawn(async move {
                let _probing = probing;
                engine.run(steps, events).await;
            });
            Ok(stream)
        })
    }

    fn health(&self) -> Health {
        self.state.own_health.lock().clone()
    }

    fn queued(&self) -> usize {
        7
    }

    fn computing(&self) -> usize {
        8
    }

    fn cached_prefixes(&self) -> Vec<u64> {
        vec![9]
    }

    fn idle(&self, model: &str) -> bool {
        model == "idle"
    }

    fn restart(&self, model: &str) -> RestartFuture<'_> {
        let model = model.to_owned();
        Box::pin(async move {
            {
                let mut seen = self.state.seen.lock();
                seen.restarts.push(model.clone());
                let restarting = seen.restarting.entry(model.clone()).or_default();
                *restarting += 1;
                let restarting = *restarting;
                seen.most_restarting = seen.most_restarting.max(restarting);
            }
            let (takes, ends) = self.state.restarts.lock().pop_front().unwrap_or((Duration::ZERO, Ok(())));
            sleep(takes).await;
            *self.state.seen.lock().restarting.entry(model).or_default() -= 1;
            ends
        })
    }
}

impl Scripted {
    async fn run(&self, steps: Vec<Step>, events: mpsc::Sender<Result<Event, EngineError>>) {
        for step in steps {
            match step {
                Step::Says(text) => {
                    if events.send(Ok(Event::Piece(text.into()))).await.is_err() {
                        return;
                    }
                }
                Step::Takes(time) => sleep(time).await,
                Step::Fails(error) => {
                    let _ = events.send(Err(error)).await;
                    return;
                }
                Step::Hangs => {
                    events.closed().await;
                    self.state.seen.lock().let_go += 1;
                    return;
                }
                Step::Panics => panic!("as the script says"),
                Step::Stops => return,
                Step::Ends => {
                    let usage = Usage {
                        prompt_tokens: 1,
                        cached_tokens: 0,
                        completion_tokens: 1,
                        finish_reason: FinishReason::Stop,
                    };
                    let _ = events.send(Ok(Event::Done(usage))).await;
                    return;
                }
            }
        }
    }
}
