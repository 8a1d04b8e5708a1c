//! Whether a lane really does what it was told: its round trip by ping; what it loses, reorders and duplicates by a flow of UDP packets.

use std::{
    io::{self, Read as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, anyhow};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::{
    netns::Host,
    network::Network,
    settings::{Loss, PathSettings},
    sys,
};

const PINGS: u16 = 20;
const PING_INTERVAL: Duration = Duration::from_millis(10);
/// An echo request with no data: IP header and ICMP header.
const PING_BYTES: f64 = 28.0;
/// Enough to see 5 % in seconds.
const FLOW_PACKETS_PER_S: f64 = 2000.0;
/// The flow takes at most this share of the link, so that it fills no queue.
const MOST_OF_RATE: f64 = 0.5;
/// IP header, UDP header and [`flow_packet`].
const FLOW_PACKET_BYTES: f64 = 28.0 + 12.0;
/// The flow makes up for less than this.
const MOST_LATE: Duration = Duration::from_millis(10);
/// For answers that are late by more than the path is: this machine may be busy.
const GRACE: Duration = Duration::from_millis(300);
/// Less than a microsecond would be no limit.
const LEAST_TIMEOUT: Duration = Duration::from_micros(10);
/// Between looks at whether to stop.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Seconds of the flow, should a thread not come to read it.
const RECEIVE_BUFFER_BYTES: i32 = 8 << 20;

/// What is off by less than this share of what it should be is as it should be.
const TOLERANCE: f64 = 0.05;
/// Of the round trip: what two hosts take to answer.
const RTT_TOLERANCE_MS: f64 = 1.0;
/// Losses within so many standard deviations are chance. A matrix has hundreds of checks: three would mark one of 370 for nothing.
const DEVIATIONS: f64 = 4.0;

impl Network {
    /// Measures `lane`, for about `flow` and a second more, and marks where it is not as `path` says. It must have been set so, and
    /// nothing else may use it. It waits: from asynchronous code, call it by `spawn_blocking`.
    ///
    /// # Errors
    ///
    /// If nothing could be measured: no socket, or not a single ping came back.
    pub fn check(&self, lane: u8, path: &PathSettings, flow: Duration) -> anyhow::Result<Check> {
        let server = Self::server_address(lane);
        let patience = path.one_way_delay * 2 + GRACE;
        let rtt_ms = ping(self.client(), server, patience)
            .context("cannot ping over the emulated network")?
            .with_context(|| format!("of {PINGS} pings over lane {lane} of the emulated network none came back"))?;
        let per_s = path.rate_bits_per_s.map_or(FLOW_PACKETS_PER_S, |rate| {
            (rate / 8.0 / FLOW_PACKET_BYTES * MOST_OF_RATE).clamp(1.0, FLOW_PACKETS_PER_S)
        });
        let flow = udp_flow(self, server, per_s, flow, patience + path.reordering.held_back * 2)?;
        Ok(Check {
            ping_rtt_ms: rtt_ms,
            sent_packets: flow.sent,
            lost_to_server_percent: lost_percent(flow.sent, flow.at_server.packets),
            lost_to_client_percent: lost_percent(flow.at_server.packets, flow.at_client.packets),
            marked: judge(path, rtt_ms, &flow),
        })
    }
}

/// What a lane really does.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// Median.
    pub ping_rtt_ms: f64,
    /// Of the UDP flow, in each direction.
    pub sent_packets: u64,
    /// Of the packets sent.
    pub lost_to_server_percent: f64,
    /// Of the answers.
    pub lost_to_client_percent: f64,
    /// What is off by more than it may be. `None`: nothing.
    pub marked: Option<String>,
}

/// Packets of the flow, each with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flow {
    sent: u64,
    at_server: Arrived,
    at_client: Arrived,
}

/// What came of one direction of the flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Arrived {
    packets: u64,
    /// Of the packets, those that a later one came before.
    overtaken: u64,
    /// Beside the packets.
    copies: u64,
}

