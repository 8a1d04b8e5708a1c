//! How long a request may take to arrive, the same on both wires.
//!
//! A handler that waits for the rest of a request costs memory and perhaps a place, and a peer can make it wait by sending a byte now and
//! then. So what a handler needs to begin has to be there within one limit: the whole body, or with gRPC the first message, since
//! the others may be questions of a conversation.

use std::{
    future::{Future, pending},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::sleep;
use tonic::Status;

/// gRPC's prefix of a message: whether it is compressed, and its length in four bytes.
const PREFIX_BYTES: usize = 5;

/// Follows the body of `request`. The future resolves when a handler has waited for it until `limit` was over, with what the peer is to be
/// told; it is to be dropped when the handler has answered.
pub(crate) fn limit(
    request: Request<Body>,
    limit: Duration,
) -> (Request<Body>, impl Future<Output = Response<Body>> + use<>) {
    let (is_grpc, version) = (is_grpc(request.headers()), request.version());
    let complete = request.body().is_end_stream();
    let waiting = Arc::new(AtomicBool::new(false));
    let request = if complete {
        request
    } else {
        let needed = if is_grpc { Needed::Message(Prefix::default()) } else { Needed::Everything };
        request.map(|body| Body::new(Arriving { body, needed, waiting: Arc::clone(&waiting) }))
    };
    let late = async move {
        if complete {
            return pending().await;
        }
        loop {
            sleep(limit).await;
            if waiting.load(Relaxed) {
                let mut response = too_late(is_grpc, version, limit);
                response.extensions_mut().insert(Late);
                return response;
            }
        }
    };
    (request, late)
}

/// What the peer gets whose request has not arrived.
fn too_late(is_grpc: bool, version: Version, limit: Duration) -> Response<Body> {
    let message = format!("the request did not arrive within {} s", limit.as_secs_f32());
    if is_grpc {
        return Status::deadline_exceeded(message).into_http();
    }
    let body = serde_json::json!({"error": "request_timeout", "code": 408, "message": message}).to_string();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::REQUEST_TIMEOUT;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // RFC 9110 §15.5.9. HTTP/2 has no such header (RFC 9113 §8.2.2).
    if version < Version::HTTP_2 {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Marks the answer to a request that did not arrive: an extension of the response.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Late;

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// A request's body on its way to a handler.
struct Arriving {
    body: Body,
    needed: Needed,
    /// Whether the handler waits for something that it needs.
    waiting: Arc<AtomicBool>,
}

/// What a handler cannot begin without.
enum Needed {
    Everything,
    Message(Prefix),
    /// It is there.
    Nothing,
}

/// How far the first message has come.
#[derive(Default)]
struct Prefix {
    bytes: [u8; PREFIX_BYTES],
    /// Bytes of the prefix and the message so far.
    received: u64,
}

impl Prefix {
    /// Whether the message is complete with `data`.
    fn take(&mut self, data: &[u8]) -> bool {
        let have = self.received.min(PREFIX_BYTES as u64) as usize;
        let more = data.len().min(PREFIX_BYTES - have);
        self.bytes[have..have + more].copy_from_slice(&data[..more]);
        self.received += data.len() as u64;
        let [_, length @ ..] = self.bytes;
        self.received >= PREFIX_BYTES as u64 + u64::from(u32::from_be_bytes(length))
    }
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        this.waiting.store(polled.is_pending() && !matches!(this.needed, Needed::Nothing), Relaxed);
        let frame = ready!(polled);
        let complete = match (&mut this.needed, &frame) {
            (Needed::Message(prefix), Some(Ok(frame))) => frame.data_ref().is_some_and(|data| prefix.take(data)),
            (_, None) => true,
            _ => this.body.is_end_stream(),
        };
        if complete {
            this.needed = Needed::Nothing;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::convert::Infallible;

    use futures_util::FutureExt as _;
    use http_body_util::{BodyExt as _, StreamBody};
    use tokio::{sync::mpsc, time::timeout};
    use tokio_stream::{StreamExt as _, wrappers::UnboundedReceiverStream};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    /// A body that gets what is sent.
    fn body() -> (mpsc::UnboundedSender<&'static [u8]>, Body) {
        let (sender, pieces) = mpsc::unbounded_channel();
        let frames = UnboundedReceiverStream::new(pieces)
            .map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::from_static(piece))));
        (sender, Body::new(StreamBody::new(frames)))
    }

    fn asking(content_type: &'static str, body: Body) -> Request<Body> {
        Request::builder().header("content-type", content_type).body(body).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_trickles_is_late_however_often_a_byte_comes() {
        let (sender, pieces) = body();
        let (request, late) = limit(asking("application/json", pieces), LIMIT);
        let trickle = async {
            loop {
                sender.send(b" ").unwrap();
                sleep(LIMIT / 10).await;
            }
        };
        tokio::select! {
            _ = request.into_body().collect() => panic!("it never ends"),
            () = trickle => {}
            late = timeout(LIMIT * 2, late) => assert_eq!(late.unwrap().status(), StatusCode::REQUEST_TIMEOUT),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn with_grpc_the_first_message_has_to_come_and_the_next_may_take_their_time() {
        let cases: [(&[&'static [u8]], bool); 6] = [
            (&[b"\0\0\0\0\x02ab"], true),
            (&[b"\0\0", b"\0\0\x02", b"a", b"b"], true),
            (&[b"\0\0\0\0\0"], true),
            (&[b"\0\0\0\0\x02a"], false),
            (&[b"\0\0\0\0"], false),
            (&[], false),
        ];
        for (pieces, comes) in cases {
            let (sender, body) = body();
            let (request, late) = limit(asking("application/grpc+proto", body), LIMIT);
            pieces.iter().for_each(|piece| sender.send(piece).unwrap());
            let mut body = request.into_body();
            let reader = async { while body.frame().await.is_some() {} };
            tokio::select! {
                () = reader => panic!("the sender is still there"),
                late = timeout(LIMIT * 10, late) => assert_eq!(late.is_err(), comes, "{pieces:?}"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_handler_that_does_something_else_waits_for_nobody() {
        let (_sender, pieces) = body();
        let (request, late) = limit(asking("application/json", pieces), LIMIT);
        assert!(timeout(LIMIT * 10, late).await.is_err());
        drop(request);
        let (request, late) = limit(asking("application/json", Body::empty()), LIMIT);
        assert!(request.into_body().frame().now_or_never().unwrap().is_none());
        assert!(timeout(LIMIT * 10, late).await.is_err());
    }

    #[test]
    fn whoever_is_late_is_told_in_its_own_words() {
        let answer = too_late(true, Version::HTTP_2, LIMIT);
        assert_eq!((answer.status(), answer.headers()["grpc-status"].as_bytes()), (StatusCode::OK, &b"4"[..]));
        let answer = too_late(false, Version::HTTP_11, LIMIT);
        assert_eq!((answer.status().as_u16(), answer.headers()["connection"].as_bytes()), (408, &b"close"[..]));
        assert!(!too_late(false, Version::HTTP_2, LIMIT).headers().contains_key("connection"));
    }
}
