//! A client on the clients' host: asks for an answer and tells what it hears.

use std::{net::Ipv4Addr, path::PathBuf, thread::JoinHandle, time::Instant};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use titan_agent::engine::synthetic::SYNTHETIC_MODEL;
use titan_certs::COORDINATOR_SERVER_NAME;
use titan_client::{Feature, Prompt, TitanClient, TlsMaterial, WirePreference};
use titan_emulator::Host;
use tokio::{runtime, sync::mpsc::UnboundedSender};
use tokio_util::sync::CancellationToken;

use super::{
    openai,
    stage::{AGENT_HOST, REST_PORT},
};
use crate::commands::explain;

/// The synthetic engine says the same whatever it is asked.
pub(super) const QUESTION: &str = "Tell me a story.";

/// Which client of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Standard gRPC: HTTP/2 over TLS, and nothing of Titan's that would carry an answer on.
    Grpc,
    /// All that Titan has.
    Quic,
    /// The OpenAI API over HTTPS, at the agent to which the coordinator redirects.
    Https,
    /// The OpenAI API at `titan proxy` on the client's host, which has all that Titan has.
    Proxy,
}

impl Side {
    /// As they stand on the screen, from left to right: what everybody has, and Titan.
    pub(super) fn pair(openai: bool) -> [Self; 2] {
        if openai { [Self::Https, Self::Proxy] } else { [Self::Grpc, Self::Quic] }
    }

    /// Its place in a [`pair`](Self::pair).
    pub(super) fn place(self) -> usize {
        match self {
            Self::Grpc | Self::Https => 0,
            Self::Quic | Self::Proxy => 1,
        }
    }

    /// For people.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Grpc => "gRPC",
            Self::Quic => "QUIC",
            Self::Https => "HTTPS",
            Self::Proxy => "proxy",
        }
    }

    /// For people, in a sentence: the answer came so.
    pub(super) fn way(self) -> &'static str {
        match self {
            Self::Grpc => "over gRPC",
            Self::Quic => "over QUIC",
            Self::Https => "over HTTPS from the agent",
            Self::Proxy => "by titan proxy",
        }
    }

    /// For programs.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Quic => "quic",
            Self::Https => "https",
            Self::Proxy => "proxy",
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
    /// The file of the CA.
    pub(super) ca: PathBuf,
    pub(super) tokens: u32,
    /// In place of the OpenAI client that is built in.
    pub(super) program: Option<String>,
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
        match self.side {
            Side::Grpc | Side::Quic => self.by_library(say).await,
            Side::Https => openai::from_agent(self, say).await,
            Side::Proxy => openai::by_proxy(self, self.client()?, say).await,
        }
    }

    async fn by_library(&self, say: &impl Fn(What)) -> anyhow::Result<()> {
        let mut prompt = Prompt::new(SYNTHETIC_MODEL, QUESTION);
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
        let coordinator = match self.side {
            Side::Grpc | Side::Quic => COORDINATOR_SERVER_NAME.to_owned(),
            Side::Https | Side::Proxy => self.server.to_string(),
        };
        let builder = TitanClient::builder(format!("https://{coordinator}:{REST_PORT}"))
            .tls(self.tls.clone())
            .resolve(COORDINATOR_SERVER_NAME, server)
            .resolve(AGENT_HOST, server);
        let builder = match self.side {
            Side::Grpc | Side::Https => {
                builder.wire(WirePreference::Grpc).without(Feature::Resume).without(Feature::Move)
            }
            Side::Quic | Side::Proxy => builder.wire(WirePreference::Quic),
        };
        Ok(builder.build()?)
    }
}
