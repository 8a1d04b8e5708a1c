//! Where this user's files are.

use std::path::PathBuf;

use titan_certs::CertDir;
use titan_files::{cache_dir, data_dir};

/// A user without a home has to say where files shall be.
#[derive(Debug, thiserror::Error)]
#[error(
    "this user has no home directory (HOME) for certificates and signing keys: set TITAN_DATA_DIR to a directory for them"
)]
pub(crate) struct NoHome;

/// The certificates: as told, or `certs` in the data directory.
pub(crate) fn certs(told: Option<&PathBuf>) -> Result<CertDir, NoHome> {
    let dir = told.cloned().or_else(|| Some(data_dir()?.join("certs")));
    dir.map(CertDir::new).ok_or(NoHome)
}

/// TLS sessions, for the next process: `sessions` in the cache directory. None where this user has no cache directory.
pub(crate) fn sessions() -> Option<PathBuf> {
    Some(cache_dir()?.join("sessions"))
}

/// Lines that were typed in `titan chat`. None where this user has no data directory.
pub(crate) fn history() -> Option<PathBuf> {
    Some(data_dir()?.join("chat_history"))
}

/// The keys that sign tokens: `keys`, beside the certificates.
pub(crate) fn keys() -> Result<PathBuf, NoHome> {
    Ok(data_dir().ok_or(NoHome)?.join("keys"))
}

/// Certificates that were had with an API key, one file for each coordinator. None where this user has no data directory.
pub(crate) fn enrolled() -> Option<PathBuf> {
    Some(data_dir()?.join("enrolled"))
}

/// What was generated, and for whom.
pub(crate) fn usage_log() -> Result<PathBuf, NoHome> {
    Ok(data_dir().ok_or(NoHome)?.join("usage.jsonl"))
}
