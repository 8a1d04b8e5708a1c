//! An emulated network: two hosts, and between them lanes, each a path of its own: with a delay, a rate, and
//! packets that are lost, reordered or duplicated.
//!
//! The hosts are network namespaces without names, joined by two TUN devices; a thread moves the packets. All of it hangs on open
//! files, so that nothing is left behind however the program ends. The client's host has one address, the server's one for each
//! lane: lanes are used side by side, and a server bound to 0.0.0.0 serves them all. It knows nothing of TitanCompute.
//!
//! Start at [`Network`]; [`PathSettings`] says what a lane does to packets, [`Host`] runs what is to send and receive them, in a thread
//! or as a [`Process`]. Without root, [`acquire_rights`] may help.
//!
//! Reading order: `network`, `settings`, `lane` and `link` (pure: what becomes of a packet), `emulator` (the thread), `netns`
//! (hosts), `process`, `rights`, `sys` (the kernel's calls), `check` (whether a lane does what it was told), `lateness` (whether the emulator does).

mod check;
mod emulator;
mod lane;
mod lateness;
mod link;
mod netns;
mod network;
mod packet;
mod process;
mod rights;
mod settings;
mod sys;
#[cfg(test)]
mod tests;

pub use self::{
    check::Check,
    lateness::Lateness,
    netns::Host,
    network::{LaneCounters, Network, Traffic},
    process::Process,
    rights::acquire as acquire_rights,
    settings::{Loss, PathSettings, Reordering},
};
