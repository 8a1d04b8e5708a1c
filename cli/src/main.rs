//! `titan`, the one binary: [`args`] is what it understands, [`commands`] what it does.
//!
//! Text goes to stdout; progress, logs and errors go to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 129, 130 and 143 ended by SIGHUP,
//! SIGINT and SIGTERM.

// A stream that cannot be written would make them panic: `writeln!` says so to whoever calls it.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

mod args;
mod commands;
#[cfg(feature = "engines")]
mod engine;
mod environment;
#[cfg(feature = "engines")]
mod local;
mod logs;
mod places;
mod ports;
#[cfg(feature = "engines")]
mod progress;
mod rest;
mod signals;
mod terminal;
mod trust;

use std::process::ExitCode;

use crate::{args::Cli, commands::Outcome};

fn main() -> ExitCode {
    environment::prepare();
    let (cli, notices) = Cli::read();
    commands::prepare(&cli.command);
    // From here on there are threads.
    if let Err(error) = logs::init(&cli) {
        return fail(&anyhow::anyhow!("cannot start the log: {error}"));
    }
    for notice in notices {
        logs::warn(&notice);
    }
    // Each connection takes one. Where the system refuses, there are fewer connections, and nothing else changes.
    if let Err(error) = titan_transport::raise_open_files() {
        tracing::debug!(%error, "the limit on open files stays as it is");
    }
    match commands::execute(cli.command, cli.verbose) {
        Ok(Outcome::Done) => end(ExitCode::SUCCESS),
        Ok(Outcome::Interrupted(signal)) => end(ExitCode::from(signal.exit_code())),
        Err(error) => fail(&error),
    }
}

/// Says what went wrong, with its causes, in one paragraph.
fn fail(error: &anyhow::Error) -> ExitCode {
    let code = if error.is::<commands::Usage>() { 2 } else { 1 };
    // Where nobody reads it, only the exit code tells it.
    logs::last_words(&format!("titan: {}\n", commands::explain(error)));
    ExitCode::from(code)
}

fn end(code: ExitCode) -> ExitCode {
    logs::flush();
    code
}
