//! API keys: who may have requests routed here, and how much of it.
//!
//! They lie in one file beside the keys that sign tokens, each as the SHA-256 of its secret: nobody who reads the file can use one. `titan keys` changes
//! the file, and a running coordinator takes up what has changed ([`crate::access`]). A revoked key stays in it, so that the last one
//! to be revoked does not open the door again, and so that usage keeps its name.

mod secret;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use titan_files::{Access, Lock, make_dir, write};
use titan_transport::token::unix_seconds;

pub(crate) use self::secret::id_of;
use self::secret::{Hash, Secret};

/// In the directory of the signing keys.
const FILE: &str = "api-keys.json";
/// The layout of the file. Another one is of another version of this program.
const VERSION: u32 = 1;
/// Keys of one coordinator, revoked ones included: far more than it has users, and read within a few milliseconds.
const MAX_KEYS: usize = 100_000;
/// Bytes of a key's name: it stands in every line of the usage log.
const MAX_NAME_BYTES: usize = 64;
/// Models that one key may be limited to.
const MAX_MODELS: usize = 256;
/// What a key has unless told otherwise, and who shows none: half of what there is, so that a key can be put before others as well as behind them.
pub const DEFAULT_PRIORITY: u8 = 128;

/// A key, without its secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApiKey {
    /// Eight hexadecimal digits, which the key begins with.
    pub id: String,
    /// Whose it is. No two keys that are not revoked have the same.
    pub name: String,
    /// Of its secret.
    pub(crate) hash: Hash,
    /// Unix seconds.
    pub created: i64,
    /// Unix seconds; `None` while it is good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<i64>,
    /// What it may be used for.
    #[serde(default)]
    pub limits: Limits,
}

#[cfg(test)]
impl ApiKey {
    /// A key that nobody has.
    pub(crate) fn for_tests(id: &str, priority: u8) -> Self {
        let limits = Limits { priority, ..Limits::default() };
        Self { id: id.to_owned(), name: id.to_owned(), hash: Hash::of_nothing(), created: 0, revoked: None, limits }
    }
}

/// What a key may be used for. `None` is without a limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Requests that begin within a second. As many may come at once after a pause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<u32>,
    /// Tokens read and written within a minute. They are known when an answer ends: what is used beyond this is waited for afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u32>,
    /// Generations at the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent: Option<u32>,
    /// The models that it may be used with; empty for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// Who goes first where there is no room for all; a larger number goes first.
    pub priority: u8,
}

impl Default for Limits {
    fn default() -> Self {
        let (requests_per_second, tokens_per_minute, concurrent) = (None, None, None);
        Self { requests_per_second, tokens_per_minute, concurrent, models: Vec::new(), priority: DEFAULT_PRIORITY }
    }
}

impl Limits {
    /// Whether how much it is used has a limit at all.
    pub(crate) fn counts(&self) -> bool {
        self.requests_per_second.is_some() || self.tokens_per_minute.is_some() || self.concurrent.is_some()
    }

    fn check(&self) -> Result<(), KeysError> {
        let numbers = [
            ("requests-per-second", self.requests_per_second),
            ("tokens-per-minute", self.tokens_per_minute),
            ("concurrent", self.concurrent),
        ];
        if let Some((name, _)) = numbers.into_iter().find(|(_, number)| *number == Some(0)) {
            return Err(KeysError::Zero { name });
        }
        if self.models.len() > MAX_MODELS || self.models.iter().any(String::is_empty) {
            return Err(KeysError::Models { count: self.models.len() });
        }
        Ok(())
    }
}

/// Why keys could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file cannot be read or written. Nothing was changed.
    #[error("cannot {action} the API keys in {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or its directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{} holds no API keys ({source}): restore it, or move it away, which revokes all keys", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The file is of another version of this program.
    #[error("{} has the layout {version}, and this program knows {VERSION}: use the version that wrote it", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The layout.
        version: u32,
    },
    /// A key that is not revoked has this name.
    #[error("there is a key {name:?} already: choose another name, or revoke it first")]
    Taken {
        /// The name.
        name: String,
    },
    /// No key that is not revoked has this name or id.
    #[error("there is no key {key:?} that is not revoked: `titan keys list` shows them, by name and id")]
    Unknown {
        /// What was asked for.
        key: String,
    },
    /// Nothing that could stand in a log.
    #[error("{name:?} is no name for a key: give 1 to {MAX_NAME_BYTES} bytes, none of them control characters")]
    Name {
        /// The name.
        name: String,
    },
    /// A limit that lets nothing through.
    #[error("--{name} 0 would let nothing through: `titan keys revoke` ends a key")]
    Zero {
        /// The limit.
        name: &'static str,
    },
    /// Too many models, or one without a name.
    #[error("{count} models, or one without a name: give at most {MAX_MODELS}, separated by commas")]
    Models {
        /// How many were given.
        count: usize,
    },
    /// As many keys as fit.
    #[error("there are {MAX_KEYS} keys already, revoked ones included")]
    Full,
    /// The system gave no random numbers.
    #[error("the system's random number generator failed: no key was made")]
    Random,
}

