//! The engine that runs models: mistral.rs. Its types appear in this module only.
//!
//! mistral.rs 0.8 corrupts the texts of two sequences that share an engine on a CPU: a scratch buffer of its attention forgets the batch
//! dimension. So on a CPU each model has several engines, each with **one** sequence; on a GPU it has one engine with continuous
//! batching and paged attention. [`super::isolation`] tests that on the machine at hand.
//!
//! The way of a request: [`template`] renders the conversation, whose texts [`prompt_escape`] makes harmless, [`vocabulary`] makes tokens of it, [`pool`]
//! gives it a place, [`reading`] has the engine read it by [`request`]s, and [`generation`] makes the answer: [`guide`] says which tokens may come,
//! [`sampler`] chooses one, [`tool_calls`] tells text and calls apart. [`run`] puts these together. [`engines`] replaces those that
//! hang.
//!
//! The way of a model: [`source`] says where it is, [`files`] what its files say ([`gguf`], [`safetensors`]) and [`identity`] which one it is,
//! [`isq`] what its weights become, [`pipeline`] has mistral.rs load it, [`quiet`] makes one line of whatever goes wrong there, and [`load`] puts it all together.

mod engines;
mod files;
mod generation;
mod gguf;
mod guide;
mod hub;
mod identity;
mod isq;
mod load;
mod memory;
mod pipeline;
mod pool;
pub(super) mod prompt_escape;
mod quiet;
mod reading;
mod request;
mod run;
mod safetensors;
mod sampler;
mod source;
mod template;
mod template_source;
#[cfg(test)]
mod tests;
mod tool_calls;
mod vocabulary;

use std::{fmt, sync::Arc};

use titan_proto::v1::ModelInfo;
use tokio::sync::oneshot;

pub use self::{
    gguf::GgufError,
    isq::{Isq, NothingToQuantize, QuantizedType, UnknownIsq},
    load::{GpuOptions, LoadError, LoadProgress, MistralConfig},
    safetensors::SafetensorsError,
    source::{ModelSource, ModelSpec, SourceError},
    template_source::ChatTemplateError,
};
use self::{
    load::Loaded,
    pool::{Place, Pool},
    run::Prepared,
};
use super::{Engine, EngineError, Generate, GenerateFuture, RestartFuture, Sampling, TokenStream};

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
        config.isq.check(specs.iter().map(|spec| &spec.source))?;
        let mut models = Vec::new();
        for (at, spec) in specs.iter().enumerate() {
            models.push(Arc::new(load::load(spec, &config, (at, specs.len()), on_progress).await?));
        }
        Ok(Self { models })
    }

    /// How many generations run at once, all models together.
    pub fn places(&self) -> usize {
        self.models.iter().map(|model| model.pool.places()).sum()
    }

    /// Whether one of its engines runs several generations at once, so that the isolation test has something to test.
    pub fn shares_engines(&self) -> bool {
        self.models.iter().any(|model| model.pool.places_each() > 1)
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
        let asking = model.clone();
        let prepared = tokio::task::spawn_blocking(move || run::prepare(&asking, &request));
        let prepared = match prepared.await.map_err(|_| shutting_down())??.into_finished() {
            Ok(stream) => return Ok(stream),
            Err(prepared) => *prepared,
        };
        let known = |engine: usize| model.engines.get(engine).held.lock().worth(&prepared.owner, &prepared.tokens);
        let place = tokio::select! {
            place = model.pool.acquire(known) => place.ok_or_else(shutting_down)?,
            reason = model.engines.broken() => return Err(EngineError::Failed(reason)),
        };
        begin(model, place, prepared).await
    }
}

/// Has the engine of this place begin, in a task that ends when the engine has hung.
async fn begin(model: &Arc<Loaded>, place: Place, prepared: Prepared) -> Result<TokenStream, EngineError> {
    let engine = model.engines.get(place.engine());
    let (started, stream) = oneshot::channel();
    let hung = engine.hung.clone();
    tokio::spawn(hung.run_until_cancelled_owned(run::run(model.clone(), engine, place, prepared, started)));
    stream.await.map_err(|_| shutting_down())?
}

fn shutting_down() -> EngineError {
    EngineError::Failed("the engine is shutting down".to_owned())
}

impl Engine for MistralEngine {
    fn models(&self) -> Vec<String> {
        self.models.iter().flat_map(|model| model.names.clone()).collect()
    }

    fn generate(&self, request: Generate) -> GenerateFuture<'_> {
        Box::pin(self.start(request))
    }

    fn model_info(&self) -> Vec<ModelInfo> {
        let of = |model: &Arc<Loaded>| -> Vec<ModelInfo> {
            model.names.iter().map(|name| ModelInfo { name: name.clone(), ..model.info.clone() }).collect()
        };
        self.models.iter().flat_map(of).collect()
    }

    fn queued(&self) -> usize {
        self.pools().map(|pool| pool.waiting()).sum()
    }

    fn computing(&self) -> usize {
        self.pools().map(|pool| pool.places() - pool.free()).sum()
    }

    fn uses_gpu(&self) -> bool {
        self.models.iter().any(|model| !model.on_cpu)
    }

    fn cached_prefixes(&self) -> Vec<u64> {
        let engines = self.models.iter().flat_map(|model| model.engines.all());
        engines.flat_map(|engine| engine.held.lock().digests()).collect()
    }

    fn idle(&self, model: &str) -> bool {
        self.find(model).is_ok_and(|model| model.pool.free() > 0)
    }

    fn restart(&self, model: &str) -> RestartFuture<'_> {
        let model = self.find(model).cloned();
        Box::pin(async move { model?.restart().await })
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
