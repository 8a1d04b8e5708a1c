//! Writes a directory of safetensors.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{CONTROL, EOS, NORMAL, SmallModel, Tokens, UNKNOWN, UNUSED};

impl SmallModel {
    /// A llama with 32-bit weights; the vocabulary has to be byte-level.
    pub(crate) fn write_safetensors(&self, folder: &Path) {
        assert_eq!(self.tokenizer, Tokens::ByteLevel);
        let write = |name: &str, json: Value| std::fs::write(folder.join(name), json.to_string()).unwrap();
        let width = self.width();
        write(
            "config.json",
            json!({
                "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
                "hidden_size": width, "intermediate_size": width, "num_hidden_layers": 1,
                "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": self.tokens.len(),
                "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
                "tie_word_embeddings": false, "torch_dtype": "float32", "eos_token_id": EOS,
            }),
        );
        let mut config = json!({ "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>" });
        if let Some(template) = &self.template {
            config["chat_template"] = json!(template);
        }
        write("tokenizer_config.json", config);
        write("tokenizer.json", self.tokenizer_json());
        std::fs::write(folder.join("model.safetensors"), self.weights()).unwrap();
    }

    fn tokenizer_json(&self) -> Value {
        let ids = || self.tokens.iter().enumerate();
        let vocabulary: Map<String, Value> = ids().map(|(id, (text, _))| (text.clone(), json!(id))).collect();
        let added: Vec<Value> = ids()
            .filter(|(_, (_, kind))| *kind != NORMAL)
            .map(|(id, (text, kind))| {
                json!({
                    "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": matches!(*kind, CONTROL | UNKNOWN | UNUSED),
                })
            })
            .collect();
        let byte_level =
            json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false });
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
            "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": [],
            },
        })
    }

    fn weights(&self) -> Vec<u8> {
        let (width, vocabulary) = (self.width(), self.tokens.len());
        let square = || (vec![width, width], vec![0.0; width * width]);
        let norm = || (vec![width], vec![1.0; width]);
        let layer = |name: &str| format!("model.layers.0.{name}.weight");
        let mut tensors = vec![
            ("model.embed_tokens.weight".to_owned(), (vec![vocabulary, width], self.embedding())),
            ("lm_head.weight".to_owned(), (vec![vocabulary, width], self.output())),
            ("model.norm.weight".to_owned(), norm()),
            (layer("input_layernorm"), norm()),
            (layer("post_attention_layernorm"), norm()),
        ];
        for part in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            tensors.push((layer(&format!("self_attn.{part}")), square()));
        }
        for part in ["gate_proj", "up_proj", "down_proj"] {
            tensors.push((layer(&format!("mlp.{part}")), square()));
        }
        let (mut header, mut data) = (Map::new(), Vec::new());
        for (name, (shape, values)) in tensors {
            let begin = data.len();
            data.extend(values.iter().flat_map(|value: &f32| value.to_le_bytes()));
            header.insert(name, json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()] }));
        }
        let header = Value::Object(header).to_string();
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend(header.into_bytes());
        out.extend(data);
        out
    }
}
