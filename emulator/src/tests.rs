//! The network itself, which needs root; each test says so where it has to be skipped.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::{
    Host, LaneCounters, Loss, Network, PathSettings, Process, Reordering, Traffic, emulator, network::LISTING, sys,
};

/// Longest wait for anything; only for a broken test does it matter how long.
const PATIENCE: Duration = Duration::from_secs(60);

/// `None` without the rights that it takes, which is then said.
fn network(lanes: u8) -> Option<Network> {
    match Network::new(lanes) {
        Ok(network) => Some(network),
        // A container's root may lack them, too.
        Err(error)
            if thread::spawn(sys::new_namespace).join().unwrap().is_err() || !Path::new("/dev/net/tun").exists() =>
        {
            eprintln!("skipped: {error:#}");
            None
        }
        Err(error) => panic!("root can make a network: {error:#}"),
    }
}

fn delayed(delay_ms: u64) -> PathSettings {
    PathSettings { one_way_delay: Duration::from_millis(delay_ms), ..PathSettings::NOTHING }
}

fn plain(rtt_ms: f64, loss: Loss) -> PathSettings {
    PathSettings { one_way_delay: Duration::from_secs_f64(rtt_ms / 2e3), loss, ..PathSettings::NOTHING }
}

fn udp(host: &Host, address: Ipv4Addr) -> UdpSocket {
    let socket = host.run(move || UdpSocket::bind((address, 0))).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// On `lane`, and on the client: not bound to an address, nor connected.
fn udp_pair(network: &Network, lane: u8) -> (UdpSocket, UdpSocket) {
    (udp(network.server(), Network::server_address(lane)), udp(network.client(), Ipv4Addr::UNSPECIFIED))
}

/// Waits until it is so.
fn until(is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "it never is so");
        thread::sleep(Duration::from_millis(1));
    }
}

fn listen(network: &Network, lane: u8) -> TcpListener {
    network.server().run(move || TcpListener::bind((Network::server_address(lane), 0))).unwrap().unwrap()
}

fn connect(network: &Network, listener: &TcpListener) -> TcpStream {
    let to = listener.local_addr().unwrap();
    network.client().run(move || TcpStream::connect(to)).unwrap().unwrap()
}

#[test]
fn an_answer_takes_the_round_trip_of_its_lane_and_is_counted() {
    let Some(network) = network(3) else { return };
    for (lane, delay_ms) in [(0, 0), (1, 20), (2, 60)] {
        network.set(lane, &delayed(delay_ms), 1);
        let (server, client) = udp_pair(&network, lane);
        let mut buffer = [0; 100];
        let begin = Instant::now();
        client.send_to(&[7; 72], server.local_addr().unwrap()).unwrap();
        let (length, from) = server.recv_from(&mut buffer).unwrap();
        server.send_to(&buffer[..length], from).unwrap();
        let (length, _) = client.recv_from(&mut buffer).unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(2 * delay_ms));
        assert_eq!(buffer[..length], [7; 72]);
        let one = Traffic { packets: 1, bytes: 100, lost_packets: 0 };
        assert_eq!(network.counters(lane), LaneCounters { to_client: one, to_server: one }, "lane {lane}");
    }
}

#[test]
fn tcp_arrives_intact_through_loss_and_a_slow_link() {
    let Some(network) = network(1) else { return };
    let path = PathSettings {
        loss: Loss::Iid { percent: 5.0 },
        rate_bits_per_s: Some(50e6),
        one_way_delay: Duration::from_millis(5),
        ..PathSettings::NOTHING
    };
    network.set(0, &path, 3);
    let sent: Vec<u8> = (0..300_000_u32).map(|at| (at % 251) as u8).collect();
    let listener = listen(&network, 0);
    let mut client = connect(&network, &listener);
    let (mut server, _) = listener.accept().unwrap();
    let reader = thread::spawn(move || {
        let mut received = Vec::new();
        server.read_to_end(&mut received).unwrap();
        received
    });
    client.write_all(&sent).unwrap();
    drop(client);
    assert!(reader.join().unwrap() == sent);
    assert!(network.counters(0).to_server.lost_packets > 0);
}

