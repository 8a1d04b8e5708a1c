//! What each command does.

#[cfg(feature = "engines")]
mod agent;
mod certs;
mod chat;
mod client;
mod coord;
#[cfg(feature = "engines")]
mod demo;
mod keys;
mod manual;
#[cfg(not(feature = "engines"))]
mod no_engines;
mod proxy;
mod run;
mod status;
#[cfg(feature = "engines")]
mod up;
mod usage;

use std::{fmt, future::Future, io};

use anyhow::Context as _;
use titan_transport::with_causes;
use tokio_util::sync::CancellationToken;

use crate::{
    args::Command,
    signals::{OnHangup, Signal, Signals},
    terminal::one_line,
};

/// How a command ended, where it did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It did what was asked.
    Done,
    /// It was told to stop before.
    Interrupted(Signal),
}

/// The command line asks for something that cannot be meant: exit code 2.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// What must be done before there are threads.
pub(crate) fn prepare(command: &Command) {
    #[cfg(feature = "engines")]
    if let Command::Demo(command) = command {
        demo::prepare(command);
    }
    #[cfg(not(feature = "engines"))]
    let _ = command;
}

/// Runs a command to its end.
pub(crate) fn execute(command: Command, verbose: u8) -> anyhow::Result<Outcome> {
    match command {
        // What writes some text or files and is done: a signal ends it as it ends any program.
        Command::Completions(args) => manual::completions(&args).map(|()| Outcome::Done),
        Command::Man(args) => manual::man(&args).map(|()| Outcome::Done),
        Command::Certs(command) => certs::certs(command).map(|()| Outcome::Done),
        Command::Keys(command) => keys::keys(command).map(|()| Outcome::Done),
        Command::Usage(args) => usage::usage(&args).map(|()| Outcome::Done),
        command => run_long(command, verbose),
    }
}

fn run_long(command: Command, verbose: u8) -> anyhow::Result<Outcome> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")?;
    let outcome = runtime.block_on(async {
        let signals = Signals::listen(on_hangup(&command)).context("cannot listen for signals")?;
        listening(command, verbose, &signals).await
    });
    // A model that is being loaded cannot be interrupted; nobody waits for it.
    runtime.shutdown_background();
    outcome
}

fn on_hangup(command: &Command) -> OnHangup {
    match command {
        Command::Coord(_) | Command::Agent(_) | Command::Proxy(_) | Command::Up(_) => OnHangup::Reload,
        _ => OnHangup::Stop,
    }
}

async fn listening(command: Command, verbose: u8, signals: &Signals) -> anyhow::Result<Outcome> {
    match command {
        Command::Run(args) => run::run(args, verbose, signals).await,
        Command::Chat(args) => chat::chat(args, signals).await,
        Command::Models(args) => signals.or_stop(status::models(args)).await,
        Command::Status(args) => signals.or_stop(status::status(args)).await,
        Command::Proxy(args) => proxy::proxy(args, signals).await,
        Command::Coord(args) => coord::coord(args, signals).await,
        #[cfg(feature = "engines")]
        Command::Up(args) => up::up(args, signals).await,
        #[cfg(feature = "engines")]
        Command::Agent(args) => agent::agent(args, signals).await,
        #[cfg(feature = "engines")]
        Command::Demo(command) => demo::demo(command, signals).await,
        #[cfg(not(feature = "engines"))]
        Command::Up(_) | Command::Agent(_) | Command::Demo(_) => no_engines::refuse(),
        // `execute` has run those.
        Command::Completions(_) | Command::Man(_) | Command::Certs(_) | Command::Keys(_) | Command::Usage(_) => {
            Ok(Outcome::Done)
        }
    }
}

/// An error with its causes, in one line of a terminal whatever is in it.
pub(crate) fn explain(error: &anyhow::Error) -> String {
    let error: &(dyn std::error::Error + 'static) = error.as_ref();
    one_line(&with_causes(error))
}

/// Serves until a signal, then until what runs has finished, or a second signal.
async fn serve<F: Future<Output = io::Result<()>>>(
    signals: &Signals,
    shutdown: CancellationToken,
    serve: F,
) -> anyhow::Result<Outcome> {
    tokio::pin!(serve);
    tokio::select! {
        ended = &mut serve => ended?,
        _ = signals.next() => {
            shutdown.cancel();
            tracing::info!("stopping when running generations have finished; a second signal stops at once");
            tokio::select! {
                ended = &mut serve => ended?,
                signal = signals.next() => return Ok(Outcome::Interrupted(signal)),
            }
        }
    }
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let inner = || anyhow::Error::new(io::Error::other("disk on fire"));
        assert_eq!(explain(&inner().context("cannot read x: disk on fire")), "cannot read x: disk on fire");
        assert_eq!(explain(&inner().context("cannot read x")), "cannot read x: disk on fire");
        assert_eq!(
            explain(&inner().context("\x1b[2Kx\ntitan: all is well")),
            "\\u{1b}[2Kx\\ntitan: all is well: disk on fire"
        );
        let usage = Err::<(), _>(Usage("no".into())).context("--model").map_err(|error| error.is::<Usage>());
        assert_eq!(usage, Err(true), "the exit code is found under a context too");
    }
}
