//! One WebSocket message per token: tokio-tungstenite over tokio-rustls. A connection carries one answer after the other.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context as _, anyhow, bail, ensure};
use futures_util::{SinkExt as _, StreamExt as _, stream};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use titan_agent::engine::{Engine, Event, synthetic::SYNTHETIC_MODEL};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, accept_async_with_config, client_async_with_config,
    tungstenite::{Message, protocol::WebSocketConfig},
};

use super::{
    EVERYWHERE, Serving,
    origin::{accept, listen},
    tokens::{self, PROMPT},
    trust::{Dialer, Trust},
};
use crate::net::subject::{Answer, Client, Held, Pending, Tokens};

/// A WebSocket begins as HTTP/1.1 (RFC 6455 §4.1).
const ALPN: &[u8] = b"http/1.1";
/// The text of the message after the last token. No token is empty.
const END: &str = "";
/// What tungstenite advises where there are many connections with little on each; by default each has 128 KiB.
const BUFFER_BYTES: usize = 4 * 1024;

/// The one message of a client.
#[derive(Serialize, Deserialize)]
struct ChatRequest {
    model: String,
    prompt: String,
    max_tokens: u32,
}

/// Serves it over TLS.
pub(super) async fn serve(port: u16, trust: &Trust, engine: Arc<dyn Engine>) -> anyhow::Result<Serving> {
    let listener = listen(SocketAddr::new(EVERYWHERE, port)).await?;
    let tls = TlsAcceptor::from(Arc::new(trust.server(ALPN)?));
    let mut serving = Serving::new(format!(
        "tokio-tungstenite 0.28, tokio-rustls: TLS 1.3, TCP_NODELAY, {BUFFER_BYTES} bytes of buffer, a token a text message, \
         connections kept for the next answer"
    ));
    serving.tasks.spawn(accept(listener, move |stream| {
        let (tls, engine) = (tls.clone(), engine.clone());
        async move {
            // A client that goes away in the middle is none of the server's business.
            if let Ok(stream) = tls.accept(stream).await
                && let Ok(socket) = accept_async_with_config(stream, Some(config())).await
            {
                let _ = answer(socket, engine).await;
            }
        }
    }));
    Ok(serving)
}

/// Answers one request after the other, until the client goes.
async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    mut socket: WebSocketStream<S>,
    engine: Arc<dyn Engine>,
) -> anyhow::Result<()> {
    while let Some(message) = socket.next().await.transpose()? {
        let Message::Text(request) = message else { continue };
        let request: ChatRequest = serde_json::from_str(request.as_str())?;
        let mut tokens = tokens::start(&engine, request.max_tokens).await?;
        loop {
            tokio::select! {
                event = tokens.recv() => match event {
                    Some(Ok(Event::Piece(piece))) => socket.send(Message::text(piece.text)).await?,
                    Some(Ok(Event::Done(_))) => break,
                    Some(Err(error)) => return Err(error.into()),
                    None => bail!("the engine stopped without saying why"),
                },
                // A client has nothing to say now: it closes, or is gone.
                message = socket.next() => match message {
                    Some(Ok(message)) if !message.is_close() => {}
                    _ => return Ok(()),
                },
            }
        }
        socket.send(Message::text(END)).await?;
    }
    Ok(())
}

type Socket = WebSocketStream<TlsStream<TcpStream>>;
/// Connections without an answer.
type Pool = Arc<Mutex<Vec<Socket>>>;

/// A program with WebSockets.
pub(super) struct WebSocket {
    dialer: Dialer,
    pool: Mutex<Pool>,
}

impl WebSocket {
    pub(super) fn new(server: SocketAddr, trust: &Trust) -> anyhow::Result<Self> {
        Ok(Self { dialer: Dialer::new(server, trust, ALPN)?, pool: Mutex::default() })
    }

    async fn stream(&self, tokens: u32) -> anyhow::Result<Answer> {
        let pool = self.pool.lock().clone();
        let idle = pool.lock().pop();
        let mut socket = match idle {
            Some(socket) => socket,
            None => open(&self.dialer).await?,
        };
        let (model, prompt) = (SYNTHETIC_MODEL.to_owned(), PROMPT.to_owned());
        let request = serde_json::to_string(&ChatRequest { model, prompt, max_tokens: tokens })?;
        socket.send(Message::text(request)).await.context("sending the request")?;
        Ok(Answer { tokens: texts(socket, pool), routing: None })
    }
}

impl Client for WebSocket {
    fn connect(&self) -> Pending<'_, Held> {
        Box::pin(async { Ok(Box::new(open(&self.dialer.fresh()).await?) as Held) })
    }

    fn ask(&self, tokens: u32) -> Pending<'_, Answer> {
        Box::pin(self.stream(tokens))
    }

    fn disconnect(&self) {
        // Connections that are in use now go back to the old pool, and are closed with it.
        *self.pool.lock() = Pool::default();
    }
}

async fn open(dialer: &Dialer) -> anyhow::Result<Socket> {
    let stream = dialer.dial().await?;
    let url = format!("wss://{}/v1/chat", dialer.server());
    let (socket, response) = client_async_with_config(url, stream, Some(config())).await.context("the upgrade")?;
    ensure!(response.status() == http::StatusCode::SWITCHING_PROTOCOLS, "the server answered {}", response.status());
    Ok(socket)
}

/// The texts of an answer; then the connection goes back. One that is dropped before is closed: nothing else stops the answer.
fn texts(socket: Socket, pool: Pool) -> Tokens {
    Box::pin(stream::unfold(Some((socket, pool)), async |state| {
        let (mut socket, pool) = state?;
        match text(&mut socket).await {
            Ok(Some(text)) => Some((Ok(text), Some((socket, pool)))),
            Ok(None) => {
                pool.lock().push(socket);
                None
            }
            Err(error) => Some((Err(error), None)),
        }
    }))
}

async fn text(socket: &mut Socket) -> anyhow::Result<Option<String>> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) if text.as_str() == END => return Ok(None),
            Some(Ok(Message::Text(text))) => return Ok(Some(text.as_str().to_owned())),
            Some(Ok(Message::Close(_))) | None => return Err(anyhow!("the server closed the connection")),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error.into()),
        }
    }
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default().read_buffer_size(BUFFER_BYTES).write_buffer_size(BUFFER_BYTES)
}