#[test]
fn the_same_seed_loses_the_same_packets() {
    const PACKETS: u16 = 1000;
    /// Fewer than a host's queues hold: however busy the machine is, none but those that the lane loses are lost.
    const ON_THEIR_WAY: u16 = 100;
    fn arriving(network: &Network, seed: u64) -> Vec<u16> {
        network.set(0, &PathSettings { loss: Loss::Burst { percent: 5.0, mean_packets: 3.0 }, ..delayed(2) }, seed);
        let (server, client) = udp_pair(network, 0);
        let to = server.local_addr().unwrap();
        let mut numbers = Vec::new();
        let mut sent = 0;
        while sent < PACKETS {
            for number in sent..sent + ON_THEIR_WAY {
                client.send_to(&number.to_be_bytes(), to).unwrap();
            }
            sent += ON_THEIR_WAY;
            until(|| network.counters(0).to_server.packets == u64::from(sent));
            let arriving = u64::from(sent) - network.counters(0).to_server.lost_packets;
            while (numbers.len() as u64) < arriving {
                let mut buffer = [0; 2];
                server.recv(&mut buffer).unwrap();
                numbers.push(u16::from_be_bytes(buffer));
            }
        }
        numbers
    }
    let Some(first) = network(1) else { return };
    let second = network(1).unwrap();
    let numbers = arriving(&first, 1);
    assert!((900..990).contains(&numbers.len()), "{}", numbers.len());
    assert!(numbers.is_sorted());
    assert_eq!(arriving(&second, 1), numbers);
    assert_eq!(arriving(&second, 1), numbers, "also when the lane is set again");
    assert_ne!(arriving(&second, 2), numbers);
}

#[test]
fn a_lane_that_reorders_and_doubles_does_so_and_tcp_bears_it() {
    let Some(network) = network(1) else { return };
    let path = PathSettings {
        reordering: Reordering { percent: 10.0, held_back: Duration::from_millis(20) },
        duplicated_percent: 5.0,
        ..delayed(10)
    };
    network.set(0, &path, 4);
    let marked = network.check(0, &path, Duration::from_secs(1)).unwrap().marked.unwrap_or_default();
    assert!(!marked.contains("overtaken") && !marked.contains("doubled"), "{marked}");
    let told_otherwise = network.check(0, &delayed(10), Duration::from_millis(500)).unwrap().marked.unwrap_or_default();
    assert!(told_otherwise.contains("are overtaken") && told_otherwise.contains("are doubled"), "{told_otherwise}");

    let sent: Vec<u8> = (0..200_000_u32).map(|at| (at % 251) as u8).collect();
    let listener = listen(&network, 0);
    let (mut client, (mut server, _)) = (connect(&network, &listener), listener.accept().unwrap());
    let writer = thread::spawn({
        let sent = sent.clone();
        move || client.write_all(&sent).unwrap()
    });
    let mut received = Vec::new();
    server.read_to_end(&mut received).unwrap();
    writer.join().unwrap();
    assert!(received == sent);
}

#[test]
fn blocked_udp_leaves_tcp() {
    let Some(network) = network(1) else { return };
    network.set(0, &PathSettings { udp_blocked: true, ..delayed(1) }, 1);
    let (server, client) = udp_pair(&network, 0);
    let listener = listen(&network, 0);
    client.send_to(b"lost", server.local_addr().unwrap()).unwrap();
    // Behind the packet that is lost.
    connect(&network, &listener);
    server.set_nonblocking(true).unwrap();
    server.recv(&mut [0; 10]).unwrap_err();
    assert_eq!(network.counters(0).to_server.lost_packets, 1);
    // And TCP's three, of which the last has no answer.
    until(|| network.counters(0).to_server.packets >= 3);
}

#[test]
fn a_client_that_moved_sends_from_another_address() {
    let Some(network) = network(1) else { return };
    let (server, client) = udp_pair(&network, 0);
    let to = server.local_addr().unwrap();
    let listener = listen(&network, 0);
    let tcp = connect(&network, &listener);
    let mut seen = Vec::new();
    let mut buffer = [0; 10];
    for _ in 0..4 {
        client.send_to(b"here", to).unwrap();
        let (_, from) = server.recv_from(&mut buffer).unwrap();
        server.send_to(b"there", from).unwrap();
        client.recv(&mut buffer).unwrap();
        if let Some(gone) = seen.last() {
            server.send_to(b"to nobody", gone).unwrap();
        }
        seen.push(from);
        network.move_client().unwrap();
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 4);
    client.set_nonblocking(true).unwrap();
    client.recv(&mut buffer).unwrap_err();
    // A connection of the first address is cut off, without being told.
    let (mut served, _) = listener.accept().unwrap();
    served.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let _ = (&tcp).write(b"lost");
    served.read(&mut buffer).unwrap_err();
}

