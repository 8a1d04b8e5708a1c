//! Certificates for this process: found, renewed, or made for a cluster that does not leave this machine.

mod enrolment;
mod renewal;

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, bail};
use titan_certs::{CertDir, LeafRequest, Role};
use titan_transport::tls::{Identities, PublicIdentity, Renewals, TlsMaterial};

pub(crate) use self::enrolment::{client_with_key, renewed_client_with_key};
use crate::{
    args::{IdentityArgs, ListenArgs},
    commands::Usage,
    places,
};

/// Names under which everything on this machine may be dialled.
const LOCAL_HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// Between two looks at the files of certificates.
#[cfg(feature = "engines")]
const CHECK_CERTS: Duration = Duration::from_secs(60);
/// The name in the certificate of `titan run`.
pub(crate) const CLIENT_NAME: &str = "cli";

/// Whether certificates may be made without being asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Nothing leaves this machine: a CA of its own is made on first start.
    ThisMachine,
    /// Other machines are involved: which CA they trust is for a person to decide.
    OtherMachines,
}

/// The material of a server; `None` where there is none and none may be made, which its `Config` then judges.
///
/// `hosts` are added to those that the certificate has already, if the CA's key is here to renew it.
pub(crate) fn server(
    args: &IdentityArgs,
    role: Role,
    name: &str,
    hosts: &[String],
    reach: Reach,
) -> anyhow::Result<Option<TlsMaterial>> {
    if let Some(material) = from_files(args)? {
        if material.chain.is_empty() {
            bail!(Usage("--ca alone is for clients: what serves needs --cert and --key, too".to_owned()));
        }
        return Ok(Some(material));
    }
    let dir = places::certs(args.certs.as_ref());
    if !dir.ca_pem().exists() {
        // A directory that was named must hold what it was named for.
        if reach == Reach::OtherMachines && args.certs.is_none() {
            return Ok(None);
        }
        if reach == Reach::ThisMachine {
            init(&dir)?;
        }
    }
    leaf(&dir, role, name, hosts).map(Some)
}

/// What a server shows: its material, and the public certificate that was named.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) private: Option<TlsMaterial>,
    pub(crate) public: Option<PublicIdentity>,
    pub(crate) renewals: Option<Renewals>,
}

/// [`server`], and what it shows from the public CA, both read again while it runs. Must run inside a Tokio runtime.
pub(crate) fn served(
    listen: &ListenArgs,
    role: Role,
    name: &str,
    hosts: &[String],
    reach: Reach,
) -> anyhow::Result<Served> {
    let private = server(&listen.identity, role, name, hosts, reach)?;
    let public = public_of(listen)?;
    let Some(material) = &private else {
        if public.is_some() {
            bail!(Usage("--tls-cert stands beside a private certificate, which agents and QUIC need: `titan certs init` makes them".to_owned()));
        }
        return Ok(Served { private, public, renewals: None });
    };
    let first = Identities { private: material.clone(), public: public.clone() };
    let (listen, name, hosts) = (listen.clone(), name.to_owned(), hosts.to_vec());
    let renewals = renewal::watch(format!("the {role} {name}"), first, listen.check_certs, move || {
        let private = server(&listen.identity, role, &name, &hosts, reach)?.context("it is gone")?;
        Ok(Identities { private, public: public_of(&listen)? })
    });
    Ok(Served { private, public, renewals: Some(renewals) })
}

/// What a server of a local cluster shows, read again while it runs. Must run inside a Tokio runtime.
#[cfg(feature = "engines")]
pub(crate) fn served_locally(dir: &CertDir, role: Role, name: &str) -> anyhow::Result<(TlsMaterial, Renewals)> {
    let material = local(dir, role, name)?;
    let first = Identities { private: material.clone(), public: None };
    let (dir, named) = (CertDir::new(dir.path()), name.to_owned());
    let renewals = renewal::watch(format!("the {role} {name}"), first, CHECK_CERTS, move || {
        Ok(Identities { private: local(&dir, role, &named)?, public: None })
    });
    Ok((material, renewals))
}

