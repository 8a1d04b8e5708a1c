//! The emulated network: two hosts, and between them lanes, each a path with a delay, a rate and losses of its own.
//!
//! The hosts are network namespaces without names, joined by two TUN devices; a thread moves the packets. All of it hangs on open
//! files, so that nothing is left behind however the program ends. The client's host has one address, the server's one for each
//! lane: lanes are used side by side, and a server bound to 0.0.0.0 serves them all.
//!
//! Reading order: this file, `lane` and `link` (pure: what becomes of a packet), `emulator` (the thread), `netns` (hosts), `sys`
//! (the kernel's calls), `check` (whether a lane does what it was told).

mod check;
mod emulator;
mod lane;
mod link;
mod netns;
mod packet;
mod sys;
#[cfg(test)]
mod tests;

use std::{
    fs,
    io::{self, PipeWriter},
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Context as _;
use parking_lot::{Mutex, MutexGuard};

use self::lane::Lanes;
pub(crate) use self::netns::Host;
use crate::{
    net::record::{Conditions, Event, Loss, Traffic},
    stats::Durations,
};

/// As many addresses as 10.78.0.0/24 has, without its first and last.
const MOST_LANES: u8 = 254;

/// Two hosts and the network between them. Dropping it ends all of it, save what still runs on the hosts.
pub(crate) struct Network {
    client: Host,
    server: Host,
    lanes: Arc<Mutex<Lanes>>,
    lateness: Arc<Mutex<Durations>>,
    /// How many addresses the client had.
    moves: AtomicU16,
    emulator: Option<Emulator>,
}

struct Emulator {
    /// Closing it stops the thread.
    stop: PipeWriter,
    thread: JoinHandle<()>,
}

/// What a lane does to packets, the same in both directions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PathSettings {
    pub(crate) one_way_delay: Duration,
    pub(crate) loss: Loss,
    /// `None`: unlimited.
    pub(crate) rate_bits_per_s: Option<f64>,
    /// UDP packets are lost, all of them.
    pub(crate) udp_blocked: bool,
}

impl PathSettings {
    /// Packets arrive at once.
    pub(crate) const NOTHING: Self =
        Self { one_way_delay: Duration::ZERO, loss: Loss::None, rate_bits_per_s: None, udp_blocked: false };
}

impl From<&Conditions> for PathSettings {
    fn from(conditions: &Conditions) -> Self {
        Self {
            one_way_delay: Duration::try_from_secs_f64(conditions.rtt_ms / 2e3).unwrap_or_default(),
            loss: conditions.loss,
            rate_bits_per_s: conditions.rate_mbit.map(|rate| rate * 1e6),
            udp_blocked: conditions.event == Event::UdpBlocked,
        }
    }
}

/// What entered a lane since it was set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LaneCounters {
    pub(crate) to_client: Traffic,
    pub(crate) to_server: Traffic,
}

impl Network {
    /// With so many lanes (1 to 254) that do nothing to packets yet.
    pub(crate) fn new(lanes: u8) -> anyhow::Result<Self> {
        anyhow::ensure!((1..=MOST_LANES).contains(&lanes), "{lanes} lanes were asked for: 1 to {MOST_LANES} can be");
        Self::make(lanes)
            .context("an emulated network needs root, or CAP_SYS_ADMIN and CAP_NET_ADMIN, and /dev/net/tun")
    }

    fn make(lanes: u8) -> anyhow::Result<Self> {
        let (client, client_device) = Host::new(vec![client_address(0)])?;
        let (server, server_device) = Host::new((0..lanes).map(Self::server_address).collect())?;
        let lanes = Arc::new(Mutex::new(Lanes::new(lanes)));
        let lateness = Arc::new(Mutex::new(Durations::new()));
        let (stopped, stop) = io::pipe().context("cannot make a pipe")?;
        let thread = {
            let (lanes, lateness) = (Arc::clone(&lanes), Arc::clone(&lateness));
            thread::Builder::new()
                .name(emulator::THREAD_NAME.into())
                .spawn(move || emulator::run(&client_device, &server_device, &stopped, &lanes, &lateness))
                .context("cannot start a thread")?
        };
        Ok(Self {
            client,
            server,
            lanes,
            lateness,
            moves: AtomicU16::new(0),
            emulator: Some(Emulator { stop, thread }),
        })
    }

