//! `titan certs`.

use std::io::{self, Write as _};

use serde::Serialize;
use titan_certs::{CaInfo, CertDir, LeafInfo, LeafRequest, Role};

use crate::{
    args::{CertsCommand, IssueArgs},
    places,
};

/// Makes or shows certificates.
pub(super) fn certs(command: CertsCommand) -> anyhow::Result<()> {
    let text = match command {
        CertsCommand::Init(args) => init(&places::certs(args.dir.as_ref()))?,
        CertsCommand::Issue(args) => issue(&places::certs(args.dir.dir.as_ref()), args)?,
        CertsCommand::Show(args) => show(&places::certs(args.dir.dir.as_ref()), args.json)?,
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn init(dir: &CertDir) -> anyhow::Result<String> {
    let made = dir.init()?;
    let ca = dir.ca()?;
    let what = if made { "Made a private CA" } else { "There is a private CA already, and it stays" };
    Ok(format!(
        "{what}: {}\n  {}\n  SHA-256 {}\n  valid until {}\n\n\
         Next, a certificate for each part that is on another machine:\n  \
         titan certs issue --role coordinator --name coordinator --host HOST\n  \
         titan certs issue --role agent --name agent-1 --host HOST\n  \
         titan certs issue --role client --name laptop\n\
         {} stays on this machine.\n",
        dir.path().display(),
        ca.subject,
        ca.fingerprint_sha256,
        ca.not_after.date(),
        dir.ca_key().display(),
    ))
}

fn issue(dir: &CertDir, args: IssueArgs) -> anyhow::Result<String> {
    let (role, name) = (args.role, args.name);
    let leaf = dir.issue(&LeafRequest::new(role, &name).hosts(args.hosts).days(args.days))?;
    let use_it = match role {
        Role::Coordinator => "titan coord --bind 0.0.0.0 --certs DIR".to_owned(),
        Role::Agent => {
            format!("titan agent --id {name} --bind 0.0.0.0 --public-host HOST --coordinator HOST:50051 --certs DIR")
        }
        Role::Client => "titan run --coordinator https://HOST:8080 --certs DIR \"Hello\"".to_owned(),
    };
    Ok(format!(
        "{}\nTo use it on another machine, copy these three files into one directory there (never {}):\n  {}\n  {}\n  {}\nthen:\n  {use_it}\n",
        describe(&leaf),
        dir.ca_key().display(),
        dir.ca_pem().display(),
        dir.leaf_pem(role, &name).display(),
        dir.leaf_key(role, &name).display(),
    ))
}

fn show(dir: &CertDir, json: bool) -> anyhow::Result<String> {
    #[derive(Serialize)]
    struct Shown<'a> {
        dir: &'a std::path::Path,
        ca: &'a CaInfo,
        certificates: &'a [LeafInfo],
    }
    let (ca, leaves) = (dir.ca()?, dir.list()?);
    if json {
        return Ok(serde_json::to_string(&Shown { dir: dir.path(), ca: &ca, certificates: &leaves })? + "\n");
    }
    let head = format!(
        "{}\nCA  {}\n  SHA-256 {}\n  valid until {}\n",
        dir.path().display(),
        ca.subject,
        ca.fingerprint_sha256,
        ca.not_after.date()
    );
    Ok(leaves.iter().map(describe).fold(head, |text, leaf| text + &leaf))
}

fn describe(leaf: &LeafInfo) -> String {
    let foreign = if leaf.signed_by_this_ca { "" } else { "\n  NOT signed by the CA beside it" };
    format!(
        "{}  {}\n  {}\n  SHA-256 {}\n  valid until {}{foreign}\n",
        leaf.role,
        leaf.name,
        leaf.sans.join(" "),
        leaf.fingerprint_sha256,
        leaf.not_after.date()
    )
}
