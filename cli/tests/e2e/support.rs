//! Processes of `titan`, each with directories of its own.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;
use titan_certs::{CertDir, LeafRequest, Role};
use titan_client::{Builder, TitanClient};
use titan_proto::{
    rest::Status,
    v1::{AgentStatusRequest, agent_service_client::AgentServiceClient},
};
use titan_transport::tls::{TlsMaterial, provider};

/// Longest wait for anything; only for a broken test does it matter how long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks.
pub(crate) const POLL: Duration = Duration::from_millis(20);
/// What a developer's shell may have set, and tests must not see.
const VARIABLES: [&str; 27] = [
    "COORDINATOR_HTTP_PORT",
    "COORDINATOR_PORT",
    "COORDINATOR_URL",
    "COORDINATOR_ENDPOINT",
    "AGENT_PORT",
    "AGENT_QUIC_PORT",
    "AGENT_ID",
    "PUBLIC_HOST",
    "PUBLIC_PORT",
    "PUBLIC_QUIC_PORT",
    "TITAN_ALLOW_HOSTS",
    "MAX_CONCURRENT_JOBS",
    "SUPPORTED_MODELS",
    "TOKEN_TTL",
    "TOKEN_ALGORITHM",
    "HEARTBEAT_TIMEOUT",
    "HEARTBEAT_INTERVAL",
    "PREFILL_AHEAD",
    "TITAN_BIND",
    "TITAN_CERTS",
    "TITAN_KEYS",
    "TITAN_API_KEY",
    "TITAN_PROXY_KEY",
    "TITAN_USAGE_LOG",
    "TITAN_CACHE_DIR",
    "TITAN_DATA_DIR",
    "RUST_LOG",
];

/// A user: a data directory, with a cache in it.
pub(crate) struct User {
    pub(crate) dir: TempDir,
}

impl User {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn certs(&self) -> CertDir {
        CertDir::new(self.dir.path().join("certs"))
    }

    /// Where this user's sessions are, and no model.
    pub(crate) fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// `titan` with these arguments, as this user.
    pub(crate) fn titan<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_titan"));
        command.args(arguments);
        command
    }

    /// A script that runs `titan` as this user, under conditions that only a shell can make.
    pub(crate) fn bash(&self, script: &str) -> Command {
        let mut command = self.command("bash");
        command.args(["-c", script]);
        command
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for variable in VARIABLES {
            command.env_remove(variable);
        }
        command.env("TITAN_DATA_DIR", self.dir.path()).env("TITAN_CACHE_DIR", self.cache()).stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    pub(crate) fn output<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Output {
        self.titan(arguments).output().unwrap()
    }

    /// Key material of a client of this user's CA.
    pub(crate) fn client_tls(&self) -> TlsMaterial {
        let (certs, role, name) = (self.certs(), Role::Client, "test");
        certs.ensure(&LeafRequest::new(role, name)).unwrap();
        TlsMaterial::from_files(&certs.ca_pem(), &certs.leaf_pem(role, name), &certs.leaf_key(role, name)).unwrap()
    }
}

/// `kill -NAME`.
pub(crate) fn signal(pid: u32, name: &str) {
    // It may have ended just now.
    Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).stderr(Stdio::null()).status().unwrap();
}

/// A process that is killed when the value is dropped.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Its stderr goes to a file in `dir`.
    pub(crate) fn spawn(mut command: Command, dir: &Path) -> (Self, BufReader<ChildStdout>) {
        let log = tempfile::Builder::new().prefix("log-").tempfile_in(dir).unwrap().into_temp_path().keep().unwrap();
        let mut child =
            command.stdout(Stdio::piped()).stderr(File::options().append(true).open(&log).unwrap()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        (Self { child, log }, stdout)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `TERM`, `INT` …
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status().unwrap();
        assert!(sent.success());
    }

    /// Where it reads from; the command has it piped.
    pub(crate) fn stdin(&mut self) -> &mut ChildStdin {
        self.child.stdin.as_mut().unwrap()
    }

    /// SIGKILL: no goodbye of any kind.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Whether it has.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begin.elapsed() < PATIENCE, "it does not end:\n{}", self.log());
            std::thread::sleep(POLL);
        }
    }

    /// What it has written to stderr.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The first line on its stderr that says `what`, as JSON.
    pub(crate) fn logged(&mut self, what: &str) -> Value {
        let begin = Instant::now();
        loop {
            if let Some(line) = self.log().lines().find(|line| line.contains(what) && line.ends_with('}')) {
                return serde_json::from_str(line).unwrap();
            }
            assert!(begin.elapsed() < PATIENCE && self.child.try_wait().unwrap().is_none(), "{}", self.log());
            std::thread::sleep(POLL);
        }
    }

    /// Resident memory.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the log of process {}\n{}", self.pid(), self.log());
        }
    }
}

