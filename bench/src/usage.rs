//! What a process has used, and what has crossed the loopback interface.

use std::{fs, io};

use serde::{Deserialize, Serialize};

/// What a process has used until a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// CPU time in its own code.
    pub(crate) user_s: f64,
    /// CPU time in the kernel for it.
    pub(crate) system_s: f64,
    /// Times that a thread gave the CPU up: waits.
    pub(crate) voluntary_switches: i64,
    /// Times that the CPU was taken from a thread: crowding.
    pub(crate) involuntary_switches: i64,
    /// Memory resident now.
    pub(crate) resident_bytes: u64,
}

impl Usage {
    /// Of this process, now.
    pub(crate) fn now() -> io::Result<Self> {
        let mut raw = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: `raw` is a rusage to write to, and all its bytes are valid from the start.
        let raw = unsafe {
            if libc::getrusage(libc::RUSAGE_SELF, raw.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            raw.assume_init()
        };
        Ok(Self {
            user_s: seconds(raw.ru_utime),
            system_s: seconds(raw.ru_stime),
            voluntary_switches: raw.ru_nvcsw,
            involuntary_switches: raw.ru_nivcsw,
            resident_bytes: resident_bytes(&fs::read_to_string("/proc/self/status")?).unwrap_or(0),
        })
    }

    /// Of these processes and all that descend from them, now. A process that has ended counts nothing. Switches are not counted.
    pub(crate) fn of_processes(processes: &[u32]) -> io::Result<Self> {
        let mut sum = Self::default();
        for process in with_descendants(processes)? {
            let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
            let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
            let (user_s, system_s) = Stat::parse(&stat).map_or((0.0, 0.0), |stat| (stat.user_s, stat.system_s));
            let resident_bytes = resident_bytes(&status).unwrap_or(0);
            sum = sum.and(&Self { user_s, system_s, resident_bytes, ..Self::default() });
        }
        Ok(sum)
    }

    /// Both together.
    pub(crate) fn and(&self, other: &Self) -> Self {
        Self {
            user_s: self.user_s + other.user_s,
            system_s: self.system_s + other.system_s,
            voluntary_switches: self.voluntary_switches + other.voluntary_switches,
            involuntary_switches: self.involuntary_switches + other.involuntary_switches,
            resident_bytes: self.resident_bytes + other.resident_bytes,
        }
    }

    /// CPU time in all.
    pub(crate) fn cpu_s(&self) -> f64 {
        self.user_s + self.system_s
    }

    /// What was used since `earlier`; the memory is that of now.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self {
            user_s: self.user_s - earlier.user_s,
            system_s: self.system_s - earlier.system_s,
            voluntary_switches: self.voluntary_switches - earlier.voluntary_switches,
            involuntary_switches: self.involuntary_switches - earlier.involuntary_switches,
            resident_bytes: self.resident_bytes,
        }
    }
}

/// What is used of proc_pid_stat(5).
#[derive(Clone, Copy, Debug, PartialEq)]
struct Stat {
    parent: u32,
    user_s: f64,
    system_s: f64,
}

impl Stat {
    fn parse(line: &str) -> Option<Self> {
        // The name, in parentheses, may hold anything, parentheses too. After it: state (3), parent (4), … user (14), system (15).
        let (_, after) = line.rsplit_once(')')?;
        let fields: Vec<&str> = after.split_whitespace().collect();
        let seconds = |at: usize| Some(fields.get(at)?.parse::<u64>().ok()? as f64 / ticks_per_second());
        Some(Self { parent: fields.get(1)?.parse().ok()?, user_s: seconds(11)?, system_s: seconds(12)? })
    }
}

fn ticks_per_second() -> f64 {
    // SAFETY: it takes a number and gives one.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    // What Linux has on every platform.
    if ticks > 0 { ticks as f64 } else { 100.0 }
}

fn with_descendants(processes: &[u32]) -> io::Result<Vec<u32>> {
    let mut found = processes.to_vec();
    if found.is_empty() {
        return Ok(found);
    }
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(process) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        parents.extend(Stat::parse(&stat).map(|stat| (process, stat.parent)));
    }
    let mut at = 0;
    while let Some(&parent) = found.get(at) {
        found.extend(parents.iter().filter(|&&(_, of)| of == parent).map(|&(process, _)| process));
        at += 1;
    }
    Ok(found)
}

fn seconds(time: libc::timeval) -> f64 {
    time.tv_sec as f64 + time.tv_usec as f64 / 1e6
}

/// `VmRSS:  1234 kB` of proc_pid_status(5).
fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
}

/// What has crossed the loopback interface, of every process on the machine. A packet that the kernel would cut up only on a real
/// network (segmentation offload) counts as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Loopback {
    /// Headers of IP and above included.
    pub(crate) bytes: u64,
    pub(crate) packets: u64,
}

impl Loopback {
    /// Until now; `None` where the system does not say.
    pub(crate) fn now() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/net/dev").ok()?)
    }

    /// What has crossed since `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self { bytes: self.bytes.saturating_sub(earlier.bytes), packets: self.packets.saturating_sub(earlier.packets) }
    }

    fn parse(table: &str) -> Option<Self> {
        let line = table.lines().find_map(|line| line.trim().strip_prefix("lo:"))?;
        let mut received = line.split_whitespace().map_while(|word| word.parse().ok());
        Some(Self { bytes: received.next()?, packets: received.next()? })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn work_shows_in_the_usage() {
        let before = Usage::now().unwrap();
        while Usage::now().unwrap().since(&before).cpu_s() < 0.01 {}
        assert!(Usage::now().unwrap().resident_bytes > 0);
    }

    #[test]
    fn the_usage_of_children_is_found() {
        // A shell and a child of its own.
        let mut shell = std::process::Command::new("sh").args(["-c", "sleep 60 & wait"]).spawn().unwrap();
        let all = loop {
            let all = with_descendants(&[shell.id()]).unwrap();
            if all.len() == 2 {
                break all;
            }
        };
        assert!(Usage::of_processes(&[shell.id()]).unwrap().resident_bytes > 0);
        for process in all {
            let _ = std::process::Command::new("kill").arg(process.to_string()).status();
        }
        shell.wait().unwrap();
        assert_eq!(Usage::of_processes(&[shell.id()]).unwrap(), Usage::default(), "it has ended");
    }

    #[test]
    fn a_process_may_have_any_name() {
        let line = "42 (a ) b) S 7 1 1 0 -1 4 0 0 0 0 150 50 0 0 20 0 1 0 9 0 0";
        assert_eq!(Stat::parse(line).map(|stat| (stat.parent, stat.user_s > stat.system_s)), Some((7, true)));
        assert_eq!(Stat::parse("42 x"), None);
    }

    #[test]
    fn the_memory_is_read_in_bytes() {
        assert_eq!(resident_bytes("Name:\tx\nVmRSS:\t    1234 kB\nThreads:\t1\n"), Some(1234 * 1024));
        assert_eq!(resident_bytes("Name:\tx\n"), None);
    }

    #[test]
    fn loopback_is_found_among_the_interfaces() {
        let table = "Inter-|   Receive\n face |bytes    packets errs\n  eth0: 1 2 0 0 0 0 0 0 3 4\n    lo: 777     8    0    0 0 0 0 0 777 8\n";
        assert_eq!(Loopback::parse(table), Some(Loopback { bytes: 777, packets: 8 }));
        assert_eq!(Loopback::parse("eth0: 1 2"), None);
    }
}
