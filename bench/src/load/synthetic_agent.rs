//! The agent that [`super::process`] starts: a real agent with a synthetic engine, in a process of its own.
//!
//! It says where it listens in one line of JSON, answers each line on standard input with one line of what it has used, and ends
//! when standard input does. That end comes also when the parent is killed, so nothing is left behind.

use std::{io::BufRead as _, sync::Arc};

use titan_agent::{Agent, engine::synthetic::SyntheticEngine};
use tokio_util::sync::CancellationToken;

use crate::{args::SyntheticAgentArgs, lab::agent_config, usage::Usage, wire::Ports};

/// Serves until standard input ends.
pub(crate) async fn serve(args: SyntheticAgentArgs) -> anyhow::Result<()> {
    let config = agent_config(&args.lab, usize::try_from(args.streams)?)?;
    let engine = SyntheticEngine::new(args.rate).timestamps(true);
    let agent = Agent::bind(config, Arc::new(engine)).await?;
    let quic = agent.quic_addr().ok_or_else(|| anyhow::anyhow!("the agent serves no QUIC"))?.port();
    say(&Ports { grpc: agent.grpc_addr().port(), quic })?;
    // A thread: it must not wait for a busy runtime. It is never joined: it ends the process.
    std::thread::spawn(|| {
        let ended = answer();
        std::process::exit(i32::from(ended.is_err()));
    });
    agent.run(CancellationToken::new()).await?;
    Ok(())
}

fn answer() -> anyhow::Result<()> {
    for line in std::io::stdin().lock().lines() {
        line?;
        say(&Usage::now()?)?;
    }
    Ok(())
}

fn say(what: &impl serde::Serialize) -> anyhow::Result<()> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, what)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}