#[test]
fn new_connections_use_the_congestion_control_that_is_set() {
    let Some(network) = network(1) else { return };
    let allowed = || {
        let _quiet = LISTING.lock();
        fs::read_to_string("/proc/sys/net/ipv4/tcp_allowed_congestion_control").unwrap()
    };
    let before = allowed();
    for name in ["reno", "cubic", "bbr"] {
        let known = fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control").unwrap();
        if !known.split_whitespace().any(|known| known == name) {
            eprintln!("skipped: {name} is not in this kernel");
            continue;
        }
        network.set_congestion_control(name).unwrap();
        let listener = listen(&network, 0);
        let client = socket2::Socket::from(connect(&network, &listener));
        let server = socket2::Socket::from(listener.accept().unwrap().0);
        for socket in [client, server] {
            assert!(socket.tcp_congestion().unwrap().starts_with(name.as_bytes()));
        }
    }
    assert_eq!(allowed(), before, "the machine is as it was");
    let error = network.set_congestion_control("no-such").unwrap_err();
    assert!(format!("{error:#}").contains("modprobe tcp_no-such"), "{error:#}");
}

#[test]
fn a_command_runs_on_its_host() {
    let Some(network) = network(2) else { return };
    let inode = network.server().namespace_inode().unwrap();
    let mut command = Command::new("readlink");
    command.arg("/proc/self/ns/net");
    network.server().enter(&mut command);
    let output = command.output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), format!("net:[{inode}]"));
}

#[test]
fn what_runs_on_a_host_dies_with_the_thread_that_started_it() {
    let Some(network) = network(1) else { return };
    let mut command = Command::new("sleep");
    command.arg("1000");
    network.client().enter(&mut command);
    let mut child = thread::spawn(move || command.spawn().unwrap()).join().unwrap();
    // Otherwise for 1000 s.
    assert!(!child.wait().unwrap().success());
}

#[test]
fn a_process_on_a_host_is_killed_at_once_and_at_the_latest_when_it_is_dropped() {
    let Some(network) = network(1) else { return };
    let sleep = || {
        let mut command = Command::new("sleep");
        command.arg("1000");
        Process::start(network.server(), command, "sleep").unwrap()
    };
    let mut process = sleep();
    assert_eq!(process.ended(), None);
    process.kill();
    assert!(!process.ended().unwrap().success());
    let dropped = sleep();
    let pid = dropped.id();
    drop(dropped);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    let error = Process::start(network.server(), Command::new("/no/such/program"), "a ghost").unwrap_err();
    assert!(format!("{error:#}").contains("cannot start a ghost"), "{error:#}");
}

#[test]
fn a_dropped_network_leaves_nothing() {
    let Some(network) = network(200) else { return };
    let inodes = [network.client().namespace_inode().unwrap(), network.server().namespace_inode().unwrap()];
    let names = inodes.map(|inode| format!("net:[{inode}]"));
    assert!(holders_of(&names) > 0);
    let thread = network.emulator.as_ref().unwrap().thread.thread().id();
    drop(network);
    assert_eq!(holders_of(&names), 0, "{thread:?}");
}

/// Threads of this process that are in one of these namespaces, and files that are one or hold one.
fn holders_of(namespaces: &[String; 2]) -> usize {
    let ours = |path: std::path::PathBuf| {
        fs::read_link(path).is_ok_and(|target| namespaces.iter().any(|name| target.as_os_str() == name.as_str()))
    };
    let threads =
        fs::read_dir("/proc/self/task").unwrap().filter(|task| ours(task.as_ref().unwrap().path().join("ns/net")));
    let files = fs::read_dir("/proc/self/fd").unwrap().filter(|file| ours(file.as_ref().unwrap().path()));
    threads.count() + files.count()
}

#[test]
fn a_lane_that_does_as_told_is_not_marked() {
    let Some(network) = network(1) else { return };
    for (rtt_ms, loss, rate_mbit) in
        [(40.0, Loss::Iid { percent: 5.0 }, None), (100.0, Loss::Burst { percent: 2.0, mean_packets: 3.0 }, Some(1.0))]
    {
        let path = PathSettings { rate_bits_per_s: rate_mbit.map(|rate: f64| rate * 1e6), ..plain(rtt_ms, loss) };
        network.set(0, &path, 5);
        let record = network.check(0, &path, Duration::from_secs(1)).unwrap();
        // How late the machine is that runs the tests is not for them to say: only what does not depend on it.
        assert!(record.ping_rtt_ms >= rtt_ms, "{record:?}");
        let marked = record.marked.unwrap_or_default();
        assert!(!marked.contains("lost"), "{marked}");
    }
}

