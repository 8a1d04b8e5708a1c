//! Where the hosts stand: on an emulated network, or on loopback.

use std::{
    net::{IpAddr, Ipv4Addr},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use titan_emulator::{Check, LaneCounters, Loss, Network, PathSettings, Traffic};

use super::record::{CheckRecord, Conditions, Event};

/// One of the two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

/// A network of two hosts with a lane (a path of its own) for each client, or none.
pub(crate) enum Ground {
    Emulated(Arc<Network>),
    Loopback,
}

impl Ground {
    /// A process started by `command` will be on that host.
    pub(crate) fn enter(&self, side: Side, command: &mut Command) {
        if let Self::Emulated(network) = self {
            match side {
                Side::Client => network.client().enter(command),
                Side::Server => network.server().enter(command),
            }
        }
    }

    /// Where a client on `lane` finds the server.
    pub(crate) fn server_address(&self, lane: u8) -> IpAddr {
        match self {
            Self::Emulated(_) => Network::server_address(lane).into(),
            Self::Loopback => Ipv4Addr::LOCALHOST.into(),
        }
    }

    /// Sets what `lane` does to packets from now on, and its counters to zero.
    pub(crate) fn set(&self, lane: u8, settings: PathSettings, seed: u64) {
        if let Self::Emulated(network) = self {
            network.set(lane, &settings, seed);
        }
    }

    /// What has entered `lane`, to the client and to the server.
    pub(crate) fn traffic(&self, lane: u8) -> (Traffic, Traffic) {
        match self {
            Self::Emulated(network) => {
                let LaneCounters { to_client, to_server } = network.counters(lane);
                (to_client, to_server)
            }
            Self::Loopback => Default::default(),
        }
    }

    /// Of TCP connections made from now on.
    pub(crate) fn set_congestion_control(&self, name: &str) -> anyhow::Result<()> {
        match self {
            Self::Emulated(network) => network.set_congestion_control(name),
            Self::Loopback => Ok(()),
        }
    }

    /// The client host gets another address.
    pub(crate) fn move_client(&self) -> anyhow::Result<()> {
        match self {
            Self::Emulated(network) => network.move_client(),
            Self::Loopback => Ok(()),
        }
    }

    /// How late the emulator gave out 99 of 100 packets at most since this was asked last, in milliseconds.
    pub(crate) fn take_emulator_lateness(&self) -> f64 {
        match self {
            Self::Emulated(network) => network.take_lateness().p99.as_secs_f64() * 1e3,
            Self::Loopback => 0.0,
        }
    }

    /// Measures what `lane` does. `None` on loopback.
    pub(crate) async fn check(
        &self,
        lane: u8,
        conditions: &Conditions,
        time: Duration,
    ) -> anyhow::Result<Option<CheckRecord>> {
        match self {
            Self::Emulated(network) => {
                let (network, path) = (network.clone(), path_of(conditions));
                let check = tokio::task::spawn_blocking(move || network.check(lane, &path, time));
                Ok(Some(record_of(conditions, check.await.context("the check broke down")??)))
            }
            Self::Loopback => Ok(None),
        }
    }
}

fn record_of(conditions: &Conditions, check: Check) -> CheckRecord {
    let Check { ping_rtt_ms, sent_packets, lost_to_server_percent, lost_to_client_percent, marked } = check;
    CheckRecord {
        conditions: conditions.clone(),
        ping_rtt_ms,
        sent_packets,
        lost_to_server_percent,
        lost_to_client_percent,
        emulator_late_p99_ms: 0.0,
        marked,
    }
}

/// A path under `conditions`.
pub(crate) fn path_of(conditions: &Conditions) -> PathSettings {
    PathSettings {
        one_way_delay: Duration::try_from_secs_f64(conditions.rtt_ms / 2e3).unwrap_or_default(),
        loss: conditions.loss,
        rate_bits_per_s: conditions.rate_mbit.map(|rate| rate * 1e6),
        udp_blocked: conditions.event == Event::UdpBlocked,
        ..PathSettings::NOTHING
    }
}

/// The same, but that it loses nothing.
pub(crate) fn lossless(conditions: &Conditions) -> PathSettings {
    PathSettings { loss: Loss::None, ..path_of(conditions) }
}

/// Half a round trip.
pub(crate) fn one_way(conditions: &Conditions) -> Duration {
    Duration::from_secs_f64(conditions.rtt_ms / 2e3)
}
