//! What coordinator, agents and clients need to trust each other, made for one measurement: a private CA, four leaves, a token issuer.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::Context as _;
use tempfile::TempDir;
use titan_agent::Config;
use titan_certs::{CertDir, LeafRequest, Role};
use titan_proto::COORDINATOR_NAME;
use titan_transport::{
    tls::TlsMaterial,
    token::{Algorithm, Claims, TokenIssuer, new_jti, unix_seconds},
};

/// What agents advertise. Nobody resolves it but the clients here.
pub(crate) const AGENT_HOST: &str = "agent.bench.invalid";
/// The agent that is measured.
pub(crate) const AGENT_ID: &str = "bench-agent";
/// Another one, for where an agent dies.
pub(crate) const SPARE_AGENT_ID: &str = "bench-agent-2";
const CLIENT_NAME: &str = "bench-client";
const COORDINATOR: &str = "coordinator";
const KEYS_FILE: &str = "jwks.json";
/// How long tokens are good for: longer than any measurement takes to start its streams.
const TOKEN_SECONDS: i64 = 3600;

/// A CA, a client's identity and a token issuer, in a directory that is removed at the end.
pub(crate) struct Lab {
    dir: TempDir,
    issuer: TokenIssuer,
    pub(crate) client: TlsMaterial,
}

impl Lab {
    /// Makes new keys of every kind.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("titan-bench-").tempdir().context("making a temporary directory")?;
        let certs = CertDir::new(dir.path());
        certs.init()?;
        certs.issue(&LeafRequest::new(Role::Agent, AGENT_ID).hosts(["localhost", "127.0.0.1", AGENT_HOST]))?;
        certs.issue(&LeafRequest::new(Role::Agent, SPARE_AGENT_ID).hosts(["localhost", "127.0.0.1", AGENT_HOST]))?;
        certs.issue(&LeafRequest::new(Role::Client, CLIENT_NAME))?;
        certs.issue(&LeafRequest::new(Role::Coordinator, COORDINATOR))?;
        let client = client_material(dir.path())?;
        let issuer = TokenIssuer::open(dir.path(), Algorithm::RS256)?;
        fs::write(dir.path().join(KEYS_FILE), serde_json::to_string(&issuer.jwks())?)?;
        Ok(Self { dir, issuer, client })
    }

    /// Where another process finds it: [`agent_config`].
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A session token for this model, as the coordinator would issue it.
    pub(crate) fn token(&self, model: &str) -> anyhow::Result<String> {
        let now = unix_seconds(SystemTime::now());
        let jti = new_jti();
        let claims = Claims {
            iss: COORDINATOR_NAME.to_owned(),
            agent_id: AGENT_ID.to_owned(),
            client_id: CLIENT_NAME.to_owned(),
            model: model.to_owned(),
            job_id: format!("job_{jti}"),
            jti,
            iat: now,
            nbf: now,
            exp: now + TOKEN_SECONDS,
            request: None,
            key: None,
            generations: None,
        };
        Ok(self.issuer.issue(&claims)?)
    }
}

/// An agent on free loopback ports that trusts the lab in `dir`.
pub(crate) fn agent_config(dir: &Path, max_jobs: usize) -> anyhow::Result<Config> {
    let mut config = Config::new(AGENT_ID);
    config.grpc_addr.set_port(0);
    config.keys = Some(fs::read_to_string(dir.join(KEYS_FILE)).context("reading the token keys")?);
    config.tls = Some(agent_material(dir)?);
    config.max_jobs = max_jobs;
    Ok(config)
}

/// The agent's identity. Servers of other protocols show the same: its name is `agent_server_name(AGENT_ID)`.
pub(crate) fn agent_material(dir: &Path) -> anyhow::Result<TlsMaterial> {
    material(dir, Role::Agent, AGENT_ID)
}

/// The other agent's identity.
pub(crate) fn spare_agent_material(dir: &Path) -> anyhow::Result<TlsMaterial> {
    material(dir, Role::Agent, SPARE_AGENT_ID)
}

/// The coordinator's identity.
pub(crate) fn coordinator_material(dir: &Path) -> anyhow::Result<TlsMaterial> {
    material(dir, Role::Coordinator, COORDINATOR)
}

/// The client's identity.
pub(crate) fn client_material(dir: &Path) -> anyhow::Result<TlsMaterial> {
    material(dir, Role::Client, CLIENT_NAME)
}

/// Where the CA's certificate, and the agent's certificate and key, are, for servers that read files.
pub(crate) fn agent_files(dir: &Path) -> [PathBuf; 3] {
    let certs = CertDir::new(dir);
    [certs.ca_pem(), certs.leaf_pem(Role::Agent, AGENT_ID), certs.leaf_key(Role::Agent, AGENT_ID)]
}

fn material(dir: &Path, role: Role, name: &str) -> anyhow::Result<TlsMaterial> {
    let certs = CertDir::new(dir);
    Ok(TlsMaterial::from_files(&certs.ca_pem(), &certs.leaf_pem(role, name), &certs.leaf_key(role, name))?)
}
