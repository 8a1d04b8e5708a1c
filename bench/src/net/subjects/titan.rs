//! Titan itself: a coordinator and an agent as `titan up` has them, and the client library.
//!
//! The agent advertises a name, and each client is told the address of that name, as by a DNS of its own: so one agent serves every
//! address of its host.

use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use titan_agent::{
    Agent,
    engine::{Engine, synthetic::SYNTHETIC_MODEL},
};
use titan_certs::COORDINATOR_SERVER_NAME;
use titan_client::{Feature, Prompt, TitanClient, WirePreference};
use titan_coord::Coordinator;
use titan_transport::{QuicConnector, QuicOptions, tls::TlsMaterial};
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

use super::{EVERYWHERE, LOCALHOST, Serving, tokens::PROMPT, trust::server_name};
use crate::{
    lab::{self, AGENT_HOST, AGENT_ID, SPARE_AGENT_ID},
    net::subject::{Answer, Client, Held, Pending, Tokens},
};

/// The coordinator's REST is at the first port of the subject, its gRPC and the agents follow.
const COORDINATOR_GRPC: u16 = 1;
pub(super) const AGENT: u16 = 2;
const SPARE_AGENT: u16 = 3;
/// As many as a coordinator accepts: admission is not what is measured.
const MAX_JOBS: usize = 10_000;
/// Longest wait for the agent to register. It fetches keys and reports once.
pub(super) const READY_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks at whether it has.
pub(super) const READY_POLL: Duration = Duration::from_millis(20);

/// What plain QUIC does without: everything that sends more, or earlier, than QUIC by itself would.
const PLAIN_IS_WITHOUT: [Feature; 4] =
    [Feature::Redundancy, Feature::ThinStream, Feature::RepeatFirst, Feature::Migration];

/// What the client library is told of Titan's two wires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    Quic,
    /// Without [`PLAIN_IS_WITHOUT`].
    PlainQuic,
    Grpc,
    /// QUIC, and gRPC where UDP gets no answer: what it does by default.
    Auto,
}

impl Wire {
    /// The same for a connection by itself, and for the agent.
    fn options(self) -> QuicOptions {
        let on = self != Self::PlainQuic;
        QuicOptions { redundancy: on, thin_stream: on, migration: on, repeat_first: on, ..QuicOptions::default() }
    }
}

/// Starts a coordinator, and an agent that registers with it.
pub(super) async fn serve(port: u16, lab: &Path, wire: Wire, engine: Arc<dyn Engine>) -> anyhow::Result<Serving> {
    let coordinator = coordinator(port, lab).await?;
    let agent = agent(port, lab, Number::First, wire, engine).await?;

    let mut serving = Serving::new(format!(
        "titan {}: coordinator and agent in one process, defaults; REST over TLS 1.3, QUIC with mutual TLS, gRPC with TLS",
        env!("CARGO_PKG_VERSION")
    ));
    // Neither is told to stop: dropping the tasks is a kill, which clients and agents must bear anyway.
    serving.tasks.spawn(async move { Ok(coordinator.run(CancellationToken::new()).await?) });
    serving.tasks.spawn(async move { Ok(agent.run(CancellationToken::new()).await?) });
    tokio::select! {
        ready = registered(port, lab) => ready?,
        error = serving.failed() => return Err(error),
    }
    Ok(serving)
}

/// A coordinator on the ports of a subject.
pub(super) async fn coordinator(port: u16, lab: &Path) -> anyhow::Result<Coordinator> {
    Ok(Coordinator::bind(titan_coord::Config {
        http_addr: SocketAddr::new(EVERYWHERE, port),
        grpc_addr: coordinator_grpc(port),
        tls: Some(lab::coordinator_material(lab)?),
        key_dir: lab.join(format!("keys-{port}")),
        api_keys: false,
        ..titan_coord::Config::default()
    })
    .await?)
}

/// Where agents find it, on their own host only.
pub(super) fn coordinator_grpc(port: u16) -> SocketAddr {
    SocketAddr::new(LOCALHOST, port + COORDINATOR_GRPC)
}

/// Which of the agents behind one coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    First,
    /// For where the first one dies.
    Spare,
}

