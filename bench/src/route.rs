//! `titan-bench route`: the coordinator's one REST call, by number of registered agents and signing algorithm.
//!
//! Each case has a coordinator of its own, in a process of its own ([`coordinator`]), with agents that registered over gRPC ([`fleet`]).
//! All are up at once and measured in turn, in an order that changes, so that a machine that is busy for a minute slows them alike.
//! A turn is two loads ([`drive`]): as fast as it goes, for the throughput; and at half of that rate, for the latency.

mod args;
mod connection;
mod coordinator;
mod drive;
mod fleet;
mod results;

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use titan_transport::token::Algorithm;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(crate) use self::{
    args::{BenchCoordinatorArgs, RouteArgs},
    coordinator::serve,
};
use self::{
    connection::Connection,
    coordinator::Ports,
    drive::{Due, Load, arrivals, closed, connect, open},
    fleet::{Authority, Claims},
    results::{CaseResult, Sample, summarize, table},
};
use crate::{
    environment::Environment,
    open_files,
    process::Process,
    progress::Progress,
    report::{Report, publish_into},
    usage::Usage,
};

/// Of the throughput: far enough below it that requests seldom wait for each other, near enough to be a busy coordinator.
const OPEN_SHARE: f64 = 0.5;
/// Before the first turn, and not kept: memory is touched and caches are filled.
const WARM_UP: Duration = Duration::from_millis(300);
/// How many milliseconds of progress it is worth to make a certificate, and to register an agent.
const CERTIFICATE_MS: u64 = 1;
const REGISTRATION_MS: u64 = 5;

/// Measures every case, prints the table and writes the file.
pub(crate) async fn run(args: RouteArgs, interrupt: CancellationToken) -> anyhow::Result<()> {
    args.validate()?;
    // The coordinator has one for each connection too, and inherits the limit.
    open_files::allow(u64::from(args.connections) + fleet::OPEN_FILES + args.cases().len() as u64 * FILES_PER_CASE)?;
    let environment = Environment::read();
    let samples = measure(&args, &interrupt).await?;
    if samples.is_empty() {
        eprintln!("interrupted before anything was measured");
        return Ok(());
    }
    let results: Vec<CaseResult> = summarize(samples);
    let figures = format!(
        "POST /api/v1/inference/request in plain text on loopback, {} keep-alive connections, {} x {} s of each load;\n\
         latency at half of the throughput, from the moment a request is due (random arrivals)\n\n\
         {}\n\nEvery agent registered over gRPC with its own certificate. Intervals: 95 % for the median.\n{}",
        args.connections,
        args.repetitions,
        args.seconds,
        table(&results).markdown(),
        environment.summary()
    );
    println!("{figures}");
    if let Some(out) = &args.out {
        Report::new("route", &environment, &args, interrupt.is_cancelled(), &results).write(out)?;
    }
    match &args.publish {
        Some(_) if interrupt.is_cancelled() => eprintln!("not published: the measurement was interrupted"),
        Some(document) => publish_into(document, &figures)?,
        None => {}
    }
    Ok(())
}

/// Three pipes for each coordinator, on the parent's side.
const FILES_PER_CASE: u64 = 3;

/// A coordinator with its agents.
struct Case {
    algorithm: Algorithm,
    agents: u32,
    process: Process,
    ports: Ports,
    claims: Option<Claims>,
}

impl Case {
    /// Starts the coordinator and registers the agents.
    async fn set_up(
        authority: &Authority,
        algorithm: Algorithm,
        agents: u32,
        progress: &Progress,
    ) -> anyhow::Result<Self> {
        let (process, ports) = coordinator::start(authority.path(), algorithm).await?;
        authority.register(ports.grpc, agents, || progress.steps(REGISTRATION_MS)).await?;
        let claims = authority.claim(ports.grpc, agents).await?;
        Ok(Self { algorithm, agents, process, ports, claims })
    }

    async fn connect(&self, connections: u32) -> anyhow::Result<Vec<Connection>> {
        connect(self.ports.http, connections, self.claims.as_ref()).await
    }
}

/// The samples of every turn, as far as `interrupt` lets them come.
async fn measure(args: &RouteArgs, interrupt: &CancellationToken) -> anyhow::Result<Vec<Sample>> {
    let progress = Arc::new(Progress::new(total_ms(args)));
    let mut samples = Vec::new();
    tokio::select! {
        done = measure_all(args, &progress, interrupt, &mut samples) => done?,
        // The coordinators' processes and every connection end with the dropped future.
        () = interrupt.cancelled() => {}
    }
    Ok(samples)
}

