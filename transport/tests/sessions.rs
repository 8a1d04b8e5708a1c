//! Sessions on disk: what an earlier process leaves, and a later one starts with. A connector of its own stands for a process.
#![allow(clippy::unwrap_used)]
#![cfg(all(unix, feature = "stored-sessions"))]

mod support;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{Arc, atomic::Ordering::SeqCst},
};

use time::ext::NumericalDuration as _;
use tokio_util::sync::CancellationToken;
use tonic::{Request, client::Grpc, service::Routes};
use tower::util::BoxCloneSyncService;

use support::{
    HANG,
    echo::{Blob, Echo, Probe, blob, unary},
    eventually,
    relay::{self, Relay},
    tls,
};
use titan_transport::{
    ChannelStats, EarlyDataSafe, QuicConnector, QuicListener, QuicOptions, QuicServerConfig, serve_quic,
    tls::TlsMaterial,
};

/// A server with a certificate of its own.
struct Server {
    addr: SocketAddr,
    probe: Arc<Probe>,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn new() -> Self {
        Self::at((Ipv4Addr::LOCALHOST, 0).into()).await
    }

    async fn at(addr: SocketAddr) -> Self {
        let material = tls::ca().leaf(tls::SERVER_NAME, 1.hours());
        let probe = Arc::new(Probe::default());
        let listener = QuicListener::bind(addr, material.quic_server_config().unwrap()).unwrap();
        let (addr, config) = (listener.local_addr().unwrap(), QuicServerConfig::new(&material).unwrap());
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(serve_quic(listener, Routes::new(Echo(probe.clone())), config, shutdown.clone()));
        Self { addr, probe, shutdown, task }
    }

    /// Another process at the same address: it has forgotten all sessions, and has a new certificate.
    async fn restart(self) -> Self {
        self.shutdown.cancel();
        eventually("the server stops", || self.task.is_finished()).await;
        // The socket is free a moment after.
        for _ in 0..500 {
            if std::net::UdpSocket::bind(self.addr).is_ok() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        Self::at(self.addr).await
    }

    /// One process: connects, makes a call that may be early data, and ends at once.
    async fn visit(&self, dir: &Path) -> ChannelStats {
        self.visit_as(tls::client(), QuicOptions::default(), dir).await
    }

    async fn visit_as(&self, material: &TlsMaterial, options: QuicOptions, dir: &Path) -> ChannelStats {
        let connector = QuicConnector::with_sessions(material, options, dir).unwrap();
        let channel = connector.channel(self.addr.to_string(), tls::SERVER_NAME);
        let calls = self.probe.started.load(SeqCst);
        let answer = unary(Grpc::new(BoxCloneSyncService::new(channel.clone())), early(blob("", 7))).await.unwrap();
        assert_eq!(answer.into_inner().n, 7);
        assert!(self.probe.started.load(SeqCst) > calls);
        assert!(connector.known_rtt(tls::SERVER_NAME).is_some());
        saved(&connector).await;
        connector.close().await;
        channel.stats()
    }
}

fn early(blob: Blob) -> Request<Blob> {
    let mut request = Request::new(blob);
    request.extensions_mut().insert(EarlyDataSafe);
    request
}

/// Waits until the sessions have come and are on disk.
async fn saved(connector: &QuicConnector) {
    let wait = async { while !connector.save_sessions().await {} };
    tokio::time::timeout(HANG, wait).await.expect("the sessions do not come, or cannot be saved");
}

fn files(dir: &Path) -> usize {
    fs::read_dir(dir)
        .map_or(0, |entries| entries.filter(|entry| ends_in_session(&entry.as_ref().unwrap().path())).count())
}

fn ends_in_session(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "session")
}

#[tokio::test]
async fn a_new_process_starts_with_early_data_and_every_one_leaves_a_session_for_the_next() {
    let (mut server, dir) = (Server::new().await, tempfile::tempdir().unwrap());
    // Far enough away that a busy machine cannot complete the handshake before the call is sent, as loopback would.
    let far = relay::Path { delay: std::time::Duration::from_millis(150), ..relay::Path::default() };
    let relay = Relay::new(server.addr, far, 1).await;
    server.addr = relay.addr;
    let first = server.visit(dir.path()).await;
    assert_eq!((first.full_handshakes, first.stored_sessions), (1, 0));
    // More often than a server gives sessions to one connection. The answers are over before the handshake's last packet has arrived.
    for _ in 0..6 {
        let next = server.visit(dir.path()).await;
        assert_eq!((next.full_handshakes, next.early_data_accepted, next.stored_sessions), (0, 1, 1));
        let peer = server.probe.peer.lock().clone().unwrap();
        assert!(peer.early_data.is_some());
        assert_eq!(peer.certificate.as_ref(), tls::client().chain.first(), "the session carries the certificate");
    }
    assert_eq!(files(dir.path()), 1);
    for entry in fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().mode() & 0o777, 0o600, "{:?}", entry.path());
    }
}

#[tokio::test]
async fn a_server_that_has_forgotten_the_session_and_has_a_new_certificate_answers_all_the_same() {
    let (server, dir) = (Server::new().await, tempfile::tempdir().unwrap());
    server.visit(dir.path()).await;
    let server = server.restart().await;
    let refused = server.visit(dir.path()).await;
    assert_eq!((refused.early_data_rejected, refused.full_handshakes, refused.stored_sessions), (1, 1, 0));
    assert_eq!(server.probe.started.load(SeqCst), 1, "refused early data reaches no handler");
    // What it gives is used before what it has forgotten.
    assert_eq!(server.visit(dir.path()).await.stored_sessions, 1);
}

