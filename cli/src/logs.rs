//! Logs, on stderr: for people on a terminal, JSON otherwise. That they cannot be written stops nothing.
//!
//! `queue`: the way of a line. `format`: what a line looks like. `filter`: which are written. `panics`: a panic as one of them.

mod filter;
mod format;
mod panics;
mod queue;

use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::OnceLock,
    time::Duration,
};

use self::{filter::Chosen, queue::Queue};
use crate::args::{Cli, Command};

/// Longest wait at the end of the process for lines that are still to be written: a disk takes milliseconds, a reader that has stopped
/// takes for ever.
const FLUSH_WITHIN: Duration = Duration::from_millis(500);

/// Longest wait for the words that say why the process ends: a person may hold the terminal, but a service manager waits for the end.
const READ_WITHIN: Duration = Duration::from_secs(5);

static QUEUE: OnceLock<Queue> = OnceLock::new();

/// Installs the subscriber, and the hook that reports panics. RUST_LOG decides alone where it is set and valid.
///
/// # Errors
/// When the system gives no thread for it.
pub(crate) fn init(cli: &Cli) -> io::Result<()> {
    ignore_file_size_limit();
    let json = !io::stderr().is_terminal();
    let queue = Queue::start(io::stderr(), json)?;
    panics::report(queue.clone());
    let Chosen { filter, complaint } = filter::choose(std::env::var_os("RUST_LOG").as_deref(), directives(cli));
    // What cannot be written is counted by the queue; the library would print it, and panic where that fails too.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(queue.clone()).log_internal_errors(false);
    if json {
        builder.json().flatten_event(true).with_current_span(false).init();
    } else {
        builder.fmt_fields(format::Fields).with_target(cli.verbose > 1).init();
    }
    if let Some(complaint) = complaint {
        queue.say("WARN", &complaint);
    }
    // A second call finds the first one's, and there is none.
    let _ = QUEUE.set(queue);
    Ok(())
}

/// Says something that no filter leaves out: what was wrong before there was a log.
pub(crate) fn warn(message: &str) {
    if let Some(queue) = QUEUE.get() {
        queue.say("WARN", message);
    }
}

/// Waits until everything is written, but not for ever. To be called before stderr is used for anything else, and at the end.
pub(crate) fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush(FLUSH_WITHIN);
    }
}

/// Why the process ends, after everything else.
pub(crate) fn last_words(text: &str) {
    match QUEUE.get() {
        Some(queue) => {
            queue.push(text.into());
            queue.flush(READ_WITHIN);
        }
        // There is no log yet. What cannot be written leaves the exit code.
        None => drop(io::stderr().write_all(text.as_bytes())),
    }
}

/// A log that reaches `ulimit -f` is a write that fails, as on a full disk; by default the system kills the writer.
fn ignore_file_size_limit() {
    // SAFETY: ignoring a signal runs no code of ours.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
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
    use tracing_subscriber::EnvFilter;

    use super::*;

    #[test]
    fn every_level_is_a_valid_filter_and_run_is_quiet() {
        for command in ["run x", "up", "coord", "agent"] {
            for verbose in ["", " -v", " -vv", " -vvv"] {
                let cli = Cli::try_parse_from(format!("titan {command}{verbose}").split(' ')).unwrap();
                EnvFilter::try_new(directives(&cli)).unwrap();
                assert_eq!(directives(&cli) == "off", command == "run x" && verbose.is_empty());
                assert_eq!(filter::choose(Some(directives(&cli).as_ref()), "off").complaint, None);
            }
        }
    }
}
