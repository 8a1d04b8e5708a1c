//! Models that are served: what comes out is what their tokens say.

use std::{fs, path::PathBuf};

use tempfile::TempDir;

use super::{
    load,
    maker::{GgufFile, Kind, SAID, SmallModel, TEMPLATE, Tokens, Value},
    said,
};

/// Writes files, and says which one to load and with which template.
type Make = fn(&TempDir) -> (PathBuf, Option<PathBuf>);

fn sentence_piece() -> SmallModel {
    SmallModel::new(Tokens::SentencePiece)
}

fn byte_level() -> SmallModel {
    SmallModel::new(Tokens::ByteLevel)
}

fn alone(folder: &TempDir, file: &GgufFile) -> (PathBuf, Option<PathBuf>) {
    (file.write(&folder.path().join("small.gguf")), None)
}

fn with_template(folder: &TempDir, model: &SmallModel, name: &str, template: &str) -> (PathBuf, Option<PathBuf>) {
    let file = folder.path().join(name);
    fs::write(&file, template).unwrap();
    (alone(folder, &model.gguf()).0, Some(file))
}

fn changed(folder: &TempDir, change: fn(&mut GgufFile)) -> (PathBuf, Option<PathBuf>) {
    let mut file = sentence_piece().gguf();
    change(&mut file);
    alone(folder, &file)
}

fn directory(folder: &TempDir, model: &SmallModel) -> (PathBuf, Option<PathBuf>) {
    model.write_safetensors(folder.path());
    (folder.path().to_owned(), None)
}

const ROWS: [(&str, Make); 20] = [
    ("SentencePiece, every kind of token", |folder| alone(folder, &sentence_piece().gguf())),
    ("byte-level BPE, every kind of token", |folder| alone(folder, &byte_level().gguf())),
    ("safetensors", |folder| directory(folder, &byte_level())),
    ("safetensors with a template in a file of its own", |folder| {
        fs::write(folder.path().join("chat_template.jinja"), TEMPLATE).unwrap();
        directory(folder, &byte_level().without_template())
    }),
    ("safetensors with a template in chat_template.json", |folder| {
        let json = serde_json::json!({ "chat_template": TEMPLATE });
        fs::write(folder.path().join("chat_template.json"), json.to_string()).unwrap();
        directory(folder, &byte_level().without_template())
    }),
    ("parts, named by the first one", |folder| {
        (sentence_piece().gguf().write_parts(folder.path(), "m", 3).remove(0), None)
    }),
    ("parts, named by the last one", |folder| {
        (sentence_piece().gguf().write_parts(folder.path(), "m", 3).remove(2), None)
    }),
    ("another model's files in the same folder", |folder| {
        for (name, content) in [
            ("generation_config.json", r#"{"eos_token_id": 151643}"#),
            ("preprocessor_config.json", "{}"),
            ("processor_config.json", "no JSON"),
            ("chat_template.json", r#"{"chat_template": "{{ raise_exception('another one') }}"}"#),
            ("chat_template.jinja", "{{ raise_exception('another one') }}"),
            ("tokenizer_config.json", "{"),
            ("tokenizer.json", "{"),
            ("config.json", "{"),
        ] {
            fs::write(folder.path().join(name), content).unwrap();
        }
        alone(folder, &sentence_piece().gguf())
    }),
    ("a template given for a model without", |folder| {
        with_template(folder, &sentence_piece().without_template(), "chat.jinja", TEMPLATE)
    }),
    ("a template given for a model whose own raises", |folder| {
        with_template(folder, &sentence_piece().template("{{ raise_exception('never') }}"), "chat.txt", TEMPLATE)
    }),
    ("a template given in tokenizer_config.json", |folder| {
        let json = serde_json::json!({ "chat_template": TEMPLATE, "eos_token": "</s>" });
        with_template(folder, &byte_level().without_template(), "tokenizer_config.json", &json.to_string())
    }),
    ("a template that raises for a system message only", |folder| {
        let template = format!(
            "{{% if messages[0].role == 'system' %}}{{{{ raise_exception('System role not supported') }}}}{{% endif %}}{TEMPLATE}"
        );
        alone(folder, &sentence_piece().template(&template).gguf())
    }),
    ("a token that is no UTF-8, which it does not say", |folder| {
        changed(folder, |file| {
            let Some((_, Value::Texts(tokens))) =
                file.entries.iter_mut().find(|(key, _)| key == "tokenizer.ggml.tokens")
            else {
                panic!("no tokens")
            };
            tokens.push(vec![0xff, 0xfe]);
            let more = tokens.len();
            file.set("tokenizer.ggml.scores", Value::F32s(vec![-1.0; more]));
            let mut kinds: Vec<i32> = sentence_piece().tokens.iter().map(|(_, kind)| *kind).collect();
            kinds.push(1);
            file.set("tokenizer.ggml.token_type", Value::I32s(kinds));
            for name in ["token_embd.weight", "output.weight"] {
                let tensor = file.tensor(name);
                let row = tensor.shape[0] as usize * 4;
                tensor.data.extend(vec![0; row]);
                tensor.shape[1] += 1;
            }
        })
    }),
    ("a BOS token that the file does not name", |folder| {
        changed(folder, |file| file.remove("tokenizer.ggml.bos_token_id"))
    }),
    ("a context as a 64-bit number", |folder| {
        changed(folder, |file| file.set("llama.context_length", Value::U64(2048)))
    }),
    ("8-bit weights", |folder| alone(folder, &sentence_piece().gguf_of("llama", Kind::Q8_0))),
    ("16-bit weights", |folder| alone(folder, &sentence_piece().gguf_of("llama", Kind::Bf16))),
    ("qwen2", |folder| alone(folder, &byte_level().gguf_of("qwen2", Kind::F32))),
    ("qwen3", |folder| alone(folder, &byte_level().gguf_of("qwen3", Kind::F16))),
    ("mistral3", |folder| alone(folder, &sentence_piece().gguf_of("mistral3", Kind::F32))),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_is_served_is_exact() {
    let mut wrong = Vec::new();
    for (name, make) in ROWS {
        let folder = tempfile::tempdir().unwrap();
        let (path, template) = make(&folder);
        match load(&path, template).await {
            Ok(engine) => {
                let said = said(&engine).await;
                println!("{name}: {said:?}");
                if said != SAID {
                    wrong.push(format!("{name}: {said:?}"));
                }
            }
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "not {SAID:?}:\n{}", wrong.join("\n"));
}
