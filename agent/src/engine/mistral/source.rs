//! Where a model comes from, and under which names it is served.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use super::gguf::PartName;

/// A model and the names that requests may use for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSpec {
    /// At least one.
    pub names: Vec<String>,
    /// Where it comes from.
    pub source: ModelSource,
    /// A file with a chat template, in place of the model's own. Defaults to none.
    pub chat_template: Option<PathBuf>,
}

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// One `.gguf` file, or one of the parts of a model that has several, `NAME-00001-of-00003.gguf` and so on.
    GgufFile(PathBuf),
    /// A directory with `config.json`, `tokenizer.json` and safetensors.
    SafetensorsDir(PathBuf),
    /// On the Hugging Face hub: `org/name` (safetensors), or `org/name/file.gguf`.
    Hub(String),
}

/// Why a `--model` argument was refused.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Nothing at this path.
    #[error(
        "model {path:?}: there is no such file or directory (a model on the Hugging Face hub is written org/name or org/name/file.gguf)"
    )]
    Missing {
        /// As written.
        path: PathBuf,
    },
    /// A directory that holds no model.
    #[error(
        "model directory {path:?} has no {file}: give a directory of safetensors with config.json and tokenizer.json, or a .gguf file"
    )]
    NotAModel {
        /// The directory.
        path: PathBuf,
        /// What is missing.
        file: &'static str,
    },
    /// A path that cannot be read.
    #[error("model {path:?}: {error}")]
    Unreadable {
        /// As written.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// `=SOURCE`, `NAME=`, or nothing at all.
    #[error(
        "model {0:?} is not NAME=SOURCE or SOURCE, where SOURCE is a .gguf file, a directory, or a hub name (org/name, org/name/file.gguf)"
    )]
    Syntax(String),
    /// The same name for two sources.
    #[error("the model name {0:?} is given to two different models")]
    NameTwice(String),
}

impl ModelSpec {
    /// A model under one name, with its own chat template.
    pub fn new(name: impl Into<String>, source: ModelSource) -> Self {
        Self { names: vec![name.into()], source, chat_template: None }
    }

    /// `NAME=SOURCE` or `SOURCE`; a source alone is named after its file or directory.
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        // A path may hold '=', a name holds no '/'.
        let named = text.split_once('=').filter(|(name, _)| !name.contains(['/', '\\']));
        let (name, source) = named.map_or((None, text), |(name, source)| (Some(name.trim()), source));
        if source.trim().is_empty() || name.is_some_and(str::is_empty) {
            return Err(SourceError::Syntax(text.to_owned()));
        }
        let source = ModelSource::parse(source.trim())?;
        let name = name.map_or_else(|| source.short_name(), ToOwned::to_owned);
        Ok(Self::new(name, source))
    }

    /// Several arguments; one source under several names becomes one model, in the order of first mention.
    pub fn parse_all<T: AsRef<str>>(texts: &[T]) -> Result<Vec<Self>, SourceError> {
        let mut specs: Vec<Self> = Vec::new();
        for text in texts {
            specs.push(Self::parse(text.as_ref())?);
        }
        Self::merge(specs)
    }

    /// Puts specifications of the same source and template together, so that it is loaded once.
    pub fn merge(specs: Vec<Self>) -> Result<Vec<Self>, SourceError> {
        let mut merged: Vec<Self> = Vec::new();
        for spec in specs {
            let same = |other: &Self| other.source == spec.source && other.chat_template == spec.chat_template;
            for name in &spec.names {
                match merged.iter().find(|other| other.names.contains(name)) {
                    Some(other) if same(other) => {}
                    Some(_) => return Err(SourceError::NameTwice(name.clone())),
                    None => match merged.iter_mut().find(|other| same(other)) {
                        Some(same) => same.names.push(name.clone()),
                        None => merged.push(Self { names: vec![name.clone()], ..spec.clone() }),
                    },
                }
            }
        }
        Ok(merged)
    }
}

