//! The same model through an agent: a real one, with its handler, tokens and both wires, in this process.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context as _;
use titan_agent::{
    Agent,
    engine::mistral::{MistralConfig, MistralEngine, ModelSource, ModelSpec},
};
use titan_proto::v1::StreamRequest;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Stopwatch;
use crate::{
    lab::{Lab, agent_config},
    wire::{Client, Ports, Wire},
};

/// An agent with one engine, and a client on each wire.
pub(super) struct ThroughAgent {
    lab: Lab,
    grpc: Client,
    quic: Client,
    // The agent runs as long as this is there.
    _agent: JoinSet<std::io::Result<()>>,
}

const MODEL: &str = "model";

impl ThroughAgent {
    /// Loads a GGUF file into an agent's engine and connects.
    pub(super) async fn start(file: PathBuf, lab: Lab, plaintext: bool) -> anyhow::Result<Self> {
        let config = MistralConfig {
            models: vec![ModelSpec::new(MODEL, ModelSource::GgufFile(file))],
            max_jobs: 1,
            engines: Some(1),
            context_tokens: None,
            force_cpu: true,
            gpu: Default::default(),
        };
        let engine = MistralEngine::load(config, &|_| ()).await?;
        let agent = Agent::bind(agent_config(lab.path(), 1)?, Arc::new(engine)).await?;
        let quic = agent.quic_addr().context("the agent serves no QUIC")?.port();
        let ports = Ports { grpc: agent.grpc_addr().port(), quic };
        let mut running = JoinSet::new();
        running.spawn(agent.run(CancellationToken::new()));
        let grpc = Client::connect(Wire::Grpc, ports, &lab, plaintext).await?;
        let quic = Client::connect(Wire::Quic, ports, &lab, plaintext).await?;
        Ok(Self { lab, grpc, quic, _agent: running })
    }

    /// Generates greedily and returns the number of tokens.
    pub(super) async fn generate(
        &mut self,
        wire: Wire,
        prompt: &str,
        tokens: u32,
        watch: &mut Stopwatch,
    ) -> anyhow::Result<u32> {
        let request = StreamRequest {
            session_token: self.lab.token(MODEL)?,
            prompt: prompt.to_owned(),
            max_tokens: i32::try_from(tokens)?,
            temperature: 0.0,
            ..Default::default()
        };
        let client = match wire {
            Wire::Grpc => &mut self.grpc,
            Wire::Quic => &mut self.quic,
        };
        let mut stream = client.stream(request).await?;
        while let Some(message) = stream.message().await? {
            watch.text(&message.content);
            if message.done {
                let tokens = message.metadata.get("completion_tokens").context("the agent counted no tokens")?;
                return Ok(tokens.parse()?);
            }
        }
        anyhow::bail!("the agent's stream ended without its last message")
    }
}
