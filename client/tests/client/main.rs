//! The client against a coordinator and agents made for the purpose, which do as a test tells them.
#![allow(clippy::unwrap_used)]

mod agent;
mod certs;
mod coordinator;
mod deadlines;
mod failures;
mod faults;
mod flight;
mod moving;
mod outages;
mod outcomes;
mod relay;
mod resuming;
mod routing;
mod sessions;
mod wires;

use std::time::Duration;

use futures_util::StreamExt as _;
use titan_client::{Builder, ClientError, Generation, Prompt, TitanClient};

use agent::TestAgent;
use coordinator::TestCoordinator;

/// What the agents serve.
const MODEL: &str = "parrot";
/// Longest wait for anything; only for a broken test does it matter how long.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long QUIC may take until gRPC is tried too: longer than a handshake takes on a busy machine, and short enough for tests in which
/// nothing answers.
const QUIC_TIMEOUT: Duration = Duration::from_secs(1);

/// One agent, a coordinator that knows it, and a client with a certificate.
struct World {
    agent: TestAgent,
    coordinator: TestCoordinator,
    client: TitanClient,
}

impl World {
    async fn new() -> Self {
        Self::of(TestAgent::start("agent-1").await).await
    }

    async fn of(agent: TestAgent) -> Self {
        let coordinator = TestCoordinator::start([agent.place()]).await;
        let client = builder(&coordinator).build().unwrap();
        Self { agent, coordinator, client }
    }

    /// Has `prompt` answered, completely.
    async fn say(&self, prompt: &str) -> (String, Generation) {
        say(&self.client, prompt).await
    }

    /// The error that `prompt` ends with, before the first text.
    async fn refused(&self, prompt: &str) -> ClientError {
        refused(&self.client, prompt).await
    }

    /// Waits until the TLS tickets are there, which come after the handshake, and drops the connection.
    async fn reconnect(&self) {
        sessions(&self.client).await;
        self.client.disconnect();
    }
}

/// A client with a certificate.
fn builder(coordinator: &TestCoordinator) -> Builder {
    TitanClient::builder(coordinator.url()).tls(certs::client()).quic_timeout(QUIC_TIMEOUT)
}

/// Waits for the TLS tickets.
async fn sessions(client: &TitanClient) {
    soon(async { while !client.sessions_arrive().await {} }).await;
}

async fn say(client: &TitanClient, prompt: &str) -> (String, Generation) {
    let mut generation = soon(client.generate(Prompt::new(MODEL, prompt))).await.unwrap();
    let mut text = String::new();
    while let Some(piece) = soon(generation.next()).await {
        text.push_str(&piece.unwrap());
    }
    (text, generation)
}

async fn refused(client: &TitanClient, prompt: &str) -> ClientError {
    soon(client.generate(Prompt::new(MODEL, prompt))).await.unwrap_err()
}

/// What must come.
async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("never came")
}

/// Waits until it is so.
async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never came: {what}"));
}
