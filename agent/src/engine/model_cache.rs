//! Files in the cache of models: each is made by one process at a time, appears when it is whole, and is known by its SHA-256.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
};

use aws_lc_rs::digest;

/// Temporary directories begin so. They lie beside the file: a rename is atomic within one file system only.
pub(super) const TEMPORARY: &str = ".fetch-";

/// Removes the temporary directories of processes that were killed. Called with the lock held: then there are no others.
pub(super) fn remove_leftovers(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            // If it cannot be removed it costs space and nothing else.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Copies and gives the SHA-256 in hexadecimal.
pub(super) fn sha256_of(mut input: impl Read, output: &mut impl Write) -> io::Result<String> {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match input.read(&mut buffer)? {
            0 => return Ok(context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()),
            read => {
                context.update(&buffer[..read]);
                output.write_all(&buffer[..read])?;
            }
        }
    }
}

/// Holds a file's lock until it is dropped; the system lets go of it when the process dies.
pub(super) fn lock(path: &Path, on_wait: &dyn Fn()) -> io::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    if !flock(&file, false)? {
        on_wait();
        flock(&file, true)?;
    }
    Ok(file)
}

/// `File::lock` of the standard library came with Rust 1.89, after this project's oldest.
#[cfg(unix)]
fn flock(file: &File, wait: bool) -> io::Result<bool> {
    use std::os::fd::AsRawFd;
    let operation = if wait { libc::LOCK_EX } else { libc::LOCK_EX | libc::LOCK_NB };
    loop {
        // SAFETY: the descriptor is open as long as `file` is borrowed, and flock takes no pointers.
        if unsafe { libc::flock(file.as_raw_fd(), operation) } == 0 {
            return Ok(true);
        }
        match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            error if error.kind() == io::ErrorKind::Interrupted => {}
            error => return Err(error),
        }
    }
}

/// Without locks two processes fetch it twice, and the second replaces the first one's file by the same one.
#[cfg(not(unix))]
fn flock(_file: &File, _wait: bool) -> io::Result<bool> {
    Ok(true)
}
