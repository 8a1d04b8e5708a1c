//! The same model through an agent: a real one, with its handler, tokens and both wires, in this process.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context as _;
use titan_agent::{
    Agent,
    engine::{
        Engine as _,
        mistral::{MistralConfig, MistralEngine, ModelSource, ModelSpec},
    },
};
use titan_proto::v1::{Message, StreamRequest};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Stopwatch, Tokens};
use crate::{
    lab::{Lab, agent_config},
    wire::{Client, Ports, Wire},
};

/// An agent, and a client on each wire.
pub(super) struct ThroughAgent {
    lab: Lab,
    engine: Arc<MistralEngine>,
    grpc: Client,
    quic: Client,
    // The agent runs as long as this is there.
    _agent: JoinSet<std::io::Result<()>>,
}

const MODEL: &str = "model";

impl ThroughAgent {
    /// Loads a GGUF file into so many engines of an agent, each with one sequence, and connects.
    pub(super) async fn start(file: PathBuf, lab: Lab, plaintext: bool, engines: usize) -> anyhow::Result<Self> {
        let config = MistralConfig {
            models: vec![ModelSpec::new(MODEL, ModelSource::GgufFile(file))],
            max_jobs: engines,
            engines: Some(engines),
            context_tokens: None,
            force_cpu: true,
            isq: Default::default(),
            gpu: Default::default(),
        };
        let engine = Arc::new(MistralEngine::load(config, &|_| ()).await?);
        let agent = Agent::bind(agent_config(lab.path(), engines)?, engine.clone()).await?;
        let quic = agent.quic_addr().context("the agent serves no QUIC")?.port();
        let ports = Ports { grpc: agent.grpc_addr().port(), quic };
        let mut running = JoinSet::new();
        running.spawn(agent.run(CancellationToken::new()));
        let grpc = Client::connect(Wire::Grpc, ports, &lab, plaintext).await?;
        let quic = Client::connect(Wire::Quic, ports, &lab, plaintext).await?;
        Ok(Self { lab, engine, grpc, quic, _agent: running })
    }

    /// Sequences that its engines compute now.
    pub(super) fn computing(&self) -> usize {
        self.engine.computing()
    }

    /// Generates greedily.
    pub(super) async fn generate(
        &self,
        wire: Wire,
        messages: &[Message],
        tokens: u32,
        watch: &mut Stopwatch,
    ) -> anyhow::Result<Tokens> {
        let request = StreamRequest {
            session_token: self.lab.token(MODEL)?,
            messages: messages.to_vec(),
            max_tokens: i32::try_from(tokens)?,
            temperature: 0.0,
            ..Default::default()
        };
        let mut client = match wire {
            Wire::Grpc => self.grpc.clone(),
            Wire::Quic => self.quic.clone(),
        };
        let mut stream = client.stream(request).await?;
        while let Some(message) = stream.message().await? {
            watch.text(&message.content);
            if message.done {
                let count = |name| message.metadata.get(name).context("the agent counted no tokens");
                return Ok(Tokens {
                    prompt: count("prompt_tokens")?.parse()?,
                    cached: Some(count("cached_tokens")?.parse()?),
                    completion: count("completion_tokens")?.parse()?,
                });
            }
        }
        anyhow::bail!("the agent's stream ended without its last message")
    }
}