#[tokio::test]
async fn a_session_is_for_the_certificate_that_it_began_with() {
    let (server, dir) = (Server::new().await, tempfile::tempdir().unwrap());
    server.visit(dir.path()).await;
    let other = tls::ca().leaf("other.test", 1.hours());
    let stats = server.visit_as(&other, QuicOptions::default(), dir.path()).await;
    assert_eq!((stats.full_handshakes, stats.early_data_accepted), (1, 0));
    assert_eq!(server.probe.peer.lock().clone().unwrap().certificate.as_ref(), other.chain.first());
    assert_eq!(files(dir.path()), 2);
    let post_quantum = QuicOptions { post_quantum: true, ..QuicOptions::default() };
    let stats = server.visit_as(tls::client(), post_quantum, dir.path()).await;
    assert_eq!(stats.full_handshakes, 1, "early data is only as safe as the handshake that its session came from");
    assert_eq!(server.visit_as(tls::client(), post_quantum, dir.path()).await.stored_sessions, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn processes_at_the_same_time_never_send_the_same_session() {
    let (server, dir) = (Arc::new(Server::new().await), Arc::new(tempfile::tempdir().unwrap()));
    server.visit(dir.path()).await;
    for _ in 0..3 {
        let visits = (0..8).map(|_| {
            let (server, dir) = (server.clone(), dir.clone());
            tokio::spawn(async move { server.visit(dir.path()).await })
        });
        let stats = futures_util::future::join_all(visits).await.into_iter().map(Result::unwrap);
        let (mut resumed, mut refused) = (0, 0);
        for stats in stats {
            resumed += stats.stored_sessions;
            refused += stats.early_data_rejected;
        }
        // A server takes each session once: it would refuse the second use.
        assert_eq!(refused, 0);
        assert!(resumed > 0);
    }
}

#[tokio::test]
async fn a_session_is_not_taken_from_a_damaged_file() {
    let (server, dir) = (Server::new().await, tempfile::tempdir().unwrap());
    server.visit(dir.path()).await;
    let file = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).find(|path| ends_in_session(path));
    let file = file.unwrap();
    let mut content = fs::read(&file).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(&file, content).unwrap();
    let stats = server.visit(dir.path()).await;
    assert_eq!((stats.full_handshakes, stats.early_data_accepted, stats.early_data_rejected), (1, 0, 0));
    assert_eq!(server.visit(dir.path()).await.stored_sessions, 1, "it was replaced");
}

#[tokio::test]
async fn without_a_directory_that_works_sessions_live_in_memory() {
    let (server, temp) = (Server::new().await, tempfile::tempdir().unwrap());
    let file = temp.path().join("file");
    fs::write(&file, "").unwrap();
    let connector = QuicConnector::with_sessions(tls::client(), QuicOptions::default(), &file.join("dir")).unwrap();
    let channel = connector.channel(server.addr.to_string(), tls::SERVER_NAME);
    for _ in 0..3 {
        unary(Grpc::new(BoxCloneSyncService::new(channel.clone())), early(blob("", 0))).await.unwrap();
        saved(&connector).await;
        channel.disconnect();
    }
    let stats = channel.stats();
    assert_eq!((stats.full_handshakes, stats.early_data_accepted, stats.stored_sessions), (1, 2, 0));
}

#[tokio::test]
async fn one_process_can_reconnect_as_often_as_it_likes() {
    let (server, dir) = (Server::new().await, tempfile::tempdir().unwrap());
    let connector = QuicConnector::with_sessions(tls::client(), QuicOptions::default(), dir.path()).unwrap();
    let channel = connector.channel(server.addr.to_string(), tls::SERVER_NAME);
    for _ in 0..12 {
        unary(Grpc::new(BoxCloneSyncService::new(channel.clone())), early(blob("", 0))).await.unwrap();
        saved(&connector).await;
        channel.disconnect();
    }
    let stats = channel.stats();
    assert_eq!((stats.full_handshakes, stats.early_data_accepted, stats.early_data_rejected), (1, 11, 0));
}

/// A name with several addresses: the one that answered is tried first, with early data, also by the next process.
#[tokio::test]
async fn the_address_that_answered_is_remembered() {
    let (server, dir) = (Server::new().await, tempfile::tempdir().unwrap());
    let visit = async || {
        let connector = QuicConnector::with_sessions(tls::client(), QuicOptions::default(), dir.path()).unwrap();
        let channel = connector.channel(format!("localhost:{}", server.addr.port()), tls::SERVER_NAME);
        unary(Grpc::new(BoxCloneSyncService::new(channel.clone())), early(blob("", 0))).await.unwrap();
        saved(&connector).await;
        connector.close().await;
        channel.stats()
    };
    assert_eq!(visit().await.full_handshakes, 1);
    assert_eq!(visit().await.stored_sessions, 1);
    assert_eq!(visit().await.stored_sessions, 1);
}

/// PROTOCOL.md §2.6: a client that was here before has proven its address.
#[tokio::test]
async fn a_new_process_has_an_address_token() {
    let dir = tempfile::tempdir().unwrap();
    let config = tls::server().quic_server_config().unwrap();
    let endpoint = quinn::Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let addr = endpoint.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let mut validated = Vec::new();
        for _ in 0..3 {
            let incoming = endpoint.accept().await.unwrap();
            validated.push(incoming.remote_address_validated());
            incoming.await.unwrap().closed().await;
        }
        validated
    });
    for _ in 0..3 {
        let connector = QuicConnector::with_sessions(tls::client(), QuicOptions::default(), dir.path()).unwrap();
        connector.channel(addr.to_string(), tls::SERVER_NAME).connect().await.unwrap();
        saved(&connector).await;
        connector.close().await;
    }
    assert_eq!(server.await.unwrap(), [false, true, true]);
}
