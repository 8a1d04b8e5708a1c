//! What only the QUIC wire does: certificates, early data, resumption, limits, peers that vanish.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::{Duration, Instant, SystemTime},
};

use futures_util::{StreamExt as _, stream};
use time::ext::NumericalDuration as _;
use tokio::time::timeout;
use tonic::{Code, Request, Status, client::Grpc, metadata::MetadataValue, service::Routes};
use tower::util::BoxCloneSyncService;

use support::{
    Env, HANG, Wire,
    echo::{Blob, Client, Echo, Probe, blob, chat, produce, unary},
    eventually,
    relay::{Path, Relay},
    serve, sessions, tls,
};
use titan_transport::{
    CallError, ConnectError, EarlyDataSafe, QuicChannel, QuicConnector, limits::MAX_CALLS_PER_CONNECTION,
    tls::TlsMaterial,
};

fn connect(material: &TlsMaterial, addr: SocketAddr) -> QuicChannel {
    QuicConnector::new(material).unwrap().channel(addr.to_string(), tls::SERVER_NAME)
}

fn client(channel: &QuicChannel) -> Client {
    Grpc::new(BoxCloneSyncService::new(channel.clone()))
}

fn early(blob: Blob) -> Request<Blob> {
    let mut request = Request::new(blob);
    request.extensions_mut().insert(EarlyDataSafe);
    request
}

/// The channel of `env`, which has been used: it can connect again with a session.
async fn returning(env: &Env) -> QuicChannel {
    let channel = env.quic.clone().unwrap();
    unary(client(&channel), blob("", 0)).await.unwrap();
    sessions(env.connector.as_ref().unwrap()).await;
    channel.disconnect();
    channel
}

