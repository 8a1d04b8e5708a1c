//! A real llama.cpp server, where `scripts/llama-server.sh` has built one.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use titan_agent::engine::{
    fetch::test_model,
    openai::{ServerEngine, ServerSpec},
};
use tokio::sync::OnceCell;

use crate::MODEL;

/// Names the binary; without it, the newest in the cache is taken.
const SERVER: &str = "TITAN_LLAMA_SERVER";
/// Longest time to load the model, beside other tests.
const LOAD_TIME: Duration = Duration::from_secs(180);
/// Sequences at once.
pub(crate) const SLOTS: usize = 4;

/// A process, killed with the value.
pub(crate) struct LlamaServer {
    child: Child,
    pub(crate) addr: SocketAddr,
    binary: PathBuf,
    arguments: Vec<String>,
}

/// The binary; `None`, and a line that says so, where there is none.
pub(crate) fn binary() -> Option<PathBuf> {
    let found = match std::env::var_os(SERVER).filter(|path| !path.is_empty()) {
        Some(path) => Some(PathBuf::from(path)),
        None => in_cache(),
    };
    if found.is_none() {
        println!("skipped: there is no llama.cpp server; scripts/llama-server.sh builds one, or {SERVER} names it");
    }
    found
}

fn in_cache() -> Option<PathBuf> {
    let cache = titan_files::cache_dir()?;
    let versions = std::fs::read_dir(cache.join("llama-server")).ok()?.flatten();
    let mut servers: Vec<PathBuf> = versions.map(|version| version.path().join("llama-server")).collect();
    servers.retain(|server| server.is_file());
    servers.sort();
    servers.pop()
}

impl LlamaServer {
    /// Starts it with the model that tests run, and waits until it is well. `None` where there is no binary.
    pub(crate) async fn start(more: &[&str]) -> Option<Self> {
        static MODEL_FILE: OnceCell<PathBuf> = OnceCell::const_new();
        let binary = binary()?;
        let fetch = || async { tokio::task::spawn_blocking(test_model).await.unwrap().unwrap() };
        let file = MODEL_FILE.get_or_init(fetch).await;
        let addr = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let mut arguments =
            vec!["--model".to_owned(), file.display().to_string(), "--alias".to_owned(), "there".to_owned()];
        let (port, slots, context) = (addr.port().to_string(), SLOTS.to_string(), (SLOTS * 2_048).to_string());
        for argument in
            ["--host", "127.0.0.1", "--port", &port, "--parallel", &slots, "--ctx-size", &context, "--metrics"]
        {
            arguments.push(argument.to_owned());
        }
        // On a machine that is full, threads that wait for each other at every layer make no progress.
        arguments.extend(["--threads", "1"].map(str::to_owned));
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        let mut server = Self { child: spawn(&binary, &arguments), addr, binary, arguments };
        server.well().await;
        Some(server)
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it once more, at the same address.
    pub(crate) async fn start_again(&mut self) {
        self.child = spawn(&self.binary, &self.arguments);
        self.well().await;
    }

    async fn well(&mut self) {
        let url = format!("http://{}/health", self.addr);
        let http = client();
        let wait = async {
            loop {
                if let Ok(answer) = http.get(&url).send().await
                    && answer.status().is_success()
                {
                    return;
                }
                assert!(self.child.try_wait().unwrap().is_none(), "the llama.cpp server has ended");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(LOAD_TIME, wait).await.expect("the llama.cpp server does not become well");
    }

    pub(crate) fn spec(&self) -> ServerSpec {
        ServerSpec::parse(&format!("{MODEL}=http://{}/v1#there", self.addr)).unwrap()
    }

    pub(crate) async fn engine(&self) -> ServerEngine {
        ServerEngine::start(self.spec(), 8).await.unwrap()
    }
}

impl Drop for LlamaServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(binary: &PathBuf, arguments: &[String]) -> Child {
    let mut command = Command::new(binary);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap_or_else(|error| panic!("{binary:?}: {error}"))
}

/// Without TLS, which needs a provider.
pub(crate) fn client() -> reqwest::Client {
    let builder = rustls::ClientConfig::builder_with_provider(titan_transport::tls::provider());
    let config = builder.with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    reqwest::Client::builder().tls_backend_preconfigured(config).no_proxy().build().unwrap()
}
