//! llama.cpp: its server as a process of its own, spoken to by OpenAI's API.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use serde::Deserialize;
use serde_json::json;
use tempfile::TempDir;
use titan_openai::SseParser;
use titan_proto::v1::Message;
use titan_transport::tls::provider;

use super::{Stopwatch, Tokens};
use crate::process::end_with_this_thread;

/// Longest time to load a model.
const LOAD_TIME: Duration = Duration::from_secs(300);
/// Between two looks at whether it has.
const POLL: Duration = Duration::from_millis(50);
/// How long a connection that nobody uses is kept: the server closes them after 5 s, and a request that meets that end fails.
const IDLE_TIME: Duration = Duration::from_secs(2);
/// How much of what it said goes into an error.
const QUOTED_BYTES: usize = 1000;
/// The end of an event stream.
const DONE: &str = "[DONE]";

/// A server that runs. Dropping it kills it.
pub(super) struct LlamaServer {
    child: Child,
    http: reqwest::Client,
    url: String,
    /// What the program says of itself.
    pub(super) version: String,
    // What it says goes into a file here.
    dir: TempDir,
}

/// What the server computes with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) threads: usize,
    /// Answers at once.
    pub(super) slots: u32,
    /// Tokens of prompt and answer together, of each.
    pub(super) context_tokens: u32,
}

/// The newest server that scripts/llama-server.sh has built.
pub(super) fn in_cache() -> Option<PathBuf> {
    let cache = titan_files::cache_dir()?;
    let versions = fs::read_dir(cache.join("llama-server")).ok()?.flatten();
    let servers = versions.map(|version| version.path().join("llama-server")).filter(|server| server.is_file());
    servers.max_by_key(|server| fs::metadata(server).and_then(|metadata| metadata.modified()).ok())
}

impl LlamaServer {
    /// Starts `program` with a model and waits until it answers.
    pub(super) async fn start(program: &Path, model: &Path, settings: Settings) -> anyhow::Result<Self> {
        let version = version(program)?;
        let dir = tempfile::Builder::new().prefix("titan-bench-").tempdir().context("making a temporary directory")?;
        let output = || fs::File::options().create(true).append(true).open(dir.path().join(OUTPUT));
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let Settings { threads, slots, context_tokens } = settings;
        let mut command = Command::new(program);
        command.arg("--model").arg(model).args(["--offline", "--host", "127.0.0.1"]);
        let numbers = [
            ("--port", port.to_string()),
            ("--threads", threads.to_string()),
            ("--threads-batch", threads.to_string()),
            ("--parallel", slots.to_string()),
            // Of all slots together.
            ("--ctx-size", (slots * context_tokens).to_string()),
        ];
        for (flag, number) in numbers {
            command.args([flag, &number]);
        }
        command.stdin(Stdio::null()).stdout(output()?).stderr(output()?);
        end_with_this_thread(&mut command, libc::SIGKILL);
        let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let mut server = Self { child, http: client()?, url: format!("http://127.0.0.1:{port}"), version, dir };
        server.answers().await.with_context(|| program.display().to_string())?;
        Ok(server)
    }

    /// The process.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Generates greedily. What the server holds of a conversation it uses again.
    pub(super) async fn generate(
        &self,
        messages: &[Message],
        tokens: u32,
        watch: &mut Stopwatch,
    ) -> anyhow::Result<Tokens> {
        let messages: Vec<_> =
            messages.iter().map(|message| json!({"role": message.role, "content": message.content})).collect();
        let body = json!({
            "messages": messages,
            "max_tokens": tokens,
            "temperature": 0,
            "stream": true,
            "stream_options": {"include_usage": true},
            "cache_prompt": true,
        });
        let request = self.http.post(format!("{}/v1/chat/completions", self.url)).json(&body);
        let mut response = request.send().await.context("llama.cpp does not answer")?;
        let status = response.status();
        if !status.is_success() {
            anyhow::bail!("llama.cpp refuses: {status}: {}", response.text().await.unwrap_or_default());
        }
        let mut events = SseParser::default();
        let mut counted = None;
        while let Some(bytes) = response.chunk().await.context("llama.cpp's answer broke off")? {
            events.push(&bytes)?;
            while let Some(event) = events.event().filter(|event| event.data != DONE) {
                let chunk = Chunk::parse(&event.data)?;
                watch.text(chunk.text());
                counted = chunk.usage.map(Tokens::from).or(counted);
            }
        }
        counted.context("llama.cpp counted no tokens")
    }

