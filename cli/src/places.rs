//! Where this user's files are.

use std::{env, path::PathBuf};

use titan_certs::CertDir;

/// Moves what must be kept: certificates and signing keys.
const DATA_DIR: &str = "TITAN_DATA_DIR";
/// Moves what can be had again.
const CACHE_DIR: &str = "TITAN_CACHE_DIR";

/// The certificates: as told, or `certs` in the data directory.
pub(crate) fn certs(told: Option<&PathBuf>) -> CertDir {
    CertDir::new(told.cloned().unwrap_or_else(|| match env::var_os(DATA_DIR) {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir).join("certs"),
        _ => titan_certs::default_dir(),
    }))
}

/// TLS sessions, for the next process: `sessions` in the cache directory. None where this user has no cache directory.
pub(crate) fn sessions() -> Option<PathBuf> {
    let cache = match env::var_os(CACHE_DIR) {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ => dirs::cache_dir()?.join("titan"),
    };
    Some(cache.join("sessions"))
}

/// Lines that were typed in `titan chat`. None where this user has no data directory.
pub(crate) fn history() -> Option<PathBuf> {
    let data = match env::var_os(DATA_DIR) {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ => dirs::data_dir()?.join("titan"),
    };
    Some(data.join("chat_history"))
}

/// The keys that sign tokens: `keys`, beside the certificates.
pub(crate) fn keys() -> PathBuf {
    data().join("keys")
}

/// Certificates that were had with an API key, one file for each coordinator.
pub(crate) fn enrolled() -> PathBuf {
    data().join("enrolled")
}

/// What was generated, and for whom.
pub(crate) fn usage_log() -> PathBuf {
    data().join("usage.jsonl")
}

fn data() -> PathBuf {
    match env::var_os(DATA_DIR) {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir),
        _ => dirs::data_dir().unwrap_or_default().join("titan"),
    }
}
