//! Loading models: what is known beforehand, how many engines, and the builders.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use mistralrs::{
    GgufModelBuilder, IsqType, MemoryGpuConfig, Model, ModelCategory, PagedAttentionMetaBuilder, TextModelBuilder,
    model_builder_trait::{build_gguf_pipeline, build_model_from_pipeline, build_text_pipeline},
};
use tokenizers::Tokenizer;

use super::{
    GgufError, ModelSource, ModelSpec, SourceError,
    engines::{Build, Engines},
    gguf::Gguf,
    pool::Pool,
    prompt_escape::{BREAKERS, PromptEscape},
    reading::ReadingSpeed,
    template::{ChatTemplate, SpecialTokens},
    vocabulary::{Spelling, TokenKind, Vocabulary},
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

/// Why the models could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No model at all.
    #[error("no model is configured: give --model NAME=SOURCE")]
    NoModel,
    /// The sources contradict each other.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The file is no whole GGUF file.
    #[error("model file {path:?}: {error}")]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: GgufError,
    },
    /// It holds no chat template, so nobody could tell how to ask it.
    #[error("model {model}: it has no chat template; use an instruction-tuned model")]
    NoChatTemplate {
        /// The model.
        model: String,
    },
    /// It is no text model.
    #[error("model {model} does not generate text from text")]
    NotText {
        /// The model.
        model: String,
    },
    /// Its tokenizer's control tokens could not be found or not be neutralised in user text.
    #[error("model {model}: {reason}")]
    Tokenizer {
        /// The model.
        model: String,
        /// Why.
        reason: String,
    },
    /// mistral.rs refused it.
    #[error("model {model} from {origin} could not be loaded: {reason}{}", if *hub { " (the Hugging Face hub must be reachable, or the model in its cache; without a network give a file or a directory)" } else { "" })]
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
}

/// Loads one model; `shares` models divide the free memory.
pub(super) async fn load(
    spec: &ModelSpec,
    config: &MistralConfig,
    shares: usize,
    on_progress: &(dyn Fn(&LoadProgress) + Send + Sync),
) -> Result<Loaded, LoadError> {
    let name = spec.names.first().cloned().ok_or(LoadError::NoModel)?;
    let known = Known::before_loading(&name, &spec.source)?;
    let on_cpu = config.force_cpu || mistralrs::best_device(false).is_ok_and(|device| device.is_cpu());
    // Memory is looked at before the first engine takes its part of it.
    let memory = available_bytes() / shares.max(1) as u64;
    let progress = |loaded, engines| on_progress(&LoadProgress { model: name.clone(), loaded, engines });

    progress(0, config.engines.unwrap_or(1));
    let Built { model: first, tokenizer, ends } = build(&name, &spec.source, config, on_cpu).await?;
    if !matches!(first.inner().get_model_category(None), Ok(ModelCategory::Text | ModelCategory::Multimodal { .. })) {
        return Err(LoadError::NotText { model: name });
    }
    // From the hub: only now there are files to look at.
    let known = known.map_or_else(|| Known::after_fetching(&name, &spec.source), Ok)?;
    let own_context = first.max_sequence_length().ok().flatten().unwrap_or(DEFAULT_CONTEXT);
    let context_tokens = config.context_tokens.unwrap_or(own_context).min(own_context);
    let wrong = |reason: String| LoadError::Tokenizer { model: name.clone(), reason };
    let vocabulary = Arc::new(known.vocabulary(&tokenizer, ends).map_err(|error| wrong(error.to_string()))?);
    let template =
        ChatTemplate::new(known.template.clone(), known.special.clone()).map_err(|error| wrong(error.to_string()))?;
    let escape = escape(&name, &vocabulary)?;

    let (engines, places) = match on_cpu {
        true => (
            config
                .engines
                .unwrap_or_else(|| fitting_engines(config.max_jobs, memory, known.engine_bytes(context_tokens))),
            1,
        ),
        false => (1, config.max_jobs.max(1)),
    };
    let mut models = vec![first];
    progress(1, engines.max(1));
    // One after another: loading reads the whole file and needs more memory than running.
    while models.len() < engines {
        models.push(build(&name, &spec.source, config, on_cpu).await?.model);
        progress(models.len(), engines);
    }
    let pool = Pool::new(models.len(), places);
    let cache_tokens = (on_cpu && vocabulary.sentinels().len() == 2).then(|| cache_tokens(context_tokens));
    let (source, config) = (spec.source.clone(), config.clone());
    let build_another: Build = Box::new(move || {
        let (name, source, config) = (name.clone(), source.clone(), config.clone());
        Box::pin(async move { Ok(build(&name, &source, &config, on_cpu).await?.model) })
    });
    Ok(Loaded {
        names: spec.names.clone(),
        engines: Engines::new(models, build_another),
        pool,
        context_tokens,
        vocabulary,
        template,
        escape,
        cache_tokens,
        reading_speed: ReadingSpeed::default(),
    })
}

