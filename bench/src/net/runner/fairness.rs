//! Whether token streams leave other traffic its share: a TCP flow that sends all it can over a link of limited rate, alone and with
//! many streams beside it.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use titan_emulator::{Network, PathSettings};
use tokio::time::sleep;

use super::{Pair, put_all};
use crate::{
    net::{
        ground::Ground,
        plan::{FairnessPlan, Plan},
        protocol::{Answer, Order},
        record::{FairnessRecord, Record, Recorder},
        subject::Subject,
    },
    progress::Progress,
};

/// One lane for the flow and the streams: it is the link that they share.
const LANE: u8 = 1;
const TOKEN_RATE: f64 = 50.0;
/// The flow has found the link's rate, and the streams have begun, before it is measured.
const SETTLE: Duration = Duration::from_secs(2);
/// For connecting while nothing else uses the link.
const OPEN_DEADLINE: Duration = Duration::from_secs(20);
/// For streams that a full link holds up.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest that the flow waits for anything, so that its threads end.
const SOCKET_PATIENCE: Duration = Duration::from_secs(30);

/// The flow alone, then beside the streams of each subject, again and again.
pub(super) async fn measure(
    plan: &Plan,
    fairness: &FairnessPlan,
    ground: &Ground,
    lab: &Path,
    recorder: &mut Recorder,
    progress: &Progress,
) -> anyhow::Result<()> {
    // Where there is no network there is no link to share; the plan has none of this then.
    let Ground::Emulated(network) = ground else { return Ok(()) };
    let one_way_delay = Duration::from_secs_f64(fairness.rtt_ms / 2e3);
    let rate_bits_per_s = Some(fairness.rate_mbit * 1e6);
    let path = PathSettings { one_way_delay, rate_bits_per_s, ..PathSettings::NOTHING };
    for repetition in 0..fairness.repetitions {
        let beside = plan.subjects.iter().copied().filter(|subject| FairnessPlan::SUBJECTS.contains(subject));
        for beside in std::iter::once(None).chain(beside.map(Some)) {
            let name = beside.map_or("nothing", Subject::label);
            progress.stage(format!("a bulk flow beside {name}, {} of {}", repetition + 1, fairness.repetitions));
            network.set(LANE, &path, u64::from(repetition));
            let record = match beside {
                None => alone(network, fairness, repetition).await,
                Some(subject) => {
                    let (pair, _) = Pair::start(ground, subject, lab, TOKEN_RATE).await?;
                    let record = shared(network, &pair, fairness, subject, repetition).await;
                    pair.stop().await;
                    record
                }
            };
            match record {
                Ok(record) => put_all(recorder, [Record::Fairness(record)])?,
                Err(error) => eprintln!("a bulk flow beside {name}: {error:#}"),
            }
            progress.advance(fairness.estimate_of_one());
        }
    }
    Ok(())
}

async fn alone(network: &Network, fairness: &FairnessPlan, repetition: u32) -> anyhow::Result<FairnessRecord> {
    let bulk_mbit = bulk(network, fairness.duration).await?;
    Ok(record(fairness, None, repetition, bulk_mbit, None))
}

async fn shared(
    network: &Network,
    pair: &Pair,
    fairness: &FairnessPlan,
    subject: Subject,
    repetition: u32,
) -> anyhow::Result<FairnessRecord> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis());
    let server = Network::server_address(LANE).into();
    let (opened, _) = pair.client.obey(Order::Open { server, deadline_ms: millis(OPEN_DEADLINE)? }).await?;
    let length = SETTLE + fairness.duration + SETTLE;
    let deadline = length + PATIENCE;
    let order = Order::Stream {
        opened,
        streams: fairness.streams,
        // Rounded down.
        tokens: (length.as_secs_f64() * TOKEN_RATE) as u32,
        interval_ns: (1e9 / TOKEN_RATE) as u64,
        one_way_ns: 0,
        deadline_ms: millis(deadline)?,
    };
    let streams = pair.client.obey_within(order, deadline + PATIENCE);
    let ((_, answer), bulk_mbit) = tokio::try_join!(streams, bulk(network, fairness.duration))?;
    let Answer::Stream(streamed) = answer else { anyhow::bail!("it answers {answer:?}") };
    if let Some(failed) = streamed.failed {
        anyhow::bail!("a stream failed: {failed}");
    }
    let gap_p99_ms = streamed.delivery.gaps.quantile_ns(0.99) as f64 / 1e6;
    Ok(record(fairness, Some(subject), repetition, bulk_mbit, Some(gap_p99_ms)))
}

fn record(
    fairness: &FairnessPlan,
    beside: Option<Subject>,
    repetition: u32,
    bulk_mbit: f64,
    gap_p99_ms: Option<f64>,
) -> FairnessRecord {
    let &FairnessPlan { rate_mbit, rtt_ms, streams, .. } = fairness;
    FairnessRecord { beside, repetition, rate_mbit, rtt_ms, streams, bulk_mbit, gap_p99_ms }
}

/// What a reader gets of a TCP flow from the server's host, in Mbit/s over `duration`.
async fn bulk(network: &Network, duration: Duration) -> anyhow::Result<f64> {
    let address = SocketAddr::new(Network::server_address(LANE).into(), 0);
    let listener = network.server().run(move || TcpListener::bind(address))??;
    let server = listener.local_addr()?;
    let sender = network.server().spawn(move || send_all(&listener))?;
    let reader = network.client().spawn(move || read_for(server, duration))?;
    // Not on a worker: both block.
    let read = tokio::task::spawn_blocking(move || {
        let read = reader.join();
        // It ends with the connection; what it has to say is only that.
        let _ = sender.join();
        read
    });
    sleep(duration).await;
    let read = read.await.context("the bulk flow broke down")?;
    read.map_err(|_| anyhow::anyhow!("the reader of the bulk flow panicked"))??
}

/// Until the reader goes.
fn send_all(listener: &TcpListener) -> std::io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_write_timeout(Some(SOCKET_PATIENCE))?;
    let bytes = vec![0; 64 * 1024];
    loop {
        stream.write_all(&bytes)?;
    }
}

fn read_for(server: SocketAddr, duration: Duration) -> anyhow::Result<f64> {
    let mut stream = TcpStream::connect_timeout(&server, SOCKET_PATIENCE).context("connecting the bulk flow")?;
    stream.set_read_timeout(Some(SOCKET_PATIENCE))?;
    let mut buffer = vec![0; 64 * 1024];
    let begun = Instant::now();
    let mut measured_from = None;
    let mut bytes = 0;
    loop {
        let read = stream.read(&mut buffer).context("reading the bulk flow")?;
        anyhow::ensure!(read > 0, "the bulk flow ended by itself");
        let now = Instant::now();
        let from = match measured_from {
            None if now - begun < SETTLE => continue,
            None => *measured_from.insert(now),
            Some(from) => {
                bytes += read;
                from
            }
        };
        if now - from >= duration {
            return Ok(bytes as f64 * 8.0 / 1e6 / (now - from).as_secs_f64());
        }
    }
}
