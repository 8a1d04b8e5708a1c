//! The lanes between the two hosts: which lane a packet belongs to, what its path does to it, and how many there were. Without
//! clock or devices.

use std::{net::Ipv4Addr, time::Instant};

use crate::{
    link::{Fate, Link},
    network::LaneCounters,
    packet,
    settings::PathSettings,
};

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    ToServer,
    ToClient,
}

/// A packet on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) arrives: Instant,
    lane: usize,
    generation: u64,
}

/// All lanes of a network.
#[derive(Debug)]
pub(super) struct Lanes {
    lanes: Vec<Lane>,
}

#[derive(Debug)]
struct Lane {
    /// How often it was set: what entered before belongs to another path.
    generation: u64,
    udp_blocked: bool,
    to_server: Link,
    to_client: Link,
    counters: LaneCounters,
}

impl Lane {
    fn new(generation: u64, path: &PathSettings, seed: u64) -> Self {
        // The two directions lose packets independently of each other.
        let (to_server, to_client) = (Link::new(path, seed), Link::new(path, !seed));
        Self { generation, udp_blocked: path.udp_blocked, to_server, to_client, counters: LaneCounters::default() }
    }
}

impl Lanes {
    /// So many lanes, that do nothing to packets.
    pub(super) fn new(lanes: u8) -> Self {
        Self { lanes: (0..lanes).map(|_| Lane::new(0, &PathSettings::NOTHING, 0)).collect() }
    }

    /// Puts a new path in place of that of a lane.
    pub(super) fn set(&mut self, lane: u8, path: &PathSettings, seed: u64) {
        let lane = &mut self.lanes[usize::from(lane)];
        *lane = Lane::new(lane.generation + 1, path, seed);
    }

    pub(super) fn counters(&self, lane: u8) -> LaneCounters {
        self.lanes[usize::from(lane)].counters
    }

    /// A packet enters at `now`. A ticket for each time that it arrives: none, one or two.
    pub(super) fn send(
        &mut self,
        direction: Direction,
        bytes: &[u8],
        now: Instant,
    ) -> impl Iterator<Item = Ticket> + use<> {
        self.tickets(direction, bytes, now).into_iter().flatten().flatten()
    }

    fn tickets(&mut self, direction: Direction, bytes: &[u8], now: Instant) -> Option<[Option<Ticket>; 2]> {
        let header = packet::parse(bytes)?;
        let index = lane_of(match direction {
            Direction::ToServer => header.destination,
            Direction::ToClient => header.source,
        })?;
        let lane = self.lanes.get_mut(index)?;
        let (link, traffic) = match direction {
            Direction::ToServer => (&mut lane.to_server, &mut lane.counters.to_server),
            Direction::ToClient => (&mut lane.to_client, &mut lane.counters.to_client),
        };
        traffic.packets += 1;
        traffic.bytes += bytes.len() as u64;
        let fate = if header.is_udp && lane.udp_blocked { Fate::Lost } else { link.send(now, bytes.len()) };
        match fate {
            Fate::Arrives { at, copy_at } => {
                let ticket = |arrives| Ticket { arrives, lane: index, generation: lane.generation };
                Some([Some(ticket(at)), copy_at.map(ticket)])
            }
            Fate::Lost | Fate::QueueFull => {
                traffic.lost_packets += 1;
                None
            }
        }
    }

    /// Whether the path that a packet entered is still there.
    pub(super) fn is_current(&self, ticket: &Ticket) -> bool {
        self.lanes.get(ticket.lane).is_some_and(|lane| lane.generation == ticket.generation)
    }
}

/// Of the server's host. Lanes count from 0, addresses from 10.78.0.1.
pub(super) fn server_address(lane: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, 0, lane.saturating_add(1))
}

