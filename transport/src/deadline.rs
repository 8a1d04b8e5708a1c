//! Deadlines (`grpc-timeout`), enforced alike on both wires: over the handler and over the response's whole body.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Code, Status};
use tower::Service;

use crate::arrival;

/// Runs one request through `router`. If the caller set a deadline and it passes, the handler is dropped and the caller
/// gets DEADLINE_EXCEEDED, also in the middle of a stream; so it is when the request does not arrive within `arrives`.
pub(crate) async fn call(router: &mut axum::Router, request: Request<Body>, arrives: Duration) -> Response<Body> {
    let (request, late) = arrival::limit(request, arrives);
    tokio::select! {
        biased;
        response = call_within(router, request) => response,
        response = late => response,
    }
}

async fn call_within(router: &mut axum::Router, request: Request<Body>) -> Response<Body> {
    let timeout = match grpc_timeout(request.headers()) {
        Ok(timeout) => timeout,
        Err(value) => {
            let text = format!("grpc-timeout {value:?} is not 1 to 8 digits and one of H, M, S, m, u, n");
            return Status::invalid_argument(text).into_http();
        }
    };
    // An axum router is always ready, and its error type is Infallible.
    let Some(timeout) = timeout else {
        return router.call(request).await.unwrap_or_else(|never| match never {});
    };
    let deadline = Instant::now() + timeout;
    match tokio::time::timeout_at(deadline, router.call(request)).await {
        Ok(response) => response.unwrap_or_else(|never| match never {}).map(|body| {
            if body.is_end_stream() {
                return body;
            }
            Body::new(DeadlineBody { body: Some(body), sleep: Box::pin(sleep_until(deadline)) })
        }),
        Err(_) => exceeded().into_http(),
    }
}

/// What a caller gets when its deadline passes.
pub(crate) fn exceeded() -> Status {
    Status::deadline_exceeded("the deadline that the caller set has passed")
}

/// The caller's deadline as a duration from now.
///
/// # Errors
/// The header's value, when it is not as the gRPC specification says.
pub fn grpc_timeout(headers: &HeaderMap) -> Result<Option<Duration>, String> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let parse = || {
        let (digits, unit) = value.to_str().ok()?.split_at_checked(value.len() - 1)?;
        if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let n: u64 = digits.parse().ok()?;
        Some(match unit {
            "H" => Duration::from_secs(n * 3600),
            "M" => Duration::from_secs(n * 60),
            "S" => Duration::from_secs(n),
            "m" => Duration::from_millis(n),
            "u" => Duration::from_micros(n),
            "n" => Duration::from_nanos(n),
            _ => return None,
        })
    };
    if value.is_empty() {
        return Err(String::new());
    }
    parse().map(Some).ok_or_else(|| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// The trailers that stand for `status`.
pub(crate) fn trailers(status: &Status) -> HeaderMap {
    let mut map = HeaderMap::new();
    // Fails only for metadata that is not valid in a header, and the status and message always are.
    if status.add_header(&mut map).is_err() {
        map.insert("grpc-status", HeaderValue::from(Code::Internal as i32));
    }
    map.remove(CONTENT_TYPE);
    map
}

/// A response body that ends with DEADLINE_EXCEEDED when the time comes.
struct DeadlineBody {
    /// None once the deadline has passed: the handler's stream is dropped at that moment.
    body: Option<Body>,
    sleep: Pin<Box<Sleep>>,
}

impl HttpBody for DeadlineBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        // The clock first: a stream that always has a message ready would outrun it.
        if this.sleep.as_mut().poll(cx).is_ready() {
            this.body = None;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers(&exceeded())))));
        }
        Pin::new(body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &str) -> Result<Option<Duration>, String> {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", HeaderValue::from_str(value).expect("a header value"));
        grpc_timeout(&headers)
    }

    #[test]
    fn timeouts_are_read_in_every_unit() {
        assert_eq!(parse("2H"), Ok(Some(Duration::from_secs(7200))));
        assert_eq!(parse("3M"), Ok(Some(Duration::from_secs(180))));
        assert_eq!(parse("4S"), Ok(Some(Duration::from_secs(4))));
        assert_eq!(parse("5m"), Ok(Some(Duration::from_millis(5))));
        assert_eq!(parse("6u"), Ok(Some(Duration::from_micros(6))));
        assert_eq!(parse("99999999n"), Ok(Some(Duration::from_nanos(99_999_999))));
        assert_eq!(grpc_timeout(&HeaderMap::new()), Ok(None));
    }

    #[test]
    fn malformed_timeouts_are_refused_with_their_value() {
        for bad in ["", "5", "m", "123456789S", "-5S", "5 S", "5x", "1.5S"] {
            assert_eq!(parse(bad), Err(bad.to_owned()), "{bad:?}");
        }
    }
}
