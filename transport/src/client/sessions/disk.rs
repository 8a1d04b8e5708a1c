//! One file per server in a directory that several processes use at the same time.
//!
//! Whoever takes a session removes it from its file first, under a lock on the directory: no two processes send the same one.
//! Nothing is synced to the disk: after a power failure a file may be damaged, which its checksum shows, or hold a session that was
//! used, which the server refuses.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use aws_lc_rs::digest::{Context, SHA256};

use super::record::{Binding, MAX_RECORD_BYTES, Record};
use crate::limits::{SESSION_AGE, SESSION_SERVERS};

/// Longest wait for another process to let go of the directory. It holds it for a fraction of a millisecond, unless it was stopped
/// just then, and a handshake is cheaper than waiting for that.
const LOCK_WAIT: Duration = Duration::from_millis(50);
/// Between two tries.
const LOCK_POLL: Duration = Duration::from_millis(1);
/// How the files of sessions end; anything else in the directory is let alone.
const SUFFIX: &str = "session";
/// A file that is being written. The lock shows that nobody is at it any more.
const UNFINISHED: &str = "unfinished";

/// The directory, for one client of one CA.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    dir: PathBuf,
    /// Digest of the CA and the client's certificate.
    identity: Binding,
}

/// Why nothing was read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum DiskError {
    /// The system says no.
    #[error("{path}: {source}")]
    Io {
        /// What was to be read or written.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Sessions that another user could have put there would let them answer in the server's place.
    #[error("{path} belongs to another user, or others can write to it: give this user alone the right (chmod 700)")]
    NotOurs {
        /// The directory.
        path: PathBuf,
    },
    /// Another process holds the directory.
    #[error("another process has held {path} for {} ms", LOCK_WAIT.as_millis())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
}

impl Disk {
    pub(super) fn new(dir: PathBuf, identity: Binding) -> Self {
        Self { dir, identity }
    }

    /// Takes what one connection to `server` uses: [`Record::take`]. None where nothing is kept of it.
    pub(super) fn take(&self, server: &str, now: SystemTime) -> Result<Option<Record>, DiskError> {
        let (path, binding) = self.place(server);
        // A server that was never met: no lock, no directory.
        if !path.exists() {
            return Ok(None);
        }
        let _lock = self.lock()?;
        let Some(mut record) = read(&path, &binding, now) else { return Ok(None) };
        let taken = record.take();
        if taken != (Record { rtt: taken.rtt, ..Record::default() }) {
            self.write(&path, &record.encode(&binding))?;
        }
        Ok(Some(taken))
    }

    /// Adds to what is kept of `server`.
    pub(super) fn put(&self, server: &str, newer: Record, now: SystemTime) -> Result<(), DiskError> {
        let (path, binding) = self.place(server);
        self.make_dir()?;
        let _lock = self.lock()?;
        let kept = read(&path, &binding, now);
        if kept.is_none() {
            self.make_room(now);
        }
        let mut record = kept.unwrap_or_default();
        record.add(newer);
        record.expire(unix(now));
        self.write(&path, &record.encode(&binding))
    }

    /// The file of `server`, and what is written in it. The name says nothing, since servers' names may be private.
    fn place(&self, server: &str) -> (PathBuf, Binding) {
        let mut digest = Context::new(&SHA256);
        digest.update(&self.identity);
        digest.update(server.as_bytes());
        let digest = digest.finish();
        let mut binding = Binding::default();
        binding.copy_from_slice(digest.as_ref());
        let name: String = binding.iter().map(|byte| format!("{byte:02x}")).collect();
        (self.dir.join(name).with_extension(SUFFIX), binding)
    }

    fn make_dir(&self) -> Result<(), DiskError> {
        titan_files::make_dir(&self.dir).map_err(|source| self.io(&self.dir, source))
    }

