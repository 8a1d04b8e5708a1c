//! Sends the first packets of a connection, and those of a request, twice, a client's into silence three times: PROTOCOL.md §12.
//!
//! Whatever follows them waits for them: a lost ClientHello, certificate or prompt costs a timeout of several round trips, when one more
//! packet a few milliseconds later would have cost nothing anybody sees. The second copy is the same packet, byte for byte: a receiver
//! that has the first drops it before it decrypts anything twice (RFC 9000 §12.3), so that this needs no help from the other end.

use std::{
    collections::HashMap,
    fmt,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{EcnCodepoint, RecvMeta, Transmit},
};
use tokio::sync::mpsc;

use crate::socket::canonical;

/// Between a packet and its copy: longer than most bursts of losses, and far less than a round trip that makes a loss matter.
const COPY_AFTER: Duration = Duration::from_millis(15);
/// Between a handshake's packet and its second copy, if the peer has not answered since: before a timeout, which costs three round
/// trips, would send it.
const SECOND_COPY_AFTER: Duration = Duration::from_millis(60);
/// The packets that leave so soon after a request was written are the request's.
const REQUEST_TIME: Duration = Duration::from_millis(5);
/// A longer request is not sent twice: eight packets are 8 KB of prompt.
const MAX_REQUEST_PACKETS: u32 = 8;
/// Copies that wait, over all peers; more than 2 MB of them would be a flood of handshakes, which must not be doubled.
const MAX_WAITING: usize = 1024;
/// Peers whose handshake is being accounted for.
const MAX_PEERS: usize = 4096;
/// After so long a peer's handshake is over, one way or the other.
const HANDSHAKE_TIME: Duration = crate::limits::HANDSHAKE_TIMEOUT;
/// RFC 9000 §8.1: to an address that is not validated, at most so many times what came from it.
const AMPLIFICATION: u64 = 3;

/// Asks for second copies.
#[derive(Clone, Debug, Default)]
pub(crate) struct FirstPackets(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    plan: Mutex<Plan>,
    /// Requests that are being sent. Where there are none, packets of established connections pass without taking the lock.
    marked: AtomicUsize,
    /// Copies that wait.
    waiting: AtomicUsize,
    /// Copies that went out.
    copied: AtomicU64,
}

impl FirstPackets {
    /// The packets that go to `peer` now are a request's.
    pub(crate) fn request(&self, peer: SocketAddr) {
        let mut plan = self.0.plan.lock();
        plan.mark(canonical(peer), Instant::now());
        self.0.marked.store(plan.marked.len(), Relaxed);
    }

    /// Packets that went out again.
    pub(crate) fn copied(&self) -> u64 {
        self.0.copied.load(Relaxed)
    }

    /// `inner`, with second copies. `server`: what is sent may not amplify what came.
    pub(crate) fn socket(&self, inner: Arc<dyn AsyncUdpSocket>, server: bool) -> Arc<dyn AsyncUdpSocket> {
        let (copies, waiting) = mpsc::unbounded_channel();
        let (again, waiting_again) = mpsc::unbounded_channel();
        let socket = Arc::new(Socket { inner, shared: self.0.clone(), server, copies });
        tokio::spawn(send_copies(Arc::downgrade(&socket), waiting, Some(again)));
        tokio::spawn(send_copies(Arc::downgrade(&socket), waiting_again, None));
        socket
    }
}

/// Which packets go twice. Takes the time as an argument.
#[derive(Debug, Default)]
struct Plan {
    marked: HashMap<SocketAddr, Mark>,
    peers: HashMap<SocketAddr, Peer>,
}

#[derive(Debug)]
struct Mark {
    until: Instant,
    packets: u32,
}

/// A handshake.
#[derive(Debug)]
struct Peer {
    since: Instant,
    /// A packet with a short header came: the handshake is over, and the address valid.
    established: bool,
    /// When a packet of its handshake came last. Others may belong to an earlier connection.
    heard: Option<Instant>,
    received: u64,
    sent: u64,
}

impl Peer {
    fn new(now: Instant) -> Self {
        Self { since: now, established: false, heard: None, received: 0, sent: 0 }
    }
}

impl Plan {
    fn mark(&mut self, peer: SocketAddr, now: Instant) {
        self.marked.retain(|_, mark| now < mark.until);
        self.marked.insert(peer, Mark { until: now + REQUEST_TIME, packets: MAX_REQUEST_PACKETS });
    }