/// A client's material, read again while it runs; `None` as for [`client`]. Must run inside a Tokio runtime.
pub(crate) fn renewed_client(args: &IdentityArgs, every: Duration) -> anyhow::Result<Option<(TlsMaterial, Renewals)>> {
    let Some(material) = client(args)? else { return Ok(None) };
    let first = Identities { private: material.clone(), public: None };
    let args = args.clone();
    let renewals = renewal::watch("this client".to_owned(), first, every, move || {
        Ok(Identities { private: client(&args)?.context("it is gone")?, public: None })
    });
    Ok(Some((material, renewals)))
}

fn public_of(listen: &ListenArgs) -> anyhow::Result<Option<PublicIdentity>> {
    // The command line lets neither through alone.
    let (Some(cert), Some(key)) = (&listen.tls_cert, &listen.tls_key) else { return Ok(None) };
    let identity = PublicIdentity::from_files(cert, key);
    identity.map(Some).with_context(|| format!("--tls-cert {} and --tls-key", cert.display()))
}

/// The material of a server in a local cluster.
#[cfg(feature = "engines")]
pub(crate) fn local(dir: &CertDir, role: Role, name: &str) -> anyhow::Result<TlsMaterial> {
    init(dir)?;
    leaf(dir, role, name, &[])
}

/// A client's material, or `None` where there are no certificates: then it can speak plain gRPC only.
pub(crate) fn client(args: &IdentityArgs) -> anyhow::Result<Option<TlsMaterial>> {
    if let Some(material) = from_files(args)? {
        return Ok(Some(material));
    }
    let dir = places::certs(args.certs.as_ref());
    if !dir.ca_pem().exists() && args.certs.is_none() {
        return Ok(None);
    }
    if !dir.ca_key().exists() {
        // The directory was copied from another machine, with whatever name that gave.
        let leaves = dir.list()?;
        let found = leaves.iter().find(|leaf| leaf.role == Role::Client && leaf.signed_by_this_ca);
        let found = found.with_context(|| {
            format!(
                "there is no client certificate in {}: on the machine with the CA run `titan certs issue --role client --name NAME` and copy the three files that it names",
                dir.path().display()
            )
        })?;
        return read(&dir, Role::Client, &found.name).map(Some);
    }
    leaf(&dir, Role::Client, CLIENT_NAME, &[]).map(Some)
}

fn from_files(args: &IdentityArgs) -> anyhow::Result<Option<TlsMaterial>> {
    Ok(match (&args.ca, &args.cert, &args.key) {
        (Some(ca), Some(cert), Some(key)) => Some(TlsMaterial::from_files(ca, cert, key)?),
        // The command line lets no other two of them through.
        (Some(ca), ..) => Some(TlsMaterial::from_ca(ca)?),
        (None, ..) => None,
    })
}

fn init(dir: &CertDir) -> anyhow::Result<()> {
    let made = dir
        .init()
        .with_context(|| format!("{}: set TITAN_DATA_DIR or --certs to a directory of yours", dir.path().display()))?;
    if made {
        tracing::info!(dir = %dir.path().display(), "made a private CA");
    }
    Ok(())
}

/// Renews or makes the leaf where the CA's key is at hand; elsewhere takes it as it is.
fn leaf(dir: &CertDir, role: Role, name: &str, hosts: &[String]) -> anyhow::Result<TlsMaterial> {
    if dir.ca_key().exists() {
        let mut request = LeafRequest::new(role, name);
        if role != Role::Client {
            // The hosts of the one that is there stay: somebody may have asked for them by hand.
            let kept = dir.list()?.into_iter().filter(|leaf| leaf.role == role && leaf.name == name);
            let kept = kept.flat_map(|leaf| leaf.sans).filter_map(|san| host_of(&san));
            request.hosts = kept.chain(LOCAL_HOSTS.map(String::from)).chain(hosts.iter().cloned()).collect();
            request.hosts.sort();
            request.hosts.dedup();
        }
        dir.ensure(&request)?;
    }
    read(dir, role, name)
}

