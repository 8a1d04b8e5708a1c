//! The parity suite: every case runs with the same assertions over tonic's own HTTP/2 transport, over tonic's channel to
//! `serve_tcp`, and over QUIC.
#![allow(clippy::unwrap_used)]

mod support;

use std::{collections::HashSet, sync::atomic::Ordering::SeqCst, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, future::join_all, stream};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming, metadata::MetadataValue, service::Routes};

use support::{
    Env, HANG, Wire, channel,
    echo::{Blob, blob, chat, codec, consume, path, produce, unary},
    eventually, serve,
};

macro_rules! parity {
    ($($case:ident)*; tonic_lacks: $($ours:ident)*) => {
        mod http2 { $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $case() { super::run(super::Wire::Http2, super::$case).await })* }
        mod tcp { $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $case() { super::run(super::Wire::Tcp, super::$case).await })* $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $ours() { super::run(super::Wire::Tcp, super::$ours).await })* }
        mod quic { $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $case() { super::run(super::Wire::Quic, super::$case).await })* $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $ours() { super::run(super::Wire::Quic, super::$ours).await })* }
    };
}

async fn run<F: Future<Output = ()>>(wire: Wire, case: impl FnOnce(Env) -> F) {
    timeout(HANG, case(Env::new(wire).await)).await.expect("the case hangs");
}

parity! {
    a_unary_call_is_answered
    an_empty_message_arrives
    a_message_of_4_mib_arrives_both_ways
    a_message_past_the_limit_is_refused
    ten_thousand_small_messages_arrive_in_order
    ten_thousand_small_messages_are_taken_in_order
    a_stream_without_messages_ends_well
    a_request_stream_without_messages_ends_well
    a_thousand_turns_of_conversation
    the_server_may_end_a_conversation_first
    an_answer_may_come_before_the_request_has_ended
    a_slow_reader_holds_the_producer_back
    a_slow_handler_holds_the_caller_back
    a_deadline_ends_a_unary_call
    a_deadline_drops_the_handler
    a_generous_deadline_changes_nothing
    dropping_a_call_stops_its_handler
    dropping_a_response_stream_stops_its_producer
    dropping_an_open_conversation_stops_its_handler
    an_error_ends_a_stream_after_its_messages
    an_error_carries_message_details_and_metadata
    a_streaming_call_can_fail_at_once
    an_error_amid_a_request_stream_reaches_the_caller
    every_status_code_survives
    text_metadata_goes_both_ways
    binary_metadata_goes_both_ways
    repeated_metadata_keys_keep_their_order
    response_metadata_comes_before_the_first_message
    an_unknown_method_is_unimplemented
    an_unknown_service_is_unimplemented
    a_panicking_handler_is_an_error_not_a_hang
    a_panic_amid_a_stream_is_an_error_not_an_end
    a_hundred_calls_at_once_share_one_connection
    a_stalled_call_does_not_hold_up_another
    nobody_listening_is_unavailable
    a_server_that_vanishes_breaks_the_stream
    a_channel_connects_again_after_a_restart
    a_shutdown_lets_running_streams_finish
    the_health_service_works;

    // tonic's own server and channel let a deadline pass once the response has begun.
    tonic_lacks: a_deadline_ends_a_stream
}

async fn collect(mut messages: Streaming<Blob>) -> (Vec<u64>, Option<Status>) {
    let mut seen = vec![];
    loop {
        match messages.message().await {
            Ok(Some(blob)) => seen.push(blob.n),
            Ok(None) => return (seen, None),
            Err(status) => return (seen, Some(status)),
        }
    }
}

/// tonic's own client answers CANCELLED when its timer is first, the server DEADLINE_EXCEEDED.
fn is_deadline(status: &Status) -> bool {
    matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled)
}

fn with_timeout(blob: Blob, timeout: Duration) -> Request<Blob> {
    let mut request = Request::new(blob);
    request.set_timeout(timeout);
    request
}

const SHORT: Duration = Duration::from_millis(150);

async fn a_unary_call_is_answered(env: Env) {
    let sent = Blob { data: Bytes::from_static(b"\x00payload\xff"), verb: "echo".into(), n: u64::MAX };
    assert_eq!(unary(env.client(), sent.clone()).await.unwrap().into_inner(), sent);
}

async fn an_empty_message_arrives(env: Env) {
    assert_eq!(unary(env.client(), Blob::default()).await.unwrap().into_inner(), Blob::default());
}