async fn measure_all(
    args: &RouteArgs,
    progress: &Arc<Progress>,
    interrupt: &CancellationToken,
    samples: &mut Vec<Sample>,
) -> anyhow::Result<()> {
    let authority = certify(args, progress, interrupt).await?;
    let mut cases = Vec::new();
    for (algorithm, agents) in args.cases() {
        progress.stage(format!("{algorithm}: registering {agents} agents"));
        let case = Case::set_up(&authority, algorithm, agents, progress).await?;
        closed(case.connect(args.connections).await?, WARM_UP).await?;
        cases.push(case);
    }
    for repetition in 0..args.repetitions {
        for at in order(cases.len(), repetition) {
            let Case { algorithm, agents, .. } = cases[at];
            progress.stage(format!("{} of {}: {algorithm}, {agents} agents", repetition + 1, args.repetitions));
            let sample = turn(&mut cases[at], args, repetition, progress).await;
            samples.push(sample.with_context(|| format!("{algorithm} with {agents} agents"))?);
        }
    }
    for case in cases {
        case.process.stop().await;
    }
    Ok(())
}

/// On a thread of its own: thousands of keys are seconds of work.
async fn certify(
    args: &RouteArgs,
    progress: &Arc<Progress>,
    interrupt: &CancellationToken,
) -> anyhow::Result<Authority> {
    let most = args.agents.iter().copied().max().unwrap_or(0);
    progress.stage(format!("making {most} agents' certificates"));
    let (progress, interrupt) = (Arc::clone(progress), interrupt.clone());
    let making = move || Authority::new(most, || progress.steps(CERTIFICATE_MS), || interrupt.is_cancelled());
    tokio::task::spawn_blocking(making).await?
}

/// Both loads of one case.
async fn turn(case: &mut Case, args: &RouteArgs, repetition: u32, progress: &Progress) -> anyhow::Result<Sample> {
    let length = Duration::from_secs_f64(args.seconds);
    let connections = case.connect(args.connections).await?;
    let (closed, usage) = watched(case, closed(connections, length), length, progress).await?;

    let rate = OPEN_SHARE * closed.requests_per_second();
    let seed = args.seed.wrapping_add(u64::from(repetition));
    let due = Due::start(arrivals(rate, length, seed));
    let connections = case.connect(args.connections).await?;
    let (open, _) = watched(case, open(connections, due), length, progress).await?;

    let Case { algorithm, agents, .. } = *case;
    Ok(Sample { algorithm, agents, repetition, closed, coordinator: usage, open_rate: rate, open })
}

/// Runs a load and moves the bar; with what the coordinator used meanwhile.
async fn watched(
    case: &mut Case,
    load: impl Future<Output = anyhow::Result<Load>>,
    length: Duration,
    progress: &Progress,
) -> anyhow::Result<(Load, Usage)> {
    let before = case.process.usage().await?;
    let (load, ()) = tokio::join!(load, progress.sleep_until(Instant::now() + length));
    let after = case.process.usage().await?;
    Ok((load?, after.since(&before)))
}

/// Each repetition begins with another case, and every other one goes backwards.
fn order(cases: usize, repetition: u32) -> Vec<usize> {
    let first = usize::try_from(repetition).unwrap_or(0);
    let forwards = (0..cases).map(|at| (first + at) % cases);
    if repetition.is_multiple_of(2) { forwards.collect() } else { forwards.rev().collect() }
}

fn total_ms(args: &RouteArgs) -> u64 {
    let most = args.agents.iter().copied().max().unwrap_or(0);
    let registered: u64 = args.cases().iter().map(|&(_, agents)| u64::from(agents)).sum();
    let loads = (args.seconds * 2e3) as u64 * u64::from(args.repetitions) * args.cases().len() as u64;
    u64::from(most) * CERTIFICATE_MS + registered * REGISTRATION_MS + loads
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_repetition_has_every_case_once_in_another_order() {
        let orders: Vec<_> = (0..6).map(|repetition| order(6, repetition)).collect();
        for (at, order) in orders.iter().enumerate() {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4, 5]);
            assert!(!orders[..at].contains(order), "{order:?}");
        }
    }
}
