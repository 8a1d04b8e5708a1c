//! `titan-bench load`: paced token streams from one agent on loopback, over each wire.
//!
//! The agent is a process of its own ([`synthetic_agent`]), so that each side's CPU time is its own. Every token
//! carries its number and the moment it was sent, so that none is lost or doubled unseen ([`sequence`]).
//! The streams start one after another; once all run, a window of time is measured; then they run to their end.

mod clients;
mod plan;
mod results;
mod sequence;
mod synthetic_agent;
mod tally;

use anyhow::Context as _;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

pub(crate) use self::synthetic_agent::serve;
use self::{
    clients::Clients,
    plan::Plan,
    results::{Window, WireResult, table},
};
use crate::{
    args::LoadArgs,
    environment::Environment,
    lab::Lab,
    open_files,
    process::Process,
    progress::Progress,
    report::Report,
    usage::{Loopback, Usage},
    wire::{Ports, Wire},
};

/// Measures each wire that `args` names, prints the table and writes the file.
pub(crate) async fn run(args: LoadArgs, interrupt: CancellationToken) -> anyhow::Result<()> {
    args.validate()?;
    // The agent has one for each connection too, and inherits the limit.
    open_files::allow(u64::from(args.connections.min(args.streams)) * SOCKETS_PER_CONNECTION)?;
    let environment = Environment::read();
    let results = measure(&args, &interrupt).await?;
    if results.is_empty() {
        eprintln!("interrupted before anything was measured");
        return Ok(());
    }
    let plan = Plan::new(&args);
    println!(
        "{} streams of {} tokens/s over {} connections to one agent on loopback, {} s measured\n",
        args.streams, args.rate, args.connections, args.seconds
    );
    println!("{}\n", table(&results, &plan, args.plaintext).markdown());
    results.iter().filter_map(|result| result.remarks(&plan)).for_each(|remark| println!("{remark}"));
    println!("{}", environment.summary());
    if let Some(out) = &args.out {
        Report::new("load", &environment, &args, interrupt.is_cancelled(), &results).write(out)?;
    }
    Ok(())
}

/// A QUIC client has its socket and another handle to it, for ICMP errors; those of the wire before may still be closing.
const SOCKETS_PER_CONNECTION: u64 = 3;

/// One result for each wire, as far as `interrupt` lets it come.
async fn measure(args: &LoadArgs, interrupt: &CancellationToken) -> anyhow::Result<Vec<WireResult>> {
    let plan = Plan::new(args);
    let wires = args.wire.list();
    let lab = Lab::new()?;
    let progress = Progress::new(u64::try_from(plan.total().as_millis()).unwrap_or(u64::MAX) * wires.len() as u64);
    let mut results = Vec::new();
    for &wire in wires {
        tokio::select! {
            result = measure_wire(wire, args, &plan, &lab, &progress) => {
                results.push(result.with_context(|| format!("{wire}"))?);
            }
            // The agent's process and every stream end with the dropped future.
            () = interrupt.cancelled() => break,
        }
    }
    Ok(results)
}

async fn measure_wire(
    wire: Wire,
    args: &LoadArgs,
    plan: &Plan,
    lab: &Lab,
    progress: &Progress,
) -> anyhow::Result<WireResult> {
    progress.stage(format!("{wire}: connecting"));
    let (mut agent, ports) = start_agent(lab, args).await?;
    let mut clients = Clients::connect(wire, ports, lab, args).await?;

    progress.stage(format!("{wire}: starting {} streams", args.streams));
    let start = Instant::now();
    clients.start(lab, plan, start)?;
    progress.sleep_until(start + plan.window_start()).await;

    progress.stage(format!("{wire}: measuring"));
    let before = moment(&mut agent, &clients).await?;
    clients.measure(true);
    progress.sleep_until(start + plan.window_end()).await;
    clients.measure(false);
    let after = moment(&mut agent, &clients).await?;

    progress.stage(format!("{wire}: waiting for the streams to end"));
    progress.sleep_until(start + plan.total()).await;
    let ends = clients.ends(sleep_until(start + plan.deadline())).await;
    agent.stop().await;
    Ok(WireResult::new(wire, window(&before, &after), clients.lags(), ends))
}

async fn start_agent(lab: &Lab, args: &LoadArgs) -> anyhow::Result<(Process, Ports)> {
    let (rate, streams) = (args.rate.to_string(), args.streams.to_string());
    let settings = ["--rate", &rate, "--streams", &streams].map(AsRef::as_ref);
    let lab = ["synthetic-agent".as_ref(), "--lab".as_ref(), lab.path().as_os_str()];
    Process::start("the agent", lab.into_iter().chain(settings)).await
}

/// Everything that is counted, at one moment.
struct Moment {
    at: Instant,
    tokens: u64,
    client: Usage,
    agent: Usage,
    loopback: Option<Loopback>,
}

async fn moment(agent: &mut Process, clients: &Clients) -> anyhow::Result<Moment> {
    // The agent's answer takes a moment under load: first, so that the rest belongs together.
    let agent = agent.usage().await?;
    Ok(Moment { at: Instant::now(), tokens: clients.tokens(), client: Usage::now()?, agent, loopback: Loopback::now() })
}

fn window(before: &Moment, after: &Moment) -> Window {
    Window {
        seconds: (after.at - before.at).as_secs_f64(),
        tokens: after.tokens - before.tokens,
        client: after.client.since(&before.client),
        agent: after.agent.since(&before.agent),
        loopback: before.loopback.zip(after.loopback).map(|(before, after)| after.since(before)),
    }
}
