//! smg, a model gateway in Rust with a Python launcher, before the origin of `origin`.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context as _, anyhow};
use titan_agent::engine::Engine;

use super::{
    LOCALHOST, Serving, origin,
    relay::{self, EndBy, METRICS, ORIGIN, Relay},
};
use crate::lab;

/// Names the program where it is not in PATH.
const VARIABLE: &str = "TITAN_BENCH_SMG";

/// Where smg is, or what to do.
pub(super) fn program() -> Result<PathBuf, String> {
    match env::var_os(VARIABLE).map(PathBuf::from) {
        Some(named) if named.is_file() => Ok(named),
        Some(named) => Err(format!("{VARIABLE} names {}, which is no file", named.display())),
        None => relay::find("smg", &[])
            .ok_or_else(|| format!("there is no smg: `pip install smg==1.13.0`, or name its program in {VARIABLE}")),
    }
}

/// Starts an origin on loopback, and smg before it.
pub(super) async fn serve(port: u16, lab: &Path, engine: Arc<dyn Engine>) -> anyhow::Result<Serving> {
    let program = program().map_err(|reason| anyhow!(reason))?;
    let version = relay::version(&program, "--version")?;
    let settings = settings();
    let mut serving = Serving::new(format!(
        "{version} before the axum origin: TLS 1.3 and HTTP/2 to the client, HTTP/1.1 with kept connections to the origin; \
         it leaves Nagle's algorithm on towards clients, and no flag turns that off; smg launch {}",
        settings.join(" ")
    ));
    origin::serve_plain(&mut serving, port + ORIGIN, engine).await?;
    let [_, chain, key] = lab::agent_files(lab);
    let mut command = Command::new(program);
    command.args(["launch", "--host", "0.0.0.0", "--port"]).arg(port.to_string());
    command.arg("--worker-urls").arg(format!("http://{LOCALHOST}:{}", port + ORIGIN));
    command.arg("--prometheus-host").arg(LOCALHOST.to_string());
    command.arg("--prometheus-port").arg((port + METRICS).to_string());
    command.arg("--tls-cert-path").arg(chain).arg("--tls-key-path").arg(key).args(settings);
    let mut relay = Relay::start(command, EndBy::Kill, &lab.join(format!("smg-{port}.log")))?;
    relay.ready(port, lab).await.context("smg")?;
    serving.processes = relay.processes();
    serving.relay = Some(relay);
    Ok(serving)
}

/// What could cost time or end a connection is off: there is one worker to choose, and it is well.
fn settings() -> Vec<&'static str> {
    vec![
        "--backend",
        "openai",
        "--policy",
        "round_robin",
        "--log-level",
        "error",
        "--disable-tokenizer-autoload",
        "--disable-health-check",
        "--disable-load-monitoring",
        "--disable-circuit-breaker",
        // No bound.
        "--max-concurrent-requests",
        "0",
        // Connections are kept, whatever time they are idle.
        "--upstream-pool-idle-timeout-secs",
        "0",
        "--idle-connection-timeout-secs",
        "0",
    ]
}
