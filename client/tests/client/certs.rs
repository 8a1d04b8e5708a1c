//! Certificates of one private CA, made once, and a client of another.

use std::{collections::HashMap, sync::OnceLock};

use tempfile::TempDir;
use titan_certs::{CertDir, LeafRequest, Role};
use titan_client::TlsMaterial;

pub(crate) fn client() -> TlsMaterial {
    leaf(Role::Client, "tester")
}

pub(crate) fn agent(name: &str) -> TlsMaterial {
    leaf(Role::Agent, name)
}

pub(crate) fn coordinator() -> TlsMaterial {
    leaf(Role::Coordinator, "coordinator")
}

/// A client of a CA that nobody here trusts.
pub(crate) fn stranger() -> TlsMaterial {
    static STRANGER: OnceLock<TlsMaterial> = OnceLock::new();
    STRANGER.get_or_init(|| make(&CertDir::new(TempDir::new().unwrap().path()), Role::Client, "stranger")).clone()
}

fn leaf(role: Role, name: &str) -> TlsMaterial {
    static LEAVES: OnceLock<HashMap<(Role, &str), TlsMaterial>> = OnceLock::new();
    let leaves = LEAVES.get_or_init(|| {
        let dir = TempDir::new().unwrap();
        let certs = CertDir::new(dir.path());
        [
            (Role::Client, "tester"),
            (Role::Agent, "agent-1"),
            (Role::Agent, "agent-2"),
            (Role::Agent, "agent-3"),
            (Role::Agent, "agent-4"),
            (Role::Coordinator, "coordinator"),
        ]
        .into_iter()
        .map(|(role, name)| ((role, name), make(&certs, role, name)))
        .collect()
    });
    leaves[&(role, name)].clone()
}

fn make(certs: &CertDir, role: Role, name: &str) -> TlsMaterial {
    certs.init().unwrap();
    certs.issue(&LeafRequest::new(role, name).hosts(["localhost", "127.0.0.1"])).unwrap();
    TlsMaterial::from_files(&certs.ca_pem(), &certs.leaf_pem(role, name), &certs.leaf_key(role, name)).unwrap()
}
