//! The command line of `titan-bench net`.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use super::{
    record::{Event, Loss},
    subject::Subject,
};

/// Settings of `titan-bench net`. A list is one dimension of the matrix.
#[derive(Clone, Debug, Parser)]
#[command(
    after_help = "Round trip and loss are combined with each other; the other dimensions vary one at a time, at 100 ms and 1 % (or the\n\
                  first value given). All subjects and repetitions of one combination run side by side, each over a path of its own.\n\
                  Needs root (network namespaces, TUN devices); --loopback does without, and measures what needs no network:\n\
                  starts, CPU and memory."
)]
pub(crate) struct NetArgs {
    /// Ends in under three minutes: few combinations, three short repetitions. Lists that are given still count
    #[arg(long)]
    pub(crate) quick: bool,
    /// Without root: no emulated network, only loopback
    #[arg(long)]
    pub(crate) loopback: bool,
    /// What to measure. Defaults to all
    #[arg(long, value_delimiter = ',', value_enum)]
    pub(crate) only: Vec<Part>,
    /// Whom to measure. Defaults to all that are installed
    #[arg(long, value_delimiter = ',', value_enum)]
    pub(crate) subjects: Vec<Subject>,
    /// Round-trip times in ms. Defaults to 0,20,50,100,200,300
    #[arg(long, value_delimiter = ',', value_parser = within::<10_000>)]
    pub(crate) rtt: Vec<f64>,
    /// Loss in each direction in percent; 5x3 is 5 % in bursts of 3 packets on average. Defaults to 0,0.1,1,2,5,1x3,5x3
    #[arg(long, value_delimiter = ',')]
    pub(crate) loss: Vec<Loss>,
    /// Rates of the link in Mbit/s, with 8 streams. Defaults to 1,10,100
    #[arg(long, value_delimiter = ',', value_parser = above_zero)]
    pub(crate) bandwidth: Vec<f64>,
    /// Tokens per second of each stream. Defaults to 50,20,100
    #[arg(long, value_delimiter = ',', value_parser = above_zero)]
    pub(crate) token_rate: Vec<f64>,
    /// Streams of one client at once. Defaults to 1,8
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) streams: Vec<u32>,
    /// What happens in the middle of the stream. Defaults to all
    #[arg(long, value_delimiter = ',', value_enum)]
    pub(crate) events: Vec<Event>,
    /// Congestion controls of TCP, of those that the kernel has. Defaults to bbr,cubic
    #[arg(long, value_delimiter = ',')]
    pub(crate) congestion_control: Vec<String>,
    /// How often everything is measured, each time with another seed. Six or more give a 95 % interval
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=20))]
    pub(crate) repetitions: Option<u32>,
    /// Length of a stream
    #[arg(long, value_parser = seconds)]
    pub(crate) seconds: Option<f64>,
    /// Starts of each kind in a repetition
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) starts: Option<u32>,
    /// Starts of a client that comes back, in a repetition
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) returns: Option<u32>,
    /// Connections whose memory is measured. Defaults to 1000,10000
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub(crate) connections: Vec<u32>,
    /// The same seed loses the same packets, as far as the subjects send the same
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Titan over QUIC under two names: fails if a difference is found
    #[arg(long)]
    pub(crate) self_test: bool,
    /// Where the results go. Defaults to bench-results/ and the time
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Writes docs/BENCHMARKS.md and the README's figures from the results
    #[arg(long)]
    pub(crate) publish: bool,
}

/// A part of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Time to the first token
    Starts,
    /// Time to the first token of clients that come back, under loss, often
    Returning,
    /// Tokens on their way
    Streams,
    /// CPU time per token
    Cpu,
    /// Memory per connection and stream
    Memory,
    /// What streams leave of a link to a TCP flow that sends all it can
    Fairness,
}

/// What a hidden child process is told.
#[derive(Clone, Debug, Parser)]
pub(crate) struct HostArgs {
    #[arg(long, value_enum)]
    pub(crate) subject: Subject,
    /// Directory with certificates and keys
    #[arg(long)]
    pub(crate) lab: PathBuf,
    /// Tokens per second of each stream; servers only
    #[arg(long, value_parser = above_zero, default_value_t = 50.0)]
    pub(crate) token_rate: f64,
    /// Agents in processes of their own, so that one can be killed; Titan's servers only
    #[arg(long)]
    pub(crate) apart: bool,
    /// Be that agent; Titan's servers only
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=2), conflicts_with = "apart")]
    pub(crate) agent: Option<u8>,
}

/// No token rate or bandwidth beyond this is emulated faithfully.
const MOST: f64 = 10_000.0;
/// Longer streams than an hour show nothing new.
const LONGEST_S: f64 = 3600.0;

fn above_zero(text: &str) -> Result<f64, String> {
    in_range(text, f64::MIN_POSITIVE, MOST)
}

fn within<const MAX: u32>(text: &str) -> Result<f64, String> {
    in_range(text, 0.0, f64::from(MAX))
}

fn seconds(text: &str) -> Result<f64, String> {
    in_range(text, 1.0, LONGEST_S)
}

fn in_range(text: &str, low: f64, high: f64) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if (low..=high).contains(&number) => Ok(number),
        _ if low == f64::MIN_POSITIVE => Err(format!("{text:?} is not a number above 0 and up to {high}")),
        _ => Err(format!("{text:?} is not a number from {low} to {high}")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn lists_are_read_and_nonsense_is_refused() {
        let read = |arguments: &str| NetArgs::try_parse_from(["net"].into_iter().chain(arguments.split_whitespace()));
        let args = read("--rtt 0,50 --loss 1,5x3 --subjects titan-quic,sse-http2 --events address-change").unwrap();
        assert_eq!(args.rtt, [0.0, 50.0]);
        assert_eq!(args.subjects, [Subject::TitanQuic, Subject::SseHttp2]);
        assert_eq!(args.events, [Event::AddressChange]);
        for wrong in
            ["--rtt -1", "--rtt 1e9", "--bandwidth 0", "--streams 0", "--subjects http", "--only all", "--seconds 0"]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
