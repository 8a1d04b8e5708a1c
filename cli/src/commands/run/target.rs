//! Where the prompt goes: to the coordinator that was named, to one that runs on this machine, or to a cluster of our own.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context as _, bail};
use titan_proto::{COORDINATOR_HTTP_PORT, DEFAULT_MODEL_NAME};
use titan_transport::tls::TlsMaterial;

use super::cluster::{self, Cluster};
use crate::{
    args::RunArgs,
    commands::Usage,
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
pub(super) async fn find(args: &RunArgs) -> anyhow::Result<Target> {
    let source = args.model.as_deref().filter(|model| is_source(model));
    let key = args.key.api_key.as_deref();
    if let Some(url) = &args.coordinator {
        if let Some(source) = source {
            bail!(Usage(format!(
                "--model {source} is a file, but the coordinator {url} serves models by name: give a name, or leave --coordinator (COORDINATOR_URL) out to run the file on this machine"
            )));
        }
        if let Some(file) = &args.chat_template {
            bail!(Usage(format!(
                "--chat-template {file} is for a model on this machine, and the coordinator {url} serves models with their own: leave one of them out"
            )));
        }
        let tls = trust::client_with_key(&args.identity, key, url).await?;
        let rest = Rest::new(url, tls.as_ref(), key)?;
        rest.require().await?;
        let model = model(&rest, args).await?;
        return Ok(Target { url: url.clone(), model, tls, cluster: None });
    }
    // Whoever gives a template wants it used.
    if source.is_some() || args.chat_template.is_some() {
        return cluster::start(args).await;
    }
    let url = format!("http://localhost:{COORDINATOR_HTTP_PORT}");
    match Rest::new(&url, None, key)?.probe_local().await {
        Probe::Coordinator => {
            let tls = trust::client_with_key(&args.identity, key, &url).await?;
            let model = model(&Rest::new(&url, None, key)?, args).await?;
            Ok(Target { url, model, tls, cluster: None })
        }
        Probe::Other(why) | Probe::Untrusted(why) | Probe::Nobody(why) => {
            tracing::info!(%url, %why, "no coordinator there: bringing up a local cluster");
            cluster::start(args)
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
