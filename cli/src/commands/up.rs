//! `titan up`.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use serde_json::json;
use titan_agent::{Config, engine::fetch::DEFAULT_MODEL_NAME};
use titan_certs::{CertDir, Role};
use titan_proto::COORDINATOR_HTTP_PORT;

use super::{Outcome, Usage, coord};
use crate::{
    args::UpArgs,
    engine::EnginePlan,
    local::Cluster,
    places,
    ports::{self, Protocol, Wanted},
    progress::Progress,
    signals::Signals,
    trust,
};

/// Brings a cluster up and keeps it until a signal.
pub(super) async fn up(args: UpArgs, signals: &Signals) -> anyhow::Result<Outcome> {
    let plan = match args.synthetic {
        Some(tokens_per_second) => EnginePlan::Synthetic { tokens_per_second, words: false },
        None => EnginePlan::new(&args.engine)?,
    };
    let agent_ports = agent_ports(&args)?;
    let wanted: Vec<Wanted> = coord::wanted_ports(&args.coordinator)
        .into_iter()
        .chain(agent_ports.iter().flat_map(|port| wanted(*port)))
        .collect();
    ports::check(Ipv4Addr::LOCALHOST.into(), &wanted)?;

    let dir = places::certs(args.certs.as_ref())?;
    let (tls, renewals) = trust::served_locally(&dir, Role::Coordinator, "coordinator", signals.reloads())?;
    let mut coordinator = coord::config(&args.coordinator, Some(tls))?;
    coordinator.renewals = Some(renewals);
    coordinator.enrolment = Some(CertDir::new(dir.path()));
    let mut agents = Vec::new();
    for (number, port) in (1..).zip(agent_ports) {
        let id = format!("agent-{number}");
        let (tls, renewals) = trust::served_locally(&dir, Role::Agent, &id, signals.reloads())?;
        agents.push(Config {
            grpc_addr: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            tls: Some(tls),
            renewals: Some(renewals),
            max_jobs: usize::from(args.engine.max_jobs),
            drain_time: args.drain_time,
            heartbeat_interval: coordinator.heartbeat_interval,
            ..Config::new(id)
        });
    }

    let progress = Arc::new(Progress::new());
    let mut cluster = tokio::select! {
        cluster = Cluster::start(coordinator, agents, &plan, &progress) => cluster?,
        signal = signals.next() => return Ok(Outcome::Interrupted(signal)),
    };
    progress.done();
    let text = if args.json { as_json(&cluster, &plan, &dir) } else { welcome(&cluster, &plan, &dir)? };
    // Whoever closed stdout wants the cluster all the same.
    let _ = io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush());

    tokio::select! {
        failure = cluster.failed() => return Err(failure),
        _ = signals.next() => {}
    }
    tracing::info!("stopping when running generations have finished; a second signal stops at once");
    tokio::select! {
        () = cluster.stop() => Ok(Outcome::Done),
        signal = signals.next() => Ok(Outcome::Interrupted(signal)),
    }
}

/// Consecutive, or all chosen by the system.
fn agent_ports(args: &UpArgs) -> anyhow::Result<Vec<u16>> {
    if args.agent_port == 0 {
        return Ok(vec![0; usize::from(args.agents)]);
    }
    let Some(end) = args.agent_port.checked_add(args.agents) else {
        bail!(Usage(format!(
            "{} agents from port {} on do not fit below 65536: choose a lower --agent-port (AGENT_PORT)",
            args.agents, args.agent_port
        )));
    };
    Ok((args.agent_port..end).collect())
}

fn wanted(port: u16) -> [Wanted; 2] {
    let setting = "--agent-port (AGENT_PORT)";
    [
        Wanted { protocol: Protocol::Tcp, what: "an agent's gRPC service", setting, port },
        Wanted { protocol: Protocol::Udp, what: "an agent's QUIC endpoint", setting, port },
    ]
}

fn as_json(cluster: &Cluster, plan: &EnginePlan, dir: &CertDir) -> String {
    let agents = cluster.agents.iter().map(|agent| {
        let quic = agent.quic.map(|quic| format!("localhost:{}", quic.port()));
        json!({"id": agent.id, "grpc": format!("localhost:{}", agent.grpc.port()), "quic": quic})
    });
    let line = json!({
        "rest": format!("http://localhost:{}", cluster.http.port()),
        "grpc": format!("localhost:{}", cluster.grpc.port()),
        "agents": agents.collect::<Vec<_>>(),
        "models": plan.names(),
        "certs": dir.path(),
    });
    format!("{line}\n")
}

fn welcome(cluster: &Cluster, plan: &EnginePlan, dir: &CertDir) -> anyhow::Result<String> {
    let names = plan.names();
    let model = names.first().context("there is no model")?;
    let rest = format!("http://localhost:{}", cluster.http.port());
    let mut text = format!("Ready: {}\n\n", names.join(", "));
    writeln!(text, "  coordinator  REST {rest}  gRPC localhost:{}", cluster.grpc.port())?;
    for agent in &cluster.agents {
        let quic = agent.quic.map_or_else(|| "none".to_owned(), |quic| format!("localhost:{}/udp", quic.port()));
        writeln!(text, "  {:<12} gRPC localhost:{}/tcp  QUIC {quic}", agent.id, agent.grpc.port())?;
    }
    writeln!(text, "  certificates {}", dir.path().display())?;

    let coordinator =
        if cluster.http.port() == COORDINATOR_HTTP_PORT { String::new() } else { format!(" --coordinator {rest}") };
    let named = if model == DEFAULT_MODEL_NAME { String::new() } else { format!(" --model {model}") };
    write!(
        text,
        "\nIn another terminal:\n  \
         titan run{coordinator}{named} \"Why is the sky blue?\"\n  \
         curl -s {rest}/api/v1/status?include_agents=true\n  \
         curl -s {rest}/api/v1/inference/request -H 'content-type: application/json' \\\n       \
         -d '{{\"client_id\": \"me\", \"model\": \"{model}\", \"prompt\": \"Hello\"}}'   # which agent, and a token for it\n  \
         OPENAI_BASE_URL={rest}/v1 OPENAI_API_KEY=any python3 client/examples/openai_client.py \"Hello\"\n  \
         python3 client/examples/rest_client.py --coordinator {rest}{named} \"Hello\"\n\n\
         Ctrl-C stops it.\n"
    )?;
    Ok(text)
}