/// What is off, if anything.
fn judge(path: &PathSettings, rtt_ms: f64, flow: &Flow) -> Option<String> {
    let mut off = Vec::new();
    let on_the_link_ms = path.rate_bits_per_s.map_or(0.0, |rate| PING_BYTES * 8.0 / rate * 1e3);
    let expected_ms = 2.0 * (path.one_way_delay.as_secs_f64() * 1e3 + on_the_link_ms);
    if (rtt_ms - expected_ms).abs() > RTT_TOLERANCE_MS.max(TOLERANCE * expected_ms) {
        off.push(format!("the round trip is {rtt_ms:.2} ms, not {expected_ms:.2} ms"));
    }
    if path.udp_blocked {
        if flow.at_server.packets > 0 {
            off.push(format!("{} of {} UDP packets got through a block", flow.at_server.packets, flow.sent));
        }
    } else {
        for (direction, sent, arrived) in
            [("server", flow.sent, flow.at_server), ("client", flow.at_server.packets, flow.at_client)]
        {
            if is_off(path.loss, sent, arrived.packets) {
                let lost = lost_percent(sent, arrived.packets);
                off.push(format!("{lost:.2} % are lost to the {direction}, not {}", path.loss));
            }
            let share = |count: u64| count as f64 / arrived.packets.max(1) as f64 * 100.0;
            for (what, asked_percent, count) in [
                ("overtaken", path.reordering.percent, arrived.overtaken),
                ("doubled", path.duplicated_percent, arrived.copies),
            ] {
                if is_share_off(asked_percent, arrived.packets, count) {
                    off.push(format!("{:.2} % are {what} to the {direction}, not {asked_percent} %", share(count)));
                }
            }
        }
    }
    (!off.is_empty()).then(|| off.join("; "))
}

/// Whether more or fewer are lost than chance explains.
fn is_off(loss: Loss, sent: u64, arrived: u64) -> bool {
    let (percent, burst) = match loss {
        Loss::None => (0.0, None),
        Loss::Iid { percent } => (percent, None),
        Loss::Burst { percent, mean_packets } => (percent, Some(mean_packets.max(1.0))),
    };
    let (expected, sent_packets) = (percent / 100.0, sent as f64);
    let kept = 1.0 - expected;
    // The variance of the sum of a two-state chain: that of independent packets times (1 + r) / (1 - r), with the correlation
    // of neighbours r = 1 - 1 / (burst * kept).
    let widened = burst.map_or(1.0, |burst| (2.0 * burst * kept - 1.0).max(1.0));
    let deviation = (sent_packets * expected * kept * widened).sqrt();
    let off = (sent.saturating_sub(arrived) as f64 - sent_packets * expected).abs();
    sent == 0 || off > (DEVIATIONS * deviation).max(TOLERANCE * sent_packets * expected)
}

/// The same for what happens to each packet by itself.
fn is_share_off(percent: f64, packets: u64, count: u64) -> bool {
    let (share, packets) = (percent / 100.0, packets as f64);
    let deviation = (packets * share * (1.0 - share)).sqrt();
    (count as f64 - packets * share).abs() > (DEVIATIONS * deviation).max(TOLERANCE * packets * share)
}

/// All of nothing is lost: a number, where there is none, that no one takes for a good one.
fn lost_percent(sent: u64, arrived: u64) -> f64 {
    if sent == 0 { 100.0 } else { sent.saturating_sub(arrived) as f64 / sent as f64 * 100.0 }
}

/// The median round trip in milliseconds. The kernel notes when an answer comes, so that waiting for the CPU is not measured.
fn ping(client: &Host, server: Ipv4Addr, patience: Duration) -> anyhow::Result<Option<f64>> {
    let socket = client.run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)))??;
    socket.connect(&SockAddr::from(SocketAddrV4::new(server, 0)))?;
    // The first call turns it on.
    let _ = sys::receive_time(&socket);
    let mut sent = Vec::new();
    let mut rtts = Vec::new();
    for number in 0..PINGS {
        sent.push(since_epoch()?);
        socket.send(&echo_request(number))?;
        read_answers(&socket, &sent, &mut rtts, Instant::now() + PING_INTERVAL)?;
    }
    read_answers(&socket, &sent, &mut rtts, Instant::now() + patience)?;
    rtts.sort_unstable();
    Ok(rtts.get(rtts.len() / 2).map(|rtt| rtt.as_secs_f64() * 1e3))
}

