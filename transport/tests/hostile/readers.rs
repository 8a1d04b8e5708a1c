//! Readers that take nothing of their answers, or little.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use futures_util::StreamExt as _;
use prost::Message as _;
use tokio::{
    io::AsyncWriteExt as _,
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, client::Grpc, service::Routes};
use tower::util::BoxCloneSyncService;

use crate::{
    HANG, Port,
    raw::{
        DATA, END_HEADERS, END_STREAM, GET, HEADERS, Http2, PREFACE, RST_STREAM, WINDOW_UPDATE, frame, grpc,
        read_frame, request, window_of,
    },
    short,
    support::{
        echo::{Blob, Client, Echo, Probe, blob, produce, unary},
        eventually, tls,
    },
};
use titan_transport::{Cut, PortLimits, QuicConnector, QuicListener, QuicServerConfig, serve_quic};

/// The slots of the issue.
const SLOTS: u32 = 4;
/// A slow reader's limit, and how often it takes something: five times within it.
const LIMIT: Duration = Duration::from_secs(2);
const TAKES: Duration = Duration::from_millis(400);

/// A call that asks for messages.
fn call(stream: u32, request: &Blob) -> Vec<u8> {
    let message = request.encode_to_vec();
    let data = [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat();
    let headers = frame(HEADERS, END_HEADERS, stream, &grpc("/test.Echo/Produce"));
    [headers, frame(DATA, END_STREAM, stream, &data)].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_to_a_window_of_0_end_and_their_connection_goes_on() {
    let port = Port::new(short()).await;
    let mut connection = Http2::new(&port, &window_of(0)).await;
    for n in 0..SLOTS {
        connection.write.write_all(&call(2 * n + 1, &blob("pace", 1_000_000))).await.unwrap();
    }
    eventually("all of them run", || port.probe.started.load(SeqCst) == u64::from(SLOTS)).await;
    port.serves_others().await;
    let mut reset = 0;
    while reset < SLOTS {
        let (kind, ..) = timeout(HANG, connection.next()).await.expect("held for ever").expect("the connection ended");
        reset += u32::from(kind == RST_STREAM);
    }
    port.cuts(Cut::SlowReader, SLOTS as usize).await;
    // Another request on it, for which there is a window.
    let next = 2 * SLOTS + 1;
    let update = frame(WINDOW_UPDATE, 0, next, &1000_u32.to_be_bytes());
    connection.write.write_all(&[call(next, &blob("", 1)), update].concat()).await.unwrap();
    loop {
        let (kind, flags, stream, _) = timeout(HANG, connection.next()).await.unwrap().expect("the connection ended");
        if (kind, stream, flags & END_STREAM) == (HEADERS, next, END_STREAM) {
            break;
        }
    }
    drop(connection);
    port.has_everything_back().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_takes_a_little_now_and_then_gets_all_of_it() {
    const MESSAGES: u64 = 300;
    let port = Port::new(PortLimits { write: LIMIT, ..short() }).await;
    let Http2 { mut read, mut write } = Http2::new(&port, &window_of(0)).await;
    write.write_all(&call(1, &blob("pace", MESSAGES))).await.unwrap();
    // In a task of its own: half a frame that was read would be lost with the other half.
    let (sender, mut frames) = mpsc::unbounded_channel();
    let reading = tokio::spawn(async move {
        while let Some(frame) = read_frame(&mut read).await {
            let _ = sender.send(frame);
        }
    });
    let (mut bytes, mut grants) = (0, 0);
    loop {
        tokio::select! {
            frame = frames.recv() => {
                let (kind, flags, _, payload) = frame.expect("the connection ended");
                assert_ne!(kind, RST_STREAM, "after {bytes} bytes");
                bytes += if kind == DATA { payload.len() } else { 0 };
                if (kind, flags & END_STREAM) == (HEADERS, END_STREAM) {
                    break;
                }
            }
            () = sleep(TAKES) => {
                grants += 1;
                write.write_all(&frame(WINDOW_UPDATE, 0, 1, &200_u32.to_be_bytes())).await.unwrap();
            }
        }
    }
    assert!(grants > 5, "it took longer than the limit: {grants}");
    let all: usize = (0..MESSAGES).map(|n| 5 + Blob { n, ..Blob::default() }.encoded_len()).sum();
    assert_eq!((bytes, port.traffic.cut(Cut::SlowReader)), (all, 0));
    reading.abort();
    drop(write);
    port.has_everything_back().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_nobody_reads_is_closed() {
    for begin in [&b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n"[..], &endless_over_http_2()] {
        let port = Port::new(short()).await;
        let mut stream = port.connect().await;
        stream.write_all(begin).await.unwrap();
        port.serves_others().await;
        eventually("it is cut off", || port.traffic.cut(Cut::SlowReader) > 0).await;
        port.has_everything_back().await;
    }
}

/// A request for all there is, with the largest windows that there are.
fn endless_over_http_2() -> Vec<u8> {
    [
        PREFACE.to_vec(),
        window_of(i32::MAX as u32),
        frame(WINDOW_UPDATE, 0, 0, &(i32::MAX as u32 - 65_535).to_be_bytes()),
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &request(GET, "/endless", &[])),
    ]
    .concat()
}

/// A QUIC port with this limit, and a client of it.
async fn quic(write: Duration) -> (Arc<Probe>, Client, DropGuard) {
    let probe = Arc::new(Probe::default());
    let listener = QuicListener::bind("127.0.0.1:0".parse().unwrap(), tls::server().quic_server_config().unwrap());
    let listener = listener.unwrap();
    let channel = QuicConnector::new(tls::client())
        .unwrap()
        .channel(listener.local_addr().unwrap().to_string(), tls::SERVER_NAME);
    let mut config = QuicServerConfig::new(tls::server()).unwrap();
    config.limits.write = write;
    let shutdown = CancellationToken::new();
    tokio::spawn(serve_quic(listener, Routes::new(Echo(probe.clone())), config, shutdown.clone()));
    (probe, Grpc::new(BoxCloneSyncService::new(channel)).max_decoding_message_size(1 << 20), shutdown.drop_guard())
}

#[tokio::test(flavor = "multi_thread")]
async fn over_quic_an_answer_that_nobody_reads_ends_too_and_its_connection_goes_on() {
    let (probe, client, _serving) = quic(LIMIT).await;
    // More than a stream's window, of which nothing is read.
    let answer = produce(client.clone(), blob("big", 1000)).await.unwrap();
    eventually("its handler has ended", || probe.ended.load(SeqCst) == 1).await;
    unary(client, blob("", 1)).await.unwrap();
    let mut answer = answer.into_inner();
    let end = timeout(HANG, async {
        loop {
            match answer.next().await {
                Some(Ok(_)) => {}
                end => return end,
            }
        }
    });
    assert_eq!(end.await.unwrap().unwrap().unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_quic_a_slow_reader_gets_all_of_it() {
    let (probe, client, _serving) = quic(LIMIT).await;
    let mut answer = produce(client, blob("big", 40)).await.unwrap().into_inner();
    for n in 0..40 {
        sleep(TAKES / 2).await;
        assert_eq!(answer.next().await.unwrap().unwrap().n, n);
    }
    assert!(answer.next().await.is_none());
    eventually("its handler has ended", || probe.ended.load(SeqCst) == 1).await;
}
