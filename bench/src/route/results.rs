//! What the coordinator did, in numbers and as a table.

use serde::Serialize;
use titan_transport::token::Algorithm;

use super::drive::Load;
use crate::{
    report::Table,
    stats::{Durations, Interval, median, median_interval},
    usage::Usage,
};

/// One turn of one case.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Sample {
    #[serde(skip)]
    pub(super) algorithm: Algorithm,
    #[serde(skip)]
    pub(super) agents: u32,
    pub(super) repetition: u32,
    /// As fast as it goes.
    pub(super) closed: Load,
    /// What the coordinator used for that.
    pub(super) coordinator: Usage,
    /// Requests a second that were due.
    pub(super) open_rate: f64,
    /// At that rate.
    pub(super) open: Load,
}

impl Sample {
    /// Requests in a second of the coordinator's CPU time, kernel included.
    fn requests_per_cpu_second(&self) -> f64 {
        self.closed.requests as f64 / self.coordinator.cpu_s()
    }
}

/// One case over all its turns.
#[derive(Clone, Debug, Serialize)]
pub(super) struct CaseResult {
    algorithm: Algorithm,
    agents: u32,
    /// Per second of the coordinator's CPU time: what one core does.
    requests_per_core: Estimate,
    /// By the clock; the load generator had its share of the machine.
    requests_per_second: Estimate,
    cpu_us_per_request: Estimate,
    /// At [`Sample::open_rate`].
    latency_p50_ms: Estimate,
    latency_p99_ms: Estimate,
    /// Of all turns together.
    latency: Durations,
    coordinator_resident_bytes: u64,
    samples: Vec<Sample>,
}

/// A median over turns.
#[derive(Clone, Copy, Debug, Serialize)]
struct Estimate {
    median: f64,
    /// `None` where there are too few turns to say.
    interval: Option<Interval>,
}

const CONFIDENCE: f64 = 0.95;

/// One result for each case, in the order in which they first come.
pub(super) fn summarize(samples: Vec<Sample>) -> Vec<CaseResult> {
    let mut cases: Vec<Vec<Sample>> = Vec::new();
    for sample in samples {
        let same = |case: &&mut Vec<Sample>| {
            case.iter().any(|other| (other.algorithm, other.agents) == (sample.algorithm, sample.agents))
        };
        match cases.iter_mut().find(same) {
            Some(case) => case.push(sample),
            None => cases.push(vec![sample]),
        }
    }
    cases.into_iter().filter_map(CaseResult::new).collect()
}

impl CaseResult {
    fn new(samples: Vec<Sample>) -> Option<Self> {
        let last = samples.last()?;
        let mut latency = Durations::new();
        samples.iter().for_each(|sample| latency.add(&sample.open.latency));
        let estimate = |value: fn(&Sample) -> f64| Estimate::new(&samples.iter().map(value).collect::<Vec<_>>());
        Some(Self {
            algorithm: last.algorithm,
            agents: last.agents,
            requests_per_core: estimate(Sample::requests_per_cpu_second),
            requests_per_second: estimate(|sample| sample.closed.requests_per_second()),
            cpu_us_per_request: estimate(|sample| 1e6 / sample.requests_per_cpu_second()),
            latency_p50_ms: estimate(|sample| ms(sample.open.latency.quantile_ns(0.5))),
            latency_p99_ms: estimate(|sample| ms(sample.open.latency.quantile_ns(0.99))),
            latency,
            coordinator_resident_bytes: last.coordinator.resident_bytes,
            samples,
        })
    }
}

impl Estimate {
    fn new(values: &[f64]) -> Self {
        Self { median: median(values), interval: median_interval(values, CONFIDENCE) }
    }

    fn cell(&self, digits: usize) -> String {
        let Self { median, interval } = self;
        match interval {
            Some(Interval { low, high }) => format!("{median:.digits$} ({low:.digits$} to {high:.digits$})"),
            None => format!("{median:.digits$}"),
        }
    }
}

fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// One row for each case.
pub(super) fn table(results: &[CaseResult]) -> Table {
    let mut table = Table::new([
        "tokens",
        "agents",
        "requests/s per core",
        "CPU us/request",
        "requests/s",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "max ms",
        "coordinator MB",
    ]);
    for result in results {
        table.row([
            result.algorithm.to_string(),
            result.agents.to_string(),
            result.requests_per_core.cell(0),
            result.cpu_us_per_request.cell(0),
            result.requests_per_second.cell(0),
            result.latency_p50_ms.cell(2),
            result.latency_p99_ms.cell(2),
            format!("{:.2}", ms(result.latency.quantile_ns(0.999))),
            format!("{:.2}", ms(result.latency.max_ns())),
            format!("{:.0}", result.coordinator_resident_bytes as f64 / 1e6),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn sample(agents: u32, requests: u64, cpu_s: f64) -> Sample {
        let load = || Load { seconds: 2.0, requests, latency: Durations::new(), waited: Durations::new() };
        let coordinator = Usage { user_s: cpu_s, ..Default::default() };
        let open_rate = requests as f64 / 4.0;
        Sample {
            algorithm: Algorithm::EdDSA,
            agents,
            repetition: 0,
            closed: load(),
            coordinator,
            open_rate,
            open: load(),
        }
    }

    #[test]
    fn a_case_is_the_median_of_its_turns() {
        let results =
            summarize(vec![sample(1, 100, 1.0), sample(2, 10, 1.0), sample(1, 300, 1.0), sample(1, 400, 2.0)]);
        assert_eq!(results.iter().map(|result| result.agents).collect::<Vec<_>>(), [1, 2]);
        let first = &results[0];
        assert_eq!((first.requests_per_core.median, first.requests_per_second.median), (200.0, 150.0));
        assert_eq!(first.cpu_us_per_request.median, 5000.0);
        assert!(first.requests_per_core.interval.is_none(), "three turns are too few");
        let json = serde_json::to_value(first).unwrap();
        assert_eq!((&json["algorithm"], json["samples"].as_array().unwrap().len()), (&"EdDSA".into(), 3));
    }

    #[test]
    fn six_turns_have_an_interval() {
        let results = summarize((1..=6).map(|n| sample(1, n * 100, 1.0)).collect());
        assert_eq!(results[0].requests_per_core.cell(0), "350 (100 to 600)");
        assert!(table(&results).markdown().contains("| EdDSA"));
    }
}