    /// Where the server is reached over `lane`.
    pub(crate) fn server_address(lane: u8) -> Ipv4Addr {
        lane::server_address(lane)
    }

    /// The host of the clients.
    pub(crate) fn client(&self) -> &Host {
        &self.client
    }

    /// The host of the servers.
    pub(crate) fn server(&self) -> &Host {
        &self.server
    }

    /// Puts a new path into `lane`, with nothing on its way or counted. With the same seed it loses the same packets, counted
    /// from here in each direction.
    ///
    /// # Panics
    ///
    /// If there is no such lane.
    pub(crate) fn set(&self, lane: u8, path: &PathSettings, seed: u64) {
        self.lanes.lock().set(lane, path, seed);
    }

    /// What entered `lane` since it was set.
    ///
    /// # Panics
    ///
    /// If there is no such lane.
    pub(crate) fn counters(&self, lane: u8) -> LaneCounters {
        self.lanes.lock().counters(lane)
    }

    /// Gives the client's host another address, one it never had; the old one is gone, and what is on its way to it is lost.
    pub(crate) fn move_client(&self) -> anyhow::Result<()> {
        let address = client_address(self.moves.fetch_add(1, Ordering::Relaxed).wrapping_add(1));
        self.client.move_to(address).with_context(|| format!("cannot move the client to {address}"))
    }

    /// Sets what TCP uses on both hosts, for connections made from now on.
    pub(crate) fn set_congestion_control(&self, name: &str) -> anyhow::Result<()> {
        let _allowed = AllowedCongestionControl::with(name);
        self.client.set_congestion_control(name)?;
        self.server.set_congestion_control(name)
    }

    /// How late the emulator gave packets out since this was asked last. Beside the delays asked for, it says how far to trust
    /// a run: a machine without a CPU to spare makes it late.
    pub(crate) fn take_lateness(&self) -> Durations {
        std::mem::replace(&mut *self.lateness.lock(), Durations::new())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Some(Emulator { stop, thread }) = self.emulator.take() {
            drop(stop);
            // It can only have panicked, and has said so then.
            let _ = thread.join();
        }
    }
}

/// From 10.77.0.1 on.
fn client_address(moves: u16) -> Ipv4Addr {
    let [high, low] = moves.wrapping_add(1).to_be_bytes();
    Ipv4Addr::new(10, 77, high, low)
}

/// A namespace may only be set to congestion controls that the machine lists as allowed. While this lives, one more is.
struct AllowedCongestionControl {
    before: Option<String>,
    /// One at a time, lest one takes away what another has just listed.
    _alone: MutexGuard<'static, ()>,
}

static LISTING: Mutex<()> = Mutex::new(());

impl AllowedCongestionControl {
    const SETTING: &str = "net/ipv4/tcp_allowed_congestion_control";

    fn with(name: &str) -> Self {
        let alone = LISTING.lock();
        let listed = fs::read_to_string(format!("/proc/sys/{}", Self::SETTING)).unwrap_or_default();
        let is_listed = listed.split_whitespace().any(|listed| listed == name);
        // Where it cannot be listed, setting it on the hosts fails and says so.
        let added = !is_listed && netns::write_setting(Self::SETTING, &format!("{} {name}", listed.trim())).is_ok();
        Self { before: added.then_some(listed), _alone: alone }
    }
}

impl Drop for AllowedCongestionControl {
    fn drop(&mut self) {
        if let Some(before) = self.before.take() {
            // Left so, more is allowed than was: nothing that was possible ceases to be.
            let _: io::Result<()> = netns::write_setting(Self::SETTING, before.trim());
        }
    }
}
