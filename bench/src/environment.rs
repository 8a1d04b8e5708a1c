//! Where a measurement was taken: without this a figure says nothing.

use std::{
    fs,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// Machine, system and build.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Environment {
    /// When it began, in seconds since 1970.
    pub(crate) started_at: u64,
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_bytes: u64,
    pub(crate) kernel: String,
    pub(crate) tcp_congestion_control: String,
    /// Runnable threads of the last minute, on average, before the measurement: well above 0 means that others used the machine.
    pub(crate) load_average: f64,
    pub(crate) version: String,
    /// The commit of the working directory; `+changes` where it has uncommitted ones.
    pub(crate) commit: String,
    /// `release`, or `dev`: Titan's own code and parts of its dependencies less optimised.
    pub(crate) profile: String,
}

impl Environment {
    /// Of this machine, now. What the system does not say is `unknown`.
    pub(crate) fn read() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let known = |text: &str| if text.trim().is_empty() { "unknown".to_owned() } else { text.trim().to_owned() };
        Self {
            started_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            cpu: known(field(&text("/proc/cpuinfo"), "model name").unwrap_or_default()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: field(&text("/proc/meminfo"), "MemTotal").and_then(kilobytes).unwrap_or(0),
            kernel: known(&text("/proc/sys/kernel/osrelease")),
            tcp_congestion_control: known(&text("/proc/sys/net/ipv4/tcp_congestion_control")),
            load_average: text("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: commit(),
            profile: if cfg!(debug_assertions) { "dev" } else { "release" }.to_owned(),
        }
    }

    /// One line under a table.
    pub(crate) fn summary(&self) -> String {
        format!(
            "{}, {} cores, {:.0} GB, Linux {}, {} build of {}, load average before {:.1}",
            self.cpu,
            self.cores,
            self.memory_bytes as f64 / 1e9,
            self.kernel,
            self.profile,
            self.commit,
            self.load_average
        )
    }
}

/// `name : value` or `name: value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == name).map(|(_, value)| value)
}

fn kilobytes(value: &str) -> Option<u64> {
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
}

/// Digits that name a commit uniquely enough.
const COMMIT_DIGITS: &str = "--short=12";

fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", COMMIT_DIGITS, "HEAD"]) else { return "unknown".to_owned() };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| !changes.is_empty());
    if changed { format!("{commit}+changes") } else { commit }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_first_value_of_a_name_is_found() {
        let cpuinfo = "processor\t: 0\nmodel name\t: A CPU: fast\nmodel name\t: Another\n";
        assert_eq!(field(cpuinfo, "model name").unwrap().trim(), "A CPU: fast");
        assert_eq!(field(cpuinfo, "model"), None);
        assert_eq!(field("MemTotal:  16 kB\n", "MemTotal").and_then(kilobytes), Some(16 * 1024));
    }

    #[test]
    fn every_fact_is_there_or_unknown() {
        let environment = Environment::read();
        assert!(environment.cores > 0 && !environment.cpu.is_empty() && !environment.commit.is_empty());
        assert!(environment.summary().contains(&environment.kernel));
    }
}
