//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use serde::Serialize;
use titan_transport::limits::MAX_CALLS_PER_CONNECTION;

use crate::{
    chaos::{ChaosArgs, ChaosServerArgs},
    net::args::{HostArgs, NetArgs},
    route::{BenchCoordinatorArgs, RouteArgs},
    wire::Wire,
};

/// Measures what TitanCompute's wires cost. Results go to the screen as a Markdown table, and with --out to a file as JSON.
#[derive(Debug, Parser)]
#[command(name = "titan-bench", version)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// A real model: what an agent adds to mistral.rs alone, over gRPC and QUIC; with --matrix what engines cost, beside llama.cpp
    Engine(EngineArgs),
    /// Many paced token streams from one agent, over gRPC and QUIC on loopback: does the rate hold, and what does a token cost
    Load(LoadArgs),
    /// Both wires and what users would pick instead, over emulated networks: round trips, losses, rates, an address that changes
    Net(Box<NetArgs>),
    /// A server that `net` starts; it ends when its standard input does
    #[command(hide = true)]
    NetServer(HostArgs),
    /// The clients that `net` starts
    #[command(hide = true)]
    NetClient(HostArgs),
    /// Nothing of an answer is lost or repeated, whatever networks and agents do: 24 combinations, 100 streams each
    Chaos(ChaosArgs),
    /// A coordinator or an agent that `chaos` starts, and kills
    #[command(hide = true)]
    ChaosServer(ChaosServerArgs),
    /// The coordinator's REST call on loopback: requests/s per core, latency, by number of agents and signing algorithm
    Route(RouteArgs),
    /// A page, a table and a CSV of what `net` stored
    Report(ReportArgs),
    /// The agent that `load` starts; it ends when its standard input does
    #[command(hide = true)]
    SyntheticAgent(SyntheticAgentArgs),
    /// The coordinator that `route` starts; it ends when its standard input does
    #[command(hide = true)]
    BenchCoordinator(BenchCoordinatorArgs),
}

/// Settings of `titan-bench engine`.
#[derive(Clone, Debug, Parser, Serialize)]
pub(crate) struct EngineArgs {
    /// A model as a .gguf file. Defaults to the embedded default model, fetched once
    #[arg(long, value_name = "FILE")]
    pub(crate) model: Option<PathBuf>,
    /// Rounds; each runs every subject once, in an order that changes. Six or more give a 95 % interval. With --matrix 6 by default
    #[arg(long, default_value_t = 18, default_value_if("matrix", "true", "6"), value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) rounds: u32,
    /// Tokens a run generates
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(8..=4096))]
    pub(crate) tokens: u32,
    /// Measures generation and first tokens behind prompts of several lengths, two answers at once, and turn 2 of a conversation: by mistral.rs
    /// alone, through an agent over QUIC, and by llama.cpp, on the same file and all cores
    #[arg(long, conflicts_with_all = ["prompt", "plaintext", "self_test", "assert"])]
    pub(crate) matrix: bool,
    /// For --matrix: tokens of the prompts
    #[arg(long, value_name = "TOKENS", requires = "matrix", value_delimiter = ',', default_values_t = [300, 1000], value_parser = clap::value_parser!(u32).range(64..=32_768))]
    pub(crate) contexts: Vec<u32>,
    /// For --matrix: a llama.cpp server. Defaults to what scripts/llama-server.sh has built
    #[arg(long, value_name = "FILE", requires = "matrix")]
    pub(crate) llama_server: Option<PathBuf>,
    /// For --matrix: writes the table between the markers of this document, docs/ENGINES.md
    #[arg(long, value_name = "FILE", requires = "matrix")]
    #[serde(skip)]
    pub(crate) publish: Option<PathBuf>,
    /// What the model is asked. Its answer should be longer than --tokens
    #[arg(long, default_value = "Write a long story about a lighthouse keeper and the sea.")]
    pub(crate) prompt: String,
    /// gRPC without TLS. Defaults to TLS, as over a network
    #[arg(long)]
    pub(crate) plaintext: bool,
    /// Measures mistral.rs alone twice under two names: what this machine's noise alone looks like
    #[arg(long)]
    pub(crate) self_test: bool,
    /// Fails unless the agent is within 2 % over each wire
    #[arg(long)]
    pub(crate) assert: bool,
    /// Where the results go as JSON
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub(crate) out: Option<PathBuf>,
}

/// Settings of `titan-bench load`.
#[derive(Clone, Debug, Parser, Serialize)]
pub(crate) struct LoadArgs {
    /// Streams at once
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) streams: u32,
    /// Tokens per second of each stream
    #[arg(long, default_value_t = 50.0, value_parser = positive)]
    pub(crate) rate: f64,
    /// Seconds that are measured, once all streams run
    #[arg(long, default_value_t = 20.0, value_parser = positive)]
    pub(crate) seconds: f64,
    /// Seconds over which the streams start
    #[arg(long, default_value_t = 3.0, value_parser = positive)]
    pub(crate) ramp: f64,
    /// The wires, one after the other
    #[arg(long, value_enum, default_value_t = Wires::Both)]
    pub(crate) wire: Wires,
    /// Connections that the streams are spread over: clients, each with a socket of its own
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) connections: u32,
    /// gRPC without TLS. Defaults to TLS, as over a network; QUIC is always encrypted
    #[arg(long)]
    pub(crate) plaintext: bool,
    /// Where the results go as JSON
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub(crate) out: Option<PathBuf>,
}

