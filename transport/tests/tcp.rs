//! What only the TCP side does: TLS and plain text on one port, HTTP/1.1 beside HTTP/2, connections that say nothing.
#![allow(clippy::unwrap_used)]

mod support;

use std::{io, net::SocketAddr, time::Duration};

use rustls_pki_types::{CertificateDer, ServerName};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    client::Grpc,
    service::Routes,
    transport::{ClientTlsConfig, Endpoint},
};
use tower::{ServiceExt as _, util::BoxCloneSyncService};

use std::sync::Arc;
use support::{
    HANG,
    echo::{Blob, Client, Echo, Probe, blob, unary},
    tls,
};
use titan_transport::{
    Plaintext, TcpConfig, Traffic, serve_tcp,
    tls::{HttpTls, Identities, PublicIdentity, TlsMaterial, https_client_config},
};

struct Server {
    addr: SocketAddr,
    probe: Arc<Probe>,
    shutdown: CancellationToken,
    task: JoinHandle<std::io::Result<()>>,
    traffic: Arc<Traffic>,
}

async fn serve(bind: &str, tls: bool, plaintext: Plaintext) -> Server {
    let probe = Arc::new(Probe::default());
    let router =
        Routes::new(Echo(probe.clone())).into_axum_router().route("/hello", axum::routing::get(async || "hello"));
    let listener = TcpListener::bind(bind).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let traffic = Arc::new(Traffic::default());
    let config = TcpConfig {
        tls: tls.then(|| HttpTls::new(tls::server(), None).unwrap()),
        plaintext,
        traffic: Arc::clone(&traffic),
    };
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(serve_tcp(listener, router, config, shutdown.clone()));
    Server { addr, probe, shutdown, task, traffic }
}

fn client(addr: SocketAddr, tls: Option<ClientTlsConfig>) -> Client {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::try_from(format!("{scheme}://{addr}")).unwrap();
    if let Some(tls) = tls {
        endpoint = endpoint.tls_config(tls).unwrap();
    }
    let channel = endpoint.connect_lazy().map_err(|error| Status::from_error(Box::new(error)));
    Grpc::new(BoxCloneSyncService::new(channel))
}

async fn talk(addr: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = vec![];
    let _ = timeout(HANG, stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

const HTTP_1: &[u8] = b"GET /hello HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn one_port_takes_tls_and_plain_text_http_1_and_2() {
    let server = serve("127.0.0.1:0", true, Plaintext::LoopbackOnly).await;
    assert_eq!(unary(client(server.addr, None), blob("", 1)).await.unwrap().into_inner().n, 1);
    let peer = server.probe.peer.lock().clone().unwrap();
    assert!(!peer.tls && peer.certificate.is_none());

    let tls = tls::client().tonic_client_tls(tls::SERVER_NAME);
    assert_eq!(unary(client(server.addr, Some(tls)), blob("", 2)).await.unwrap().into_inner().n, 2);
    let peer = server.probe.peer.lock().clone().unwrap();
    assert!(peer.tls);
    assert_eq!(peer.certificate.as_ref(), tls::client().chain.first());

    assert!(talk(server.addr, HTTP_1).await.ends_with("hello"));
}

/// The certificate that a server with this TLS shows for a name.
async fn shown(tls: &HttpTls, client: rustls::ClientConfig, name: &str) -> Result<CertificateDer<'static>, io::Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let config = TcpConfig { tls: Some(tls.clone()), plaintext: Plaintext::LoopbackOnly, traffic: Arc::default() };
    let shutdown = CancellationToken::new();
    let _stop = shutdown.clone().drop_guard();
    tokio::spawn(serve_tcp(listener, axum::Router::new(), config, shutdown));
    let stream = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let stream = TlsConnector::from(Arc::new(client)).connect(name, stream).await?;
    Ok(stream.get_ref().1.peer_certificates().unwrap()[0].clone())
}

