//! `titan certs`.

use std::{
    io::{self, Write as _},
    time::SystemTime,
};

use serde::Serialize;
use titan_certs::{CaInfo, CertDir, LeafInfo, LeafRequest, Life, Role};

use crate::{
    args::{CertsCommand, IssueArgs},
    places,
};

/// Makes or shows certificates.
pub(super) fn certs(command: CertsCommand) -> anyhow::Result<()> {
    let text = match command {
        CertsCommand::Init(args) => init(&places::certs(args.dir.as_ref())?)?,
        CertsCommand::Issue(args) => issue(&places::certs(args.dir.dir.as_ref())?, args)?,
        CertsCommand::Show(args) => show(&places::certs(args.dir.dir.as_ref())?, args.json, SystemTime::now())?,
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
    let shown = describe(&leaf, leaf.lifetime().at(SystemTime::now()));
    let use_it = match role {
        Role::Coordinator => "titan coord --bind 0.0.0.0 --certs DIR".to_owned(),
        Role::Agent => {
            format!("titan agent --id {name} --bind 0.0.0.0 --public-host HOST --coordinator HOST:50051 --certs DIR")
        }
        Role::Client => "titan run --coordinator https://HOST:8080 --certs DIR \"Hello\"".to_owned(),
    };
    Ok(format!(
        "{}\nTo use it on another machine, copy these three files into one directory there (never {}):\n  {}\n  {}\n  {}\nthen:\n  {use_it}\n",
        shown,
        dir.ca_key().display(),
        dir.ca_pem().display(),
        dir.leaf_pem(role, &name).display(),
        dir.leaf_key(role, &name).display(),
    ))
}

fn show(dir: &CertDir, json: bool, now: SystemTime) -> anyhow::Result<String> {
    #[derive(Serialize)]
    struct Shown<'a> {
        dir: &'a std::path::Path,
        ca: WithLife<&'a CaInfo>,
        certificates: Vec<WithLife<&'a LeafInfo>>,
    }
    #[derive(Serialize)]
    struct WithLife<T> {
        #[serde(flatten)]
        info: T,
        /// `good`, `ending`, `ended` or `not_begun`.
        life: &'static str,
    }
    let (ca, leaves) = (dir.ca()?, dir.list()?);
    if json {
        let certificates = leaves.iter().map(|info| WithLife { info, life: word(info.lifetime().at(now)) }).collect();
        let ca = WithLife { info: &ca, life: word(ca.lifetime().at(now)) };
        return Ok(serde_json::to_string(&Shown { dir: dir.path(), ca, certificates })? + "\n");
    }
    let head = format!(
        "{}\nCA  {}\n  SHA-256 {}\n  valid until {}{}\n",
        dir.path().display(),
        ca.subject,
        ca.fingerprint_sha256,
        ca.not_after.date(),
        mark(ca.lifetime().at(now)),
    );
    let described = leaves.iter().map(|leaf| describe(leaf, leaf.lifetime().at(now)));
    Ok(described.fold(head, |text, leaf| text + &leaf))
}

fn describe(leaf: &LeafInfo, life: Life) -> String {
    let foreign = if leaf.signed_by_this_ca { "" } else { "\n  NOT signed by the CA beside it" };
    format!(
        "{}  {}\n  {}\n  SHA-256 {}\n  valid until {}{}{foreign}\n",
        leaf.role,
        leaf.name,
        leaf.sans.join(" "),
        leaf.fingerprint_sha256,
        leaf.not_after.date(),
        mark(life),
    )
}

fn word(life: Life) -> &'static str {
    match life {
        Life::NotBegun => "not_begun",
        Life::Good => "good",
        Life::Ending { .. } => "ending",
        Life::Ended => "ended",
    }
}

/// What stands behind the last day of its life.
fn mark(life: Life) -> String {
    match life {
        Life::NotBegun => "\n  NOT YET valid by the clock of this machine".to_owned(),
        Life::Good => String::new(),
        Life::Ending { days } => format!(", in {days} days: issue it anew soon"),
        Life::Ended => "\n  EXPIRED: nobody takes it any more".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;

    #[test]
    fn what_has_ended_or_will_soon_is_marked() {
        let folder = tempfile::tempdir().unwrap();
        let dir = CertDir::new(folder.path());
        dir.init().unwrap();
        dir.issue(&LeafRequest::new(Role::Client, "laptop").days(100)).unwrap();
        let day = |day: u32| SystemTime::now() + Duration::from_secs(24 * 60 * 60) * day;
        for (after, marked, life) in [(0, "", "good"), (80, "issue it anew soon", "ending"), (101, "EXPIRED", "ended")]
        {
            let text = show(&dir, false, day(after)).unwrap();
            assert_eq!(text.contains("anew soon") || text.contains("EXPIRED"), after > 0, "{text}");
            assert!(text.contains(marked), "{text}");
            let json: serde_json::Value = serde_json::from_str(&show(&dir, true, day(after)).unwrap()).unwrap();
            assert_eq!((&json["certificates"][0]["life"], &json["ca"]["life"]), (&life.into(), &"good".into()));
            assert_eq!(json["certificates"][0]["name"], "laptop");
        }
        assert!(show(&dir, false, day(4000)).unwrap().matches("EXPIRED").count() == 2, "the CA too");
    }
}
