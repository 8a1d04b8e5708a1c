//! The OpenAI API on this machine, carried to agents by the client library: what `titan proxy` serves.
//!
//! An application that knows nothing of agents gets all that [`TitanClient`](titan_client::TitanClient) has: connections kept warm, early data, repeats of what may get lost, answers that
//! outlive a change of network and the death of an agent.
//!
//! `backend`: requests to agents and back. `clients`: by which client. `metrics`: what it has done.

mod backend;
mod clients;
mod metrics;

use std::{io, sync::Arc, time::Duration};

use axum::{Router, routing::get};
use titan_openai::Settings;
use titan_transport::{Plaintext, TcpConfig, serve_tcp};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use self::clients::Clients;
use self::{backend::ToAgents, metrics::Metrics};

/// How long running answers may take to finish when it stops.
const DRAIN_TIME: Duration = Duration::from_secs(25);

/// `/v1/…`, `/healthz` and `/metrics`. With a `key` only those who show it may ask, without one only programs of this machine, and no pages in its browsers.
pub fn router(clients: &Clients, key: Option<String>) -> Router {
    let metrics = Arc::new(Metrics::default());
    let backend = ToAgents::new(clients.clone(), key, Arc::clone(&metrics));
    let clients = clients.clone();
    titan_openai::router(Arc::new(backend), Settings::default())
        .route("/healthz", get(async || "ok\n"))
        .route("/metrics", get(move || async move { metrics.text(&clients.get().stats()) }))
}

/// Serves it until `shutdown`, then lets running answers finish, for 25 s at most.
///
/// # Errors
/// When the port accepts no more connections.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) -> io::Result<()> {
    // Who may ask, and from where, the router decides; the limits of a port hold here as they do for agents.
    let config = TcpConfig { tls: None, plaintext: Plaintext::Anywhere, traffic: Arc::default() };
    tokio::select! {
        served = serve_tcp(listener, router, config, shutdown.clone()) => served,
        () = async { shutdown.cancelled().await; tokio::time::sleep(DRAIN_TIME).await } => Ok(()),
    }
}
