//! What makes the next connection to a server start sooner: TLS sessions, address tokens, the round-trip time, the address that
//! answered. PROTOCOL.md §13.
//!
//! A session is used once. It belongs to one process, in its `memory`, or lies in a file on `disk` for the first that takes it. What
//! a server gives goes to the disk at once, so that it is there however this process ends; before a connection is made, what it
//! needs is taken from there. Where the disk does not work, everything stays in memory.

#[cfg(feature = "stored-sessions")]
mod disk;
mod memory;
#[cfg(any(feature = "stored-sessions", fuzzing))]
pub(crate) mod record;
#[cfg(feature = "stored-sessions")]
mod stored;
#[cfg(not(feature = "stored-sessions"))]
#[path = "sessions/not_stored.rs"]
mod stored;

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use parking_lot::Mutex;
use quinn::TokenStore;
use rustls::{
    NamedGroup,
    client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue},
};
use rustls_pki_types::ServerName;
use tokio::{runtime::Handle, sync::Notify, task::spawn_blocking, time::timeout};

use self::memory::Memory;
pub(crate) use self::stored::Stored;

/// Longest wait for the disk before a connection is made without what is on it, which costs a round trip. It takes a fraction of a
/// millisecond, up to 50 ms when another process was stopped while it held the directory, and more where the machine is busy.
const LOAD_WITHIN: Duration = Duration::from_millis(250);
/// From a complete handshake to the server's sessions, which take one round trip: how long a program that ends waits for them.
const SESSIONS_WITHIN: Duration = Duration::from_millis(250);
/// Longest wait for the disk when a program ends.
const SAVE_WITHIN: Duration = Duration::from_millis(200);

/// The sessions of one client configuration. Cheap to clone; the clones share everything.
#[derive(Clone)]
pub(crate) struct Sessions(Arc<Inner>);

struct Inner {
    /// Held for moments only.
    memory: Mutex<Memory>,
    /// A session has come.
    came: Notify,
    stored: Option<Stored>,
    /// Held while something is on its way to the disk or from there.
    disk: Mutex<()>,
    /// A save is on its way that has not looked at the memory yet.
    saving: AtomicBool,
}

impl Sessions {
    /// In memory, and where `stored` says.
    pub(crate) fn new(stored: Option<Stored>) -> Self {
        let (memory, came, disk, saving) = Default::default();
        Self(Arc::new(Inner { memory, came, stored, disk, saving }))
    }

    /// Gets what a connection to `server` needs into memory. True if that holds a session which comes from disk.
    pub(crate) async fn load(&self, server: &str) -> bool {
        let name = server.to_ascii_lowercase();
        if self.0.stored.is_none() || self.0.has_ticket(&name) {
            return false;
        }
        let inner = self.0.clone();
        let loading = spawn_blocking(move || inner.load(&name));
        // What comes too late is for the next connection.
        matches!(timeout(LOAD_WITHIN, loading).await, Ok(Ok(true)))
    }

    /// The round-trip time measured last.
    pub(crate) fn rtt(&self, server: &str) -> Option<Duration> {
        self.0.memory.lock().get(&server.to_ascii_lowercase())?.kept.rtt
    }

    /// The address that answered last. Taken, so that it is not tried alone again unless it answers.
    pub(crate) fn take_address(&self, server: &str) -> Option<SocketAddr> {
        self.0.memory.lock().get(&server.to_ascii_lowercase())?.kept.address.take()
    }

    /// A connection is there. It goes to the disk with the sessions, which come a round trip later.
    pub(crate) fn connected(&self, server: &str, address: SocketAddr, rtt: Duration) {
        let mut memory = self.0.memory.lock();
        let server = memory.get_or_insert(&server.to_ascii_lowercase());
        server.kept.rtt = Some(rtt);
        server.kept.address = Some(address);
        server.unsaved = true;
    }

    /// Waits, not for long, for sessions that servers owe to connections just made, and until everything is on disk. False if that
    /// took too long.
    pub(crate) async fn settle(&self) -> bool {
        if self.0.stored.is_none() {
            return true;
        }
        let arrived = self.arrive().await;
        let inner = self.0.clone();
        let saved = timeout(SAVE_WITHIN, spawn_blocking(move || inner.save(true))).await;
        arrived && matches!(saved, Ok(Ok(())))
    }

