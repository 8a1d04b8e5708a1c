//! How many files a process may have open. Each connection is one.

use std::io;

/// Raises this process' limit on open files to what the system allows it, and gives that. To be called as a program starts: the usual
/// limit is 1,024, kept that low for programs that wait with `select`, and each connection takes one.
///
/// # Errors
/// The system's refusal. Everything works as before then, for fewer connections.
pub fn raise_open_files() -> io::Result<u64> {
    let mut limit = limits()?;
    let most = most(limit.rlim_max);
    if limit.rlim_cur < most {
        limit.rlim_cur = most;
        // SAFETY: the pointer is to a valid rlimit, which is only read.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    open_files()
}

/// How many files this process may have open at present.
pub(crate) fn open_files() -> io::Result<u64> {
    limits().map(|limit| limit.rlim_cur)
}

fn limits() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a valid rlimit, which is written.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit)
}

/// macOS says "no limit" and takes no more than OPEN_MAX (setrlimit(2) there).
#[cfg(target_os = "macos")]
fn most(hard: u64) -> u64 {
    hard.min(10_240)
}

#[cfg(not(target_os = "macos"))]
fn most(hard: u64) -> u64 {
    hard
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_limit_is_raised_to_what_the_system_allows() {
        let raised = raise_open_files().unwrap();
        let limit = limits().unwrap();
        assert_eq!((raised, limit.rlim_cur), (most(limit.rlim_max), most(limit.rlim_max)));
        assert_eq!(raise_open_files().unwrap(), raised);
    }
}
