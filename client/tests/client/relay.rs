//! Paths that a test can break: for UDP packets, in one direction or both, and for a TCP connection.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::watch,
    task::JoinHandle,
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
        let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let rear = UdpSocket::bind("127.0.0.1:0").await.unwrap();
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
                            rear.send_to(&up[..len], server).await.ok();
                        }
                    }
                    Ok((len, _)) = rear.recv_from(&mut down) => {
                        if let Some(client) = client.filter(|_| flags.1.load(SeqCst)) {
                            front.send_to(&down[..len], client).await.ok();
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
