//! Signals, at every moment.

use std::{
    io::{BufRead as _, Read as _},
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command, ExitStatus, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::support::{PATIENCE, POLL, Process, Up, User, first_bytes, signal, stderr, synthetic_text};

/// Moments of a start, and a little after it, at which SIGTERM is sent.
const MOMENTS: u32 = 24;
/// At once.
const WORKERS: usize = 3;

struct Server {
    arguments: &'static str,
    ready: &'static str,
}

const SERVERS: [Server; 3] = [
    // An RSA key takes a while to make, so there is a long start to hit.
    Server { arguments: "coord --http-port 0 --grpc-port 0", ready: "coordinator ready" },
    Server {
        arguments: "agent --engine synthetic --rate 0 --agent-port 0 --coordinator localhost:9",
        ready: "agent ready",
    },
    Server {
        arguments: "up --synthetic 0 --agents 2 --http-port 0 --grpc-port 0 --agent-port 0",
        ready: "registered with",
    },
];

fn ended(child: &mut Child) -> ExitStatus {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if begin.elapsed() > PATIENCE {
            let _ = child.kill();
            panic!("SIGTERM was swallowed");
        }
        std::thread::sleep(POLL);
    }
}

/// How long a start takes on this machine now.
fn start_time(server: &Server) -> Duration {
    let user = User::new();
    let begin = Instant::now();
    let (mut process, _stdout) = Process::spawn(user.titan(server.arguments.split(' ')), user.dir.path());
    process.logged(server.ready);
    begin.elapsed()
}

#[test]
fn sigterm_ends_a_server_at_every_moment_of_its_start() {
    for server in &SERVERS {
        let step = start_time(server) * 5 / 4 / MOMENTS;
        let moments = Mutex::new((0..MOMENTS).rev().collect::<Vec<u32>>());
        std::thread::scope(|scope| {
            for _ in 0..WORKERS {
                scope.spawn(|| {
                    while let Some(moment) = { moments.lock().unwrap().pop() } {
                        // A first start: keys and certificates are made.
                        let user = User::new();
                        let mut command = user.titan(server.arguments.split(' '));
                        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
                        std::thread::sleep(step * moment);
                        signal(child.id(), "TERM");
                        let status = ended(&mut child);
                        // Before it listens the system ends it; then it ends by itself, while it starts or from serving.
                        let expected = status.signal() == Some(15) || matches!(status.code(), Some(0 | 143));
                        assert!(expected, "{} at {:?}: {status}", server.arguments, step * moment);
                    }
                });
            }
        });
    }
}

#[test]
fn a_second_sigterm_ends_what_the_first_lets_finish() {
    let mut up = Up::synthetic(20, &[]);
    let mut run = up.run(["--max-tokens", "100000", "hello"]);
    run.stdin(Stdio::null());
    let (_run, mut text) = Process::spawn(run, up.user.dir.path());
    first_bytes(&mut text);
    up.process.signal("TERM");
    up.process.logged("a second signal stops at once");
    up.process.signal("TERM");
    assert_eq!(up.process.end().code(), Some(143));
}

#[test]
fn sighup_has_servers_read_their_certificates_and_ends_none() {
    let user = User::new();
    assert!(user.output(["certs", "init"]).status.success());
    let start = |arguments: &str| {
        let mut command = user.titan(arguments.split(' '));
        // They look once in a day: only a signal has them look now.
        command.env("TITAN_CHECK_CERTS", "24h");
        Process::spawn(command, user.dir.path())
    };
    let (mut coord, _) = start("coord --http-port 0 --grpc-port 0 --token-algorithm EdDSA");
    let ready = coord.logged("coordinator ready");
    let (http, grpc) = (ready["http"].as_str().unwrap().to_owned(), ready["grpc"].as_str().unwrap().to_owned());
    let (mut agent, _) = start(&format!("agent --engine synthetic --rate 0 --agent-port 0 --coordinator {grpc}"));
    agent.logged("registered");
    let (mut proxy, mut stdout) = start(&format!("proxy --json --listen 127.0.0.1:0 --coordinator http://{http}"));
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    let url = serde_json::from_str::<Value>(&line).unwrap()["url"].as_str().unwrap().to_owned();

    for (role, name) in [("coordinator", "coordinator"), ("agent", "agent-1"), ("client", "cli")] {
        let issued = user.output(["certs", "issue", "--role", role, "--name", name, "--host", "localhost"]);
        assert!(issued.status.success());
    }
    for (process, whose) in
        [(&mut coord, "the coordinator coordinator"), (&mut agent, "the agent agent-1"), (&mut proxy, "this client")]
    {
        process.signal("HUP");
        process.logged(&format!("the certificate of {whose} has changed"));
        process.signal("HUP");
    }
    let address = format!("http://{http}");
    let done = user.output(["run", "--coordinator", &address, "--wire", "quic", "--max-tokens", "5", "hello"]);
    assert!(done.status.success(), "{}", stderr(&done));
    for process in [&mut agent, &mut coord, &mut proxy] {
        assert!(!process.has_ended(), "{}", process.log());
        process.signal("TERM");
        assert!(process.end().success(), "{}", process.log());
    }
    assert!(url.ends_with("/v1"));
}

#[test]
fn sighup_leaves_a_local_cluster_running() {
    let mut up = Up::synthetic(0, &[]);
    up.process.signal("HUP");
    up.process.logged("SIGHUP");
    let done = up.run(["--max-tokens", "3", "hello"]).output().unwrap();
    assert!(done.status.success(), "{}", stderr(&done));
    up.process.signal("TERM");
    assert!(up.process.end().success());
}

#[tokio::test]
async fn a_client_whose_terminal_is_closed_gives_its_slot_back() {
    let up = Up::synthetic(20, &["--max-jobs", "2"]);
    let start = |tokens: &str| {
        let run = hears_hangups(&up.run(["--max-tokens", tokens, "hello"]));
        let (process, mut text) = Process::spawn(run, up.user.dir.path());
        first_bytes(&mut text);
        (process, text)
    };
    let ((mut closed, _one), (mut other, _two)) = (start("100000"), start("300"));
    closed.signal("HUP");
    assert_eq!(closed.end().code(), Some(129));
    let begin = Instant::now();
    while up.running().await > 1 {
        assert!(begin.elapsed() < PATIENCE);
        tokio::time::sleep(POLL).await;
    }
    // Its answer takes fifteen seconds, and one that waits for its reader to come back is kept for thirty.
    assert!(!other.has_ended(), "the slot of the first was taken for as long as the second one's answer");
}

/// The same command, whoever runs the tests: under `nohup` a program would be told to ignore the signal.
fn hears_hangups(command: &Command) -> Command {
    let mut wrapped = Command::new("env");
    wrapped.arg("--default-signal=HUP").arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    wrapped
}

#[test]
fn nohup_has_a_client_outlive_its_terminal() {
    let up = Up::synthetic(20, &[]);
    let titan = env!("CARGO_BIN_EXE_titan");
    let script = format!("trap '' HUP; exec {titan} run --coordinator {} --max-tokens 60 hello", up.rest);
    let (mut process, mut text) = Process::spawn(up.user.bash(&script), up.user.dir.path());
    first_bytes(&mut text);
    process.signal("HUP");
    let mut rest = String::new();
    text.read_to_string(&mut rest).unwrap();
    assert!(process.end().success(), "{}", process.log());
    assert!(synthetic_text(60).ends_with(rest.trim_end_matches('\n')), "{rest}");
}
