//! Where this user's files are.

use std::{env, ffi::OsStr, path::PathBuf};

/// Moves what must be kept: certificates and signing keys.
pub const DATA_DIR: &str = "TITAN_DATA_DIR";
/// Moves what can be had again: models, TLS sessions.
pub const CACHE_DIR: &str = "TITAN_CACHE_DIR";

/// What must be kept: [`DATA_DIR`], or `titan` in the platform's data directory (`~/.local/share` on Linux, or where `XDG_DATA_HOME` says).
/// `None` for a user without a home: in the working directory nobody would look for it.
pub fn data_dir() -> Option<PathBuf> {
    told(env::var_os(DATA_DIR).as_deref()).or_else(|| Some(dirs::data_dir()?.join("titan")))
}

/// What can be had again: [`CACHE_DIR`], or `titan` in the platform's cache directory (`~/.cache` on Linux, or where `XDG_CACHE_HOME` says).
/// `None` for a user without a home.
pub fn cache_dir() -> Option<PathBuf> {
    told(env::var_os(CACHE_DIR).as_deref()).or_else(|| Some(dirs::cache_dir()?.join("titan")))
}

/// An empty variable counts as not set, here as everywhere.
fn told(variable: Option<&OsStr>) -> Option<PathBuf> {
    variable.filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_variable_names_no_directory() {
        assert_eq!(told(Some("".as_ref())), None);
        assert_eq!(told(None), None);
        assert_eq!(told(Some("/x".as_ref())), Some(PathBuf::from("/x")));
    }
}
