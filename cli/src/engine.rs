//! From `--model` to an engine: what is to be loaded is checked at once, loading comes later.

mod keys;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use titan_agent::engine::{
    Engine,
    composite::{CompositeEngine, CompositeError},
    fetch::{DEFAULT_MODEL_NAME, default_model},
    isolation::isolation_test,
    mistral::{GpuOptions, Isq, MistralConfig, MistralEngine, ModelSource, ModelSpec},
    openai::{ServerEngine, ServerSpec},
    synthetic::{SYNTHETIC_MODEL, SyntheticEngine},
    watched::Watched,
};

use crate::{
    args::serve::{EngineArgs, KvCacheType},
    progress::Progress,
};

/// What will generate the text, checked but not loaded.
#[derive(Clone, Debug)]
pub(crate) enum EnginePlan {
    /// Tokens at a fixed rate.
    Synthetic { tokens_per_second: f64, words: bool },
    /// Models.
    Models { models: Vec<Planned>, settings: Settings },
}

/// A model that was asked for.
#[derive(Clone, Debug)]
pub(crate) enum Planned {
    /// The default model, under this name; it may have to be fetched.
    Default {
        name: String,
        /// In place of its own.
        chat_template: Option<PathBuf>,
    },
    /// Any other that the agent runs itself.
    Spec(ModelSpec),
    /// One on a server that its owner runs.
    Server(ServerSpec),
}

/// How models are run.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) max_jobs: usize,
    pub(crate) engines: Option<usize>,
    pub(crate) context_tokens: Option<usize>,
    pub(crate) force_cpu: bool,
    pub(crate) isq: Isq,
    pub(crate) self_test: bool,
    pub(crate) gpu: GpuOptions,
    /// Without a token for so long, an engine is taken for hung.
    pub(crate) engine_timeout: Duration,
}

impl EnginePlan {
    /// Checks every `--model`.
    pub(crate) fn new(args: &EngineArgs) -> anyhow::Result<Self> {
        let mut models = args.models.iter().map(|text| Planned::parse(text)).collect::<Result<Vec<_>, _>>()?;
        if models.is_empty() {
            models.push(Planned::default_model(DEFAULT_MODEL_NAME));
        }
        for text in &args.chat_templates {
            set_chat_template(&mut models, text)?;
        }
        check_names(&models)?;
        keys::give(&mut models, &args.model_keys, std::env::var(keys::VARIABLE).ok())?;
        let settings = Settings {
            max_jobs: usize::from(args.max_jobs),
            engines: args.engines.map(usize::from),
            context_tokens: args.context.map(|tokens| tokens as usize),
            force_cpu: args.cpu,
            isq: isq(&args.isq, &models)?,
            self_test: args.self_test,
            gpu: GpuOptions {
                cache_mib: args.gpu_memory.map(|mib| mib as usize),
                small_cache: args.kv_cache_type == KvCacheType::F8e4m3,
            },
            engine_timeout: args.engine_timeout,
        };
        Ok(Self::Models { models, settings })
    }

    /// The names that will be served, the default one first.
    pub(crate) fn names(&self) -> Vec<String> {
        match self {
            Self::Synthetic { .. } => vec![SYNTHETIC_MODEL.to_owned()],
            Self::Models { models, .. } => models.iter().flat_map(Planned::names).map(ToOwned::to_owned).collect(),
        }
    }

    /// Loads it, as one of `shares` engines that divide the machine's cores. What runs models is watched.
    pub(crate) async fn load(&self, shares: usize, progress: &Arc<Progress>) -> anyhow::Result<Arc<dyn Engine>> {
        let engine = self.load_unwatched(shares, progress).await?;
        match self {
            // It cannot hang, and what it is measured for must not change.
            Self::Synthetic { .. } => Ok(engine),
            Self::Models { settings, .. } => Ok(Arc::new(Watched::new(engine, settings.engine_timeout))),
        }
    }

    async fn load_unwatched(&self, shares: usize, progress: &Arc<Progress>) -> anyhow::Result<Arc<dyn Engine>> {
        let (models, settings) = match self {
            Self::Synthetic { tokens_per_second, words } => {
                return Ok(Arc::new(SyntheticEngine::new(*tokens_per_second).words(*words)));
            }
            Self::Models { models, settings } => (models, settings),
        };
        let (mut specs, mut engines) = (Vec::new(), Vec::<Box<dyn Engine>>::new());
        for model in models {
            if let Planned::Server(spec) = model {
                progress.spin(&format!("looking for the server of {}", spec.name));
                engines.push(Box::new(ServerEngine::start(spec.clone(), settings.max_jobs).await?));
            }
            specs.extend(model.spec(progress).await?);
        }
        if !specs.is_empty() {
            engines.push(Box::new(load_models(specs, settings, shares, models, progress).await?));
        }
        match engines.pop() {
            Some(only) if engines.is_empty() => Ok(Arc::from(only)),
            last => Ok(Arc::new(CompositeEngine::new(engines.into_iter().chain(last).collect(), &self.names())?)),
        }
    }
}

