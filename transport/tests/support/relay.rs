//! A UDP path between one client and one server: packets are delayed, lost, doubled, held back, and may come from another address.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{net::UdpSocket, task::AbortHandle};

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
            tasks: Mutex::default(),
        };
        let (current, client, packets) = (relay.outside.clone(), relay.client.clone(), relay.packets.clone());
        let task = tokio::spawn(async move {
            let (mut random, mut buffer) = (StdRng::seed_from_u64(seed), [0; 2048]);
            // A peer that is gone makes the socket report an error, and says nothing of the next packet.
            loop {
                let Ok((len, from)) = inside.recv_from(&mut buffer).await else { continue };
                *client.lock() = Some(from);
                packets.fetch_add(1, SeqCst);
                pass(path, &mut random, &current.lock().clone(), &buffer[..len], server);
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

    fn listen(&self, outside: Arc<UdpSocket>, seed: u64) {
        let (inside, client, path, packets) =
            (self.inside.clone(), self.client.clone(), self.path, self.packets.clone());
        let task = tokio::spawn(async move {
            let (mut random, mut buffer) = (StdRng::seed_from_u64(seed), [0; 2048]);
            loop {
                let Ok(len) = outside.recv(&mut buffer).await else { continue };
                packets.fetch_add(1, SeqCst);
                let to = *client.lock();
                if let Some(to) = to {
                    pass(path, &mut random, &inside, &buffer[..len], to);
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

fn pass(path: Path, random: &mut StdRng, socket: &Arc<UdpSocket>, packet: &[u8], to: SocketAddr) {
    let mut happens = |of_thousand: u32| random.random_range(0..1000) < of_thousand;
    let (lost, doubled, late) = (happens(path.lost), happens(path.doubled), happens(path.late));
    for _ in 0..if lost { 0 } else { 1 + u32::from(doubled) } {
        let (socket, packet) = (socket.clone(), packet.to_vec());
        let delay = path.delay * (1 + u32::from(late));
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let _ = socket.send_to(&packet, to).await;
        });
    }
}
