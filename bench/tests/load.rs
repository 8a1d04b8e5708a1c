//! `titan-bench load` as a program: small, so that it says nothing of speed.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{BufRead as _, BufReader, Lines},
    path::Path,
    process::{Child, ChildStderr, Command, Stdio},
    time::{Duration, Instant},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_titan-bench");

fn load(arguments: &[&str], out: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("load").args(arguments).arg("--out").arg(out);
    command
}

fn results(out: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(out).unwrap()).unwrap()
}

#[test]
fn both_wires_deliver_every_token_once() {
    let dir = tempfile::tempdir().unwrap();
    for security in [None, Some("--plaintext")] {
        let out = dir.path().join("results.json");
        let settings = ["--streams", "20", "--connections", "3", "--seconds", "1", "--ramp", "0.5"];
        let settings: Vec<&str> = settings.into_iter().chain(security).collect();
        let output = load(&settings, &out).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let table = String::from_utf8(output.stdout).unwrap();
        assert!(table.contains("gRPC") && table.contains("QUIC"), "{table}");

        let report = results(&out);
        assert_eq!((&report["bench"], &report["interrupted"]), (&"load".into(), &false.into()));
        assert_eq!(report["settings"]["streams"], 20);
        let wires = report["results"].as_array().unwrap();
        assert_eq!(wires.len(), 2);
        for wire in wires {
            // 2.5 s to the end of the window at 50 tokens/s, and one more, of each stream.
            assert_eq!(wire["tokens_received"], 20 * 126, "{}", wire["wire"]);
            for fault in ["tokens_lost", "tokens_duplicated", "streams_failed", "streams_unfinished"] {
                assert_eq!(wire[fault], 0, "{fault} over {}", wire["wire"]);
            }
            assert!(wire["lags"]["transit"]["count"].as_u64().unwrap() > 0);
            assert!(wire["agent_cpu_s_per_million_tokens"].as_f64().unwrap() > 0.0);
        }
    }
}

/// A measurement that would go on for minutes, and the agent's process id.
struct Long {
    child: Child,
    agent: u32,
    // Both must be there as long as the program writes.
    _dir: tempfile::TempDir,
    _stderr: Lines<BufReader<ChildStderr>>,
}

/// Starts one and waits until it measures.
fn start_long() -> Long {
    let dir = tempfile::tempdir().unwrap();
    let settings = ["--streams", "2", "--connections", "1", "--seconds", "600", "--ramp", "0.1", "--wire", "quic"];
    let mut child = load(&settings, &dir.path().join("out.json")).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(stderr.by_ref().map_while(Result::ok).any(|line| line.contains("measuring")));
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id()));
    // The file is missing where the kernel was built without it; the parent's id is in every process' status too.
    let agent = children.ok().and_then(|list| list.trim().parse().ok()).unwrap_or_else(|| child_of(child.id()));
    Long { child, agent, _dir: dir, _stderr: stderr }
}

fn child_of(parent: u32) -> u32 {
    let is_child = |id: &u32| {
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("PPid:").is_some_and(|id| id.trim() == parent.to_string()))
    };
    let ids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.into_iter().find(is_child).unwrap()
}

fn ends(process: u32) -> bool {
    let patience = Instant::now() + Duration::from_secs(60);
    while Instant::now() < patience {
        // A zombie has ended: who inherits it has only not asked yet.
        match fs::read_to_string(format!("/proc/{process}/stat")) {
            Ok(stat) if !stat.contains(") Z ") => std::thread::sleep(Duration::from_millis(20)),
            _ => return true,
        }
    }
    false
}

fn send(signal: &str, process: u32) {
    assert!(Command::new("kill").args([signal, &process.to_string()]).status().unwrap().success());
}

#[test]
fn ctrl_c_leaves_no_process() {
    let mut long = start_long();
    send("-INT", long.child.id());
    assert_eq!(long.child.wait().unwrap().code(), Some(130));
    assert!(ends(long.agent));
}

#[test]
fn a_killed_parent_takes_the_agent_with_it() {
    let mut long = start_long();
    long.child.kill().unwrap();
    long.child.wait().unwrap();
    assert!(ends(long.agent));
}
