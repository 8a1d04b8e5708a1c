//! Certificates of what runs for months: read again when their files change, renewed where the CA is, and their end announced.

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use titan_certs::{Life, Lifetime};
use titan_transport::tls::{Identities, Renewals};
use tokio::sync::watch;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Loads them again and again, and at once when `reloads` changes; whoever has what is returned sees each change. `load` may make new ones.
pub(crate) fn watch(
    what: String,
    first: Identities,
    every: Duration,
    mut reloads: watch::Receiver<u64>,
    load: impl Fn() -> anyhow::Result<Identities> + Send + Sync + 'static,
) -> Renewals {
    let (tell, hear) = watch::channel(first);
    let load = std::sync::Arc::new(load);
    tokio::spawn(async move {
        let mut announced = Announced::default();
        loop {
            announced.check(&what, &tell.borrow(), SystemTime::now());
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                Ok(()) = reloads.changed() => {}
                // Nobody serves any more.
                () = tell.closed() => return,
            }
            let load = std::sync::Arc::clone(&load);
            // Files, and perhaps a key to make.
            let Ok(loaded) = tokio::task::spawn_blocking(move || load()).await else { return };
            match loaded {
                Ok(new) if is_same(&new, &tell.borrow()) => announced.fault = None,
                Ok(new) => {
                    tracing::info!("the certificate of {what} has changed");
                    announced = Announced::default();
                    tell.send_replace(new);
                }
                Err(error) => announced.fault(&what, format!("{error:#}")),
            }
        }
    });
    hear
}

