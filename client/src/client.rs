//! A request, from top to bottom.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use titan_proto::rest::ModelInfo;
use titan_transport::ChannelStats;

use crate::{
    Builder, ClientError, CoordinatorError, Generation, Prompt,
    agent::{Agent, Agents},
    coordinator::Coordinator,
    dial::Dialer,
    features::Features,
    job::Job,
    resume,
    retry::{self, Next},
    route::{Lease, Route, Routes},
};

/// A client of a cluster. Cheap to clone; the clones share routes and connections.
#[derive(Clone)]
pub struct TitanClient(Arc<Inner>);

struct Inner {
    client_id: String,
    coordinator: Coordinator,
    /// Held for lookups only.
    routes: Mutex<Routes>,
    agents: Agents,
    dialer: Dialer,
    features: Features,
    resumed: AtomicU64,
    moved: AtomicU64,
    closed: AtomicBool,
}

/// What a client has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientStats {
    /// Questions to the coordinator.
    pub rest_calls: u64,
    /// What the QUIC connections to all agents have done.
    pub quic: ChannelStats,
    /// Requests that went over gRPC because UDP did not answer.
    pub grpc_fallbacks: u64,
    /// First packets of connections and requests that were sent again by themselves.
    pub copied_packets: u64,
    /// Answers that went on over another connection, each time.
    pub resumed: u64,
    /// Answers that went on at another agent, each time.
    pub moved: u64,
}

impl TitanClient {
    /// A client of the coordinator at this URL, such as `http://localhost:8080`.
    pub fn builder(coordinator_url: impl Into<String>) -> Builder {
        Builder::new(coordinator_url.into())
    }

    pub(crate) fn new(
        client_id: String,
        coordinator: Coordinator,
        agents: Agents,
        dialer: Dialer,
        features: Features,
    ) -> Self {
        let (routes, resumed, moved, closed) = Default::default();
        Self(Arc::new(Inner { client_id, coordinator, routes, agents, dialer, features, resumed, moved, closed }))
    }

    pub(crate) fn features(&self) -> Features {
        self.0.features
    }

    pub(crate) fn dialer(&self) -> &Dialer {
        &self.0.dialer
    }

