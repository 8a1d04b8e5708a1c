//! Which agents are there, in a file beside the keys: a coordinator that was restarted knows for whom to wait before it says that there is no
//! such model. Nothing else of the registry is kept: agents say the rest themselves.
//!
//! One id a line. A file that cannot be read or written costs that knowledge and nothing more.

use std::{
    collections::BTreeSet,
    fs, io, mem,
    path::{Path, PathBuf},
    sync::Arc,
};

use titan_certs::validate_name;
use tracing::warn;

/// Beside the keys that sign tokens.
const FILE: &str = "known-agents";
/// Bytes of the file that are read: what the registry holds, with the longest names.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// No membership: what is there has to be written.
const NEVER: u64 = u64::MAX;

pub(crate) struct KnownAgents {
    path: PathBuf,
    /// As the file has them.
    ids: Vec<Arc<str>>,
    /// The [`membership`](crate::registry::Registry::membership) that was written last.
    written: u64,
    /// Whether the last attempt failed: that is said once.
    failing: bool,
}

impl KnownAgents {
    /// Reads the file in this directory, if there is one.
    pub(crate) fn open(dir: &Path) -> Self {
        let path = dir.join(FILE);
        let ids = read(&path).unwrap_or_else(|error| {
            warn!(path = %path.display(), %error, "cannot read which agents were there before: none are waited for");
            Vec::new()
        });
        Self { path, ids, written: NEVER, failing: false }
    }

    /// Who was there before.
    pub(crate) fn ids(&self) -> Vec<Arc<str>> {
        self.ids.clone()
    }

    /// Whether the file is behind.
    pub(crate) fn changed(&mut self, membership: u64) -> bool {
        mem::replace(&mut self.written, membership) != membership
    }

    /// Writes who is there now, whole or not at all.
    pub(crate) async fn write(&mut self, members: BTreeSet<Arc<str>>) {
        let members: Vec<Arc<str>> = members.into_iter().collect();
        if members == self.ids {
            return;
        }
        let path = self.path.clone();
        let text: String = members.iter().map(|id| format!("{id}\n")).collect();
        let written = tokio::task::spawn_blocking(move || replace(&path, &text)).await;
        match written.unwrap_or_else(|panicked| Err(io::Error::other(panicked))) {
            Ok(()) => {
                self.ids = members;
                self.failing = false;
            }
            Err(error) => {
                self.written = NEVER;
                if !mem::replace(&mut self.failing, true) {
                    let path = self.path.display();
                    warn!(%path, %error, "cannot note which agents are there: after a restart they are not waited for");
                }
            }
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<Arc<str>>> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(file, MAX_FILE_BYTES), &mut text)?;
    // A line that is no name was not written here.
    Ok(text.lines().filter(|line| validate_name(line).is_ok()).map(Arc::from).collect())
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let unfinished = path.with_extension(std::process::id().to_string());
    let written = fs::write(&unfinished, text).and_then(|()| fs::rename(&unfinished, path));
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&unfinished);
    }
    written
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn members(ids: &[&str]) -> BTreeSet<Arc<str>> {
        ids.iter().map(|&id| Arc::from(id)).collect()
    }

    #[tokio::test]
    async fn who_is_there_is_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut known = KnownAgents::open(dir.path());
        assert!(known.ids().is_empty());
        assert!(known.changed(1) && !known.changed(1));
        known.write(members(&["a", "b"])).await;
        assert_eq!(KnownAgents::open(dir.path()).ids(), ["a".into(), "b".into()]);
        known.write(members(&[])).await;
        assert!(KnownAgents::open(dir.path()).ids().is_empty());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing half made is left");
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_is_no_reason_to_stop() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "a\nno name\n\u{1b}[31m\n\nb\n").unwrap();
        assert_eq!(KnownAgents::open(dir.path()).ids(), ["a".into(), "b".into()]);
        fs::write(dir.path().join(FILE), b"\xff").unwrap();
        assert!(KnownAgents::open(dir.path()).ids().is_empty());
        let mut nowhere = KnownAgents::open(&dir.path().join("nowhere"));
        nowhere.write(members(&["a"])).await;
        assert!(nowhere.failing && nowhere.ids().is_empty());
    }
}
