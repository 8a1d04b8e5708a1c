//! Processes on the hosts.

use std::{
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitStatus},
};

use anyhow::Context as _;

use crate::netns::Host;

/// A process on a [`Host`]. It is killed when this is dropped, and when the thread that started it ends: see [`Host::enter`].
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// Starts `command`, called `name` in messages. Where its input and output go is for the caller to say.
    ///
    /// # Errors
    ///
    /// If there is no such program, or it cannot enter the host.
    pub fn start(host: &Host, mut command: Command, name: &str) -> anyhow::Result<Self> {
        host.enter(&mut command);
        // A group of its own: Ctrl-C on the terminal is for the program that started it, which ends it in its own time.
        let child = command.process_group(0).spawn().with_context(|| format!("cannot start {name} as a process"))?;
        Ok(Self { name: name.to_owned(), child })
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// As the system knows it.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        // It is a child that nobody else waits for.
        self.child.try_wait().ok().flatten()
    }

    /// Kills it, as a crash or a power cut would: without a word to anyone. Returns when it is gone.
    pub fn kill(&mut self) {
        // What has ended already cannot be killed, and is as dead.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
