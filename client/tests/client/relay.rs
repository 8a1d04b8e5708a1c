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
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
    sync::{
        mpsc::{self, UnboundedSender},
        watch,
    },
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

use titan_certs::agent_server_name;
use titan_proto::{
    ALPN,
    rest::{Endpoints, GrpcEndpoint, GrpcTls, QuicEndpoint},
};

use crate::coordinator::Place;

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
        Self::with(server, Duration::ZERO, usize::MAX).await
    }

    /// A path by satellite: a round trip of 600 ms, and one packet in eight is lost in each direction.
    pub(crate) async fn satellite(server: SocketAddr) -> Self {
        Self::with(server, Duration::from_millis(300), 8).await
    }

    /// A path that is longer than the pauses of a busy machine, so that what is sent before the handshake is complete is sent before it:
    /// over loopback a handshake takes no time. It is shorter than what QUIC is given before gRPC is tried.
    pub(crate) async fn far(server: SocketAddr) -> Self {
        Self::with(server, Duration::from_millis(50), usize::MAX).await
    }

    /// Of so many packets one is lost.
    async fn with(server: SocketAddr, delay: Duration, loses_one_in: usize) -> Self {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let rear = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let (to_server, to_client) = (delayed(rear.clone(), delay), delayed(front.clone(), delay));
        let addr = front.local_addr().unwrap();
        let (forward, back) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
        let flags = (forward.clone(), back.clone());
        let task = tokio::spawn(async move {
            let (mut client, mut up, mut down) = (None, [0; 2048], [0; 2048]);
            let (mut sent, mut sent_back) = (0, 0);
            loop {
                tokio::select! {
                    Ok((len, from)) = front.recv_from(&mut up) => {
                        client = Some(from);
                        sent += 1;
                        if flags.0.load(SeqCst) && sent % loses_one_in != 0 {
                            to_server.send((Instant::now(), up[..len].to_vec(), server)).ok();
                        }
                    }
                    Ok((len, _)) = rear.recv_from(&mut down) => {
                        sent_back += 1;
                        if let Some(client) = client.filter(|_| flags.1.load(SeqCst) && sent_back % loses_one_in != 0) {
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
    frozen: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Cable {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (cuts, cut) = watch::channel(());
        let (frozen, freezes) = watch::channel(false);
        let task = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (mut cut, mut freezes) = (cut.clone(), freezes.clone());
                cut.mark_unchanged();
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(server).await.unwrap();
                    tokio::select! {
                        // What is sent after it has frozen finds it frozen.
                        biased;
                        _ = freezes.wait_for(|frozen| *frozen) => {}
                        _ = cut.changed() => return,
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                    }
                    cut.changed().await.ok();
                });
            }
        });
        Self { addr, cuts, frozen, task }
    }

    /// Lets nothing pass any more, on connections that stay.
    pub(crate) fn freeze(&self) {
        self.frozen.send_replace(true);
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

/// A machine that is switched off: it swallows what is sent to it, over TCP and UDP.
pub(crate) struct DeadHost {
    pub(crate) tcp: SocketAddr,
    pub(crate) udp: SocketAddr,
    _listener: TcpListener,
    _waiting: Vec<TcpStream>,
    _socket: UdpSocket,
}

impl DeadHost {
    pub(crate) async fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(0).unwrap();
        let tcp = listener.local_addr().unwrap();
        // Whatever comes to a full queue is dropped, without a word.
        let mut waiting = Vec::new();
        while let Ok(connected) = timeout(Duration::from_millis(200), TcpStream::connect(tcp)).await {
            waiting.push(connected.unwrap());
            assert!(waiting.len() < 100, "the queue does not fill");
        }
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        Self { tcp, udp: socket.local_addr().unwrap(), _listener: listener, _waiting: waiting, _socket: socket }
    }

    /// As the coordinator names it that has not noticed yet.
    pub(crate) fn place(&self, id: &str) -> Place {
        let quic =
            QuicEndpoint { address: self.udp.to_string(), alpn: ALPN.to_owned(), server_name: agent_server_name(id) };
        let grpc = GrpcEndpoint { address: self.tcp.to_string(), tls: GrpcTls::None };
        let endpoints = Endpoints { grpc: Some(grpc), quic: Some(quic) };
        Place { agent_id: id.to_owned(), endpoints, model_digest: None }
    }
}