    /// Whether [`close`](Self::close) was called.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.closed.load(Relaxed)
    }

    pub(crate) fn count_resumed(&self) {
        self.0.resumed.fetch_add(1, Relaxed);
    }

    /// An answer goes on at `route`; further requests go there too.
    pub(crate) fn count_moved(&self, route: &Arc<Route>) {
        self.0.moved.fetch_add(1, Relaxed);
        self.0.routes.lock().put(route.clone(), unix_now());
    }

    pub(crate) fn forget_route(&self, route: &Arc<Route>) {
        self.0.routes.lock().forget(route);
    }

    /// Asks the coordinator for an agent, rather one that is not `excluded`, and with this digest of the model if one is given. The route is
    /// not kept yet.
    pub(crate) async fn ask_route(
        &self,
        prompt: &Prompt,
        excluded: &[String],
        model_digest: &str,
    ) -> Result<Arc<Route>, CoordinatorError> {
        self.0.coordinator.ask(&self.0.client_id, prompt, excluded, model_digest).await
    }

    pub(crate) fn agent_at(&self, route: &Route) -> Arc<Agent> {
        self.0.agents.at(&route.place)
    }

    /// Has text generated. Resolves when the agent has accepted the request; the text comes with the [`Generation`].
    ///
    /// Asks the coordinator, unless a route to the model is kept. Tries again, a few times and with short waits, where no model
    /// can have seen the prompt.
    ///
    /// # Errors
    /// See [`ClientError`]: each says whether a model may have seen the prompt, and whether another try would help.
    pub async fn generate(&self, prompt: Prompt) -> Result<Generation, ClientError> {
        let asked_at = Instant::now();
        let job = Arc::new(Job::new(prompt));
        let mut kept = self.kept_route(&job.prompt.model);
        let mut tries = 0;
        loop {
            let was_kept = kept.is_some();
            tries += u32::from(!was_kept);
            let error = match self.attempt(kept.take(), &job, asked_at).await {
                Ok(generation) => return Ok(generation),
                Err(error) => error,
            };
            let next = retry::next(&error, was_kept, tries);
            tracing::debug!(%error, ?next, "the request did not start");
            match next {
                Next::AskNow => {}
                // Not all clients of an agent that went away together.
                Next::AskAfter(wait) => tokio::time::sleep(wait.mul_f64(rand::random_range(0.5..1.5))).await,
                Next::GiveUp => return Err(error),
            }
        }
    }

    /// The models that the coordinator's agents serve now, and what each is as far as its agent tells.
    ///
    /// # Errors
    /// [`CoordinatorError`], where the coordinator does not answer.
    pub async fn models(&self) -> Result<Vec<ModelInfo>, CoordinatorError> {
        self.0.coordinator.models().await
    }

    /// What this client has done so far.
    pub fn stats(&self) -> ClientStats {
        let Inner { coordinator, agents, dialer, resumed, moved, .. } = &*self.0;
        ClientStats {
            rest_calls: coordinator.calls(),
            quic: agents.stats(),
            grpc_fallbacks: dialer.fallbacks(),
            copied_packets: agents.copied_packets(),
            resumed: resumed.load(Relaxed),
            moved: moved.load(Relaxed),
        }
    }

    /// Goes on from a new UDP socket, after a change of network that the library does not notice by itself (it does on Linux, unless
    /// [`Feature::Migration`](crate::Feature::Migration) is off). QUIC answers go on.
    ///
    /// # Errors
    /// When no socket can be bound; then the old one stays.
    pub fn rebind(&self) -> std::io::Result<()> {
        self.0.agents.rebind()
    }

    /// Waits until the TLS sessions have come that agents send after a handshake, for a quarter of a second at most: what
    /// [`disconnect`](Self::disconnect) and a new connection with early data need. Whether they have come.
    pub async fn sessions_arrive(&self) -> bool {
        self.0.agents.sessions_arrive().await
    }

    /// The same, and until they are on disk, where they are stored ([`Builder::sessions`]): for half a second at most in all. False if
    /// that took too long. [`close`](Self::close) begins with it.
    pub async fn save_sessions(&self) -> bool {
        self.0.agents.save_sessions().await
    }

    /// Closes the connections to all agents and keeps the routes, as after a change of network. Running QUIC answers go on over
    /// new ones; without [`Feature::Resume`](crate::Feature::Resume) they break off.
    pub fn disconnect(&self) {
        self.0.agents.disconnect();
    }

    /// Drops all routes, and the connections that no answer comes over. TLS sessions are kept: they can be resumed.
    pub fn forget(&self) {
        self.0.routes.lock().clear();
        self.0.agents.forget();
    }

    /// Says goodbye to all agents, so that they need not wait to notice. Running QUIC answers break off, and this client can make
    /// no QUIC connections afterwards. Where sessions are stored, it first lets those arrive that agents are about to send: for a
    /// quarter of a second at most, and mostly not at all.
    pub async fn close(&self) {
        self.0.closed.store(true, Relaxed);
        self.0.routes.lock().clear();
        self.0.agents.close().await;
    }

    async fn attempt(&self, kept: Option<Lease>, job: &Arc<Job>, asked_at: Instant) -> Result<Generation, ClientError> {
        let inner = &*self.0;
        let (lease, routing) = match kept {
            Some(lease) => {
                tracing::debug!(agent = %lease.route().place.agent_id, "route kept from an earlier request");
                (lease, None)
            }
            None => {
                let asked_at = Instant::now();
                let route = self.ask_route(&job.prompt, &[], "").await?;
                let lease = Lease::of(&route);
                inner.routes.lock().put(route, unix_now());
                (lease, Some(asked_at.elapsed()))
            }
        };
        let route = lease.route().clone();
        let agent = inner.agents.at(&route.place);
        match resume::begin(self, &agent, &route, job).await {
            Ok(started) => {
                tracing::debug!(
                    agent = %route.place.agent_id,
                    wire = started.wire.as_str(),
                    early_data = started.early,
                    "the answer begins",
                );
                Ok(Generation::new(self.clone(), job.clone(), started, agent, lease, routing, asked_at))
            }
            Err(error) => {
                if retry::route_may_be_wrong(&error) {
                    inner.routes.lock().forget(&route);
                }
                Err(error)
            }
        }
    }

    fn kept_route(&self, model: &str) -> Option<Lease> {
        self.0.routes.lock().get(model, unix_now())
    }
}

impl fmt::Debug for TitanClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TitanClient")
            .field("client_id", &self.0.client_id)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
