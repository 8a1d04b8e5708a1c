//! Where this user's files are.

use std::{env, path::PathBuf};

use titan_certs::CertDir;

/// Moves what must be kept: certificates and signing keys.
const DATA_DIR: &str = "TITAN_DATA_DIR";

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
