//! HTTP/2 frames by the thousand.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use crate::{
    HANG, Port,
    raw::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, GET, HEADERS, Http2, PING, PRIORITY, RST_STREAM, SETTINGS,
        WINDOW_UPDATE, frame, grpc, request,
    },
    short,
};
use titan_transport::{Cut, PortLimits};

/// More frames than a connection can have before it is cut off.
const FRAMES: u32 = 100_000;

/// Sends `begin` and then every frame that `flood` makes, and takes whatever comes, until the connection ends. A normal client asks meanwhile.
/// Gives how often the flood was cut off by the count of its frames.
async fn flood(begin: Vec<u8>, flood: impl Fn(u32) -> Vec<u8> + Send + 'static) -> u64 {
    // Nothing but the flood ends it.
    let port = Port::new(PortLimits { first_request: HANG, write: HANG, request: HANG, ..short() }).await;
    let Http2 { mut read, mut write } = Http2::new(&port, &frame(SETTINGS, 0, 0, &[])).await;
    let reading = tokio::spawn(async move {
        let mut buffer = [0; 16 << 10];
        while read.read(&mut buffer).await.is_ok_and(|length| length > 0) {}
    });
    let writing = tokio::spawn(async move {
        write.write_all(&begin).await.unwrap();
        for some in (0..FRAMES).collect::<Vec<_>>().chunks(100) {
            let frames: Vec<u8> = some.iter().flat_map(|n| flood(*n)).collect();
            if write.write_all(&frames).await.is_err() {
                return;
            }
        }
    });
    port.serves_others().await;
    timeout(HANG, reading).await.expect("the flood goes on").unwrap();
    timeout(HANG, writing).await.expect("the flood goes on").unwrap();
    port.has_everything_back().await;
    port.traffic.cut(Cut::Flood)
}

/// A call that goes on.
fn open_call() -> Vec<u8> {
    frame(HEADERS, END_HEADERS, 1, &grpc("/test.Echo/Chat"))
}

#[tokio::test(flavor = "multi_thread")]
async fn pings() {
    assert_eq!(flood(vec![], |_| frame(PING, 0, 0, &[0; 8])).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_beside_a_call() {
    assert_eq!(flood(open_call(), |_| frame(PING, 0, 0, &[0; 8])).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn settings() {
    assert_eq!(flood(vec![], |n| crate::raw::window_of(n % 1000)).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn window_updates() {
    assert_eq!(flood(open_call(), |n| frame(WINDOW_UPDATE, 0, n % 2, &1_u32.to_be_bytes())).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn priorities() {
    assert_eq!(flood(vec![], |n| frame(PRIORITY, 0, 2 * (n % 1000) + 1, &[0, 0, 0, 0, 7])).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_of_no_known_type() {
    assert_eq!(flood(vec![], |_| frame(0x42, 0, 0, &[])).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_cancelled_at_once() {
    // h2 has its own limit for those that it has not accepted yet: whichever is reached first.
    flood(vec![], |n| {
        let stream = 2 * n + 1;
        let call = frame(HEADERS, END_HEADERS, stream, &grpc("/test.Echo/Chat"));
        [call, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_block_without_an_end() {
    let begin = frame(HEADERS, 0, 1, &request(GET, "/hello", &[]));
    flood(begin, |_| frame(CONTINUATION, 0, 1, &[])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn data_in_small_change() {
    flood(open_call(), |_| frame(DATA, 0, 1, &[0])).await;
    flood(open_call(), |_| frame(DATA, 0, 1, &[])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_for_much_and_reads_it_is_no_flood() {
    let port = Port::new(short()).await;
    let mut connection = Http2::new(&port, &frame(SETTINGS, 0, 0, &[])).await;
    for n in 0..3000_u32 {
        let stream = 2 * n + 1;
        let ask = frame(HEADERS, END_HEADERS | END_STREAM, stream, &request(GET, "/hello", &[]));
        connection.write.write_all(&[ask, frame(PING, 0, 0, &[1; 8])].concat()).await.unwrap();
        loop {
            let (kind, flags, of, _) = timeout(HANG, connection.next()).await.unwrap().expect("cut off");
            if (kind, of, flags & END_STREAM) == (DATA, stream, END_STREAM) {
                break;
            }
        }
        let updates = [0, stream].map(|stream| frame(WINDOW_UPDATE, 0, stream, &5_u32.to_be_bytes())).concat();
        connection.write.write_all(&updates).await.unwrap();
    }
    drop(connection);
    port.has_everything_back().await;
    assert_eq!(port.traffic.cut(Cut::Flood), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_of_somebody_who_does_not_read_the_answers() {
    let port = Port::new(PortLimits { first_request: HANG, write: Duration::from_secs(1), ..short() }).await;
    let Http2 { read, mut write } = Http2::new(&port, &frame(SETTINGS, 0, 0, &[])).await;
    let pings = frame(PING, 0, 0, &[0; 8]).repeat(1000);
    while timeout(HANG, write.write_all(&pings)).await.expect("neither served nor cut off").is_ok() {}
    port.serves_others().await;
    drop((read, write));
    port.has_everything_back().await;
}