    /// Waits, not for long, for sessions that servers owe to connections just made. Whether all have come.
    pub(crate) async fn arrive(&self) -> bool {
        loop {
            let came = self.0.came.notified();
            let until = {
                let memory = self.0.memory.lock();
                match memory.owed_until(SESSIONS_WITHIN, Instant::now()) {
                    Some(until) => until,
                    None => return !memory.owed(),
                }
            };
            // What follows the first in the same packet is there when this task runs.
            let _ = tokio::time::timeout_at(until.into(), came).await;
        }
    }

    /// Something came that shall not be lost.
    fn save_soon(&self) {
        if self.0.stored.is_none() || self.0.saving.swap(true, SeqCst) {
            return;
        }
        let inner = self.0.clone();
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || inner.save(false))),
            Err(_) => inner.save(false),
        }
    }
}

impl Inner {
    fn has_ticket(&self, name: &str) -> bool {
        self.memory.lock().get(name).is_some_and(|server| !server.kept.tickets.is_empty())
    }

    fn load(&self, name: &str) -> bool {
        let Some(stored) = &self.stored else { return false };
        let _disk = self.disk.lock();
        // Another connection may have been first, or a save did not work.
        if self.has_ticket(name) {
            return false;
        }
        let Some(kept) = stored.take(name, SystemTime::now()) else { return false };
        let has_ticket = !kept.tickets.is_empty();
        let mut memory = self.memory.lock();
        // Not `unsaved`: a save for another connection's sake must not take it back before this one has used it.
        memory.get_or_insert(name).add_older(kept);
        has_ticket
    }

    /// Brings to the disk what is not there; with `everything` also what was taken from there and not used.
    fn save(&self, everything: bool) {
        let Some(stored) = &self.stored else { return };
        let _disk = self.disk.lock();
        // From here on, what comes is for the next save.
        self.saving.store(false, SeqCst);
        let unsaved = self.memory.lock().take_unsaved(everything);
        for (name, kept) in unsaved {
            if !stored.put(&name, &kept, SystemTime::now()) {
                let mut memory = self.memory.lock();
                let server = memory.get_or_insert(&name);
                server.add_older(kept);
                server.unsaved = true;
            }
        }
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, server_name: ServerName<'static>, group: NamedGroup) {
        let mut memory = self.0.memory.lock();
        let server = memory.get_or_insert(&key(&server_name));
        server.group = Some(group);
        // rustls calls this when a handshake is complete.
        server.owes_since = Some(Instant::now());
    }

    fn kx_hint(&self, server_name: &ServerName<'_>) -> Option<NamedGroup> {
        self.0.memory.lock().get(&key(server_name))?.group
    }

    // TLS 1.3 is all that QUIC has.
    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, server_name: ServerName<'static>, value: Tls13ClientSessionValue) {
        {
            let mut memory = self.0.memory.lock();
            let server = memory.get_or_insert(&key(&server_name));
            server.kept.tickets.push(value);
            server.bound();
            server.owes_since = None;
            server.unsaved = true;
        }
        self.0.came.notify_waiters();
        self.save_soon();
    }

    fn take_tls13_ticket(&self, server_name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.memory.lock().get(&key(server_name))?.kept.tickets.pop()
    }
}

impl TokenStore for Sessions {
    fn insert(&self, server_name: &str, token: Bytes) {
        {
            let mut memory = self.0.memory.lock();
            let server = memory.get_or_insert(&server_name.to_ascii_lowercase());
            server.kept.tokens.push(token);
            server.bound();
            server.unsaved = true;
        }
        self.save_soon();
    }

    fn take(&self, server_name: &str) -> Option<Bytes> {
        self.0.memory.lock().get(&server_name.to_ascii_lowercase())?.kept.tokens.pop()
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").field("stored", &self.0.stored.is_some()).finish_non_exhaustive()
    }
}

fn key(server_name: &ServerName<'_>) -> String {
    server_name.to_str().to_ascii_lowercase()
}
