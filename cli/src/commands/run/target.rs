//! Where the prompt goes: to the coordinator that was named, to one that runs on this machine, or to a cluster of our own.

use std::{collections::BTreeSet, net::Ipv4Addr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use titan_agent::{
    Config,
    engine::{fetch::DEFAULT_MODEL_NAME, watched::DEFAULT_ENGINE_TIMEOUT},
};
use titan_certs::Role;
use titan_proto::COORDINATOR_HTTP_PORT;
use titan_transport::tls::TlsMaterial;

use crate::{
    args::RunArgs,
    commands::Usage,
    engine::{EnginePlan, Planned, Settings},
    local::Cluster,
    places,
    progress::Progress,
    rest::{Probe, Rest},
    trust,
};

/// A coordinator to ask, and what to ask it for.
pub(super) struct Target {
    pub(super) url: String,
    pub(super) model: String,
    /// Absent where this user has no certificates: then gRPC in plain text is what is left.
    pub(super) tls: Option<TlsMaterial>,
    /// The cluster, if it is our own.
    pub(super) cluster: Option<Cluster>,
}

/// Finds it, or brings it up.
pub(super) async fn find(args: &RunArgs, progress: &Arc<Progress>) -> anyhow::Result<Target> {
    let source = args.model.as_deref().filter(|model| is_source(model));
    if let Some(url) = &args.coordinator {
        if let Some(source) = source {
            bail!(Usage(format!(
                "--model {source} is a file, but the coordinator {url} serves models by name: give a name, or leave --coordinator (COORDINATOR_URL) out to run the file on this machine"
            )));
        }
        let tls = trust::client(&args.identity)?;
        let rest = Rest::new(url, tls.as_ref())?;
        rest.require().await?;
        let model = model(&rest, args).await?;
        return Ok(Target { url: url.clone(), model, tls, cluster: None });
    }
    if source.is_some() {
        return local(args, progress).await;
    }
    let url = format!("http://localhost:{COORDINATOR_HTTP_PORT}");
    match Rest::new(&url, None)?.probe_local().await {
        Probe::Coordinator => {
            let tls = trust::client(&args.identity)?;
            let model = model(&Rest::new(&url, None)?, args).await?;
            Ok(Target { url, model, tls, cluster: None })
        }
        Probe::Other(why) | Probe::Nobody(why) => {
            tracing::info!(%url, %why, "no coordinator there: bringing up a local cluster");
            local(args, progress)
                .await
                .with_context(|| format!("no coordinator answers at {url}, so a local cluster is needed"))
        }
    }
}

/// The model that was asked for, the default one, or the only one.
async fn model(rest: &Rest, args: &RunArgs) -> anyhow::Result<String> {
    if let Some(model) = &args.model {
        return Ok(model.clone());
    }
    let agents = rest.status().await?.agents.unwrap_or_default();
    let served: BTreeSet<String> = agents.into_iter().flat_map(|agent| agent.supported_models).collect();
    choose(&served)
}

fn choose(served: &BTreeSet<String>) -> anyhow::Result<String> {
    // With nobody there the coordinator's own words say so.
    if served.is_empty() || served.contains(DEFAULT_MODEL_NAME) {
        return Ok(DEFAULT_MODEL_NAME.to_owned());
    }
    match served.iter().collect::<Vec<_>>().as_slice() {
        [only] => Ok((*only).clone()),
        several => {
            let names: Vec<&str> = several.iter().map(|name| name.as_str()).collect();
            bail!(Usage(format!("the coordinator has several models: choose one with --model: {}", names.join(", "))))
        }
    }
}

/// A coordinator and one agent, on ports that the system chooses.
async fn local(args: &RunArgs, progress: &Arc<Progress>) -> anyhow::Result<Target> {
    let planned = Planned::parse(args.model.as_deref().unwrap_or(DEFAULT_MODEL_NAME))?;
    // One request at a time needs one engine.
    let settings = Settings {
        max_jobs: 1,
        engines: None,
        context_tokens: None,
        force_cpu: false,
        self_test: false,
        engine_timeout: DEFAULT_ENGINE_TIMEOUT,
    };
    let plan = EnginePlan::Models { models: vec![planned], settings };
    let model = plan.names().into_iter().next().context("the model has no name")?;

    let dir = places::certs(args.identity.certs.as_ref());
    let free_port = (Ipv4Addr::LOCALHOST, 0).into();
    let coordinator = titan_coord::Config {
        http_addr: free_port,
        grpc_addr: free_port,
        tls: Some(trust::local(&dir, Role::Coordinator, "coordinator")?),
        key_dir: places::keys(),
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
    let cluster = Cluster::start(coordinator, vec![agent], &plan, progress).await?;
    Ok(Target { url: cluster.url(), model, tls: Some(tls), cluster: Some(cluster) })
}

/// Whether it can only be a model to load, not the name of one that is served.
fn is_source(model: &str) -> bool {
    model.contains('=') || model.ends_with(".gguf") || (model.contains('/') && Path::new(model).exists())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn names_are_told_from_files() {
        for source in ["a=b", "x.gguf", "./x.gguf", "org/name/x.gguf", "/"] {
            assert!(is_source(source), "{source}");
        }
        for name in ["smollm2:135m", "llama3", "Qwen/Qwen3-0.6B"] {
            assert!(!is_source(name), "{name}");
        }
    }

    #[test]
    fn without_a_name_it_is_the_default_model_or_the_only_one() {
        let choose = |names: &[&str]| choose(&names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(choose(&["a", "smollm2:135m"]).unwrap(), "smollm2:135m");
        assert_eq!(choose(&["a"]).unwrap(), "a");
        assert_eq!(choose(&[]).unwrap(), "smollm2:135m");
        let message = choose(&["a", "b"]).unwrap_err().to_string();
        assert!(message.contains("--model") && message.contains("a, b"), "{message}");
    }
}