    /// A packet has gone to `peer`. Whether it is to go again.
    fn sent(&mut self, peer: SocketAddr, handshake: bool, bytes: usize, now: Instant) -> bool {
        if handshake {
            if let Some(peer) = self.peer(peer, now) {
                peer.sent += bytes as u64;
            }
            return true;
        }
        // An address whose handshake is over is validated.
        if let Some(peer) = self.peers.get_mut(&peer).filter(|peer| !peer.established) {
            peer.sent += bytes as u64;
        }
        match self.marked.get_mut(&peer) {
            Some(mark) if now < mark.until && mark.packets > 0 => {
                mark.packets -= 1;
                true
            }
            _ => false,
        }
    }

    /// Something came from `peer`.
    fn received(&mut self, peer: SocketAddr, handshake: bool, bytes: usize, now: Instant) {
        let known = if handshake { self.peer(peer, now) } else { self.peers.get_mut(&peer) };
        if let Some(peer) = known {
            // Another connection from the same port: what was sent to the one before does not count.
            if handshake && peer.established {
                *peer = Peer::new(now);
            }
            peer.received += bytes as u64;
            if handshake {
                peer.heard = Some(now);
            }
            peer.established |= !handshake;
        }
    }

    /// Whether no handshake came from `peer` since `sent_at`.
    fn is_silent(&self, peer: SocketAddr, sent_at: Instant) -> bool {
        self.peers.get(&peer).is_some_and(|peer| peer.heard.is_none_or(|heard| heard < sent_at))
    }

    /// Whether a server may copy a packet of its handshake with `peer`.
    fn may_copy(&mut self, peer: SocketAddr, bytes: usize) -> bool {
        let Some(peer) = self.peers.get_mut(&peer) else { return false };
        let allowed = peer.established || peer.sent + bytes as u64 <= AMPLIFICATION * peer.received;
        if allowed {
            peer.sent += bytes as u64;
        }
        allowed
    }

    fn peer(&mut self, peer: SocketAddr, now: Instant) -> Option<&mut Peer> {
        if self.peers.len() >= MAX_PEERS && !self.peers.contains_key(&peer) {
            self.peers.retain(|_, peer| now < peer.since + HANDSHAKE_TIME);
            if self.peers.len() >= MAX_PEERS {
                return None;
            }
        }
        let peer = self.peers.entry(peer).or_insert(Peer::new(now));
        // Another connection from the same port.
        if now >= peer.since + HANDSHAKE_TIME {
            *peer = Peer::new(now);
        }
        Some(peer)
    }
}

/// A packet to send again.
struct Copy {
    sent_at: Instant,
    handshake: bool,
    destination: SocketAddr,
    ecn: Option<EcnCodepoint>,
    contents: Box<[u8]>,
    src_ip: Option<std::net::IpAddr>,
}

struct Socket {
    inner: Arc<dyn AsyncUdpSocket>,
    shared: Arc<Shared>,
    server: bool,
    copies: mpsc::UnboundedSender<Copy>,
}

/// A long header (RFC 9000 §17.2): Initial, 0-RTT, Handshake.
fn is_handshake(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first & 0x80 != 0)
}

impl Socket {
    fn sent(&self, transmit: &Transmit<'_>) {
        let handshake = is_handshake(transmit.contents);
        // What a server says before its peer's address is validated counts, in whatever packet.
        let accounted = self.server && self.shared.waiting.load(Relaxed) > 0;
        if !handshake && !accounted && self.shared.marked.load(Relaxed) == 0 {
            return;
        }
        let (now, peer) = (Instant::now(), canonical(transmit.destination));
        let again = {
            let mut plan = self.shared.plan.lock();
            let again = plan.sent(peer, handshake, transmit.contents.len(), now);
            if !handshake && !again {
                plan.marked.retain(|_, mark| now < mark.until);
                self.shared.marked.store(plan.marked.len(), Relaxed);
            }
            again
        };
        if !again {
            return;
        }
        // One by one: of several that were sent together, a server may be allowed to copy the first alone.
        for packet in transmit.contents.chunks(transmit.segment_size.unwrap_or(transmit.contents.len()).max(1)) {
            if self.shared.waiting.load(Relaxed) >= MAX_WAITING {
                return;
            }
            self.shared.waiting.fetch_add(1, Relaxed);
            let copy = Copy {
                sent_at: now,
                handshake,
                destination: transmit.destination,
                ecn: transmit.ecn,
                contents: packet.into(),
                src_ip: transmit.src_ip,
            };
            // Its task ends with the runtime only.
            let _ = self.copies.send(copy);
        }
    }

