//! `titan-bench net` as a program: small, so that it says nothing of speed. What needs root says so where there is none.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::HashSet,
    fs,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use crate::support::has_network;

const PROGRAM: &str = env!("CARGO_BIN_EXE_titan-bench");
const PATIENCE: Duration = Duration::from_secs(60);

fn net(arguments: &str, out: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("net").args(arguments.split_whitespace()).arg("--out").arg(out);
    command
}

fn output(arguments: &str, out: &Path) -> Output {
    let output = net(arguments, out).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// One kind of record.
fn samples(out: &Path, kind: &str) -> Vec<serde_json::Value> {
    let lines = fs::read_to_string(out.join("samples.jsonl")).unwrap();
    let records = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    records.filter(|record| record["kind"] == kind).collect()
}

fn run(out: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(out.join("run.json")).unwrap()).unwrap()
}

#[test]
fn every_token_of_every_subject_arrives_once_over_a_network_that_is_what_it_is_said_to_be() {
    if !has_network() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("results");
    let table = output(
        "--quick --only streams,starts --rtt 20 --loss 0,5 --repetitions 2 --seconds 2 --starts 1 --events none",
        &out,
    );
    assert!(String::from_utf8(table.stdout).unwrap().contains("Titan QUIC"));
    assert!(fs::read_to_string(out.join("report.html")).unwrap().contains("Titan QUIC"));

    let streams = samples(&out, "stream");
    let subjects: HashSet<&str> = streams.iter().map(|stream| stream["subject"].as_str().unwrap()).collect();
    assert!(subjects.len() >= 9 && subjects.contains("titan-quic-plain"), "{subjects:?}");
    for stream in &streams {
        let delivery = &stream["delivery"];
        assert!(stream["failed"].is_null(), "{}: {}", stream["subject"], stream["failed"]);
        assert_eq!(
            (&delivery["received"], &delivery["lost"], &delivery["duplicated"]),
            (&100.into(), &0.into(), &0.into())
        );
        let lossy = stream["conditions"]["loss"]["model"] != "none";
        assert_eq!(stream["to_client"]["lost_packets"].as_u64() > Some(0), lossy, "{}", stream["subject"]);
        assert!(stream["to_client"]["bytes"].as_u64() > Some(100 * 12));
    }
    // The same seed for every subject, another for every repetition.
    let seeds: HashSet<u64> = streams.iter().map(|stream| stream["seed"].as_u64().unwrap()).collect();
    assert_eq!(seeds.len(), 2 * 2);
    for check in samples(&out, "check") {
        // A busy machine may make the path slower than it should be, never faster; and it loses nothing more.
        assert!(!check["marked"].as_str().unwrap_or_default().contains("lost"), "{check}");
        assert!(check["ping_rtt_ms"].as_f64() >= check["conditions"]["rtt_ms"].as_f64(), "{check}");
    }
    for start in samples(&out, "start") {
        assert!(start["failed"].is_null(), "{}: {}", start["subject"], start["failed"]);
        let (rtt_ms, ttft_ms) = (start["conditions"]["rtt_ms"].as_f64().unwrap(), start["ttft_ms"].as_f64().unwrap());
        assert!(ttft_ms >= rtt_ms, "{start}");
    }
}

#[test]
fn an_agent_that_is_killed_ends_a_stream_or_another_agent_goes_on_with_it() {
    if !has_network() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("results");
    output(
        "--only streams --events agent-killed --subjects titan-quic,titan-grpc,tonic --rtt 20 --seconds 6 --repetitions 2",
        &out,
    );
    let streams = samples(&out, "stream");
    assert_eq!(streams.len(), 2 * 2, "tonic has no agents: {streams:?}");
    for stream in &streams {
        let (delivery, subject) = (&stream["delivery"], &stream["subject"]);
        assert_eq!(stream["conditions"]["event"], "agent_killed");
        assert_eq!((&delivery["lost"], &delivery["duplicated"]), (&0.into(), &0.into()), "{subject}");
        let received = delivery["received"].as_u64().unwrap();
        assert!(received > 0, "{subject}: the agent was killed before it said anything: {}", stream["failed"]);
        match stream["recovery_ms"].as_f64() {
            Some(_) => assert!(stream["failed"].is_null() && received == 300, "{stream}"),
            None => assert!(stream["failed"].is_string() && received < 300, "{stream}"),
        }
    }
}

#[test]
fn a_client_that_comes_back_is_measured_as_often_as_asked() {
    if !has_network() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("results");
    output("--only returning --subjects titan-quic,tonic --returns 3 --repetitions 2", &out);
    let starts = samples(&out, "start");
    assert_eq!(starts.len(), 2 * 3 * 2, "{starts:?}");
    for start in &starts {
        assert_eq!((&start["state"], start["conditions"]["rtt_ms"].as_f64()), (&"returning".into(), Some(100.0)));
        assert!(start["failed"].is_string() || start["ttft_ms"].as_f64() >= Some(100.0), "{start}");
    }
}