/// Tokens of conversations that an engine keeps beside what it computes: half of a context, which a conversation hardly ever fills.
fn cache_tokens(context_tokens: usize) -> usize {
    (context_tokens / 2).max(MIN_CACHE_TOKENS)
}

/// A conversation of a few turns, and the pieces in which it is read.
const MIN_CACHE_TOKENS: usize = 4096;

/// Finds a character that this tokenizer does not skip, by trying.
fn escape(name: &str, vocabulary: &Vocabulary) -> Result<PromptEscape, LoadError> {
    let failed = |reason: String| LoadError::Tokenizer { model: name.to_owned(), reason };
    let controls: Vec<(u32, String)> = vocabulary.control_tokens().collect();
    for breaker in BREAKERS {
        let escape = PromptEscape::new(controls.iter().map(|(_, text)| text.clone()), breaker);
        let tokens =
            vocabulary.encode_answer(&escape.apply(&escape.sample())).map_err(|error| failed(error.to_string()))?;
        let steers = |token: &u32| controls.iter().any(|(id, text)| id == token && text.chars().nth(1).is_some());
        if !tokens.iter().any(steers) {
            return Ok(escape);
        }
    }
    Err(failed("its control tokens cannot be kept out of user text".to_owned()))
}

/// A context that every model has, for one that does not say.
const DEFAULT_CONTEXT: usize = 2048;
/// Share of the free memory that engines may take; the rest is the system's and the requests'.
const MEMORY_SHARE: f64 = 0.8;
/// Share of a GPU's memory for weights and the paged KV cache together. mistral.rs' own default is a pool of 4,096 tokens for all sequences.
const GPU_UTILIZATION: f32 = 0.85;

fn fitting_engines(max_jobs: usize, memory_bytes: u64, engine_bytes: u64) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let fitting = (memory_bytes as f64 * MEMORY_SHARE) as u64 / engine_bytes.max(1);
    max_jobs.min(cores).min(usize::try_from(fitting).unwrap_or(usize::MAX)).max(1)
}

fn available_bytes() -> u64 {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    // A container's limit, where there is one, lies below the machine's memory.
    let limit = system.cgroup_limits().map_or(u64::MAX, |limits| limits.free_memory);
    system.available_memory().min(limit)
}

async fn build(name: &str, source: &ModelSource, config: &MistralConfig, on_cpu: bool) -> Result<Built, LoadError> {
    let (source_of_task, max_jobs, force_cpu) = (source.clone(), config.max_jobs, config.force_cpu);
    let runtime = tokio::runtime::Handle::current();
    // The builder's future reads and converts weights without ever yielding.
    let built =
        tokio::task::spawn_blocking(move || runtime.block_on(builder(source_of_task, max_jobs, force_cpu, on_cpu)));
    let refused = |reason: String| LoadError::Refused {
        model: name.to_owned(),
        origin: source.clone(),
        reason,
        hub: matches!(source, ModelSource::Hub(_)),
    };
    built.await.map_err(|panic| refused(panic.to_string()))?.map_err(|error| refused(format!("{error:#}")))
}

/// What mistral.rs made of a source.
struct Built {
    model: Model,
    tokenizer: Arc<Tokenizer>,
    ends: Vec<u32>,
}

/// Conversations that mistral.rs keeps on a GPU. On a CPU it keeps all, and [`super::reading`] has it drop them.
const PREFIX_CACHE: usize = 16;