/// The models that the agent runs itself, as one of `shares` engines.
async fn load_models(
    specs: Vec<ModelSpec>,
    settings: &Settings,
    shares: usize,
    models: &[Planned],
    progress: &Arc<Progress>,
) -> anyhow::Result<MistralEngine> {
    // Where several agents share a machine, each takes its part of the cores; memory is looked at when each is loaded.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let max_jobs = if shares > 1 { settings.max_jobs.min(cores / shares).max(1) } else { settings.max_jobs };
    let config = MistralConfig {
        models: specs,
        max_jobs,
        engines: settings.engines,
        context_tokens: settings.context_tokens,
        force_cpu: settings.force_cpu,
        isq: settings.isq,
        gpu: settings.gpu.clone(),
    };
    let engine = MistralEngine::load(config, &|loaded| progress.load(loaded)).await?;
    // Where sequences share an engine the test is not a choice: whether they stay apart depends on the machine.
    if settings.self_test || engine.shares_engines() {
        self_test(&engine, models, progress).await?;
    }
    Ok(engine)
}

/// `--isq`, if it changes the weights of some model.
fn isq(text: &str, models: &[Planned]) -> anyhow::Result<Isq> {
    let isq: Isq = text.parse().context("--isq")?;
    let sources = models.iter().filter_map(|model| match model {
        Planned::Spec(spec) => Some(&spec.source),
        Planned::Default { .. } | Planned::Server(_) => None,
    });
    isq.check(sources)?;
    Ok(isq)
}

/// A server's model shares its name with no other. Among the rest, one source may have several names, and is merged later.
fn check_names(models: &[Planned]) -> anyhow::Result<()> {
    let on_servers = models.iter().filter(|model| matches!(model, Planned::Server(_)));
    for name in on_servers.flat_map(Planned::names) {
        if models.iter().flat_map(Planned::names).filter(|other| *other == name).count() > 1 {
            bail!(CompositeError::NameTwice(name.to_owned()));
        }
    }
    Ok(())
}

impl Planned {
    fn default_model(name: &str) -> Self {
        Self::Default { name: name.to_owned(), chat_template: None }
    }

    /// `NAME=SOURCE`, `SOURCE`, or the default model's name in either place.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        if ServerSpec::names_server(text) {
            return Ok(Self::Server(ServerSpec::parse(text).context("--model")?));
        }
        let (name, source) = text.split_once('=').unwrap_or((DEFAULT_MODEL_NAME, text));
        if source == DEFAULT_MODEL_NAME && !name.is_empty() {
            return Ok(Self::default_model(name));
        }
        Ok(Self::Spec(ModelSpec::parse(text).context("--model")?))
    }

    /// The names under which it will be served.
    pub(crate) fn names(&self) -> Vec<&str> {
        match self {
            Self::Default { name, .. } => vec![name],
            Self::Spec(spec) => spec.names.iter().map(String::as_str).collect(),
            Self::Server(spec) => vec![&spec.name],
        }
    }

    /// What the agent has to load; nothing of a server's model.
    async fn spec(&self, progress: &Arc<Progress>) -> anyhow::Result<Option<ModelSpec>> {
        let (name, chat_template) = match self {
            Self::Default { name, chat_template } => (name.clone(), chat_template.clone()),
            Self::Spec(spec) => return Ok(Some(spec.clone())),
            Self::Server(_) => return Ok(None),
        };
        let progress = Arc::clone(progress);
        let fetch =
            tokio::task::spawn_blocking(move || default_model(&|step| progress.fetch(DEFAULT_MODEL_NAME, step)));
        Ok(Some(ModelSpec { chat_template, ..ModelSpec::new(name, ModelSource::GgufFile(fetch.await??)) }))
    }
}

/// `NAME=FILE`, or `FILE` for the only model.
pub(crate) fn set_chat_template(models: &mut [Planned], text: &str) -> anyhow::Result<()> {
    // A path may hold '='.
    let named = text.split_once('=').filter(|(name, _)| !name.contains(['/', '\\']));
    let (model, file) = match (named, models.len()) {
        (Some((name, file)), _) => {
            let names = models.iter().flat_map(Planned::names).collect::<Vec<_>>().join(", ");
            let model = models.iter_mut().find(|model| model.names().contains(&name));
            (
                model
                    .with_context(|| format!("--chat-template {text}: there is no model {name:?}; there is {names}"))?,
                file,
            )
        }
        (None, 1) => (&mut models[0], text),
        (None, _) => bail!("--chat-template {text}: there are several models: say which one, as NAME=FILE"),
    };
    if !Path::new(file).is_file() {
        bail!("--chat-template {text}: there is no file {file:?}");
    }
    let (Planned::Default { chat_template, .. } | Planned::Spec(ModelSpec { chat_template, .. })) = model else {
        bail!(
            "--chat-template {text}: a server renders its models' conversations itself, so the template belongs there"
        );
    };
    if chat_template.replace(file.into()).is_some() {
        bail!("--chat-template {text}: this model has been given one already");
    }
    Ok(())
}

