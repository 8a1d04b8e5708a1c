//! `titan demo`, where there can be an emulated network.

use std::{
    io::BufRead as _,
    os::unix::process::CommandExt as _,
    process::{Command, Output},
};

use serde_json::Value;

use crate::support::{Process, User, stderr, stdout};

/// Fast and short: the answer takes two seconds, and what happens, happens.
const SMALL: &str = "demo roaming --rtt 20 --loss 1 --tokens 40 --rate 20";

/// `None` where there can be none, which is then said.
fn small(user: &User, more: &[&str]) -> Option<Output> {
    let output = user.output(SMALL.split(' ').chain(more.iter().copied()));
    if output.status.code() == Some(1) && stderr(&output).contains("an emulated network needs") {
        eprintln!("skipped: {}", stderr(&output));
        return None;
    }
    Some(output)
}

#[test]
fn over_quic_the_answer_outlives_the_agent_and_over_grpc_it_does_not_even_outlive_the_address() {
    only_the_second_gets_all(&["--json"], ["grpc", "quic"]);
}

#[test]
fn by_the_proxy_an_openai_client_gets_the_whole_answer_and_straight_from_the_agent_it_does_not() {
    only_the_second_gets_all(&["--json", "--openai"], ["https", "proxy"]);
}

/// Two clients, of which the first does not outlive the change of its address.
fn only_the_second_gets_all(flags: &[&str], sides: [&str; 2]) {
    let user = User::new();
    let Some(output) = small(&user, flags) else { return };
    let lines: Vec<Value> = stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let happened = |name: &str| lines.iter().position(|line| line["event"] == name).unwrap();
    assert!(happened("address-changed") < happened("agent-killed"));
    let figures = lines.last().unwrap();
    assert_eq!(figures["done"], true);
    for side in sides {
        let text: String =
            lines.iter().filter(|line| line["side"] == side).filter_map(|line| line["text"].as_str()).collect();
        assert!(text.starts_with("Alice was beginning "), "{side}: {text}");
        assert_eq!((&figures[side]["lost"], &figures[side]["repeated"]), (&0.into(), &0.into()), "{figures}");
    }
    let [first, second] = sides.map(|side| &figures[side]);
    assert!(first["whole"] == false && first["tokens"].as_u64() < Some(40), "{first}");
    assert!(second["whole"] == true && second["tokens"] == 40, "{second}: {}", stderr(&output));
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn in_a_pipe_it_prints_lines_and_a_table() {
    let user = User::new();
    let Some(output) = small(&user, &[]) else { return };
    let text = stdout(&output);
    for part in
        ["gRPC │ Alice was", "QUIC │ Alice was", "the client's address changes", "the agent is killed", "longest gap"]
    {
        assert!(text.contains(part), "{part:?} is not in\n{text}\n{}", stderr(&output));
    }
    assert!(!text.contains('\x1b'), "no terminal, no colours");
}

#[test]
fn interrupted_it_leaves_nothing_behind() {
    let user = User::new();
    let mut command = user.titan("demo roaming --json".split(' '));
    // Where its own files would be left.
    command.env("TMPDIR", user.dir.path());
    let (mut demo, mut lines) = Process::spawn(command, user.dir.path());
    let mut line = String::new();
    if lines.read_line(&mut line).unwrap() == 0 {
        assert_eq!(demo.end().code(), Some(1));
        assert!(demo.log().contains("an emulated network needs"), "{}", demo.log());
        eprintln!("skipped: {}", demo.log());
        return;
    }
    let children = children_of(demo.pid());
    assert!(children.len() >= 2, "a coordinator and an agent: {children:?}");
    demo.signal("INT");
    assert_eq!(demo.end().code(), Some(130));
    for child in children {
        assert!(!std::path::Path::new(&format!("/proc/{child}")).exists(), "{child} still runs");
    }
    let left = std::fs::read_dir(user.dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with("titan-demo-")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn without_the_rights_it_says_what_is_needed() {
    let user = User::new();
    let mut command = user.titan(SMALL.split(' ').chain(["--json"]));
    if std::fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0) {
        command.uid(NOBODY).gid(NOBODY);
        command.env("TMPDIR", "/tmp").env("TITAN_DATA_DIR", "/tmp");
    }
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => {
            eprintln!("skipped: nobody may not run it here: {error}");
            return;
        }
    };
    match output.status.code() {
        // The system allows everyone user namespaces.
        Some(0) => {}
        code => {
            assert_eq!(code, Some(1), "{}", stderr(&output));
            let text = stderr(&output);
            assert!(text.contains("needs root") && text.contains("/dev/net/tun"), "{text}");
        }
    }
}

const NOBODY: u32 = 65534;

fn children_of(pid: u32) -> Vec<u32> {
    let output = Command::new("ps").args(["-o", "pid=", "--ppid", &pid.to_string()]).output().unwrap();
    stdout(&output).split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}
