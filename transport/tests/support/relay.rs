//! A UDP path between one client and one server: packets are delayed, lost, doubled, held back, and may come from another address.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    net::UdpSocket,
    sync::mpsc::{self, UnboundedSender},
    task::AbortHandle,
    time::{Instant, sleep_until},
};

/// What happens to packets, the same in both directions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Path {
    pub delay: Duration,
    /// Of a thousand.
    pub lost: u32,
    /// Of a thousand.
    pub doubled: u32,
    /// Of a thousand; they are held back for as long as the delay.
    pub late: u32,
}

/// A path that works as long as this lives.
pub struct Relay {
    pub addr: SocketAddr,
    server: SocketAddr,
    path: Path,
    outside: Arc<Mutex<Arc<UdpSocket>>>,
    client: Arc<Mutex<Option<SocketAddr>>>,
    inside: Arc<UdpSocket>,
    pub packets: Arc<AtomicU64>,
    /// The packets to lose, counted from when this was set: of those to the server, of those to the client.
    chosen: Arc<Mutex<[Chosen; 2]>>,
    /// Everything is lost.
    silent: Arc<AtomicBool>,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Relay {
    pub async fn new(server: SocketAddr, path: Path, seed: u64) -> Self {
        let inside = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
        let outside = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
        let relay = Self {
            addr: inside.local_addr().unwrap(),
            server,
            path,
            outside: Arc::new(Mutex::new(outside.clone())),
            client: Arc::default(),
            inside: inside.clone(),
            packets: Arc::default(),
            silent: Arc::default(),
            chosen: Arc::default(),
            tasks: Mutex::default(),
        };
        let (current, client, packets) = (relay.outside.clone(), relay.client.clone(), relay.packets.clone());
        let (silent, chosen) = (relay.silent.clone(), relay.chosen.clone());
        let task = tokio::spawn(async move {
            let (mut random, mut buffer, sender) = (StdRng::seed_from_u64(seed), [0; 2048], in_order());
            // A peer that is gone makes the socket report an error, and says nothing of the next packet.
            loop {
                let Ok((len, from)) = inside.recv_from(&mut buffer).await else { continue };
                *client.lock() = Some(from);
                if silent.load(SeqCst) || chosen.lock()[0].loses() {
                    continue;
                }
                packets.fetch_add(1, SeqCst);
                let socket = current.lock().clone();
                pass(path, &mut random, &sender, &socket, &buffer[..len], server);
            }
        });
        relay.tasks.lock().push(task.abort_handle());
        relay.listen(outside, !seed);
        relay
    }

    /// The client's packets come from another port from now on, and what is sent to the old one is lost: a NAT that forgot.
    pub async fn move_client(&self) {
        let outside = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
        *self.outside.lock() = outside.clone();
        if let Some(old) = self.tasks.lock().pop() {
            old.abort();
        }
        self.listen(outside, 7);
    }

    /// Loses one packet in a direction, the first being 0.
    pub fn lose(&self, to_client: bool, number: u64) {
        let mut chosen = self.chosen.lock();
        *chosen = Default::default();
        chosen[usize::from(to_client)].lose = Some(number);
    }

    /// Waits until no packet has come for two round trips of this path.
    pub async fn quiet(&self) {
        loop {
            let before = self.packets.load(SeqCst);
            tokio::time::sleep(self.path.delay * 4).await;
            if self.packets.load(SeqCst) == before {
                return;
            }
        }
    }

    /// Whether everything is lost from now on.
    pub fn silent(&self, silent: bool) {
        self.silent.store(silent, SeqCst);
    }

    fn listen(&self, outside: Arc<UdpSocket>, seed: u64) {
        let (inside, client, path, packets) =
            (self.inside.clone(), self.client.clone(), self.path, self.packets.clone());
        let (silent, chosen) = (self.silent.clone(), self.chosen.clone());
        let task = tokio::spawn(async move {
            let (mut random, mut buffer, sender) = (StdRng::seed_from_u64(seed), [0; 2048], in_order());
            loop {
                let Ok(len) = outside.recv(&mut buffer).await else { continue };
                packets.fetch_add(1, SeqCst);
                let to = *client.lock();
                if let Some(to) = to.filter(|_| !silent.load(SeqCst) && !chosen.lock()[1].loses()) {
                    pass(path, &mut random, &sender, &inside, &buffer[..len], to);
                }
            }
        });
        self.tasks.lock().push(task.abort_handle());
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.tasks.lock().drain(..).for_each(|task| task.abort());
    }
}

#[derive(Debug, Default)]
struct Chosen {
    seen: u64,
    lose: Option<u64>,
}

impl Chosen {
    fn loses(&mut self) -> bool {
        self.seen += 1;
        self.lose == Some(self.seen - 1)
    }
}

/// A packet on its way.
struct OnTheWay {
    arrives: Instant,
    socket: Arc<UdpSocket>,
    packet: Vec<u8>,
    to: SocketAddr,
}

impl OnTheWay {
    async fn arrive(self) {
        sleep_until(self.arrives).await;
        let _ = self.socket.send_to(&self.packet, self.to).await;
    }
}

/// A direction in which nothing overtakes.
fn in_order() -> UnboundedSender<OnTheWay> {
    let (sender, mut packets) = mpsc::unbounded_channel::<OnTheWay>();
    tokio::spawn(async move {
        while let Some(packet) = packets.recv().await {
            packet.arrive().await;
        }
    });
    sender
}

fn pass(
    path: Path,
    random: &mut StdRng,
    sender: &UnboundedSender<OnTheWay>,
    socket: &Arc<UdpSocket>,
    packet: &[u8],
    to: SocketAddr,
) {
    let mut happens = |of_thousand: u32| random.random_range(0..1000) < of_thousand;
    let (lost, doubled, late) = (happens(path.lost), happens(path.doubled), happens(path.late));
    for _ in 0..if lost { 0 } else { 1 + u32::from(doubled) } {
        let arrives = Instant::now() + path.delay * (1 + u32::from(late));
        let packet = OnTheWay { arrives, socket: socket.clone(), packet: packet.to_vec(), to };
        if late {
            tokio::spawn(packet.arrive());
        } else {
            let _ = sender.send(packet);
        }
    }
}