impl ModelSource {
    /// A path that exists is that file or directory; otherwise two parts, or three that end in `.gguf`, are a name on the hub.
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        let path = PathBuf::from(text);
        match std::fs::canonicalize(&path) {
            Ok(found) if found.is_dir() => Self::directory(found),
            // The file's own name is kept where it is a link: the hub's cache links NAME.gguf to a file named by its digest.
            Ok(found) => Ok(Self::GgufFile(first_part(named_as_written(&path).unwrap_or(found)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => match is_hub_name(text) {
                true => Ok(Self::Hub(text.to_owned())),
                false => Err(SourceError::Missing { path }),
            },
            Err(error) => Err(SourceError::Unreadable { path, error }),
        }
    }

    fn directory(path: PathBuf) -> Result<Self, SourceError> {
        match ["config.json", "tokenizer.json"].into_iter().find(|file| !path.join(file).is_file()) {
            Some(file) => Err(SourceError::NotAModel { path, file }),
            None => Ok(Self::SafetensorsDir(path)),
        }
    }

    /// The file's or directory's name without `.gguf` and the number of a part.
    fn short_name(&self) -> String {
        let path = match self {
            Self::GgufFile(path) | Self::SafetensorsDir(path) => path.as_path(),
            Self::Hub(name) => Path::new(name),
        };
        if let Some(part) = PartName::of(path) {
            return part.stem;
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.strip_suffix(".gguf").map(ToOwned::to_owned).unwrap_or(name)
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GgufFile(path) | Self::SafetensorsDir(path) => write!(out, "{}", path.display()),
            Self::Hub(name) => write!(out, "{name} (Hugging Face hub)"),
        }
    }
}

/// The first part of a model that has several, so that it is the same model whichever of them is named.
fn first_part(path: PathBuf) -> PathBuf {
    let all = PartName::of(&path).map(|part| part.all_beside(&path)).unwrap_or_default();
    all.into_iter().next().filter(|first| first.is_file()).unwrap_or(path)
}

fn named_as_written(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    Some(std::fs::canonicalize(path.parent()?).ok()?.join(path.file_name()?))
}

/// `org/name` or `org/name/…/file.gguf`, in the characters that the hub allows.
fn is_hub_name(text: &str) -> bool {
    let parts: Vec<&str> = text.split('/').collect();
    let allowed = |part: &&str| {
        let characters = part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        characters && !part.is_empty() && !part.starts_with('.')
    };
    parts.iter().all(allowed)
        && match parts.as_slice() {
            [_, name] => !name.ends_with(".gguf"),
            [_, _, .., file] => file.ends_with(".gguf"),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn hub_names_are_told_from_paths() {
        let parse = |text| ModelSpec::parse(text).map(|spec| (spec.names, spec.source));
        assert_eq!(
            parse("Qwen/Qwen3-0.6B").unwrap(),
            (vec!["Qwen3-0.6B".into()], ModelSource::Hub("Qwen/Qwen3-0.6B".into()))
        );
        let file = "bartowski/Llama-3.2-1B-Instruct-GGUF/Llama-3.2-1B-Instruct-Q8_0.gguf";
        assert_eq!(parse(&format!("llama={file}")).unwrap(), (vec!["llama".into()], ModelSource::Hub(file.into())));
        for path in ["/no/such/file.gguf", "./missing.gguf", "missing.gguf", "models/missing.gguf", "~/x.gguf", "a/b/c"]
        {
            let error = ModelSpec::parse(path).unwrap_err();
            assert!(matches!(error, SourceError::Missing { .. }), "{path}: {error}");
            assert!(error.to_string().contains(path), "{error}");
        }
    }

    #[test]
    fn names_may_hold_colons_and_paths_equals_signs() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a=b.gguf");
        std::fs::write(&file, b"x").unwrap();
        let spec = ModelSpec::parse(&format!("small:1b={}", file.display())).unwrap();
        assert_eq!(spec.names, ["small:1b"]);
        assert_eq!(ModelSpec::parse(&file.display().to_string()).unwrap().names, ["a=b"]);
        for wrong in ["", "=x", "name=", " = "] {
            assert!(matches!(ModelSpec::parse(wrong), Err(SourceError::Syntax(_))), "{wrong:?}");
        }
    }

    #[test]
    fn one_source_under_two_names_is_one_model() {
        let specs = ModelSpec::parse_all(&["a=org/one", "b=org/two", "c=org/one", "a=org/one"]).unwrap();
        assert_eq!(specs.len(), 2);
        assert_eq!(specs[0].names, ["a", "c"]);
        assert_eq!(specs[1].names, ["b"]);
        assert!(
            matches!(ModelSpec::parse_all(&["a=org/one", "a=org/two"]), Err(SourceError::NameTwice(name)) if name == "a")
        );
    }

    #[test]
    fn a_directory_without_a_model_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let error = ModelSource::parse(&folder.path().display().to_string()).unwrap_err();
        assert!(error.to_string().contains("config.json"), "{error}");
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
        assert!(matches!(ModelSource::parse(&folder.path().display().to_string()), Ok(ModelSource::SafetensorsDir(_))));
    }
}
