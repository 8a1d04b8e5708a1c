//! `titan coord`.

use std::{net::SocketAddr, time::Duration};

use titan_certs::{CertDir, Role};
use titan_coord::{Config, Coordinator};
use titan_proto::host::is_loopback_ip;
use titan_transport::tls::TlsMaterial;
use tokio_util::sync::CancellationToken;

use super::{Outcome, serve};
use crate::{
    args::{CoordArgs, IdentityArgs, serve::CoordinatorArgs},
    places,
    ports::{self, Protocol, Wanted},
    signals::Signals,
    trust::{self, Reach},
};

/// Heartbeats of a third of the time after which an agent is gone: two may be lost.
const HEARTBEATS_PER_TIMEOUT: u32 = 3;
const LONGEST_HEARTBEAT: Duration = Duration::from_secs(10);
const SHORTEST_HEARTBEAT: Duration = Duration::from_secs(1);

/// Runs a coordinator until a signal.
pub(super) async fn coord(args: CoordArgs, signals: &Signals) -> anyhow::Result<Outcome> {
    let ip = args.listen.bind;
    let reach = if is_loopback_ip(ip) { Reach::ThisMachine } else { Reach::OtherMachines };
    let hosts: Vec<String> = (!ip.is_unspecified()).then(|| ip.to_string()).into_iter().collect();
    let served = trust::served(&args.listen, Role::Coordinator, &args.name, &hosts, reach, signals.reloads())?;
    let mut config = config(&args.coordinator, served.private)?;
    config.enrolment = enrolment(&args.listen.identity)?;
    config.public_tls = served.public;
    config.renewals = served.renewals;
    config.http_addr = SocketAddr::new(ip, args.coordinator.http_port);
    config.grpc_addr = SocketAddr::new(ip, args.coordinator.grpc_port);
    config.insecure_plaintext = args.listen.insecure_plaintext;
    config.validate()?;
    ports::check(ip, &wanted_ports(&args.coordinator))?;
    // A first start makes keys, which takes a while.
    let coordinator = tokio::select! {
        bound = Coordinator::bind(config) => bound?,
        signal = signals.next() => return Ok(Outcome::Interrupted(signal)),
    };
    let shutdown = CancellationToken::new();
    serve(signals, shutdown.clone(), coordinator.run(shutdown)).await
}

/// The CA that certifies keys of clients: where its own key is, and nobody named certificates one by one.
fn enrolment(identity: &IdentityArgs) -> anyhow::Result<Option<CertDir>> {
    if identity.cert.is_some() {
        return Ok(None);
    }
    let dir = places::certs(identity.certs.as_ref())?;
    Ok((dir.ca_pem().exists() && dir.ca_key().exists()).then_some(dir))
}

/// A coordinator on this machine alone; `coord` changes that.
pub(super) fn config(args: &CoordinatorArgs, tls: Option<TlsMaterial>) -> anyhow::Result<Config> {
    let defaults = Config::default();
    let heartbeat_interval = args.heartbeat_interval.unwrap_or_else(|| {
        (args.heartbeat_timeout / HEARTBEATS_PER_TIMEOUT).clamp(SHORTEST_HEARTBEAT, LONGEST_HEARTBEAT)
    });
    Ok(Config {
        http_addr: SocketAddr::new(defaults.http_addr.ip(), args.http_port),
        grpc_addr: SocketAddr::new(defaults.grpc_addr.ip(), args.grpc_port),
        tls,
        token_ttl: args.token_ttl,
        token_algorithm: args.token_algorithm,
        key_dir: args.key_dir.clone().map_or_else(places::keys, Ok)?,
        api_keys: !args.no_api_keys,
        usage_log: Some(args.usage_log.clone().map_or_else(places::usage_log, Ok)?),
        heartbeat_timeout: args.heartbeat_timeout,
        heartbeat_interval,
        booking_timeout: args.booking_timeout,
        weights: args.weights,
        prefill_ahead: args.prefill_ahead,
        cors_origins: args.cors_origins.clone(),
        allowed_hosts: args.allowed_hosts.clone(),
        ..defaults
    })
}

/// The coordinator's ports.
pub(super) fn wanted_ports(args: &CoordinatorArgs) -> [Wanted; 2] {
    let tcp = |what, setting, port| Wanted { protocol: Protocol::Tcp, what, setting, port };
    [
        tcp("the coordinator's REST interface", "--http-port (COORDINATOR_HTTP_PORT)", args.http_port),
        tcp("the coordinator's gRPC service", "--grpc-port (COORDINATOR_PORT)", args.grpc_port),
    ]
}