    /// Nothing is computed in any slot.
    pub(super) async fn is_idle(&self) -> anyhow::Result<bool> {
        let asked = self.http.get(format!("{}/slots", self.url)).send().await.context("llama.cpp does not answer")?;
        let slots: Vec<Slot> = asked.error_for_status()?.json().await.context("llama.cpp's slots")?;
        Ok(slots.iter().all(|slot| !slot.is_processing))
    }

    async fn answers(&mut self) -> anyhow::Result<()> {
        let url = format!("{}/health", self.url);
        let patience = Instant::now() + LOAD_TIME;
        loop {
            if self.http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(anyhow!("it ended: {status}; it said: {}", self.said()));
            }
            anyhow::ensure!(Instant::now() < patience, "it does not answer within {} s", LOAD_TIME.as_secs());
            tokio::time::sleep(POLL).await;
        }
    }

    fn said(&self) -> String {
        let output = fs::read(self.dir.path().join(OUTPUT)).unwrap_or_default();
        String::from_utf8_lossy(&output[output.len().saturating_sub(QUOTED_BYTES)..]).trim().to_owned()
    }
}

const OUTPUT: &str = "output";

impl Drop for LlamaServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In one line.
fn version(program: &Path) -> anyhow::Result<String> {
    let failed = || format!("cannot run {} --version: --llama-server names a llama.cpp server", program.display());
    let output = Command::new(program).arg("--version").output().with_context(failed)?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find_map(|line| line.trim().strip_prefix("version:"));
    Ok(line.with_context(failed)?.trim().to_owned())
}

/// The server speaks no TLS, but the client wants to know of a provider.
fn client() -> anyhow::Result<reqwest::Client> {
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let builder = reqwest::Client::builder().tls_backend_preconfigured(config).pool_idle_timeout(IDLE_TIME);
    Ok(builder.no_proxy().build()?)
}

#[derive(Debug, Deserialize)]
struct Slot {
    is_processing: bool,
}

/// An event of an answer, as far as it is used here.
#[derive(Debug, Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<ServerUsage>,
    error: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    delta: Delta,
}

#[derive(Debug, Deserialize)]
struct Delta {
    content: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ServerUsage {
    prompt_tokens: u32,
    completion_tokens: u32,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Debug, Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u32>,
}

impl Chunk {
    fn parse(event: &str) -> anyhow::Result<Self> {
        let chunk: Self = serde_json::from_str(event).context("llama.cpp sent what is no chunk of an answer")?;
        match chunk.error {
            Some(error) => Err(anyhow!("llama.cpp failed: {error}")),
            None => Ok(chunk),
        }
    }

    fn text(&self) -> &str {
        self.choices.first().and_then(|choice| choice.delta.content.as_deref()).unwrap_or_default()
    }
}

impl From<ServerUsage> for Tokens {
    fn from(usage: ServerUsage) -> Self {
        Self {
            prompt: usage.prompt_tokens,
            cached: usage.prompt_tokens_details.and_then(|details| details.cached_tokens),
            completion: usage.completion_tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn text_usage_and_errors_are_read_from_chunks() {
        let chunk = |event| Chunk::parse(event).unwrap();
        assert_eq!(chunk(r#"{"choices":[{"delta":{"role":"assistant","content":null}}]}"#).text(), "");
        assert_eq!(chunk(r#"{"choices":[{"index":0,"delta":{"content":"A"}}],"usage":null}"#).text(), "A");
        let usage = chunk(
            r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9,"prompt_tokens_details":{"cached_tokens":5}}}"#,
        );
        let tokens = Tokens::from(usage.usage.unwrap());
        assert_eq!(tokens, Tokens { prompt: 7, cached: Some(5), completion: 2 });
        let error = Chunk::parse(r#"{"error":{"code":500,"message":"no room"}}"#).unwrap_err().to_string();
        assert!(error.contains("no room"), "{error}");
        assert!(Chunk::parse("nothing").is_err());
    }

    #[tokio::test]
    async fn what_is_no_server_is_named() {
        let settings = Settings { threads: 1, slots: 1, context_tokens: 512 };
        for program in ["/nowhere/llama-server", "/bin/true"] {
            let started = LlamaServer::start(Path::new(program), Path::new("model.gguf"), settings).await;
            let error = format!("{:#}", started.err().unwrap());
            assert!(error.contains(program) && error.contains("--llama-server"), "{error}");
        }
    }
}
