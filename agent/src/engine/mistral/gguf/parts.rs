//! A model in several files, `NAME-00001-of-00003.gguf` and so on: any of them stands for all.

use std::path::{Path, PathBuf};

use super::GgufError;

/// Digits of a number in such a name.
const DIGITS: usize = 5;

/// The name of one of several files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct PartName {
    /// `NAME`.
    pub(in super::super) stem: String,
    /// Which, from 1 on.
    pub(super) number: u64,
    /// Of how many.
    pub(super) count: u64,
}

impl PartName {
    /// `None` for a name that is not like this.
    pub(in super::super) fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = name.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let (number, count) = (digits(number)?, digits(count)?);
        (1..=count).contains(&number).then(|| Self { stem: stem.to_owned(), number, count })
    }

    /// The names of all parts of the same model, in the same place.
    pub(in super::super) fn all_beside(&self, path: &Path) -> Vec<PathBuf> {
        let name = |number| format!("{}-{number:05}-of-{:05}.gguf", self.stem, self.count);
        (1..=self.count).map(|number| path.with_file_name(name(number))).collect()
    }
}

fn digits(text: &str) -> Option<u64> {
    let is_number = text.len() == DIGITS && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

/// All files of the model that `path` is, or is a part of, in their order.
pub(super) fn all(path: &Path) -> Result<Vec<PathBuf>, GgufError> {
    let Some(name) = PartName::of(path) else { return Ok(vec![path.to_owned()]) };
    let all = name.all_beside(path);
    let missing = all.iter().filter(|part| !part.is_file());
    let missing: Vec<String> =
        missing.filter_map(|part| Some(part.file_name()?.to_string_lossy().into_owned())).collect();
    if missing.is_empty() { Ok(all) } else { Err(GgufError::MissingParts { missing, count: name.count }) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_part_is_known_by_its_name() {
        let name = PartName::of(Path::new("/m/big-model-00002-of-00003.gguf")).unwrap();
        assert_eq!(name, PartName { stem: "big-model".into(), number: 2, count: 3 });
        assert_eq!(name.all_beside(Path::new("/m/x.gguf"))[0], Path::new("/m/big-model-00001-of-00003.gguf"));
        for whole in
            ["a.gguf", "a-1-of-3.gguf", "a-00000-of-00003.gguf", "a-00004-of-00003.gguf", "a-00001-of-0000x.gguf"]
        {
            assert_eq!(PartName::of(Path::new(whole)), None, "{whole}");
        }
    }

    #[test]
    fn the_parts_that_are_missing_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let second = folder.path().join("m-00002-of-00003.gguf");
        std::fs::write(&second, "").unwrap();
        // A folder is no part.
        std::fs::create_dir(folder.path().join("m-00003-of-00003.gguf")).unwrap();
        let message = all(&second).unwrap_err().to_string();
        assert!(message.contains("m-00001-of-00003.gguf, m-00003-of-00003.gguf are not beside it"), "{message}");
        std::fs::write(folder.path().join("m-00001-of-00003.gguf"), "").unwrap();
        let message = all(&second).unwrap_err().to_string();
        assert!(message.contains("m-00003-of-00003.gguf is not beside it"), "{message}");
        let many = folder.path().join("m-00001-of-99999.gguf");
        assert!(all(&many).unwrap_err().to_string().contains("and 99994 more are not"));
    }
}
