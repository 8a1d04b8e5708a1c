//! The server and the client of every [`Subject`]: what is measured is made here, nothing is measured here.
//!
//! Servers take their tokens from one engine, and everyone takes key exchange, certificates and TLS version from `trust`. So what
//! differs between two subjects is the protocol and its implementation.
//!
//! - `titan`: a coordinator and an agent, and the client library; `apart`: the same with agents in processes that can be killed. `grpc`: a service written with tonic, over HTTP/2 and (`h3`) HTTP/3.
//! - `origin`: server-sent events as OpenAI's API has them; `http` reads them. `websocket`: the same over WebSocket.
//! - `openai`: applications that speak the OpenAI API, at Titan's two doors for them.
//! - `relay`: what nginx and smg, which stand before an origin, have in common; `nginx` and `smg`: their settings.
//! - `tokens`: from the engine to a stream.

mod apart;
mod grpc;
mod h3;
mod http;
mod nginx;
mod openai;
mod origin;
mod relay;
mod smg;
#[cfg(test)]
mod tests;
mod titan;
mod tokens;
mod trust;
mod websocket;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
};

use anyhow::anyhow;
use titan_agent::engine::{Engine, synthetic::SyntheticEngine};
use tokio::task::JoinSet;

pub(crate) use self::apart::Agents;
use self::{http::Version, relay::Relay, titan::Wire, trust::Trust};
use super::subject::{Client, Subject};

/// The first port of the first subject: low enough to be no port that the system gives to clients.
const FIRST_PORT: u16 = 7000;
/// Titan listens on four ports, with both its agents; nobody on more.
const PORTS_PER_SUBJECT: u16 = 4;
/// Every address of the host: each is the end of a path of its own.
const EVERYWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A server that runs. Dropping it ends it, and the processes that it started.
pub(crate) struct Serving {
    /// Processes beside this one, whose processor time is the subject's too.
    pub(crate) processes: Vec<u32>,
    /// What it is and how it is set, for the report.
    pub(crate) note: String,
    tasks: JoinSet<anyhow::Result<()>>,
    relay: Option<Relay>,
}

impl Serving {
    /// Waits for the first part that ends, which none should, and says why it did.
    pub(crate) async fn failed(&mut self) -> anyhow::Error {
        let relay = async {
            match &mut self.relay {
                Some(relay) => relay.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            error = relay => error,
            Some(ended) = self.tasks.join_next() => match ended {
                Ok(Ok(())) => anyhow!("a server ended by itself"),
                Ok(Err(error)) => error,
                Err(panic) => anyhow!("a server broke down: {panic}"),
            },
        }
    }

    fn new(note: impl Into<String>) -> Self {
        Self { processes: Vec::new(), note: note.into(), tasks: JoinSet::new(), relay: None }
    }
}

/// Starts the server of `subject` on its ports of every address, with a token rate per stream, and returns when it takes requests.
/// `lab`: the directory of a [`Lab`](crate::lab::Lab). Needs a loopback interface that is up.
pub(crate) async fn serve(subject: Subject, lab: &Path, token_rate: f64) -> anyhow::Result<Serving> {
    let engine = Arc::new(SyntheticEngine::new(token_rate).timestamps(true));
    serve_at(subject, first_port(subject), lab, engine).await
}

/// The same for Titan, whose coordinator alone runs here; the agents are processes of their own, and one of them is started.
pub(crate) async fn serve_apart(subject: Subject, lab: &Path, token_rate: f64) -> anyhow::Result<(Serving, Agents)> {
    anyhow::ensure!(subject.is_titan(), "{} has no agents", subject.label());
    apart::serve(subject, first_port(subject), lab, token_rate).await
}

/// What such a process does: the first agent, or the second.
pub(crate) async fn serve_agent(subject: Subject, number: u8, lab: &Path, token_rate: f64) -> anyhow::Result<Serving> {
    let wire = match subject {
        Subject::TitanQuicPlain => Wire::PlainQuic,
        _ if subject.is_titan() => Wire::Quic,
        _ => anyhow::bail!("{} has no agents", subject.label()),
    };
    apart::serve_agent(first_port(subject), number, lab, wire, token_rate).await
}

/// A new client of the `subject` that is served at the address `server`. Must run inside a Tokio runtime.
pub(crate) fn client(subject: Subject, server: IpAddr, lab: &Path) -> anyhow::Result<Box<dyn Client>> {
    client_at(subject, SocketAddr::new(server, first_port(subject)), lab)
}

/// Whether `subject` can be measured on this machine. `Err` says what to install.
pub(crate) fn available(subject: Subject) -> Result<(), String> {
    match subject {
        Subject::Nginx => nginx::program().map(drop),
        Subject::Smg => smg::program().map(drop),
        _ => Ok(()),
    }
}

async fn serve_at(subject: Subject, port: u16, lab: &Path, engine: Arc<dyn Engine>) -> anyhow::Result<Serving> {
    let trust = Trust::load(lab)?;
    match subject {
        Subject::TitanQuic | Subject::TitanQuicAgain | Subject::OpenaiProxy => {
            titan::serve(port, lab, Wire::Quic, engine).await
        }
        Subject::TitanQuicPlain => titan::serve(port, lab, Wire::PlainQuic, engine).await,
        Subject::TitanAuto => titan::serve(port, lab, Wire::Auto, engine).await,
        Subject::TitanGrpc | Subject::OpenaiRedirected => titan::serve(port, lab, Wire::Grpc, engine).await,
        Subject::Tonic => grpc::serve(port, &trust, engine).await,
        Subject::TonicH3 => h3::serve(port, &trust, engine),
        Subject::SseHttp1 => origin::serve_tls(port, &trust, Version::Http1, engine).await,
        Subject::SseHttp2 => origin::serve_tls(port, &trust, Version::Http2, engine).await,
        Subject::WebSocket => websocket::serve(port, &trust, engine).await,
        Subject::Nginx => nginx::serve(port, lab, engine).await,
        Subject::Smg => smg::serve(port, lab, engine).await,
    }
}

fn client_at(subject: Subject, server: SocketAddr, lab: &Path) -> anyhow::Result<Box<dyn Client>> {
    Ok(match subject {
        Subject::TitanQuic | Subject::TitanQuicAgain => Box::new(titan::Titan::new(server, lab, Wire::Quic)?),
        Subject::TitanQuicPlain => Box::new(titan::Titan::new(server, lab, Wire::PlainQuic)?),
        Subject::TitanAuto => Box::new(titan::Titan::new(server, lab, Wire::Auto)?),
        Subject::TitanGrpc => Box::new(titan::Titan::new(server, lab, Wire::Grpc)?),
        Subject::OpenaiProxy => Box::new(openai::ByProxy::new(server, lab)?),
        Subject::OpenaiRedirected => Box::new(openai::Redirected::new(server, lab)?),
        Subject::Tonic => Box::new(grpc::Tonic::new(server, &Trust::load(lab)?)?),
        Subject::TonicH3 => Box::new(h3::TonicH3::new(server, &Trust::load(lab)?)?),
        Subject::SseHttp1 => Box::new(http::Sse::new(server, &Trust::load(lab)?, Version::Http1)?),
        Subject::SseHttp2 | Subject::Nginx | Subject::Smg => {
            Box::new(http::Sse::new(server, &Trust::load(lab)?, Version::Http2)?)
        }
        Subject::WebSocket => Box::new(websocket::WebSocket::new(server, &Trust::load(lab)?)?),
    })
}

fn first_port(subject: Subject) -> u16 {
    FIRST_PORT + PORTS_PER_SUBJECT * subject as u16
}