/// Settings of `titan-bench report`.
#[derive(Clone, Debug, Parser)]
pub(crate) struct ReportArgs {
    /// Directories that `net` wrote; the measurements of all are put together
    #[arg(required = true, value_name = "DIR")]
    pub(crate) directories: Vec<PathBuf>,
    /// Where report.html, summary.md and summary.csv go. Defaults to the first directory
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Also writes docs/BENCHMARKS.md with its plots, and the figures of README.md, in this repository
    #[arg(long)]
    pub(crate) publish: bool,
}

/// What `load` tells the agent that it starts.
#[derive(Clone, Debug, Parser)]
pub(crate) struct SyntheticAgentArgs {
    /// Directory with the certificates and the token keys
    #[arg(long)]
    pub(crate) lab: PathBuf,
    /// Tokens per second of each stream
    #[arg(long, value_parser = positive)]
    pub(crate) rate: f64,
    /// Streams at once
    #[arg(long)]
    pub(crate) streams: u32,
}

/// Which wires to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Wires {
    Grpc,
    Quic,
    Both,
}

impl Wires {
    /// In the order in which they are measured.
    pub(crate) fn list(self) -> &'static [Wire] {
        match self {
            Self::Grpc => &[Wire::Grpc],
            Self::Quic => &[Wire::Quic],
            Self::Both => &[Wire::Grpc, Wire::Quic],
        }
    }
}

impl LoadArgs {
    /// What no single argument shows.
    pub(crate) fn validate(&self) -> anyhow::Result<()> {
        let per_connection = self.streams.div_ceil(self.connections);
        anyhow::ensure!(
            per_connection <= MAX_CALLS_PER_CONNECTION,
            "{} streams over {} connections are {per_connection} on one, and an agent takes {MAX_CALLS_PER_CONNECTION}: \
             give --connections {} or more",
            self.streams,
            self.connections,
            self.streams.div_ceil(MAX_CALLS_PER_CONNECTION)
        );
        Ok(())
    }
}

/// Longest time and highest rate that make sense; they keep sums of them far from overflowing.
const MAX_NUMBER: f64 = 1e6;

pub(crate) fn positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if number > 0.0 && number <= MAX_NUMBER => Ok(number),
        _ => Err(format!("{text:?} is not a number above 0 and up to {MAX_NUMBER}")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn load(arguments: &str) -> Result<LoadArgs, clap::Error> {
        let words = ["titan-bench", "load"].into_iter().chain(arguments.split_whitespace());
        Args::try_parse_from(words).map(|args| match args.command {
            Command::Load(load) => load,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }

    fn engine(arguments: &str) -> Result<EngineArgs, clap::Error> {
        EngineArgs::try_parse_from(["engine"].into_iter().chain(arguments.split_whitespace()))
    }

    #[test]
    fn the_matrix_takes_longer_a_round_and_has_fewer() {
        let args = engine("").unwrap();
        assert_eq!((args.rounds, args.matrix), (18, false));
        let args = engine("--matrix").unwrap();
        assert_eq!((args.rounds, args.contexts), (6, vec![300, 1000]));
        assert_eq!(engine("--matrix --rounds 3 --contexts 64,128").unwrap().contexts, [64, 128]);
    }

    #[test]
    fn what_belongs_to_one_kind_of_measurement_is_refused_for_the_other() {
        for wrong in ["--contexts 300", "--publish x", "--llama-server x", "--matrix --prompt x", "--matrix --assert"] {
            assert!(engine(wrong).is_err(), "{wrong}");
        }
        assert!(engine("--matrix --contexts 63").is_err(), "a prompt has a system message, which takes room");
    }

    #[test]
    fn load_defaults_to_a_thousand_streams_of_fifty_tokens_a_second_over_both_wires() {
        let args = load("").unwrap();
        assert_eq!((args.streams, args.rate, args.connections), (1000, 50.0, 10));
        assert_eq!(args.wire.list(), [Wire::Grpc, Wire::Quic]);
        assert!(!args.plaintext);
        args.validate().unwrap();
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused() {
        for wrong in
            ["--rate 0", "--rate NaN", "--rate=-1", "--seconds inf", "--streams 0", "--connections 0", "--wire tcp"]
        {
            assert!(load(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn more_streams_than_a_connection_takes_are_refused_with_the_number_that_will_do() {
        let error = load("--streams 5000 --connections 2").unwrap().validate().unwrap_err().to_string();
        assert!(error.contains("--connections 5"), "{error}");
        load("--streams 5000 --connections 5").unwrap().validate().unwrap();
    }

    #[test]
    fn the_processes_that_are_started_are_not_in_the_help() {
        use clap::CommandFactory as _;
        let help = Args::command().render_long_help().to_string();
        assert!(!help.contains("synthetic-agent") && !help.contains("bench-coordinator"));
    }
}
