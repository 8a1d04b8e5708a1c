//! `titan coord` and `titan agent` as processes of their own.

use serde_json::Value;

use crate::support::{Process, User, stderr, stdout, synthetic_text};

/// A coordinator on free ports: the process, REST's URL, and gRPC's address.
pub(crate) fn coordinator(user: &User) -> (Process, String, String) {
    let command = user.titan("coord --http-port 0 --grpc-port 0 --token-algorithm EdDSA".split(' '));
    let (mut process, _) = Process::spawn(command, user.dir.path());
    let ready: Value = process.logged("coordinator ready");
    let text = |field: &str| ready[field].as_str().unwrap().to_owned();
    (process, format!("http://{}", text("http")), text("grpc"))
}

#[test]
fn a_coordinator_and_agents_find_each_other_by_their_flags() {
    let user = User::new();
    let (mut coord, rest, grpc) = coordinator(&user);
    let mut agents: Vec<Process> = ["agent-1", "agent-2"]
        .iter()
        .map(|id| {
            let fixed = "agent --engine synthetic --rate 0 --agent-port 0";
            let mut command = user.titan(fixed.split(' '));
            // By variable, as in a container.
            command.env("AGENT_ID", id).env("COORDINATOR_ENDPOINT", &grpc).env("MAX_CONCURRENT_JOBS", "2");
            Process::spawn(command, user.dir.path()).0
        })
        .collect();
    for agent in &mut agents {
        agent.logged("registered");
    }
    let done = user.output(["run", "--coordinator", &rest, "--wire", "quic", "--max-tokens", "5", "hello"]);
    assert!(done.status.success(), "{}", stderr(&done));
    assert_eq!(stdout(&done), synthetic_text(5) + "\n");
    for process in agents.iter_mut().chain([&mut coord]) {
        process.signal("TERM");
        assert!(process.end().success(), "{}", process.log());
    }
}

#[test]
fn an_agent_serves_no_model_that_it_does_not_have() {
    let user = User::new();
    let refused = user.output("agent --engine synthetic --rate 0 --agent-port 0 --supported-models llama3".split(' '));
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        stderr(&refused).contains("llama3") && stderr(&refused).contains("SUPPORTED_MODELS"),
        "{}",
        stderr(&refused)
    );
}