async fn builder(source: ModelSource, max_jobs: usize, force_cpu: bool, on_cpu: bool) -> anyhow::Result<Built> {
    let sequences = if on_cpu { 1 } else { max_jobs.max(1) };
    let paged = match on_cpu {
        true => None,
        false => Some(
            PagedAttentionMetaBuilder::default()
                .with_gpu_memory(MemoryGpuConfig::Utilization(GPU_UTILIZATION))
                .build()?,
        ),
    };
    macro_rules! finish {
        ($builder:expr, $build:ident) => {{
            let mut builder = $builder.with_prefix_cache_n(Some(PREFIX_CACHE)).with_max_num_seqs(sequences);
            if force_cpu {
                builder = builder.with_force_cpu();
            }
            if let Some(paged) = paged {
                builder = builder.with_paged_attn(paged);
            }
            let (pipeline, scheduler, settings) = $build(builder).await?;
            let (tokenizer, ends) = {
                let pipeline = pipeline.lock().await;
                (pipeline.tokenizer(), pipeline.get_metadata().eos_tok.clone())
            };
            let tokenizer = tokenizer.ok_or_else(|| anyhow::anyhow!("it has no tokenizer"))?;
            Ok(Built { model: build_model_from_pipeline(pipeline, scheduler, settings).await, tokenizer, ends })
        }};
    }
    match source {
        ModelSource::GgufFile(path) => {
            let folder = path.parent().unwrap_or(Path::new(".")).display().to_string();
            let file = path.file_name().map(|file| file.to_string_lossy().into_owned()).unwrap_or_default();
            finish!(GgufModelBuilder::new(folder, vec![file]), build_gguf_pipeline)
        }
        ModelSource::SafetensorsDir(path) => {
            let builder = TextModelBuilder::new(path.display());
            // Plain weights are too slow for a CPU: eight bits halve them and lose next to nothing.
            if on_cpu {
                finish!(builder.with_isq(IsqType::Q8_0), build_text_pipeline)
            } else {
                finish!(builder, build_text_pipeline)
            }
        }
        ModelSource::Hub(name) => match hub_file(&name) {
            Some((repository, file)) => finish!(GgufModelBuilder::new(repository, vec![file]), build_gguf_pipeline),
            None if on_cpu => finish!(TextModelBuilder::new(name).with_isq(IsqType::Q8_0), build_text_pipeline),
            None => finish!(TextModelBuilder::new(name), build_text_pipeline),
        },
    }
}

/// `org/name/path/file.gguf` in its repository and its path there; `None` for a whole repository.
fn hub_file(name: &str) -> Option<(String, String)> {
    let mut parts = name.splitn(3, '/');
    let (organisation, repository, file) = (parts.next()?, parts.next()?, parts.next()?);
    Some((format!("{organisation}/{repository}"), file.to_owned()))
}

/// What the model's files say.
struct Known {
    tokens: Option<(Vec<String>, Vec<TokenKind>, Spelling)>,
    template: String,
    special: SpecialTokens,
    weight_bytes: u64,
    /// Of the KV cache.
    token_bytes: u64,
}

impl Known {
    /// Checks local files, so that their faults are named before mistral.rs meets them. `None` for the hub.
    fn before_loading(name: &str, source: &ModelSource) -> Result<Option<Self>, LoadError> {
        match source {
            ModelSource::GgufFile(path) => Self::gguf(name, path).map(Some),
            ModelSource::SafetensorsDir(path) => Self::safetensors(name, path).map(Some),
            ModelSource::Hub(_) => Ok(None),
        }
    }

    fn after_fetching(name: &str, source: &ModelSource) -> Result<Self, LoadError> {
        let ModelSource::Hub(hub) = source else { return Err(LoadError::NoModel) };
        let missing = || LoadError::Tokenizer {
            model: name.to_owned(),
            reason: "its files are not in the hub's cache".to_owned(),
        };
        let (repository, file) =
            hub_file(hub).map_or((hub.clone(), None), |(repository, file)| (repository, Some(file)));
        let cache = mistralrs::core::hf_hub_cache_dir().ok_or_else(missing)?;
        let folder = cache.join(format!("models--{}", repository.replace('/', "--")));
        let revision = std::fs::read_to_string(folder.join("refs/main")).map_err(|_| missing())?;
        let snapshot = folder.join("snapshots").join(revision.trim());
        match file {
            Some(file) => Self::gguf(name, &snapshot.join(file)),
            None => Self::safetensors(name, &snapshot),
        }
    }

