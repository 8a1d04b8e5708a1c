//! Asking a coordinator, before there is a request: is it there, and what does it serve?

use std::time::Duration;

use anyhow::{Context as _, bail};
use titan_proto::{COORDINATOR_NAME, rest};
use titan_transport::{
    causes,
    tls::{TlsMaterial, https_client_config, trouble},
};

/// Longest wait for a coordinator that was named: a distant one may be slow.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest wait for one that may be running on this machine.
const LOCAL_PATIENCE: Duration = Duration::from_secs(1);

/// A coordinator's REST interface.
pub(crate) struct Rest {
    url: String,
    http: reqwest::Client,
    key: Option<String>,
    /// Whether it was given a CA to trust.
    trusts: bool,
}

/// What answers at an address.
#[derive(Debug)]
pub(crate) enum Probe {
    /// A coordinator.
    Coordinator,
    /// Something else, or a coordinator in trouble.
    Other(String),
    /// Somebody whose certificate, or ours, was refused.
    Untrusted(String),
    /// Nothing.
    Nobody(String),
}

impl Rest {
    /// Trusts the private CA of `tls` for `https`; goes through no proxy, since a coordinator is a neighbour.
    /// `key`: the API key, for a coordinator that asks for one.
    pub(crate) fn new(url: &str, tls: Option<&TlsMaterial>, key: Option<&str>) -> anyhow::Result<Self> {
        let http = http(tls)?.timeout(PATIENCE).build()?;
        Ok(Self { url: url.to_owned(), http, key: key.map(str::to_owned), trusts: tls.is_some() })
    }

    /// Asks the health endpoint of a coordinator that may be running on this machine.
    pub(crate) async fn probe_local(&self) -> Probe {
        self.probe(LOCAL_PATIENCE).await
    }

    /// Asks the health endpoint of a coordinator that was named.
    pub(crate) async fn require(&self) -> anyhow::Result<()> {
        match self.probe(PATIENCE).await {
            Probe::Coordinator => Ok(()),
            Probe::Other(what) => {
                bail!(
                    "{} is no TitanCompute coordinator that can be used: {what}. Check --coordinator (COORDINATOR_URL)",
                    self.url
                )
            }
            Probe::Untrusted(why) => bail!("{}: {why}", self.url),
            Probe::Nobody(why) => bail!(
                "no coordinator answers at {}: {why}. Check --coordinator (COORDINATOR_URL), or leave it out to run a model on this machine",
                self.url
            ),
        }
    }

    async fn probe(&self, patience: Duration) -> Probe {
        let answer = match self.http.get(format!("{}/api/v1/health", self.url)).timeout(patience).send().await {
            Ok(answer) => answer,
            Err(error) => return self.unanswered(&error),
        };
        let status = answer.status();
        let body = answer.bytes().await.unwrap_or_default();
        match serde_json::from_slice::<rest::Health>(&body) {
            Ok(health) if status.is_success() && health.service == COORDINATOR_NAME => Probe::Coordinator,
            Ok(health) => Probe::Other(format!("its health endpoint says {:?}, {:?}", health.service, health.status)),
            // A coordinator that refuses says why.
            Err(_) => Probe::Other(match serde_json::from_slice::<rest::Error>(&body) {
                Ok(refusal) => format!("it answered {}, {}", refusal.code, refusal.message),
                Err(_) => format!("its health endpoint answered {status}"),
            }),
        }
    }

    /// `error sending request for url` says nothing that a reader can act on; its last cause does.
    fn unanswered(&self, error: &reqwest::Error) -> Probe {
        let tls = causes(error).find_map(|cause| cause.downcast_ref());
        if let Some(why) = tls.and_then(|tls| trouble(tls, "the coordinator", "this program", self.trusts)) {
            return Probe::Untrusted(why);
        }
        let innermost = causes(error).last().map(ToString::to_string).unwrap_or_default();
        Probe::Nobody(if error.is_timeout() { "it took too long".to_owned() } else { innermost })
    }

    /// The models that are served now.
    pub(crate) async fn models(&self) -> anyhow::Result<Vec<rest::ModelInfo>> {
        Ok(self.status().await?.models())
    }

    /// The agents and what they serve.
    pub(crate) async fn status(&self) -> anyhow::Result<rest::Status> {
        self.get("/api/v1/status?include_agents=true").await
    }

    /// How many agents there are, for which nobody needs a key.
    #[cfg(feature = "engines")]
    pub(crate) async fn totals(&self) -> anyhow::Result<rest::Status> {
        self.get("/api/v1/status").await
    }

    async fn get(&self, path: &str) -> anyhow::Result<rest::Status> {
        let url = format!("{}{path}", self.url);
        let mut request = self.http.get(&url);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let answer = request.send().await.with_context(|| format!("asking {url}"))?;
        let status = answer.status();
        let body = answer.bytes().await.with_context(|| format!("asking {url}"))?;
        if !status.is_success() {
            // A coordinator that refuses says why.
            match serde_json::from_slice::<rest::Error>(&body) {
                Ok(refusal) => bail!("the coordinator at {} refuses: {}", self.url, refusal.message),
                Err(_) => bail!("{url} answered {status}"),
            }
        }
        serde_json::from_slice(&body).with_context(|| format!("what {url} answers"))
    }
}

/// A client that trusts the private CA of `tls` and shows no certificate, and goes through no proxy.
pub(crate) fn http(tls: Option<&TlsMaterial>) -> anyhow::Result<reqwest::ClientBuilder> {
    let config = https_client_config(tls, false)?;
    Ok(reqwest::Client::builder().no_proxy().tls_backend_preconfigured(config))
}
