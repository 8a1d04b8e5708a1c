//! One call on the server: a request from the stream, through the router, the response to the stream.

use std::{pin::Pin, sync::Arc, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use http::{HeaderValue, Method, Request, Response, Uri, header::CONTENT_TYPE, request};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt as _;
use quinn::{RecvStream, SendStream};
use titan_proto::wire::Headers;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    body::{IncomingBody, IncomingError},
    deadline,
    limits::{DRAIN_TIMEOUT, HEADERS_TIMEOUT, PortLimits},
    peer::PeerInfo,
    repeat::sender::{Repeater, Repeats},
    stream::{OutgoingStream, SendError},
    wire::{
        ErrorCode, frame,
        metadata::{self, MetadataError},
        reframe::Reframer,
    },
};

/// Serves one call. The handler is dropped at once when the caller goes away or `killed` is cancelled.
pub(crate) async fn serve(
    mut router: axum::Router,
    peer: PeerInfo,
    send: SendStream,
    recv: RecvStream,
    repeats: Option<Arc<Repeats>>,
    limits: PortLimits,
    killed: CancellationToken,
) {
    let stream = u64::from(send.id());
    // Each is asked again only when it has something to say, not at each of the call's messages.
    let mut endings = FuturesUnordered::new();
    endings.push(send.stopped().map(drop).boxed());
    endings.push(killed.cancelled_owned().boxed());
    let mut out = OutgoingStream::new(send, ErrorCode::Internal);
    let call = async {
        let mut body = IncomingBody::request(recv);
        let headers = match timeout(HEADERS_TIMEOUT, body.request_headers()).await {
            Ok(Ok(headers)) => headers,
            Ok(Err(error)) => return refuse(&mut out, body, error, limits.write).await,
            Err(_) => {
                body.stop(ErrorCode::Timeout);
                out.abort(ErrorCode::Timeout);
                return Ok(());
            }
        };
        let mut repeater = repeats.filter(|_| headers.repeat).map(|repeats| Repeater::new(&repeats, stream));
        let request = match request_parts(headers) {
            Ok(parts) => Request::from_parts(parts, Body::new(body)),
            Err(error) => return respond(&mut Answer::new(&mut out, None, limits.write), error.into_http()).await,
        };
        let response = deadline::call(&mut router, with_peer(request, peer), limits.request).await;
        respond(&mut Answer::new(&mut out, repeater.as_mut(), limits.write), response).await?;
        if let Some(repeater) = &mut repeater {
            repeater.finish().await;
        }
        Ok(())
    };
    let result = tokio::select! {
        result = call => result,
        // STOP_SENDING, or the connection is gone, or the drain has taken too long: dropping `call` drops the handler. Everything
        // acknowledged is an ending too, and then only repeats are left of `call`.
        _ = endings.next() => {
            out.abort(ErrorCode::Cancelled);
            return;
        }
    };
    match result {
        // Whoever closes the connection waits for this task, and a close would throw away what is not acknowledged.
        Ok(()) => drop(timeout(DRAIN_TIMEOUT, endings.next()).await),
        Err(error) => {
            if matches!(error, SendError::Stalled(_)) {
                out.abort(ErrorCode::Timeout);
            }
            tracing::debug!(%error, "response not delivered");
        }
    }
}

fn with_peer(mut request: Request<Body>, peer: PeerInfo) -> Request<Body> {
    request.extensions_mut().insert(peer);
    request
}

/// The request as HTTP/2 would have brought it.
fn request_parts(headers: Headers) -> Result<request::Parts, Status> {
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::try_from(&headers.path)
        .ok()
        .filter(|uri| headers.path.starts_with('/') && uri.query().is_none())
        .ok_or_else(|| Status::invalid_argument(format!("{:?} is not /package.Service/Method", headers.path)))?;
    *request.version_mut() = http::Version::HTTP_2;
    metadata::insert(request.headers_mut(), headers.metadata).map_err(|error| match error {
        MetadataError::TooMany(_) => Status::resource_exhausted(error.to_string()),
        _ => Status::invalid_argument(error.to_string()),
    })?;
    request.headers_mut().entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    Ok(request.into_parts().0)
}

