//! Models that are refused: one line that names the fault and what to do, never a panic.

use std::{fs, path::PathBuf};

use tempfile::TempDir;

use super::{
    load,
    maker::{GgufFile, SmallModel, TEMPLATE, Tokens, Value},
};

/// Writes files, and says which one to load.
enum Make {
    /// A SentencePiece model with this changed.
    Gguf(fn(&mut GgufFile)),
    /// A byte-level one.
    ByteLevel(fn(&mut GgufFile)),
    /// The bytes of a SentencePiece one.
    Bytes(fn(Vec<u8>) -> Vec<u8>),
    /// One with this template.
    Template(&'static str),
    /// A directory of safetensors in which something is changed.
    Safetensors(fn(&TempDir)),
    /// Something else.
    Other(fn(&TempDir) -> PathBuf),
}

use Make::{ByteLevel, Bytes, Gguf, Other, Safetensors, Template};

/// Names of the fault and of the remedy, as far as they must be in the message.
type Says = &'static [&'static str];

const AGAIN: &str = "download it again";
const CONVERT: &str = "convert the model again";
const TEMPLATE_FLAG: &str = "--chat-template small=FILE";

const ROWS: &[(&str, Make, Says)] = &[
    ("no template", Gguf(|file| file.remove("tokenizer.chat_template")), &["no chat template", TEMPLATE_FLAG]),
    ("an empty template", Template(" \n"), &["no chat template", TEMPLATE_FLAG]),
    ("a template that raises", Template("{{ raise_exception('never') }}"), &["never", TEMPLATE_FLAG]),
    ("a template with an unknown function", Template("{{ look_up(messages) }}"), &["look_up", TEMPLATE_FLAG]),
    ("a template that is no Jinja", Template("{% for message in messages %}"), &["chat template", TEMPLATE_FLAG]),
    ("a template that says nothing of the conversation", Template("Hello."), &["chat template", TEMPLATE_FLAG]),
    (
        "an unknown architecture",
        Gguf(|file| file.set("general.architecture", Value::text("bert"))),
        &["\"bert\"", "llama, mistral3, phi2, phi3, starcoder2, qwen2, qwen3, qwen3moe", "give one of these"],
    ),
    ("no architecture", Gguf(|file| file.remove("general.architecture")), &["architecture \"\"", "give one of these"]),
    (
        "an architecture that is no text",
        Gguf(|file| file.set("general.architecture", Value::U32(1))),
        &["architecture"],
    ),
    (
        "missing keys",
        Gguf(|file| ["llama.block_count", "llama.context_length"].iter().for_each(|key| file.remove(key))),
        &["llama.block_count", "llama.context_length", CONVERT],
    ),
    (
        "a key of another architecture",
        Gguf(|file| file.remove("llama.rope.dimension_count")),
        &["llama.rope.dimension_count", CONVERT],
    ),
    (
        "no end token",
        Gguf(|file| file.remove("tokenizer.ggml.eos_token_id")),
        &["tokenizer.ggml.eos_token_id", CONVERT],
    ),
    (
        "a wrong end token",
        Gguf(|file| file.set("tokenizer.ggml.eos_token_id", Value::U32(151_643))),
        &["tokenizer.ggml.eos_token_id is 151643", "tokens", CONVERT],
    ),
    (
        "a wrong beginning token",
        Gguf(|file| file.set("tokenizer.ggml.bos_token_id", Value::U32(u32::MAX))),
        &["bos_token_id is 4294967295", CONVERT],
    ),
    (
        "a wrong end of a turn",
        Gguf(|file| file.set("tokenizer.ggml.eot_token_id", Value::U32(9_999))),
        &["eot_token_id is 9999", CONVERT],
    ),
    (
        "heads as a list",
        Gguf(|file| file.set("llama.attention.head_count_kv", Value::U32s(vec![1]))),
        &["head_count_kv differs from layer to layer"],
    ),
    (
        "a signed number",
        Gguf(|file| file.set("llama.context_length", Value::I32(2048))),
        &["llama.context_length is no unsigned number", CONVERT],
    ),
    (
        "no heads",
        Gguf(|file| file.set("llama.attention.head_count_kv", Value::U32(0))),
        &["head_count_kv is 0", CONVERT],
    ),
    (
        "a context without end",
        Gguf(|file| file.set("llama.context_length", Value::U64(u64::MAX))),
        &["llama.context_length is 18446744073709551615", CONVERT],
    ),
    (
        "positions without end",
        Gguf(|file| file.set("llama.rope.dimension_count", Value::U32(u32::MAX))),
        &["llama.rope.dimension_count is 4294967295, more than 32", CONVERT],
    ),
    (
        "experts without end",
        Gguf(|file| file.set("llama.expert_count", Value::U32(u32::MAX))),
        &["llama.expert_count is 4294967295", CONVERT],
    ),
    (
        "blocks without end",
        Gguf(|file| file.set("llama.block_count", Value::U32(u32::MAX))),
        &["no tensor blk.1.attn_norm.weight", CONVERT],
    ),
    (
        "an epsilon that is no number",
        Gguf(|file| file.set("llama.attention.layer_norm_rms_epsilon", Value::F32(f32::NAN))),
        &["epsilon is no number", CONVERT],
    ),
    (
        "keys and values of different length",
        Gguf(|file| {
            file.set("llama.attention.key_length", Value::U32(32));
            file.set("llama.attention.value_length", Value::U32(16));
        }),
        &["llama.attention.key_length is 32, and the values' is 16"],
    ),
    (
        "heads that do not fit the weights",
        Gguf(|file| file.set("llama.attention.head_count", Value::U32(7))),
        &["llama.rope.dimension_count is 32, more than 4", CONVERT],
    ),
    (
        "positions that do not fit the weights",
        Gguf(|file| file.set("llama.rope.dimension_count", Value::U32(16))),
        &["do not fit together", "another conversion"],
    ),
    (
        "a missing tensor",
        Gguf(|file| file.tensors.retain(|tensor| tensor.name != "blk.0.attn_q.weight")),
        &["blk.0.attn_q.weight", "another conversion"],
    ),
    (
        "no embedding",
        Gguf(|file| file.tensors.retain(|tensor| tensor.name != "token_embd.weight")),
        &["no tensor token_embd.weight", CONVERT],
    ),
    (
        "weights of another vocabulary",
        Gguf(|file| {
            let tensor = file.tensor("token_embd.weight");
            tensor.shape[1] = 10;
            tensor.data.truncate(10 * 32 * 4);
        }),
        &["token_embd.weight has the shape [10, 32]", CONVERT],
    ),
    (
        "weights that are no numbers",
        Gguf(|file| file.tensor("output.weight").data.fill(0xff)),
        &["give no numbers", AGAIN],
    ),
    (
        "an odd quantisation",
        Gguf(|file| file.tensor("output.weight").kind = 23),
        &["output.weight", "IQ4_XS", "Q4_K", "take another quantisation"],
    ),
    (
        "a quantisation of nobody",
        Gguf(|file| file.tensor("output.weight").kind = 7_777),
        &["type 7777", "take another quantisation"],
    ),
    (
        "an unknown tokenizer",
        Gguf(|file| file.set("tokenizer.ggml.model", Value::text("t5"))),
        &["\"t5\"", "llama, replit, gpt2", "another conversion"],
    ),
    (
        "no vocabulary",
        Gguf(|file| file.set("tokenizer.ggml.tokens", Value::Texts(Vec::new()))),
        &["tokenizer.ggml.tokens is empty", CONVERT],
    ),
    (
        "a vocabulary of numbers",
        Gguf(|file| file.set("tokenizer.ggml.tokens", Value::U32s(vec![1]))),
        &["tokenizer.ggml.tokens is no list of texts", CONVERT],
    ),
    ("no scores", Gguf(|file| file.remove("tokenizer.ggml.scores")), &["tokenizer.ggml.scores", CONVERT]),
    (
        "too few scores",
        Gguf(|file| file.set("tokenizer.ggml.scores", Value::F32s(vec![0.0; 7]))),
        &["tokenizer.ggml.scores has 7 entries", CONVERT],
    ),
    (
        "too few kinds",
        Gguf(|file| file.set("tokenizer.ggml.token_type", Value::I32s(vec![1; 7]))),
        &["token_type has 7 entries", CONVERT],
    ),
    (
        "kinds of another type",
        Gguf(|file| file.set("tokenizer.ggml.token_type", Value::U32s(vec![1; 7]))),
        &["token_type is no list", CONVERT],
    ),
    ("no merges", ByteLevel(|file| file.remove("tokenizer.ggml.merges")), &["tokenizer.ggml.merges", CONVERT]),
    (
        "a merge of one token",
        ByteLevel(|file| file.set("tokenizer.ggml.merges", Value::Texts(vec![b"ab".to_vec()]))),
        &["merges is no list of pairs", CONVERT],
    ),
    (
        "a merge of unknown tokens",
        ByteLevel(|file| file.set("tokenizer.ggml.merges", Value::Texts(vec![b"no none".to_vec()]))),
        &["small", "another conversion"],
    ),
    (
        "cut within the header",
        Bytes(|mut bytes| {
            bytes.truncate(900);
            bytes
        }),
        &["cut short: 900 bytes", AGAIN],
    ),
    (
        "cut within the last tensor",
        Bytes(|mut bytes| {
            bytes.truncate(bytes.len() - 1);
            bytes
        }),
        &["cut short", AGAIN],
    ),
    ("an empty file", Bytes(|_| Vec::new()), &["no GGUF file", "give a .gguf file"]),
    (
        "a text",
        Bytes(|_| b"version https://git-lfs.github.com/spec/v1".to_vec()),
        &["no GGUF file", "give a .gguf file"],
    ),
    (
        "version 1",
        Bytes(|mut bytes| {
            bytes[4] = 1;
            bytes
        }),
        &["GGUF version 1", CONVERT],
    ),
    (
        "impossible counts",
        Bytes(|mut bytes| {
            bytes[8..24].fill(0xff);
            bytes
        }),
        &["damaged (impossible counts)", AGAIN],
    ),
    (
        "an impossible length",
        Bytes(|mut bytes| {
            bytes[24..32].fill(0xff);
            bytes
        }),
        &["cut short", AGAIN],
    ),
    (
        "tensors that lie nowhere",
        Bytes(|mut bytes| {
            let name = b"blk.0.ffn_down.weight";
            let at = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len();
            // Behind the number of dimensions, both of them, and the type.
            bytes[at + 24..at + 32].fill(0xff);
            bytes
        }),
        &["impossible place of tensor blk.0.ffn_down.weight", AGAIN],
    ),
    (
        "a lone part",
        Other(|folder| {
            let parts = SmallModel::new(Tokens::SentencePiece).gguf().write_parts(folder.path(), "m", 3);
            fs::remove_file(&parts[0]).unwrap();
            fs::remove_file(&parts[2]).unwrap();
            parts[1].clone()
        }),
        &[
            "one of 3 parts",
            "m-00001-of-00003.gguf, m-00003-of-00003.gguf are not beside it",
            "put all parts into one folder",
        ],
    ),
    (
        "a folder in a part's place",
        Other(|folder| {
            let parts = SmallModel::new(Tokens::SentencePiece).gguf().write_parts(folder.path(), "m", 2);
            fs::remove_file(&parts[1]).unwrap();
            fs::create_dir(&parts[1]).unwrap();
            parts[0].clone()
        }),
        &["m-00002-of-00002.gguf is not beside it", "put all parts into one folder"],
    ),
    (
        "a part under another name",
        Other(|folder| {
            let parts = SmallModel::new(Tokens::SentencePiece).gguf().write_parts(folder.path(), "m", 2);
            let renamed = folder.path().join("renamed.gguf");
            fs::rename(&parts[0], &renamed).unwrap();
            renamed
        }),
        &["part 1 of 2", "NAME-00001-of-00002.gguf"],
    ),
    (
        "a part of another model",
        Other(|folder| {
            let parts = SmallModel::new(Tokens::SentencePiece).gguf().write_parts(folder.path(), "m", 2);
            fs::copy(&parts[0], &parts[1]).unwrap();
            parts[0].clone()
        }),
        &["part 1 of 2", "parts of one model"],
    ),
    (
        "safetensors without a template",
        Safetensors(|folder| {
            fs::write(folder.path().join("tokenizer_config.json"), r#"{"eos_token": "</s>"}"#).unwrap();
        }),
        &["no chat template", TEMPLATE_FLAG],
    ),
    (
        "safetensors whose template raises",
        Safetensors(|folder| {
            fs::write(folder.path().join("chat_template.jinja"), "{{ raise_exception('never') }}").unwrap();
        }),
        &["never", TEMPLATE_FLAG],
    ),
    (
        "safetensors without weights",
        Safetensors(|folder| fs::remove_file(folder.path().join("model.safetensors")).unwrap()),
        &["model.safetensors missing", "download the model again"],
    ),
    (
        "safetensors without some of the weights",
        Safetensors(|folder| {
            let whole = folder.path().join("model.safetensors");
            fs::rename(whole, folder.path().join("model-00001-of-00002.safetensors")).unwrap();
        }),
        &["model-00002-of-00002.safetensors missing", "download the model again"],
    ),
    (
        "safetensors cut short",
        Safetensors(|folder| {
            let path = folder.path().join("model.safetensors");
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        }),
        &["model.safetensors: it is cut short", AGAIN],
    ),
    (
        "safetensors of an impossible length",
        Safetensors(|folder| {
            fs::write(folder.path().join("model.safetensors"), [0xff; 64]).unwrap();
        }),
        &["model.safetensors: it is cut short", AGAIN],
    ),
    (
        "safetensors of an unknown architecture",
        Safetensors(|folder| {
            let path = folder.path().join("config.json");
            let config = fs::read_to_string(&path).unwrap().replace("LlamaForCausalLM", "T5ForConditionalGeneration");
            fs::write(&path, config).unwrap();
        }),
        &["T5ForConditionalGeneration", "another"],
    ),
    (
        "safetensors with a wrong end token",
        Safetensors(|folder| {
            fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": [2, 151643]}"#).unwrap();
        }),
        &["generation_config.json", "151643", "correct it"],
    ),
    (
        "safetensors with an unknown end token",
        Safetensors(|folder| {
            let config = serde_json::json!({ "eos_token": "<|im_end|>", "chat_template": TEMPLATE });
            fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        }),
        &["tokenizer_config.json", "<|im_end|>", "correct one of them"],
    ),
    (
        "safetensors with a configuration that is no JSON",
        Safetensors(|folder| {
            fs::write(folder.path().join("config.json"), "{").unwrap();
        }),
        &["config.json", "no JSON", AGAIN],
    ),
];

impl Make {
    fn make(&self, folder: &TempDir) -> PathBuf {
        let path = folder.path().join("small.gguf");
        let write = |tokens: Tokens, change: &fn(&mut GgufFile)| {
            let mut file = SmallModel::new(tokens).gguf();
            change(&mut file);
            file.write(&path)
        };
        match self {
            Gguf(change) => write(Tokens::SentencePiece, change),
            ByteLevel(change) => write(Tokens::ByteLevel, change),
            Bytes(change) => {
                fs::write(&path, change(SmallModel::new(Tokens::SentencePiece).gguf().bytes())).unwrap();
                path
            }
            Template(template) => SmallModel::new(Tokens::SentencePiece).template(template).gguf().write(&path),
            Safetensors(change) => {
                SmallModel::new(Tokens::ByteLevel).write_safetensors(folder.path());
                change(folder);
                folder.path().to_owned()
            }
            Other(make) => make(folder),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_names_the_fault_and_the_remedy_in_one_line() {
    let mut wrong = Vec::new();
    for (name, make, says) in ROWS {
        let folder = tempfile::tempdir().unwrap();
        let message = match load(&make.make(&folder), None).await {
            Ok(_) => {
                wrong.push(format!("{name}: it is served"));
                continue;
            }
            Err(error) => error.to_string(),
        };
        println!("{name}: {message}");
        let missing: Vec<_> = says.iter().filter(|part| !message.contains(**part)).collect();
        // A message of mistral.rs is cut at 400 characters, and ours are shorter.
        let is_one_line = !message.contains('\n') && message.len() < 900;
        if !missing.is_empty() || !is_one_line || message.contains("panicked") {
            wrong.push(format!("{name}: {message:?} lacks {missing:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
