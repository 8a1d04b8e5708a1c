//! Runs a plan: cell after cell, all subjects and repetitions of a cell side by side.

mod cpu;
mod fairness;
mod memory;
mod returns;
mod starts;
mod streams;

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use super::{
    ground::Ground,
    plan::{Cell, Plan},
    process::HostProcess,
    record::{Event, Record, Recorder},
    subject::Subject,
};
use crate::{lab::Lab, progress::Progress};

/// Measures what the plan says into `recorder`, until the end or until `interrupt`.
pub(crate) async fn measure(
    plan: &Plan,
    ground: &Ground,
    lab: &Lab,
    recorder: &mut Recorder,
    interrupt: &CancellationToken,
) -> anyhow::Result<Notes> {
    let progress = Progress::new(u64::try_from(plan.estimate().as_millis()).unwrap_or(u64::MAX));
    let mut notes = Notes::default();
    tokio::select! {
        result = run(plan, ground, lab.path(), recorder, &progress, &mut notes) => result?,
        // Processes end with the dropped future.
        () = interrupt.cancelled() => {}
    }
    Ok(notes)
}

/// Settings and versions that servers told.
pub(crate) type Notes = BTreeMap<Subject, String>;

async fn run(
    plan: &Plan,
    ground: &Ground,
    lab: &Path,
    recorder: &mut Recorder,
    progress: &Progress,
    notes: &mut Notes,
) -> anyhow::Result<()> {
    let mut hosts: Option<((f64, bool), Hosts)> = None;
    for (at, cell) in plan.cells.iter().enumerate() {
        let token_rate = cell.conditions.token_rate;
        let apart = cell.conditions.event == Event::AgentKilled;
        if hosts.as_ref().is_none_or(|&(kind, _)| kind != (token_rate, apart)) {
            if let Some((_, old)) = hosts.take() {
                old.stop().await;
            }
            progress.stage(format!("starting servers and clients at {token_rate} tokens/s"));
            let started = match apart {
                true => Hosts::start_apart(plan, cell, ground, lab).await?,
                false => Hosts::start(plan, ground, lab, token_rate, notes).await?,
            };
            hosts = Some(((token_rate, apart), started));
        }
        let Some((_, hosts)) = &hosts else { continue };
        ground.set_congestion_control(&cell.conditions.congestion_control)?;
        progress.stage(format!("{} of {}: {}", at + 1, plan.cells.len(), cell.conditions));
        // Other seeds in each cell, the same for all its subjects.
        let cell_seed = plan.seed.wrapping_mul(1_000_003).wrapping_add(at as u64);
        let run = CellRun { plan, ground, cell, hosts, seed: cell_seed };
        if cell.tokens > 0 {
            run.streams(recorder).await.with_context(|| format!("streams at {}", cell.conditions))?;
        }
        if cell.starts > 0 {
            run.starts(recorder).await.with_context(|| format!("starts at {}", cell.conditions))?;
        }
        if cell.returns > 0 {
            run.returns(recorder).await.with_context(|| format!("returning clients at {}", cell.conditions))?;
        }
        progress.advance(cell.estimate(plan.clients()));
    }
    if let Some((_, hosts)) = hosts {
        hosts.stop().await;
    }
    if let Some(control) = plan.congestion_control() {
        ground.set_congestion_control(control)?;
    }
    if let Some(cpu) = &plan.cpu {
        cpu::measure(plan, cpu, ground, lab, recorder, progress).await.context("CPU time")?;
    }
    if let Some(plan_of) = &plan.fairness {
        fairness::measure(plan, plan_of, ground, lab, recorder, progress).await.context("a bulk flow beside")?;
    }
    if !plan.memory.is_empty() {
        memory::measure(plan, ground, lab, recorder, progress).await.context("memory")?;
    }
    Ok(())
}

/// The processes of every subject.
struct Hosts(BTreeMap<Subject, Pair>);

/// One subject's.
struct Pair {
    server: HostProcess,
    client: HostProcess,
}