async fn refused(material: &TlsMaterial) -> Status {
    let env = Env::new(Wire::Quic).await;
    let channel = connect(material, env.addr);
    let status = timeout(HANG, unary(client(&channel), blob("", 0))).await.unwrap().unwrap_err();
    assert_eq!(env.probe.started.load(SeqCst), 0);
    status
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused_and_told_what_to_do() {
    let material = TlsMaterial { chain: vec![], ..tls::client().clone() };
    let status = refused(&material).await;
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("titan certs issue"), "{status:?}");
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused() {
    let other = tls::Ca::new().leaf("client.test", 1.hours());
    refused(&TlsMaterial { roots: tls::client().roots.clone(), ..other }).await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    refused(&tls::ca().leaf("client.test", (-1).minutes())).await;
}

#[tokio::test]
async fn a_server_of_another_ca_is_not_trusted() {
    let other = tls::Ca::new().leaf("client.test", 1.hours());
    let status = refused(&TlsMaterial { roots: other.roots, ..tls::client().clone() }).await;
    assert!(matches!(CallError::of(&status), Some(CallError::NotSent(ConnectError::Handshake { .. }))), "{status:?}");
}

#[tokio::test]
async fn a_server_of_another_name_is_not_trusted() {
    let env = Env::new(Wire::Quic).await;
    let channel = QuicConnector::new(tls::client()).unwrap().channel(env.addr.to_string(), "other.test");
    assert!(matches!(channel.connect().await, Err(ConnectError::Handshake { .. })));
}

#[tokio::test]
async fn a_returning_client_sends_its_call_before_the_handshake() {
    let mut env = Env::new(Wire::Quic).await;
    // Far enough away that a busy machine cannot complete the handshake before the call is sent, as loopback would.
    let relay = Relay::new(env.addr, Path { delay: Duration::from_millis(150), ..Path::default() }, 1).await;
    env.quic = env.connector.as_ref().map(|connector| connector.channel(relay.addr.to_string(), tls::SERVER_NAME));
    let channel = returning(&env).await;
    // The handler asks when the handshake is complete, and is told.
    let answer = unary(client(&channel), early(blob("confirm", 0))).await.unwrap().into_inner();
    assert_eq!(answer, blob("confirmed", 1));
    let peer = env.probe.peer.lock().clone().unwrap();
    assert!(peer.early_data.is_some());
    assert_eq!(peer.certificate.as_ref(), tls::client().chain.first(), "the resumed session carries the certificate");
    let stats = channel.stats();
    assert_eq!((stats.full_handshakes, stats.early_data_accepted, stats.early_data_rejected), (1, 1, 0));
    assert_eq!((stats.calls, stats.early_calls), (2, 1));
}

#[tokio::test]
async fn a_call_not_marked_safe_waits_for_the_handshake() {
    let env = Env::new(Wire::Quic).await;
    let channel = returning(&env).await;
    unary(client(&channel), blob("", 0)).await.unwrap();
    assert!(env.probe.peer.lock().clone().unwrap().early_data.is_none());
    assert_eq!(channel.stats().early_data_accepted, 1, "the session was resumed all the same");
    assert_eq!(channel.stats().early_calls, 0);
}

#[tokio::test]
async fn refused_early_data_is_sent_again_unnoticed() {
    let first = Env::new(Wire::Quic).await;
    let channel = returning(&first).await;
    // A server that has forgotten all sessions.
    first.shutdown.cancel();
    eventually("the server stops", || first.server.is_finished()).await;
    let second = Env::at(Wire::Quic, first.addr).await;
    assert_eq!(unary(client(&channel), early(blob("", 7))).await.unwrap().into_inner().n, 7);
    assert_eq!(second.probe.started.load(SeqCst), 1);
    assert_eq!(channel.stats().early_data_rejected, 1);
}

#[tokio::test]
async fn a_resumed_session_with_an_expired_certificate_is_refused() {
    let env = Env::new(Wire::Quic).await;
    // On a busy machine a short life may be over before the first call.
    for life in [3, 10, 30] {
        let expires = SystemTime::now() + Duration::from_secs(life);
        let connector = QuicConnector::new(&tls::ca().leaf("client.test", (life as i64).seconds())).unwrap();
        let channel = connector.channel(env.addr.to_string(), tls::SERVER_NAME);
        if unary(client(&channel), blob("", 0)).await.is_err() {
            continue;
        }
        sessions(&connector).await;
        channel.disconnect();
        // Certificates count in whole seconds.
        let expired = expires + Duration::from_secs(1);
        while let Ok(left) = expired.duration_since(SystemTime::now()) {
            tokio::time::sleep(left).await;
        }
        let status = unary(client(&channel), early(blob("", 0))).await.unwrap_err();
        assert_eq!(env.probe.started.load(SeqCst), 1, "only the first call reached the handler: {status:?}");
        assert_eq!(channel.stats().full_handshakes, 1, "the session was resumed");
        return;
    }
    panic!("no certificate lived long enough for a call");
}

#[tokio::test]
async fn many_first_calls_share_one_handshake() {
    let env = Env::new(Wire::Quic).await;
    let channel = env.quic.clone().unwrap();
    let calls = (0..50).map(|n| unary(client(&channel), blob("", n)));
    assert!(futures_util::future::join_all(calls).await.iter().all(Result::is_ok));
    assert_eq!(channel.stats().full_handshakes, 1);
}

#[tokio::test]
async fn calls_past_the_stream_limit_wait_for_their_turn() {
    let env = Env::new(Wire::Quic).await;
    let channel = env.quic.clone().unwrap();
    let calls = (0..u64::from(MAX_CALLS_PER_CONNECTION) + 200).map(|_| unary(client(&channel), blob("sleep", 20)));
    let answers = timeout(HANG, futures_util::future::join_all(calls)).await.unwrap();
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(channel.stats().full_handshakes, 1);
}

#[tokio::test]
async fn metadata_past_the_limit_is_refused_with_the_limit() {
    let env = Env::new(Wire::Quic).await;
    let mut request = Request::new(blob("", 0));
    request.metadata_mut().insert_bin("x-data-bin", MetadataValue::from_bytes(&[1; 70_000]));
    let status = unary(env.client(), request).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("65536"), "{status:?}");
    assert!(unary(env.client(), blob("the connection goes on", 0)).await.is_ok());
}

#[tokio::test]
async fn a_closed_port_is_reported_at_once() {
    let addr = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // After HANDSHAKE_TIMEOUT it would be another error.
    let error = connect(tls::client(), addr).connect().await.unwrap_err();
    assert!(matches!(error, ConnectError::PortClosed { .. }), "{error:?}");
}

#[tokio::test]
async fn names_that_are_none_are_refused() {
    let connector = QuicConnector::new(tls::client()).unwrap();
    for address in ["", "nonsense", "127.0.0.1", "127.0.0.1:notaport", "no-such-host.invalid:1"] {
        let error = connector.channel(address, tls::SERVER_NAME).connect().await.unwrap_err();
        assert!(matches!(error, ConnectError::Resolve { .. }), "{address:?}: {error:?}");
    }
    let error = connector.channel("127.0.0.1:9", "not a name").connect().await.unwrap_err();
    assert!(matches!(error, ConnectError::Local { .. }), "{error:?}");
}

#[tokio::test]
async fn dropping_the_responses_stops_a_handler_whose_requests_go_on() {
    let env = Env::new(Wire::Quic).await;
    let messages = stream::iter([blob("say", 1), blob("hang", 2)]).chain(stream::pending());
    let mut replies = chat(env.client(), messages).await.unwrap().into_inner();
    replies.message().await.unwrap().unwrap();
    assert_eq!(env.probe.ended.load(SeqCst), 0);
    drop(replies);
    eventually("the handler is dropped", || env.probe.ended.load(SeqCst) == 1).await;
}

