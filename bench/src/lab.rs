//! What agents and clients need to trust each other, made for one measurement: a private CA, two leaves, a token issuer.

use std::{fs, path::Path, time::SystemTime};

use anyhow::Context as _;
use tempfile::TempDir;
use titan_agent::Config;
use titan_certs::{CertDir, LeafRequest, Role};
use titan_proto::COORDINATOR_NAME;
use titan_transport::{
    tls::TlsMaterial,
    token::{Algorithm, Claims, TokenIssuer, new_jti, unix_seconds},
};

/// The agent that is measured.
pub(crate) const AGENT_ID: &str = "bench-agent";
const CLIENT_NAME: &str = "bench-client";
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
        certs.issue(&LeafRequest::new(Role::Agent, AGENT_ID).hosts(["localhost", "127.0.0.1"]))?;
        certs.issue(&LeafRequest::new(Role::Client, CLIENT_NAME))?;
        let client = material(dir.path(), Role::Client, CLIENT_NAME)?;
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
        };
        Ok(self.issuer.issue(&claims)?)
    }
}

/// An agent on free loopback ports that trusts the lab in `dir`.
pub(crate) fn agent_config(dir: &Path, max_jobs: usize) -> anyhow::Result<Config> {
    let mut config = Config::new(AGENT_ID);
    config.grpc_addr.set_port(0);
    config.keys = Some(fs::read_to_string(dir.join(KEYS_FILE)).context("reading the token keys")?);
    config.tls = Some(material(dir, Role::Agent, AGENT_ID)?);
    config.max_jobs = max_jobs;
    Ok(config)
}

fn material(dir: &Path, role: Role, name: &str) -> anyhow::Result<TlsMaterial> {
    let certs = CertDir::new(dir);
    Ok(TlsMaterial::from_files(&certs.ca_pem(), &certs.leaf_pem(role, name), &certs.leaf_key(role, name))?)
}
