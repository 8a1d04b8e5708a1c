//! Models on the Hugging Face hub, once they are in its cache: from there on they are files like others.

use std::path::{Path, PathBuf};

use super::ModelSource;

/// `org/name/path/file.gguf` in its repository and its path there; `None` for a whole repository.
pub(super) fn file_of(name: &str) -> (String, Option<String>) {
    let mut parts = name.splitn(3, '/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(organisation), Some(repository), Some(file)) => {
            (format!("{organisation}/{repository}"), Some(file.to_owned()))
        }
        _ => (name.to_owned(), None),
    }
}

/// The files of `name` in the cache, as a source that needs no hub; `None` where they are not there.
pub(super) fn cached(cache: &Path, name: &str) -> Option<ModelSource> {
    let (repository, file) = file_of(name);
    let folder = cache.join(format!("models--{}", repository.replace('/', "--")));
    let revision = std::fs::read_to_string(folder.join("refs/main")).ok()?;
    let snapshot = folder.join("snapshots").join(revision.trim());
    match file {
        Some(file) => {
            let path: PathBuf = snapshot.join(file);
            path.is_file().then_some(ModelSource::GgufFile(path))
        }
        None => {
            let is_whole = ["config.json", "tokenizer.json"].iter().all(|file| snapshot.join(file).is_file());
            is_whole.then_some(ModelSource::SafetensorsDir(snapshot))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_file_on_the_hub_is_told_from_a_repository() {
        assert_eq!(file_of("org/name"), ("org/name".into(), None));
        assert_eq!(file_of("org/name/a/b.gguf"), ("org/name".into(), Some("a/b.gguf".into())));
    }

    #[test]
    fn what_is_in_the_cache_is_a_file() {
        let cache = tempfile::tempdir().unwrap();
        assert_eq!(cached(cache.path(), "org/name/m.gguf"), None);
        let folder = cache.path().join("models--org--name");
        let snapshot = folder.join("snapshots/abc");
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::create_dir_all(folder.join("refs")).unwrap();
        std::fs::write(folder.join("refs/main"), "abc\n").unwrap();
        assert_eq!(cached(cache.path(), "org/name/m.gguf"), None);
        std::fs::write(snapshot.join("m.gguf"), "").unwrap();
        assert_eq!(cached(cache.path(), "org/name/m.gguf"), Some(ModelSource::GgufFile(snapshot.join("m.gguf"))));
        assert_eq!(cached(cache.path(), "org/name"), None);
        for file in ["config.json", "tokenizer.json"] {
            std::fs::write(snapshot.join(file), "{}").unwrap();
        }
        assert_eq!(cached(cache.path(), "org/name"), Some(ModelSource::SafetensorsDir(snapshot)));
    }
}
