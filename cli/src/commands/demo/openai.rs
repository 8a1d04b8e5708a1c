//! Two applications that speak the OpenAI API: one streams from an agent, one from a proxy beside it.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use titan_agent::engine::synthetic::SYNTHETIC_MODEL;
use titan_certs::COORDINATOR_SERVER_NAME;
use titan_client::{TitanClient, TlsMaterial};
use titan_openai::SseParser;
use titan_proxy::Clients;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    player::{QUESTION, What},
    stage::{AGENT_HOST, REST_PORT},
};
use crate::rest;

/// Asks the coordinator, which redirects to an agent.
pub(super) async fn from_agent(
    server: Ipv4Addr,
    tls: &TlsMaterial,
    tokens: u32,
    say: &impl Fn(What),
) -> anyhow::Result<()> {
    // Port 0 stands for that of the address.
    let server = SocketAddr::from((server, 0));
    let http = rest::http(Some(tls))?.resolve(COORDINATOR_SERVER_NAME, server).resolve(AGENT_HOST, server).build()?;
    play(&http, &format!("https://{COORDINATOR_SERVER_NAME}:{REST_PORT}"), tokens, "the agent", say).await
}

/// Asks a proxy on this host, which is what `titan proxy` serves.
pub(super) async fn by_proxy(client: TitanClient, tokens: u32, say: &impl Fn(What)) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("a port for the proxy")?;
    let base = format!("http://{}", listener.local_addr()?);
    let router = titan_proxy::router(&Clients::new(client), None);
    let http = rest::http(None)?.build()?;
    tokio::select! {
        ended = titan_proxy::serve(listener, router, CancellationToken::new()) => bail!("the proxy ended: {ended:?}"),
        played = play(&http, &base, tokens, "titan proxy", say) => played,
    }
}

/// Streams one answer, as an application does: what it gets is all it knows.
async fn play(http: &reqwest::Client, base: &str, tokens: u32, from: &str, say: &impl Fn(What)) -> anyhow::Result<()> {
    let asked = json!({
        "model": SYNTHETIC_MODEL,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_completion_tokens": tokens,
        // What another agent goes on with is then the same.
        "temperature": 0,
        "stream": true,
    });
    let mut answer = http.post(format!("{base}/v1/chat/completions")).json(&asked).send().await?;
    if !answer.status().is_success() {
        bail!("{}: {}", answer.status(), answer.text().await?);
    }
    say(What::Begins { agent: from.to_owned() });
    let mut events = SseParser::default();
    while let Some(bytes) = answer.chunk().await? {
        events.push(&bytes)?;
        while let Some(event) = events.next() {
            if event.data == "[DONE]" {
                return Ok(());
            }
            let chunk: Value = serde_json::from_str(&event.data)?;
            if let Some(message) = chunk["error"]["message"].as_str() {
                bail!("{message}");
            }
            if let Some(text) = chunk["choices"][0]["delta"]["content"].as_str().filter(|text| !text.is_empty()) {
                say(What::Text(text.to_owned()));
            }
        }
    }
    bail!("the connection ended before the answer did")
}
