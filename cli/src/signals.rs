//! What the system tells this process: to stop, to stop at once, to read its files again.
//!
//! One listener for the life of the process, made before its command begins. A signal that comes while nobody waits, as between two steps of
//! start-up, is kept for whoever waits next. Until the listener is there, signals end the process as they end any other.

use std::{
    collections::VecDeque,
    io,
    mem::MaybeUninit,
    ptr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    signal::unix::{Signal as Incoming, SignalKind, signal},
    sync::{Notify, watch},
};

use crate::{commands::Outcome, logs};

/// Signals that nobody has taken. A command that takes none of the first two hangs, and the next one ends the process.
const MAX_WAITING: usize = 2;

/// A signal that asks for an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// SIGINT, Ctrl-C.
    Interrupt,
    /// SIGTERM, from service managers.
    Terminate,
    /// SIGHUP, from a terminal that is closed: for what talks to one.
    Hangup,
}

impl Signal {
    /// 128 and the signal's number, as shells report it.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
            Self::Hangup => 129,
        }
    }
}

/// What SIGHUP means to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnHangup {
    /// To a server: read the files again.
    Reload,
    /// To what talks to a terminal: that it is gone.
    Stop,
}

/// The signals of this process. Its clones are one: each signal goes to one of those who wait.
#[derive(Clone)]
pub(crate) struct Signals(Arc<Shared>);

struct Shared {
    waiting: Mutex<VecDeque<Signal>>,
    came: Notify,
    /// How often SIGHUP came.
    reloads: watch::Sender<u64>,
}

impl Signals {
    /// Takes over from the system. Must run inside a Tokio runtime.
    ///
    /// # Errors
    /// When there are no file descriptors left.
    pub(crate) fn listen(on_hangup: OnHangup) -> io::Result<Self> {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        // `nohup` has it ignored, so that a command outlives its terminal.
        let is_unwanted = on_hangup == OnHangup::Stop && is_ignored(libc::SIGHUP);
        let mut hangup = if is_unwanted { None } else { Some(signal(SignalKind::hangup())?) };
        let signals = Self::new();
        let told = signals.clone();
        // On a thread of the runtime: a command that blocks its own hears of nothing, and the last resort must.
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    Some(()) = interrupt.recv() => told.stop(Signal::Interrupt),
                    Some(()) = terminate.recv() => told.stop(Signal::Terminate),
                    Some(()) = next_of(&mut hangup) => match on_hangup {
                        OnHangup::Reload => told.reload(),
                        OnHangup::Stop => told.stop(Signal::Hangup),
                    },
                    else => return,
                }
            }
        });
        Ok(signals)
    }

    fn new() -> Self {
        Self(Arc::new(Shared { waiting: Mutex::default(), came: Notify::new(), reloads: watch::channel(0).0 }))
    }

    /// Waits for the next signal that asks for an end, or takes the oldest that nobody has taken yet.
    pub(crate) async fn next(&self) -> Signal {
        loop {
            if let Some(signal) = self.waiting().pop_front() {
                return signal;
            }
            self.0.came.notified().await;
        }
    }

    /// Does what may be left at any moment.
    pub(crate) async fn or_stop(&self, work: impl Future<Output = anyhow::Result<Outcome>>) -> anyhow::Result<Outcome> {
        tokio::select! {
            done = work => done,
            signal = self.next() => Ok(Outcome::Interrupted(signal)),
        }
    }

    /// Changes at each SIGHUP, where that means [`OnHangup::Reload`].
    pub(crate) fn reloads(&self) -> watch::Receiver<u64> {
        self.0.reloads.subscribe()
    }

    fn stop(&self, signal: Signal) {
        let waiting = {
            let mut waiting = self.waiting();
            waiting.push_back(signal);
            waiting.len()
        };
        if waiting > MAX_WAITING {
            logs::flush();
            std::process::exit(signal.exit_code().into());
        }
        self.0.came.notify_one();
    }

    fn reload(&self) {
        tracing::info!("SIGHUP: files are read again");
        self.0.reloads.send_modify(|count| *count += 1);
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, VecDeque<Signal>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn next_of(signal: &mut Option<Incoming>) -> Option<()> {
    match signal {
        Some(signal) => signal.recv().await,
        None => std::future::pending().await,
    }
}

/// Whether whoever started this process has it ignore a signal.
fn is_ignored(signal: libc::c_int) -> bool {
    let mut current = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call changes nothing and fills `current`, which is valid as it is: all zeros.
    let (asked, current) =
        unsafe { (libc::sigaction(signal, ptr::null(), current.as_mut_ptr()), current.assume_init()) };
    asked == 0 && current.sa_sigaction == libc::SIG_IGN
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_signal_between_two_steps_is_kept_for_the_second() {
        let signals = Signals::new();
        let step = signals.or_stop(async { Ok(Outcome::Done) }).await.unwrap();
        assert_eq!(step, Outcome::Done);
        // Nobody waits now.
        signals.stop(Signal::Terminate);
        let next = signals.or_stop(std::future::pending()).await.unwrap();
        assert_eq!(next, Outcome::Interrupted(Signal::Terminate));
    }

    #[tokio::test(start_paused = true)]
    async fn each_signal_is_taken_once_and_in_order() {
        let signals = Signals::new();
        signals.stop(Signal::Terminate);
        signals.stop(Signal::Interrupt);
        assert_eq!((signals.next().await, signals.next().await), (Signal::Terminate, Signal::Interrupt));
        let third = tokio::time::timeout(std::time::Duration::from_secs(3600), signals.next()).await;
        assert!(third.is_err(), "there were two");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_reads_files_hears_of_every_hangup() {
        let signals = Signals::new();
        let (mut one, mut other) = (signals.reloads(), signals.reloads());
        signals.reload();
        one.changed().await.unwrap();
        signals.reload();
        one.changed().await.unwrap();
        other.changed().await.unwrap();
        assert!(!other.has_changed().unwrap());
    }
}
