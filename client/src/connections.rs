//! The connections to one agent, and the pool of all.

use std::{
    error::Error,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hyper_util::{
    client::legacy::connect::{HttpConnector, dns::GaiResolver},
    rt::TokioIo,
};
use parking_lot::Mutex;
use titan_proto::rest::GrpcTls;
use titan_transport::{ChannelStats, QuicChannel, QuicConnector, Wire, tls::TlsMaterial};
use tokio::{net::TcpStream, sync::watch, time::timeout};
use tonic::{
    Status,
    transport::{Channel, Endpoint, Uri},
};
use tower::{Service as _, service_fn};

use crate::{
    ClientError,
    error::{chain, grpc_not_connected, is_caused_by, is_refused},
    route::Place,
};

/// Agents whose connections are kept; a client of a large cluster meets a few dozen. One more drops the one not used for longest.
const MAX_AGENTS: usize = 64;
/// How long UDP to an agent is not tried after it gave no answer: short enough to notice that a laptop has left the café.
const UDP_PAUSE: Duration = Duration::from_secs(60);
/// How long nothing at all may come from an agent that is being connected to: over 600 ms of round trip that is the first packet lost
/// twice, and who waits for a first token has waited for long by then. Another agent is asked sooner than a dead one is given up.
pub(crate) const FIRST_SIGN_TIME: Duration = Duration::from_millis(2500);
/// How long a cancelled gRPC call has to reach its agent when the client is closed: a round trip across a continent.
const CANCEL_TIME: Duration = Duration::from_millis(50);
/// A ping when nothing came for so long while an answer is awaited, and how long its answer may take: as on QUIC, a path that is silent for
/// 3 s is given up (PROTOCOL.md §9).
const PING_INTERVAL: Duration = Duration::from_secs(1);
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// The connections to one agent. They are closed when nobody uses them any more.
pub(crate) struct AgentConnections {
    pub(crate) place: Place,
    pub(crate) quic: Option<QuicChannel>,
    tls: Option<TlsMaterial>,
    grpc: Mutex<Option<Channel>>,
    /// UDP gave no answer, and is not tried until then.
    udp_pause: Mutex<Option<Instant>>,
    retired: Arc<Mutex<ChannelStats>>,
}

impl AgentConnections {
    /// Where requests on `wire` go, `host:port`.
    pub(crate) fn endpoint(&self, wire: Wire) -> &str {
        match (wire, &self.place.quic) {
            (Wire::Quic, Some(quic)) => quic,
            _ => &self.place.grpc,
        }
    }

    /// A channel with one connection, which was up when it was made, and whether it was made just now.
    ///
    /// # Errors
    /// Also when nothing has come from the agent for [`FIRST_SIGN_TIME`].
    pub(crate) async fn grpc(&self) -> Result<(Channel, bool), ClientError> {
        if let Some(channel) = self.grpc.lock().clone() {
            return Ok((channel, false));
        }
        let endpoint = self.grpc_endpoint()?;
        let agent_id = || self.place.agent_id.clone();
        let (sign, signs) = watch::channel(());
        let channel = tokio::select! {
            connected = endpoint.connect_with_connector(service_fn(connects_once(sign))) => connected.map_err(|error| {
                grpc_not_connected(&self.place.agent_id, &error).unwrap_or_else(|| ClientError::Unreachable {
                    agent_id: agent_id(),
                    reason: chain(&error),
                    gone: is_refused(&error),
                })
            })?,
            () = silence(signs) => return Err(ClientError::Unreachable {
                agent_id: agent_id(),
                reason: format!("no answer from {} within {FIRST_SIGN_TIME:?} over TCP", self.place.grpc),
                gone: false,
            }),
        };
        tracing::debug!(address = %self.place.grpc, tls = self.place.grpc_tls.as_str(), "connected over gRPC");
        *self.grpc.lock() = Some(channel.clone());
        Ok((channel, true))
    }

    /// A call over gRPC ended with `status`. A connection that broke is not used again: it may take a moment more until the channel
    /// notices, and a request sent into that moment would be lost.
    pub(crate) fn grpc_ended(&self, status: &Status) {
        // What the agent itself says has no source.
        if status.source().is_some() {
            *self.grpc.lock() = None;
        }
    }

    /// Whether a call failed because its channel's connection had ended before: it was not sent.
    pub(crate) fn grpc_had_ended(status: &Status) -> bool {
        is_caused_by::<ConnectionEnded>(status)
    }

    /// UDP gave no answer in time.
    pub(crate) fn udp_is_silent(&self, now: Instant) {
        *self.udp_pause.lock() = Some(now + UDP_PAUSE);
    }

    /// It did answer.
    pub(crate) fn udp_answers(&self) {
        *self.udp_pause.lock() = None;
    }

    /// Whether to try UDP now.
    pub(crate) fn try_udp(&self, now: Instant) -> bool {
        self.udp_pause.lock().is_none_or(|until| now >= until)
    }

    /// Closes the connections. The next request makes new ones.
    fn disconnect(&self) {
        if let Some(quic) = &self.quic {
            quic.disconnect();
        }
        *self.grpc.lock() = None;
    }

    fn grpc_endpoint(&self) -> Result<Endpoint, ClientError> {
        let Place { agent_id, grpc, grpc_tls, server_name, .. } = &self.place;
        let unusable =
            |reason: String| ClientError::WireUnavailable { agent_id: agent_id.clone(), wire: Wire::Http, reason };
        let scheme = if *grpc_tls == GrpcTls::None { "http" } else { "https" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{grpc}"))
            .map_err(|error| unusable(format!("its address is {grpc:?}: {}", chain(&error))))?
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT);
        let material = match (grpc_tls, &self.tls) {
            (GrpcTls::None, _) => return Ok(endpoint),
            (_, None) => return Err(unusable("it speaks TLS, and this client has no CA to check it by".into())),
            (GrpcTls::Mutual, Some(material)) if material.chain.is_empty() => {
                return Err(unusable("it wants a client certificate, and this client has none".into()));
            }
            (_, Some(material)) => material,
        };
        endpoint.tls_config(material.tonic_client_tls(server_name)).map_err(|error| unusable(chain(&error)))
    }
}

impl Drop for AgentConnections {
    fn drop(&mut self) {
        if let Some(quic) = &self.quic {
            quic.close();
            add(&mut self.retired.lock(), quic.stats());
        }
    }
}

/// The connections to the agents met so far.
pub(crate) struct ConnectionPool {
    connector: Option<QuicConnector>,
    tls: Option<TlsMaterial>,
    /// The one used last at the end.
    agents: Mutex<Vec<Arc<AgentConnections>>>,
    /// What the connections to agents that are not kept any more have done.
    retired: Arc<Mutex<ChannelStats>>,
}

impl ConnectionPool {
    /// Without a connector, agents are reached over gRPC only.
    pub(crate) fn new(connector: Option<QuicConnector>, tls: Option<TlsMaterial>) -> Self {
        Self { connector, tls, agents: Mutex::default(), retired: Arc::default() }
    }

    /// The agent at `place`, with the connections that there are.
    pub(crate) fn at(&self, place: &Place) -> Arc<AgentConnections> {
        let mut agents = self.agents.lock();
        if let Some(found) = agents.iter().position(|agent| agent.place == *place) {
            let agent = agents.remove(found);
            agents.push(agent.clone());
            return agent;
        }
        let connector = self.connector.as_ref().zip(place.quic.as_ref());
        let agent = Arc::new(AgentConnections {
            place: place.clone(),
            quic: connector.map(|(connector, address)| connector.channel(address, &place.server_name)),
            tls: self.tls.clone(),
            grpc: Mutex::default(),
            udp_pause: Mutex::default(),
            retired: self.retired.clone(),
        });
        agents.push(agent.clone());
        let oldest = (agents.len() > MAX_AGENTS).then(|| agents.remove(0));
        // Dropping it closes connections: not under the lock.
        drop(agents);
        drop(oldest);
        agent
    }

    /// Waits for the sessions that agents are about to send. Whether all have come.
    pub(crate) async fn sessions_arrive(&self) -> bool {
        match &self.connector {
            Some(connector) => connector.sessions_arrive().await,
            None => true,
        }
    }

    /// The same, and until they are on disk, where they are stored.
    pub(crate) async fn save_sessions(&self) -> bool {
        match &self.connector {
            Some(connector) => connector.save_sessions().await,
            None => true,
        }
    }

    /// Packets that went out again by themselves.
    pub(crate) fn copied_packets(&self) -> u64 {
        self.connector.as_ref().map_or(0, QuicConnector::copied_packets)
    }

    /// Moves all QUIC connections to a new socket.
    pub(crate) fn rebind(&self) -> std::io::Result<()> {
        self.connector.as_ref().map_or(Ok(()), QuicConnector::rebind)
    }

    /// Closes every connection; the agents and what is known of them stay.
    pub(crate) fn disconnect(&self) {
        let agents = self.agents.lock().clone();
        agents.iter().for_each(|agent| agent.disconnect());
    }

    /// Closes every connection that no answer comes over, and forgets the agents.
    pub(crate) fn forget(&self) {
        let agents = std::mem::take(&mut *self.agents.lock());
        drop(agents);
    }

    /// Closes everything, and says goodbye.
    pub(crate) async fn close(&self) {
        self.save_sessions().await;
        let grpc = self.agents.lock().iter().any(|agent| agent.grpc.lock().is_some());
        if grpc {
            // Its connections have no goodbye: a call cancelled just now has to be cancelled before its connection ends.
            tokio::time::sleep(CANCEL_TIME).await;
        }
        self.forget();
        if let Some(connector) = &self.connector {
            connector.close().await;
        }
    }

    /// What all QUIC connections have done.
    pub(crate) fn stats(&self) -> ChannelStats {
        let agents = self.agents.lock().clone();
        let mut sum = *self.retired.lock();
        for quic in agents.iter().filter_map(|agent| agent.quic.as_ref()) {
            add(&mut sum, quic.stats());
        }
        sum
    }
}

/// Notes when UDP to `agent` answers after all, which may be long after a request has gone another way.
pub(crate) fn watch_udp(agent: &Arc<AgentConnections>) {
    let Some(quic) = agent.quic.clone() else { return };
    let agent: Weak<AgentConnections> = Arc::downgrade(agent);
    tokio::spawn(async move {
        let result = quic.connect().await;
        match (agent.upgrade(), result) {
            (Some(agent), Ok(())) => {
                tracing::debug!(address = %quic.address(), "UDP answers after all");
                agent.udp_answers();
            }
            // Nobody would use it any more.
            (None, Ok(())) => quic.close(),
            (_, Err(error)) => tracing::debug!(%error, "no QUIC"),
        }
    });
}

/// The connection of a channel has ended, and a channel makes no other: what becomes of a dead host is decided in one place.
#[derive(Debug, thiserror::Error)]
#[error("the connection has ended")]
struct ConnectionEnded;

/// Connects over TCP the first time, and tells when that is done.
fn connects_once(sign: watch::Sender<()>) -> impl FnMut(Uri) -> Connecting + Send + 'static {
    let mut http = HttpConnector::<GaiResolver>::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    let connected = Arc::new((AtomicBool::new(false), sign));
    move |uri| {
        let (mut http, once) = (http.clone(), connected.clone());
        let connecting: Connecting = Box::pin(async move {
            if once.0.swap(true, Relaxed) {
                return Err(ConnectionEnded.into());
            }
            let stream = http.call(uri).await?;
            once.1.send_replace(());
            Ok(stream)
        });
        connecting
    }
}

type Connecting = Pin<Box<dyn Future<Output = Result<TokioIo<TcpStream>, Box<dyn Error + Send + Sync>>> + Send>>;

/// Resolves when there has been no sign for [`FIRST_SIGN_TIME`].
async fn silence(mut signs: watch::Receiver<()>) {
    while let Ok(Ok(())) = timeout(FIRST_SIGN_TIME, signs.changed()).await {}
}

fn add(sum: &mut ChannelStats, more: ChannelStats) {
    sum.full_handshakes += more.full_handshakes;
    sum.early_data_accepted += more.early_data_accepted;
    sum.early_data_rejected += more.early_data_rejected;
    sum.stored_sessions += more.stored_sessions;
    sum.calls += more.calls;
    sum.early_calls += more.early_calls;
    sum.repaired_messages += more.repaired_messages;
    sum.network_changes += more.network_changes;
}
