//! `titan completions` and `titan man`: the command line, told to shells and to `man`.

use std::{fs, io::Write as _};

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::args::{Cli, CompletionsArgs, ManArgs};

pub(super) fn completions(args: &CompletionsArgs) -> anyhow::Result<()> {
    // Written at once: a reader that goes away, as `head` does, is no reason to panic.
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "titan", &mut text);
    std::io::stdout().write_all(&text).context("writing to stdout")
}

pub(super) fn man(args: &ManArgs) -> anyhow::Result<()> {
    let write = || {
        fs::create_dir_all(&args.dir)?;
        clap_mangen::generate_to(Cli::command(), &args.dir)
    };
    write().with_context(|| format!("cannot write manual pages into {}", args.dir.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        man(&ManArgs { dir: dir.path().join("man1") }).unwrap();
        for command in Cli::command().get_subcommands() {
            let page = fs::read_to_string(dir.path().join(format!("man1/titan-{}.1", command.get_name()))).unwrap();
            assert!(page.contains(".SH SYNOPSIS"), "{page}");
        }
    }

    #[test]
    fn every_shell_has_completions_that_know_every_command() {
        use clap::ValueEnum as _;
        for &shell in clap_complete::Shell::value_variants() {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "titan", &mut text);
            let text = String::from_utf8(text).unwrap();
            for command in Cli::command().get_subcommands() {
                assert!(text.contains(command.get_name()), "{shell}: {}", command.get_name());
            }
        }
    }
}
