//! Bytes that mean nothing, and bytes that stop in the middle.

use std::{net::SocketAddr, time::Duration};

use futures_util::{StreamExt as _, stream};
use rand::{Rng as _, RngCore as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use crate::{
    HANG, Port,
    raw::{self, END_HEADERS, END_STREAM, GET, HEADERS, PREFACE, SETTINGS, frame, request},
    short,
    support::{
        Env, Wire,
        echo::{blob, unary},
    },
};

/// So many at once.
const AT_ONCE: usize = 64;

/// Sends this, says that nothing more comes, and reads to the end.
async fn say(addr: SocketAddr, bytes: Vec<u8>) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    // It may be closed before all is said.
    let _ = stream.write_all(&bytes).await;
    let _ = stream.shutdown().await;
    timeout(HANG, raw::drain(&mut stream)).await.expect("it waits for more after the end");
}

async fn say_all(port: &Port, all: impl IntoIterator<Item = Vec<u8>>) {
    stream::iter(all).for_each_concurrent(AT_ONCE, |bytes| say(port.addr, bytes)).await;
    port.serves_others().await;
    port.has_everything_back().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_bytes_end_their_own_connection_only() {
    let port = Port::new(short()).await;
    let mut random = StdRng::seed_from_u64(10);
    let all = (0..1000).map(|n| {
        let begin: &[u8] = [&b""[..], PREFACE, &[22, 3, 1], b"POST /length HTTP/1.1\r\n"][n % 4];
        let mut bytes = begin.to_vec();
        bytes.resize(begin.len() + random.random_range(1..3000), 0);
        random.fill_bytes(&mut bytes[begin.len()..]);
        bytes
    });
    say_all(&port, all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stops_at_any_byte_ends_its_own_connection_only() {
    let port = Port::new(short()).await;
    let http1 = b"POST /length HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\nconnection: close\r\n\r\n123456789";
    let ask = frame(HEADERS, END_HEADERS | END_STREAM, 1, &request(GET, "/hello", &[]));
    let http2 = [PREFACE.to_vec(), frame(SETTINGS, 0, 0, &[]), ask].concat();
    for whole in [http1.to_vec(), http2, raw::client_hello()] {
        say_all(&port, (1..=whole.len()).map(|length| whole[..length].to_vec())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_datagrams_are_nothing_to_a_quic_port() {
    let env = Env::new(Wire::Quic).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut random = StdRng::seed_from_u64(11);
    for n in 0..3000 {
        let mut bytes = vec![0; random.random_range(1..1400)];
        random.fill_bytes(&mut bytes);
        if n % 2 == 0 {
            // A long header of version 1, with room for what an Initial has.
            bytes.resize(1200, 0);
            bytes[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
        }
        socket.send_to(&bytes, env.addr).await.unwrap();
        if n % 100 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    unary(env.client(), blob("", 1)).await.unwrap();
}