async fn a_message_of_4_mib_arrives_both_ways(env: Env) {
    let data: Vec<u8> = (0..4 * 1024 * 1024_u32).map(|n| (n ^ n >> 8) as u8).collect();
    let sent = Blob { data: data.into(), ..Blob::default() };
    assert_eq!(unary(env.client(), sent.clone()).await.unwrap().into_inner(), sent);
}

async fn a_message_past_the_limit_is_refused(env: Env) {
    let sent = Blob { data: vec![1; 5 * 1024 * 1024].into(), ..Blob::default() };
    assert_eq!(unary(env.client(), sent).await.unwrap_err().code(), Code::OutOfRange);
    assert!(unary(env.client(), blob("the connection is fine", 0)).await.is_ok());
}

async fn ten_thousand_small_messages_arrive_in_order(env: Env) {
    let messages = produce(env.client(), blob("", 10_000)).await.unwrap().into_inner();
    let (seen, error) = collect(messages).await;
    assert!(error.is_none(), "{error:?}");
    assert!(seen.into_iter().eq(0..10_000));
}

async fn ten_thousand_small_messages_are_taken_in_order(env: Env) {
    let sum = consume(env.client(), stream::iter((0..10_000).map(|n| blob("", n)))).await.unwrap().into_inner();
    assert_eq!(sum.n, (0..10_000).sum::<u64>());
    assert_eq!(env.probe.consumed.load(SeqCst), 10_000);
}

async fn a_stream_without_messages_ends_well(env: Env) {
    let (seen, error) = collect(produce(env.client(), blob("", 0)).await.unwrap().into_inner()).await;
    assert!(seen.is_empty() && error.is_none(), "{error:?}");
}

async fn a_request_stream_without_messages_ends_well(env: Env) {
    assert_eq!(consume(env.client(), stream::empty()).await.unwrap().into_inner(), blob("sum", 0));
}

async fn a_thousand_turns_of_conversation(env: Env) {
    let (say, said) = tokio::sync::mpsc::channel(1);
    let mut replies = chat(env.client(), ReceiverStream::new(said)).await.unwrap().into_inner();
    for n in 0..1000 {
        say.send(blob("say", n)).await.unwrap();
        assert_eq!(replies.message().await.unwrap().unwrap().n, n);
    }
    drop(say);
    assert!(replies.message().await.unwrap().is_none());
}

async fn the_server_may_end_a_conversation_first(env: Env) {
    let (say, said) = tokio::sync::mpsc::channel(2);
    say.send(blob("say", 1)).await.unwrap();
    say.send(blob("end", 2)).await.unwrap();
    let (seen, error) = collect(chat(env.client(), ReceiverStream::new(said)).await.unwrap().into_inner()).await;
    assert_eq!(seen, [1]);
    assert!(error.is_none(), "{error:?}");
}

async fn an_answer_may_come_before_the_request_has_ended(env: Env) {
    let messages = stream::iter([blob("early", 5)]).chain(stream::pending());
    assert_eq!(consume(env.client(), messages).await.unwrap().into_inner().n, 5);
}

async fn a_slow_reader_holds_the_producer_back(env: Env) {
    let mut messages = produce(env.client(), blob("big", 10_000)).await.unwrap().into_inner();
    messages.message().await.unwrap().unwrap();
    // Waits until the producer has come to rest: what it made by then is what the wire buffers.
    let mut before = 0;
    loop {
        tokio::time::sleep(SHORT).await;
        let now = env.probe.produced.load(SeqCst);
        if now == before {
            break;
        }
        before = now;
    }
    assert!(before < 1000, "{before} messages of 16 KiB were produced for a reader that took 1");
    for _ in 1..10_000 {
        messages.message().await.unwrap().unwrap();
    }
    assert!(messages.message().await.unwrap().is_none());
}

async fn a_slow_handler_holds_the_caller_back(env: Env) {
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counter = sent.clone();
    let messages = stream::iter(0..10_000_u64).map(move |n| {
        counter.fetch_add(1, SeqCst);
        Blob { data: vec![1; 16 << 10].into(), verb: if n == 0 { "stall".into() } else { String::new() }, n }
    });
    let client = env.client();
    let call = tokio::spawn(consume(client, messages));
    eventually("the handler takes a message", || env.probe.consumed.load(SeqCst) == 1).await;
    let mut before = 0;
    loop {
        tokio::time::sleep(SHORT).await;
        let now = sent.load(SeqCst);
        if now == before {
            break;
        }
        before = now;
    }
    assert!(before < 1000, "{before} messages of 16 KiB were sent to a handler that took 1");
    call.abort();
    eventually("the handler is dropped", || env.probe.ended.load(SeqCst) == 1).await;
}

