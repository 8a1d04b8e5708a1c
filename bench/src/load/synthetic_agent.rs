//! The agent that `load` starts: a real agent with a synthetic engine, in a process of its own.

use std::sync::Arc;

use titan_agent::{Agent, engine::synthetic::SyntheticEngine};
use tokio_util::sync::CancellationToken;

use crate::{args::SyntheticAgentArgs, lab::agent_config, process::report_to_parent, wire::Ports};

/// Serves until standard input ends.
pub(crate) async fn serve(args: SyntheticAgentArgs) -> anyhow::Result<()> {
    let config = agent_config(&args.lab, usize::try_from(args.streams)?)?;
    let engine = SyntheticEngine::new(args.rate).timestamps(true);
    let agent = Agent::bind(config, Arc::new(engine)).await?;
    let quic = agent.quic_addr().ok_or_else(|| anyhow::anyhow!("the agent serves no QUIC"))?.port();
    report_to_parent(&Ports { grpc: agent.grpc_addr().port(), quic })?;
    agent.run(CancellationToken::new()).await?;
    Ok(())
}
