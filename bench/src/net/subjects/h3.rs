//! The service of `grpc` over HTTP/3: tonic-h3 and h3-quinn.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use anyhow::{Context as _, anyhow};
use futures_util::{Stream, StreamExt as _};
use parking_lot::Mutex;
use quinn::{
    ClientConfig, Endpoint, ServerConfig, TransportConfig,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use titan_agent::engine::Engine;
use titan_proto::v1::{agent_service_client::AgentServiceClient, agent_service_server::AgentServiceServer};
use tokio::runtime::Handle;
use tonic::service::Routes;
use tonic_h3::{
    H3Channel,
    quinn::{H3QuinnAcceptor, H3QuinnConnector},
    server::H3Router,
};

use super::{
    EVERYWHERE, Serving,
    grpc::{PING_INTERVAL, Service, request, texts},
    trust::{Trust, server_name, without_sessions},
};
use crate::net::subject::{Answer, Client, Held, Pending, Tokens};

/// RFC 9114 §3.1.
const ALPN: &[u8] = b"h3";
/// Any port of any address.
const ANY: SocketAddr = SocketAddr::new(EVERYWHERE, 0);

type Channel = H3Channel<H3QuinnConnector>;

/// Serves it with tonic-h3.
pub(super) fn serve(port: u16, trust: &Trust, engine: Arc<dyn Engine>) -> anyhow::Result<Serving> {
    let address = SocketAddr::new(EVERYWHERE, port);
    let crypto = QuicServerConfig::try_from(trust.server(ALPN)?)?;
    let endpoint = Endpoint::server(ServerConfig::with_crypto(Arc::new(crypto)), address)
        .with_context(|| format!("cannot listen on {address} (UDP)"))?;
    let routes = Routes::new(AgentServiceServer::new(Service(engine)));
    let mut serving = Serving::new(
        "tonic-h3 0.0.6, h3-quinn 0.0.10, quinn 0.11: TLS 1.3, client's keep-alive 10 s, else defaults; it offers no 0-RTT",
    );
    serving.tasks.spawn(async move {
        let served = H3Router::new(routes).serve(H3QuinnAcceptor::new(endpoint)).await;
        served.map_err(|error| anyhow!("tonic-h3: {error}"))
    });
    Ok(serving)
}

/// A program with a tonic-h3 channel.
pub(super) struct TonicH3 {
    /// Holds the TLS sessions.
    endpoint: Endpoint,
    config: rustls::ClientConfig,
    server: SocketAddr,
    channel: Mutex<Option<Channel>>,
}

impl TonicH3 {
    pub(super) fn new(server: SocketAddr, trust: &Trust) -> anyhow::Result<Self> {
        let config = trust.client(ALPN)?;
        Ok(Self { endpoint: endpoint(config.clone())?, config, server, channel: Mutex::default() })
    }

    async fn connect_once(&self) -> anyhow::Result<Held> {
        let at = || format!("connecting to {}", self.server);
        let endpoint = endpoint(without_sessions(&self.config))?;
        let connection = endpoint.connect(self.server, &server_name())?.await.with_context(at)?;
        // A request can go out when this has opened its streams; it waits for no answer.
        let parts = h3::client::new(h3_quinn::Connection::new(connection)).await.with_context(at)?;
        Ok(Box::new((parts, endpoint)))
    }

    async fn stream(&self, tokens: u32) -> anyhow::Result<Answer> {
        let channel = self.channel()?;
        let response = AgentServiceClient::new(channel).stream_inference(request(tokens)?).await?;
        let tokens = ReadToStop { tokens: Some(texts(response.into_inner())), runtime: Handle::current() };
        Ok(Answer { tokens: Box::pin(tokens), routing: None })
    }

    fn channel(&self) -> anyhow::Result<Channel> {
        let mut channel = self.channel.lock();
        if let Some(channel) = &*channel {
            return Ok(channel.clone());
        }
        let uri: http::Uri = format!("https://{}", self.server).parse()?;
        let connector = H3QuinnConnector::new(uri.clone(), server_name(), self.endpoint.clone());
        Ok(channel.insert(Channel::new(connector, uri, None)).clone())
    }
}

impl Client for TonicH3 {
    fn connect(&self) -> Pending<'_, Held> {
        Box::pin(self.connect_once())
    }

    fn ask(&self, tokens: u32) -> Pending<'_, Answer> {
        Box::pin(self.stream(tokens))
    }

    fn disconnect(&self) {
        *self.channel.lock() = None;
    }
}

/// An answer that can be dropped. h3-quinn 0.0.10 panics when an answer is stopped while a read waits (`RecvStream::stop_sending`), so
/// the read ends first: at the next token.
struct ReadToStop {
    /// `None` when there is nothing left to read.
    tokens: Option<Tokens>,
    runtime: Handle,
}

impl Stream for ReadToStop {
    type Item = anyhow::Result<String>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(tokens) = &mut self.tokens else { return Poll::Ready(None) };
        let item = ready!(tokens.as_mut().poll_next(cx));
        if !matches!(item, Some(Ok(_))) {
            self.tokens = None;
        }
        Poll::Ready(item)
    }
}

impl Drop for ReadToStop {
    fn drop(&mut self) {
        if let Some(mut tokens) = self.tokens.take() {
            self.runtime.spawn(async move { tokens.next().await });
        }
    }
}

fn endpoint(config: rustls::ClientConfig) -> anyhow::Result<Endpoint> {
    let mut transport = TransportConfig::default();
    // Without it a connection that is kept for later is gone after 30 s.
    transport.keep_alive_interval(Some(PING_INTERVAL));
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(config)?));
    config.transport_config(Arc::new(transport));
    let mut endpoint = Endpoint::client(ANY).context("cannot bind a UDP socket")?;
    endpoint.set_default_client_config(config);
    Ok(endpoint)
}