async fn a_deadline_ends_a_unary_call(env: Env) {
    let status = unary(env.client(), with_timeout(blob("hang", 0), SHORT)).await.unwrap_err();
    assert!(is_deadline(&status), "{status:?}");
}

async fn a_deadline_drops_the_handler(env: Env) {
    // On a busy machine a short one may pass before there is a handler.
    for deadline in longer_and_longer() {
        let status = unary(env.client(), with_timeout(blob("hang", 0), deadline)).await.unwrap_err();
        assert!(is_deadline(&status), "{status:?}");
        if env.probe.started.load(SeqCst) > 0 {
            break;
        }
    }
    eventually("the handler is dropped", || {
        let (started, ended) = (env.probe.started.load(SeqCst), env.probe.ended.load(SeqCst));
        started > 0 && ended == started
    })
    .await;
}

async fn a_deadline_ends_a_stream(env: Env) {
    // On a busy machine a short one may pass before the messages are there.
    for deadline in longer_and_longer() {
        let (seen, error) = match produce(env.client(), with_timeout(blob("hang", 3), deadline)).await {
            Ok(messages) => collect(messages.into_inner()).await,
            Err(status) => (vec![], Some(status)),
        };
        let error = error.unwrap();
        assert!(is_deadline(&error), "{error:?}");
        assert_eq!(seen, [0, 1, 2][..seen.len()]);
        if seen.len() == 3 {
            eventually("the producer is dropped", || env.probe.ended.load(SeqCst) == env.probe.started.load(SeqCst))
                .await;
            return;
        }
    }
    panic!("no deadline leaves time for three messages");
}

/// Deadlines from [`SHORT`] to ten seconds or so.
fn longer_and_longer() -> impl Iterator<Item = Duration> {
    (0..7).map(|doubled| SHORT * 2_u32.pow(doubled))
}

async fn a_generous_deadline_changes_nothing(env: Env) {
    let request = with_timeout(blob("", 100), Duration::from_secs(3600));
    let (seen, error) = collect(produce(env.client(), request).await.unwrap().into_inner()).await;
    assert_eq!(seen.len(), 100);
    assert!(error.is_none(), "{error:?}");
}

async fn dropping_a_call_stops_its_handler(env: Env) {
    let call = tokio::spawn(unary(env.client(), blob("hang", 0)));
    eventually("the handler runs", || env.probe.started.load(SeqCst) == 1).await;
    assert_eq!(env.probe.ended.load(SeqCst), 0);
    call.abort();
    eventually("the handler is dropped", || env.probe.ended.load(SeqCst) == 1).await;
}

async fn dropping_a_response_stream_stops_its_producer(env: Env) {
    let mut messages = produce(env.client(), blob("hang", 3)).await.unwrap().into_inner();
    assert_eq!(messages.message().await.unwrap().unwrap().n, 0);
    assert_eq!(env.probe.ended.load(SeqCst), 0);
    drop(messages);
    eventually("the producer is dropped", || env.probe.ended.load(SeqCst) == 1).await;
}

async fn dropping_an_open_conversation_stops_its_handler(env: Env) {
    let (say, said) = tokio::sync::mpsc::channel(2);
    say.send(blob("say", 1)).await.unwrap();
    let mut replies = chat(env.client(), ReceiverStream::new(said)).await.unwrap().into_inner();
    replies.message().await.unwrap().unwrap();
    say.send(blob("hang", 2)).await.unwrap();
    assert_eq!(env.probe.ended.load(SeqCst), 0);
    drop((say, replies));
    eventually("the handler is dropped", || env.probe.ended.load(SeqCst) == 1).await;
}

async fn an_error_ends_a_stream_after_its_messages(env: Env) {
    let (seen, error) = collect(produce(env.client(), blob("fail", 5)).await.unwrap().into_inner()).await;
    assert_eq!(seen, [0, 1, 2, 3, 4]);
    assert_failure(&error.unwrap(), Code::FailedPrecondition);
}

async fn an_error_carries_message_details_and_metadata(env: Env) {
    let status = unary(env.client(), blob("fail", Code::NotFound as u64)).await.unwrap_err();
    assert_failure(&status, Code::NotFound);
}

async fn a_streaming_call_can_fail_at_once(env: Env) {
    let status = produce(env.client(), blob("refuse", Code::ResourceExhausted as u64)).await.unwrap_err();
    assert_failure(&status, Code::ResourceExhausted);
}

