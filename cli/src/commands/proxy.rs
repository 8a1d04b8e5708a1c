//! `titan proxy`: the OpenAI API on this machine, carried over the fast path.

mod backend;
mod metrics;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use axum::{Router, routing::get, serve::ListenerExt as _};
use titan_client::TitanClient;
use titan_openai::Settings;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::{backend::ToAgents, metrics::Metrics};
use super::{Outcome, Usage, client, serve};
use crate::{args::ProxyArgs, rest::Rest, trust};

/// How long running answers may take to finish when it stops.
const DRAIN_TIME: Duration = Duration::from_secs(25);

pub(super) async fn proxy(args: ProxyArgs) -> anyhow::Result<Outcome> {
    let key = key(&args)?;
    if key.is_none() && !args.listen.ip().is_loopback() {
        bail!(Usage(format!(
            "--listen {}: other machines can reach this address, and anyone there could generate: give --api-key (TITAN_API_KEY)",
            args.listen
        )));
    }
    let tls = trust::client(&args.identity)?;
    let rest = Rest::new(&args.coordinator, tls.as_ref())?;
    let client = client::builder(&args.coordinator, args.wire, tls, &args.without).build()?;

    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}: --listen chooses another address", args.listen))?;
    let address = listener.local_addr()?;
    let router = router(&client, rest, key);
    announce(&args, address);

    let shutdown = CancellationToken::new();
    let outcome = serve(shutdown.clone(), run(listener, router, shutdown)).await;
    client.close().await;
    outcome
}

/// All that it serves.
pub(super) fn router(client: &TitanClient, rest: Rest, key: Option<String>) -> Router {
    let metrics = Arc::new(Metrics::default());
    let backend = ToAgents::new(client.clone(), rest, key, Arc::clone(&metrics));
    titan_openai::router(Arc::new(backend), Settings::default()).merge(beside(client, metrics))
}

/// What is asked for by those who watch it.
fn beside(client: &TitanClient, metrics: Arc<Metrics>) -> Router {
    let client = client.clone();
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/metrics", get(move || async move { metrics.text(&client.stats()) }))
}

/// Serves it until `shutdown`, then lets running answers finish.
pub(super) async fn run(listener: TcpListener, router: Router, shutdown: CancellationToken) -> io::Result<()> {
    let listener = listener.tap_io(|stream| {
        // A token is a small packet, and the next one must not wait for its acknowledgement.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY");
        }
    });
    let server = axum::serve(listener, router).with_graceful_shutdown(shutdown.clone().cancelled_owned());
    tokio::select! {
        served = server.into_future() => served,
        () = async { shutdown.cancelled().await; tokio::time::sleep(DRAIN_TIME).await } => Ok(()),
    }
}

/// The key that applications have to show, if any.
fn key(args: &ProxyArgs) -> anyhow::Result<Option<String>> {
    match &args.api_key {
        Some(key) if key.trim().is_empty() => bail!(Usage("--api-key (TITAN_API_KEY) is empty".to_owned())),
        Some(key) => Ok(Some(key.clone())),
        None => Ok(None),
    }
}

fn announce(args: &ProxyArgs, address: SocketAddr) {
    if args.json {
        println!("{}", serde_json::json!({"url": format!("http://{address}/v1")}));
        return;
    }
    let key = if args.api_key.is_some() { "the key of --api-key" } else { "any" };
    println!("OpenAI API: http://{address}/v1, for the agents of {}", args.coordinator);
    println!("OPENAI_BASE_URL=http://{address}/v1 OPENAI_API_KEY={key}");
}
