//! A program that reads server-sent events with hyper's client and its pool of connections.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use anyhow::{Context as _, anyhow, ensure};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, future::BoxFuture, stream};
use http::{
    Request, StatusCode, Uri,
    header::{ACCEPT, CONTENT_TYPE},
};
use http_body_util::{BodyExt as _, Full};
use hyper::rt;
use hyper_util::{
    client::legacy::{
        Client as HyperClient,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use parking_lot::Mutex;
use serde_json::json;
use titan_agent::engine::synthetic::SYNTHETIC_MODEL;
use titan_openai::{SseEvent, SseParser};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tower::Service;

use super::{
    grpc::{PING_INTERVAL, PING_TIMEOUT},
    origin::{Chunk, DONE, PATH},
    tokens::PROMPT,
    trust::{Dialer, Trust},
};
use crate::net::subject::{Answer, Client, Held, Pending, Tokens};

/// Which HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Http1,
    Http2,
}

impl Version {
    /// RFC 7301, as TLS names it.
    pub(super) fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        })
    }
}

type Pool = HyperClient<Connector, Full<Bytes>>;

/// A program with an HTTP client. Over HTTP/1.1 each answer has a connection for itself.
pub(super) struct Sse {
    dialer: Dialer,
    version: Version,
    pool: Mutex<Pool>,
}

impl Sse {
    pub(super) fn new(server: SocketAddr, trust: &Trust, version: Version) -> anyhow::Result<Self> {
        let dialer = Dialer::new(server, trust, version.alpn())?;
        let pool = Mutex::new(pool(dialer.clone(), version));
        Ok(Self { dialer, version, pool })
    }

    async fn connect_once(&self) -> anyhow::Result<Held> {
        // A request goes out right after the handshake in both versions: HTTP/2's preface does not wait for the server's.
        Ok(Box::new(self.dialer.fresh().dial().await?))
    }

    async fn stream(&self, tokens: u32) -> anyhow::Result<Answer> {
        let request = Request::post(format!("https://{}{PATH}", self.dialer.server()))
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "text/event-stream")
            .body(Full::from(asked(tokens).to_string()))?;
        let pool = self.pool.lock().clone();
        let response = pool.request(request).await.context("sending the request")?;
        let status = response.status();
        ensure!(status == StatusCode::OK, "the server answered {status}");
        Ok(Answer { tokens: texts(response.into_body().into_data_stream()), routing: None })
    }
}

impl Client for Sse {
    fn connect(&self) -> Pending<'_, Held> {
        Box::pin(self.connect_once())
    }

    fn ask(&self, tokens: u32) -> Pending<'_, Answer> {
        Box::pin(self.stream(tokens))
    }

    fn disconnect(&self) {
        *self.pool.lock() = pool(self.dialer.clone(), self.version);
    }
}

fn pool(dialer: Dialer, version: Version) -> Pool {
    HyperClient::builder(TokioExecutor::new())
        .http2_only(version == Version::Http2)
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        // A warm connection stays warm.
        .pool_idle_timeout(None)
        .build(Connector(dialer))
}

/// What every client of OpenAI's API asks here. Greedy: only such an answer can go on at another agent.
pub(super) fn asked(tokens: u32) -> serde_json::Value {
    json!({
        "model": SYNTHETIC_MODEL, "stream": true, "max_tokens": tokens, "temperature": 0,
        "messages": [{ "role": "user", "content": PROMPT }],
    })
}

/// The texts of an answer, up to the event that says that it is complete.
pub(super) fn texts<E>(body: impl Stream<Item = Result<Bytes, E>> + Send + Unpin + 'static) -> Tokens
where
    E: std::error::Error + Send + Sync + 'static,
{
    let reader = Reader { body, parser: SseParser::default() };
    let texts = stream::unfold(Some(reader), async |reader| {
        let mut reader = reader?;
        match reader.text().await {
            Ok(None) => None,
            Ok(Some(text)) => Some((Ok(text), Some(reader))),
            Err(error) => Some((Err(error), None)),
        }
    });
    Box::pin(texts)
}

struct Reader<B> {
    body: B,
    parser: SseParser,
}

impl<B, E> Reader<B>
where
    B: Stream<Item = Result<Bytes, E>> + Unpin,
    E: std::error::Error + Send + Sync + 'static,
{
    async fn text(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            while let Some(SseEvent { data, .. }) = self.parser.event() {
                if data == DONE {
                    // The end of the body is behind it: read, so that the connection can be used again.
                    while self.body.next().await.transpose()?.is_some() {}
                    return Ok(None);
                }
                let chunk: Chunk = serde_json::from_str(&data).with_context(|| format!("not a chunk: {data:?}"))?;
                let text = chunk.choices.into_iter().next().and_then(|choice| choice.delta.content);
                // The first one may have a role only.
                if let Some(text) = text.filter(|text| !text.is_empty()) {
                    return Ok(Some(text));
                }
            }
            let bytes = self.body.next().await.ok_or_else(|| anyhow!("the answer ended without {DONE}"))?;
            self.parser.push(&bytes.context("reading the answer")?)?;
        }
    }
}

/// Connects to the one server, whatever the URI says.
#[derive(Clone)]
struct Connector(Dialer);

impl Service<Uri> for Connector {
    type Response = TlsConnection;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let dialer = self.0.clone();
        Box::pin(async move {
            dialer.dial().await.map(|stream| TlsConnection(TokioIo::new(stream))).map_err(io::Error::other)
        })
    }
}

/// A connection as the pool takes it.
struct TlsConnection(TokioIo<TlsStream<TcpStream>>);

impl Connection for TlsConnection {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl rt::Read for TlsConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl rt::Write for TlsConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, parts)
    }
}
