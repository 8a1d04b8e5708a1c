//! Web pages that may not ask: a server that takes plain text from its own machine trusts what runs there, and a page of any site runs in a
//! browser there too.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse as _, Response},
};
use http::{HeaderName, Method, StatusCode, Version, header};
use serde_json::json;
use titan_proto::{
    host::{PageRefused, check_page},
    rest,
};

use crate::PeerInfo;

/// What the operator lets in besides this machine's own names.
#[derive(Clone, Debug, Default)]
pub struct Pages {
    /// Names under which it is dialled, without a port. Defaults to none.
    pub hosts: Vec<String>,
    /// Sites whose pages may ask, as `https://chat.example`. Defaults to none.
    pub origins: Vec<String>,
}

impl Pages {
    /// Refuses requests of other pages with 403, over plain-text HTTP/1.1: what a browser speaks where there is no certificate. Programs never
    /// notice: [`check_page`] says why.
    pub fn guard(self, router: Router) -> Router {
        let pages = Arc::new(self);
        router.layer(from_fn(move |request: Request, next: Next| {
            let pages = Arc::clone(&pages);
            async move {
                match pages.check(&request) {
                    Ok(()) => next.run(request).await,
                    Err(refused) => answer(&refused, request.uri().path()),
                }
            }
        }))
    }

    fn check(&self, request: &Request) -> Result<(), PageRefused> {
        let is_tls = request.extensions().get::<PeerInfo>().is_some_and(|peer| peer.tls);
        // No browser speaks HTTP/2 in plain text, but every gRPC client does, under whatever name.
        if is_tls || request.version() >= Version::HTTP_2 {
            return Ok(());
        }
        let text = |name: HeaderName| {
            request.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let (host, origin) = (text(header::HOST), text(header::ORIGIN));
        let reads_only = [Method::GET, Method::HEAD, Method::OPTIONS].contains(request.method());
        check_page(reads_only, host.as_deref(), origin.as_deref(), &self.hosts, &self.origins)
    }
}

/// In the words of the API that was asked.
fn answer(refused: &PageRefused, path: &str) -> Response {
    let (status, word, message) = (StatusCode::FORBIDDEN, refused.code_word(), refused.to_string());
    if path.starts_with("/v1/") || path.starts_with("/s/") {
        let error = json!({"message": message, "type": "permission_error", "param": null, "code": word});
        return (status, Json(json!({"error": error}))).into_response();
    }
    (status, Json(rest::Error { error: word.to_owned(), code: status.as_u16(), message, limit: None })).into_response()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use axum::{body::Body, routing::any};
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    async fn ask(request: http::request::Builder) -> (StatusCode, String) {
        let router = Router::new().route("/v1/models", any(async || "asked")).fallback(async || "asked");
        let pages = Pages { hosts: vec!["gpu.example".to_owned()], origins: vec!["https://chat.example".to_owned()] };
        let answer = pages.guard(router).oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = answer.into_parts();
        (parts.status, String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    fn post(host: &str, origin: Option<&str>) -> http::request::Builder {
        let request = http::Request::post("/api/v1/inference/request").header("host", host);
        match origin {
            Some(origin) => request.header("origin", origin),
            None => request,
        }
    }

    #[tokio::test]
    async fn pages_are_told_in_the_words_of_the_api_and_programs_notice_nothing() {
        let (status, body) = ask(post("evil.example:8080", None)).await;
        assert_eq!(status, 403);
        let error: rest::Error = serde_json::from_str(&body).unwrap();
        assert_eq!((error.error.as_str(), error.code), ("host_refused", 403));
        let (status, body) = ask(post("localhost:8080", Some("https://evil.example")).uri("/v1/models")).await;
        let error: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status.as_u16(), &error["error"]["code"]), (403, &"origin_refused".into()));
        for request in [
            post("localhost:8080", None),
            post("localhost:8080", Some("http://localhost:3000")),
            post("gpu.example:8080", Some("https://chat.example")),
            // gRPC.
            post("any.example", None).version(Version::HTTP_2),
        ] {
            assert_eq!(ask(request).await, (StatusCode::OK, "asked".to_owned()));
        }
    }
}
