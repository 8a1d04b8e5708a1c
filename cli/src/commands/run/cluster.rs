//! A cluster in this process, for one request: where no coordinator was named and none answers.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use anyhow::Context as _;
use titan_agent::{
    Config,
    engine::{mistral::Isq, watched::DEFAULT_ENGINE_TIMEOUT},
};
use titan_certs::Role;
use titan_proto::DEFAULT_MODEL_NAME;

use super::target::Target;
pub(super) use crate::local::Cluster;
use crate::{
    args::RunArgs,
    engine::{EnginePlan, Planned, Settings, set_chat_template},
    places,
    progress::Progress,
    trust,
};

/// A coordinator and one agent, on ports that the system chooses.
pub(super) async fn start(args: &RunArgs) -> anyhow::Result<Target> {
    let mut models = vec![Planned::parse(args.model.as_deref().unwrap_or(DEFAULT_MODEL_NAME))?];
    if let Some(text) = &args.chat_template {
        set_chat_template(&mut models, text)?;
    }
    // One request at a time needs one engine.
    let settings = Settings {
        max_jobs: 1,
        engines: None,
        context_tokens: None,
        force_cpu: false,
        isq: Isq::Auto,
        self_test: false,
        gpu: Default::default(),
        engine_timeout: DEFAULT_ENGINE_TIMEOUT,
    };
    let plan = EnginePlan::Models { models, settings };
    let model = plan.names().into_iter().next().context("the model has no name")?;

    let dir = places::certs(args.identity.certs.as_ref())?;
    let free_port = (Ipv4Addr::LOCALHOST, 0).into();
    let coordinator = titan_coord::Config {
        http_addr: free_port,
        grpc_addr: free_port,
        tls: Some(trust::local(&dir, Role::Coordinator, "coordinator")?),
        key_dir: places::keys()?,
        // It is for this process, on a port that nobody else knows.
        api_keys: false,
        prefill_ahead: args.prefill_ahead,
        ..titan_coord::Config::default()
    };
    let agent = Config {
        grpc_addr: free_port,
        tls: Some(trust::local(&dir, Role::Agent, "agent-1")?),
        // It serves this process alone, which has what it wanted when it stops.
        drain_time: Duration::ZERO,
        ..Config::new("agent-1")
    };
    let tls = trust::local(&dir, Role::Client, trust::CLIENT_NAME)?;
    let progress = Arc::new(Progress::new());
    let cluster = Cluster::start(coordinator, vec![agent], &plan, &progress).await?;
    progress.done();
    Ok(Target { url: cluster.url(), model, tls: Some(tls), cluster: Some(cluster) })
}