/// Until `end`, or until there are as many as were sent of all.
fn read_answers(mut socket: &Socket, sent: &[Duration], rtts: &mut Vec<Duration>, end: Instant) -> anyhow::Result<()> {
    while rtts.len() < usize::from(PINGS) {
        let Some(left) = end.checked_duration_since(Instant::now()) else { break };
        socket.set_read_timeout(Some(left.max(LEAST_TIMEOUT)))?;
        let mut packet = [0; 128];
        let length = match socket.read(&mut packet) {
            Err(error) if is_timeout(&error) => continue,
            other => other?,
        };
        let number = packet.get(..length).and_then(answered);
        if let Some(sent) = number.and_then(|number| sent.get(usize::from(number))) {
            rtts.push(sys::receive_time(socket)?.saturating_sub(*sent));
        }
    }
    Ok(())
}

/// RFC 792; without data. The kernel gives a raw socket only the answers of the host that it is connected to.
fn echo_request(number: u16) -> [u8; 8] {
    const ECHO: u8 = 8;
    let [n0, n1] = number.to_be_bytes();
    // The Internet checksum: the complement of the sum of all 16-bit words, here but two that are not zero.
    let [c0, c1] = (!((u16::from(ECHO) << 8) + number)).to_be_bytes();
    [ECHO, 0, c0, c1, 0, 0, n0, n1]
}

/// The number of the request that a packet, IP header included, answers.
fn answered(packet: &[u8]) -> Option<u16> {
    const ECHO_REPLY: u8 = 0;
    let header_bytes = usize::from(packet.first()? & 0x0f) * 4;
    match *packet.get(header_bytes..)? {
        [ECHO_REPLY, 0, _, _, _, _, n0, n1, ..] => Some(u16::from_be_bytes([n0, n1])),
        _ => None,
    }
}

fn udp_flow(
    network: &Network,
    server: Ipv4Addr,
    per_s: f64,
    duration: Duration,
    patience: Duration,
) -> anyhow::Result<Flow> {
    let server_socket = network.server().run(move || UdpSocket::bind((server, 0)))??;
    let client_socket = network.client().run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    for socket in [&server_socket, &client_socket] {
        sys::force_receive_buffer(socket, RECEIVE_BUFFER_BYTES).context("cannot enlarge a receive buffer")?;
        socket.set_read_timeout(Some(LOOK_AGAIN))?;
    }
    client_socket.connect(server_socket.local_addr()?)?;
    let packets = (duration.as_secs_f64() * per_s).ceil().max(1.0) as u32;
    // So that only packets of this flow count.
    let flow = rand::random();
    let done = Arc::new(AtomicBool::new(false));
    let echo = {
        // A copy: the socket stays open while anything is on its way, lest the server's host refuses it.
        let (done, socket) = (Arc::clone(&done), server_socket.try_clone()?);
        thread::spawn(move || echo(&socket, flow, packets, &done))
    };
    let answers = {
        let (done, socket) = (Arc::clone(&done), client_socket.try_clone()?);
        thread::spawn(move || count(&socket, flow, packets, &done, |_| Ok(())))
    };
    let sent = send_flow(&client_socket, flow, packets, per_s);
    // What is still on its way.
    let end = Instant::now() + patience;
    while Instant::now() < end && !(echo.is_finished() && answers.is_finished()) {
        thread::sleep(LOOK_AGAIN);
    }
    done.store(true, Ordering::Relaxed);
    let at_server = echo.join().map_err(|_| anyhow!("the echo of the check panicked"))??;
    let at_client = answers.join().map_err(|_| anyhow!("the reader of the check panicked"))??;
    sent.context("cannot send over the emulated network")?;
    Ok(Flow { sent: packets.into(), at_server, at_client })
}

/// Evenly. After a pause it goes on from there: all that was missed at once would fill the queue of the link.
fn send_flow(socket: &UdpSocket, flow: u64, packets: u32, per_s: f64) -> io::Result<()> {
    let mut begin = Instant::now();
    for number in 0..packets {
        let due = begin + Duration::from_secs_f64(f64::from(number) / per_s);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let late = due.elapsed();
        if late > MOST_LATE {
            begin += late;
        }
        socket.send(&flow_packet(flow, number))?;
    }
    Ok(())
}

