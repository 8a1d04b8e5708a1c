//! The handshake's size, with the certificates that `titan certs` makes: PROTOCOL.md §2.1.

use std::{cell::Cell, net::SocketAddr};

use titan_certs::{CertDir, LeafRequest, MAX_NAME_LEN, Role, agent_server_name};
use titan_client::TlsMaterial;
use titan_transport::{QuicConnector, QuicListener, QuicOptions, QuicServerConfig, serve_quic};
use tokio::{net::UdpSocket, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::PATIENCE;

/// Three times the client's first packet: what a server may send before it has heard from the client again (RFC 9000 §8.1).
const MAX_FLIGHT_BYTES: usize = 3600;

/// Completes a client's handshake with `agent` although only the client's first `flight` datagrams get through. The bytes of the UDP payloads
/// that the server has sent by then.
async fn server_flight(dir: &CertDir, agent: &str, flight: usize, options: QuicOptions) -> usize {
    let material = |role, name| {
        TlsMaterial::from_files(&dir.ca_pem(), &dir.leaf_pem(role, name), &dir.leaf_key(role, name)).unwrap()
    };
    let server = material(Role::Agent, agent);
    let listener = QuicListener::bind(([127, 0, 0, 1], 0).into(), server.quic_server_config().unwrap()).unwrap();
    let server_addr = listener.local_addr().unwrap();
    let config = QuicServerConfig::new(&server).unwrap();
    tokio::spawn(serve_quic(listener, Routes::default(), config, CancellationToken::new()));

    let (front, rear) = (UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let addr: SocketAddr = front.local_addr().unwrap();
    let connector = QuicConnector::with_options(&material(Role::Client, "laptop"), options).unwrap();
    let channel = connector.channel(addr.to_string(), agent_server_name(agent));
    let connect = async { timeout(PATIENCE, channel.connect()).await.unwrap().unwrap() };
    let bytes = Cell::new(0);
    let relay = async {
        let (mut buffer, mut client, mut forwarded) = ([0; 2048], None, 0);
        let mut up = [0; 2048];
        loop {
            tokio::select! {
                Ok((len, from)) = front.recv_from(&mut up) => {
                    client = Some(from);
                    forwarded += 1;
                    if forwarded <= flight {
                        rear.send_to(&up[..len], server_addr).await.unwrap();
                    }
                }
                Ok((len, _)) = rear.recv_from(&mut buffer) => {
                    bytes.set(bytes.get() + len);
                    front.send_to(&buffer[..len], client.unwrap()).await.unwrap();
                }
            }
        }
    };
    tokio::select! {
        () = connect => bytes.get(),
        () = relay => unreachable!("it goes on"),
    }
}

fn certs() -> (tempfile::TempDir, CertDir) {
    let temp = tempfile::tempdir().unwrap();
    let dir = CertDir::new(temp.path());
    dir.init().unwrap();
    dir.issue(&LeafRequest::new(Role::Client, "laptop")).unwrap();
    (temp, dir)
}

#[tokio::test]
async fn the_servers_certificate_flight_needs_no_second_packet_from_the_client() {
    let (_temp, dir) = certs();
    // The usual certificate, and one with the longest name and many hosts.
    let (usual, largest) = ("agent-1".to_owned(), "x".repeat(MAX_NAME_LEN));
    dir.issue(&LeafRequest::new(Role::Agent, &usual).hosts(["localhost", "127.0.0.1"])).unwrap();
    let hosts = (0..8).map(|i| format!("gpu-{i}.rack-1.datacentre.example.com"));
    dir.issue(&LeafRequest::new(Role::Agent, &largest).hosts(hosts)).unwrap();
    for agent in [usual, largest] {
        let bytes = server_flight(&dir, &agent, 1, QuicOptions { repeat_first: false, ..QuicOptions::default() }).await;
        println!("the server's flight, {}: {bytes} bytes", &agent[..7]);
        assert!(bytes < MAX_FLIGHT_BYTES, "{agent}: {bytes}");
    }
}

#[tokio::test]
async fn a_post_quantum_handshake_adds_a_key_share_to_the_servers_flight() {
    let (_temp, dir) = certs();
    dir.issue(&LeafRequest::new(Role::Agent, "agent-1")).unwrap();
    let plain = QuicOptions { repeat_first: false, ..QuicOptions::default() };
    let without = server_flight(&dir, "agent-1", 1, plain).await;
    let with = server_flight(&dir, "agent-1", 2, QuicOptions { post_quantum: true, ..plain }).await;
    println!("the server's flight: {without} bytes with X25519, {with} with X25519MLKEM768");
    // A key share of 1120 bytes instead of 32; padding may hide a part.
    assert!(with > without, "{with} {without}");
    assert!(with < 2 * MAX_FLIGHT_BYTES, "{with}");
}