    fn gguf(name: &str, path: &Path) -> Result<Self, LoadError> {
        let gguf = Gguf::open(path).map_err(|error| LoadError::Gguf { path: path.to_owned(), error })?;
        if !gguf.has_chat_template() {
            return Err(LoadError::NoChatTemplate { model: name.to_owned() });
        }
        let number = |key| gguf.number(key).unwrap_or(0);
        let heads = number("attention.head_count").max(1);
        let head = gguf.number("attention.key_length").unwrap_or(number("embedding_length") / heads);
        let kv_heads = gguf.number("attention.head_count_kv").unwrap_or(heads);
        let embedding_bytes = gguf.vocabulary_len() as u64 * number("embedding_length") * F32;
        Ok(Self {
            tokens: Some(gguf.tokens()),
            template: gguf.chat_template().unwrap_or_default().to_owned(),
            special: gguf.special_tokens(),
            // The embedding is unpacked.
            weight_bytes: gguf.file_bytes + embedding_bytes,
            token_bytes: number("block_count") * kv_heads * head * KEY_AND_VALUE * F32,
        })
    }

    fn safetensors(name: &str, folder: &Path) -> Result<Self, LoadError> {
        let json = |file: &str| -> Result<serde_json::Value, LoadError> {
            let wrong =
                |reason: String| LoadError::Tokenizer { model: name.to_owned(), reason: format!("{file}: {reason}") };
            let bytes = std::fs::read(folder.join(file)).map_err(|error| wrong(error.to_string()))?;
            serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))
        };
        let config = json("config.json")?;
        let settings = json("tokenizer_config.json").unwrap_or_default();
        let text = |key: &str| {
            let value = settings.get(key)?;
            Some(value.as_str().or_else(|| value.get("content")?.as_str())?.to_owned())
        };
        let special = SpecialTokens { bos: text("bos_token"), eos: text("eos_token"), unk: text("unk_token") };
        let template =
            std::fs::read_to_string(folder.join("chat_template.jinja")).ok().or_else(|| text("chat_template"));
        let template = template.ok_or_else(|| LoadError::NoChatTemplate { model: name.to_owned() })?;
        let number = |key: &str| config.get(key).and_then(serde_json::Value::as_u64);
        let heads = number("num_attention_heads").unwrap_or(1).max(1);
        let head = number("head_dim").unwrap_or(number("hidden_size").unwrap_or(0) / heads);
        let kv_heads = number("num_key_value_heads").unwrap_or(heads);
        Ok(Self {
            tokens: None,
            template,
            special,
            weight_bytes: safetensors_bytes(folder),
            token_bytes: number("num_hidden_layers").unwrap_or(0) * kv_heads * head * KEY_AND_VALUE * F32,
        })
    }

    /// An engine whose KV cache is full: it is grown by copying, so the last step holds it almost twice, but for one layer at a time.
    fn engine_bytes(&self, context_tokens: usize) -> u64 {
        self.weight_bytes + self.token_bytes * context_tokens as u64 + ENGINE_BYTES
    }

    fn vocabulary(
        &self,
        tokenizer: &Tokenizer,
        ends: Vec<u32>,
    ) -> Result<Vocabulary, super::vocabulary::VocabularyError> {
        match &self.tokens {
            Some((names, kinds, spelling)) => {
                let bos = self.special.bos.as_ref().and_then(|bos| tokenizer.token_to_id(bos));
                Vocabulary::of_gguf(tokenizer, names, kinds, *spelling, bos, ends)
            }
            None => Vocabulary::of_tokenizer(tokenizer, ends),
        }
    }
}

/// KV caches and unpacked embeddings are 32-bit on a CPU.
const F32: u64 = 4;
const KEY_AND_VALUE: u64 = 2;
/// Tokenizer, runtime and scratch memory of an engine, measured with a model of 135 million parameters.
const ENGINE_BYTES: u64 = 64 << 20;

fn safetensors_bytes(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let weights = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "safetensors"));
    // `metadata` of the path and not of the entry: the hub's cache holds links.
    weights.filter_map(|file| std::fs::metadata(file.path()).ok()).map(|metadata| metadata.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_bounded_by_jobs_cores_and_memory() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        assert_eq!(fitting_engines(1, u64::MAX, 1), 1);
        assert_eq!(fitting_engines(1_000_000, u64::MAX, 1), cores);
        assert_eq!(fitting_engines(8, 1000, 900), 1, "memory for less than one still gives one");
        assert_eq!(fitting_engines(0, 0, 0), 1);
    }

    #[test]
    fn a_file_on_the_hub_is_told_from_a_repository() {
        assert_eq!(hub_file("org/name"), None);
        assert_eq!(hub_file("org/name/a/b.gguf"), Some(("org/name".into(), "a/b.gguf".into())));
    }
}
