//! Several engines as one: each model is served by the engine that has it.

use std::fmt;

use titan_proto::v1::ModelInfo;

use super::{Engine, EngineError, Generate, GenerateFuture, Health, RestartFuture};

/// Engines side by side, found by the names of their models.
pub struct CompositeEngine {
    engines: Vec<Box<dyn Engine>>,
    /// Every name and the engine that serves it, the default one first.
    models: Vec<(String, usize)>,
}

/// Why engines cannot stand side by side.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompositeError {
    /// A request could not say which of the two it means.
    #[error("the model name {0:?} is given to two different models: give one of them another name")]
    NameTwice(String),
}

impl CompositeEngine {
    /// Serves what each of the engines serves. Those of `order` come first, in that order: the first of all is the default model.
    ///
    /// # Errors
    /// Two engines have a model of the same name.
    pub fn new(engines: Vec<Box<dyn Engine>>, order: &[String]) -> Result<Self, CompositeError> {
        let mut models: Vec<(String, usize)> = Vec::new();
        for (at, engine) in engines.iter().enumerate() {
            for name in engine.models() {
                if models.iter().any(|(other, _)| *other == name) {
                    return Err(CompositeError::NameTwice(name));
                }
                models.push((name, at));
            }
        }
        // Stable: what is not in `order` stays as it is, behind.
        models.sort_by_key(|(name, _)| order.iter().position(|other| other == name).unwrap_or(usize::MAX));
        Ok(Self { engines, models })
    }

    fn of(&self, model: &str) -> Option<&dyn Engine> {
        let (_, at) = self.models.iter().find(|(name, _)| name == model)?;
        Some(self.engines[*at].as_ref())
    }

    fn sum(&self, of: impl Fn(&dyn Engine) -> usize) -> usize {
        self.engines.iter().map(|engine| of(engine.as_ref())).sum()
    }
}

impl Engine for CompositeEngine {
    fn models(&self) -> Vec<String> {
        self.models.iter().map(|(name, _)| name.clone()).collect()
    }

    fn generate(&self, request: Generate) -> GenerateFuture<'_> {
        match self.of(&request.model) {
            Some(engine) => engine.generate(request),
            None => {
                let unknown = EngineError::UnknownModel { model: request.model, available: self.models() };
                Box::pin(async move { Err(unknown) })
            }
        }
    }

    fn model_info(&self) -> Vec<ModelInfo> {
        let mut known: Vec<ModelInfo> = self.engines.iter().flat_map(|engine| engine.model_info()).collect();
        let order = |info: &ModelInfo| self.models.iter().position(|(name, _)| *name == info.name);
        known.sort_by_key(|info| order(info).unwrap_or(usize::MAX));
        known
    }

    fn computing(&self) -> usize {
        self.sum(|engine| engine.computing())
    }

    /// The worst of them. Its reason names the models that it concerns.
    fn health(&self) -> Health {
        let (mut degraded, mut half_open) = (Vec::new(), Vec::new());
        for engine in &self.engines {
            let of_models = |reason: &str| format!("{}: {reason}", engine.models().join(", "));
            match engine.health() {
                Health::Healthy => {}
                Health::Degraded { reason } => degraded.push(of_models(&reason)),
                Health::HalfOpen { reason } => half_open.push(of_models(&reason)),
            }
        }
        match (degraded.is_empty(), half_open.is_empty()) {
            (false, _) => Health::Degraded { reason: degraded.join("; ") },
            (true, false) => Health::HalfOpen { reason: half_open.join("; ") },
            (true, true) => Health::Healthy,
        }
    }

    /// By turns, so that where the list is cut short each engine keeps its most recent ones.
    fn cached_prefixes(&self) -> Vec<u64> {
        let each: Vec<Vec<u64>> = self.engines.iter().map(|engine| engine.cached_prefixes()).collect();
        let longest = each.iter().map(Vec::len).max().unwrap_or(0);
        (0..longest).flat_map(|at| each.iter().filter_map(move |of_one| of_one.get(at).copied())).collect()
    }

    fn queued(&self) -> usize {
        self.sum(|engine| engine.queued())
    }

    fn idle(&self, model: &str) -> bool {
        self.of(model).is_some_and(|engine| engine.idle(model))
    }

    fn uses_gpu(&self) -> bool {
        self.engines.iter().any(|engine| engine.uses_gpu())
    }

    fn restart(&self, model: &str) -> RestartFuture<'_> {
        match self.of(model) {
            Some(engine) => engine.restart(model),
            None => Box::pin(std::future::ready(Ok(()))),
        }
    }
}

