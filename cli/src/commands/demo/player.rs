//! A client on the clients' host: asks for an answer and tells what it hears.

use std::{net::Ipv4Addr, thread::JoinHandle, time::Instant};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use titan_agent::engine::synthetic::SYNTHETIC_MODEL;
use titan_certs::COORDINATOR_SERVER_NAME;
use titan_client::{Feature, Prompt, TitanClient, TlsMaterial, WirePreference};
use titan_emulator::Host;
use tokio::{runtime, sync::mpsc::UnboundedSender};
use tokio_util::sync::CancellationToken;

use super::stage::{AGENT_HOST, REST_PORT};
use crate::commands::explain;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Standard gRPC: HTTP/2 over TLS, and nothing of Titan's that would carry an answer on.
    Grpc,
    /// All that Titan has.
    Quic,
}

impl Side {
    /// As they stand on the screen, from left to right.
    pub(super) const BOTH: [Self; 2] = [Self::Grpc, Self::Quic];

    /// For people.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Grpc => "gRPC",
            Self::Quic => "QUIC",
        }
    }

    /// For programs.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Quic => "quic",
        }
    }
}

/// Something that a client heard.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) side: Side,
    pub(super) at: Instant,
    pub(super) what: What,
}

/// What it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// This agent has accepted the request.
    Begins { agent: String },
    /// The answer goes on at this agent.
    GoesOn { agent: String },
    /// Text to append.
    Text(String),
    /// The end, or why there is no more.
    Ends(Result<(), String>),
}

/// A client.
#[derive(Clone, Debug)]
pub(super) struct Player {
    pub(super) side: Side,
    /// Where the servers are, over a path of its own.
    pub(super) server: Ipv4Addr,
    pub(super) tls: TlsMaterial,
    pub(super) tokens: u32,
}

impl Player {
    /// Starts it in a thread on `host`. It ends with its answer, or when it is told to `stop`.
    pub(super) fn start(
        self,
        host: &Host,
        tell: UnboundedSender<Said>,
        stop: CancellationToken,
    ) -> anyhow::Result<JoinHandle<anyhow::Result<()>>> {
        // Where it cannot even begin, that is the end of the answer, too.
        let run = move || {
            let say = |what| {
                // Whoever listened has gone: then nobody wants to know.
                let _ = tell.send(Said { side: self.side, at: Instant::now(), what });
            };
            let ended = match runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime.block_on(async {
                    tokio::select! {
                        () = stop.cancelled() => Ok(()),
                        ended = self.play(&say) => ended,
                    }
                }),
                Err(error) => Err(error).context("cannot start a runtime"),
            };
            say(What::Ends(ended.map_err(|error| explain(&error))));
        };
        host.spawn(run)
    }

    async fn play(&self, say: &impl Fn(What)) -> anyhow::Result<()> {
        let mut prompt = Prompt::new(SYNTHETIC_MODEL, "Tell me a story.");
        prompt.max_tokens = self.tokens;
        // What another agent goes on with is then the same.
        prompt.temperature = 0.0;
        let client = self.client()?;
        let mut generation = client.generate(prompt).await?;
        let mut agent = generation.agent_id().to_owned();
        say(What::Begins { agent: agent.clone() });
        while let Some(text) = generation.next().await {
            let text = text?;
            if generation.agent_id() != agent {
                generation.agent_id().clone_into(&mut agent);
                say(What::GoesOn { agent: agent.clone() });
            }
            say(What::Text(text));
        }
        Ok(())
    }

    fn client(&self) -> anyhow::Result<TitanClient> {
        let server = self.server.into();
        let builder = TitanClient::builder(format!("https://{COORDINATOR_SERVER_NAME}:{REST_PORT}"))
            .tls(self.tls.clone())
            .resolve(COORDINATOR_SERVER_NAME, server)
            .resolve(AGENT_HOST, server);
        let builder = match self.side {
            Side::Grpc => builder.wire(WirePreference::Grpc).without(Feature::Resume).without(Feature::Move),
            Side::Quic => builder.wire(WirePreference::Quic),
        };
        Ok(builder.build()?)
    }
}
