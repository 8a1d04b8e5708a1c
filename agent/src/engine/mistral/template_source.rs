//! Where a model's chat template comes from: a file that the operator names, the model's own files, or its GGUF header.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// A template, and who wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TemplateSource {
    /// In the language of Jinja.
    pub(super) text: String,
    /// Named in messages: `its own chat template`, or the file.
    pub(super) origin: String,
}

/// Why a file holds no template.
#[derive(Debug, thiserror::Error)]
#[error("chat template {path:?}: {reason}")]
pub struct ChatTemplateError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// Files of a directory of safetensors that may hold the template, the one that counts first.
const FILES: [&str; 3] = ["chat_template.jinja", "tokenizer_config.json", "chat_template.json"];

/// Bytes of a template file that are read; the longest templates have some 20 kB, the longest `tokenizer_config.json` some megabytes.
const MAX_BYTES: u64 = 32 << 20;

impl TemplateSource {
    /// Of the model itself.
    pub(super) fn own(text: &str) -> Option<Self> {
        let is_there = !text.trim().is_empty();
        is_there.then(|| Self { text: text.to_owned(), origin: "its own chat template".to_owned() })
    }

    /// A template, or a JSON file with the field `chat_template`, such as `tokenizer_config.json`.
    pub(super) fn read(path: &Path) -> Result<Self, ChatTemplateError> {
        let wrong = |reason: String| ChatTemplateError { path: path.to_owned(), reason };
        let found = file(path)?.filter(|text| !text.trim().is_empty());
        let text = found.ok_or_else(|| {
            wrong(
                "there is no template in it: give a Jinja template, or a JSON file with the field chat_template"
                    .to_owned(),
            )
        })?;
        Ok(Self { text, origin: format!("the chat template {path:?}") })
    }

    /// The template of a directory of safetensors.
    pub(super) fn of_directory(folder: &Path) -> Result<Option<Self>, ChatTemplateError> {
        for name in FILES {
            let path = folder.join(name);
            if !path.is_file() {
                continue;
            }
            if let Some(own) = file(&path)?.as_deref().and_then(Self::own) {
                return Ok(Some(own));
            }
        }
        Ok(None)
    }
}

fn file(path: &Path) -> Result<Option<String>, ChatTemplateError> {
    let wrong = |reason: String| ChatTemplateError { path: path.to_owned(), reason };
    let bytes = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
    if bytes > MAX_BYTES {
        return Err(wrong(format!("it has {bytes} bytes: this is no chat template")));
    }
    let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let text = titan_files::text(&bytes).map_err(|is| wrong(format!("it is {is}")))?;
    if path.extension().is_none_or(|extension| extension != "json") {
        return Ok(Some(text));
    }
    let json: Value = serde_json::from_str(&text).map_err(|error| wrong(format!("it is no JSON: {error}")))?;
    Ok(json.get("chat_template").and_then(field))
}

/// The text, or of several under names the one that is for conversations.
fn field(value: &Value) -> Option<String> {
    let named = |wanted: &str| {
        let templates = value.as_array()?;
        let found = templates.iter().find(|template| template.get("name").and_then(Value::as_str) == Some(wanted))?;
        found.get("template")?.as_str().map(ToOwned::to_owned)
    };
    value.as_str().map(ToOwned::to_owned).or_else(|| named("default"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_template_is_a_file_or_a_field_of_one() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        for (name, content) in [
            ("a.jinja", "{{ x }}"),
            ("a.txt", "{{ x }}"),
            ("a.json", r#"{"chat_template": "{{ x }}", "eos_token": null}"#),
            (
                "b.json",
                r#"{"chat_template": [{"name": "tool_use", "template": "y"}, {"name": "default", "template": "{{ x }}"}]}"#,
            ),
        ] {
            assert_eq!(TemplateSource::read(&write(name, content)).unwrap().text, "{{ x }}", "{name}");
        }
        for (name, content, says) in
            [("c.jinja", " \n", "no template in it"), ("c.json", "{}", "no template in it"), ("d.json", "{", "no JSON")]
        {
            let message = TemplateSource::read(&write(name, content)).unwrap_err().to_string();
            assert!(message.contains(says) && message.contains(name), "{message}");
        }
        assert!(TemplateSource::read(&folder.path().join("none")).unwrap_err().to_string().contains("none"));
    }

    #[test]
    fn of_a_directory_the_template_of_its_own_file_counts() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(TemplateSource::of_directory(folder.path()).unwrap(), None);
        std::fs::write(folder.path().join("chat_template.json"), r#"{"chat_template": "third"}"#).unwrap();
        std::fs::write(folder.path().join("tokenizer_config.json"), "{}").unwrap();
        let found = || TemplateSource::of_directory(folder.path()).unwrap().unwrap().text;
        assert_eq!(found(), "third");
        std::fs::write(folder.path().join("tokenizer_config.json"), r#"{"chat_template": "second"}"#).unwrap();
        assert_eq!(found(), "second");
        std::fs::write(folder.path().join("chat_template.jinja"), "first").unwrap();
        assert_eq!(found(), "first");
        std::fs::write(folder.path().join("chat_template.jinja"), "\u{feff}with a byte-order mark").unwrap();
        assert_eq!(found(), "with a byte-order mark");
    }
}
