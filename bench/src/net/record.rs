//! What `net` stores, and `report` reads: a directory with `run.json` ([`Run`]) and `samples.jsonl` (one [`Record`] a line, written
//! as soon as it is measured, so that an interrupted run keeps what it had).

use std::{
    fmt,
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
};

use anyhow::Context as _;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
/// What records tell of the network.
pub(crate) use titan_emulator::{Loss, Traffic};

use super::subject::Subject;
use crate::{environment::Environment, stats::Durations};

/// Changes when a reader of older files would misread a newer one.
pub(crate) const SCHEMA: u32 = 1;
const RUN_FILE: &str = "run.json";
const SAMPLES_FILE: &str = "samples.jsonl";

/// One call of `titan-bench net`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) schema: u32,
    pub(crate) environment: Environment,
    /// The command line, as given.
    pub(crate) command: String,
    /// Ctrl-C came before the end.
    pub(crate) interrupted: bool,
    /// Subjects that could not be measured, and why.
    pub(crate) skipped: Vec<(Subject, String)>,
    /// Settings and versions of the others.
    pub(crate) notes: Vec<(Subject, String)>,
}

/// The network, and what is asked of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Conditions {
    pub(crate) rtt_ms: f64,
    pub(crate) loss: Loss,
    /// Of the link, in each direction; `None`: unlimited.
    pub(crate) rate_mbit: Option<f64>,
    /// Tokens per second of each stream.
    pub(crate) token_rate: f64,
    /// Streams of one client at once.
    pub(crate) streams: u32,
    pub(crate) event: Event,
    /// Of TCP, on both hosts.
    pub(crate) congestion_control: String,
}

/// What happens in the middle of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Event {
    /// Nothing
    None,
    /// The client's address changes half-way, as from Wi-Fi to cellular
    AddressChange,
    /// From the start, UDP gets no answer
    UdpBlocked,
    /// The agent that answers is killed half-way, and there is another; Titan only
    AgentKilled,
}

/// One line of the samples.
// They are written and read one at a time: a box would save nothing.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Record {
    Start(StartRecord),
    Stream(Box<StreamRecord>),
    Check(CheckRecord),
    Cpu(CpuRecord),
    Memory(MemoryRecord),
    Fairness(FairnessRecord),
}

/// What the client still has of an earlier connection when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StartState {
    /// Nothing.
    Cold,
    /// A TLS session (and with Titan the route), but no connection.
    Resumed,
    /// The same as resumed, after the earlier connection has stood long enough for all that helps the next one to have come.
    Returning,
    /// The connection.
    Warm,
}

/// One request, until its first token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StartRecord {
    pub(crate) conditions: Conditions,
    pub(crate) subject: Subject,
    pub(crate) repetition: u32,
    pub(crate) state: StartState,
    /// A connection of its own, beside the request, until it can be used: cold only.
    pub(crate) connect_ms: Option<f64>,
    /// From asking for the answer, connecting included, to its first token read. `None` where it failed.
    pub(crate) ttft_ms: Option<f64>,
    /// The same with the call that finds the agent, for subjects that have one (Titan, cold).
    pub(crate) routed_ttft_ms: Option<f64>,
    pub(crate) failed: Option<String>,
}

/// One client's streams, read to their end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StreamRecord {
    pub(crate) conditions: Conditions,
    pub(crate) subject: Subject,
    pub(crate) repetition: u32,
    pub(crate) seed: u64,
    pub(crate) delivery: Delivery,
    /// Why a stream broke off, the first of them.
    pub(crate) failed: Option<String>,
    /// From the change of address, or the death of the agent, to the reading of the first token that was sent after it, the slowest
    /// stream's. `None`: nothing of that kind happened, or no such token came.
    pub(crate) recovery_ms: Option<f64>,
    /// IP packets that entered the path during the streams, connecting not included.
    pub(crate) to_client: Traffic,
    pub(crate) to_server: Traffic,
}

/// How tokens reached their reader.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Delivery {
    /// Between two tokens read.
    pub(crate) gaps: Durations,
    /// After the ideal: sent on schedule, and half the path's round trip later read.
    pub(crate) lateness: Durations,
    /// Share of the time that a reader at the pace of the tokens waits for an overdue one.
    pub(crate) stall_ratio: f64,
    pub(crate) expected: u64,
    pub(crate) received: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
}

/// What the emulated path really does, measured by ping and a UDP flow beside the subjects.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CheckRecord {
    pub(crate) conditions: Conditions,
    /// Median.
    pub(crate) ping_rtt_ms: f64,
    /// Of the UDP flow, in each direction.
    pub(crate) sent_packets: u64,
    pub(crate) lost_to_server_percent: f64,
    pub(crate) lost_to_client_percent: f64,
    /// How late the emulator itself gave packets out, of all paths: beyond the delay asked for.
    #[serde(default)]
    pub(crate) emulator_late_p99_ms: f64,
    /// What is off by more than it may be. `None`: nothing.
    pub(crate) marked: Option<String>,
}