fn lane_of(server: Ipv4Addr) -> Option<usize> {
    match server.octets() {
        [10, 78, 0, number] => usize::from(number).checked_sub(1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;
    use crate::{Loss, Traffic};

    const UDP: u8 = 17;
    const TCP: u8 = 6;

    fn packet(from: Ipv4Addr, to: Ipv4Addr, protocol: u8) -> Vec<u8> {
        let mut packet = vec![0; 100];
        packet[0] = 0x45;
        packet[9] = protocol;
        packet[12..16].copy_from_slice(&from.octets());
        packet[16..20].copy_from_slice(&to.octets());
        packet
    }

    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

    #[test]
    fn each_lane_and_direction_has_its_own_path_and_counters() {
        let mut lanes = Lanes::new(2);
        let delay = Duration::from_millis(50);
        lanes.set(1, &PathSettings { one_way_delay: delay, ..PathSettings::NOTHING }, 1);
        let now = Instant::now();
        let there = packet(CLIENT, server_address(1), UDP);
        let back = packet(server_address(1), CLIENT, UDP);
        assert_eq!(lanes.send(Direction::ToServer, &there, now).next().unwrap().arrives, now + delay);
        assert_eq!(lanes.send(Direction::ToServer, &there, now).next().unwrap().arrives, now + delay);
        assert_eq!(lanes.send(Direction::ToClient, &back, now).next().unwrap().arrives, now + delay);
        let other = packet(CLIENT, server_address(0), UDP);
        assert_eq!(lanes.send(Direction::ToServer, &other, now).next().unwrap().arrives, now);
        let one = Traffic { packets: 1, bytes: 100, lost_packets: 0 };
        let two = Traffic { packets: 2, bytes: 200, lost_packets: 0 };
        assert_eq!(lanes.counters(1), LaneCounters { to_client: one, to_server: two });
        assert_eq!(lanes.counters(0), LaneCounters { to_client: Traffic::default(), to_server: one });
    }

    #[test]
    fn a_lane_that_is_set_again_forgets() {
        let mut lanes = Lanes::new(1);
        let now = Instant::now();
        let ticket = lanes.send(Direction::ToServer, &packet(CLIENT, server_address(0), TCP), now).next().unwrap();
        assert!(lanes.is_current(&ticket));
        lanes.set(0, &PathSettings::NOTHING, 1);
        assert!(!lanes.is_current(&ticket));
        assert_eq!(lanes.counters(0), LaneCounters::default());
    }

    #[test]
    fn a_doubled_packet_has_two_tickets_and_is_counted_once() {
        let mut lanes = Lanes::new(1);
        lanes.set(0, &PathSettings { duplicated_percent: 100.0, ..PathSettings::NOTHING }, 1);
        let now = Instant::now();
        let tickets: Vec<Ticket> =
            lanes.send(Direction::ToServer, &packet(CLIENT, server_address(0), TCP), now).collect();
        assert!(tickets.len() == 2 && tickets.iter().all(|ticket| lanes.is_current(ticket)));
        assert_eq!(lanes.counters(0).to_server.packets, 1);
    }

    #[test]
    fn a_block_of_udp_lets_tcp_through() {
        let mut lanes = Lanes::new(1);
        lanes.set(0, &PathSettings { udp_blocked: true, ..PathSettings::NOTHING }, 1);
        let now = Instant::now();
        assert_eq!(lanes.send(Direction::ToServer, &packet(CLIENT, server_address(0), UDP), now).count(), 0);
        assert!(lanes.send(Direction::ToServer, &packet(CLIENT, server_address(0), TCP), now).next().is_some());
        let counted = Traffic { packets: 2, bytes: 200, lost_packets: 1 };
        assert_eq!(lanes.counters(0).to_server, counted);
    }

    #[test]
    fn the_directions_lose_independently() {
        let mut lanes = Lanes::new(1);
        lanes.set(0, &PathSettings { loss: Loss::Iid { percent: 50.0 }, ..PathSettings::NOTHING }, 1);
        let now = Instant::now();
        let (there, back) = (packet(CLIENT, server_address(0), UDP), packet(server_address(0), CLIENT, UDP));
        let alike = (0..1000)
            .filter(|_| {
                lanes.send(Direction::ToServer, &there, now).next().is_some()
                    == lanes.send(Direction::ToClient, &back, now).next().is_some()
            })
            .count();
        assert!((400..600).contains(&alike), "{alike}");
    }

    #[test]
    fn strangers_are_dropped_and_not_counted() {
        let mut lanes = Lanes::new(1);
        let now = Instant::now();
        for address in [server_address(1), CLIENT, Ipv4Addr::new(10, 78, 0, 0), Ipv4Addr::BROADCAST] {
            assert_eq!(lanes.send(Direction::ToServer, &packet(CLIENT, address, UDP), now).count(), 0);
        }
        assert_eq!(lanes.counters(0), LaneCounters::default());
    }
}
