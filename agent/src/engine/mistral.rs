//! The engine that runs models: mistral.rs. Its types appear in this module only.
//!
//! mistral.rs 0.8 corrupts the texts of two sequences that share an engine on a CPU: a scratch buffer of its attention forgets the batch
//! dimension. So on a CPU each model has several engines, each with **one** sequence; on a GPU it has one engine with continuous
//! batching and paged attention. [`super::isolation`] tests that on the machine at hand.
//!
//! The way of a request: [`pool`] gives it a place, [`prompt_escape`] makes its text harmless, [`request`] asks the engine, [`sampler`] chooses its
//! tokens, [`run`] turns chunks into events. [`continuation`] goes on with an answer that was begun elsewhere.

mod continuation;
mod gguf;
mod load;
mod pool;
pub(super) mod prompt_escape;
mod request;
mod run;
mod sampler;
mod source;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc};

use tokio::sync::oneshot;

pub use self::{
    gguf::GgufError,
    load::{LoadError, LoadProgress, MistralConfig},
    source::{ModelSource, ModelSpec, SourceError},
};
use self::{load::Loaded, pool::Pool};
use super::{Engine, EngineError, Generate, GenerateFuture, Sampling, TokenStream};

/// Models run by mistral.rs.
pub struct MistralEngine {
    models: Vec<Arc<Loaded>>,
}

impl MistralEngine {
    /// Loads every model, one engine after another. Needs a tokio runtime; takes seconds for small models, minutes for large ones.
    pub async fn load(
        config: MistralConfig,
        on_progress: &(dyn Fn(&LoadProgress) + Send + Sync),
    ) -> Result<Self, LoadError> {
        let specs = ModelSpec::merge(config.models.clone())?;
        if specs.is_empty() {
            return Err(LoadError::NoModel);
        }
        let mut models = Vec::new();
        for (at, spec) in specs.iter().enumerate() {
            models.push(Arc::new(load::load(spec, &config, specs.len() - at, on_progress).await?));
        }
        Ok(Self { models })
    }

    /// How many generations run at once, all models together.
    pub fn places(&self) -> usize {
        self.models.iter().map(|model| model.pool.places()).sum()
    }

    /// How many generations could start now without waiting.
    pub fn free_places(&self) -> usize {
        self.pools().map(|pool| pool.free()).sum()
    }

    /// Tokens that prompt and answer may have together.
    pub fn context_tokens(&self, model: &str) -> Option<usize> {
        self.find(model).ok().map(|model| model.context_tokens)
    }

    fn pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.models.iter().map(|model| &model.pool)
    }

    fn find(&self, name: &str) -> Result<&Arc<Loaded>, EngineError> {
        let found = self.models.iter().find(|model| model.names.iter().any(|other| other == name));
        found.ok_or_else(|| EngineError::UnknownModel { model: name.to_owned(), available: self.models() })
    }

    async fn start(&self, request: Generate) -> Result<TokenStream, EngineError> {
        let model = self.find(&request.model)?;
        check(&request.sampling, request.continuation.is_some())?;
        let gone = || EngineError::Failed("the engine is shutting down".to_owned());
        let place = model.pool.acquire().await.ok_or_else(gone)?;
        let (started, stream) = oneshot::channel();
        tokio::spawn(run::run(model.clone(), place, request, started));
        stream.await.map_err(|_| gone())?
    }
}

impl Engine for MistralEngine {
    fn models(&self) -> Vec<String> {
        self.models.iter().flat_map(|model| model.names.clone()).collect()
    }

    fn generate(&self, request: Generate) -> GenerateFuture<'_> {
        Box::pin(self.start(request))
    }

    fn queued(&self) -> usize {
        self.pools().map(|pool| pool.waiting()).sum()
    }

    fn idle(&self, model: &str) -> bool {
        self.find(model).is_ok_and(|model| model.pool.free() > 0)
    }
}

impl fmt::Debug for MistralEngine {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("MistralEngine")
            .field("models", &self.models())
            .field("places", &self.places())
            .finish_non_exhaustive()
    }
}

/// Values out of range make mistral.rs' engine panic and take other requests with it, so they are refused here even if a caller has
/// checked them.
fn check(sampling: &Sampling, continued: bool) -> Result<(), EngineError> {
    let within = |value: f32, from: f32, to: f32| value >= from && value <= to;
    let optional = |value: Option<f32>, from, to| value.is_none_or(|value| within(value, from, to));
    let wrong = match sampling {
        s if s.max_tokens == 0 && !continued => "max_tokens is at least 1",
        s if !(s.temperature.is_finite() && s.temperature >= 0.0) => "temperature is a number from 0 on",
        s if !optional(s.top_p, f32::MIN_POSITIVE, 1.0) => "top_p is above 0 and at most 1",
        s if s.top_k == Some(0) => "top_k is at least 1",
        s if !optional(s.min_p, 0.0, 1.0) => "min_p is from 0 to 1",
        s if !optional(s.frequency_penalty, -2.0, 2.0) => "frequency_penalty is from -2 to 2",
        s if !optional(s.presence_penalty, -2.0, 2.0) => "presence_penalty is from -2 to 2",
        s if s.stop.iter().any(String::is_empty) => "a stop text is not empty",
        _ => return Ok(()),
    };
    Err(EngineError::InvalidParameter(wrong.to_owned()))
}
