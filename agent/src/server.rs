//! The agent as a server: sockets, services, and the way down.

use std::{collections::HashMap, future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use titan_proto::{
    COORDINATOR_NAME, FILE_DESCRIPTOR_SET, MAX_REST_BODY_BYTES,
    v1::{AgentRegistration, agent_service_server::AgentServiceServer},
};
use titan_transport::{
    Pages, Plaintext, QuicListener, QuicServerConfig, QuicTls, TcpConfig, serve_quic, serve_tcp,
    tls::{HttpTls, Identities, TlsError, follow},
    token::{KeySetError, TokenVerifier},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{server::NamedService as _, service::Routes};
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

use crate::{
    admission::Admission,
    auth::{Authenticator, KeySource},
    config::{Config, ConfigError},
    coordinator::Coordinator,
    engine::Engine,
    heartbeat::Heartbeat,
    openai_api,
    prefill::Prefills,
    resumable::Kept,
    service::{Core, Service, count},
    telemetry::Telemetry,
    token_uses::TokenUses,
};

/// Largest request message: a prompt that is somewhat too long is still read, so that it is refused with its length.
const MAX_REQUEST_BYTES: usize = 2 * MAX_REST_BODY_BYTES;
/// How often another port is tried until one is free in both TCP and UDP.
const PORT_ATTEMPTS: usize = 16;
/// How long connections may take to close once nothing runs any more: the last messages are on their way.
const CLOSE_TIME: Duration = Duration::from_secs(2);

/// An agent whose sockets are bound.
pub struct Agent {
    config: Config,
    core: Arc<Core>,
    coordinator: Option<Coordinator>,
    listener: TcpListener,
    grpc_addr: SocketAddr,
    tls: Option<HttpTls>,
    quic: Option<Quic>,
}

struct Quic {
    listener: QuicListener,
    addr: SocketAddr,
    config: QuicServerConfig,
}

impl Agent {
    /// Checks the configuration and binds the sockets. The QUIC port is the gRPC port's number unless the configuration says
    /// otherwise; without TLS material there is no QUIC.
    ///
    /// # Errors
    /// What is wrong with the configuration, or which address cannot be bound.
    pub async fn bind(config: Config, engine: Arc<dyn Engine>) -> Result<Self, BindError> {
        config.validate()?;
        let models = served_models(&config.models, engine.models())?;
        let coordinator = config.coordinator.as_deref().map(|endpoint| Coordinator::new(endpoint, config.tls.as_ref()));
        let coordinator = coordinator.transpose()?;
        let verifier = TokenVerifier::new(COORDINATOR_NAME);
        if let Some(keys) = &config.keys {
            verifier.set_keys(keys).map_err(BindError::Keys)?;
        }
        let source = coordinator.clone().map(|coordinator| Box::new(coordinator) as Box<dyn KeySource>);
        // Loading a GPU driver takes a while.
        let uses_gpu = engine.uses_gpu();
        let telemetry =
            tokio::task::spawn_blocking(move || Telemetry::new(uses_gpu)).await.map_err(io::Error::other)?;
        let (admission, abort) = (Admission::new(config.max_jobs), CancellationToken::new());
        let prefills =
            Prefills::new(Arc::clone(&engine), models.clone(), admission.clone(), abort.clone(), config.prefill_wait);
        let core = Arc::new(Core {
            agent_id: config.agent_id.clone(),
            models,
            engine,
            auth: Arc::new(Authenticator::new(config.agent_id.clone(), verifier, source)),
            admission,
            prefills: Arc::new(prefills),
            telemetry,
            replay: Arc::default(),
            token_uses: TokenUses::default(),
            kept: Kept::new(config.keep_time),
            abort,
        });
        let tls = config.tls.as_ref().map(|tls| HttpTls::new(tls, config.public_tls.as_ref())).transpose()?;
        let (listener, quic) = bind_sockets(&config).await?;
        let grpc_addr = listener.local_addr()?;
        Ok(Self { config, core, coordinator, listener, grpc_addr, tls, quic })
    }

    /// Where gRPC is served.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// Where QUIC is served; `None` without TLS material.
    pub fn quic_addr(&self) -> Option<SocketAddr> {
        self.quic.as_ref().map(|quic| quic.addr)
    }

    /// Serves until `shutdown`. Then nothing new is admitted, what runs may take [`Config::drain_time`] to finish, and the
    /// coordinator is told.
    ///
    /// # Errors
    /// The TCP listener broke down.
    pub async fn run(self, shutdown: CancellationToken) -> io::Result<()> {
        let registration = self.registration();
        let Self { config, core, coordinator, listener, grpc_addr, tls, quic } = self;
        let health = HealthReporter::new();
        health.set_serving::<AgentServiceServer<Service>>().await;
        let routes = routes(Service::new(Arc::clone(&core)), health.clone()).map_err(io::Error::other)?;
        let close = CancellationToken::new();
        tracing::info!(agent_id = %core.agent_id, grpc = %grpc_addr, quic = %quic.as_ref().map_or_else(|| "none".to_owned(), |quic| quic.addr.to_string()),
            models = ?core.models, "agent ready");

        let renew = Renew {
            http: tls.clone(),
            quic: quic.as_ref().map(|quic| QuicTls::new(&quic.listener, &quic.config, config.quic)),
            coordinator: coordinator.clone(),
        };
        let renewing = async {
            if let Some(renewals) = config.renewals {
                tokio::select! {
                    () = follow(renewals, |identities| renew.replace(identities)) => {}
                    () = close.cancelled() => {}
                }
            }
            Ok(())
        };
        let tcp_config = TcpConfig {
            tls,
            plaintext: if config.insecure_plaintext { Plaintext::Anywhere } else { Plaintext::LoopbackOnly },
            traffic: Arc::default(),
        };
        let http = openai_api::beside(routes.clone().into_axum_router(), Arc::clone(&core));
        // Where plain text is for everyone, so is asking.
        let http = if config.insecure_plaintext { http } else { pages(&config.public_host).guard(http) };
        let tcp = serve_tcp(listener, http, tcp_config, close.clone());
        let tcp = async { at_most_after(&close, tcp).await.unwrap_or(Ok(())) };
        let quic = async {
            if let Some(quic) = quic {
                serve_quic(quic.listener, routes, quic.config, close.clone()).await;
            }
            Ok(())
        };
        let heartbeat = async {
            if let Some(coordinator) = coordinator {
                let (core, interval) = (Arc::clone(&core), config.heartbeat_interval);
                Heartbeat { core, coordinator, registration, interval }.run(close.clone()).await;
            }
            Ok(())
        };
        let way_down = async {
            shutdown.cancelled().await;
            drain(&core, &health, config.drain_time).await;
            close.cancel();
            Ok(())
        };
        tokio::try_join!(tcp, quic, heartbeat, renewing, way_down).map(|_| ())
    }

    fn registration(&self) -> AgentRegistration {
        let config = &self.config;
        let quic = self.quic.as_ref();
        AgentRegistration {
            agent_id: config.agent_id.clone(),
            endpoint: config.advertised(self.grpc_addr),
            max_jobs: count(config.max_jobs),
            supported_models: self.core.models.clone(),
            capabilities: HashMap::from([("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]),
            quic_endpoint: quic
                .map(|quic| config.advertised_quic(quic.addr, self.grpc_addr.port()))
                .unwrap_or_default(),
            quic_server_name: quic.map(|_| titan_certs::agent_server_name(&config.agent_id)).unwrap_or_default(),
            grpc_tls: config.grpc_tls().as_str().to_owned(),
            model_info: self.core.model_info(),
            // What the machine has is read when the registration is sent.
            ..Default::default()
        }
    }
}

/// The name that clients dial is this agent's own.
fn pages(public_host: &Option<String>) -> Pages {
    Pages { hosts: public_host.iter().cloned().collect(), ..Pages::default() }
}

/// All that shows a certificate.
struct Renew {
    http: Option<HttpTls>,
    quic: Option<QuicTls>,
    coordinator: Option<Coordinator>,
}

impl Renew {
    fn replace(&self, identities: &Identities) -> Result<(), BindError> {
        if let Some(http) = &self.http {
            http.replace(identities)?;
        }
        if let Some(quic) = &self.quic {
            quic.replace(&identities.private)?;
        }
        if let Some(coordinator) = &self.coordinator {
            coordinator.replace_tls(&identities.private)?;
        }
        Ok(())
    }
}

/// Lets what runs finish; what has not by then is ended.
async fn drain(core: &Core, health: &HealthReporter, drain_time: Duration) {
    core.admission.drain();
    core.prefills.clear();
    health.set_not_serving::<AgentServiceServer<Service>>().await;
    health.set_service_status("", ServingStatus::NotServing).await;
    tracing::info!(running = core.admission.load().running, "draining");
    if tokio::time::timeout(drain_time, core.admission.idle()).await.is_err() {
        let running = core.admission.load().running;
        tracing::warn!(running, "not finished within {} s: ending them", drain_time.as_secs());
        core.abort.cancel();
    }
}

/// Runs `serve` to its end, but at most for [`CLOSE_TIME`] after `close`: an open health watch never ends by itself.
async fn at_most_after<F: Future>(close: &CancellationToken, serve: F) -> Option<F::Output> {
    tokio::select! {
        served = serve => Some(served),
        () = async { close.cancelled().await; tokio::time::sleep(CLOSE_TIME).await } => None,
    }
}

/// The same services for both wires: the agent's, health (the gRPC health checking protocol) and reflection.
fn routes(service: Service, health: HealthReporter) -> Result<Routes, tonic_reflection::server::Error> {
    let agent = AgentServiceServer::new(service).max_decoding_message_size(MAX_REQUEST_BYTES);
    let health = HealthServer::new(HealthService::from_health_reporter(health));
    let routes = Routes::new(agent)
        .add_service(health)
        .add_service(reflection().build_v1()?)
        // What grpcurl before 1.9 and many graphical clients still ask for.
        .add_service(reflection().build_v1alpha()?);
    Ok(routes.prepare())
}

/// Names what is served here; the descriptors hold the coordinator's services too.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name(AgentServiceServer::<Service>::NAME)
        .with_service_name(HealthServer::<HealthService>::NAME)
}

fn served_models(wanted: &[String], available: Vec<String>) -> Result<Vec<String>, ConfigError> {
    if let Some(model) = wanted.iter().find(|model| !available.contains(model)) {
        return Err(ConfigError::UnknownModel { model: model.clone(), available });
    }
    Ok(if wanted.is_empty() { available } else { wanted.to_vec() })
}

async fn bind_sockets(config: &Config) -> Result<(TcpListener, Option<Quic>), BindError> {
    let mut attempts = 1;
    loop {
        let tcp_error = |source| BindError::Tcp { address: config.grpc_addr, source };
        let listener = TcpListener::bind(config.grpc_addr).await.map_err(tcp_error)?;
        let Some(tls) = &config.tls else { return Ok((listener, None)) };
        let same = SocketAddr::new(config.grpc_addr.ip(), listener.local_addr()?.port());
        let address = config.quic_addr.unwrap_or(same);
        match QuicListener::bind_with(address, tls.quic_server_config_with(config.quic)?, config.quic) {
            Ok(quic) => {
                let addr = quic.local_addr()?;
                let config = QuicServerConfig { drain_timeout: CLOSE_TIME, ..QuicServerConfig::new(tls)? };
                return Ok((listener, Some(Quic { listener: quic, addr, config })));
            }
            // The system chose a TCP port whose number is taken in UDP: let it choose again.
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && config.grpc_addr.port() == 0
                    && config.quic_addr.is_none()
                    && attempts < PORT_ATTEMPTS =>
            {
                attempts += 1;
            }
            Err(source) => return Err(BindError::Udp { address, source }),
        }
    }
}

/// Why an agent could not be set up. Nothing is bound then.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The keys given are no JWK set.
    #[error("the keys for session tokens: {0}")]
    Keys(KeySetError),
    /// The TLS material cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The TCP port cannot be had.
    #[error("cannot listen on {address} (TCP, gRPC): {source}; AGENT_PORT chooses another port")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// The reason.
        source: io::Error,
    },
    /// The UDP port cannot be had.
    #[error("cannot listen on {address} (UDP, QUIC): {source}; AGENT_QUIC_PORT chooses another port")]
    Udp {
        /// The address.
        address: SocketAddr,
        /// The reason.
        source: io::Error,
    },
    /// The system did not do something it always does.
    #[error(transparent)]
    System(#[from] io::Error),
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn all_models_are_served_unless_some_are_named() {
        let available = || vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(served_models(&[], available()).unwrap(), ["a", "b"]);
        assert_eq!(served_models(&["b".into()], available()).unwrap(), ["b"]);
        let message = served_models(&["c".into()], available()).unwrap_err().to_string();
        assert!(message.contains("\"c\"") && message.contains("a, b"), "{message}");
    }
}
