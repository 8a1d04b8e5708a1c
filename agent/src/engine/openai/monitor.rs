//! Whether the server is there, and how busy it is: asked all the time, so that a request to a dead server fails at once and not after a
//! timeout, and a server that comes back is used again without anybody's help.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::RwLock;
use tokio::sync::Notify;

use super::{
    http::{Http, HttpError},
    kind::{Facts, Kind, Trouble, look},
    source::{ServerSpec, is_loopback},
};
use crate::engine::Health;

/// Pause between two looks at a server on this machine. Its death is to be noticed within a second.
const PAUSE: Duration = Duration::from_millis(500);
/// The same for a server elsewhere, which may belong to somebody who counts questions. Requests notice its death themselves.
const PAUSE_REMOTE: Duration = Duration::from_secs(2);
/// Longest wait for an answer to "are you well". A server that computes answers late, a dead one not at all, and a refused connection is no
/// wait.
const HEALTH_PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two questions about its load.
const LOAD_EVERY: Duration = Duration::from_secs(1);
/// Longest wait for that: llama.cpp answers between two passes of its model.
const LOAD_PATIENCE: Duration = Duration::from_secs(1);

/// A server, and what is known of it now.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) spec: ServerSpec,
    pub(super) http: Http,
    /// Places, where the server does not tell.
    max_jobs: usize,
    state: RwLock<State>,
    load: RwLock<Load>,
    in_flight: AtomicUsize,
    suspected: Notify,
}

#[derive(Clone, Debug)]
struct State {
    /// Why it cannot be used.
    trouble: Option<Trouble>,
    /// What it said last.
    facts: Option<Arc<Facts>>,
}

/// Generations on the server, whoever asked for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    running: usize,
    waiting: usize,
}

/// A generation of ours, counted until it is dropped.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Server>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

impl Server {
    pub(super) fn new(spec: ServerSpec, http: Http, max_jobs: usize, first: Result<Facts, Trouble>) -> Arc<Self> {
        let state = match first {
            Ok(facts) => State { trouble: None, facts: Some(Arc::new(facts)) },
            Err(trouble) => State { trouble: Some(trouble), facts: None },
        };
        Arc::new(Self {
            spec,
            http,
            max_jobs,
            state: RwLock::new(state),
            load: RwLock::default(),
            in_flight: AtomicUsize::new(0),
            suspected: Notify::new(),
        })
    }

    /// What it is, if it can be used now; and else why not.
    pub(super) fn facts(&self) -> Result<Arc<Facts>, Trouble> {
        let state = self.state.read();
        match (&state.trouble, &state.facts) {
            (None, Some(facts)) => Ok(Arc::clone(facts)),
            (Some(trouble), _) => Err(trouble.clone()),
            (None, None) => Err(Trouble::Empty),
        }
    }

    /// What it was when it could be used last.
    pub(super) fn last_facts(&self) -> Option<Arc<Facts>> {
        self.state.read().facts.clone()
    }

    pub(super) fn health(&self) -> Health {
        match &self.state.read().trouble {
            None => Health::Healthy,
            Some(trouble) => Health::Degraded { reason: format!("the server at {}: {trouble}", self.spec.url) },
        }
    }

    pub(super) fn places(&self) -> usize {
        let told = self.last_facts().and_then(|facts| facts.places).unwrap_or(self.max_jobs);
        told.clamp(1, self.max_jobs)
    }