/// Of the models that the agent runs itself: what a server's owner tests is the owner's.
async fn self_test(engine: &dyn Engine, models: &[Planned], progress: &Progress) -> anyhow::Result<()> {
    let own = models.iter().filter(|model| !matches!(model, Planned::Server(_)));
    for name in own.filter_map(|model| model.names().first().copied()) {
        progress.spin(&format!("testing that requests to {name} stay apart"));
        let report = isolation_test(engine, name).await.context("--self-test: not serving")?;
        let (elapsed_ms, ties) = (report.elapsed.as_millis() as u64, report.ties);
        tracing::info!(model = name, elapsed_ms, ties, "isolation test passed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_default_model_can_be_asked_for_by_name_and_under_another() {
        for (text, expected) in [("smollm2:135m", "smollm2:135m"), ("tiny=smollm2:135m", "tiny")] {
            let planned = Planned::parse(text).unwrap();
            assert!(matches!(&planned, Planned::Default { name, .. } if name == expected), "{planned:?}");
        }
        assert!(matches!(Planned::parse("q=Qwen/Qwen3-0.6B").unwrap(), Planned::Spec(spec) if spec.names == ["q"]));
    }

    #[test]
    fn a_type_of_weights_is_for_models_that_have_plain_ones() {
        let plan =
            |models: &[&str]| isq("q4k", &models.iter().map(|text| Planned::parse(text).unwrap()).collect::<Vec<_>>());
        assert_eq!(plan(&["smollm2:135m", "q=Qwen/Qwen3-0.6B"]).unwrap().to_string(), "Q4_K");
        for models in [["smollm2:135m"], ["q=http://h/v1#m"]] {
            let message = plan(&models).unwrap_err().to_string();
            assert!(message.contains("--isq Q4_K") && message.contains("safetensors"), "{message}");
        }
        let message = format!("{:#}", isq("q9", &[]).unwrap_err());
        assert!(message.starts_with("--isq: ") && message.contains("Q4_K"), "{message}");
    }

    #[test]
    fn a_chat_template_is_for_the_model_that_it_names() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a=b.jinja");
        std::fs::write(&file, "x").unwrap();
        let file = file.display();
        let models = || vec![Planned::default_model("one"), Planned::parse("two=org/two").unwrap()];
        let template = |model: &Planned| match model {
            Planned::Default { chat_template, .. } => chat_template.clone(),
            Planned::Spec(spec) => spec.chat_template.clone(),
            Planned::Server(_) => None,
        };
        for (at, name) in ["one", "two"].into_iter().enumerate() {
            let mut models = models();
            set_chat_template(&mut models, &format!("{name}={file}")).unwrap();
            assert_eq!(template(&models[at]).unwrap().display().to_string(), file.to_string());
            assert_eq!(template(&models[1 - at]), None);
            let twice = set_chat_template(&mut models, &format!("{name}={file}")).unwrap_err().to_string();
            assert!(twice.contains("already"), "{twice}");
        }
        let mut alone = models();
        alone.truncate(1);
        set_chat_template(&mut alone, &file.to_string()).unwrap();
        assert!(template(&alone[0]).is_some());
        for (text, says) in [
            (file.to_string(), "NAME=FILE"),
            (format!("three={file}"), "there is one, two"),
            ("one=/no/such.jinja".to_owned(), "no file \"/no/such.jinja\""),
        ] {
            let message = set_chat_template(&mut models(), &text).unwrap_err().to_string();
            assert!(message.contains("--chat-template") && message.contains(says), "{message}");
        }
    }

    #[test]
    fn a_url_is_a_model_on_a_server_and_has_its_name_to_itself() {
        let plan = |texts: &[&str]| {
            let models: Vec<Planned> = texts.iter().map(|text| Planned::parse(text).unwrap()).collect();
            check_names(&models).map(|()| models.iter().flat_map(Planned::names).map(str::to_owned).collect::<Vec<_>>())
        };
        assert_eq!(plan(&["a=http://h/v1#m", "smollm2:135m", "http://h/v1#m"]).unwrap(), ["a", "smollm2:135m", "m"]);
        for twice in [["a=http://h/v1#m", "a=smollm2:135m"], ["a=http://h/v1#m", "a=http://h/v1#n"]] {
            assert!(plan(&twice).unwrap_err().to_string().contains("\"a\""));
        }
        let message = format!("{:#}", Planned::parse("http://127.0.0.1:8000/v1").unwrap_err());
        assert!(message.contains("--model") && message.contains("NAME="), "{message}");
    }

    #[test]
    fn a_model_that_is_not_there_is_named() {
        let message = format!("{:#}", Planned::parse("llama=/no/such/model.gguf").unwrap_err());
        assert!(message.contains("--model") && message.contains("/no/such/model.gguf"), "{message}");
    }
}
