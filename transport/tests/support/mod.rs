//! A gRPC service with all four kinds of call, and servers of it on three transports.
#![allow(clippy::unwrap_used, dead_code, missing_docs, unreachable_pub, reason = "shared by several test programs")]

pub mod echo;
pub mod relay;
pub mod tls;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use echo::{Echo, Probe};
use http::{Request, Response};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    body::Body,
    client::Grpc,
    service::Routes,
    transport::{Endpoint, Server, server::TcpIncoming},
};
use tower::{ServiceExt as _, util::BoxCloneSyncService};

use titan_transport::{
    Plaintext, QuicChannel, QuicConnector, QuicListener, QuicServerConfig, TcpConfig, serve_quic, serve_tcp,
};

pub type Channel = BoxCloneSyncService<Request<Body>, Response<Body>, Status>;

/// Long enough for a loaded machine; only a test that hangs reaches it.
pub const HANG: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wire {
    /// tonic's server, tonic's channel.
    Http2,
    /// `serve_tcp`, tonic's channel.
    Tcp,
    /// `serve_quic`, `QuicChannel`.
    Quic,
}

/// A running server of [`Echo`] and a channel to it.
pub struct Env {
    pub wire: Wire,
    pub addr: SocketAddr,
    pub channel: Channel,
    pub quic: Option<QuicChannel>,
    /// Of `quic`.
    pub connector: Option<QuicConnector>,
    pub probe: Arc<Probe>,
    pub shutdown: CancellationToken,
    pub server: tokio::task::JoinHandle<()>,
}

impl Env {
    pub async fn new(wire: Wire) -> Self {
        Self::at(wire, (std::net::Ipv4Addr::LOCALHOST, 0).into()).await
    }

    pub async fn at(wire: Wire, addr: SocketAddr) -> Self {
        let probe = Arc::new(Probe::default());
        let (addr, shutdown, server) = serve(wire, addr, Routes::new(Echo(probe.clone()))).await;
        let connector = (wire == Wire::Quic).then(|| QuicConnector::new(tls::client()).unwrap());
        let quic = connector.as_ref().map(|connector| connector.channel(addr.to_string(), tls::SERVER_NAME));
        let channel = quic.clone().map_or_else(|| channel(wire, addr), BoxCloneSyncService::new);
        Self { wire, addr, channel, quic, connector, probe, shutdown, server }
    }

    pub fn client(&self) -> Grpc<Channel> {
        Grpc::new(self.channel.clone()).max_decoding_message_size(16 << 20)
    }
}

impl Drop for Env {
    fn drop(&mut self) {
        self.server.abort();
    }
}

pub async fn serve(
    wire: Wire,
    addr: SocketAddr,
    routes: Routes,
) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    if wire == Wire::Quic {
        let material = tls::server();
        // A port that was served a moment ago is free when the last connection to it has drained.
        let mut listener = QuicListener::bind(addr, material.quic_server_config().unwrap());
        for _ in 0..500 {
            if listener.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            listener = QuicListener::bind(addr, material.quic_server_config().unwrap());
        }
        let listener = listener.unwrap();
        let addr = listener.local_addr().unwrap();
        let config = QuicServerConfig::new(material).unwrap();
        return (addr, shutdown, tokio::spawn(serve_quic(listener, routes, config, stop)));
    }
    let listener = TcpListener::bind(addr).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = if wire == Wire::Http2 {
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        tokio::spawn(async move {
            let server = Server::builder().add_routes(routes);
            server.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await.unwrap();
        })
    } else {
        let config = TcpConfig { tls: None, plaintext: Plaintext::LoopbackOnly, traffic: Arc::default() };
        tokio::spawn(async move { serve_tcp(listener, routes.into_axum_router(), config, stop).await.unwrap() })
    };
    (addr, shutdown, server)
}

pub fn channel(wire: Wire, addr: SocketAddr) -> Channel {
    if wire == Wire::Quic {
        let connector = QuicConnector::new(tls::client()).unwrap();
        return BoxCloneSyncService::new(connector.channel(addr.to_string(), tls::SERVER_NAME));
    }
    let channel = Endpoint::try_from(format!("http://{addr}")).unwrap().connect_lazy();
    BoxCloneSyncService::new(channel.map_err(|error| Status::from_error(Box::new(error))))
}

/// Waits for the session tickets, which come after the handshake.
pub async fn sessions(connector: &QuicConnector) {
    let wait = async { while !connector.sessions_arrive().await {} };
    tokio::time::timeout(HANG, wait).await.expect("no session comes");
}

/// Waits until `condition` holds. Only a test that hangs fails here.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    tokio::time::timeout(HANG, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("never: {what}"));
}
