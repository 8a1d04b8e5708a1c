//! Certificates for this process: found, renewed, or made for a cluster that does not leave this machine.

mod enrolment;
mod lifetimes;
mod renewal;

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail};
use titan_certs::{CertDir, LeafRequest, Role};
use titan_files::others_can_read;
use titan_transport::tls::{Identities, PublicIdentity, Renewals, TlsMaterial};
use tokio::sync::watch;

pub(crate) use self::enrolment::{client_with_key, renewed_client_with_key};
use self::lifetimes::{check_ca, check_leaf};
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
/// How a client is called where its certificate's name says nothing to its user.
const THIS_CLIENT: &str = "this client";
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
    if let Some(material) = from_files(args, &format!("the {role} {name}"))? {
        if material.chain.is_empty() {
            bail!(Usage("--ca alone is for clients: what serves needs --cert and --key, too".to_owned()));
        }
        return Ok(Some(material));
    }
    let dir = match places::certs(args.certs.as_ref()) {
        Ok(dir) => dir,
        // Nothing can be there, and nothing may be made.
        Err(_) if reach == Reach::OtherMachines => return Ok(None),
        Err(no_home) => return Err(no_home.into()),
    };
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
    reloads: watch::Receiver<u64>,
) -> anyhow::Result<Served> {
    let private = server(&listen.identity, role, name, hosts, reach)?;
    let public = public_of(listen)?;
    warn_of_shared_keys(&listen.identity, listen.tls_key.as_deref(), Some((role, name)));
    let Some(material) = &private else {
        if public.is_some() {
            bail!(Usage("--tls-cert stands beside a private certificate, which agents and QUIC need: `titan certs init` makes them".to_owned()));
        }
        return Ok(Served { private, public, renewals: None });
    };
    let first = Identities { private: material.clone(), public: public.clone() };
    let (listen, name, hosts) = (listen.clone(), name.to_owned(), hosts.to_vec());
    let renewals = renewal::watch(format!("the {role} {name}"), first, listen.check_certs, reloads, move || {
        let private = server(&listen.identity, role, &name, &hosts, reach)?.context("it is gone")?;
        Ok(Identities { private, public: public_of(&listen)? })
    });
    Ok(Served { private, public, renewals: Some(renewals) })
}

/// What a server of a local cluster shows, read again while it runs. Must run inside a Tokio runtime.
#[cfg(feature = "engines")]
pub(crate) fn served_locally(
    dir: &CertDir,
    role: Role,
    name: &str,
    reloads: watch::Receiver<u64>,
) -> anyhow::Result<(TlsMaterial, Renewals)> {
    let material = local(dir, role, name)?;
    let first = Identities { private: material.clone(), public: None };
    let (dir, named) = (CertDir::new(dir.path()), name.to_owned());
    let renewals = renewal::watch(format!("the {role} {name}"), first, CHECK_CERTS, reloads, move || {
        Ok(Identities { private: local(&dir, role, &named)?, public: None })
    });
    Ok((material, renewals))
}

/// A client's material, read again while it runs; `None` as for [`client`]. Must run inside a Tokio runtime.
pub(crate) fn renewed_client(
    args: &IdentityArgs,
    every: Duration,
    reloads: watch::Receiver<u64>,
) -> anyhow::Result<Option<(TlsMaterial, Renewals)>> {
    let Some(material) = client(args)? else { return Ok(None) };
    let first = Identities { private: material.clone(), public: None };
    let args = args.clone();
    let renewals = renewal::watch("this client".to_owned(), first, every, reloads, move || {
        Ok(Identities { private: client(&args)?.context("it is gone")?, public: None })
    });
    Ok(Some((material, renewals)))
}

fn public_of(listen: &ListenArgs) -> anyhow::Result<Option<PublicIdentity>> {
    // The command line lets neither through alone.
    let (Some(cert), Some(key)) = (&listen.tls_cert, &listen.tls_key) else { return Ok(None) };
    let identity = PublicIdentity::from_files(cert, key)
        .with_context(|| format!("--tls-cert {} and --tls-key", cert.display()))?;
    if let Some(leaf) = identity.chain.first() {
        check_leaf(leaf, "the public certificate (--tls-cert)", cert, SystemTime::now())?;
    }
    Ok(Some(identity))
}

/// The material of a server in a local cluster.
#[cfg(feature = "engines")]
pub(crate) fn local(dir: &CertDir, role: Role, name: &str) -> anyhow::Result<TlsMaterial> {
    init(dir)?;
    leaf(dir, role, name, &[])
}

/// A client's material, or `None` where there are no certificates: then it can speak plain gRPC only.
pub(crate) fn client(args: &IdentityArgs) -> anyhow::Result<Option<TlsMaterial>> {
    if let Some(material) = from_files(args, THIS_CLIENT)? {
        return Ok(Some(material));
    }
    // Nothing was named, and there is no place for what is not.
    let Ok(dir) = places::certs(args.certs.as_ref()) else { return Ok(None) };
    if !dir.ca_pem().exists() && args.certs.is_none() {
        return Ok(None);
    }
    if !dir.ca_key().exists() {
        // The directory was copied from another machine, with whatever names that gave.
        return read(&dir, Role::Client, &copied_client(&dir, SystemTime::now())?).map(Some);
    }
    leaf(&dir, Role::Client, CLIENT_NAME, &[]).map(Some)
}