    fn received(&self, bufs: &[IoSliceMut<'_>], metas: &[RecvMeta]) {
        let waiting = self.shared.waiting.load(Relaxed) > 0;
        for (buf, meta) in bufs.iter().zip(metas) {
            let handshake = is_handshake(buf);
            // A server accounts for what came; a client with copies to send wants to know that something did.
            if waiting || handshake && self.server {
                self.shared.plan.lock().received(canonical(meta.addr), handshake, meta.len, Instant::now());
            }
        }
    }
}

/// First copies go on to `again`, second ones have none.
async fn send_copies(
    socket: Weak<Socket>,
    mut copies: mpsc::UnboundedReceiver<Copy>,
    again: Option<mpsc::UnboundedSender<Copy>>,
) {
    let pause = if again.is_some() { COPY_AFTER } else { SECOND_COPY_AFTER };
    while let Some(copy) = copies.recv().await {
        tokio::time::sleep_until((copy.sent_at + pause).into()).await;
        let Some(socket) = socket.upgrade() else { return };
        let peer = canonical(copy.destination);
        if again.is_none() && !socket.shared.plan.lock().is_silent(peer, copy.sent_at) {
            socket.shared.waiting.fetch_sub(1, Relaxed);
            continue;
        }
        let allowed = || socket.shared.plan.lock().may_copy(peer, copy.contents.len());
        if !socket.server || !copy.handshake || allowed() {
            let sent = socket.inner.try_send(&Transmit {
                destination: copy.destination,
                ecn: copy.ecn,
                contents: &copy.contents,
                segment_size: None,
                src_ip: copy.src_ip,
            });
            // A full socket has more urgent things to send.
            socket.shared.copied.fetch_add(sent.is_ok().into(), Relaxed);
        }
        // A server has answered by then, or never will: its peer's copies make it answer again.
        match again.as_ref().filter(|_| copy.handshake && !socket.server) {
            Some(again) if again.send(copy).is_ok() => {}
            _ => {
                socket.shared.waiting.fetch_sub(1, Relaxed);
            }
        }
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)?;
        self.sent(transmit);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let result = self.inner.poll_recv(cx, bufs, metas);
        if let Poll::Ready(Ok(count)) = result {
            self.received(&bufs[..count], &metas[..count]);
        }
        result
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("inner", &self.inner).field("server", &self.server).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u16) -> SocketAddr {
        ([192, 0, 2, 1], n).into()
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_handshake_goes_twice() {
        let mut plan = Plan::default();
        assert!(plan.sent(peer(1), true, 1200, Instant::now()));
    }

    #[test]
    fn a_server_never_sends_more_than_three_times_what_came() {
        let (mut plan, now) = (Plan::default(), Instant::now());
        plan.received(peer(1), true, 1200, now);
        assert!(plan.sent(peer(1), true, 2400, now + MS));
        assert!(plan.may_copy(peer(1), 1200));
        assert!(!plan.may_copy(peer(1), 1), "3600 bytes are out");
        plan.received(peer(1), true, 1200, now + MS);
        assert!(plan.may_copy(peer(1), 1200));
        plan.received(peer(1), false, 50, now + MS * 20);
        plan.sent(peer(1), false, 1_000_000, now + MS * 30);
        plan.received(peer(1), true, 1200, now + MS * 40);
        assert!(plan.may_copy(peer(1), 1200), "a connection says nothing about the next one");
        assert!(plan.sent(peer(2), true, 1, now) && !plan.may_copy(peer(2), 1), "nothing came from it");
    }

    #[test]
    fn only_an_answer_to_the_handshake_ends_the_silence() {
        let (mut plan, now) = (Plan::default(), Instant::now());
        plan.sent(peer(1), true, 1200, now);
        plan.received(peer(1), false, 100, now + MS);
        assert!(plan.is_silent(peer(1), now), "of an earlier connection");
        plan.received(peer(1), true, 1200, now + MS * 2);
        assert!(!plan.is_silent(peer(1), now) && plan.is_silent(peer(1), now + MS * 3));
    }

    #[test]
    fn a_request_goes_twice_and_what_follows_does_not() {
        let (mut plan, now) = (Plan::default(), Instant::now());
        assert!(!plan.sent(peer(1), false, 100, now));
        plan.mark(peer(1), now);
        assert!(plan.sent(peer(1), false, 100, now + MS));
        assert!(!plan.sent(peer(2), false, 100, now + MS), "another peer's");
        assert!(!plan.sent(peer(1), false, 100, now + REQUEST_TIME));
        plan.mark(peer(1), now);
        let twice = (0..100).filter(|_| plan.sent(peer(1), false, 1200, now)).count();
        assert_eq!(twice, MAX_REQUEST_PACKETS as usize, "a long prompt is no first packet");
    }

    #[test]
    fn what_is_known_of_peers_is_bounded_and_forgotten() {
        let (mut plan, now) = (Plan::default(), Instant::now());
        for n in 0..u16::MAX {
            plan.received(peer(n), true, 1200, now);
        }
        assert_eq!(plan.peers.len(), MAX_PEERS);
        plan.received(peer(u16::MAX), true, 1200, now + HANDSHAKE_TIME);
        assert_eq!(plan.peers.len(), 1);
    }
}
