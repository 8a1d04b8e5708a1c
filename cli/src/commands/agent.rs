//! `titan agent`.

use std::{net::SocketAddr, sync::Arc};

use anyhow::bail;
use titan_agent::{Agent, Config, ConfigError};
use titan_certs::Role;
use titan_proto::host::{host_of, is_loopback, is_loopback_ip};
use tokio_util::sync::CancellationToken;

use super::{Outcome, serve};
use crate::{
    args::{AgentArgs, serve::EngineKind},
    commands::Usage,
    engine::EnginePlan,
    ports::{self, Protocol, Wanted},
    progress::Progress,
    signals::Signals,
    trust::{self, Reach},
};

/// Loads the models and serves them until a signal.
pub(super) async fn agent(args: AgentArgs, signals: &Signals) -> anyhow::Result<Outcome> {
    let plan = plan(&args)?;
    let config = config(&args, signals)?;
    config.validate()?;
    if config.is_local_to(&args.coordinator) {
        tracing::warn!(
            "clients of {} are told to dial this agent at {}: those on other machines reach nothing there",
            args.coordinator,
            args.public_host.as_deref().unwrap_or("localhost")
        );
    }
    if let Some(model) = config.models.iter().find(|model| !plan.names().contains(model)) {
        bail!(ConfigError::UnknownModel { model: model.clone(), available: plan.names() });
    }
    ports::check(args.listen.bind, &wanted_ports(&args))?;
    let progress = Arc::new(Progress::new());
    let engine = tokio::select! {
        engine = plan.load(1, &progress) => engine?,
        signal = signals.next() => return Ok(Outcome::Interrupted(signal)),
    };
    progress.done();
    let agent = Agent::bind(config, engine).await?;
    let shutdown = CancellationToken::new();
    serve(signals, shutdown.clone(), agent.run(shutdown)).await
}

fn plan(args: &AgentArgs) -> anyhow::Result<EnginePlan> {
    match (args.kind, args.rate) {
        (EngineKind::Mistral, _) if args.words => bail!(Usage("--words is for --engine synthetic only".to_owned())),
        (EngineKind::Mistral, None) => EnginePlan::new(&args.engine),
        (EngineKind::Mistral, Some(_)) => bail!(Usage("--rate is for --engine synthetic only".to_owned())),
        (EngineKind::Synthetic, _) if !args.engine.models.is_empty() || args.engine.self_test => {
            bail!(Usage("--engine synthetic runs no model: leave --model and --self-test out".to_owned()))
        }
        (EngineKind::Synthetic, rate) => {
            Ok(EnginePlan::Synthetic { tokens_per_second: rate.unwrap_or_default(), words: args.words })
        }
    }
}

fn config(args: &AgentArgs, signals: &Signals) -> anyhow::Result<Config> {
    let ip = args.listen.bind;
    titan_certs::validate_name(&args.id)
        .map_err(|reason| ConfigError::AgentId { agent_id: args.id.clone(), reason })?;
    let local = is_loopback_ip(ip) && is_loopback(host_of(&args.coordinator));
    let reach = if local { Reach::ThisMachine } else { Reach::OtherMachines };
    let bound = (!ip.is_unspecified()).then(|| ip.to_string());
    let hosts: Vec<String> = args.public_host.iter().cloned().chain(bound).collect();
    let served = trust::served(&args.listen, Role::Agent, &args.id, &hosts, reach, signals.reloads())?;
    Ok(Config {
        grpc_addr: SocketAddr::new(ip, args.agent_port),
        quic_addr: args.quic_port.map(|port| SocketAddr::new(ip, port)),
        public_host: args.public_host.clone(),
        public_port: args.public_port,
        public_quic_port: args.public_quic_port,
        coordinator: Some(args.coordinator.clone()),
        tls: served.private,
        public_tls: served.public,
        renewals: served.renewals,
        insecure_plaintext: args.listen.insecure_plaintext,
        max_jobs: usize::from(args.engine.max_jobs),
        models: args
            .supported_models
            .iter()
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty())
            .collect(),
        heartbeat_interval: args.heartbeat_interval,
        drain_time: args.drain_time,
        ..Config::new(&args.id)
    })
}

fn wanted_ports(args: &AgentArgs) -> [Wanted; 2] {
    let quic = args.quic_port.unwrap_or(args.agent_port);
    [
        Wanted {
            protocol: Protocol::Tcp,
            what: "the agent's gRPC service",
            setting: "--agent-port (AGENT_PORT)",
            port: args.agent_port,
        },
        Wanted {
            protocol: Protocol::Udp,
            what: "the agent's QUIC endpoint",
            setting: "--quic-port (AGENT_QUIC_PORT)",
            port: quic,
        },
    ]
}
