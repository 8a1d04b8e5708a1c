//! Engines of mistral.rs, built from files that are named one by one.
//!
//! mistral.rs' own builders look into the folder of a file, where another model's `generation_config.json` changes or breaks this one, and ask for a
//! home directory even for a local file. So the loaders below them are used, and get what was looked at, nothing else.

use std::{fs, path::PathBuf, sync::Arc};

use mistralrs::{
    AutoDeviceMapParams, CustomLogitsProcessor, DeviceMapSetting, GgufModelBuilder, MemoryGpuConfig, Model,
    PagedAttentionConfig, PagedAttentionMetaBuilder, PagedCacheType, Tensor, TextModelBuilder,
    core::{
        AdapterPaths, AddModelConfig, DefaultSchedulerMethod, EngineConfig, GGUFLoaderBuilder, GGUFSpecificConfig,
        Loader, LocalModelPaths, ModelDType, ModelPaths, NormalLoaderBuilder, NormalSpecificConfig, SchedulerConfig,
    },
    model_builder_trait::build_model_from_pipeline,
};
use parking_lot::Mutex;
use serde_json::json;
use tokenizers::Tokenizer;

use super::{
    files::ModelFiles,
    gguf::PartName,
    hub,
    isq::QuantizedType,
    quiet::{self, one_line},
    request::{self, Outcome},
    template_source::TemplateSource,
};

/// How engines are built.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) force_cpu: bool,
    /// The device is a CPU.
    pub(super) on_cpu: bool,
    /// What plain weights are brought to.
    pub(super) isq: Option<QuantizedType>,
    /// Sequences that an engine may have at once.
    pub(super) sequences: usize,
    /// Share of what a GPU may be used for that is taken when this model is loaded: 1 with the last one.
    pub(super) gpu_share: f32,
    pub(super) gpu_cache_mib: Option<usize>,
    pub(super) gpu_small_cache: bool,
    /// Bounds the context below the model's own.
    pub(super) context_tokens: Option<usize>,
}

/// An engine, and what its pipeline knows.
pub(super) struct Built {
    pub(super) model: Model,
    pub(super) tokenizer: Arc<Tokenizer>,
    /// Tokens at which mistral.rs ends a generation.
    pub(super) end_tokens: Vec<u32>,
    /// Tokens of the model's context, as far as the cache has room for it.
    pub(super) context_tokens: usize,
    /// Sequences that it may have at once. On a GPU without paged attention that is one: parts of the model are on the CPU then, where sequences
    /// corrupt each other.
    pub(super) sequences: usize,
}

/// Share of a GPU's memory for weights and the paged KV cache together. mistral.rs' own default is a pool of 4,096 tokens for all sequences.
const GPU_UTILIZATION: f32 = 0.85;

/// Builds one engine. The error is one line.
pub(super) async fn build(
    name: &str,
    files: &Arc<ModelFiles>,
    template: &TemplateSource,
    settings: Settings,
) -> Result<Built, String> {
    let (name, files, template) = (name.to_owned(), files.clone(), template.text.clone());
    let runtime = tokio::runtime::Handle::current();
    // It reads and converts weights without ever yielding.
    let built = quiet::run(move || runtime.block_on(load(&name, &files, &template, settings))).await;
    built.map_err(broke_down)?.map_err(|error| one_line(&format!("{error:#}")))
}

fn broke_down(message: String) -> String {
    format!("mistral.rs broke down over it ({message})")
}

async fn load(name: &str, files: &ModelFiles, template: &str, settings: Settings) -> anyhow::Result<Built> {
    let device = mistralrs::best_device(settings.force_cpu)?;
    let paged = match settings.on_cpu {
        true => None,
        false => paged_attention(settings)?,
    };
    // Read while the model is loaded, for its template (of which the tokens that end an answer are a part) and special tokens.
    let folder = tempfile::tempdir()?;
    let paths = paths(files, folder.path().join("tokenizer_config.json"), template)?;
    let mapper = DeviceMapSetting::Auto(match settings.on_cpu {
        true => AutoDeviceMapParams::default_text(),
        // The room that the map leaves on the card for a sequence; mistral.rs' own default is 4,096 tokens.
        false => AutoDeviceMapParams::Text {
            max_seq_len: settings.context_tokens.unwrap_or(AutoDeviceMapParams::DEFAULT_MAX_SEQ_LEN),
            max_batch_size: 1,
        },
    });
    let (loader, quantized): (Box<dyn Loader>, _) = match files {
        ModelFiles::Gguf(_) => {
            let config = GGUFSpecificConfig::default();
            (GGUFLoaderBuilder::new(None, None, name.to_owned(), Vec::new(), config, false, None).build(), None)
        }
        ModelFiles::Safetensors(_) => {
            let config = NormalSpecificConfig::default();
            let loader =
                NormalLoaderBuilder::new(config, None, None, Some(name.to_owned()), false, None).build(None)?;
            (loader, settings.isq.map(QuantizedType::for_mistral))
        }
    };
    let pipeline = loader.load_model_from_path(&paths, &ModelDType::Auto, &device, true, mapper, quantized, paged)?;
    let (tokenizer, metadata) = {
        let pipeline = pipeline.lock().await;
        (pipeline.tokenizer(), pipeline.get_metadata())
    };
    // What is asked for is not what one gets: mistral.rs turns paged attention off where a layer is on the CPU, with a line in its log.
    let pages = metadata.cache_config.clone().filter(|_| paged.is_some());
    let (scheduler, sequences, room) = match pages {
        // A prompt that is longer than its pool would be ignored without an answer.
        Some(config) => {
            let room = config.num_gpu_blocks.saturating_mul(config.block_size);
            let max_num_seqs = settings.sequences;
            (SchedulerConfig::PagedAttentionMeta { max_num_seqs, config }, max_num_seqs, room)
        }
        None => {
            let method = DefaultSchedulerMethod::Fixed(std::num::NonZeroUsize::MIN);
            (SchedulerConfig::DefaultScheduler { method }, 1, usize::MAX)
        }
    };
    let tokenizer = tokenizer.ok_or_else(|| anyhow::anyhow!("it has no tokenizer"))?;
    // On a CPU the cache is never evicted: it is on only where its entries can be looked after. On a GPU it is off: what shares a beginning with an earlier
    // request is given wrong lengths there, and reads pages that are not its own (tried on an H100: no numbers, or an illegal address, at the fifth page).
    let looked_after = || files.vocabulary(&tokenizer, metadata.eos_tok.clone()).is_ok_and(|it| it.can_end_unseen());
    let no_prefix_cache = !settings.on_cpu || !looked_after();
    let engine = EngineConfig { no_prefix_cache, ..EngineConfig::default() };
    Ok(Built {
        model: build_model_from_pipeline(pipeline, scheduler, AddModelConfig::new(engine)).await,
        tokenizer,
        end_tokens: metadata.eos_tok.clone(),
        context_tokens: metadata.max_seq_len.min(room),
        sequences,
    })
}

