//! A log that cannot be written stops nothing.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Instant,
};

use crate::support::{PATIENCE, POLL, User, http, signal, stdout, synthetic_text};

/// Where stderr goes.
#[derive(Clone, Copy, Debug)]
enum Stderr {
    /// Every write fails, as on a full disk.
    Full,
    /// A pipe that nobody reads, which is full soon: writes wait for ever.
    Unread,
    /// Its other end is gone.
    Broken,
}

/// Ends it when the test fails.
struct Running {
    child: Child,
    /// Held so that the pipe stays open.
    _stderr: Option<std::process::ChildStderr>,
}

impl Running {
    fn start(mut command: Command, stderr: Stderr) -> Self {
        let target = match stderr {
            Stderr::Full => Stdio::from(File::options().write(true).open("/dev/full").unwrap()),
            Stderr::Unread | Stderr::Broken => Stdio::piped(),
        };
        let mut child = command.env("RUST_LOG", "trace").stdout(Stdio::piped()).stderr(target).spawn().unwrap();
        let kept = child.stderr.take().filter(|_| matches!(stderr, Stderr::Unread));
        Self { child, _stderr: kept }
    }

    fn stop(mut self) {
        signal(self.child.id(), "TERM");
        let begin = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(begin.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(POLL);
        }
        // Or it was about to say that it is ready.
        let status = self.child.wait().unwrap();
        assert!(matches!(status.code(), Some(0 | 143)), "neither a panic nor an abort: {status}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Asks until `done`.
async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let begin = Instant::now();
    while !done().await {
        assert!(begin.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(POLL).await;
    }
}

async fn all_parts_serve(stderr: Stderr) {
    let user = User::new();
    let [rest, grpc, proxy] = [(); 3].map(|()| free_port());
    let fixed = format!("coord --http-port {rest} --grpc-port {grpc} --token-algorithm EdDSA --heartbeat-interval 1s");
    let coord = Running::start(user.titan(fixed.split(' ')), stderr);
    let url = format!("http://localhost:{rest}");
    let fixed = format!("agent --engine synthetic --rate 0 --agent-port 0 --coordinator localhost:{grpc}");
    let agent = Running::start(user.titan(fixed.split(' ')), stderr);
    let status = || async { http().get(format!("{url}/api/v1/status")).send().await.ok()?.text().await.ok() };
    until("the agent registers", async || status().await.is_some_and(|text| text.contains("\"healthy_agents\":1")))
        .await;
    let fixed = format!("proxy --listen 127.0.0.1:{proxy} --coordinator {url}");
    let proxy_process = Running::start(user.titan(fixed.split(' ')), stderr);
    let healthy = || async { http().get(format!("http://127.0.0.1:{proxy}/healthz")).send().await.is_ok() };
    until("the proxy answers", async || healthy().await).await;

    // Each of these is many lines of trace at the coordinator, the agent and the proxy.
    let body = r#"{"model":"synthetic","messages":[{"role":"user","content":"hello"}],"max_tokens":50}"#;
    for _ in 0..20 {
        let answer = http().post(format!("http://127.0.0.1:{proxy}/v1/chat/completions")).body(body);
        let answer = answer.header("content-type", "application/json").send().await.unwrap();
        assert_eq!(answer.status(), 200, "{stderr:?}");
    }
    let mut run = user.titan(["run", "--coordinator", &url, "-vvv", "--max-tokens", "5", "hello"]);
    let done = run.stderr(File::options().write(true).open("/dev/full").unwrap()).output().unwrap();
    assert_eq!((done.status.code(), stdout(&done)), (Some(0), synthetic_text(5) + "\n"));
    for process in [proxy_process, agent, coord] {
        process.stop();
    }
}

#[tokio::test]
async fn a_full_disk_stops_nothing() {
    all_parts_serve(Stderr::Full).await;
}

#[tokio::test]
async fn a_reader_that_has_stopped_stops_nothing() {
    all_parts_serve(Stderr::Unread).await;
}

#[tokio::test]
async fn a_reader_that_is_gone_stops_nothing() {
    all_parts_serve(Stderr::Broken).await;
}

#[test]
fn a_cluster_outlives_its_streams_and_the_limit_of_a_file() {
    let user = User::new();
    let titan = env!("CARGO_BIN_EXE_titan");
    let (log, port) = (user.dir.path().join("log"), free_port());
    // 1 KiB, which the first lines fill.
    let script = format!(
        "ulimit -f 1; exec {titan} up --synthetic 0 --http-port {port} --grpc-port 0 --agent-port 0 --token-algorithm EdDSA > /dev/full 2> {}",
        log.display()
    );
    let up = Running::start(user.bash(&script), Stderr::Full);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let url = format!("http://localhost:{port}/api/v1/status");
    let healthy = async || {
        let answer = http().get(&url).send().await;
        match answer {
            Ok(answer) => answer.text().await.is_ok_and(|text| text.contains("\"healthy_agents\":1")),
            Err(_) => false,
        }
    };
    runtime.block_on(until("the cluster comes up", healthy));
    assert!(std::fs::metadata(&log).unwrap().len() <= 1024);
    up.stop();
}

#[test]
fn a_failure_ends_the_process_where_nobody_reads_why() {
    let user = User::new();
    let (_unread, mut pipe) = std::io::pipe().unwrap();
    // As much as a pipe holds (pipe(7)).
    pipe.write_all(&[b'.'; 65536]).unwrap();
    let mut run = user.titan(["run", "--coordinator", "http://127.0.0.1:9", "hello"]);
    let mut child = run.stderr(pipe).spawn().unwrap();
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begin.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("it waits for a reader");
        }
        std::thread::sleep(POLL);
    };
    assert_eq!(status.code(), Some(1));
}

#[test]
fn what_is_wrong_with_rust_log_is_said() {
    let user = User::new();
    for (value, part) in [("", "RUST_LOG is empty"), ("titan=inof", "is not used"), ("inof", "names no level")] {
        let mut command = user.titan(["coord", "--http-port", "0", "--grpc-port", "0", "--token-algorithm", "EdDSA"]);
        let mut child = command.env("RUST_LOG", value).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let said: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert!(said["message"].as_str().unwrap().contains(part), "{value:?}: {line}");
    }
}

#[test]
fn a_conversation_without_a_terminal_to_complain_at_goes_on() {
    let up = crate::support::Up::synthetic(0, &[]);
    let mut command = up.user.titan(["chat", "--coordinator", &up.rest, "--max-tokens", "3"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut chat = command.stderr(full).spawn().unwrap();
    chat.stdin.take().unwrap().write_all(b"/nonsense\nhello\n/model other\n").unwrap();
    let output = chat.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(stdout(&output).contains(&synthetic_text(3)), "{}", stdout(&output));
}