/// An agent of the coordinator on the ports of a subject.
pub(super) async fn agent(
    port: u16,
    lab: &Path,
    number: Number,
    wire: Wire,
    engine: Arc<dyn Engine>,
) -> anyhow::Result<Agent> {
    let (id, own_port, material) = match number {
        Number::First => (AGENT_ID, port + AGENT, lab::agent_material(lab)?),
        Number::Spare => (SPARE_AGENT_ID, port + SPARE_AGENT, lab::spare_agent_material(lab)?),
    };
    let mut config = titan_agent::Config::new(id);
    config.grpc_addr = SocketAddr::new(EVERYWHERE, own_port);
    config.public_host = Some(AGENT_HOST.to_owned());
    config.coordinator = Some(coordinator_grpc(port).to_string());
    config.tls = Some(material);
    config.max_jobs = MAX_JOBS;
    config.quic = wire.options();
    Ok(Agent::bind(config, engine).await?)
}

/// Waits until requests are routed to the agent.
async fn registered(port: u16, lab: &Path) -> anyhow::Result<()> {
    let client = Titan::new(SocketAddr::new(LOCALHOST, port), lab, Wire::Quic)?;
    let started = Instant::now();
    loop {
        match client.ask(1).await {
            Ok(_) => return Ok(()),
            Err(error) if started.elapsed() > READY_WITHIN => return Err(error.context("the agent did not register")),
            Err(_) => tokio::time::sleep(READY_POLL).await,
        }
    }
}

/// A program that uses the client library.
pub(super) struct Titan {
    client: TitanClient,
    tls: TlsMaterial,
    agent: SocketAddr,
    wire: Wire,
}

impl Titan {
    /// `server`: where the coordinator's REST is.
    pub(super) fn new(server: SocketAddr, lab: &Path, wire: Wire) -> anyhow::Result<Self> {
        let tls = lab::client_material(lab)?;
        let off: &[Feature] = if wire == Wire::PlainQuic { &PLAIN_IS_WITHOUT } else { &[] };
        let builder = TitanClient::builder(format!("https://{COORDINATOR_SERVER_NAME}:{}", server.port()))
            .tls(tls.clone())
            .wire(match wire {
                Wire::Quic | Wire::PlainQuic => WirePreference::Quic,
                Wire::Grpc => WirePreference::Grpc,
                Wire::Auto => WirePreference::Auto,
            })
            .resolve(COORDINATOR_SERVER_NAME, server.ip())
            .resolve(AGENT_HOST, server.ip());
        let client = off.iter().fold(builder, |builder, &feature| builder.without(feature)).build()?;
        Ok(Self { client, tls, agent: SocketAddr::new(server.ip(), server.port() + AGENT), wire })
    }

    /// The client library's client.
    pub(super) fn library(&self) -> &TitanClient {
        &self.client
    }

    async fn generate(&self, tokens: u32) -> anyhow::Result<Answer> {
        // Greedy: only such an answer can go on at another agent.
        let prompt = Prompt { max_tokens: tokens, temperature: 0.0, ..Prompt::new(SYNTHETIC_MODEL, PROMPT) };
        let generation = self.client.generate(prompt).await?;
        let (wire, wanted) = (generation.wire(), self.wire);
        let as_asked = wanted == Wire::Auto
            || (wire == titan_client::Wire::Quic) == matches!(wanted, Wire::Quic | Wire::PlainQuic);
        ensure!(as_asked, "the answer came over {wire:?}, not over {wanted:?}");
        let routing = generation.routing();
        let tokens: Tokens = Box::pin(generation.map(|text| Ok(text?)));
        Ok(Answer { tokens, routing })
    }

    /// Straight to the agent: the coordinator is no part of a connection.
    async fn connect_once(&self) -> anyhow::Result<Held> {
        match self.wire {
            Wire::Quic | Wire::PlainQuic | Wire::Auto => {
                let connector = QuicConnector::with_options(&self.tls, self.wire.options())?;
                let channel = connector.channel(self.agent.to_string(), server_name());
                channel.connect().await?;
                Ok(Box::new(channel))
            }
            Wire::Grpc => {
                let channel = Endpoint::from_shared(format!("https://{}", self.agent))?
                    .tls_config(self.tls.tonic_client_tls(&server_name()))?
                    .connect()
                    .await
                    .with_context(|| format!("connecting to {}", self.agent))?;
                Ok(Box::new(channel))
            }
        }
    }
}

impl Client for Titan {
    fn connect(&self) -> Pending<'_, Held> {
        Box::pin(self.connect_once())
    }

    fn ask(&self, tokens: u32) -> Pending<'_, Answer> {
        Box::pin(self.generate(tokens))
    }

    fn disconnect(&self) {
        self.client.disconnect();
    }
}