impl Hosts {
    async fn start(
        plan: &Plan,
        ground: &Ground,
        lab: &Path,
        token_rate: f64,
        notes: &mut Notes,
    ) -> anyhow::Result<Self> {
        let mut hosts = BTreeMap::new();
        for &subject in &plan.subjects {
            let (pair, note) = Pair::start(ground, subject, lab, token_rate).await?;
            notes.insert(subject, note);
            hosts.insert(subject, pair);
        }
        Ok(Self(hosts))
    }

    /// Agents in processes of their own, for those who have agents.
    async fn start_apart(plan: &Plan, cell: &Cell, ground: &Ground, lab: &Path) -> anyhow::Result<Self> {
        let mut hosts = BTreeMap::new();
        for &subject in plan.subjects.iter().filter(|&&subject| cell.has(subject, plan.all_subjects)) {
            let token_rate = cell.conditions.token_rate;
            let (server, _) = HostProcess::server_apart(ground, subject, lab, token_rate)
                .await
                .with_context(|| format!("cannot start coordinator and agent of {}", subject.label()))?;
            hosts.insert(subject, Pair { server, client: HostProcess::client(ground, subject, lab)? });
        }
        Ok(Self(hosts))
    }

    async fn stop(self) {
        for (_, pair) in self.0 {
            pair.stop().await;
        }
    }
}

impl Pair {
    async fn start(ground: &Ground, subject: Subject, lab: &Path, token_rate: f64) -> anyhow::Result<(Self, String)> {
        let (server, note) = HostProcess::server(ground, subject, lab, token_rate)
            .await
            .with_context(|| format!("cannot start the server of {}", subject.label()))?;
        let client = HostProcess::client(ground, subject, lab)?;
        Ok((Self { server, client }, note))
    }

    async fn stop(self) {
        self.client.stop().await;
        self.server.stop().await;
    }
}

/// One cell, being measured.
struct CellRun<'a> {
    plan: &'a Plan,
    ground: &'a Ground,
    cell: &'a Cell,
    hosts: &'a Hosts,
    seed: u64,
}

/// One client of a cell: of a subject, in a repetition, on a lane of its own.
#[derive(Clone, Copy)]
struct Lane<'a> {
    lane: u8,
    subject: Subject,
    pair: &'a Pair,
    repetition: u32,
    /// The same for all subjects of a repetition: their paths lose the same packets.
    seed: u64,
}

impl CellRun<'_> {
    /// The clients that take part in this cell.
    fn lanes(&self) -> Vec<Lane<'_>> {
        let pairs = self.hosts.0.iter().filter(|&(&subject, _)| self.cell.has(subject, self.plan.all_subjects));
        let clients = pairs.flat_map(|(&subject, pair)| (0..self.plan.repetitions).map(move |at| (subject, pair, at)));
        // Lane 0 is for the check.
        clients
            .zip(1..=u8::MAX)
            .map(|((subject, pair, repetition), lane)| {
                let seed = self.seed.wrapping_mul(1_000_003).wrapping_add(u64::from(repetition));
                Lane { lane, subject, pair, repetition, seed }
            })
            .collect()
    }
}

/// How many lanes are apart that do the same at the same time.
const PHASES: u32 = 32;

impl Lane<'_> {
    /// This lane's share of `period`: all at once, they would wait for each other's turn on a CPU, which no network makes them.
    /// Neighbours, of one subject, are far apart.
    fn phase(&self, period: Duration) -> Duration {
        period * (u32::from(self.lane) * 13 % PHASES) / PHASES
    }
}

/// What the path that is checked has for a number.
const CHECK_LANE: u8 = 0;

/// Lanes that a plan needs, the checked one included.
pub(crate) fn lanes_needed(plan: &Plan) -> anyhow::Result<u8> {
    u8::try_from(plan.clients() + 1).ok().filter(|&lanes| lanes < u8::MAX).with_context(|| {
        format!(
            "{} subjects with {} repetitions are too many side by side: at most 253 together",
            plan.subjects.len(),
            plan.repetitions
        )
    })
}

/// Stores each of `records`.
fn put_all(recorder: &mut Recorder, records: impl IntoIterator<Item = Record>) -> anyhow::Result<()> {
    records.into_iter().try_for_each(|record| recorder.put(&record))
}
