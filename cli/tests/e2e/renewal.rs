//! Certificates that change while servers run.

use std::{fs, time::Instant};

use crate::support::{PATIENCE, POLL, Process, User, stderr};

#[test]
fn certificates_of_a_new_ca_are_used_without_a_restart() {
    let (user, other) = (User::new(), User::new());
    for user in [&user, &other] {
        assert!(user.output(["certs", "init"]).status.success());
    }
    let start = |arguments: &str, grpc: &str| {
        let mut command = user.titan(arguments.split(' '));
        command.env("COORDINATOR_ENDPOINT", grpc).env("TITAN_CHECK_CERTS", "1s");
        Process::spawn(command, user.dir.path()).0
    };
    let mut coord = start("coord --http-port 0 --grpc-port 0 --token-algorithm EdDSA", "");
    let ready = coord.logged("coordinator ready");
    let port = ready["http"].as_str().unwrap().rsplit_once(':').unwrap().1.to_owned();
    let mut agent = start("agent --engine synthetic --rate 0 --agent-port 0", ready["grpc"].as_str().unwrap());
    agent.logged("registered");

    // Both the coordinator's port and the agent's show a certificate to this client, and check its own.
    let url = format!("https://localhost:{port}");
    let run = |user: &User| user.output(["run", "--coordinator", &url, "--wire", "quic", "--max-tokens", "5", "hello"]);
    let before = run(&user);
    assert!(before.status.success(), "{}", stderr(&before));
    assert!(!run(&other).status.success(), "this CA is another one");

    for file in [user.certs().ca_pem(), user.certs().ca_key()] {
        fs::copy(other.certs().path().join(file.file_name().unwrap()), file).unwrap();
    }
    let changed = Instant::now();
    while let after = run(&other)
        && !after.status.success()
    {
        assert!(changed.elapsed() < PATIENCE, "{}\n{}\n{}", stderr(&after), coord.log(), agent.log());
        std::thread::sleep(POLL);
    }
    for process in [&mut agent, &mut coord] {
        process.signal("TERM");
        assert!(process.end().success(), "{}", process.log());
    }
}
