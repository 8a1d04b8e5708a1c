//! Requests that take for ever to come.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{
    HANG, Port,
    raw::{END_HEADERS, HEADERS, Http2, SETTINGS, frame, grpc},
    short,
};
use titan_transport::Cut;

/// How many at once.
const SLOW: usize = 50;
/// Between two bytes.
const PAUSE: Duration = Duration::from_millis(100);

/// Sends `begin`, and then `more` again and again; gives what comes back.
async fn trickle(mut stream: TcpStream, begin: String, more: &'static [u8]) -> String {
    let mut answer = Vec::new();
    let mut buffer = [0; 1024];
    if stream.write_all(begin.as_bytes()).await.is_err() {
        return String::new();
    }
    loop {
        tokio::select! {
            read = stream.read(&mut buffer) => match read {
                Ok(0) | Err(_) => return String::from_utf8_lossy(&answer).into_owned(),
                Ok(length) => answer.extend(&buffer[..length]),
            },
            () = sleep(PAUSE) => {
                // Once the other side has closed it, reading says so.
                let _ = stream.write_all(more).await;
            }
        }
    }
}

async fn trickles(port: &Port, begin: &str, more: &'static [u8]) -> Vec<String> {
    let mut all = Vec::new();
    for _ in 0..SLOW {
        all.push(tokio::spawn(trickle(port.connect().await, begin.to_owned(), more)));
    }
    port.serves_others().await;
    let mut answers = Vec::new();
    for one in all {
        answers.push(timeout(HANG, one).await.expect("it goes on for ever").unwrap());
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_come_a_line_at_a_time() {
    let port = Port::new(short()).await;
    trickles(&port, "GET /hello HTTP/1.1\r\n", b"x: y\r\n").await;
    port.cuts(Cut::NoRequest, SLOW).await;
    port.has_everything_back().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_come_a_byte_at_a_time() {
    for begin in [
        "POST /length HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n",
        "POST /length HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n",
    ] {
        let port = Port::new(short()).await;
        let more: &[u8] = if begin.contains("chunked") { b"1\r\nx\r\n" } else { b"x" };
        for answer in trickles(&port, begin, more).await {
            assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("request_timeout"), "{answer}");
        }
        port.cuts(Cut::SlowRequest, SLOW).await;
        port.has_everything_back().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_calls_without_their_message() {
    let port = Port::new(short()).await;
    let mut connection = Http2::new(&port, &frame(SETTINGS, 0, 0, &[])).await;
    for n in 0..SLOW as u32 {
        let call = frame(HEADERS, END_HEADERS, 2 * n + 1, &grpc("/test.Echo/Unary"));
        connection.write.write_all(&call).await.unwrap();
    }
    port.serves_others().await;
    let mut answered = 0;
    while answered < SLOW {
        let (kind, ..) = timeout(HANG, connection.next()).await.expect("no answer").expect("the connection ended");
        answered += usize::from(kind == HEADERS);
    }
    port.cuts(Cut::SlowRequest, SLOW).await;
    assert_eq!(port.probe.started.load(SeqCst), 1, "no handler but the other client's has begun");
    drop(connection);
    port.has_everything_back().await;
}