#[derive(Serialize, Deserialize)]
struct Contents {
    version: u32,
    keys: Vec<ApiKey>,
}

/// The file with the keys.
#[derive(Clone, Debug)]
pub struct KeyFile {
    path: PathBuf,
}

impl KeyFile {
    /// The keys in this directory. Nothing is read yet, and nothing need be there.
    pub fn in_dir(dir: &Path) -> Self {
        Self { path: dir.join(FILE) }
    }

    /// Where they lie.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All keys, the oldest first, revoked ones included. None where there is no file.
    ///
    /// # Errors
    /// [`KeysError::Io`], [`KeysError::Damaged`], [`KeysError::Version`].
    pub fn read(&self) -> Result<Vec<ApiKey>, KeysError> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.failed("read", error)),
        };
        let damaged = |source| KeysError::Damaged { path: self.path.clone(), source };
        let Contents { version, keys } = serde_json::from_slice(&text).map_err(damaged)?;
        match version {
            VERSION => Ok(keys),
            version => Err(KeysError::Version { path: self.path.clone(), version }),
        }
    }

    /// Makes a key. Its text is in the answer, and nowhere else.
    ///
    /// # Errors
    /// [`KeysError`]; nothing is changed then.
    pub fn add(&self, name: &str, limits: Limits, now: SystemTime) -> Result<(ApiKey, String), KeysError> {
        if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
            return Err(KeysError::Name { name: name.chars().take(MAX_NAME_BYTES).collect() });
        }
        limits.check()?;
        self.change(|keys| {
            if keys.iter().any(|key| key.revoked.is_none() && key.name == name) {
                return Err(KeysError::Taken { name: name.to_owned() });
            }
            if keys.len() >= MAX_KEYS {
                return Err(KeysError::Full);
            }
            let secret = Secret::new(|id| keys.iter().any(|key| key.id == id)).ok_or(KeysError::Random)?;
            let key = ApiKey {
                id: secret.id().to_owned(),
                name: name.to_owned(),
                hash: secret.hash(),
                created: unix_seconds(now),
                revoked: None,
                limits,
            };
            keys.push(key.clone());
            Ok((key, secret.text().to_owned()))
        })
    }

    /// Ends a key, by its name or id.
    ///
    /// # Errors
    /// [`KeysError`]; nothing is changed then.
    pub fn revoke(&self, key: &str, now: SystemTime) -> Result<ApiKey, KeysError> {
        self.change(|keys| {
            let found = find(keys, key)?;
            found.revoked = Some(unix_seconds(now));
            Ok(found.clone())
        })
    }

    /// Changes what a key may be used for, by its name or id.
    ///
    /// # Errors
    /// [`KeysError`]; nothing is changed then.
    pub fn limit(&self, key: &str, change: impl FnOnce(&mut Limits)) -> Result<ApiKey, KeysError> {
        self.change(|keys| {
            let found = find(keys, key)?;
            change(&mut found.limits);
            found.limits.check()?;
            Ok(found.clone())
        })
    }

    /// One process at a time, so that no change is lost to another one.
    fn change<T>(&self, change: impl FnOnce(&mut Vec<ApiKey>) -> Result<T, KeysError>) -> Result<T, KeysError> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        make_dir(dir).map_err(|error| self.failed("make the directory of", error))?;
        let _lock = Lock::acquire(dir).map_err(|error| self.failed("lock", error))?;
        let mut keys = self.read()?;
        let result = change(&mut keys)?;
        let damaged = |source| KeysError::Damaged { path: self.path.clone(), source };
        let mut text = serde_json::to_vec_pretty(&Contents { version: VERSION, keys }).map_err(damaged)?;
        text.push(b'\n');
        write(&self.path, &text, Access::Private).map_err(|error| self.failed("write", error))?;
        Ok(result)
    }

    fn failed(&self, action: &'static str, source: io::Error) -> KeysError {
        KeysError::Io { action, path: self.path.clone(), source }
    }
}

/// What the names of certificates begin with that were had with a key; the key's id follows.
const CERTIFICATE_PREFIX: &str = "key-";

/// The name in a certificate that was had with this key.
pub(crate) fn certificate_name(key_id: &str) -> String {
    format!("{CERTIFICATE_PREFIX}{key_id}")
}

/// The id of the key that a certificate of this name was had with. No other certificate has such a name that is good for anything.
pub(crate) fn key_of_certificate(name: &str) -> Option<&str> {
    name.strip_prefix(CERTIFICATE_PREFIX)
}

