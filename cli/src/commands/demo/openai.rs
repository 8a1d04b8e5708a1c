//! Two applications that speak the OpenAI API: one streams from an agent, one from a proxy beside it.

use std::{net::Ipv4Addr, process::Stdio};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use titan_agent::engine::synthetic::SYNTHETIC_MODEL;
use titan_client::TitanClient;
use titan_openai::SseParser;
use titan_proxy::Clients;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    net::TcpListener,
    process::Command,
};
use tokio_util::sync::CancellationToken;

use super::{
    player::{Player, QUESTION, What},
    stage::REST_PORT,
};
use crate::rest;

/// Asks the coordinator, which redirects to an agent.
pub(super) async fn from_agent(player: &Player, say: &impl Fn(What)) -> anyhow::Result<()> {
    ask(player, &format!("https://{}:{REST_PORT}", player.server), "the agent", say).await
}

/// Asks a proxy on this host, which is what `titan proxy` serves.
pub(super) async fn by_proxy(player: &Player, client: TitanClient, say: &impl Fn(What)) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("a port for the proxy")?;
    let base = format!("http://{}", listener.local_addr()?);
    let router = titan_proxy::router(&Clients::new(client), None);
    tokio::select! {
        ended = titan_proxy::serve(listener, router, CancellationToken::new()) => bail!("the proxy ended: {ended:?}"),
        asked = ask(player, &base, "titan proxy", say) => asked,
    }
}

async fn ask(player: &Player, base: &str, from: &str, say: &impl Fn(What)) -> anyhow::Result<()> {
    match &player.program {
        Some(program) => run(player, program, base, from, say).await,
        None => play(player, base, from, say).await,
    }
}

/// Streams one answer, as an application does: what it gets is all it knows.
async fn play(player: &Player, base: &str, from: &str, say: &impl Fn(What)) -> anyhow::Result<()> {
    let http = rest::http(Some(&player.tls))?.build()?;
    let asked = json!({
        "model": SYNTHETIC_MODEL,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_completion_tokens": player.tokens,
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
        while let Some(event) = events.event() {
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

/// Has a program stream it, on this host: a child is where the thread is that starts it.
async fn run(player: &Player, program: &str, base: &str, from: &str, say: &impl Fn(What)) -> anyhow::Result<()> {
    let mut words = program.split_whitespace();
    let mut child = Command::new(words.next().context("--client is empty")?)
        .args(words)
        .env("OPENAI_BASE_URL", format!("{base}/v1"))
        .env("OPENAI_API_KEY", "any")
        .env("SSL_CERT_FILE", &player.ca)
        .env("TITAN_MODEL", SYNTHETIC_MODEL)
        .env("TITAN_TOKENS", player.tokens.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start --client {program}"))?;
    let (stdout, stderr) = (child.stdout.take().context("no stdout")?, child.stderr.take().context("no stderr")?);
    let pieces = async {
        let (mut lines, mut begun) = (BufReader::new(stdout).lines(), false);
        while let Some(line) = lines.next_line().await? {
            let text: String =
                serde_json::from_str(&line).with_context(|| format!("{program} printed {line:?}, no JSON string"))?;
            if !std::mem::replace(&mut begun, true) {
                say(What::Begins { agent: from.to_owned() });
            }
            if !text.is_empty() {
                say(What::Text(text));
            }
        }
        anyhow::Ok(())
    };
    let (mut complaint, mut stderr) = (String::new(), stderr);
    let (read, complained) = tokio::join!(pieces, stderr.read_to_string(&mut complaint));
    read?;
    complained?;
    let status = child.wait().await?;
    if !status.success() {
        bail!("{}", complaint.lines().last().unwrap_or("it said nothing"));
    }
    Ok(())
}
