//! `titan-bench chaos`: nothing of an answer is lost or repeated, whatever the network and the agents do.
//!
//! The [`plan`] combines what a path does to packets with what happens to clients and agents. Each combination gets two emulated hosts
//! of its own: on one a coordinator and agents, each a process ([`cluster`]); on the other [`clients`] with many streams at once. Every
//! stream is compared with what the engine made ([`verdict`]): it must end with exactly that, or with an error of the client library
//! after an exact beginning. Anything else fails the whole. The table is made in [`results`].

mod args;
mod clients;
mod cluster;
mod plan;
mod results;
mod verdict;

use std::time::Duration;

use anyhow::Context as _;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

pub(crate) use self::{
    args::{ChaosArgs, ChaosServerArgs},
    cluster::serve,
};
use self::{
    clients::Clients,
    cluster::Cluster,
    plan::{Happening, LANES, Trial, trials},
    results::{TrialResult, table},
};
use crate::{environment::Environment, progress::Progress, report::Report};

/// For a trial's streams to end, beyond the time that they take undisturbed: a dead connection is noticed after 30 s at the latest, on
/// either wire, and what follows takes seconds. A stream that has not ended then has hung.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs every trial, prints the table, and fails if one stream is wrong.
pub(crate) async fn run(args: ChaosArgs, interrupt: CancellationToken) -> anyhow::Result<()> {
    let environment = Environment::read();
    let trials = trials(&args);
    let progress = Progress::new(trials.len() as u64);
    let mut results = Vec::new();
    for trial in &trials {
        progress.stage(trial.to_string());
        tokio::select! {
            result = try_out(trial, &args) => results.push(result.with_context(|| trial.to_string())?),
            () = interrupt.cancelled() => break,
        }
        progress.step();
    }
    drop(progress);
    println!("{}", table(&results).markdown());
    if let Some(out) = &args.out {
        Report::new("chaos", &environment, &args, interrupt.is_cancelled(), &results).write(out)?;
    }
    let wrong: Vec<&str> = results.iter().flat_map(TrialResult::wrong).collect();
    match wrong.as_slice() {
        [] => Ok(()),
        [first, ..] => anyhow::bail!("{} streams are wrong; the first: {first}", wrong.len()),
    }
}

async fn try_out(trial: &Trial, args: &ChaosArgs) -> anyhow::Result<TrialResult> {
    let mut cluster = Cluster::start(args.rate).await?;
    for lane in 0..LANES {
        cluster.network.set(lane, &trial.path(), trial.seed.wrapping_add(u64::from(lane)));
    }
    let length = Duration::from_secs_f64(f64::from(args.tokens) / args.rate);
    let mut clients = Clients::start(&cluster, trial, args.tokens, length + PATIENCE)?;
    let begun = clients.half_have_begun().await;
    // Only now: what has begun comes from the first agent, so that its death hits all of it.
    cluster.add_agent().await?;
    for (share, happening) in trial.script() {
        sleep_until(begun + length.mul_f64(share)).await;
        match happening {
            Happening::AddressChange => cluster.network.move_client()?,
            Happening::AgentDeath => cluster.kill_agent(),
        }
    }
    let heard = clients.all_have_ended().await?;
    Ok(TrialResult::new(trial, args.tokens, begun.elapsed(), &heard))
}
