//! Loading models: their files are looked at, then mistral.rs gets them, then it has to show that it computes.

use std::{path::PathBuf, sync::Arc};

use mistralrs::ModelCategory;
use titan_proto::v1::{Message, ModelInfo};

use super::{
    super::Reasoning,
    ChatTemplateError, GgufError, ModelSource, ModelSpec, SafetensorsError, SourceError,
    engines::{Build, Engines},
    files::ModelFiles,
    hub,
    isq::{Isq, NothingToQuantize},
    memory,
    pipeline::{self, Settings},
    pool::Pool,
    prompt_escape::{BREAKERS, PromptEscape},
    quiet::one_line,
    reading::ReadingSpeed,
    template::{ChatTemplate, TemplateError},
    template_source::TemplateSource,
    vocabulary::Vocabulary,
};

/// What to load, and how much room it may take.
#[derive(Clone, Debug)]
pub struct MistralConfig {
    /// The models, the default one first.
    pub models: Vec<ModelSpec>,
    /// Generations that the agent admits at once: no more places than that are made.
    pub max_jobs: usize,
    /// Engines of each model on a CPU. Defaults to the least of `max_jobs`, cores, and what memory allows.
    pub engines: Option<usize>,
    /// Bounds the context below what the models allow; the memory of an engine grows with it. Defaults to the models' own.
    pub context_tokens: Option<usize>,
    /// Uses the CPU even where this build finds a GPU. Defaults to false.
    pub force_cpu: bool,
    /// What the weights of safetensors are brought to. Defaults to eight bits on a CPU, and as they are on a GPU.
    pub isq: Isq,
    /// For models on a GPU.
    pub gpu: GpuOptions,
}

/// How a GPU is used. On a CPU nothing of this matters.
#[derive(Clone, Debug, Default)]
pub struct GpuOptions {
    /// MiB of each model's cache of conversations. Defaults to a share of what the card has, the same for each model.
    pub cache_mib: Option<usize>,
    /// Keeps that cache in 8-bit floats: twice the conversations, slightly different numbers. Defaults to false.
    pub small_cache: bool,
}

/// An engine has been loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadProgress {
    /// The model's first name.
    pub model: String,
    /// Engines of this model that are loaded, from 0 (loading begins) to `engines` (ready).
    pub loaded: usize,
    /// Engines that this model gets.
    pub engines: usize,
}