fn read(dir: &CertDir, role: Role, name: &str) -> anyhow::Result<TlsMaterial> {
    let files = TlsMaterial::from_files(&dir.ca_pem(), &dir.leaf_pem(role, name), &dir.leaf_key(role, name));
    files.with_context(|| {
        format!("{} holds no certificate for the {role} {name}: `titan certs issue --role {role} --name {name}` makes one where the CA is", dir.path().display())
    })
}

/// The host in `DNS:host` or `IP:address`, but for the name that a role gives.
fn host_of(san: &str) -> Option<String> {
    let host = san.strip_prefix("DNS:").or_else(|| san.strip_prefix("IP:"))?;
    (!host.ends_with(".titan.internal")).then(|| host.to_owned())
}

/// Addresses that other machines cannot reach.
pub(crate) fn is_local(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn args(dir: &tempfile::TempDir) -> IdentityArgs {
        IdentityArgs { certs: Some(dir.path().to_owned()), ..Default::default() }
    }

    #[test]
    fn hosts_that_were_asked_for_by_hand_outlive_a_renewal() {
        let folder = tempfile::tempdir().unwrap();
        let dir = CertDir::new(folder.path());
        dir.init().unwrap();
        dir.issue(&LeafRequest::new(Role::Agent, "agent-1").hosts(["gpu.example", "192.0.2.7"])).unwrap();
        let more = ["other.example".to_owned()];
        server(&args(&folder), Role::Agent, "agent-1", &more, Reach::OtherMachines).unwrap().unwrap();
        let sans = dir.list().unwrap().remove(0).sans;
        for host in ["DNS:gpu.example", "IP:192.0.2.7", "DNS:other.example", "DNS:localhost"] {
            assert!(sans.iter().any(|san| san == host), "{host}: {sans:?}");
        }
        let before = dir.list().unwrap();
        server(&args(&folder), Role::Agent, "agent-1", &[], Reach::OtherMachines).unwrap().unwrap();
        assert_eq!(dir.list().unwrap(), before, "nothing new was asked for, so nothing is issued");
    }

    #[test]
    fn without_the_key_of_the_ca_the_leaf_is_taken_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let dir = CertDir::new(folder.path());
        dir.init().unwrap();
        dir.issue(&LeafRequest::new(Role::Agent, "agent-1")).unwrap();
        dir.issue(&LeafRequest::new(Role::Client, "laptop")).unwrap();
        std::fs::remove_file(dir.ca_key()).unwrap();
        server(&args(&folder), Role::Agent, "agent-1", &["x.example".into()], Reach::OtherMachines).unwrap().unwrap();
        assert!(client(&args(&folder)).unwrap().is_some());
        let message =
            format!("{:#}", server(&args(&folder), Role::Agent, "agent-2", &[], Reach::OtherMachines).unwrap_err());
        assert!(message.contains("titan certs issue --role agent --name agent-2"), "{message}");
    }

    #[test]
    fn a_ca_alone_is_enough_for_a_client_and_not_for_a_server() {
        let folder = tempfile::tempdir().unwrap();
        let dir = CertDir::new(folder.path());
        dir.init().unwrap();
        let alone = IdentityArgs { ca: Some(dir.ca_pem()), ..Default::default() };
        let material = client(&alone).unwrap().unwrap();
        assert_eq!((material.roots.len(), material.chain.len()), (1, 0));
        let error = server(&alone, Role::Agent, "agent-1", &[], Reach::OtherMachines).unwrap_err();
        assert!(error.is::<Usage>() && error.to_string().contains("--cert"), "{error:#}");
    }

    #[test]
    fn a_ca_is_made_only_for_a_cluster_that_stays_on_this_machine() {
        let folder = tempfile::tempdir().unwrap();
        let absent = IdentityArgs { certs: Some(folder.path().join("none")), ..Default::default() };
        let error = server(&absent, Role::Coordinator, "coordinator", &[], Reach::OtherMachines).unwrap_err();
        assert!(format!("{error:#}").contains("titan certs"), "{error:#}");
        assert!(!folder.path().join("none").exists());
        assert!(server(&absent, Role::Coordinator, "coordinator", &[], Reach::ThisMachine).unwrap().is_some());
    }
}
