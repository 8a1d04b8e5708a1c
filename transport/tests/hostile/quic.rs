//! QUIC: handshakes that are begun and left, from many addresses, and calls without their message.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use prost::Message as _;
use rustls::ClientConfig;
use tokio::{net::UdpSocket, task::JoinSet, time::timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{client::Grpc, service::Routes};
use tower::util::BoxCloneSyncService;

use crate::{
    HANG, MANY, alone, short,
    support::{
        echo::{Client, Echo, Probe, blob, unary},
        tls,
    },
};
use titan_proto::wire::{Headers, Trailers};
use titan_transport::{
    PortLimits, QuicConnector, QuicListener, QuicOptions, QuicServerConfig, limits::MAX_HANDSHAKES_BEFORE_RETRY,
    serve_quic,
};

/// A QUIC port that somebody attacks.
struct Port {
    addr: SocketAddr,
    _serving: DropGuard,
}

impl Port {
    fn new(limits: PortLimits) -> Self {
        titan_transport::raise_open_files().unwrap();
        let bind = (Ipv4Addr::LOCALHOST, 0).into();
        let listener = QuicListener::bind(bind, tls::server().quic_server_config().unwrap()).unwrap();
        let addr = listener.local_addr().unwrap();
        let config = QuicServerConfig { limits, ..QuicServerConfig::new(tls::server()).unwrap() };
        let shutdown = CancellationToken::new();
        let routes = Routes::new(Echo(Arc::new(Probe::default())));
        tokio::spawn(serve_quic(listener, routes, config, shutdown.clone()));
        Self { addr, _serving: shutdown.drop_guard() }
    }

    fn client(&self) -> Client {
        let connector = QuicConnector::new(tls::client()).unwrap();
        Grpc::new(BoxCloneSyncService::new(connector.channel(self.addr.to_string(), tls::SERVER_NAME)))
    }

    /// What somebody gets who means no harm. Gives the client, which stays connected.
    async fn serves_others(&self) -> Client {
        let client = self.client();
        let answer = timeout(HANG, unary(client.clone(), blob("", 7))).await.expect("the port is blocked").unwrap();
        assert_eq!(answer.into_inner().n, 7);
        client
    }

    /// Sends a client's first packet from an address of its own, and says of what type the answer is.
    async fn begin(&self, initial: &[u8]) -> (UdpSocket, Option<u8>) {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        socket.send_to(initial, self.addr).await.unwrap();
        let mut answer = [0; 2048];
        let received = timeout(Duration::from_secs(5), socket.recv(&mut answer)).await;
        (socket, received.ok().map(|length| packet_type(&answer[..length.unwrap()])))
    }
}

/// Of a packet with a long header: RFC 9000 §17.2.
const INITIAL: u8 = 0;
const RETRY: u8 = 3;

fn packet_type(packet: &[u8]) -> u8 {
    packet[0] >> 4 & 3
}

/// The first packets of so many clients, each with a connection ID of its own, as a server would get them.
async fn initials(count: usize) -> Vec<Vec<u8>> {
    let sink = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = sink.local_addr().unwrap().to_string();
    let options = QuicOptions { repeat_first: false, migration: false, ..QuicOptions::default() };
    let connector = QuicConnector::with_options(tls::client(), options).unwrap();
    let mut clients = JoinSet::new();
    let mut found = HashMap::new();
    let mut buffer = [0; 2048];
    while found.len() < count {
        if clients.len() < count {
            let channel = connector.channel(addr.clone(), tls::SERVER_NAME);
            clients.spawn(async move { channel.connect().await.map(drop) });
        }
        if let Ok(length) = timeout(Duration::from_millis(20), sink.recv(&mut buffer)).await {
            let packet = &buffer[..length.unwrap()];
            let id = packet[6..6 + usize::from(packet[5])].to_vec();
            if packet[0] & 0x80 != 0 && packet_type(packet) == INITIAL {
                found.insert(id, packet.to_vec());
            }
        }
    }
    found.into_values().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_half_open_handshakes_cost_others_a_round_trip_and_end() {
    let _alone = alone().await;
    let port = Port::new(short());
    let mut held = Vec::new();
    let all = initials(MANY + 1).await;
    let (last, rest) = all.split_last().unwrap();
    let mut retries = 0;
    // As many at once as a small receive buffer holds.
    for some in rest.chunks(50) {
        for (socket, answer) in join_all(some.iter().map(|initial| port.begin(initial))).await {
            retries += usize::from(answer == Some(RETRY));
            held.push(socket);
        }
    }
    // The first ones are answered, and from then on whoever comes has to show that its address is its own.
    println!("{retries} of {MANY} were asked to prove their address");
    assert!(retries > 0 && retries <= MANY - MAX_HANDSHAKES_BEFORE_RETRY, "{retries}");
    drop(port.serves_others().await);
    // Once they have ended nobody is asked any more.
    let mut answer = None;
    for _ in 0..100 {
        answer = port.begin(last).await.1;
        if answer == Some(INITIAL) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(answer, Some(INITIAL));
    drop(port.serves_others().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_port_gives_newcomers_the_places_of_handshakes_that_do_not_go_on() {
    let port = Port::new(PortLimits { connections: 4, first_request: HANG, ..short() });
    let mut held = Vec::new();
    for initial in initials(4).await {
        held.push(port.begin(&initial).await.0);
    }
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(port.serves_others().await);
    }
    // All places are those of clients now, which have all asked for something.
    for client in &clients {
        unary(client.clone(), blob("", 1)).await.unwrap();
    }
    assert!(timeout(HANG, unary(port.client(), blob("", 1))).await.unwrap().is_err());
    for client in clients {
        unary(client, blob("", 1)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_without_its_message_is_answered_in_time() {
    let port = Port::new(short());
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(client_config()).unwrap();
    let mut endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    let connection = endpoint.connect(port.addr, tls::SERVER_NAME).unwrap().await.unwrap();
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    let headers = Headers { path: "/test.Echo/Unary".into(), ..Headers::default() }.encode_to_vec();
    // PROTOCOL.md §3: HEADERS, and the beginning of a message.
    send.write_all(&[&[0, headers.len() as u8], &headers[..], &[1, 4, b'x']].concat()).await.unwrap();
    let answer = timeout(HANG, receive.read_to_end(4096)).await.expect("it waits for ever").unwrap();
    let [3, length, trailers @ ..] = &answer[..] else { panic!("no TRAILERS: {answer:?}") };
    let trailers = Trailers::decode(Bytes::copy_from_slice(&trailers[..usize::from(*length)])).unwrap();
    assert_eq!(trailers.status, 4, "{trailers:?}");
    drop(port.serves_others().await);
}

fn client_config() -> ClientConfig {
    let material = tls::client();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(material.roots[0].clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(titan_transport::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(material.chain.clone(), material.key.clone_key())
        .unwrap();
    config.alpn_protocols = vec![titan_proto::ALPN.as_bytes().to_vec()];
    config
}
