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
use titan_proto::rest::{ModelInfo, Outcome};
use titan_transport::{ChannelStats, Wire};

use crate::{
    Builder, ClientError, CoordinatorError, Generation, Prompt,
    connections::{AgentConnections, ConnectionPool},
    coordinator::Coordinator,
    dial::Dialer,
    features::Features,
    job::Job,
    outcome::Outcomes,
    policy::{AWAY_TIME, Fault, RouteFate},
    route::{Lease, Route, Routes},
    search::Search,
};

/// A longer deadline is as good as none, and the arithmetic of some clocks ends there.
const MAX_DEADLINE: Duration = Duration::from_secs(365 * 86_400);

/// A client of a cluster. Cheap to clone; the clones share routes and connections.
#[derive(Clone)]
pub struct TitanClient(Arc<Inner>);

struct Inner {
    client_id: String,
    coordinator: Arc<Coordinator>,
    /// Held for lookups only.
    routes: Mutex<Routes>,
    /// Models to which the next route is being asked for.
    renewing: Mutex<Vec<String>>,
    /// The coordinator has not answered, and is not waited for until then where a route is held.
    away: Mutex<Option<Instant>>,
    agents: ConnectionPool,
    dialer: Dialer,
    features: Features,
    /// Of a request whose prompt sets none.
    deadline: Duration,
    outcomes: Outcomes,
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
        agents: ConnectionPool,
        dialer: Dialer,
        features: Features,
        deadline: Duration,
    ) -> Self {
        let coordinator = Arc::new(coordinator);
        Self(Arc::new(Inner {
            client_id,
            outcomes: Outcomes::new(coordinator.clone()),
            coordinator,
            routes: Mutex::default(),
            renewing: Mutex::default(),
            away: Mutex::default(),
            agents,
            dialer,
            features,
            deadline,
            resumed: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        }))
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

    pub(crate) fn count_moved(&self) {
        self.0.moved.fetch_add(1, Relaxed);
    }

    /// Tells the coordinator what came of the job of `route`, in the background and if it is worth it.
    pub(crate) fn tell(&self, route: &Route, outcome: Outcome, wire: Option<Wire>, message: Option<String>) {
        self.0.outcomes.tell(route, outcome, wire, message);
    }

    /// Further requests use this route.
    pub(crate) fn keep_route(&self, route: &Arc<Route>) -> Lease {
        let lease = Lease::of(route);
        self.0.routes.lock().put(route.clone(), unix_now());
        lease
    }

    /// A route to use while the coordinator is away, even one that another request uses.
    pub(crate) fn held_route(&self, model: &str, suits: impl Fn(&Route) -> bool) -> Option<Lease> {
        self.0.routes.lock().held(model, unix_now(), suits)
    }

    /// The agent that `route` leads to failed.
    pub(crate) fn route_failed(&self, route: &Route, fault: Fault) {
        let mut routes = self.0.routes.lock();
        match fault.route() {
            RouteFate::Kept => {}
            RouteFate::PutAside => routes.put_aside(route),
            RouteFate::Dropped => routes.forget(route),
        }
    }

    /// It goes on after all.
    pub(crate) fn agent_is_back(&self, route: &Route) {
        self.0.routes.lock().put_back(route);
    }

    /// Asks the coordinator for an agent, rather one that is not `excluded`, and with this digest of the model if one is given. The route is
    /// not kept yet.
    pub(crate) async fn ask_route(
        &self,
        prompt: &Prompt,
        excluded: &[String],
        model_digest: &str,
        patience: Duration,
    ) -> Result<Arc<Route>, CoordinatorError> {
        let route = self.0.coordinator.ask(&self.0.client_id, prompt, excluded, model_digest, patience).await?;
        *self.0.away.lock() = None;
        Ok(route)
    }

    /// The coordinator cannot name agents now.
    pub(crate) fn coordinator_is_away(&self) {
        *self.0.away.lock() = Some(Instant::now() + AWAY_TIME);
    }

    /// Whether it is better not to wait for it.
    pub(crate) fn does_without_coordinator(&self) -> bool {
        self.0.away.lock().is_some_and(|until| Instant::now() < until)
    }

    pub(crate) fn agent_at(&self, route: &Route) -> Arc<AgentConnections> {
        self.0.agents.at(&route.place)
    }

    /// Has text generated. Resolves when the agent has accepted the request; the text comes with the [`Generation`].
    ///
    /// Asks the coordinator, unless a route to the model is kept. What fails is tried again, at other agents where there are any, until the
    /// deadline ([`Builder::deadline`]) where somebody said when to come again, and for 10 s where nobody did.
    ///
    /// # Errors
    /// See [`ClientError`]: each says whether a model may have seen the prompt, and whether another try would help.
    pub async fn generate(&self, prompt: Prompt) -> Result<Generation, ClientError> {
        let asked_at = Instant::now();
        let within = prompt.deadline.unwrap_or(self.0.deadline).min(MAX_DEADLINE);
        let job = Arc::new(Job::new(prompt));
        let kept = self.kept_route(&job);
        let (found, tries) = Search::new(self, job, asked_at, within).run(kept).await?;
        Ok(Generation::new(self.clone(), found, tries, asked_at, within))
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

    /// The route of an earlier request that nobody uses. When half of its time is over the next one is asked for, beside the request.
    fn kept_route(&self, job: &Arc<Job>) -> Option<Lease> {
        let now = unix_now();
        let lease = self.0.routes.lock().get(&job.prompt.model, now)?;
        if lease.route().is_due(now) {
            self.renew(job.clone());
        }
        Some(lease)
    }

    /// Asks for a route beside the requests, which wait for none.
    pub(crate) fn renew(&self, job: Arc<Job>) {
        let inner = self.0.clone();
        {
            let mut renewing = inner.renewing.lock();
            if renewing.contains(&job.prompt.model) {
                return;
            }
            renewing.push(job.prompt.model.clone());
        }
        tokio::spawn(async move {
            match inner.coordinator.ask_ahead(&inner.client_id, &job.prompt).await {
                Ok(route) if !inner.closed.load(Relaxed) => {
                    *inner.away.lock() = None;
                    inner.routes.lock().put(route, unix_now());
                }
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "the route was not renewed"),
            }
            inner.renewing.lock().retain(|model| *model != job.prompt.model);
        });
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

pub(crate) fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