/// Answers a request that could not be read.
async fn refuse(
    out: &mut OutgoingStream,
    mut body: IncomingBody,
    error: IncomingError,
    write_limit: Duration,
) -> Result<(), SendError> {
    body.stop(error.code());
    match error {
        // The caller has gone, or reset the stream: nobody is left to tell.
        IncomingError::Read(_) => {
            out.abort(ErrorCode::Cancelled);
            Ok(())
        }
        error => respond(&mut Answer::new(out, None, write_limit), error.into_status().into_http()).await,
    }
}

/// A response on its way out: to the stream, and into datagrams where the caller wants that.
struct Answer<'a> {
    out: &'a mut OutgoingStream,
    repeater: Option<&'a mut Repeater>,
    /// How long the peer may take nothing.
    write_limit: Duration,
    /// Frames that are not written yet.
    chunks: Vec<Bytes>,
    reframer: Reframer,
}

impl<'a> Answer<'a> {
    fn new(out: &'a mut OutgoingStream, repeater: Option<&'a mut Repeater>, write_limit: Duration) -> Self {
        Self { out, repeater, write_limit, chunks: Vec::new(), reframer: Reframer::default() }
    }

    fn push(&mut self, frame: Bytes) {
        if let Some(repeater) = &self.repeater {
            repeater.push(Some(&frame));
        }
        self.chunks.push(frame);
    }

    fn push_data(&mut self, data: Bytes) {
        let Self { reframer, chunks, repeater, .. } = self;
        match repeater {
            Some(repeater) => reframer.push(data, chunks, |frame| repeater.push(frame)),
            None => reframer.push(data, chunks, |_| {}),
        }
    }

    /// Writes what was pushed.
    async fn flush(&mut self) -> Result<(), SendError> {
        if self.chunks.is_empty() {
            return Ok(());
        }
        if let Some(repeater) = &mut self.repeater {
            // Before the stream is written to and in the same turn of this task: both go into one packet.
            repeater.ride(self.chunks.iter().map(Bytes::len).sum());
        }
        self.out.write_within(&mut self.chunks, self.write_limit).await
    }

    /// Writes `last` and ends the stream.
    async fn finish(&mut self, last: Bytes) -> Result<(), SendError> {
        self.push(last);
        if let Some(repeater) = &mut self.repeater {
            repeater.ends();
        }
        self.flush().await?;
        self.out.finish();
        Ok(())
    }

    /// The body's next frame; repairs go out while it is not there.
    async fn frame(&mut self, body: &mut Body) -> Option<Result<Frame<Bytes>, axum::Error>> {
        std::future::poll_fn(|cx| {
            if let Some(repeater) = &mut self.repeater {
                repeater.poll(cx);
            }
            Pin::new(&mut *body).poll_frame(cx)
        })
        .await
    }
}

/// Writes a response: PROTOCOL.md §3.1.
async fn respond(answer: &mut Answer<'_>, response: Response<Body>) -> Result<(), SendError> {
    let (mut parts, mut body) = response.into_parts();
    if parts.headers.contains_key("grpc-status") {
        return answer.finish(frame::trailers_frame(&metadata::trailers(&parts.headers))).await;
    }
    if !parts.status.is_success() {
        // Not a gRPC handler's answer: a fallback or a layer of the router.
        let status = Status::unknown(format!("the handler answered HTTP {}", parts.status));
        return answer.finish(frame::trailers_frame(&metadata::trailers(&deadline::trailers(&status)))).await;
    }
    parts.headers.remove("grpc-accept-encoding");
    let metadata = metadata::entries(&parts.headers);
    let mut first = body.frame().now_or_never();
    // PROTOCOL.md §3.2: the caller learns that the call was accepted, now or by the first message.
    if !metadata.is_empty() || first.is_none() {
        answer.push(frame::headers_frame(&Headers { metadata, ..Headers::default() }));
    }
    if first.is_none() {
        answer.flush().await?;
    }
    loop {
        let frame = match first.take() {
            Some(frame) => frame,
            None => answer.frame(&mut body).await,
        };
        match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    answer.push_data(data);
                    answer.flush().await?;
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        return answer.finish(frame::trailers_frame(&metadata::trailers(&trailers))).await;
                    }
                }
            },
            Some(Err(error)) => {
                crate::seldom!(warn, %error, "the handler's response broke off");
                answer.out.abort(ErrorCode::Internal);
                return Ok(());
            }
            None => {
                // tonic always ends with trailers; anything else is no gRPC service.
                answer.out.abort(ErrorCode::Internal);
                return Ok(());
            }
        }
    }
}
