//! One process at a time.

use std::{
    fs::{File, OpenOptions},
    io,
    path::Path,
};

/// Holds a directory for one process at a time, until dropped: two clusters that start together must not make two CAs.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Waits until no other process holds it. The system lets go of it when its holder ends, however it ends.
    ///
    /// # Errors
    /// What the system says of `.lock` in this directory.
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
