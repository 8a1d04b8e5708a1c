//! Logs, on stderr: for people on a terminal, JSON otherwise.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::args::{Cli, Command};

/// Installs the subscriber. RUST_LOG decides alone where it is set and valid.
pub(crate) fn init(cli: &Cli) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(directives(cli)));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        builder.with_target(cli.verbose > 1).init();
    } else {
        builder.json().flatten_event(true).with_current_span(false).init();
    }
}

/// What a command logs unless told otherwise. `titan` stands for every crate of this project: the filter compares beginnings.
/// The libraries below are silent but for failures: mistral.rs and candle log every layer, hyper and quinn every packet.
fn directives(cli: &Cli) -> &'static str {
    // Someone who asked for a text wants a text, not the inner life of the cluster that gives it.
    let quiet = matches!(cli.command, Command::Run(_) | Command::Certs(_));
    match (cli.verbose, quiet) {
        (0, true) => "off",
        (0, false) => "off,titan=info",
        (1, true) => "off,titan=info",
        // mistral.rs calls it an error when it is made to drop what it keeps of prompts.
        (1, false) => "error,titan=debug,mistralrs_core::engine=off",
        (2, _) => "info,titan=debug,hyper=warn,h2=warn,quinn=info,rustls=info,mistralrs_core::engine=off",
        (_, _) => "debug,titan=trace",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::Parser as _;

    use super::*;

    #[test]
    fn every_level_is_a_valid_filter_and_run_is_quiet() {
        for command in ["run x", "up", "coord", "agent"] {
            for verbose in ["", " -v", " -vv", " -vvv"] {
                let cli = Cli::try_parse_from(format!("titan {command}{verbose}").split(' ')).unwrap();
                EnvFilter::try_new(directives(&cli)).unwrap();
                assert_eq!(directives(&cli) == "off", command == "run x" && verbose.is_empty());
            }
        }
    }
}