#[test]
fn the_self_test_compares_titan_with_itself() {
    if !has_network() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("results");
    // By chance alone it finds a difference in one run of twenty: which of the two it says is not asserted, that it has enough pairs to
    // say it, and ends accordingly, is. That it finds a real difference: report/tests.rs.
    let network =
        "--rtt 20 --loss 1 --events none --congestion-control bbr --token-rate 50 --streams 1 --bandwidth 100";
    let output =
        net(&format!("--self-test --only streams --repetitions 10 --seconds 2 {network}"), &out).output().unwrap();
    let subjects: HashSet<String> =
        samples(&out, "stream").iter().map(|stream| stream["subject"].as_str().unwrap().to_owned()).collect();
    assert_eq!(subjects, HashSet::from(["titan-quic".to_owned(), "titan-quic-again".to_owned()]));
    let table = String::from_utf8(output.stdout).unwrap();
    let (passed, failed) = (table.contains("Self-test: Passed"), table.contains("Self-test: FAILED"));
    assert!(passed != failed, "{table}");
    assert_eq!(output.status.success(), passed, "{table}");
}

#[test]
fn ctrl_c_keeps_what_was_measured_and_leaves_nothing_behind() {
    if !has_network() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("results");
    let many = "--only streams --rtt 10,20,30,40,50 --loss 0,1,2 --repetitions 1 --seconds 1 --events none";
    let mut child = net(many, &out).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(stderr.any(|line| line.starts_with("3 of ")));
    let processes = descendants(child.id());
    assert!(processes.len() > 10, "{processes:?}");
    let namespaces: HashSet<_> = processes.iter().filter_map(|&process| namespace(process)).collect();
    assert_eq!(namespaces.len(), 2, "two hosts");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    // It still writes; nobody may break its pipe.
    stderr.for_each(drop);
    assert_eq!(child.wait().unwrap().code(), Some(130));

    assert_eq!(run(&out)["interrupted"], true);
    assert!(!samples(&out, "stream").is_empty());
    assert!(out.join("report.html").exists());
    // Processes that were killed may take a moment to go.
    let begun = Instant::now();
    while all_processes().into_iter().filter_map(namespace).any(|held| namespaces.contains(&held)) {
        assert!(begun.elapsed() < PATIENCE, "a process is left in a host's namespace");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn without_privileges_it_says_what_it_needs_and_offers_what_it_can_do_without() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("results");
    let refused = unprivileged(net("--quick", &out)).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(message.contains("root") && message.contains("--loopback"), "{message}");

    let subset = "--loopback --subjects titan-quic,titan-grpc,sse-http2 --only starts --repetitions 2 --starts 1";
    let done = unprivileged(net(subset, &out)).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let starts = samples(&out, "start");
    assert_eq!(starts.len(), 3 * 2 * 3, "subjects, repetitions, states");
    assert!(starts.iter().all(|start| start["failed"].is_null()), "{starts:?}");
}

#[test]
fn nonsense_is_refused_before_anything_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    for (wrong, says) in [
        ("--loss 99", "percent from 0 to 50"),
        ("--rtt minus", "not a number"),
        ("--subjects http4", "possible values"),
        ("--repetitions 0", "1..=20"),
    ] {
        let output = net(wrong, &dir.path().join("results")).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && message.contains(says), "{wrong}: {message}");
    }
    assert!(!dir.path().join("results").exists());
}

/// The same command without the right to make network namespaces, whoever runs the test.
fn unprivileged(mut command: Command) -> Command {
    const CAP_NET_ADMIN: libc::c_ulong = 12;
    const CAP_SYS_ADMIN: libc::c_ulong = 21;
    // SAFETY: between fork and exec only system calls that are async-signal-safe. Who lacks the right to drop one has none to drop.
    unsafe {
        command.pre_exec(|| {
            for capability in [CAP_NET_ADMIN, CAP_SYS_ADMIN] {
                libc::prctl(libc::PR_CAPBSET_DROP, capability);
            }
            Ok(())
        });
    }
    command
}

fn all_processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

fn descendants(process: u32) -> Vec<u32> {
    let parent = |process: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let mut found = vec![process];
    let all: Vec<(u32, u32)> = all_processes().into_iter().filter_map(|it| Some((it, parent(it)?))).collect();
    let mut at = 0;
    while let Some(&of) = found.get(at) {
        found.extend(all.iter().filter(|&&(_, parent)| parent == of).map(|&(process, _)| process));
        at += 1;
    }
    found.split_off(1)
}

/// The network namespace of a process that lives.
fn namespace(process: u32) -> Option<String> {
    Some(fs::read_link(format!("/proc/{process}/ns/net")).ok()?.to_string_lossy().into_owned())
}