    /// Waits for the other processes. The system lets go of the lock when its holder ends, however it ends.
    fn lock(&self) -> Result<Lock, DiskError> {
        let metadata = fs::metadata(&self.dir).map_err(|source| self.io(&self.dir, source))?;
        if !metadata.is_dir() || !only_ours_to_write(&metadata) {
            return Err(DiskError::NotOurs { path: self.dir.clone() });
        }
        let path = self.dir.join(".lock");
        let file = private().create(true).truncate(false).open(&path).map_err(|source| self.io(&path, source))?;
        let until = Instant::now() + LOCK_WAIT;
        loop {
            match try_lock(&file) {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                    std::thread::sleep(LOCK_POLL);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(DiskError::Busy { path: self.dir.clone() });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.io(&path, source)),
            }
        }
    }

    /// A reader finds the old content or the new one.
    fn write(&self, path: &Path, content: &[u8]) -> Result<(), DiskError> {
        let unfinished = path.with_extension(UNFINISHED);
        // A leftover may have another mode.
        let _ = fs::remove_file(&unfinished);
        let written = private()
            .create_new(true)
            .open(&unfinished)
            .and_then(|mut file| file.write_all(content))
            .and_then(|()| fs::rename(&unfinished, path));
        written.map_err(|source| {
            let _ = fs::remove_file(&unfinished);
            self.io(path, source)
        })
    }

    /// Deletes files in which everything has expired, leftovers, and of the rest the oldest, so that there is room for one more.
    fn make_room(&self, now: SystemTime) {
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let mut files = Vec::new();
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let ours = |suffix| path.extension().is_some_and(|extension| extension == suffix);
            let written = fs::symlink_metadata(&path).and_then(|metadata| metadata.modified());
            match written {
                _ if ours(UNFINISHED) => drop(fs::remove_file(&path)),
                Ok(written) if ours(SUFFIX) => files.push((written, path)),
                _ => {}
            }
        }
        files.sort();
        let expired =
            files.iter().filter(|(written, _)| now.duration_since(*written).is_ok_and(|age| age > SESSION_AGE));
        let delete = expired.count().max((files.len() + 1).saturating_sub(SESSION_SERVERS));
        for (_, path) in &files[..delete] {
            // What cannot be deleted now can be at the next time.
            let _ = fs::remove_file(path);
        }
    }

    fn io(&self, path: &Path, source: io::Error) -> DiskError {
        DiskError::Io { path: path.to_owned(), source }
    }
}

/// Held until dropped.
struct Lock {
    _file: File,
}

/// What the file has that can still be used. A file that cannot be read is as good as none: the next one written replaces it.
fn read(path: &Path, binding: &Binding, now: SystemTime) -> Option<Record> {
    let unusable = |reason: &dyn std::fmt::Display| tracing::debug!(?path, %reason, "stored sessions are not used");
    let mut bytes = Vec::new();
    let read = private().read(true).open(path).and_then(|file| {
        let metadata = file.metadata()?;
        if !metadata.is_file() || !only_ours(&metadata) {
            return Err(io::Error::other("others could have written or read it"));
        }
        file.take(MAX_RECORD_BYTES as u64 + 1).read_to_end(&mut bytes)
    });
    match read {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            unusable(&error);
            return None;
        }
    }
    let mut record = Record::decode(&bytes, binding).inspect_err(|error| unusable(error)).ok()?;
    record.expire(unix(now));
    Some(record)
}

fn unix(now: SystemTime) -> u64 {
    now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// For files of mode 0600, given at creation: they are never readable by others, not even for a moment.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        // Neither follow a link that somebody else made nor wait for a pipe.
        options.mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    }
    options
}

#[cfg(unix)]
fn only_ours_to_write(metadata: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    // SAFETY: it only asks who the process is.
    metadata.uid() == unsafe { libc::geteuid() } && metadata.mode() & 0o022 == 0
}

#[cfg(unix)]
fn only_ours(metadata: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    only_ours_to_write(metadata) && metadata.mode() & 0o077 == 0
}

#[cfg(unix)]
fn try_lock(file: &File) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: the descriptor is open for as long as `file` lives; flock touches no memory of ours.
    match unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Elsewhere nothing is said about who may read a file: sessions stay in memory.
#[cfg(not(unix))]
fn try_lock(_: &File) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(unix))]
fn only_ours_to_write(_: &fs::Metadata) -> bool {
    true
}

#[cfg(not(unix))]
fn only_ours(_: &fs::Metadata) -> bool {
    true
}

#[cfg(all(test, unix))]
mod tests;
