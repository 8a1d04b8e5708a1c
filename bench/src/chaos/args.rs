//! The command line of `titan-bench chaos`.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use serde::Serialize;

/// Settings of `titan-bench chaos`.
#[derive(Clone, Debug, Parser, Serialize)]
#[command(
    after_help = "Needs root (network namespaces, TUN devices). The whole takes about five minutes on two cores."
)]
pub(crate) struct ChaosArgs {
    /// The same seed, the same luck on every path and the same moments for what happens
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Streams of each combination, at once
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) streams: u32,
    /// Tokens of each stream
    #[arg(long, default_value_t = 150, value_parser = clap::value_parser!(u32).range(20..=10_000))]
    pub(crate) tokens: u32,
    /// Tokens per second of each stream
    #[arg(long, default_value_t = 50.0, value_parser = rate)]
    pub(crate) rate: f64,
    /// Four combinations only, for a look
    #[arg(long, conflicts_with = "only")]
    pub(crate) quick: bool,
    /// These combinations only, by their numbers in the table
    #[arg(long, value_delimiter = ',', value_name = "NUMBERS")]
    pub(crate) only: Vec<u32>,
    /// Where the results go as JSON
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub(crate) out: Option<PathBuf>,
}

/// What a hidden child process is told.
#[derive(Clone, Debug, Parser)]
pub(crate) struct ChaosServerArgs {
    /// What it is.
    #[arg(long, value_enum)]
    pub(crate) part: Part,
    /// An agent's name
    #[arg(long, default_value = "")]
    pub(crate) name: String,
    /// An agent's port
    #[arg(long, default_value_t = 0)]
    pub(crate) port: u16,
    /// Tokens per second of an agent's streams
    #[arg(long, default_value_t = 50.0, value_parser = rate)]
    pub(crate) rate: f64,
    /// Directory with certificates and keys
    #[arg(long)]
    pub(crate) lab: PathBuf,
}

/// A part of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    Coordinator,
    Agent,
}

fn rate(text: &str) -> Result<f64, String> {
    /// More than any model makes for one reader.
    const MOST: f64 = 1000.0;
    let rate = text.parse().ok().filter(|rate| (1.0..=MOST).contains(rate));
    rate.ok_or_else(|| format!("{text:?} is not a number from 1 to {MOST}"))
}
