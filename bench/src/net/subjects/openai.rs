//! Applications that speak the OpenAI API and know nothing of Titan, at the two doors that Titan has for them.

use std::{
    net::{SocketAddr, TcpListener as StdListener},
    path::Path,
};

use anyhow::{Context as _, ensure};
use parking_lot::Mutex;
use rustls::ClientConfig;
use titan_certs::COORDINATOR_SERVER_NAME;
use titan_proxy::Clients;
use tokio::{net::TcpListener, task::AbortHandle};
use tokio_util::sync::CancellationToken;

use super::{
    LOCALHOST,
    http::{Version, asked, texts},
    origin::PATH,
    titan::{AGENT, Titan, Wire},
    trust::{Dialer, Trust, without_sessions},
};
use crate::{
    lab::AGENT_HOST,
    net::subject::{Answer, Client, Held, Pending},
};

/// An application, and the proxy beside it, which is what `titan proxy` serves: both are the client's cost.
pub(super) struct ByProxy {
    http: reqwest::Client,
    url: String,
    titan: Titan,
    proxy: AbortHandle,
}

impl ByProxy {
    /// `server`: where the coordinator's REST is.
    pub(super) fn new(server: SocketAddr, lab: &Path) -> anyhow::Result<Self> {
        let titan = Titan::new(server, lab, Wire::Quic)?;
        let listener = StdListener::bind((LOCALHOST, 0)).context("a port for the proxy")?;
        listener.set_nonblocking(true)?;
        let url = format!("http://{}{PATH}", listener.local_addr()?);
        let router = titan_proxy::router(&Clients::new(titan.library().clone()), None);
        let serve = titan_proxy::serve(TcpListener::from_std(listener)?, router, CancellationToken::new());
        let proxy = tokio::spawn(serve).abort_handle();
        Ok(Self { http: reqwest::Client::builder().no_proxy().build()?, url, titan, proxy })
    }
}

impl Drop for ByProxy {
    fn drop(&mut self) {
        self.proxy.abort();
    }
}

impl Client for ByProxy {
    fn connect(&self) -> Pending<'_, Held> {
        self.titan.connect()
    }

    fn ask(&self, tokens: u32) -> Pending<'_, Answer> {
        Box::pin(ask(self.http.clone(), &self.url, tokens))
    }

    fn disconnect(&self) {
        self.titan.disconnect();
    }
}

/// An application that asks the coordinator and follows its redirect, over HTTP/1.1 as the packages of OpenAI do.
pub(super) struct Redirected {
    http: Mutex<reqwest::Client>,
    server: SocketAddr,
    tls: ClientConfig,
    agent: Dialer,
}

impl Redirected {
    /// `server`: where the coordinator's REST is.
    pub(super) fn new(server: SocketAddr, lab: &Path) -> anyhow::Result<Self> {
        let trust = Trust::load(lab)?;
        let alpn = Version::Http1.alpn();
        let tls = without_sessions(&trust.client(alpn)?);
        let agent = Dialer::new(SocketAddr::new(server.ip(), server.port() + AGENT), &trust, alpn)?;
        let http = Mutex::new(resolving(server, &tls)?);
        Ok(Self { http, server, tls, agent })
    }
}

/// The names of a coordinator and its agents, as a DNS of their own would have them.
fn resolving(server: SocketAddr, tls: &ClientConfig) -> reqwest::Result<reqwest::Client> {
    // Port 0 stands for that of the URL.
    let at = SocketAddr::new(server.ip(), 0);
    reqwest::Client::builder()
        .no_proxy()
        .tls_backend_preconfigured(tls.clone())
        .resolve(COORDINATOR_SERVER_NAME, at)
        .resolve(AGENT_HOST, at)
        .build()
}

impl Client for Redirected {
    fn connect(&self) -> Pending<'_, Held> {
        Box::pin(async { Ok(Box::new(self.agent.fresh().dial().await?) as Held) })
    }

    fn ask(&self, tokens: u32) -> Pending<'_, Answer> {
        let http = self.http.lock().clone();
        Box::pin(async move {
            ask(http, &format!("https://{COORDINATOR_SERVER_NAME}:{}{PATH}", self.server.port()), tokens).await
        })
    }

    fn disconnect(&self) {
        // With the sessions of the connections that close here. What was built once is built again.
        if let Ok(http) = resolving(self.server, &self.tls) {
            *self.http.lock() = http;
        }
    }
}

async fn ask(http: reqwest::Client, url: &str, tokens: u32) -> anyhow::Result<Answer> {
    let response = http.post(url).json(&asked(tokens)).send().await.context("sending the request")?;
    ensure!(response.status().is_success(), "the server answered {}", response.status());
    Ok(Answer { tokens: texts(response.bytes_stream()), routing: None })
}
