//! What tests of the program share.

use std::path::Path;

/// Whether there can be an emulated network here. A container's root may lack the rights, too.
pub(crate) fn has_network() -> bool {
    // SAFETY: a system call with a number. The thread that it moves ends here.
    let namespaces = std::thread::spawn(|| unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0).join().unwrap();
    let has = namespaces && Path::new("/dev/net/tun").exists();
    if !has {
        eprintln!("skipped: an emulated network needs root and /dev/net/tun");
    }
    has
}