/// As a killed process: its runtime ends without a word, its socket is closed by the kernel.
#[tokio::test]
async fn a_client_that_is_killed_frees_its_handler_long_before_the_idle_timeout() {
    let env = Env::new(Wire::Quic).await;
    let addr = env.addr;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let messages = runtime
        .spawn(async move {
            let channel = connect(tls::client(), addr);
            let mut messages = produce(client(&channel), blob("big", 100_000)).await.unwrap().into_inner();
            messages.message().await.unwrap().unwrap();
            (messages, channel)
        })
        .await
        .unwrap();
    assert_eq!(env.probe.ended.load(SeqCst), 0);
    let killed = Instant::now();
    runtime.shutdown_background();
    // The handles hold the socket; nothing runs any more that could send a farewell.
    drop(messages);
    eventually("the handler is dropped", || env.probe.ended.load(SeqCst) == 1).await;
    assert!(killed.elapsed() < titan_transport::limits::IDLE_TIMEOUT / 2);
}

/// The other way round: a client that only reads sends nothing by itself.
#[tokio::test]
async fn a_server_that_is_killed_is_noticed_long_before_the_keep_alive() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let env = runtime.spawn(Env::new(Wire::Quic)).await.unwrap();
    let channel = connect(tls::client(), env.addr);
    let mut messages = produce(client(&channel), blob("hang", 1)).await.unwrap().into_inner();
    messages.message().await.unwrap().unwrap();
    let killed = Instant::now();
    runtime.shutdown_background();
    drop(env);
    let status = messages.message().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(killed.elapsed() < titan_transport::limits::KEEP_ALIVE);
}

#[tokio::test]
async fn a_drained_server_refuses_new_calls_in_a_way_that_is_safe_to_repeat() {
    let env = Env::new(Wire::Quic).await;
    let mut messages = produce(env.client(), blob("hang", 1)).await.unwrap().into_inner();
    messages.message().await.unwrap().unwrap();
    env.shutdown.cancel();
    // Until the server has taken notice it answers.
    let mut answered = 0;
    let status = loop {
        match unary(env.client(), blob("", 0)).await {
            Ok(_) => answered += 1,
            Err(status) => break status,
        }
    };
    assert!(CallError::of(&status).is_some_and(CallError::not_processed), "{status:?}");
    assert_eq!(env.probe.started.load(SeqCst), 1 + answered, "what was refused reached no handler");
    // A fresh connection is refused, not left without an answer.
    let error = connect(tls::client(), env.addr).connect().await.unwrap_err();
    assert!(matches!(error, ConnectError::Handshake { .. }), "{error:?}");
}

#[tokio::test]
async fn garbage_on_a_stream_ends_only_that_call() {
    let env = Env::new(Wire::Quic).await;
    let config = tls::client().quic_client_config().unwrap();
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let connection = endpoint.connect_with(config, env.addr, tls::SERVER_NAME).unwrap().await.unwrap();
    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x00, 0x03, 0xff, 0xff, 0xff], &[0x01, 0x01, 0x00], &[0xff; 32], b""]
    {
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(garbage).await.unwrap();
        send.finish().unwrap();
        // A TRAILERS frame with an error, never silence.
        let answer = timeout(HANG, recv.read_to_end(10_000)).await.unwrap().unwrap();
        assert_eq!(answer[0], 0x03, "{garbage:?} got {answer:?}");
    }
    assert!(connection.close_reason().is_none());
    assert_eq!(env.probe.started.load(SeqCst), 0);
}

#[tokio::test]
async fn a_stream_that_says_nothing_does_not_block_the_others() {
    let env = Env::new(Wire::Quic).await;
    let config = tls::client().quic_client_config().unwrap();
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let connection = endpoint.connect_with(config, env.addr, tls::SERVER_NAME).unwrap().await.unwrap();
    let (mut silent, _recv) = connection.open_bi().await.unwrap();
    silent.write_all(&[0x00]).await.unwrap();
    assert!(unary(env.client(), blob("", 0)).await.is_ok());
}

#[tokio::test]
async fn a_thousand_connections_come_and_go() {
    let probe = Arc::new(Probe::default());
    let (addr, shutdown, server) =
        serve(Wire::Quic, ([127, 0, 0, 1], 0).into(), Routes::new(Echo(probe.clone()))).await;
    let connector = QuicConnector::new(tls::client()).unwrap();
    for _ in 0..20 {
        let calls = (0..50).map(|n| {
            let channel = connector.channel(addr.to_string(), tls::SERVER_NAME);
            async move {
                unary(client(&channel), blob("", n)).await.unwrap();
                channel.disconnect();
            }
        });
        futures_util::future::join_all(calls).await;
    }
    assert_eq!(probe.started.load(SeqCst), 1000);
    shutdown.cancel();
    timeout(HANG, server).await.unwrap().unwrap();
}
