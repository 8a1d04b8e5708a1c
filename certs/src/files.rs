//! Files that are complete or absent, and private where they hold a key.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use aws_lc_rs::rand;

/// Who may read a file.
#[derive(Clone, Copy, Debug)]
pub enum Access {
    /// Mode 0600.
    Private,
    /// Mode 0644.
    Public,
}

/// Makes a directory and its parents, with mode 0700 for those that are new. An existing directory is left as it is: its
/// owner may share it on purpose, and the keys in it are private by their own mode.
pub fn make_dir(path: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Writes a file so that a reader, or a crash at any moment, finds the old content or the new one, never a part of it.
pub fn write_atomic(path: &Path, content: &[u8], access: Access) -> io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file path"));
    };
    let mut random = [0; 8];
    rand::fill(&mut random).map_err(|_| io::Error::other("the system's random number generator failed"))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{:016x}.tmp", u64::from_be_bytes(random)));
    // In the same directory, because a rename is atomic only within one file system.
    let temporary = dir.join(temporary);
    let written = write_new(&temporary, content, access).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // The first error is the one to report; a leftover has a name that nothing reads.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    sync_dir(dir)
}

/// The mode is given at creation: a key is never readable by others, not even for a moment.
fn write_new(path: &Path, content: &[u8], access: Access) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(
        &mut options,
        match access {
            Access::Private => 0o600,
            Access::Public => 0o644,
        },
    );
    #[cfg(not(unix))]
    let _ = access;
    let mut file = options.open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// A rename is durable only once its directory is.
fn sync_dir(dir: &Path) -> io::Result<()> {
    // `parent()` of a bare file name is "".
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

/// Holds the directory for one process at a time, until dropped: two clusters that start together must not make two CAs.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

impl DirLock {
    /// Waits until no other process holds it. The system lets go of it when its holder ends, however it ends.
    pub fn acquire(dir: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join(".lock"))?;
        #[cfg(unix)]
        loop {
            use std::os::fd::AsRawFd as _;
            // SAFETY: the descriptor is open for as long as `file` lives; flock touches no memory of ours.
            if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } == 0 {
                break;
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        Ok(Self { _file: file })
    }
}
