//! From a [`Config`] to two open ports.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use titan_certs::{CertDir, CertsError};
use titan_transport::{
    Pages, Plaintext, TcpConfig, grpc_only, no_grpc, serve_tcp,
    tls::{HttpTls, Renewals, TlsError, follow},
    token::{KeyError, TokenIssuer},
};
use tokio::{
    net::TcpListener,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};
use tracing::{info, warn};

use crate::{
    access::{Access, LOOK_EVERY},
    client_ids::ClientIds,
    config::{Config, ConfigError},
    front_door, grpc,
    keys::{KeyFile, KeysError},
    known_agents::KnownAgents,
    rest::{self, Ports},
    routing::Dispatcher,
    usage::UsageLog,
};

/// How often ended leases are noticed in the log and old agents forgotten. Routing itself looks at each lease.
const EXPIRE_EVERY: Duration = Duration::from_secs(1);

/// A coordinator whose ports are open and whose configuration is checked.
pub struct Coordinator {
    http: TcpListener,
    http_addr: SocketAddr,
    http_routes: axum::Router,
    grpc: TcpListener,
    grpc_addr: SocketAddr,
    grpc_routes: axum::Router,
    health: HealthReporter,
    /// Ends the health streams.
    streams: CancellationToken,
    /// Of both ports but for what is counted.
    tcp: TcpConfig,
    ports: Ports,
    renewals: Option<Renewals>,
    dispatcher: Arc<Dispatcher>,
    known_agents: KnownAgents,
}

