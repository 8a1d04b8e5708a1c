//! What a build without engines says instead of generating text.

use anyhow::bail;

const WHY: &str = "this titan was built without engines (--no-default-features)";
const BUILD: &str = "build it with them: cargo build --bin titan";

/// A command that is nothing without one.
pub(super) fn refuse<T>() -> anyhow::Result<T> {
    bail!("{WHY}: {BUILD}")
}

/// A prompt for which there is no coordinator.
pub(super) fn refuse_to_run<T>() -> anyhow::Result<T> {
    bail!("{WHY}: name a coordinator with --coordinator (COORDINATOR_URL), or {BUILD}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::Parser as _;

    use crate::{
        args::Cli,
        commands::{execute, explain},
    };

    #[test]
    fn what_needs_an_engine_is_refused_with_what_to_do() {
        let mut parts = vec!["built without engines", "cargo build --bin titan"];
        for line in ["titan up", "titan agent", "titan demo roaming", "titan run --model x.gguf hello"] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            let said = explain(&execute(cli.command, 0).unwrap_err());
            if line.starts_with("titan run") {
                parts.push("--coordinator");
            }
            for part in &parts {
                assert!(said.contains(part), "{line}: {said}");
            }
        }
    }
}
