//! A model server as OpenAI's API has it: `POST /v1/chat/completions` with server-sent events. axum and hyper, with rustls or, for a
//! relay on the same machine, in plain text.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{
        IntoResponse as _, Response,
        sse::{self, Event as SseEvent},
    },
    routing::{get, post},
};
use futures_util::{StreamExt as _, stream};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use titan_agent::engine::{Engine, Event, synthetic::SYNTHETIC_MODEL};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::{
    EVERYWHERE, LOCALHOST, Serving,
    grpc::{PING_INTERVAL, PING_TIMEOUT},
    http::Version,
    tokens,
    trust::Trust,
};

/// Where requests go.
pub(super) const PATH: &str = "/v1/chat/completions";
/// The data of the event after the last token.
pub(super) const DONE: &str = "[DONE]";
/// Streams at once on one HTTP/2 connection: more than a client here opens, as on every server here.
const MAX_STREAMS: u32 = 1024;

/// What a request must say; what else it says is left to engines that care.
#[derive(Deserialize)]
struct ChatRequest {
    max_tokens: u32,
    stream: bool,
}

/// One event, as OpenAI's API has it.
#[derive(Serialize, Deserialize)]
pub(super) struct Chunk {
    #[serde(default)]
    id: String,
    #[serde(default)]
    object: String,
    #[serde(default)]
    created: u64,
    #[serde(default)]
    model: String,
    pub(super) choices: Vec<Choice>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Choice {
    index: u32,
    pub(super) delta: Delta,
    finish_reason: Option<String>,
}

#[derive(Default, Serialize, Deserialize)]
pub(super) struct Delta {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) content: Option<String>,
}

/// Serves it on every address, over TLS.
pub(super) async fn serve_tls(
    port: u16,
    trust: &Trust,
    version: Version,
    engine: Arc<dyn Engine>,
) -> anyhow::Result<Serving> {
    let listener = listen(SocketAddr::new(EVERYWHERE, port)).await?;
    let tls = TlsAcceptor::from(Arc::new(trust.server(version.alpn())?));
    let mut serving = Serving::new(format!(
        "axum 0.8, hyper 1, tokio-rustls; client hyper-util with its pool: {version}, TLS 1.3, TCP_NODELAY, idle connections \
         kept, HTTP/2 pings after 10 s, else defaults"
    ));
    let http = Http::new(engine);
    serving.tasks.spawn(accept(listener, move |stream| {
        let (http, tls) = (http.clone(), tls.clone());
        async move {
            if let Ok(stream) = tls.accept(stream).await {
                http.serve(stream).await;
            }
        }
    }));
    Ok(serving)
}

/// Serves it to this machine alone, in plain text, beside what `serving` has.
pub(super) async fn serve_plain(serving: &mut Serving, port: u16, engine: Arc<dyn Engine>) -> anyhow::Result<()> {
    let listener = listen(SocketAddr::new(LOCALHOST, port)).await?;
    let http = Http::new(engine);
    serving.tasks.spawn(accept(listener, move |stream| {
        let http = http.clone();
        async move { http.serve(stream).await }
    }));
    Ok(())
}

/// Waits for connections, and has each served by a task of its own, which ends with this one.
pub(super) async fn accept<F>(listener: TcpListener, serve: impl Fn(tokio::net::TcpStream) -> F) -> anyhow::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.context("cannot accept a connection; is the limit of open files (ulimit -n) too low?")?;
                stream.set_nodelay(true)?;
                connections.spawn(serve(stream));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

pub(super) async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} (TCP)"))
}

#[derive(Clone)]
struct Http {
    router: Router,
    builder: auto::Builder<TokioExecutor>,
}

impl Http {
    fn new(engine: Arc<dyn Engine>) -> Self {
        let router = Router::new()
            .route(PATH, post(chat))
            // What gateways look at before they send a request.
            .route("/v1/models", get(models))
            .route("/health", get(StatusCode::OK))
            .with_state(engine);
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).http2().timer(TokioTimer::new());
        builder.http2().max_concurrent_streams(MAX_STREAMS);
        builder.http2().keep_alive_interval(PING_INTERVAL).keep_alive_timeout(PING_TIMEOUT);
        Self { router, builder }
    }

    async fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = TowerToHyperService::new(self.router.clone());
        // A client that goes away in the middle is none of the server's business.
        let _ = self.builder.serve_connection(TokioIo::new(stream), service).await;
    }
}

async fn chat(State(engine): State<Arc<dyn Engine>>, Json(request): Json<ChatRequest>) -> Response {
    if !request.stream {
        return (StatusCode::BAD_REQUEST, "this server only streams: say \"stream\": true").into_response();
    }
    let tokens = match tokens::start(&engine, request.max_tokens).await {
        Ok(tokens) => tokens,
        Err(error) => return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    };
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let chunk = move |content, finish_reason| Chunk {
        // As long as OpenAI's are.
        id: "chatcmpl-0123456789abcdefghijklmnopqr".to_owned(),
        object: "chat.completion.chunk".to_owned(),
        created,
        model: SYNTHETIC_MODEL.to_owned(),
        choices: vec![Choice { index: 0, delta: Delta { content }, finish_reason }],
    };
    let events = tokens::events(tokens).flat_map(move |event| {
        let events = match event {
            Ok(Event::Piece(piece)) => vec![data(&chunk(Some(piece.text), None))],
            Ok(Event::Done(usage)) => {
                let reason = usage.finish_reason.as_str().to_owned();
                vec![data(&chunk(None, Some(reason))), Ok(SseEvent::default().data(DONE))]
            }
            // Without the event that says that it is complete.
            Err(_) => Vec::new(),
        };
        stream::iter(events)
    });
    sse::Sse::new(events).into_response()
}

fn data(chunk: &Chunk) -> Result<SseEvent, Infallible> {
    // Strings and numbers: it cannot fail.
    Ok(SseEvent::default().data(serde_json::to_string(chunk).unwrap_or_default()))
}

async fn models() -> Json<serde_json::Value> {
    let model = json!({ "id": SYNTHETIC_MODEL, "object": "model", "created": 0, "owned_by": "titan-bench" });
    Json(json!({ "object": "list", "data": [model] }))
}
