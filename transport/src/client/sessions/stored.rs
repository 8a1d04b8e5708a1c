//! Between rustls's sessions and the disk. This is what needs the patched rustls: vendor/README.md.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use rustls::{
    SupportedCipherSuite,
    client::{ResolvesClientCert, Tls13ClientSessionValue, danger::ServerCertVerifier},
};

use super::{
    disk::{Disk, DiskError},
    memory::Kept,
    record::{Binding, Item, Record},
};
use crate::limits::SESSION_AGE;

/// Sessions of one client configuration on disk.
pub(crate) struct Stored {
    disk: Disk,
    suites: Vec<SupportedCipherSuite>,
    /// Those of the configuration: rustls takes a session for no other.
    verifier: Arc<dyn ServerCertVerifier>,
    credentials: Arc<dyn ResolvesClientCert>,
    /// The user was told that the directory is not safe.
    warned: AtomicBool,
}

impl Stored {
    /// In `dir`, for the client with this `identity`.
    pub(crate) fn new(
        dir: &Path,
        identity: Binding,
        suites: Vec<SupportedCipherSuite>,
        verifier: Arc<dyn ServerCertVerifier>,
        credentials: Arc<dyn ResolvesClientCert>,
    ) -> Self {
        let disk = Disk::new(dir.to_owned(), identity);
        Self { disk, suites, verifier, credentials, warned: AtomicBool::new(false) }
    }

    /// Takes what one connection uses.
    pub(super) fn take(&self, server: &str, now: SystemTime) -> Option<Kept> {
        let record = self.disk.take(server, now).unwrap_or_else(|error| {
            self.say(&error);
            None
        })?;
        let ticket = |item: Item| {
            Tls13ClientSessionValue::from_stored(&item.bytes, &self.suites, &self.verifier, &self.credentials)
        };
        Some(Kept {
            tickets: record.tickets.into_iter().filter_map(ticket).collect(),
            tokens: record.tokens.into_iter().map(|item| item.bytes.into()).collect(),
            rtt: record.rtt,
            address: record.address,
        })
    }

    /// Adds to what is on disk; false where that did not work.
    pub(super) fn put(&self, server: &str, kept: &Kept, now: SystemTime) -> bool {
        let ticket = |ticket: &Tls13ClientSessionValue| {
            let bytes = ticket.to_stored();
            Some(Item { expires_at: expires_at(&bytes)?, bytes })
        };
        let token_expires_at = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default() + SESSION_AGE;
        let record = Record {
            tickets: kept.tickets.iter().filter_map(ticket).collect(),
            tokens: kept
                .tokens
                .iter()
                .map(|token| Item { expires_at: token_expires_at.as_secs(), bytes: token.to_vec() })
                .collect(),
            rtt: kept.rtt,
            address: kept.address,
        };
        self.disk.put(server, record, now).inspect_err(|error| self.say(error)).is_ok()
    }

    /// A cache that does not work is no news for a user, one that is not safe is.
    fn say(&self, error: &DiskError) {
        match error {
            DiskError::NotOurs { .. } if !self.warned.swap(true, Relaxed) => {
                tracing::warn!(%error, "sessions are kept in memory only");
            }
            error => tracing::debug!(%error, "sessions are kept in memory only"),
        }
    }
}

/// When a session written by `Tls13ClientSessionValue::to_stored` expires, in seconds since 1970. It begins with
///
/// ```text
/// cipher suite u16, age_add u32, max_early_data_size u32, received at u64, lifetime in seconds u32
/// ```
///
/// A lifetime of 0 means that it is not to be kept (RFC 8446 §4.6.1).
fn expires_at(stored: &[u8]) -> Option<u64> {
    let received_at = u64::from_be_bytes(stored.get(10..18)?.try_into().ok()?);
    let lifetime = u32::from_be_bytes(stored.get(18..22)?.try_into().ok()?);
    let lifetime = Duration::from_secs(lifetime.into()).min(SESSION_AGE);
    (!lifetime.is_zero()).then(|| received_at.saturating_add(lifetime.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(received_at: u64, lifetime: u32) -> Vec<u8> {
        let mut bytes = vec![0xff; 10];
        bytes.extend(received_at.to_be_bytes());
        bytes.extend(lifetime.to_be_bytes());
        bytes.extend([0xff; 30]);
        bytes
    }

    #[test]
    fn a_session_lives_as_long_as_its_server_says_and_a_week_at_most() {
        assert_eq!(expires_at(&stored(1000, 60)), Some(1060));
        assert_eq!(expires_at(&stored(1000, u32::MAX)), Some(1000 + SESSION_AGE.as_secs()));
        assert_eq!(expires_at(&stored(1000, 0)), None);
        assert_eq!(expires_at(&stored(u64::MAX, 60)), Some(u64::MAX));
        assert_eq!(expires_at(&stored(1000, 60)[..21]), None);
    }
}