/// A client that trusts these roots and says nothing of it, as those that know public CAs do.
fn trusting(material: &TlsMaterial) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(material.roots[0].clone()).unwrap();
    rustls::ClientConfig::builder_with_provider(titan_transport::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

#[tokio::test]
async fn a_public_certificate_is_shown_for_its_name_but_not_to_clients_of_the_private_ca() {
    let (private_ca, public_ca) = (tls::Ca::named("private"), tls::Ca::named("public"));
    let private = private_ca.leaf("public.test", time::Duration::HOUR);
    let public = public_ca.leaf("public.test", time::Duration::HOUR);
    let identity = PublicIdentity { chain: public.chain.clone(), key: public.key.clone() };
    let http = HttpTls::new(&private, Some(&identity)).unwrap();
    assert_eq!(shown(&http, trusting(&public), "public.test").await.unwrap(), public.chain[0]);
    let ours = https_client_config(Some(&private), true).unwrap();
    assert_eq!(shown(&http, ours, "public.test").await.unwrap(), private.chain[0]);
    // Any other name, and an address, which is none (RFC 6066 §3): the private one, which has neither.
    for name in ["other.test", "127.0.0.1"] {
        assert!(shown(&http, trusting(&public), name).await.is_err(), "{name}");
    }
    assert!(HttpTls::new(&private, Some(&PublicIdentity { key: private.key.clone(), ..identity })).is_err());
}

#[tokio::test]
async fn certificates_are_replaced_while_a_port_serves() {
    let ca = tls::Ca::new();
    let [first, second] = [(); 2].map(|()| ca.leaf(tls::SERVER_NAME, time::Duration::HOUR));
    let http = HttpTls::new(&first, None).unwrap();
    assert_eq!(shown(&http, trusting(&first), tls::SERVER_NAME).await.unwrap(), first.chain[0]);
    http.replace(&Identities { private: second.clone(), public: None }).unwrap();
    assert_eq!(shown(&http, trusting(&first), tls::SERVER_NAME).await.unwrap(), second.chain[0]);
    let broken = TlsMaterial { key: first.key.clone(), ..second.clone() };
    assert!(http.replace(&Identities { private: broken, public: None }).is_err());
    assert_eq!(shown(&http, trusting(&first), tls::SERVER_NAME).await.unwrap(), second.chain[0]);
}

#[tokio::test]
async fn every_byte_is_counted() {
    let server = serve("127.0.0.1:0", true, Plaintext::LoopbackOnly).await;
    let answer = talk(server.addr, HTTP_1).await;
    assert_eq!((server.traffic.received(), server.traffic.sent()), (HTTP_1.len() as u64, answer.len() as u64));
    let large = Blob { data: vec![0; 10_000].into(), ..blob("", 2) };
    let tls = tls::client().tonic_client_tls(tls::SERVER_NAME);
    unary(client(server.addr, Some(tls)), large).await.unwrap();
    assert!(server.traffic.received() > 10_000 && server.traffic.sent() > answer.len() as u64);
}

#[tokio::test]
async fn tls_without_a_client_certificate_is_let_in_and_seen_as_such() {
    let server = serve("127.0.0.1:0", true, Plaintext::LoopbackOnly).await;
    let material = titan_transport::tls::TlsMaterial { chain: vec![], ..tls::client().clone() };
    let client = client(server.addr, Some(material.tonic_client_tls(tls::SERVER_NAME)));
    unary(client, blob("", 0)).await.unwrap();
    assert!(server.probe.peer.lock().clone().unwrap().certificate.is_none());
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused() {
    let server = serve("127.0.0.1:0", true, Plaintext::LoopbackOnly).await;
    let other = tls::Ca::new().leaf("client.test", time::Duration::HOUR);
    let material = titan_transport::tls::TlsMaterial { roots: tls::client().roots.clone(), ..other };
    let client = client(server.addr, Some(material.tonic_client_tls(tls::SERVER_NAME)));
    assert!(unary(client, blob("", 0)).await.is_err());
}

#[tokio::test]
async fn garbage_and_tls_where_there_is_none_end_the_connection_only() {
    let server = serve("127.0.0.1:0", false, Plaintext::LoopbackOnly).await;
    for garbage in
        [&[22, 3, 1, 0, 200, 1][..], b"\0\0\0\0", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnonsense that is no frame"]
    {
        talk(server.addr, garbage).await;
    }
    assert!(unary(client(server.addr, None), blob("", 1)).await.is_ok());
}

/// The machine's own address on a network, if it has one.
fn outside_address() -> Option<std::net::IpAddr> {
    // Connecting a UDP socket sends nothing; it asks which address would be used.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|addr| addr.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

#[tokio::test]
async fn plain_text_from_another_address_is_refused_unless_asked_for() {
    let Some(ip) = outside_address() else {
        println!("this machine has no address besides loopback: nothing to test");
        return;
    };
    let closed = serve(&format!("{ip}:0"), true, Plaintext::LoopbackOnly).await;
    assert!(talk(closed.addr, HTTP_1).await.contains("plaintext_refused"));
    assert!(unary(client(closed.addr, None), blob("", 0)).await.is_err());
    assert!(
        unary(client(closed.addr, Some(tls::client().tonic_client_tls(tls::SERVER_NAME))), blob("", 0)).await.is_ok()
    );
    let open = serve(&format!("{ip}:0"), false, Plaintext::Anywhere).await;
    assert!(talk(open.addr, HTTP_1).await.ends_with("hello"));
}

#[tokio::test]
async fn a_connection_that_says_nothing_does_not_hold_up_the_shutdown() {
    let server = serve("127.0.0.1:0", true, Plaintext::LoopbackOnly).await;
    let _silent = TcpStream::connect(server.addr).await.unwrap();
    unary(client(server.addr, None), blob("the silent one was accepted before", 0)).await.unwrap();
    server.shutdown.cancel();
    timeout(titan_transport::limits::HANDSHAKE_TIMEOUT - Duration::from_secs(1), server.task)
        .await
        .expect("it waited for the silent connection")
        .unwrap()
        .unwrap();
}
