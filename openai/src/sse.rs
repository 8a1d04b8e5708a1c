//! Server-sent events, as they come.

use std::{
    convert::Infallible,
    future::Future as _,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http::{HeaderValue, header};
use http_body::Frame;
use titan_proto::v1::StreamResponse;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tonic::Status;

use crate::{backend::Backend, error::ApiError, generation::broke_off};

/// Events of one dialect.
pub(crate) trait Encoder: Send + Unpin + 'static {
    /// Adds the events of a message; of the last one, all that ends the stream.
    fn message(&mut self, message: StreamResponse, out: &mut Vec<u8>);

    /// Adds what says that the answer went wrong.
    fn failed(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(error.json().as_bytes());
        out.extend_from_slice(b"\n\n");
    }

    /// Adds what comes before the first message.
    fn begin(&mut self, _out: &mut Vec<u8>) {}
}

/// What clients and proxies skip: it shows that the connection lives.
const COMMENT: &[u8] = b": waiting\n\n";

/// An answer as events. It waits for the first message, so that what goes wrong before it is an error with a status; not for longer than clients wait without
/// a word.
pub(crate) async fn answer<B: Backend, E: Encoder>(
    mut stream: B::Stream,
    mut encoder: E,
    comment_interval: Duration,
) -> Result<Response, ApiError> {
    let mut ready = Vec::new();
    let first = timeout(comment_interval, stream.next()).await;
    let first = match first {
        Ok(None) => return Err(broke_off()),
        Ok(Some(message)) => Some(message?),
        Err(_) => None,
    };
    encoder.begin(&mut ready);
    let mut ended = false;
    match first {
        Some(message) => {
            ended = message.done;
            encoder.message(message, &mut ready);
        }
        None => ready.extend_from_slice(COMMENT),
    }
    let stream = if ended { None } else { Some(stream) };
    let body = Events { stream, encoder, ready, comment_interval, silence: Box::pin(sleep(comment_interval)) };
    Ok(respond(Body::new(body)))
}

/// A stream of events that were made elsewhere.
pub(crate) fn events(events: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    respond(Body::from_stream(events.map(Ok::<_, Infallible>)))
}

fn respond(body: Body) -> Response {
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Or nginx gathers a page of it first.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

struct Events<S, E> {
    /// `None` when it has ended.
    stream: Option<S>,
    encoder: E,
    /// Bytes that are to be sent.
    ready: Vec<u8>,
    comment_interval: Duration,
    silence: Pin<Box<Sleep>>,
}

/// Messages that are taken at once where several are there already; then others have their turn.
const MAX_AT_ONCE: usize = 32;

impl<S, E> http_body::Body for Events<S, E>
where
    S: Stream<Item = Result<StreamResponse, Status>> + Unpin,
    E: Encoder,
{
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let mut taken = 0;
        while let Some(stream) = &mut this.stream {
            if taken == MAX_AT_ONCE {
                // Its waker is not registered: without this a stream whose messages say nothing here, hidden reasoning for one, would wait for the timer.
                cx.waker().wake_by_ref();
                break;
            }
            taken += 1;
            match stream.poll_next_unpin(cx) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(message))) => {
                    let done = message.done;
                    this.encoder.message(message, &mut this.ready);
                    if done {
                        this.stream = None;
                    }
                }
                Poll::Ready(Some(Err(status))) => {
                    this.encoder.failed(&status.into(), &mut this.ready);
                    this.stream = None;
                }
                Poll::Ready(None) => {
                    this.encoder.failed(&broke_off(), &mut this.ready);
                    this.stream = None;
                }
            }
        }
        if this.ready.is_empty() {
            if this.stream.is_none() {
                return Poll::Ready(None);
            }
            if this.silence.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            this.ready.extend_from_slice(COMMENT);
        }
        this.silence.as_mut().reset(Instant::now() + this.comment_interval);
        Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.ready).into()))))
    }
}