#[test]
fn a_lane_that_does_otherwise_is_marked() {
    let Some(network) = network(1) else { return };
    let really = plain(50.0, Loss::Iid { percent: 2.0 });
    network.set(0, &really, 5);
    let marked = |claimed: &PathSettings| {
        network.check(0, claimed, Duration::from_millis(500)).unwrap().marked.unwrap_or_default()
    };
    let claimed = plain(40.0, Loss::Iid { percent: 10.0 });
    let text = marked(&claimed);
    for part in ["the round trip is", "not 40.00 ms", "lost to the server, not 10 %", "lost to the client, not 10 %"] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    let text = marked(&PathSettings { udp_blocked: true, ..really });
    assert!(text.contains("got through a block"), "{text}");
    network.set(0, &PathSettings { udp_blocked: true, ..really }, 5);
    let text = marked(&really);
    assert!(text.contains("100.00 % are lost to the server"), "{text}");
}

/// Figures of the emulator on this machine, the other load on it included: `cargo test -p titan-emulator -- --ignored what_the_emulator_costs --nocapture`
#[test]
#[ignore = "prints figures and judges nothing"]
fn what_the_emulator_costs() {
    let Some(network) = network(1) else { return };
    for rtt_ms in [0.0, 20.0, 100.0, 300.0] {
        let path = plain(rtt_ms, Loss::Iid { percent: 1.0 });
        network.set(0, &path, 1);
        let record = network.check(0, &path, Duration::from_secs(2)).unwrap();
        eprintln!(
            "{rtt_ms} ms, 1 % lost: ping {:.3} ms, {:.2} % and {:.2} % of {} lost, marked: {:?}",
            record.ping_rtt_ms,
            record.lost_to_server_percent,
            record.lost_to_client_percent,
            record.sent_packets,
            record.marked
        );
    }
    for rate in [1_000_u32, 10_000, 50_000, 100_000, 200_000] {
        network.set(0, &delayed(50), 1);
        let (server, client) = udp_pair(&network, 0);
        sys::force_receive_buffer(&server, 64 << 20).unwrap();
        server.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        client.connect(server.local_addr().unwrap()).unwrap();
        network.take_lateness();
        let (cpu, begin) = (emulator_cpu(), Instant::now());
        let receiver = thread::spawn(move || {
            let mut delays = Vec::new();
            let mut buffer = [0; 1200];
            while server.recv(&mut buffer).is_ok() {
                let sent = Duration::from_nanos(u64::from_be_bytes(*buffer.first_chunk().unwrap()));
                delays.push(begin.elapsed() - sent);
            }
            delays
        });
        let mut sent = 0;
        while begin.elapsed() < Duration::from_secs(2) {
            let due = (begin.elapsed().as_secs_f64() * f64::from(rate)) as u32;
            for _ in sent..due {
                let mut packet = [0; 150];
                packet[..8].copy_from_slice(&(begin.elapsed().as_nanos() as u64).to_be_bytes());
                client.send(&packet).unwrap();
            }
            sent = sent.max(due);
            thread::sleep(Duration::from_micros(200));
        }
        let mut delays = receiver.join().unwrap();
        let cpu = emulator_cpu() - cpu;
        delays.sort_unstable();
        let over = |share: f64| {
            let at = (delays.len() as f64 * share) as usize;
            delays.get(at).or(delays.last()).map(|delay| delay.saturating_sub(Duration::from_millis(50)))
        };
        let late = network.take_lateness();
        let entered = network.counters(0).to_server.packets;
        eprintln!(
            "{rate}/s: {sent} sent, {entered} entered, {} received; emulator {:.2} us CPU a packet, late p50 {} us, p99 {} us; as read, over 50 ms: p50 {:?}, p99 {:?}",
            delays.len(),
            cpu.as_secs_f64() * 1e6 / entered as f64,
            late.p50.as_micros(),
            late.p99.as_micros(),
            over(0.5),
            over(0.99),
        );
    }
}

/// Of all emulators of this process, on a CPU.
fn emulator_cpu() -> Duration {
    let of = |task: std::path::PathBuf| {
        let name = fs::read_to_string(task.join("comm")).ok()?;
        let times = fs::read_to_string(task.join("schedstat")).ok()?;
        (name.trim() == emulator::THREAD_NAME).then(|| times.split(' ').next().unwrap().parse::<u64>().unwrap())
    };
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    Duration::from_nanos(tasks.filter_map(|task| of(task.unwrap().path())).sum())
}
