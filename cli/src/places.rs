//! Where this user's files are.

use std::{env, path::PathBuf};

use titan_certs::CertDir;

/// Moves what must be kept: certificates and signing keys.
const DATA_DIR: &str = "TITAN_DATA_DIR";

/// Moves what can be fetched again: models.
const CACHE_DIR: &str = "TITAN_CACHE_DIR";

/// Lets `TITAN_CACHE_DIR` stand for the user's cache directory, in this process and what it starts.
///
/// # Safety
/// The environment is changed: no other thread may run yet.
pub(crate) unsafe fn adopt_cache_dir() {
    if let Some(dir) = env::var_os(CACHE_DIR).filter(|dir| !dir.is_empty()) {
        // SAFETY: the caller's promise. `dirs` looks here for the user's cache directory.
        unsafe { env::set_var("XDG_CACHE_HOME", dir) };
    }
}

/// The certificates: as told, or `certs` in the data directory.
pub(crate) fn certs(told: Option<&PathBuf>) -> CertDir {
    CertDir::new(told.cloned().unwrap_or_else(|| match env::var_os(DATA_DIR) {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir).join("certs"),
        _ => titan_certs::default_dir(),
    }))
}

/// The keys that sign tokens: `keys`, beside the certificates.
pub(crate) fn keys() -> PathBuf {
    match env::var_os(DATA_DIR) {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir).join("keys"),
        _ => dirs::data_dir().unwrap_or_default().join("titan").join("keys"),
    }
}
