//! Room for as many open files, sockets included, as a measurement needs. Shells commonly allow 1024.

use std::io;

/// What a process has open beside the sockets that are counted: standard streams, event queues, libraries' own.
const OTHERS: u64 = 64;

/// Raises this process' limit so far that it may have so many `sockets` open; those it starts inherit that.
///
/// # Errors
/// When the system does not allow it; the message says what to do.
pub(crate) fn allow(sockets: u64) -> anyhow::Result<()> {
    let needed = sockets + OTHERS;
    let limit = read()?;
    if limit.rlim_cur >= needed {
        return Ok(());
    }
    // Above the hard limit only root may go.
    let raised = libc::rlimit { rlim_cur: needed, rlim_max: limit.rlim_max.max(needed) };
    // SAFETY: the pointer is to a limit that lives until the call returns.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raised) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    anyhow::bail!(
        "this needs {needed} open files, and the limit is {} here, {} at most ({error}): run as root, raise the limit \
         (`ulimit -Hn`, or LimitNOFILE= of a service), or use fewer connections",
        limit.rlim_cur,
        limit.rlim_max
    );
}

/// Raises this process' limit as far as it goes without a question, up to `sockets`: for who cannot say beforehand how many there will be.
/// The first connection too many says so.
pub(crate) fn allow_up_to(sockets: u64) {
    if allow(sockets).is_ok() {
        return;
    }
    if let Ok(mut limit) = read() {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: the pointer is to a limit that lives until the call returns. Refused, it stays as it was.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    }
}

fn read() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a limit to write to.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } {
        0 => Ok(limit),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_limit_rises_as_far_as_it_is_asked_to_and_never_falls() {
        let before = read().unwrap();
        allow(1).unwrap();
        assert_eq!(read().unwrap().rlim_cur, before.rlim_cur);
        allow(before.rlim_cur - OTHERS).unwrap();
        assert_eq!(read().unwrap().rlim_cur, before.rlim_cur);
    }

    #[test]
    fn what_the_system_never_allows_is_refused_with_what_to_do() {
        // Above what Linux allows anybody (fs.nr_open).
        let error = allow(1 << 40).unwrap_err().to_string();
        assert!(error.contains("ulimit -Hn"), "{error}");
    }
}
