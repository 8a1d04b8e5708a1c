//! What is told to those who ask for REST at a gRPC port, or the other way round: in words that they read.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, StatusCode, header};
use titan_proto::rest;
use tonic::Status;

/// Whether a request is gRPC: told by its content type (gRPC over HTTP/2, "Requests").
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// A port for gRPC alone: all else is answered `message`, with 404 and as the REST interface words its errors.
pub fn grpc_only(router: Router, message: String) -> Router {
    let message: Arc<str> = message.into();
    answering(router, move |headers| {
        let body = rest::Error { error: "wrong_port".to_owned(), code: 404, message: message.to_string(), limit: None };
        (!is_grpc(headers)).then(|| (StatusCode::NOT_FOUND, Json(body)).into_response())
    })
}

/// A port without gRPC: that is answered `message`, as gRPC words its errors.
pub fn no_grpc(router: Router, message: String) -> Router {
    let message: Arc<str> = message.into();
    answering(router, move |headers| is_grpc(headers).then(|| Status::unimplemented(&*message).into_http()))
}

/// Asks `instead` first.
fn answering(
    router: Router,
    instead: impl Fn(&HeaderMap) -> Option<Response> + Clone + Send + Sync + 'static,
) -> Router {
    router.layer(from_fn(move |request: Request, next: Next| {
        let instead = instead(request.headers());
        async move {
            match instead {
                Some(answer) => answer,
                None => next.run(request).await,
            }
        }
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use axum::body::Body;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    fn served() -> Router {
        Router::new().fallback(async || "served")
    }

    async fn ask(router: Router, content_type: Option<&str>) -> (http::response::Parts, Vec<u8>) {
        let mut request = http::Request::post("/any").body(Body::empty()).unwrap();
        if let Some(content_type) = content_type {
            request.headers_mut().insert(header::CONTENT_TYPE, content_type.parse().unwrap());
        }
        let (parts, body) = router.oneshot(request).await.unwrap().into_parts();
        (parts, body.collect().await.unwrap().to_bytes().to_vec())
    }

    #[tokio::test]
    async fn who_asks_the_wrong_port_is_told_the_right_one() {
        let (parts, body) = ask(grpc_only(served(), "REST is on port 8080".into()), Some("application/json")).await;
        let error: rest::Error = serde_json::from_slice(&body).unwrap();
        assert_eq!((parts.status.as_u16(), error.error.as_str()), (404, "wrong_port"));
        assert_eq!(error.message, "REST is on port 8080");
        let (parts, _) = ask(no_grpc(served(), "gRPC is on port 50051".into()), Some("application/grpc+proto")).await;
        let status = Status::from_header_map(&parts.headers).unwrap();
        assert_eq!((status.code(), status.message()), (tonic::Code::Unimplemented, "gRPC is on port 50051"));
        for (router, content_type) in [
            (grpc_only(served(), String::new()), Some("application/grpc")),
            (no_grpc(served(), String::new()), None),
            (no_grpc(served(), String::new()), Some("application/json")),
        ] {
            assert_eq!(ask(router, content_type).await.1, b"served");
        }
    }
}
