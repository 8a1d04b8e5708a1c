//! The thread between the two hosts: takes packets from the TUN device of one, holds them for as long as their lane says, and
//! gives them to that of the other.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
    fs::File,
    io::{self, PipeReader, Read as _, Write as _},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{
    lane::{Direction, Lanes, Ticket},
    lateness::Lates,
    sys,
};

/// As `ps` shows the thread; at most 15 characters.
pub(super) const THREAD_NAME: &str = "titan-path";
/// Packets taken from one device before those that are due go out and the other device has its turn.
const BATCH: usize = 32;
/// The longest IP packet.
const LONGEST_PACKET: usize = u16::MAX as usize;

/// Ends when the writing end of `stop` is closed, or when a device is gone.
pub(super) fn run(client: &File, server: &File, stop: &PipeReader, lanes: &Mutex<Lanes>, lateness: &Mutex<Lates>) {
    sys::be_punctual();
    let mut buffer = vec![0; LONGEST_PACKET];
    let mut on_their_way = OnTheirWay::default();
    loop {
        let timeout = on_their_way.next().map(|next| next.saturating_duration_since(Instant::now()));
        let Ok([_, from_client, from_server]) =
            sys::wait_readable([stop.as_fd(), client.as_fd(), server.as_fd()], timeout)
        else {
            return;
        };
        for (readable, device, direction) in
            [(from_client, client, Direction::ToServer), (from_server, server, Direction::ToClient)]
        {
            if readable {
                for _ in 0..BATCH {
                    let Some(packet) = take(device, &mut buffer) else { break };
                    for ticket in lanes.lock().send(direction, packet, Instant::now()) {
                        on_their_way.add(ticket, direction, packet);
                    }
                }
            }
            while let Some((due, late)) = on_their_way.pop_due(Instant::now()) {
                if lanes.lock().is_current(&due.ticket) {
                    lateness.lock().record(late);
                    give(if due.direction == Direction::ToServer { server } else { client }, &due.packet);
                }
            }
        }
    }
}

/// `None`: none is there now. An error is that of a device that goes down, which the next wait finds.
fn take<'buffer>(mut device: &File, buffer: &'buffer mut [u8]) -> Option<&'buffer [u8]> {
    let length = device.read(buffer).ok()?;
    buffer.get(..length)
}

fn give(mut device: &File, packet: &[u8]) {
    // What the host does not take is lost, as on the Ethernet of a host out of memory; the check of the path would find it.
    let _: io::Result<usize> = device.write(packet);
}

/// Packets in the order in which they arrive, and of those that arrive at the same time, in the order in which they entered.
#[derive(Default)]
struct OnTheirWay {
    packets: BinaryHeap<Reverse<Due>>,
    entered: u64,
}

struct Due {
    ticket: Ticket,
    number: u64,
    direction: Direction,
    packet: Box<[u8]>,
}

impl OnTheirWay {
    fn add(&mut self, ticket: Ticket, direction: Direction, packet: &[u8]) {
        self.entered += 1;
        self.packets.push(Reverse(Due { ticket, number: self.entered, direction, packet: packet.into() }));
    }

    /// When the next arrives.
    fn next(&self) -> Option<Instant> {
        self.packets.peek().map(|Reverse(next)| next.ticket.arrives)
    }

    /// One that has arrived by `now`, and how long ago it should have.
    fn pop_due(&mut self, now: Instant) -> Option<(Due, Duration)> {
        let late = now.checked_duration_since(self.next()?)?;
        self.packets.pop().map(|Reverse(due)| (due, late))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.ticket.arrives, self.number).cmp(&(other.ticket.arrives, other.number))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}