/// Answers every packet of `flow` once, until told that it is `done`; returns what there was. The answers have numbers of their own,
/// in the order in which they are sent: what became of the packets before is no part of theirs.
fn echo(socket: &UdpSocket, flow: u64, packets: u32, done: &AtomicBool) -> io::Result<Arrived> {
    let mut answers = 0;
    count(socket, flow, packets, done, |from| {
        let answer = flow_packet(flow, answers);
        answers += 1;
        socket.send_to(&answer, from).map(drop)
    })
}

/// Reads packets of `flow` until all are there, or none comes any more and it is `done`.
fn count(
    socket: &UdpSocket,
    flow: u64,
    packets: u32,
    done: &AtomicBool,
    mut on_packet: impl FnMut(SocketAddr) -> io::Result<()>,
) -> io::Result<Arrived> {
    let (mut seen, mut arrived, mut newest) = (vec![false; packets as usize], Arrived::default(), 0);
    let mut buffer = [0; 64];
    while arrived.packets < u64::from(packets) {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                let packet = buffer.get(..length).unwrap_or_default();
                let Some(number) = flow_number(packet, flow) else { continue };
                match seen.get_mut(number) {
                    Some(first @ false) => {
                        *first = true;
                        arrived.packets += 1;
                        arrived.overtaken += u64::from(number < newest);
                        newest = newest.max(number);
                        on_packet(from)?;
                    }
                    Some(true) => arrived.copies += 1,
                    None => {}
                }
            }
            Err(error) if !is_timeout(&error) => return Err(error),
            Err(_) if done.load(Ordering::Relaxed) => break,
            Err(_) => {}
        }
    }
    Ok(arrived)
}

fn flow_packet(flow: u64, number: u32) -> [u8; 12] {
    let mut packet = [0; 12];
    packet[..8].copy_from_slice(&flow.to_be_bytes());
    packet[8..].copy_from_slice(&number.to_be_bytes());
    packet
}

/// The number of a packet, if it is of `flow`.
fn flow_number(packet: &[u8], flow: u64) -> Option<usize> {
    let number = packet.strip_prefix(&flow.to_be_bytes())?;
    Some(u32::from_be_bytes(number.try_into().ok()?) as usize)
}

fn since_epoch() -> anyhow::Result<Duration> {
    SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is set before 1970")
}

