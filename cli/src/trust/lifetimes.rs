//! Certificates that have ended or not begun: refused where they would be shown, with whose they are, their file, and what to do.

use std::{path::Path, time::SystemTime};

use anyhow::{Context as _, bail};
use rustls::pki_types::CertificateDer;
use titan_certs::{Life, Lifetime};

/// `whose`: the beginning of a sentence, such as "the certificate of the agent agent-1".
pub(super) fn check_leaf(leaf: &CertificateDer<'_>, whose: &str, file: &Path, now: SystemTime) -> anyhow::Result<()> {
    let lifetime = Lifetime::of(leaf).with_context(|| format!("{whose} in {}", file.display()))?;
    match lifetime.at(now) {
        Life::Good | Life::Ending { .. } => Ok(()),
        Life::Ended => bail!(
            "{whose}, {}, ended on {}, and nobody takes it any more: issue it anew where the CA is (`titan certs issue`) and copy it here, or set this machine's clock if that is wrong",
            file.display(),
            lifetime.not_after.date()
        ),
        Life::NotBegun => bail!(
            "{whose}, {}, begins at {}, which is later than the time that the clock of this machine shows: set the clock",
            file.display(),
            lifetime.not_before
        ),
    }
}

/// Of several CAs one that is valid will do: old ones stay beside new ones for a while.
pub(super) fn check_ca(roots: &[CertificateDer<'_>], file: &Path, now: SystemTime) -> anyhow::Result<()> {
    let mut refused = None;
    for root in roots {
        match check_leaf(root, "the CA's certificate", file, now) {
            Ok(()) => return Ok(()),
            Err(error) => refused = Some(error),
        }
    }
    refused.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use titan_certs::{CertDir, LeafRequest, Role};
    use titan_transport::tls::TlsMaterial;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    #[test]
    fn what_has_ended_is_refused_with_whose_it_is_and_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let dir = CertDir::new(folder.path());
        dir.init().unwrap();
        dir.issue(&LeafRequest::new(Role::Agent, "a").days(2)).unwrap();
        let file = dir.leaf_pem(Role::Agent, "a");
        let material = TlsMaterial::from_files(&dir.ca_pem(), &file, &dir.leaf_key(Role::Agent, "a")).unwrap();
        let now = SystemTime::now();
        let check = |now| check_leaf(&material.chain[0], "the certificate of the agent a", &file, now);
        check(now).unwrap();
        for (time, part) in [(now + 3 * DAY, "ended on"), (now - DAY, "begins at")] {
            let said = check(time).unwrap_err().to_string();
            for part in [part, "the certificate of the agent a", "agent-a.pem", "clock"] {
                assert!(said.contains(part), "{part}: {said}");
            }
        }
        check_ca(&material.roots, &dir.ca_pem(), now).unwrap();
        let said = check_ca(&material.roots, &dir.ca_pem(), now + 4000 * DAY).unwrap_err().to_string();
        assert!(said.contains("the CA's certificate") && said.contains("ca.pem"), "{said}");
        let both = [material.chain[0].clone(), material.roots[0].clone()];
        check_ca(&both, &dir.ca_pem(), now + 3 * DAY).unwrap();
    }
}
