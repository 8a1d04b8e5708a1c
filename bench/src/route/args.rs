//! What `titan-bench route` is told.

use std::path::PathBuf;

use clap::Parser;
use serde::Serialize;
use titan_transport::token::Algorithm;

/// Settings of `titan-bench route`.
#[derive(Clone, Debug, Parser, Serialize)]
pub(crate) struct RouteArgs {
    /// Numbers of registered agents
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 10_000], value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_AGENTS)))]
    pub(crate) agents: Vec<u32>,
    /// How the session tokens are signed: RS256, EdDSA, ES256
    #[arg(long, value_delimiter = ',', default_values_t = [Algorithm::RS256, Algorithm::EdDSA])]
    pub(crate) algorithms: Vec<Algorithm>,
    /// Keep-alive connections, each with one request at a time
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) connections: u32,
    /// Times that everything is measured, each in another order. Six or more give a 95 % interval
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repetitions: u32,
    /// Seconds of each load: one as fast as it goes, one at half of that rate
    #[arg(long, default_value_t = 2.0, value_parser = crate::args::positive)]
    pub(crate) seconds: f64,
    /// Of the random times at which requests are due
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Where the results go as JSON
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub(crate) out: Option<PathBuf>,
    /// A document whose figures are replaced by these, between two lines `<!-- titan-bench -->`
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub(crate) publish: Option<PathBuf>,
}

/// What `route` tells the coordinator that it starts.
#[derive(Clone, Debug, Parser)]
pub(crate) struct BenchCoordinatorArgs {
    /// Directory with the certificates
    #[arg(long)]
    pub(crate) lab: PathBuf,
    /// How it signs
    #[arg(long)]
    pub(crate) algorithm: Algorithm,
}

/// A coordinator remembers 20,000.
const MAX_AGENTS: u32 = 20_000;
/// Leases last an hour and are not renewed; the rest is for registering.
const MAX_MINUTES: f64 = 50.0;

impl RouteArgs {
    /// Every algorithm with every number of agents.
    pub(crate) fn cases(&self) -> Vec<(Algorithm, u32)> {
        let agents = &self.agents;
        self.algorithms.iter().flat_map(|&algorithm| agents.iter().map(move |&agents| (algorithm, agents))).collect()
    }

    /// What no single argument shows.
    pub(crate) fn validate(&self) -> anyhow::Result<()> {
        let cases = self.cases().len();
        let minutes = cases as f64 * f64::from(self.repetitions) * 2.0 * self.seconds / 60.0;
        anyhow::ensure!(
            minutes <= MAX_MINUTES,
            "{cases} cases, {} times 2 loads of {} s, take {minutes:.0} minutes, and the agents' leases end after \
             {MAX_MINUTES}: give fewer --repetitions or --seconds",
            self.repetitions,
            self.seconds
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn parse(arguments: &str) -> Result<RouteArgs, clap::Error> {
        RouteArgs::try_parse_from(["route"].into_iter().chain(arguments.split_whitespace()))
    }

    #[test]
    fn the_defaults_are_three_fleets_and_two_algorithms() {
        let args = parse("").unwrap();
        assert_eq!(args.agents, [1, 100, 10_000]);
        assert_eq!(args.algorithms, [Algorithm::RS256, Algorithm::EdDSA]);
        args.validate().unwrap();
    }

    #[test]
    fn lists_are_separated_by_commas() {
        let args = parse("--agents 5,7 --algorithms es256").unwrap();
        assert_eq!((args.agents, args.algorithms), (vec![5, 7], vec![Algorithm::ES256]));
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        for wrong in ["--agents 0", "--agents 20001", "--algorithms HS256", "--connections 0", "--seconds 0"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        let error = parse("--seconds 300").unwrap().validate().unwrap_err().to_string();
        assert!(error.contains("--repetitions"), "{error}");
    }
}