/// What tokens cost on a clean path, one subject at a time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CpuRecord {
    pub(crate) subject: Subject,
    pub(crate) repetition: u32,
    pub(crate) streams: u32,
    pub(crate) token_rate: f64,
    pub(crate) seconds: f64,
    pub(crate) tokens: u64,
    /// All processes of that side, relays included.
    pub(crate) server_cpu_s: f64,
    pub(crate) client_cpu_s: f64,
}

/// Resident memory of processes that do nothing else.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MemoryRecord {
    pub(crate) subject: Subject,
    /// Open and idle.
    pub(crate) connections: u32,
    /// Begun and waiting for their next token, up to a hundred on a connection where the protocol has that.
    pub(crate) streams: u32,
    pub(crate) server_bytes: u64,
    pub(crate) client_bytes: u64,
}

/// What a TCP flow that sends all it can gets of a link.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FairnessRecord {
    /// Whose token streams share the link; `None`: nobody's.
    pub(crate) beside: Option<Subject>,
    pub(crate) repetition: u32,
    pub(crate) rate_mbit: f64,
    pub(crate) rtt_ms: f64,
    pub(crate) streams: u32,
    /// What its reader got.
    pub(crate) bulk_mbit: f64,
    /// Between two tokens of the streams.
    pub(crate) gap_p99_ms: Option<f64>,
}

impl Delivery {
    /// Of a stream that never began.
    pub(crate) fn none() -> Self {
        let (gaps, lateness) = (Durations::new(), Durations::new());
        Self { gaps, lateness, stall_ratio: 0.0, expected: 0, received: 0, lost: 0, duplicated: 0 }
    }
}

#[cfg(test)]
impl Conditions {
    /// One stream at 50 tokens/s over a path of unlimited rate, and nothing happens.
    pub(crate) fn plain(rtt_ms: f64, loss: Loss) -> Self {
        let congestion_control = "cubic".to_owned();
        Self { rtt_ms, loss, rate_mbit: None, token_rate: 50.0, streams: 1, event: Event::None, congestion_control }
    }
}

impl fmt::Display for Conditions {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "RTT {} ms, loss {}, {} tokens/s", self.rtt_ms, self.loss, self.token_rate)?;
        if let Some(mbit) = self.rate_mbit {
            write!(out, ", {mbit} Mbit/s")?;
        }
        if self.streams > 1 {
            write!(out, ", {} streams", self.streams)?;
        }
        match self.event {
            Event::None => {}
            Event::AddressChange => write!(out, ", the address changes")?,
            Event::UdpBlocked => write!(out, ", UDP blocked")?,
            Event::AgentKilled => write!(out, ", the agent is killed")?,
        }
        if !self.congestion_control.is_empty() {
            write!(out, ", {}", self.congestion_control)?;
        }
        Ok(())
    }
}

/// Where records go while they are measured.
pub(crate) struct Recorder {
    samples: File,
}

impl Recorder {
    /// Starts a new set in `dir`, which it makes where there is none.
    pub(crate) fn create(dir: &Path, run: &Run) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {}", dir.display()))?;
        write_run(dir, run)?;
        let path = dir.join(SAMPLES_FILE);
        let samples = File::create(&path).with_context(|| format!("cannot write to {}", path.display()))?;
        Ok(Self { samples })
    }

    /// Keeps `record`, whatever happens next.
    pub(crate) fn put(&mut self, record: &Record) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.samples.write_all(&line).context("cannot write the samples")
    }
}

/// Writes `run` again, when it has ended.
pub(crate) fn write_run(dir: &Path, run: &Run) -> anyhow::Result<()> {
    let path = dir.join(RUN_FILE);
    fs::write(&path, serde_json::to_vec_pretty(run)?).with_context(|| format!("cannot write {}", path.display()))
}

/// Reads what a run stored, one record after the other: histograms of a whole matrix at once would be gigabytes.
pub(crate) fn read_each(dir: &Path, mut visit: impl FnMut(Record)) -> anyhow::Result<Run> {
    let path = dir.join(RUN_FILE);
    let text = fs::read(&path).with_context(|| format!("no run of `titan-bench net` in {}", dir.display()))?;
    let run: Run = serde_json::from_slice(&text).with_context(|| format!("{} is not understood", path.display()))?;
    anyhow::ensure!(run.schema == SCHEMA, "{} has schema {}, this program reads {SCHEMA}", path.display(), run.schema);
    let path = dir.join(SAMPLES_FILE);
    let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut lines = BufReader::new(file).lines().enumerate().peekable();
    while let Some((at, line)) = lines.next() {
        let line = line.with_context(|| format!("cannot read {}", path.display()))?;
        match serde_json::from_str(&line) {
            Ok(record) => visit(record),
            // A run that was killed may have left half a line.
            Err(error) if error.is_eof() && lines.peek().is_none() => {
                eprintln!("{}: the last line is incomplete and left out", path.display());
            }
            Err(error) => anyhow::bail!("{}:{}: {error}", path.display(), at + 1),
        }
    }
    Ok(run)
}
