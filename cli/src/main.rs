//! `titan`, the one binary: [`args`] is what it understands, [`commands`] what it does.
//!
//! Text goes to stdout; progress, logs and errors go to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

mod args;
mod commands;
#[cfg(feature = "engines")]
mod engine;
#[cfg(feature = "engines")]
mod local;
mod logs;
mod places;
mod ports;
#[cfg(feature = "engines")]
mod progress;
mod rest;
mod signals;
mod trust;

use std::{io::Write as _, process::ExitCode};

use clap::Parser as _;

use crate::{args::Cli, commands::Outcome};

fn main() -> ExitCode {
    let cli = Cli::parse();
    logs::init(&cli);
    // Each connection takes one. Where the system refuses, there are fewer connections, and nothing else changes.
    if let Err(error) = titan_transport::raise_open_files() {
        tracing::debug!(%error, "the limit on open files stays as it is");
    }
    commands::prepare(&cli.command);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::anyhow!("cannot start the runtime: {error}")),
    };
    let outcome = runtime.block_on(commands::execute(cli.command, cli.verbose));
    // A model that is being loaded cannot be interrupted; nobody waits for it.
    runtime.shutdown_background();
    match outcome {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Interrupted(signal)) => ExitCode::from(signal.exit_code()),
        Err(error) => fail(&error),
    }
}

/// Says what went wrong, with its causes, in one paragraph.
fn fail(error: &anyhow::Error) -> ExitCode {
    let code = if error.is::<commands::Usage>() { 2 } else { 1 };
    // A closed stderr leaves only the exit code to tell it.
    let _ = writeln!(std::io::stderr(), "titan: {}", commands::explain(error));
    ExitCode::from(code)
}