/// Why the models could not be loaded. Each message is one line, and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No model at all.
    #[error("no model is configured: give --model NAME=SOURCE")]
    NoModel,
    /// `isq` would change nothing.
    #[error(transparent)]
    Isq(#[from] NothingToQuantize),
    /// The sources contradict each other.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The file is no whole GGUF file, or mistral.rs cannot run it.
    #[error("model file {path:?}: {error}")]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: GgufError,
    },
    /// The directory is no whole model.
    #[error("model directory {path:?}: {error}")]
    Safetensors {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        error: SafetensorsError,
    },
    /// It holds no chat template, so nobody could tell how to ask it.
    #[error(
        "model {model}: it has no chat template: give one with --chat-template {model}=FILE, or use an instruction-tuned model"
    )]
    NoChatTemplate {
        /// The model.
        model: String,
    },
    /// A template file that cannot be read.
    #[error(transparent)]
    ChatTemplateFile(#[from] ChatTemplateError),
    /// Its template cannot render a conversation: each request would fail.
    #[error("model {model}: {reason} ({origin}): give another one with --chat-template {model}=FILE")]
    ChatTemplate {
        /// The model.
        model: String,
        /// Where the template comes from.
        origin: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// It is no text model.
    #[error("model {model} does not generate text from text: give a language model")]
    NotText {
        /// The model.
        model: String,
    },
    /// Its tokenizer's control tokens could not be found or not be neutralised in user text.
    #[error("model {model}: {reason}: give another conversion of it")]
    Tokenizer {
        /// The model.
        model: String,
        /// Why.
        reason: String,
    },
    /// mistral.rs refused it, or broke down over it.
    #[error("model {model} from {origin} could not be loaded: {reason}{}", if *hub { " (the Hugging Face hub must be reachable, or the model in its cache; without a network give a file or a directory)" } else { ": download it again, give another conversion of the model, or serve it with another engine" })]
    Refused {
        /// The model.
        model: String,
        /// Where it comes from.
        origin: ModelSource,
        /// What mistral.rs says.
        reason: String,
        /// It had to be fetched.
        hub: bool,
    },
}

/// Sequences at once on a GPU. mistral.rs runs those of one length together and prefills the others anew when their turn comes: 64 hung on an H100, 16 do not.
const GPU_SEQUENCES: usize = 16;

/// A model ready to generate.
pub(super) struct Loaded {
    pub(super) names: Vec<String>,
    pub(super) engines: Engines,
    pub(super) pool: Arc<Pool>,
    pub(super) context_tokens: usize,
    pub(super) vocabulary: Arc<Vocabulary>,
    pub(super) template: ChatTemplate,
    pub(super) escape: PromptEscape,
    /// Tokens of conversations that each engine may keep; `None` where it keeps none, or looks after them itself.
    pub(super) cache_tokens: Option<usize>,
    pub(super) reading_speed: ReadingSpeed,
    pub(super) on_cpu: bool,
    /// Without a name: it has several.
    pub(super) info: ModelInfo,
}

/// Loads one model, the one at position `at` of `of`, which divide the memory.
pub(super) async fn load(
    spec: &ModelSpec,
    config: &MistralConfig,
    (at, of): (usize, usize),
    on_progress: &(dyn Fn(&LoadProgress) + Send + Sync),
) -> Result<Loaded, LoadError> {
    let name = spec.names.first().cloned().ok_or(LoadError::NoModel)?;
    let progress = |loaded, engines| on_progress(&LoadProgress { model: name.clone(), loaded, engines });
    progress(0, config.engines.unwrap_or(1));
    let given = spec.chat_template.as_deref().map(TemplateSource::read).transpose()?;
    let files = Arc::new(files(&name, &spec.source, config.force_cpu).await?);
    let source = match given {
        Some(given) => given,
        None => files.chat_template()?.ok_or_else(|| LoadError::NoChatTemplate { model: name.clone() })?,
    };
    let unusable = |error: TemplateError| LoadError::ChatTemplate {
        model: name.clone(),
        origin: source.origin.clone(),
        reason: error.to_string(),
    };
    let template = ChatTemplate::new(source.text.clone(), files.special_tokens()).map_err(unusable)?;

    let on_cpu = config.force_cpu || mistralrs::best_device(false).is_ok_and(|device| device.is_cpu());
    let settings = Settings {
        force_cpu: config.force_cpu,
        on_cpu,
        isq: config.isq.on(on_cpu),
        sequences: if on_cpu { 1 } else { config.max_jobs.clamp(1, GPU_SEQUENCES) },
        gpu_share: (at + 1) as f32 / of.max(1) as f32,
        gpu_cache_mib: config.gpu.cache_mib,
        gpu_small_cache: config.gpu.small_cache,
        context_tokens: config.context_tokens,
    };
    // Memory is looked at before the first engine takes its part of it.
    let memory = memory::available_bytes() / (of - at).max(1) as u64;
    let refused =
        |reason: String| LoadError::Refused { model: name.clone(), origin: spec.source.clone(), reason, hub: false };
    let first = pipeline::build(&name, &files, &source, settings).await.map_err(refused)?;
    let category = first.model.inner().get_model_category(None);
    if !matches!(category, Ok(ModelCategory::Text | ModelCategory::Multimodal { .. })) {
        return Err(LoadError::NotText { model: name });
    }
    let first_sequences = first.sequences;
    if first_sequences < settings.sequences {
        tracing::warn!(
            model = name,
            "paged attention is off: the model does not fit the GPU, or the build cannot do it; it runs one generation at a time"
        );
    }
    let context_tokens = config.context_tokens.unwrap_or(first.context_tokens).min(first.context_tokens);
    // mistral.rs' own first: it ends a sequence at these only.
    let mut ends = first.end_tokens;
    for end in files.end_tokens() {
        if !ends.contains(&end) {
            ends.push(end);
        }
    }
    let some_token = ends.first().copied().unwrap_or_default();
    let no_vocabulary = |reason: String| LoadError::Tokenizer { model: name.clone(), reason: one_line(&reason) };
    let vocabulary = files.vocabulary(&first.tokenizer, ends).map_err(|error| no_vocabulary(error.to_string()))?;
    let escape = escape(&vocabulary).map_err(no_vocabulary)?;
    tokenise(&template, &vocabulary, &escape).map_err(no_vocabulary)?;
    pipeline::computes(&first.model, some_token).await.map_err(refused)?;
    let info = info(&files, &source, spec, settings).await.map_err(refused)?;

    let fitting = || memory::fitting_engines(config.max_jobs, memory, files.needs().engine_bytes(context_tokens));
    let engines = if on_cpu { config.engines.unwrap_or_else(fitting) } else { 1 };
    let mut models = vec![first.model];
    progress(1, engines.max(1));
    // One after another: loading reads the whole file and needs more memory than running.
    while models.len() < engines {
        let next = pipeline::build(&name, &files, &source, settings).await.map_err(refused)?;
        models.push(next.model);
        progress(models.len(), engines);
    }
    let pool = Pool::new(models.len(), first_sequences);
    let info = ModelInfo {
        context_tokens: context_tokens as i64,
        tools: template.calls().is_some(),
        reasoning: template.has_reasoning(),
        places: i32::try_from(pool.places()).unwrap_or(i32::MAX),
        ..info
    };
    let kept = memory::cache_tokens(context_tokens, memory / models.len() as u64, files.needs());
    let cache_tokens = vocabulary.can_end_unseen().then_some(kept).filter(|_| on_cpu);
    let origin = spec.source.clone();
    let build_another: Build = Box::new(move || {
        let (name, files, source, origin) = (name.clone(), files.clone(), source.clone(), origin.clone());
        Box::pin(async move {
            let built = pipeline::build(&name, &files, &source, settings).await;
            let refused = |reason| LoadError::Refused { model: name, origin, reason, hub: false };
            Ok(built.map_err(refused)?.model)
        })
    });
    Ok(Loaded {
        names: spec.names.clone(),
        engines: Engines::new(models, build_another),
        pool,
        context_tokens,
        vocabulary: Arc::new(vocabulary),
        template,
        escape,
        cache_tokens,
        reading_speed: ReadingSpeed::default(),
        on_cpu,
        info,
    })
}

/// The model's files, fetched from the hub if need be, and looked at.
async fn files(name: &str, source: &ModelSource, force_cpu: bool) -> Result<ModelFiles, LoadError> {
    let ModelSource::Hub(hub_name) = source else { return open(name, source.clone()).await };
    let cached = || {
        let cache = mistralrs::core::hf_hub_cache_dir()?;
        hub::cached(&cache, hub_name)
    };
    if let Some(local) = cached()
        && let Ok(files) = open(name, local).await
    {
        return Ok(files);
    }
    let fetched = pipeline::fetch(hub_name, force_cpu).await;
    match (cached(), fetched) {
        // What is wrong with the files is said better by looking at them than by mistral.rs.
        (Some(local), _) => open(name, local).await,
        (None, fetched) => Err(LoadError::Refused {
            model: name.to_owned(),
            origin: source.clone(),
            reason: fetched.err().unwrap_or_else(|| "its files are not in the hub's cache".to_owned()),
            hub: true,
        }),
    }
}

async fn open(name: &str, source: ModelSource) -> Result<ModelFiles, LoadError> {
    let (model, origin) = (name.to_owned(), source.clone());
    let opened = tokio::task::spawn_blocking({
        let model = model.clone();
        move || ModelFiles::open(&model, &source)
    });
    let broken = |error: tokio::task::JoinError| LoadError::Refused {
        model,
        origin,
        reason: one_line(&error.to_string()),
        hub: false,
    };
    opened.await.map_err(broken)?
}

async fn info(
    files: &Arc<ModelFiles>,
    template: &TemplateSource,
    spec: &ModelSpec,
    settings: Settings,
) -> Result<ModelInfo, String> {
    let (files, text) = (files.clone(), template.text.clone());
    let identity = tokio::task::spawn_blocking(move || files.identity(&text, settings.isq));
    let identity = identity.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    Ok(ModelInfo {
        engine: "mistral.rs".to_owned(),
        source: spec.source.to_string(),
        architecture: identity.architecture,
        parameters: i64::try_from(identity.parameters).unwrap_or(i64::MAX),
        quantization: identity.quantization,
        digest: identity.digest,
        continuation: "tokens".to_owned(),
        ..ModelInfo::default()
    })
}

/// Finds a character that this tokenizer does not skip, by trying.
fn escape(vocabulary: &Vocabulary) -> Result<PromptEscape, String> {
    let controls: Vec<(u32, String)> = vocabulary.control_tokens().collect();
    for breaker in BREAKERS {
        let escape = PromptEscape::new(controls.iter().map(|(_, text)| text.clone()), breaker);
        let tokens = vocabulary.encode_answer(&escape.apply(&escape.sample())).map_err(|error| error.to_string())?;
        let steers = |token: &u32| controls.iter().any(|(id, text)| id == token && text.chars().nth(1).is_some());
        if !tokens.iter().any(steers) {
            return Ok(escape);
        }
    }
    Err("its control tokens cannot be kept out of user text".to_owned())
}

/// Renders a conversation and makes tokens of it, as each request will.
fn tokenise(template: &ChatTemplate, vocabulary: &Vocabulary, escape: &PromptEscape) -> Result<(), String> {
    let say = |role: &str, content: &str| Message {
        role: role.to_owned(),
        content: content.to_owned(),
        ..Message::default()
    };
    let conversation = [say("user", "Hello."), say("assistant", "Hello!"), say("user", "How are you?")];
    let rendered = template.render(&conversation, &[], &Reasoning::default(), &|text| escape.apply(text));
    let tokens = vocabulary.encode(&rendered.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
    match tokens.iter().find(|token| **token as usize >= vocabulary.len()) {
        Some(token) => Err(format!("its tokenizer makes the token {token}, and there are {}", vocabulary.len())),
        None if tokens.is_empty() => Err("its tokenizer makes no tokens of a conversation".to_owned()),
        None => Ok(()),
    }
}
