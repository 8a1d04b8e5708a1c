//! Paths that a test can break: for UDP packets, in one direction or both, and for a TCP connection.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{
        mpsc::{self, UnboundedSender},
        watch,
    },
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// Passes packets of one client on to a server.
pub(crate) struct Relay {
    pub(crate) addr: SocketAddr,
    forward: Arc<AtomicBool>,
    back: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Relay {
    /// A path to `server` that works.
    pub(crate) async fn to(server: SocketAddr) -> Self {
        Self::with_delay(server, Duration::ZERO).await
    }

    /// A path that is longer than the pauses of a busy machine, so that what is sent before the handshake is complete is sent before it:
    /// over loopback a handshake takes no time. It is shorter than what QUIC is given before gRPC is tried.
    pub(crate) async fn far(server: SocketAddr) -> Self {
        Self::with_delay(server, Duration::from_millis(50)).await
    }

    async fn with_delay(server: SocketAddr, delay: Duration) -> Self {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let rear = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let (to_server, to_client) = (delayed(rear.clone(), delay), delayed(front.clone(), delay));
        let addr = front.local_addr().unwrap();
        let (forward, back) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
        let flags = (forward.clone(), back.clone());
        let task = tokio::spawn(async move {
            let (mut client, mut up, mut down) = (None, [0; 2048], [0; 2048]);
            loop {
                tokio::select! {
                    Ok((len, from)) = front.recv_from(&mut up) => {
                        client = Some(from);
                        if flags.0.load(SeqCst) {
                            to_server.send((Instant::now(), up[..len].to_vec(), server)).ok();
                        }
                    }
                    Ok((len, _)) = rear.recv_from(&mut down) => {
                        if let Some(client) = client.filter(|_| flags.1.load(SeqCst)) {
                            to_client.send((Instant::now(), down[..len].to_vec(), client)).ok();
                        }
                    }
                }
            }
        });
        Self { addr, forward, back, task }
    }

    /// Which packets pass: those to the server, those from it.
    pub(crate) fn pass(&self, forward: bool, back: bool) {
        self.forward.store(forward, SeqCst);
        self.back.store(back, SeqCst);
    }
}

/// Sends packets in their order, each `delay` after it came. Ends with what brings them.
fn delayed(socket: Arc<UdpSocket>, delay: Duration) -> UnboundedSender<(Instant, Vec<u8>, SocketAddr)> {
    let (sender, mut packets) = mpsc::unbounded_channel::<(Instant, Vec<u8>, SocketAddr)>();
    tokio::spawn(async move {
        while let Some((came, packet, to)) = packets.recv().await {
            if !delay.is_zero() {
                sleep_until(came + delay).await;
            }
            socket.send_to(&packet, to).await.ok();
        }
    });
    sender
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Passes TCP connections on to a server.
pub(crate) struct Cable {
    pub(crate) addr: SocketAddr,
    cuts: watch::Sender<()>,
    task: JoinHandle<()>,
}

impl Cable {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (cuts, cut) = watch::channel(());
        let task = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut cut = cut.clone();
                cut.mark_unchanged();
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(server).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self { addr, cuts, task }
    }

    /// Ends the connections that there are.
    pub(crate) fn cut(&self) {
        self.cuts.send_replace(());
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.task.abort();
    }
}