/// Why a coordinator could not start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A value cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The signing keys cannot be read or made.
    #[error("signing keys: {0}")]
    Keys(#[from] KeyError),
    /// The secret for the names of clients cannot be read or made.
    #[error("the secret beside the signing keys in {dir:?}: {source}")]
    ClientIds {
        /// The directory.
        dir: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The API keys cannot be read.
    #[error(transparent)]
    ApiKeys(#[from] KeysError),
    /// The CA cannot be used for enrolment.
    #[error(transparent)]
    Enrolment(#[from] CertsError),
    /// The usage log cannot be written.
    #[error("cannot write the usage log {path:?}: {source}")]
    UsageLog {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The TLS material cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A port cannot be opened. May help later, if another process has it now.
    #[error("cannot listen for {what} on {addr}: {source}; is another coordinator running? {variable} sets the port")]
    Listen {
        /// REST or gRPC.
        what: &'static str,
        /// Where.
        addr: SocketAddr,
        /// The environment variable that sets it.
        variable: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// The compiled-in service descriptions are broken.
    #[error("gRPC reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

impl Coordinator {
    /// Checks the configuration, opens the signing keys (making them on first start), then both ports.
    ///
    /// # Errors
    /// [`BindError`]; nothing is left open.
    pub async fn bind(config: Config) -> Result<Self, BindError> {
        config.validate()?;
        let origins = config.origins()?;
        let tls = config.tls.as_ref().map(|tls| HttpTls::new(tls, config.public_tls.as_ref())).transpose()?;
        if tls.is_none() {
            warn!("no TLS material: agents cannot register, because they must show a certificate");
        }
        let (issuer, client_ids) = open_keys(&config).await?;
        let access = open_access(&config)?;
        let ca = config.enrolment.as_ref().map(CertDir::issuer).transpose()?.map(Arc::new);
        let usage = match &config.usage_log {
            Some(path) => {
                Some(UsageLog::open(path).map_err(|source| BindError::UsageLog { path: path.clone(), source })?)
            }
            None => None,
        };
        let (http, http_addr) = listen("REST", config.http_addr, "COORDINATOR_HTTP_PORT").await?;
        let (grpc, grpc_addr) = listen("gRPC", config.grpc_addr, "COORDINATOR_PORT").await?;

        let dispatcher = Arc::new(Dispatcher::new(&config, issuer, access, usage).map_err(ConfigError::from)?);
        let known_agents = KnownAgents::open(&config.key_dir);
        dispatcher.expect_back(known_agents.ids());
        let streams = CancellationToken::new();
        let (grpc_routes, health) = grpc::routes(Arc::clone(&dispatcher), streams.clone()).await?;
        let plaintext = if config.insecure_plaintext { Plaintext::Anywhere } else { Plaintext::LoopbackOnly };
        let ports = Ports::default();
        let http_routes = rest::router(Arc::clone(&dispatcher), origins, ports.clone(), ca)
            .merge(front_door::router(Arc::clone(&dispatcher), client_ids));
        let pages = Pages { hosts: config.allowed_hosts, origins: config.cors_origins };
        // Where plain text is for everyone, so is asking.
        let guarded = |routes| if config.insecure_plaintext { routes } else { pages.clone().guard(routes) };
        let to_grpc =
            format!("this is the coordinator's REST port: its gRPC port is {} (COORDINATOR_PORT)", grpc_addr.port());
        let to_rest = format!(
            "this is the coordinator's gRPC port: REST is on port {} (COORDINATOR_HTTP_PORT)",
            http_addr.port()
        );
        Ok(Self {
            http,
            http_addr,
            http_routes: guarded(no_grpc(http_routes, to_grpc)),
            grpc,
            grpc_addr,
            grpc_routes: guarded(grpc_only(grpc_routes.into_axum_router(), to_rest)),
            health,
            streams,
            tcp: TcpConfig { tls, plaintext, traffic: Arc::default() },
            ports,
            renewals: config.renewals,
            dispatcher,
            known_agents,
        })
    }

    /// Where REST listens.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Where gRPC listens.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// Serves until `shutdown`, then lets running requests finish.
    ///
    /// # Errors
    /// When a port stops accepting.
    pub async fn run(self, shutdown: CancellationToken) -> io::Result<()> {
        info!(http = %self.http_addr, grpc = %self.grpc_addr, tls = self.tcp.tls.is_some(), "coordinator ready");
        // Ends with this function, however it ends.
        let _stop_streams = self.streams.clone().drop_guard();
        let tcp = |traffic| TcpConfig { traffic, ..self.tcp.clone() };
        let http = serve_tcp(self.http, self.http_routes, tcp(self.ports.http), shutdown.clone());
        let grpc = serve_tcp(self.grpc, self.grpc_routes, tcp(self.ports.grpc), shutdown.clone());
        let renewing = renew(self.tcp.tls.clone(), self.renewals);
        let served = async { tokio::try_join!(http, grpc).map(|_| ()) };
        let mut health = self.health;
        let announce_end = async {
            shutdown.cancelled().await;
            // First the news, then the end of what would hold up a graceful end: streams that never finish by themselves.
            for service in ["", grpc::SERVICE_NAME] {
                health.set_service_status(service, ServingStatus::NotServing).await;
                health.clear_service_status(service).await;
            }
            self.streams.cancel();
            std::future::pending().await
        };
        let mut known_agents = self.known_agents;
        let result = tokio::select! {
            result = served => result,
            () = announce_end => Ok(()),
            () = renewing => Ok(()),
            () = expire_agents(&self.dispatcher, &mut known_agents) => Ok(()),
            () = follow_keys(&self.dispatcher) => Ok(()),
        };
        note_members(&self.dispatcher, &mut known_agents).await;
        result
    }
}

/// Shows each new certificate from the next connection on. Does not end.
async fn renew(tls: Option<HttpTls>, renewals: Option<Renewals>) {
    if let (Some(tls), Some(renewals)) = (tls, renewals) {
        follow(renewals, |identities| tls.replace(identities)).await;
    }
    std::future::pending().await
}

async fn expire_agents(dispatcher: &Dispatcher, known_agents: &mut KnownAgents) {
    let mut ticks = interval(EXPIRE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        dispatcher.expire_agents(Instant::now());
        note_members(dispatcher, known_agents).await;
    }
}

/// For the next start.
async fn note_members(dispatcher: &Dispatcher, known_agents: &mut KnownAgents) {
    let membership = dispatcher.registry.lock().membership();
    if known_agents.changed(membership) {
        let members = dispatcher.registry.lock().members(Instant::now());
        known_agents.write(members).await;
    }
}

/// Takes up keys that are made, limited and revoked meanwhile.
async fn follow_keys(dispatcher: &Dispatcher) {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        dispatcher.access.look_again();
    }
}

/// On an address that other machines reach a key is asked for even before there is one.
fn open_access(config: &Config) -> Result<Access, KeysError> {
    if !config.api_keys {
        if let Some(addr) = config.public_addr() {
            warn!(%addr, "API keys are off: whoever reaches this address has text generated");
        }
        return Ok(Access::open());
    }
    let access = Access::with_keys(KeyFile::in_dir(&config.key_dir), config.public_addr().is_some())?;
    if access.is_closed() {
        warn!(
            "there is no API key that is good: only clients with a certificate are answered until `titan keys add NAME` has made one"
        );
    }
    Ok(access)
}

/// Off the runtime's threads: making an RSA key takes a good part of a second.
async fn open_keys(config: &Config) -> Result<(TokenIssuer, ClientIds), BindError> {
    let (dir, algorithm) = (config.key_dir.clone(), config.token_algorithm);
    let open = move || {
        let issuer = TokenIssuer::open(&dir, algorithm)?;
        let client_ids = ClientIds::open(&dir).map_err(|source| BindError::ClientIds { dir, source })?;
        Ok((issuer, client_ids))
    };
    match tokio::task::spawn_blocking(open).await {
        Ok(opened) => opened,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

async fn listen(
    what: &'static str,
    addr: SocketAddr,
    variable: &'static str,
) -> Result<(TcpListener, SocketAddr), BindError> {
    let failed = |source| BindError::Listen { what, addr, variable, source };
    let listener = TcpListener::bind(addr).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}
