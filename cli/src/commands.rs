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

use tokio_util::sync::CancellationToken;

use crate::{
    args::Command,
    signals::{self, Signal},
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
pub(crate) async fn execute(command: Command, verbose: u8) -> anyhow::Result<Outcome> {
    match command {
        Command::Run(args) => run::run(args, verbose).await,
        Command::Chat(args) => chat::chat(args).await,
        Command::Models(args) => status::models(args).await,
        Command::Status(args) => status::status(args).await,
        Command::Proxy(args) => proxy::proxy(args).await,
        Command::Coord(args) => coord::coord(args).await,
        Command::Completions(args) => manual::completions(&args).map(|()| Outcome::Done),
        Command::Man(args) => manual::man(&args).map(|()| Outcome::Done),
        Command::Certs(command) => certs::certs(command).map(|()| Outcome::Done),
        Command::Keys(command) => keys::keys(command).map(|()| Outcome::Done),
        Command::Usage(args) => usage::usage(&args).map(|()| Outcome::Done),
        #[cfg(feature = "engines")]
        Command::Up(args) => up::up(args).await,
        #[cfg(feature = "engines")]
        Command::Agent(args) => agent::agent(args).await,
        #[cfg(feature = "engines")]
        Command::Demo(command) => demo::demo(command).await,
        #[cfg(not(feature = "engines"))]
        Command::Up(_) | Command::Agent(_) | Command::Demo(_) => no_engines::refuse(),
    }
}

/// An error with its causes, each said once: many messages hold their cause's already.
pub(crate) fn explain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Serves until a signal, then until what runs has finished, or a second signal.
async fn serve<F: Future<Output = io::Result<()>>>(shutdown: CancellationToken, serve: F) -> anyhow::Result<Outcome> {
    tokio::pin!(serve);
    tokio::select! {
        ended = &mut serve => ended?,
        _ = signals::next() => {
            shutdown.cancel();
            tracing::info!("stopping when running generations have finished; a second signal stops at once");
            tokio::select! {
                ended = &mut serve => ended?,
                signal = signals::next() => return Ok(Outcome::Interrupted(signal)),
            }
        }
    }
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let inner = || anyhow::Error::new(io::Error::other("disk on fire"));
        assert_eq!(explain(&inner().context("cannot read x: disk on fire")), "cannot read x: disk on fire");
        assert_eq!(explain(&inner().context("cannot read x")), "cannot read x: disk on fire");
        let usage = Err::<(), _>(Usage("no".into())).context("--model").map_err(|error| error.is::<Usage>());
        assert_eq!(usage, Err(true), "the exit code is found under a context too");
    }
}
