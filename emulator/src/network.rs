//! The network: its parts put together, and changed while they are in use.

use std::{
    fs,
    io::{self, PipeWriter},
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::Context as _;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

use crate::{
    emulator,
    lane::{self, Lanes},
    lateness::{Lateness, Lates},
    netns::{self, Host},
    settings::PathSettings,
};

/// As many addresses as 10.78.0.0/24 has, without its first and last.
const MOST_LANES: u8 = 254;

/// Two hosts and the network between them. Dropping it ends all of it, save what still runs on the hosts.
pub struct Network {
    client: Host,
    server: Host,
    lanes: Arc<Mutex<Lanes>>,
    lateness: Arc<Mutex<Lates>>,
    /// How many addresses the client had.
    moves: AtomicU16,
    pub(crate) emulator: Option<Emulator>,
}

pub(crate) struct Emulator {
    /// Closing it stops the thread.
    stop: PipeWriter,
    pub(crate) thread: JoinHandle<()>,
}

/// What entered a lane since it was set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneCounters {
    /// On the way from the server's host.
    pub to_client: Traffic,
    /// On the way from the client's host.
    pub to_server: Traffic,
}

/// IP packets, those that the path lost included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// How many.
    pub packets: u64,
    /// IP headers included.
    pub bytes: u64,
    /// Of the packets.
    pub lost_packets: u64,
}

impl Network {
    /// With so many lanes (1 to 254) that do nothing to packets yet.
    pub fn new(lanes: u8) -> anyhow::Result<Self> {
        anyhow::ensure!((1..=MOST_LANES).contains(&lanes), "{lanes} lanes were asked for: 1 to {MOST_LANES} can be");
        Self::make(lanes)
            .context(
            "an emulated network needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN), or a system that allows everyone user namespaces, and \
             /dev/net/tun, readable and writable",
        )
    }

    fn make(lanes: u8) -> anyhow::Result<Self> {
        let (client, client_device) = Host::new(vec![client_address(0)])?;
        let (server, server_device) = Host::new((0..lanes).map(Self::server_address).collect())?;
        let lanes = Arc::new(Mutex::new(Lanes::new(lanes)));
        let lateness = Arc::new(Mutex::new(Lates::new()));
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
    pub fn server_address(lane: u8) -> Ipv4Addr {
        lane::server_address(lane)
    }

    /// The host of the clients.
    pub fn client(&self) -> &Host {
        &self.client
    }

    /// The host of the servers.
    pub fn server(&self) -> &Host {
        &self.server
    }

    /// Puts a new path into `lane`, with nothing on its way or counted. With the same seed it loses the same packets, counted
    /// from here in each direction.
    ///
    /// # Panics
    ///
    /// If there is no such lane.
    pub fn set(&self, lane: u8, path: &PathSettings, seed: u64) {
        self.lanes.lock().set(lane, path, seed);
    }

    /// What entered `lane` since it was set.
    ///
    /// # Panics
    ///
    /// If there is no such lane.
    pub fn counters(&self, lane: u8) -> LaneCounters {
        self.lanes.lock().counters(lane)
    }

    /// Gives the client's host another address, one it never had; the old one is gone, and what is on its way to it is lost.
    pub fn move_client(&self) -> anyhow::Result<()> {
        let address = client_address(self.moves.fetch_add(1, Ordering::Relaxed).wrapping_add(1));
        self.client.move_to(address).with_context(|| format!("cannot move the client to {address}"))
    }

    /// Sets what TCP uses on both hosts, for connections made from now on.
    pub fn set_congestion_control(&self, name: &str) -> anyhow::Result<()> {
        let _allowed = AllowedCongestionControl::with(name);
        self.client.set_congestion_control(name)?;
        self.server.set_congestion_control(name)
    }

    /// How late the emulator gave packets out since this was asked last. Beside the delays asked for, it says how far to trust
    /// a run: a machine without a CPU to spare makes it late.
    pub fn take_lateness(&self) -> Lateness {
        self.lateness.lock().take()
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

pub(crate) static LISTING: Mutex<()> = Mutex::new(());

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
