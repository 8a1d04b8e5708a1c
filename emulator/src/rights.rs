//! The rights that a network takes: root's, or those of a user namespace of one's own.

use std::{fs, io};

use crate::sys;

/// Of linux/capability.h: networks are set up, namespaces made.
const NEEDED: [u32; 2] = [12, 21];

/// Where this process may not make a [`Network`](crate::Network), makes it root of a user namespace of its own, which many systems
/// allow everyone. Files and other processes are still those of the user who started it. To be called before any thread is started.
///
/// # Errors
///
/// If the system does not allow it; then there can be no network here.
pub fn acquire() -> io::Result<()> {
    let status = fs::read_to_string("/proc/thread-self/status")?;
    if has_needed(&status) == Some(true) { Ok(()) } else { sys::become_root_of_own_namespace() }
}

/// Whether a thread has them: from its file `status` in /proc.
fn has_needed(status: &str) -> Option<bool> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(effective.trim(), 16).ok()?;
    Some(NEEDED.iter().all(|capability| effective >> capability & 1 == 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_read_from_the_threads_status() {
        let status = |effective: &str| format!("Name:\tx\nCapInh:\t0000000000000000\nCapEff:\t{effective}\n");
        assert_eq!(has_needed(&status("000001ffffffffff")), Some(true), "root");
        assert_eq!(has_needed(&status("0000000000000000")), Some(false));
        assert_eq!(has_needed(&status("00000000a80425fb")), Some(false), "root of a container as Docker makes it");
        assert_eq!(has_needed(&status("0000000000201000")), Some(true), "these two alone");
        assert_eq!(has_needed("Name:\tx\n"), None);
    }
}
