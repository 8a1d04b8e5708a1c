//! `titan-bench net`: every subject over emulated networks.
//!
//! Two hosts ([`ground`]) hold a process for each subject's server ([`server_host`]) and one for its clients ([`client_host`]),
//! which take orders over pipes ([`protocol`], [`process`]). The [`plan`] says which conditions, the [`runner`] measures them: all
//! subjects and repetitions of one cell side by side, each over a path of its own. What was read becomes figures in [`reading`], and is
//! stored by [`record`]. Whom is measured: [`subject`], [`subjects`].

pub(crate) mod args;
mod client_host;
mod ground;
mod plan;
mod process;
mod protocol;
mod reading;
pub(crate) mod record;
mod runner;
mod server_host;
mod stdio;
pub(crate) mod subject;
mod subjects;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use clap::ValueEnum as _;
use titan_emulator::Network;
use tokio_util::sync::CancellationToken;

use self::{
    args::NetArgs,
    ground::Ground,
    plan::Plan,
    record::{Recorder, Run, SCHEMA, write_run},
    subject::Subject,
};
pub(crate) use self::{client_host::run as run_client, server_host::run as run_server};
use crate::{environment::Environment, lab::Lab, report};

/// Measures, stores, and writes the report.
pub(crate) async fn run(args: NetArgs, interrupt: CancellationToken) -> anyhow::Result<()> {
    let environment = Environment::read();
    let (available, skipped) = choose(&args)?;
    let plan = Plan::new(&args, &available);
    let lanes = runner::lanes_needed(&plan)?;
    let ground = match args.loopback {
        true => Ground::Loopback,
        false => Ground::Emulated(Arc::new(Network::new(lanes).context(
            "there can be no emulated network here. `titan-bench net --loopback` measures what needs none: starts, CPU and memory",
        )?)),
    };
    let lab = Lab::new()?;
    let dir = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("bench-results/{}", environment.started_at)));
    let command = command_line();
    let mut run = Run { schema: SCHEMA, environment, command, interrupted: true, skipped, notes: Vec::new() };
    let mut recorder = Recorder::create(&dir, &run)?;
    eprintln!(
        "{} conditions, about {} minutes; results: {}",
        plan.cells.len(),
        plan.estimate().as_secs() / 60 + 1,
        dir.display()
    );
    let measured = runner::measure(&plan, &ground, &lab, &mut recorder, &interrupt).await;
    // Namespaces and processes are gone before anything else can fail.
    drop(ground);
    // What was measured before an error is worth a report too.
    run.interrupted = interrupt.is_cancelled() || measured.is_err();
    run.notes = measured.as_ref().map(|notes| notes.clone().into_iter().collect()).unwrap_or_default();
    write_run(&dir, &run)?;
    let summary = report::write(std::slice::from_ref(&dir), &dir)?;
    summary.print();
    measured?;
    if args.publish {
        summary.publish(Path::new("."))?;
    }
    if args.self_test {
        summary.check_self_test()?;
    }
    Ok(())
}

/// The arguments, save for where the results go: that is of no interest to who reads them.
fn command_line() -> String {
    let mut words = std::env::args().skip(1).collect::<Vec<_>>();
    if let Some(at) = words.iter().position(|word| word == "--out") {
        words.drain(at..words.len().min(at + 2));
    }
    words.retain(|word| !word.starts_with("--out="));
    words.join(" ")
}

/// Whom there is to measure, and who cannot be measured here, and why.
type Choice = (Vec<Subject>, Vec<(Subject, String)>);

fn choose(args: &NetArgs) -> anyhow::Result<Choice> {
    let mut skipped = Vec::new();
    let mut available = Vec::new();
    for &subject in Subject::value_variants() {
        match subjects::available(subject) {
            Ok(()) => available.push(subject),
            Err(reason) if args.subjects.contains(&subject) => {
                anyhow::bail!("{} cannot be measured: {reason}", subject.label());
            }
            Err(reason) => {
                eprintln!("without {}: {reason}", subject.label());
                skipped.push((subject, reason));
            }
        }
    }
    Ok((available, skipped))
}