async fn an_error_amid_a_request_stream_reaches_the_caller(env: Env) {
    let messages = stream::iter([blob("", 1), blob("fail", Code::Aborted as u64)]).chain(stream::pending());
    assert_failure(&consume(env.client(), messages).await.unwrap_err(), Code::Aborted);
}

fn assert_failure(status: &Status, code: Code) {
    assert_eq!(status.code(), code);
    assert_eq!(status.message(), "it failed: ünïcode, 100 %, \"quotes\"\nand a second line");
    assert_eq!(status.details(), [0, 159, 146, 150]);
    assert_eq!(status.metadata().get("x-reason").unwrap(), "tested");
    assert_eq!(status.metadata().get_bin("x-reason-bin").unwrap().to_bytes().unwrap(), &[0, 1, 254, 255][..]);
}

async fn every_status_code_survives(env: Env) {
    for code in 1..=16 {
        let status = unary(env.client(), blob("fail", code)).await.unwrap_err();
        assert_eq!(status.code() as u64, code);
    }
}

async fn text_metadata_goes_both_ways(env: Env) {
    let mut request = Request::new(blob("", 0));
    request.metadata_mut().insert("x-text", MetadataValue::from_static("a value, with: punctuation"));
    let response = unary(env.client(), request).await.unwrap();
    assert_eq!(response.metadata().get("x-text").unwrap(), "a value, with: punctuation");
}

async fn binary_metadata_goes_both_ways(env: Env) {
    let all: Vec<u8> = (0..=255).collect();
    let mut request = Request::new(blob("", 0));
    request.metadata_mut().insert_bin("x-data-bin", MetadataValue::from_bytes(&all));
    let response = unary(env.client(), request).await.unwrap();
    assert_eq!(response.metadata().get_bin("x-data-bin").unwrap().to_bytes().unwrap(), &all[..]);
}

async fn repeated_metadata_keys_keep_their_order(env: Env) {
    let mut request = Request::new(blob("", 0));
    for value in ["one", "two", "three"] {
        request.metadata_mut().append("x-text", MetadataValue::from_static(value));
    }
    let response = unary(env.client(), request).await.unwrap();
    let values: Vec<_> = response.metadata().get_all("x-text").iter().map(|v| v.to_str().unwrap().to_owned()).collect();
    assert_eq!(values, ["one", "two", "three"]);
}

async fn response_metadata_comes_before_the_first_message(env: Env) {
    let mut request = Request::new(blob("hang", 0));
    request.metadata_mut().insert("x-text", MetadataValue::from_static("early"));
    let response = produce(env.client(), request).await.unwrap();
    assert_eq!(response.metadata().get("x-text").unwrap(), "early");
}

async fn an_unknown_method_is_unimplemented(env: Env) {
    assert_eq!(call_path(env, path("Missing")).await.code(), Code::Unimplemented);
}

async fn an_unknown_service_is_unimplemented(env: Env) {
    assert_eq!(call_path(env, "/no.Such/Service".parse().unwrap()).await.code(), Code::Unimplemented);
}

async fn call_path(env: Env, path: http::uri::PathAndQuery) -> Status {
    let mut client = env.client();
    client.ready().await.unwrap();
    client.unary(Request::new(blob("", 0)), path, codec()).await.unwrap_err()
}

async fn a_panicking_handler_is_an_error_not_a_hang(env: Env) {
    assert!(unary(env.client(), blob("panic", 0)).await.is_err());
    assert!(unary(env.client(), blob("the server goes on", 0)).await.is_ok());
}

async fn a_panic_amid_a_stream_is_an_error_not_an_end(env: Env) {
    // What was produced before may be lost with HTTP/2, which forgets it when the stream is reset; no proper end is what counts.
    let (_, error) = match produce(env.client(), blob("panic", 2)).await {
        Ok(response) => collect(response.into_inner()).await,
        Err(status) => (vec![], Some(status)),
    };
    assert!(error.is_some());
}

async fn a_hundred_calls_at_once_share_one_connection(env: Env) {
    let calls = (0..100).map(|n| {
        let client = env.client();
        async move {
            assert_eq!(unary(client.clone(), blob("sleep", 50)).await.unwrap().into_inner().n, 50);
            let (seen, error) = collect(produce(client, blob("", n)).await.unwrap().into_inner()).await;
            assert!(error.is_none(), "{error:?}");
            assert_eq!(seen.len() as u64, n);
        }
    });
    join_all(calls).await;
    if let Some(quic) = &env.quic {
        assert_eq!(quic.stats().full_handshakes, 1);
        assert_eq!(quic.stats().calls, 200);
    }
}