/// The keys too: where a certificate is there before its key, what was read in between could not be used, and what is read next has to be tried.
fn is_same(new: &Identities, old: &Identities) -> bool {
    fn public(identities: &Identities) -> Option<(&[CertificateDer<'static>], &[u8])> {
        identities.public.as_ref().map(|public| (public.chain.as_slice(), public.key.secret_der()))
    }
    let (one, other) = (&new.private, &old.private);
    one.roots == other.roots
        && one.chain == other.chain
        && one.key.secret_der() == other.key.secret_der()
        && public(new) == public(old)
}

/// What was said already.
#[derive(Debug, Default)]
struct Announced {
    /// When the end was last spoken of.
    end: Option<SystemTime>,
    fault: Option<String>,
}

impl Announced {
    /// Says once a day that a certificate is about to end, or has.
    fn check(&mut self, what: &str, identities: &Identities, now: SystemTime) {
        if self.end.is_some_and(|last| now.duration_since(last).is_ok_and(|since| since < DAY)) {
            return;
        }
        let private = identities.private.chain.first().map(|leaf| (format!("the certificate of {what}"), leaf));
        let public = identities.public.as_ref().and_then(|public| public.chain.first());
        let public = public.map(|leaf| (format!("the public certificate of {what}"), leaf));
        // The one that ends last: others beside it are on their way out.
        let end = |root: &&CertificateDer<'_>| Lifetime::of(root).map(|lifetime| lifetime.not_after).ok();
        let ca = identities.private.roots.iter().max_by_key(end).map(|root| (format!("the CA of {what}"), root));
        for (certificate, der) in private.into_iter().chain(public).chain(ca) {
            let life = Lifetime::of(der).map(|lifetime| lifetime.at(now));
            if let Some(warning) = life.ok().and_then(|life| ending(&certificate, life)) {
                self.end = Some(now);
                tracing::warn!("{warning}");
            }
        }
    }

    /// Once each.
    fn fault(&mut self, what: &str, message: String) {
        if self.fault.as_ref() != Some(&message) {
            tracing::error!(
                "the certificate of {what} cannot be read again, and the one that was read stays: {message}"
            );
            self.fault = Some(message);
        }
    }
}

fn ending(certificate: &str, life: Life) -> Option<String> {
    Some(match life {
        Life::Good => return None,
        Life::NotBegun => format!("{certificate} begins later than this machine's clock says: set the clock"),
        Life::Ended => format!("{certificate} has ended: new connections fail until its file is replaced"),
        Life::Ending { days: 0 } => {
            format!("{certificate} ends within a day: replace its file, it is read again without a restart")
        }
        Life::Ending { days } => {
            format!("{certificate} ends in {days} days: replace its file, it is read again without a restart")
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use titan_certs::{CertDir, LeafRequest, Role};
    use titan_transport::tls::TlsMaterial;

    use super::*;

    fn identities(dir: &CertDir) -> anyhow::Result<Identities> {
        let (cert, key) = (dir.leaf_pem(Role::Agent, "a"), dir.leaf_key(Role::Agent, "a"));
        Ok(Identities { private: TlsMaterial::from_files(&dir.ca_pem(), &cert, &key)?, public: None })
    }

    #[test]
    fn its_end_is_announced_in_days_and_once_a_day() {
        let folder = tempfile::tempdir().unwrap();
        let dir = CertDir::new(folder.path());
        dir.init().unwrap();
        dir.issue(&LeafRequest::new(Role::Agent, "a").days(40)).unwrap();
        let identities = identities(&dir).unwrap();
        let now = SystemTime::now();
        let said = |life| ending("it", life).unwrap_or_default();
        assert!(said(Life::Ending { days: 12 }).contains("12 days") && said(Life::Ended).contains("has ended"));
        let mut announced = Announced::default();
        announced.check("x", &identities, now);
        assert_eq!(announced.end, None);
        let later = now + DAY * 30;
        announced.check("x", &identities, later);
        announced.check("x", &identities, later + DAY / 2);
        assert_eq!(announced.end, Some(later));
    }

    /// Nobody asks for it.
    fn never() -> watch::Receiver<u64> {
        watch::channel(0).1
    }

    #[tokio::test]
    async fn a_hangup_has_the_files_read_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let dir = CertDir::new(folder.path());
        dir.init().unwrap();
        dir.issue(&LeafRequest::new(Role::Agent, "a")).unwrap();
        let first = identities(&dir).unwrap();
        let again = CertDir::new(folder.path());
        let (hangup, reloads) = watch::channel(0);
        let load = move || identities(&again);
        let mut renewals = watch("it".to_owned(), first.clone(), 10_000 * DAY, reloads, load);
        dir.issue(&LeafRequest::new(Role::Agent, "a")).unwrap();
        hangup.send_modify(|count| *count += 1);
        renewals.changed().await.unwrap();
        assert_ne!(renewals.borrow().private.chain, first.private.chain);
    }

    #[tokio::test]
    async fn a_changed_file_is_seen_and_a_broken_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let dir = CertDir::new(folder.path());
        dir.init().unwrap();
        dir.issue(&LeafRequest::new(Role::Agent, "a")).unwrap();
        let first = identities(&dir).unwrap();
        let again = CertDir::new(folder.path());
        let load = move || identities(&again);
        let mut renewals = watch("it".to_owned(), first.clone(), Duration::from_millis(20), never(), load);
        std::fs::write(dir.leaf_pem(Role::Agent, "a"), "no certificate").unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!renewals.has_changed().unwrap());
        dir.issue(&LeafRequest::new(Role::Agent, "a")).unwrap();
        renewals.changed().await.unwrap();
        assert_ne!(renewals.borrow().private.chain, first.private.chain);
    }

    #[tokio::test]
    async fn a_certificate_is_used_when_its_key_is_there_too() {
        let folder = tempfile::tempdir().unwrap();
        let dir = CertDir::new(folder.path());
        dir.init().unwrap();
        dir.issue(&LeafRequest::new(Role::Agent, "a")).unwrap();
        let first = identities(&dir).unwrap();
        let old_key = std::fs::read(dir.leaf_key(Role::Agent, "a")).unwrap();
        dir.issue(&LeafRequest::new(Role::Agent, "a")).unwrap();
        let new_key = std::fs::read(dir.leaf_key(Role::Agent, "a")).unwrap();
        assert_ne!(old_key, new_key);
        std::fs::write(dir.leaf_key(Role::Agent, "a"), old_key).unwrap();
        let said = identities(&dir).unwrap_err().to_string();
        assert!(said.contains("agent-a.key is not that of the certificate in"), "{said}");
        let again = CertDir::new(folder.path());
        let load = move || identities(&again);
        let mut renewals = watch("it".to_owned(), first, Duration::from_millis(20), never(), load);
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!renewals.has_changed().unwrap(), "the halves do not belong together");
        std::fs::write(dir.leaf_key(Role::Agent, "a"), new_key).unwrap();
        renewals.changed().await.unwrap();
        assert!(titan_transport::tls::HttpTls::new(&renewals.borrow().private, None).is_ok());
    }
}
