//! A service written with tonic, as a user would who has a model and a proto file: over HTTP/2 here, over HTTP/3 in `h3`.

use std::{net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow, ensure};
use futures_util::{Stream, StreamExt as _, stream};
use parking_lot::Mutex;
use titan_agent::engine::{Engine, Event, synthetic::SYNTHETIC_MODEL};
use titan_proto::v1::{
    AgentStatusRequest, AgentStatusResponse, StreamRequest, StreamResponse,
    agent_service_client::AgentServiceClient,
    agent_service_server::{AgentService, AgentServiceServer},
};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{
        Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig, server::TcpIncoming,
    },
};

use super::{
    EVERYWHERE, Serving,
    tokens::{self, PROMPT},
    trust::{Trust, server_name},
};
use crate::net::subject::{Answer, Client, Held, Pending, Tokens};

/// A ping when nothing came for so long while an answer runs, and how long it may take: what Titan's gRPC has.
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(10);
pub(super) const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// The service: the messages of Titan's, without a token to check, a slot to book or a word to repeat.
pub(super) struct Service(pub(super) Arc<dyn Engine>);

#[tonic::async_trait]
impl AgentService for Service {
    type StreamInferenceStream = Pin<Box<dyn Stream<Item = Result<StreamResponse, Status>> + Send>>;

    async fn stream_inference(
        &self,
        request: Request<StreamRequest>,
    ) -> Result<Response<Self::StreamInferenceStream>, Status> {
        let tokens = u32::try_from(request.get_ref().max_tokens)
            .map_err(|_| Status::invalid_argument("max_tokens is negative"))?;
        let tokens = tokens::start(&self.0, tokens).await.map_err(|error| Status::internal(error.to_string()))?;
        let messages = tokens::events(tokens).map(|event| match event {
            Ok(Event::Piece(piece)) => Ok(StreamResponse { content: piece.text, ..Default::default() }),
            Ok(Event::Done(_)) => Ok(StreamResponse { done: true, ..Default::default() }),
            Err(error) => Err(Status::internal(error.to_string())),
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn get_status(&self, _: Request<AgentStatusRequest>) -> Result<Response<AgentStatusResponse>, Status> {
        Err(Status::unimplemented("this server only streams"))
    }
}

/// Serves it with tonic's own server.
pub(super) async fn serve(port: u16, trust: &Trust, engine: Arc<dyn Engine>) -> anyhow::Result<Serving> {
    let address = SocketAddr::new(EVERYWHERE, port);
    let incoming = TcpIncoming::bind(address).with_context(|| format!("cannot listen on {address} (TCP)"))?;
    let server = Server::builder()
        .tls_config(ServerTlsConfig::new().identity(Identity::from_pem(&trust.chain_pem, &trust.key_pem)))?
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .add_service(AgentServiceServer::new(Service(engine)))
        .serve_with_incoming(incoming.with_nodelay(Some(true)));
    let mut serving =
        Serving::new("tonic 0.14, server and channel: TLS 1.3, TCP_NODELAY, HTTP/2 pings after 10 s, else defaults");
    serving.tasks.spawn(async move { Ok(server.await?) });
    Ok(serving)
}

/// A program with a tonic channel.
pub(super) struct Tonic {
    /// Holds the TLS sessions.
    endpoint: Endpoint,
    server: SocketAddr,
    ca_pem: String,
    channel: Mutex<Option<Channel>>,
}

impl Tonic {
    pub(super) fn new(server: SocketAddr, trust: &Trust) -> anyhow::Result<Self> {
        let ca_pem = trust.ca_pem.clone();
        Ok(Self { endpoint: endpoint(server, &ca_pem)?, server, ca_pem, channel: Mutex::default() })
    }

    async fn connect_once(&self) -> anyhow::Result<Held> {
        let endpoint = endpoint(self.server, &self.ca_pem)?;
        Ok(Box::new(endpoint.connect().await.with_context(|| format!("connecting to {}", self.server))?))
    }

    async fn stream(&self, tokens: u32) -> anyhow::Result<Answer> {
        // Connects with the first request; requests at the same time wait for the same connection.
        let channel = self.channel.lock().get_or_insert_with(|| self.endpoint.connect_lazy()).clone();
        let response = AgentServiceClient::new(channel).stream_inference(request(tokens)?).await?;
        Ok(Answer { tokens: texts(response.into_inner()), routing: None })
    }
}

impl Client for Tonic {
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

/// What a client of [`Service`] asks.
pub(super) fn request(tokens: u32) -> anyhow::Result<StreamRequest> {
    let max_tokens = i32::try_from(tokens)?;
    let (model, prompt) = (SYNTHETIC_MODEL.to_owned(), PROMPT.to_owned());
    Ok(StreamRequest { model, prompt, max_tokens, stream: true, ..Default::default() })
}

/// The texts of an answer of [`Service`].
pub(super) fn texts(messages: Streaming<StreamResponse>) -> Tokens {
    Box::pin(stream::unfold(Some(messages), async |messages| {
        let mut messages = messages?;
        match text(&mut messages).await {
            Ok(None) => None,
            Ok(Some(text)) => Some((Ok(text), Some(messages))),
            Err(error) => Some((Err(error), None)),
        }
    }))
}

async fn text(messages: &mut Streaming<StreamResponse>) -> anyhow::Result<Option<String>> {
    let message = messages.message().await?.ok_or_else(|| anyhow!("the answer ended without a last message"))?;
    if !message.done {
        return Ok(Some(message.content));
    }
    // The status is behind it.
    ensure!(messages.message().await?.is_none(), "the answer went on after its last message");
    Ok(None)
}

fn endpoint(server: SocketAddr, ca_pem: &str) -> anyhow::Result<Endpoint> {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca_pem)).domain_name(server_name());
    Ok(Endpoint::from_shared(format!("https://{server}"))?
        .tls_config(tls)?
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT))
}