async fn a_stalled_call_does_not_hold_up_another(env: Env) {
    let mut stalled = produce(env.client(), blob("big", 10_000)).await.unwrap().into_inner();
    stalled.message().await.unwrap().unwrap();
    let (seen, error) = collect(produce(env.client(), blob("", 1000)).await.unwrap().into_inner()).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(seen.len(), 1000);
    assert!(stalled.message().await.unwrap().is_some());
}

async fn nobody_listening_is_unavailable(env: Env) {
    // A port that was free a moment ago, in both protocols' number spaces.
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let channel = channel(env.wire, port);
    let status = unary(tonic::client::Grpc::new(channel), blob("", 0)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
}

async fn a_server_that_vanishes_breaks_the_stream(env: Env) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let wire = env.wire;
    let other = runtime.spawn(Env::new(wire)).await.unwrap();
    let channel = channel(wire, other.addr);
    let mut messages = produce(tonic::client::Grpc::new(channel), blob("hang", 1)).await.unwrap().into_inner();
    messages.message().await.unwrap().unwrap();
    std::mem::forget(other);
    runtime.shutdown_background();
    assert!(messages.message().await.is_err());
}

async fn a_channel_connects_again_after_a_restart(env: Env) {
    unary(env.client(), blob("", 1)).await.unwrap();
    env.shutdown.cancel();
    eventually("the server stops", || env.server.is_finished()).await;
    let again = Env::at(env.wire, env.addr).await;
    // The old connection may be found dead only now.
    let mut answered = unary(env.client(), blob("", 2)).await;
    while answered.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        answered = unary(env.client(), blob("", 2)).await;
    }
    assert_eq!(again.probe.started.load(SeqCst), 1);
}

async fn a_shutdown_lets_running_streams_finish(env: Env) {
    let (say, said) = tokio::sync::mpsc::channel(1);
    let mut replies = chat(env.client(), ReceiverStream::new(said)).await.unwrap().into_inner();
    say.send(blob("say", 1)).await.unwrap();
    replies.message().await.unwrap().unwrap();
    env.shutdown.cancel();
    // Something new is refused, on the old connection or on a fresh one, once the server has taken notice.
    let status = loop {
        match timeout(HANG, unary(env.client(), blob("new", 0))).await.unwrap() {
            Ok(_) => tokio::task::yield_now().await,
            Err(status) => break status,
        }
    };
    say.send(blob("say", 2)).await.unwrap();
    assert_eq!(replies.message().await.unwrap().unwrap().n, 2);
    // hyper says CANCELLED for a connection that is shutting down, and tonic INTERNAL where the server's goodbye (GOAWAY, NO_ERROR) crosses the request.
    let crossed = format!("{status:?}").contains("GoAway(b\"\", NO_ERROR, Remote)");
    assert!(crossed || matches!(status.code(), Code::Unavailable | Code::Cancelled), "{status:?}");
    drop(say);
    assert!(replies.message().await.unwrap().is_none());
    eventually("the server stops", || env.server.is_finished()).await;
}

async fn the_health_service_works(env: Env) {
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter.set_service_status("test.Echo", tonic_health::ServingStatus::Serving).await;
    let (addr, _shutdown, server) = serve(env.wire, ([127, 0, 0, 1], 0).into(), Routes::new(service)).await;
    let mut client = HealthClient::new(channel(env.wire, addr));
    let request = |service: &str| HealthCheckRequest { service: service.into() };
    let answer = client.check(request("test.Echo")).await.unwrap().into_inner();
    assert_eq!(answer.status, ServingStatus::Serving as i32);
    assert_eq!(client.check(request("nobody")).await.unwrap_err().code(), Code::NotFound);
    let mut watch = client.watch(request("test.Echo")).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status, ServingStatus::Serving as i32);
    reporter.set_service_status("test.Echo", tonic_health::ServingStatus::NotServing).await;
    assert_eq!(watch.message().await.unwrap().unwrap().status, ServingStatus::NotServing as i32);
    server.abort();
}

/// At least the 25 cases that were promised, and each name once.
#[test]
fn the_suite_is_complete() {
    let source = include_str!("parity.rs");
    let (_, cases) = source.split_once("parity! {\n").unwrap();
    let cases: Vec<_> = cases.lines().take_while(|line| !line.ends_with(';')).map(str::trim).collect();
    assert!(cases.len() >= 25);
    assert_eq!(cases.iter().collect::<HashSet<_>>().len(), cases.len());
}