/// By name first: an operator may have called one key what another one's id is.
fn find<'a>(keys: &'a mut [ApiKey], wanted: &str) -> Result<&'a mut ApiKey, KeysError> {
    let position = |is: &dyn Fn(&ApiKey) -> bool| keys.iter().position(|key| key.revoked.is_none() && is(key));
    let found = position(&|key| key.name == wanted).or_else(|| position(&|key| key.id == wanted));
    match found.and_then(|at| keys.get_mut(at)) {
        Some(key) => Ok(key),
        None => Err(KeysError::Unknown { key: wanted.chars().take(MAX_NAME_BYTES).collect() }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn file() -> (tempfile::TempDir, KeyFile) {
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::in_dir(&dir.path().join("keys"));
        (dir, file)
    }

    #[test]
    fn a_key_is_stored_without_its_secret_and_for_its_owner_alone() {
        let (_dir, file) = file();
        assert_eq!(file.read().unwrap(), []);
        let (key, text) = file.add("alice", Limits::default(), SystemTime::now()).unwrap();
        assert!(text.starts_with(&format!("titan-{}-", key.id)), "{text}");
        let stored = fs::read_to_string(file.path()).unwrap();
        let secret = text.rsplit_once(&format!("{}-", key.id)).unwrap().1;
        assert!(!stored.contains(secret) && stored.contains("alice"));
        assert_eq!(fs::metadata(file.path()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(file.read().unwrap(), [key]);
    }

    #[test]
    fn a_revoked_key_stays_and_its_name_is_free() {
        let (_dir, file) = file();
        let now = SystemTime::now();
        let (first, _) = file.add("alice", Limits::default(), now).unwrap();
        assert!(matches!(file.add("alice", Limits::default(), now), Err(KeysError::Taken { .. })));
        assert_eq!(file.revoke("alice", now).unwrap().revoked, Some(unix_seconds(now)));
        assert!(matches!(file.revoke("alice", now), Err(KeysError::Unknown { .. })), "it is revoked");
        let (second, _) = file.add("alice", Limits::default(), now).unwrap();
        assert_ne!(first.id, second.id);
        assert_eq!(file.revoke(&second.id, now).unwrap().id, second.id, "by its id");
        assert_eq!(file.read().unwrap().len(), 2);
    }

    #[test]
    fn limits_change_one_by_one_and_none_may_be_zero() {
        let (_dir, file) = file();
        file.add("alice", Limits { concurrent: Some(2), ..Limits::default() }, SystemTime::now()).unwrap();
        let key = file.limit("alice", |limits| limits.tokens_per_minute = Some(1000)).unwrap();
        assert_eq!((key.limits.concurrent, key.limits.tokens_per_minute), (Some(2), Some(1000)));
        let error = file.limit("alice", |limits| limits.requests_per_second = Some(0)).unwrap_err();
        assert!(error.to_string().contains("--requests-per-second 0"), "{error}");
        let error = file.limit("alice", |limits| limits.models = vec![String::new()]).unwrap_err();
        assert!(error.to_string().contains("separated by commas"), "{error}");
        assert_eq!(file.read().unwrap(), [key], "nothing has changed");
        assert!(file.limit("bob", |_| ()).unwrap_err().to_string().contains("titan keys list"));
    }

    #[test]
    fn what_cannot_be_a_name_is_refused() {
        let (_dir, file) = file();
        for name in ["", "a\nb", "\u{1b}[31m", &"n".repeat(MAX_NAME_BYTES + 1)] {
            let error = file.add(name, Limits::default(), SystemTime::now()).unwrap_err();
            assert!(matches!(error, KeysError::Name { .. }), "{error}");
            assert!(!error.to_string().contains(char::is_control), "{error}");
        }
    }

    #[test]
    fn a_damaged_file_is_said_and_kept() {
        let (_dir, file) = file();
        file.add("alice", Limits::default(), SystemTime::now()).unwrap();
        for (content, word) in [("{", "restore it"), ("{\"version\": 9, \"keys\": []}", "layout 9")] {
            fs::write(file.path(), content).unwrap();
            for error in [file.read().map(drop), file.add("bob", Limits::default(), SystemTime::now()).map(drop)] {
                assert!(error.unwrap_err().to_string().contains(word));
            }
            assert_eq!(fs::read_to_string(file.path()).unwrap(), content);
        }
    }

    #[test]
    fn changes_of_several_processes_at_once_are_all_kept() {
        let (_dir, file) = file();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let file = &file;
                scope.spawn(move || {
                    for n in 0..5 {
                        file.add(&format!("{thread}-{n}"), Limits::default(), SystemTime::now()).unwrap();
                    }
                });
            }
        });
        assert_eq!(file.read().unwrap().len(), 20);
    }
}
