//! nginx as a reverse proxy before the origin of `origin`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context as _, anyhow};
use titan_agent::engine::Engine;

use super::{
    Serving, origin,
    relay::{self, EndBy, OPEN_FILES, ORIGIN, Relay},
};
use crate::lab;

/// Where Debian has it, which is not in everybody's PATH.
const PLACES: &[&str] = &["/usr/sbin", "/usr/local/sbin", "/usr/local/bin"];

/// Where nginx is, or what to do.
pub(super) fn program() -> Result<PathBuf, String> {
    relay::find("nginx", PLACES).ok_or_else(|| "there is no nginx: `apt install nginx-light` installs one".to_owned())
}

/// Starts an origin on loopback, and nginx before it.
pub(super) async fn serve(port: u16, lab: &Path, engine: Arc<dyn Engine>) -> anyhow::Result<Serving> {
    let program = program().map_err(|reason| anyhow!(reason))?;
    let version = relay::version(&program, "-v")?;
    let dir = lab.join(format!("nginx-{port}"));
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let config = dir.join("nginx.conf");
    fs::write(&config, configuration(port, lab, &dir)).with_context(|| format!("cannot write {}", config.display()))?;

    let mut serving = Serving::new(format!(
        "{version} before the axum origin: TLS 1.3 and HTTP/2 to the client, HTTP/1.1 with kept connections to the origin, \
         proxy_buffering off, tcp_nodelay on, a worker per core, no access log"
    ));
    origin::serve_plain(&mut serving, port + ORIGIN, engine).await?;
    let output = dir.join("error.log");
    let mut command = Command::new(program);
    command.arg("-p").arg(&dir).arg("-c").arg(&config).arg("-e").arg(&output);
    let mut relay = Relay::start(command, EndBy::Terminate, &output)?;
    relay.ready(port, lab).await.context("nginx")?;
    serving.processes = relay.processes();
    serving.relay = Some(relay);
    Ok(serving)
}

fn configuration(port: u16, lab: &Path, dir: &Path) -> String {
    let [_, chain, key] = lab::agent_files(lab);
    let (origin, dir, chain, key) = (port + ORIGIN, dir.display(), chain.display(), key.display());
    // As long as any measurement: no connection or answer ends because of nginx.
    let long = "24h";
    format!(
        "daemon off;
worker_processes auto;
worker_rlimit_nofile {OPEN_FILES};
pid {dir}/nginx.pid;
error_log {dir}/error.log error;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    tcp_nodelay on;
    keepalive_timeout {long};
    keepalive_requests 1000000;
    upstream origin {{
        server 127.0.0.1:{origin};
        keepalive 1024;
        keepalive_requests 1000000;
        keepalive_timeout {long};
    }}
    server {{
        listen 0.0.0.0:{port} ssl http2 backlog=4096;
        http2_max_concurrent_streams 1024;
        ssl_certificate {chain};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.3;
        ssl_ecdh_curve X25519:prime256v1:secp384r1;
        ssl_session_cache shared:tls:10m;
        location / {{
            proxy_pass http://origin;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_buffering off;
            proxy_read_timeout {long};
            proxy_send_timeout {long};
        }}
    }}
}}
",
        // Two for each client.
        connections = OPEN_FILES / 2,
    )
}
