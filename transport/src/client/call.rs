//! One call on the client: PROTOCOL.md §3 to §6.

use std::{
    future::Future as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body::{Body as HttpBody, Frame};
use quinn::{ConnectionError, WriteError};
use titan_proto::wire::Headers;
use tokio::{
    task::JoinHandle,
    time::{Instant, Sleep, sleep_until, timeout_at},
};
use tonic::{Status, body::Body};

use super::{
    CallError, ConnectError, EarlyDataSafe, QuicChannel,
    channel::{Live, Running},
};
use crate::{
    body::{IncomingBody, Start, reset_status},
    deadline,
    repeat::receiver::Repeated,
    stream::OutgoingStream,
    wire::{ErrorCode, frame, metadata, reframe::Reframer},
};

/// A request up to this size is sent in one go, and kept so that it can be sent again if no handler saw it. Larger ones
/// are streamed.
const GATHER_BYTES: usize = 64 * 1024;
/// How often a request that no handler saw is sent again by itself: once for refused early data, once for a server that
/// began to drain just then.
const MAX_RESENDS: usize = 2;
/// Deadline of a call that sets none: about a year, which the timer can represent.
const NO_DEADLINE: Duration = Duration::from_secs(365 * 86_400);

/// Makes one call; resolves when the response begins.
pub(super) async fn call(channel: QuicChannel, request: Request<Body>) -> Result<Response<Body>, Status> {
    let timeout = deadline::grpc_timeout(request.headers())
        .map_err(|value| Status::invalid_argument(format!("grpc-timeout {value:?} is malformed")))?;
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    // Dropping the attempt, by the deadline or by the caller, resets the stream.
    match timeout_at(deadline.unwrap_or_else(|| Instant::now() + NO_DEADLINE), attempts(&channel, request)).await {
        Ok(response) => response.map(|(start, body)| into_http(start, body, deadline)),
        Err(_) => Err(deadline::exceeded()),
    }
}

async fn attempts(channel: &QuicChannel, request: Request<Body>) -> Result<(Start, ResponseBody), Status> {
    let (parts, body) = request.into_parts();
    let safe = parts.extensions.get::<EarlyDataSafe>().is_some();
    let repeat = channel.options().redundancy;
    let headers = Headers { path: parts.uri.path().to_owned(), metadata: metadata::entries(&parts.headers), repeat };
    let mut outgoing = Outgoing::begin(&headers, body)?;
    let mut resends = 0;
    loop {
        // Early data may be replayed, and only a request in one piece can be sent again if it is refused.
        let live = if safe && outgoing.complete() { channel.any().await } else { channel.ready().await };
        let live = live.map_err(|error| CallError::NotSent(error).into_status())?;
        let again = outgoing.again();
        let early = !live.is_complete();
        channel.count_call(early);
        channel.request(&live);
        let error = match attempt(&live, outgoing).await {
            Ok(response) => {
                // An answer shows that the handshake is complete, and whoever has it finds that in the counters.
                if early {
                    let _ = live.complete().await;
                }
                return Ok(response);
            }
            Err(error) => error,
        };
        let not_processed = match CallError::of(&error) {
            // Early data that got no answer: it was lost or not even sent. The nonce in the request guards against twice.
            Some(CallError::Lost(_)) if early => live.complete().await.err().map(CallError::NotSent),
            Some(cause) if cause.not_processed() => Some(cause.clone()),
            _ => None,
        };
        let Some(cause) = not_processed else { return Err(error) };
        match cause {
            // The other end is gone for good, or not there: the caller should know now.
            CallError::NotSent(_) if early => return Err(cause.into_status()),
            CallError::Refused => live.set_draining(),
            CallError::EarlyDataRejected => {
                live.complete().await.map_err(|error| CallError::NotSent(error).into_status())?;
            }
            _ => {}
        }
        resends += 1;
        match again {
            Some(again) if resends <= MAX_RESENDS => outgoing = again,
            _ => return Err(error),
        }
    }
}

/// Sends the request on a stream of its own and waits for the beginning of the response.
async fn attempt(live: &Arc<Live>, outgoing: Outgoing) -> Result<(Start, ResponseBody), Status> {
    let running = Running::new(live);
    let (send, recv) = live.connection.open_bi().await.map_err(|error| not_sent(live, error))?;
    let repeated = outgoing.repeat.then(|| Repeated::new(&live.inboxes, recv.id().into()));
    let mut sender = OutgoingStream::new(send, ErrorCode::Cancelled);
    let task = if outgoing.complete() {
        let mut chunks = outgoing.chunks;
        if let Err(error) = sender.write(&mut chunks).await {
            write_failed(error)?;
        }
        sender.finish();
        None
    } else {
        Some(AbortOnDrop(tokio::spawn(outgoing.send_all(sender))))
    };
    let mut incoming = IncomingBody::response(recv, repeated);
    let start = incoming.response_start().await.map_err(|error| {
        incoming.stop(error.code());
        error.into_status()
    })?;
    Ok((start, ResponseBody { incoming, deadline: None, _sender: task, _running: running }))
}

fn not_sent(live: &Live, error: ConnectionError) -> Status {
    CallError::NotSent(ConnectError::Handshake { addr: live.connection.remote_address(), error }).into_status()
}

/// What a failed write means. A server that has answered may stop the rest of the request: its answer is what counts.
fn write_failed(error: WriteError) -> Result<(), Status> {
    match error {
        WriteError::Stopped(code) if code == ErrorCode::NoError.code() => Ok(()),
        WriteError::Stopped(code) => Err(reset_status(code)),
        WriteError::ConnectionLost(error) => Err(CallError::Lost(error).into_status()),
        WriteError::ZeroRttRejected => Err(CallError::EarlyDataRejected.into_status()),
        WriteError::ClosedStream => Err(Status::internal("the request's stream was closed early")),
    }
}

/// A request on its way out: what can be sent at once, and the rest of its body, if any.
struct Outgoing {
    /// Whether the answer may be repeated.
    repeat: bool,
    chunks: Vec<Bytes>,
    rest: Option<(Body, Reframer)>,
}

impl Outgoing {
    /// Takes from `body` what is there without waiting: all of a unary request.
    fn begin(headers: &Headers, body: Body) -> Result<Self, Status> {
        let repeat = headers.repeat;
        let (mut chunks, mut reframer, mut body) = (vec![frame::headers_frame(headers)], Reframer::default(), body);
        // Woken later by the task that sends the rest: this poll only looks.
        let mut cx = Context::from_waker(std::task::Waker::noop());
        while chunks.iter().map(Bytes::len).sum::<usize>() <= GATHER_BYTES {
            match Pin::new(&mut body).poll_frame(&mut cx) {
                Poll::Ready(Some(frame)) => {
                    if let Ok(data) = frame?.into_data() {
                        reframer.push(data, &mut chunks, |_| {});
                    }
                }
                Poll::Ready(None) => return Ok(Self { repeat, chunks, rest: None }),
                Poll::Pending => break,
            }
        }
        Ok(Self { repeat, chunks, rest: Some((body, reframer)) })
    }

    fn complete(&self) -> bool {
        self.rest.is_none()
    }

    /// The same request, to send again.
    fn again(&self) -> Option<Self> {
        self.complete().then(|| Self { repeat: self.repeat, chunks: self.chunks.clone(), rest: None })
    }

    /// Sends everything, waiting for the body and for the peer as needed.
    async fn send_all(mut self, mut sender: OutgoingStream) {
        let result = async {
            sender.write(&mut self.chunks).await?;
            let Some((mut body, mut reframer)) = self.rest else { return Ok(true) };
            while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                // The program's own request stream failed: there is nothing more to send, and no proper end.
                let Ok(frame) = frame else { return Ok(false) };
                if let Ok(data) = frame.into_data() {
                    reframer.push(data, &mut self.chunks, |_| {});
                    sender.write(&mut self.chunks).await?;
                }
            }
            Ok::<_, WriteError>(reframer.at_boundary())
        };
        match result.await {
            Ok(true) => sender.finish(),
            // The reader of the response learns the reason.
            Ok(false) | Err(_) => sender.abort(ErrorCode::Cancelled),
        }
    }
}

/// The rest of a response. Dropping it cancels the call.
struct ResponseBody {
    incoming: IncomingBody,
    deadline: Option<Pin<Box<Sleep>>>,
    _sender: Option<AbortOnDrop>,
    _running: Running,
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            self.deadline = None;
            self.incoming.stop(ErrorCode::Cancelled);
            return Poll::Ready(Some(Err(deadline::exceeded())));
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The response as tonic's own transport would give it.
fn into_http(start: Start, mut body: ResponseBody, deadline: Option<Instant>) -> Response<Body> {
    let (headers, body) = match start {
        Start::Headers(headers) => {
            body.deadline = deadline.map(|deadline| Box::pin(sleep_until(deadline)));
            (headers, Body::new(body))
        }
        Start::Trailers(trailers) => (trailers, Body::empty()),
    };
    let mut response = Response::new(body);
    *response.version_mut() = http::Version::HTTP_2;
    *response.headers_mut() = headers;
    response.headers_mut().entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/grpc"));
    response
}
