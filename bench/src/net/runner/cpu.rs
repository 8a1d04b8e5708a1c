//! What tokens cost: many streams over a clean path, one subject at a time.

use std::{path::Path, time::Duration};

use futures_util::future::try_join_all;
use titan_emulator::PathSettings;
use tokio::time::sleep;

use super::{Pair, put_all};
use crate::{
    net::{
        ground::Ground,
        plan::{CpuPlan, Plan},
        protocol::{Answer, Order, Streamed},
        record::{CpuRecord, Record, Recorder},
        subject::Subject,
    },
    progress::Progress,
    usage::Usage,
};

/// A lane for all clients: the path is not what is measured.
const LANE: u8 = 1;
const TOKEN_RATE: f64 = 50.0;
/// The streams run before they are measured, and after.
const MARGIN: Duration = Duration::from_millis(500);
const DEADLINE: Duration = Duration::from_secs(60);
/// Half the tokens later than this: the machine does not hold the rate, and the figure is not of the tokens it is said to be of.
const LATE: Duration = Duration::from_secs(1);

/// Measures each subject in turn, repetition after repetition, so that a busy minute hits all alike.
pub(super) async fn measure(
    plan: &Plan,
    cpu: &CpuPlan,
    ground: &Ground,
    lab: &Path,
    recorder: &mut Recorder,
    progress: &Progress,
) -> anyhow::Result<()> {
    ground.set(LANE, PathSettings::NOTHING, 0);
    for repetition in 0..cpu.repetitions {
        for &subject in plan.subjects.iter().filter(|&&subject| subject != Subject::TitanAuto) {
            progress.stage(format!("CPU time of {}, {} of {}", subject.label(), repetition + 1, cpu.repetitions));
            let (pair, _) = Pair::start(ground, subject, lab, TOKEN_RATE).await?;
            let record = measure_one(&pair, subject, repetition, cpu, ground).await;
            pair.stop().await;
            match record {
                Ok(record) => put_all(recorder, [Record::Cpu(record)])?,
                Err(error) => eprintln!("{}: no CPU time: {error:#}", subject.label()),
            }
            progress.advance(cpu.estimate_of_one());
        }
    }
    Ok(())
}

async fn measure_one(
    pair: &Pair,
    subject: Subject,
    repetition: u32,
    cpu: &CpuPlan,
    ground: &Ground,
) -> anyhow::Result<CpuRecord> {
    let server = ground.server_address(LANE);
    let deadline_ms = u64::try_from(DEADLINE.as_millis())?;
    let open = (0..cpu.clients).map(|_| pair.client.obey(Order::Open { server, deadline_ms }));
    let opened = try_join_all(open).await?;
    let streams = cpu.streams / cpu.clients;
    let interval = Duration::from_secs_f64(1.0 / TOKEN_RATE);
    // Rounded down.
    let tokens = ((cpu.duration + 2 * MARGIN).as_secs_f64() * TOKEN_RATE) as u32;
    let reading = try_join_all(opened.iter().map(|&(opened, _)| {
        let interval_ns = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        pair.client.obey_within(
            Order::Stream { opened, streams, tokens, interval_ns, one_way_ns: 0, deadline_ms },
            2 * DEADLINE,
        )
    }));
    let window = async {
        sleep(MARGIN).await;
        let before = usage(pair).await?;
        sleep(cpu.duration).await;
        let after = usage(pair).await?;
        anyhow::Ok((before, after))
    };
    let (answers, (before, after)) = tokio::try_join!(reading, window)?;
    for (_, answer) in answers {
        let Answer::Stream(streamed) = answer else { anyhow::bail!("it answers {answer:?}") };
        let Streamed { delivery, failed, .. } = *streamed;
        if let Some(failed) = failed {
            anyhow::bail!("a stream failed: {failed}");
        }
        let late = Duration::from_nanos(delivery.lateness.quantile_ns(0.5));
        anyhow::ensure!(
            late < LATE,
            "{} streams of {TOKEN_RATE} tokens/s are too much here: half the tokens come {late:?} late",
            cpu.streams
        );
    }
    let seconds = (after.at - before.at).as_secs_f64();
    Ok(CpuRecord {
        subject,
        repetition,
        streams: streams * cpu.clients,
        token_rate: TOKEN_RATE,
        seconds,
        tokens: (f64::from(streams * cpu.clients) * TOKEN_RATE * seconds).round() as u64,
        server_cpu_s: after.server.since(&before.server).cpu_s(),
        client_cpu_s: after.client.since(&before.client).cpu_s(),
    })
}

struct Moment {
    at: tokio::time::Instant,
    server: Usage,
    client: Usage,
}

async fn usage(pair: &Pair) -> anyhow::Result<Moment> {
    let server = pair.server.usage().await?;
    let at = tokio::time::Instant::now();
    Ok(Moment { at, server, client: pair.client.usage().await? })
}
