//! Connections that are opened and not used.

use std::{sync::Arc, time::Duration};

use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{
    HANG, MANY, Port, alone, raw, short,
    support::{
        echo::{blob, produce, unary},
        tls,
    },
};
use titan_transport::{Cut, PortLimits, tls::https_client_config};

const HELLO: &[u8] = b"GET /hello HTTP/1.1\r\nhost: x\r\n\r\n";

/// A connection that has had an answer.
async fn used(port: &Port) -> TcpStream {
    let mut stream = port.connect().await;
    stream.write_all(HELLO).await.unwrap();
    let mut answer = [0; 512];
    let length = timeout(HANG, stream.read(&mut answer)).await.unwrap().unwrap();
    assert!(answer[..length].ends_with(b"hello"), "{}", String::from_utf8_lossy(&answer[..length]));
    stream
}

/// Whether the other side closes it.
async fn closes(stream: &mut TcpStream) {
    timeout(HANG, raw::drain(stream)).await.expect("it stays open");
}

/// A thousand connections send this and nothing more.
async fn many_that_begin_with(bytes: &[u8]) {
    let _alone = alone().await;
    let port = Port::new(short()).await;
    let mut streams = port.connect_many(MANY).await;
    for stream in &mut streams {
        stream.write_all(bytes).await.unwrap();
    }
    port.serves_others().await;
    port.cuts(Cut::NoRequest, MANY).await;
    port.has_everything_back().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_silent_connections() {
    many_that_begin_with(b"").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_connections_of_one_byte() {
    many_that_begin_with(b"P").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_half_open_tls_handshakes() {
    let hello = raw::client_hello();
    many_that_begin_with(&hello[..hello.len() / 2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_tls_handshakes_that_are_never_finished() {
    many_that_begin_with(&raw::client_hello()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_that_begin_http_2_and_ask_for_nothing() {
    many_that_begin_with(&[raw::PREFACE, &raw::window_of(1)].concat()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_that_falls_silent_once_it_is_set_up() {
    const HANDSHAKES: usize = 100;
    let port = Port::new(short()).await;
    let connector = TlsConnector::from(Arc::new(https_client_config(Some(tls::client()), true).unwrap()));
    let mut silent = Vec::new();
    for _ in 0..HANDSHAKES {
        let name = ServerName::try_from(tls::SERVER_NAME).unwrap();
        silent.push(connector.connect(name, port.connect().await).await.unwrap());
    }
    port.serves_others().await;
    port.cuts(Cut::NoRequest, HANDSHAKES).await;
    port.has_everything_back().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_port_gives_newcomers_the_places_of_those_that_say_nothing() {
    let port = Port::new(PortLimits { connections: 8, first_request: HANG, ..short() }).await;
    let mut silent = port.connect_many(8).await;
    port.serves_others().await;
    closes(&mut silent[0]).await;
    drop(silent);
    port.has_everything_back().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_full_of_users_refuses_newcomers_and_nobody_else() {
    let port = Port::new(PortLimits { connections: 4, ..short() }).await;
    let mut users = Vec::new();
    for _ in 0..4 {
        users.push(used(&port).await);
    }
    closes(&mut port.connect().await).await;
    port.cuts(Cut::Full, 1).await;
    for user in &mut users {
        user.write_all(HELLO).await.unwrap();
        assert!(timeout(HANG, user.read(&mut [0; 512])).await.unwrap().unwrap() > 0);
    }
    drop(users);
    port.has_everything_back().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_closed_and_one_with_an_answer_on_it_is_not() {
    let idle = Duration::from_millis(500);
    let port = Port::new(PortLimits { idle, ..short() }).await;
    // An answer that takes three times as long.
    let mut answer = produce(port.client(), blob("pace", 150)).await.unwrap().into_inner();
    // And a channel that is used again after it was closed.
    let client = port.client();
    unary(client.clone(), blob("", 1)).await.unwrap();
    closes(&mut used(&port).await).await;
    for n in 0..150 {
        assert_eq!(answer.message().await.unwrap().unwrap().n, n);
    }
    assert!(answer.message().await.unwrap().is_none());
    // h2 refuses a request between a server's GOAWAY and the end of the connection, which on a busy machine may take a while.
    let again = async { while unary(client.clone(), blob("", 2)).await.is_err() {} };
    timeout(HANG, again).await.expect("it does not connect again");
    drop((answer, client));
    port.has_everything_back().await;
    assert!(port.traffic.cut(Cut::Idle) >= 2, "{}", port.traffic.cut(Cut::Idle));
}
