//! What a handshake sends first: PROTOCOL.md §13.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use support::{Env, Wire, tls};
use titan_transport::{QuicConnector, QuicOptions};

const PLAIN: QuicOptions = QuicOptions {
    redundancy: true,
    thin_stream: false,
    early_data: true,
    migration: false,
    repeat_first: false,
    post_quantum: false,
};
const POST_QUANTUM: QuicOptions = QuicOptions { post_quantum: true, ..PLAIN };

/// The datagrams that a client sends to a server which says nothing, until it repeats them or is quiet for a while.
async fn first_flight(options: QuicOptions) -> Vec<usize> {
    /// Less than the second after which the first packets are repeated, much more than passes between them.
    const QUIET: Duration = Duration::from_millis(300);
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let channel =
        QuicConnector::with_options(tls::client(), options).unwrap().channel(address(&silent), tls::SERVER_NAME);
    let connecting = tokio::spawn(async move { channel.connect().await });
    let sizes = tokio::task::spawn_blocking(move || {
        let mut buffer = [0; 2048];
        let mut sizes = vec![silent.recv(&mut buffer).unwrap()];
        silent.set_read_timeout(Some(QUIET)).unwrap();
        while let Ok(size) = silent.recv(&mut buffer) {
            sizes.push(size);
        }
        sizes
    });
    let sizes = sizes.await.unwrap();
    connecting.abort();
    sizes
}

fn address(socket: &UdpSocket) -> String {
    let addr: SocketAddr = socket.local_addr().unwrap();
    addr.to_string()
}

#[tokio::test]
async fn a_client_hello_is_one_datagram_and_a_post_quantum_one_two() {
    let (plain, post_quantum) = (first_flight(PLAIN).await, first_flight(POST_QUANTUM).await);
    println!("first flight in bytes: X25519 {plain:?}, X25519MLKEM768 {post_quantum:?}");
    assert_eq!(plain.len(), 1, "{plain:?}");
    assert_eq!(post_quantum.len(), 2, "{post_quantum:?}");
}

#[tokio::test]
async fn servers_answer_either_key_exchange() {
    let env = Env::new(Wire::Quic).await;
    for options in [PLAIN, POST_QUANTUM] {
        let connector = QuicConnector::with_options(tls::client(), options).unwrap();
        connector.channel(env.addr.to_string(), tls::SERVER_NAME).connect().await.unwrap();
    }
}

/// `cargo test -p titan-transport --test first_flight -- --ignored --nocapture`
#[tokio::test]
#[ignore = "a measurement"]
async fn what_the_post_quantum_key_exchange_costs_in_time() {
    const HANDSHAKES: usize = 200;
    let env = Env::new(Wire::Quic).await;
    for (name, options) in [("X25519", PLAIN), ("X25519MLKEM768", POST_QUANTUM)] {
        let mut times = Vec::new();
        for _ in 0..HANDSHAKES {
            // A connector of its own: it has no session.
            let connector = QuicConnector::with_options(tls::client(), options).unwrap();
            let channel = connector.channel(env.addr.to_string(), tls::SERVER_NAME);
            let begun = Instant::now();
            channel.connect().await.unwrap();
            times.push(begun.elapsed());
            channel.disconnect();
        }
        times.sort();
        println!("{name}: full handshake on loopback, median of {HANDSHAKES}: {:?}", times[HANDSHAKES / 2]);
    }
}