    pub(super) fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Relaxed);
        InFlight(Arc::clone(self))
    }

    /// A request met something that looks like the server's death: it is looked at now.
    pub(super) fn suspect(&self) {
        self.suspected.notify_one();
    }

    /// Generations that the server computes. One of ours that was cancelled counts as long as the server says so.
    pub(super) fn computing(&self) -> usize {
        self.in_flight.load(Relaxed).min(self.places()).max(self.load.read().running)
    }

    pub(super) fn queued(&self) -> usize {
        self.in_flight.load(Relaxed).saturating_sub(self.places()).max(self.load.read().waiting)
    }

    pub(super) fn idle(&self) -> bool {
        let load = *self.load.read();
        let running = self.in_flight.load(Relaxed).max(load.running);
        load.waiting == 0 && running < self.places() && self.state.read().trouble.is_none()
    }

    /// Looks at the server for ever.
    pub(super) async fn watch(self: Arc<Self>) {
        let pause = if is_loopback(&self.spec.url) { PAUSE } else { PAUSE_REMOTE };
        let (mut load_at, mut load_from) = (Instant::now(), Some(Source::Metrics));
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.suspected.notified() => {}
            }
            let facts = self.facts().ok();
            let trouble = match &facts {
                Some(facts) => self.check(facts.kind).await.err(),
                None => self.look_again().await.err(),
            };
            self.note(trouble);
            if facts.is_none() {
                load_from = Some(Source::Metrics);
                continue;
            }
            if load_at <= Instant::now() {
                load_from = self.ask_load(load_from).await;
                load_at = Instant::now() + LOAD_EVERY;
            }
        }
    }

    async fn check(&self, kind: Kind) -> Result<(), Trouble> {
        let path = if kind == Kind::Ollama { "/api/version" } else { "/health" };
        let mut asked = self.http.get(path, HEALTH_PATIENCE).await;
        if matches!(asked, Err(HttpError::Unreachable(_))) {
            // It may have been the connection alone, which the server had closed.
            asked = self.http.get(path, HEALTH_PATIENCE).await;
        }
        // No such question there.
        if matches!(asked.as_ref().map_err(HttpError::status), Err(Some(404 | 405 | 501))) {
            asked = self.http.get("models", HEALTH_PATIENCE).await;
        }
        asked.map(drop).map_err(|error| match error.status() {
            Some(401 | 403) => Trouble::Key(error.to_string()),
            _ => Trouble::Http(error),
        })
    }

    /// It may be another version, or have another model, when it comes back.
    async fn look_again(&self) -> Result<(), Trouble> {
        let facts = look(&self.http, &self.spec).await?;
        self.state.write().facts = Some(Arc::new(facts));
        Ok(())
    }

    fn note(&self, trouble: Option<Trouble>) {
        let before = std::mem::replace(&mut self.state.write().trouble, trouble.clone());
        let (model, server) = (&self.spec.name, &self.spec.url);
        match (&before, &trouble) {
            (None, Some(trouble)) => {
                *self.load.write() = Load::default();
                tracing::warn!(model, %server, reason = %trouble, "lost the server of a model; its requests fail until it is back");
            }
            (Some(_), None) => tracing::info!(model, %server, "the server of a model is back"),
            // Once: what follows is the same outage.
            (Some(before), Some(trouble)) if before != trouble => {
                tracing::debug!(model, %server, reason = %trouble, "the server of a model is still not back");
            }
            _ => {}
        }
    }

    /// Asks for the load where the server tells it. Gives where to ask next time.
    async fn ask_load(&self, from: Option<Source>) -> Option<Source> {
        let source = from?;
        let asked = match source {
            Source::Metrics => self.http.get("/metrics", LOAD_PATIENCE).await.map(|text| Load::from_metrics(&text)),
            Source::Slots => self.http.get("/slots", LOAD_PATIENCE).await.map(|text| Load::from_slots(&text)),
        };
        match (asked, source) {
            (Ok(Some(load)), _) => {
                *self.load.write() = load;
                from
            }
            // Busy, or gone: that is for `check` to say.
            (Err(HttpError::Silent(_) | HttpError::Unreachable(_)), _) => from,
            (_, Source::Metrics) => Some(Source::Slots),
            (_, Source::Slots) => None,
        }
    }
}

/// Where a server tells how busy it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// In Prometheus' format: vLLM, SGLang, and llama.cpp with `--metrics`.
    Metrics,
    /// llama.cpp, unless it was started with `--no-slots`.
    Slots,
}

impl Load {
    /// `None` where none of the known numbers is there.
    fn from_metrics(text: &str) -> Option<Self> {
        let mut found = None;
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let end = line.find(['{', ' ']).unwrap_or(line.len());
            let (name, rest) = line.split_at(end);
            // Labels may hold blanks; the value is what follows them, and a time may follow that.
            let value = rest.rsplit_once('}').map_or(rest, |(_, value)| value);
            let number = value.split_whitespace().next().and_then(|value| value.parse::<f64>().ok());
            let Some(number) = number.filter(|number| number.is_finite() && *number >= 0.0) else { continue };
            let load: &mut Self = match name {
                "vllm:num_requests_running"
                | "llamacpp:requests_processing"
                | "sglang:num_running_reqs"
                | "vllm:num_requests_waiting"
                | "llamacpp:requests_deferred"
                | "sglang:num_queue_reqs" => found.get_or_insert_default(),
                _ => continue,
            };
            let waits = name.ends_with("waiting") || name.ends_with("deferred") || name.ends_with("queue_reqs");
            // Several engines behind one server tell theirs apart.
            let counted = if waits { &mut load.waiting } else { &mut load.running };
            *counted = counted.saturating_add(number as usize);
        }
        found
    }

    fn from_slots(text: &str) -> Option<Self> {
        let slots: Vec<serde_json::Value> = serde_json::from_str(text).ok()?;
        let running = slots.iter().filter(|slot| slot.get("is_processing").is_some_and(|busy| busy == true)).count();
        Some(Self { running, waiting: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_read_from_each_kind_of_metrics() {
        let vllm = "# HELP vllm:num_requests_running Number of requests.\n\
                    vllm:num_requests_running{engine=\"0\",model_name=\"a b\"} 2.0\n\
                    vllm:num_requests_running{engine=\"1\",model_name=\"a b\"} 1.0 1700000000\n\
                    vllm:num_requests_waiting{engine=\"0\"} 4.0\nvllm:num_requests_running_total 9\n";
        assert_eq!(Load::from_metrics(vllm), Some(Load { running: 3, waiting: 4 }));
        let llama = "llamacpp:requests_processing 1\nllamacpp:requests_deferred 5\n";
        assert_eq!(Load::from_metrics(llama), Some(Load { running: 1, waiting: 5 }));
        let sglang = "sglang:num_running_reqs{m=\"x\"} 7\nsglang:num_queue_reqs{m=\"x\"} 0\n";
        assert_eq!(Load::from_metrics(sglang), Some(Load { running: 7, waiting: 0 }));
        for nothing in ["", "go_goroutines 7\n", "vllm:num_requests_running NaN\n", "<html>"] {
            assert_eq!(Load::from_metrics(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn slots_that_compute_are_counted() {
        let slots = r#"[{"id":0,"is_processing":true},{"id":1,"is_processing":false},{"id":2}]"#;
        assert_eq!(Load::from_slots(slots), Some(Load { running: 1, waiting: 0 }));
        assert_eq!(Load::from_slots("{}"), None);
    }
}