/// Both kinds are what Linux makes of a read that took too long, or that a signal ended.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::settings::Reordering;

    fn plain(rtt_ms: f64, loss: Loss) -> PathSettings {
        let one_way_delay = Duration::from_secs_f64(rtt_ms / 2e3);
        PathSettings { one_way_delay, loss, ..PathSettings::NOTHING }
    }

    const fn in_order(packets: u64) -> Arrived {
        Arrived { packets, overtaken: 0, copies: 0 }
    }

    fn arrived(at_server: u64, at_client: u64) -> Flow {
        Flow { sent: 4000, at_server: in_order(at_server), at_client: in_order(at_client) }
    }

    const NOTHING_LOST: Flow = Flow { sent: 4000, at_server: in_order(4000), at_client: in_order(4000) };

    #[test]
    fn a_round_trip_may_be_off_by_a_millisecond_or_five_per_cent() {
        for (claimed, measured, good) in
            [(0.0, 0.9, true), (0.0, 1.1, false), (100.0, 104.9, true), (100.0, 105.2, false), (100.0, 94.0, false)]
        {
            let marked = judge(&plain(claimed, Loss::None), measured, &NOTHING_LOST);
            assert_eq!(marked.is_none(), good, "{marked:?}");
        }
    }

    #[test]
    fn the_time_on_a_slow_link_is_part_of_the_round_trip() {
        // 28 bytes at 0.1 Mbit/s: 2.24 ms each way.
        let slow = PathSettings { rate_bits_per_s: Some(0.1e6), ..plain(20.0, Loss::None) };
        assert_eq!(judge(&slow, 24.48, &NOTHING_LOST), None);
        assert!(judge(&slow, 20.0, &NOTHING_LOST).is_some());
    }

    #[test]
    fn losses_beyond_chance_are_marked() {
        let iid = plain(0.0, Loss::Iid { percent: 1.0 });
        assert_eq!(judge(&iid, 0.0, &arrived(3960, 3920)), None);
        // Four deviations of 4000 packets are 25.
        assert_eq!(judge(&iid, 0.0, &arrived(3936, 3896)), None);
        assert!(judge(&iid, 0.0, &arrived(3930, 3891)).unwrap().contains("to the server, not 1 %"));
        assert!(judge(&iid, 0.0, &arrived(3960, 3960)).unwrap().contains("to the client"));
        let burst = plain(0.0, Loss::Burst { percent: 1.0, mean_packets: 3.0 });
        assert_eq!(judge(&burst, 0.0, &arrived(3910, 3870)), None, "bursts spread more");
        assert!(judge(&burst, 0.0, &arrived(3880, 3840)).is_some());
        let none = plain(0.0, Loss::None);
        assert!(judge(&none, 0.0, &arrived(3999, 3999)).is_some(), "a path without loss loses nothing");
        assert!(judge(&none, 0.0, &arrived(0, 0)).is_some());
    }

    #[test]
    fn of_many_packets_five_per_cent_are_tolerated() {
        let iid = plain(0.0, Loss::Iid { percent: 50.0 });
        let sent = 1_000_000;
        assert_eq!(judge(&iid, 0.0, &Flow { sent, at_server: in_order(480_000), at_client: in_order(240_000) }), None);
        assert!(judge(&iid, 0.0, &Flow { sent, at_server: in_order(470_000), at_client: in_order(235_000) }).is_some());
    }

    #[test]
    fn packets_out_of_order_and_copies_beyond_chance_are_marked() {
        let held_back = Duration::from_millis(5);
        let reordering = PathSettings { reordering: Reordering { percent: 10.0, held_back }, ..plain(0.0, Loss::None) };
        let doubling = PathSettings { duplicated_percent: 2.0, ..plain(0.0, Loss::None) };
        let flow = |overtaken, copies| Flow { at_client: Arrived { packets: 4000, overtaken, copies }, ..NOTHING_LOST };
        for (path, as_told, not) in [(reordering, flow(400, 0), flow(300, 0)), (doubling, flow(0, 80), flow(0, 130))] {
            let to_server = as_told.at_client;
            assert_eq!(judge(&path, 0.0, &Flow { at_server: to_server, ..as_told }), None);
            let marked = judge(&path, 0.0, &Flow { at_server: to_server, ..not }).unwrap();
            assert!(marked.contains("to the client") && !marked.contains("to the server"), "{marked}");
        }
        let marked = judge(&plain(0.0, Loss::None), 0.0, &flow(1, 1)).unwrap();
        assert!(marked.contains("are overtaken") && marked.contains("are doubled"), "{marked}");
    }

    #[test]
    fn a_block_lets_nothing_through() {
        let blocked = PathSettings { udp_blocked: true, ..plain(0.0, Loss::Iid { percent: 1.0 }) };
        assert_eq!(judge(&blocked, 0.0, &arrived(0, 0)), None);
        assert!(judge(&blocked, 0.0, &arrived(1, 1)).is_some());
    }

    #[test]
    fn pings_are_numbered() {
        let request = echo_request(0x0102);
        let sum = request.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum::<u32>();
        assert_eq!(sum, 0xffff);
        let mut answer = vec![0; 20];
        answer[0] = 0x45;
        answer.extend([0, 0, 9, 9, 0, 0, 1, 2]);
        assert_eq!(answered(&answer), Some(0x0102));
        answer[20] = 8;
        assert_eq!(answered(&answer), None, "a request");
        assert_eq!(answered(&[]), None);
        assert_eq!(answered(&[0x4f, 0]), None);
    }

    #[test]
    fn packets_of_other_flows_are_not_counted() {
        assert_eq!(flow_number(&flow_packet(7, 3), 7), Some(3));
        assert_eq!(flow_number(&flow_packet(7, 3), 8), None);
        assert_eq!(flow_number(&flow_packet(7, 3)[..11], 7), None);
    }
}