impl fmt::Debug for CompositeEngine {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("CompositeEngine").field("models", &self.models).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::sync::mpsc;

    use super::*;
    use crate::engine::{Event, Sampling};

    /// Says its first model's name.
    struct Fake {
        models: Vec<&'static str>,
        health: Health,
        cached: Vec<u64>,
    }

    impl Engine for Fake {
        fn models(&self) -> Vec<String> {
            self.models.iter().map(|name| (*name).to_owned()).collect()
        }

        fn generate(&self, _request: Generate) -> GenerateFuture<'_> {
            let (sender, stream) = mpsc::channel(1);
            sender.try_send(Ok(Event::Piece(self.models[0].into()))).unwrap();
            Box::pin(async move { Ok(stream) })
        }

        fn health(&self) -> Health {
            self.health.clone()
        }

        fn cached_prefixes(&self) -> Vec<u64> {
            self.cached.clone()
        }

        fn queued(&self) -> usize {
            self.models.len()
        }

        fn restart(&self, model: &str) -> RestartFuture<'_> {
            let told = EngineError::Failed(format!("restarted {model}"));
            Box::pin(async move { Err(told) })
        }

        fn idle(&self, _model: &str) -> bool {
            self.health == Health::Healthy
        }
    }

    fn fake(models: &[&'static str], health: Health, cached: &[u64]) -> Box<dyn Engine> {
        Box::new(Fake { models: models.to_vec(), health, cached: cached.to_vec() })
    }

    fn degraded(reason: &str) -> Health {
        Health::Degraded { reason: reason.to_owned() }
    }

    fn both() -> CompositeEngine {
        let engines = vec![fake(&["a", "b"], Health::Healthy, &[1, 2, 3]), fake(&["c"], degraded("gone"), &[7])];
        CompositeEngine::new(engines, &["c".to_owned(), "b".to_owned()]).unwrap()
    }

    #[tokio::test]
    async fn each_model_is_served_by_its_own_engine_and_the_first_asked_for_is_the_default() {
        let engine = both();
        assert_eq!(engine.models(), ["c", "b", "a"]);
        let names: Vec<String> = engine.model_info().into_iter().map(|info| info.name).collect();
        assert_eq!(names, engine.models());
        for (model, says) in [("a", "a"), ("b", "a"), ("c", "c")] {
            let mut stream = engine.generate(Generate::new(model, "?", Sampling::greedy(1))).await.unwrap();
            assert_eq!(stream.recv().await.unwrap().unwrap(), Event::Piece(says.into()));
        }
        let unknown = engine.generate(Generate::new("d", "?", Sampling::greedy(1))).await.unwrap_err();
        assert!(unknown.to_string().contains("c, b, a"), "{unknown}");
    }

    #[test]
    fn the_worst_health_counts_and_names_its_model() {
        let engine = both();
        assert_eq!(engine.health(), degraded("c: gone"));
        assert!(engine.idle("a") && !engine.idle("c") && !engine.idle("d"));
        let half_open = Health::HalfOpen { reason: "slow".to_owned() };
        let engines = vec![fake(&["a"], half_open.clone(), &[]), fake(&["b"], Health::Healthy, &[])];
        let engine = CompositeEngine::new(engines, &[]).unwrap();
        assert_eq!(engine.health(), Health::HalfOpen { reason: "a: slow".to_owned() });
        let engines =
            vec![fake(&["a"], half_open, &[]), fake(&["b"], degraded("x"), &[]), fake(&["c"], degraded("y"), &[])];
        assert_eq!(CompositeEngine::new(engines, &[]).unwrap().health(), degraded("b: x; c: y"));
    }

    #[tokio::test]
    async fn a_restart_reaches_the_engine_of_the_model() {
        let error = both().restart("c").await.unwrap_err();
        assert!(error.to_string().contains("restarted c"), "{error}");
    }

    #[test]
    fn numbers_add_up_and_prefixes_come_by_turns() {
        assert_eq!(both().queued(), 3);
        assert_eq!(both().cached_prefixes(), [1, 7, 2, 3]);
    }

    #[test]
    fn a_name_stands_for_one_model() {
        let engines = vec![fake(&["a", "b"], Health::Healthy, &[]), fake(&["b"], Health::Healthy, &[])];
        assert_eq!(CompositeEngine::new(engines, &[]).unwrap_err(), CompositeError::NameTwice("b".to_owned()));
    }
}
