//! Peers that mean harm: each port goes on serving others while they try, and has everything back afterwards.
//!
//! Limits are short here, through [`PortLimits`]; nothing asserts how long anything took.
#![allow(clippy::unwrap_used)]

mod connections;
mod floods;
mod garbage;
mod quic;
mod raw;
mod readers;
mod requests;
#[path = "../support/mod.rs"]
mod support;

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use axum::{body::Body, routing};
use bytes::Bytes;
use futures_util::stream;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Mutex, MutexGuard},
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Status, client::Grpc, service::Routes, transport::Endpoint};
use tower::{ServiceExt as _, util::BoxCloneSyncService};

use support::{
    HANG,
    echo::{Client, Echo, Probe, blob, unary},
    eventually, tls,
};
use titan_transport::{Cut, Plaintext, PortLimits, TcpConfig, Traffic, serve_tcp_within, tls::HttpTls};

/// Short enough to wait for, long enough for a normal request on a machine that is busy with an attack.
const SHORT: Duration = Duration::from_secs(3);

/// As many as the issue is about.
const MANY: usize = 1000;

fn short() -> PortLimits {
    PortLimits { first_request: SHORT, request: SHORT, write: SHORT, ..PortLimits::default() }
}

/// A TCP port that somebody attacks.
struct Port {
    addr: SocketAddr,
    traffic: Arc<Traffic>,
    probe: Arc<Probe>,
    _serving: DropGuard,
}

impl Port {
    async fn new(limits: PortLimits) -> Self {
        titan_transport::raise_open_files().unwrap();
        let (traffic, probe) = (Arc::new(Traffic::default()), Arc::new(Probe::default()));
        let router = Routes::new(Echo(probe.clone()))
            .into_axum_router()
            .route("/hello", routing::get(async || "hello"))
            .route("/length", routing::post(async |body: String| body.len().to_string()))
            .route("/endless", routing::get(endless));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let config = TcpConfig {
            tls: Some(HttpTls::new(tls::server(), None).unwrap()),
            plaintext: Plaintext::LoopbackOnly,
            traffic: traffic.clone(),
        };
        let shutdown = CancellationToken::new();
        tokio::spawn(serve_tcp_within(listener, router, config, limits, shutdown.clone()));
        Self { addr, traffic, probe, _serving: shutdown.drop_guard() }
    }

    async fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    async fn connect_many(&self, count: usize) -> Vec<TcpStream> {
        let mut streams = Vec::new();
        for _ in 0..count {
            streams.push(self.connect().await);
        }
        streams
    }

    fn client(&self) -> Client {
        let channel = Endpoint::try_from(format!("http://{}", self.addr)).unwrap().connect_lazy();
        Grpc::new(BoxCloneSyncService::new(channel.map_err(|error| Status::from_error(Box::new(error)))))
    }

    /// What somebody gets who means no harm.
    async fn serves_others(&self) {
        let answer = timeout(HANG, unary(self.client(), blob("", 7))).await.expect("the port is blocked").unwrap();
        assert_eq!(answer.into_inner().n, 7);
    }

    /// Nothing is left of the attack.
    async fn has_everything_back(&self) {
        eventually("every connection is closed", || self.traffic.open() == 0).await;
        eventually("every handler has ended", || self.probe.started.load(SeqCst) == self.probe.ended.load(SeqCst))
            .await;
        self.serves_others().await;
    }

    async fn cuts(&self, why: Cut, count: usize) {
        eventually(&format!("{count} cut off for {why:?}"), || self.traffic.cut(why) >= count as u64).await;
        assert_eq!(self.traffic.cut(why), count as u64, "{why:?}");
    }
}

async fn endless() -> Body {
    let piece = Bytes::from(vec![b'x'; 64 << 10]);
    Body::from_stream(stream::repeat_with(move || Ok::<_, Infallible>(piece.clone())))
}

/// Tests with a thousand connections run one after the other: a process may not have files for all of them.
async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    ALONE.lock().await
}