/// `titan up` on free ports.
pub(crate) struct Up {
    /// Dropped before the directory that its log is in.
    pub(crate) process: Process,
    pub(crate) user: User,
    /// Where REST is.
    pub(crate) rest: String,
    /// What it printed.
    pub(crate) printed: Value,
}

impl Up {
    /// With the synthetic engine at this rate.
    pub(crate) fn synthetic(tokens_per_second: u32, more: &[&str]) -> Self {
        let rate = tokens_per_second.to_string();
        Self::start([&["--synthetic", &rate], more].concat())
    }

    /// With these arguments besides the ports.
    pub(crate) fn start(arguments: Vec<&str>) -> Self {
        let user = User::new();
        // A P-256 key is made at once, an RSA key is not. Heartbeats every second, so that nobody waits for news.
        let fixed =
            "up --json --http-port 0 --grpc-port 0 --agent-port 0 --token-algorithm ES256 --heartbeat-interval 1s";
        let command = user.titan(fixed.split(' ').chain(arguments));
        let (mut process, mut stdout) = Process::spawn(command, user.dir.path());
        let mut line = String::new();
        if stdout.read_line(&mut line).unwrap() == 0 {
            process.end();
            panic!("titan up did not come up:\n{}", process.log());
        }
        let printed: Value = serde_json::from_str(&line).unwrap();
        let rest = printed["rest"].as_str().unwrap().to_owned();
        Self { process, user, rest, printed }
    }

    /// `titan run` against it.
    pub(crate) fn run<'a>(&'a self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        self.user.titan(["run", "--coordinator", &self.rest].into_iter().chain(arguments))
    }

    /// A client with a certificate.
    pub(crate) fn client(&self) -> Builder {
        TitanClient::builder(&self.rest).tls(self.user.client_tls())
    }

    /// `host:port` of the first agent's gRPC.
    pub(crate) fn agent(&self) -> String {
        self.printed["agents"][0]["grpc"].as_str().unwrap().to_owned()
    }

    /// `GET /api/v1/status?include_agents=true`.
    pub(crate) async fn status(&self) -> Status {
        let url = format!("{}/api/v1/status?include_agents=true", self.rest);
        http().get(url).send().await.unwrap().json().await.unwrap()
    }

    /// How many generations the first agent runs now, by its own account.
    pub(crate) async fn running(&self) -> i32 {
        let mut agent = AgentServiceClient::connect(format!("http://{}", self.agent())).await.unwrap();
        agent.get_status(AgentStatusRequest::default()).await.unwrap().into_inner().active_sessions
    }

    /// Waits until the agent runs nothing, and the coordinator knows.
    pub(crate) async fn idle(&self) {
        let begin = Instant::now();
        loop {
            let running = self.running().await;
            let reported = self.status().await.agents.unwrap()[0].running_jobs;
            if (running, reported) == (0, 0) {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "{running} jobs still run, the coordinator counts {reported}");
            tokio::time::sleep(POLL).await;
        }
    }
}

/// For plain text.
pub(crate) fn http() -> reqwest::Client {
    let tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    reqwest::Client::builder().no_proxy().tls_backend_preconfigured(tls).build().unwrap()
}

/// What the synthetic engine says.
pub(crate) fn synthetic_text(tokens: u32) -> String {
    (0..tokens).map(|index| format!("{index:08} tok ")).collect()
}

/// The texts of `--json`, appended, and the last object.
pub(crate) fn read_json(stdout: &[u8]) -> (String, Value) {
    let lines: Vec<Value> = stdout
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    let text = lines.iter().filter_map(|line| line["text"].as_str()).collect();
    (text, lines.last().unwrap().clone())
}

/// Reads until something has come.
pub(crate) fn first_bytes(stdout: &mut impl Read) {
    let mut byte = [0];
    stdout.read_exact(&mut byte).unwrap();
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}
