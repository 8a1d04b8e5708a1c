//! Which lines are written. What is wrong with RUST_LOG is said.

use std::ffi::OsStr;

use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use crate::terminal::one_line;

/// What logs in this process: names of modules begin so. A misspelt level is a valid filter for a module of that name, and a misspelt module
/// one for nothing; only what is known can tell them.
const KNOWN: [&str; 22] = [
    "titan",
    "mistralrs",
    "candle",
    "hf_hub",
    "tokenizers",
    "hyper",
    "h2",
    "quinn",
    "rustls",
    "tonic",
    "tower",
    "tokio",
    "axum",
    "reqwest",
    "mio",
    "want",
    "runtime",
    "rustyline",
    "minijinja",
    "nvml",
    "cudarc",
    "metal",
];

/// A filter, and what is wrong with what was asked for.
pub(super) struct Chosen {
    pub(super) filter: EnvFilter,
    pub(super) complaint: Option<String>,
}

/// What RUST_LOG asks for, or else `otherwise`.
pub(super) fn choose(variable: Option<&OsStr>, otherwise: &str) -> Chosen {
    let not_used = |complaint: Option<String>| Chosen { filter: EnvFilter::new(otherwise), complaint };
    let Some(variable) = variable else { return not_used(None) };
    let text = variable.to_string_lossy();
    if text.trim().is_empty() {
        return not_used(Some("RUST_LOG is empty, which counts as not set".to_owned()));
    }
    // Blanks beside a comma would be part of a name.
    let text = text.split(',').map(str::trim).collect::<Vec<_>>().join(",");
    match EnvFilter::try_new(&text) {
        Ok(filter) => Chosen { filter, complaint: unknown(&text) },
        Err(error) => not_used(Some(one_line(&format!(
            "RUST_LOG={text} is not used: {error}. Write a level (off, error, warn, info, debug, trace), or modules with theirs, such as off,titan=debug"
        )))),
    }
}

/// The first name in it that stands for no module.
fn unknown(text: &str) -> Option<String> {
    let name = text.split(',').find(|directive| !directive.is_empty() && !is_known(directive))?;
    Some(one_line(&format!(
        "RUST_LOG={text}: {name:?} names no level (off, error, warn, info, debug, trace) and no module that is known, such as titan, hyper or quinn; it is taken for the name of a module"
    )))
}

fn is_known(directive: &str) -> bool {
    // `target[span{field=value}]=level`, each part of which may be left out.
    let target = directive.split(['=', '[']).next().unwrap_or_default();
    let is_level = !directive.contains(['=', '[']) && directive.parse::<LevelFilter>().is_ok();
    is_level || KNOWN.iter().any(|known| known.starts_with(target) || target.starts_with(known))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    fn complaint(text: &str) -> String {
        choose(Some(text.as_ref()), "off").complaint.unwrap_or_default()
    }

    #[test]
    fn what_is_meant_is_taken_without_a_word() {
        for text in
            ["info", "WARN", "off,titan=debug", "titan_coord::rest", "h2=warn, quinn=info,", "debug,[call]=trace"]
        {
            let chosen = choose(Some(text.as_ref()), "off");
            assert_eq!(chosen.complaint, None, "{text}");
            assert_ne!(chosen.filter.to_string(), "off", "{text}");
        }
        assert_eq!(choose(None, "off,titan=info").filter.to_string(), EnvFilter::new("off,titan=info").to_string());
    }

    #[test]
    fn empty_counts_as_not_set_and_is_said() {
        for text in ["", " "] {
            assert!(complaint(text).contains("RUST_LOG is empty"), "{text:?}");
            assert_eq!(choose(Some(text.as_ref()), "warn").filter.to_string(), "warn");
        }
    }

    #[test]
    fn typing_errors_are_said_with_what_was_typed() {
        for (text, part) in [
            ("titan=inof", "not used"),
            ("inof", "\"inof\""),
            ("off,debgu", "\"debgu\""),
            ("titn=debug", "\"titn=debug\""),
        ] {
            let said = complaint(text);
            assert!(said.contains(part) && said.contains(text) && said.contains("RUST_LOG"), "{text}: {said}");
        }
        let binary = choose(Some(OsStr::from_bytes(b"\xff=\x1b")), "off").complaint.unwrap();
        assert!(!binary.contains('\x1b'), "{binary}");
    }
}