fn paged_attention(settings: Settings) -> anyhow::Result<Option<PagedAttentionConfig>> {
    let memory = match settings.gpu_cache_mib {
        Some(mib) => MemoryGpuConfig::MbAmount(mib),
        // Of the whole card, what is taken already included: so each model's part ends where the next one's begins.
        None => MemoryGpuConfig::Utilization(GPU_UTILIZATION * settings.gpu_share),
    };
    let cache_type = if settings.gpu_small_cache { PagedCacheType::F8E4M3 } else { PagedCacheType::Auto };
    let config = PagedAttentionMetaBuilder::default().with_gpu_memory(memory).with_paged_cache_type(cache_type);
    mistralrs::paged_attn_supported().then(|| config.build()).transpose()
}

/// What mistral.rs may read. `tokenizer_config` is written: it holds what the model's files say, and the template that was chosen.
fn paths(files: &ModelFiles, tokenizer_config: PathBuf, template: &str) -> anyhow::Result<Box<dyn ModelPaths>> {
    let mut config = json!({ "chat_template": template });
    // Of a GGUF file mistral.rs takes the special tokens itself.
    if let ModelFiles::Safetensors(_) = files {
        for name in ["bos", "eos", "unk"] {
            config[format!("{name}_token")] = files.special_token(name).into();
        }
    }
    fs::write(&tokenizer_config, config.to_string())?;
    let of_folder = |file: &str| match files {
        ModelFiles::Safetensors(model) => model.folder.join(file),
        ModelFiles::Gguf(_) => PathBuf::new(),
    };
    Ok(Box::new(LocalModelPaths {
        tokenizer_filename: of_folder("tokenizer.json"),
        config_filename: of_folder("config.json"),
        template_filename: Some(tokenizer_config),
        filenames: files.weights().into_iter().map(ToOwned::to_owned).collect(),
        adapter_paths: AdapterPaths::None,
        gen_conf: None,
        preprocessor_config: None,
        processor_config: None,
        chat_template_json_filename: None,
    }))
}

/// Gets a model's files from the hub into its cache, by the way that mistral.rs has: it loads the model, which is thrown away.
pub(super) async fn fetch(name: &str, force_cpu: bool) -> Result<(), String> {
    let name = name.to_owned();
    let runtime = tokio::runtime::Handle::current();
    let fetched = quiet::run(move || {
        runtime.block_on(async {
            match hub::file_of(&name) {
                (repository, Some(file)) => {
                    let path = PathBuf::from(&file);
                    let all = PartName::of(&path).map(|part| part.all_beside(&path)).unwrap_or(vec![path]);
                    let all = all.iter().map(|path| path.to_string_lossy()).collect();
                    let builder = GgufModelBuilder::new(repository, all);
                    if force_cpu { builder.with_force_cpu() } else { builder }.build().await.map(drop)
                }
                (repository, None) => {
                    let builder = TextModelBuilder::new(repository);
                    if force_cpu { builder.with_force_cpu() } else { builder }.build().await.map(drop)
                }
            }
        })
    });
    fetched.await.map_err(broke_down)?.map_err(|error| one_line(&format!("{error:#}")))
}

/// Whether the engine computes numbers at all: shapes that do not fit show only then. `token` is any token of the vocabulary.
pub(super) async fn computes(model: &Model, token: u32) -> Result<(), String> {
    let look = Arc::new(Look::default());
    let outcome = match request::begin(model, vec![token], 1, &[], look.clone()).await {
        Ok(sequence) => sequence.finish().await,
        Err(outcome) => outcome,
    };
    match (*look.are_numbers.lock(), outcome) {
        (Some(true), _) => Ok(()),
        (Some(false), _) => Err("its weights are damaged, they give no numbers".to_owned()),
        (None, Outcome::Failed(reason)) => Err(format!("its weights do not fit together ({})", one_line(&reason))),
        (None, _) => Err("its engine broke down at the first token".to_owned()),
    }
}

/// Looks at the logits, and fails: after a step that failed mistral.rs keeps nothing of what it computed.
#[derive(Default)]
struct Look {
    are_numbers: Mutex<Option<bool>>,
}

impl CustomLogitsProcessor for Look {
    fn apply(&self, logits: &Tensor, _context: &[u32]) -> mistralrs::Result<Tensor> {
        let values: Vec<f32> = logits.to_vec1()?;
        *self.are_numbers.lock() = Some(values.iter().all(|value| value.is_finite()));
        Err(std::io::Error::other("this was all that was to be seen").into())
    }
}