/// The name of the client certificate to use: a valid one before others, and then the one that ends last.
fn copied_client(dir: &CertDir, now: SystemTime) -> anyhow::Result<String> {
    let clients: Vec<_> = dir.list()?.into_iter().filter(|leaf| leaf.role == Role::Client).collect();
    let ours = clients.iter().filter(|leaf| leaf.signed_by_this_ca);
    if let Some(best) = ours.max_by_key(|leaf| (leaf.lifetime().at(now).is_valid(), leaf.not_after)) {
        return Ok(best.name.clone());
    }
    let what = match clients.first() {
        Some(foreign) => format!(
            "{} is of another CA than {}",
            dir.leaf_pem(Role::Client, &foreign.name).display(),
            dir.ca_pem().display()
        ),
        None => format!("there is no client certificate in {}", dir.path().display()),
    };
    bail!(
        "{what}: on the machine with the CA run `titan certs issue --role client --name NAME` and copy the three files that it names"
    )
}

fn from_files(args: &IdentityArgs, whose: &str) -> anyhow::Result<Option<TlsMaterial>> {
    Ok(match (&args.ca, &args.cert, &args.key) {
        (Some(ca), Some(cert), Some(key)) => Some(checked(TlsMaterial::from_files(ca, cert, key)?, whose, ca, cert)?),
        // The command line lets no other two of them through.
        (Some(ca), ..) => Some(checked(TlsMaterial::from_ca(ca)?, whose, ca, ca)?),
        (None, ..) => None,
    })
}

/// What has ended, or has not begun, is of no use to anyone who is shown it: that is said here, where the files are known.
fn checked(material: TlsMaterial, whose: &str, ca: &Path, cert: &Path) -> anyhow::Result<TlsMaterial> {
    let now = SystemTime::now();
    check_ca(&material.roots, ca, now)?;
    if let Some(leaf) = material.chain.first() {
        check_leaf(leaf, &format!("the certificate of {whose}"), cert, now)?;
    }
    Ok(material)
}

/// Says once which private keys others on this machine can read.
fn warn_of_shared_keys(args: &IdentityArgs, public: Option<&Path>, server: Option<(Role, &str)>) {
    let dir = places::certs(args.certs.as_ref()).ok().filter(|_| args.ca.is_none());
    let in_dir = dir.into_iter().flat_map(|dir| {
        let own = server.map(|(role, name)| dir.leaf_key(role, name));
        own.into_iter().chain([dir.ca_key()])
    });
    let named = args.key.iter().cloned().chain(public.map(Path::to_owned));
    for key in in_dir.chain(named).filter(|key| others_can_read(key)) {
        tracing::warn!("others on this machine can read the private key {}: chmod 600 it", key.display());
    }
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
    let (ca, cert, key) = (dir.ca_pem(), dir.leaf_pem(role, name), dir.leaf_key(role, name));
    let files = TlsMaterial::from_files(&ca, &cert, &key).with_context(|| {
        format!("{} holds no certificate for the {role} {name}: `titan certs issue --role {role} --name {name}` makes one where the CA is", dir.path().display())
    })?;
    checked(files, &format!("the {role} {name}"), &ca, &cert)
}

/// The host in `DNS:host` or `IP:address`, but for the name that a role gives.
fn host_of(san: &str) -> Option<String> {
    let host = san.strip_prefix("DNS:").or_else(|| san.strip_prefix("IP:"))?;
    (!host.ends_with(".titan.internal")).then(|| host.to_owned())
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
    fn of_several_client_certificates_a_valid_one_is_taken_that_ends_last() {
        let folder = tempfile::tempdir().unwrap();
        let dir = CertDir::new(folder.path());
        dir.init().unwrap();
        for (name, days) in [("a-short", 1), ("b-long", 90), ("c-middle", 30)] {
            dir.issue(&LeafRequest::new(Role::Client, name).days(days)).unwrap();
        }
        let day = |day: u32| SystemTime::now() + Duration::from_secs(60 * 60) + Duration::from_secs(24 * 60 * 60) * day;
        assert_eq!(copied_client(&dir, day(0)).unwrap(), "b-long");
        dir.issue(&LeafRequest::new(Role::Client, "b-long").days(10)).unwrap();
        assert_eq!(copied_client(&dir, day(0)).unwrap(), "c-middle");
        assert_eq!(copied_client(&dir, day(60)).unwrap(), "c-middle", "it has ended, which is said of the newest");
    }

    #[test]
    fn a_client_certificate_of_another_ca_is_named() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for folder in [&folder, &other] {
            CertDir::new(folder.path()).init().unwrap();
        }
        let dir = CertDir::new(folder.path());
        dir.issue(&LeafRequest::new(Role::Client, "laptop")).unwrap();
        std::fs::copy(CertDir::new(other.path()).ca_pem(), dir.ca_pem()).unwrap();
        std::fs::remove_file(dir.ca_key()).unwrap();
        let message = client(&args(&folder)).unwrap_err().to_string();
        assert!(message.contains("client-laptop.pem is of another CA"), "{message}");
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
