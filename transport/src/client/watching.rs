//! What a connection needs looked after: a server that is gone, a path that is silent, a network that has changed.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use quinn::Connection;
use tokio::sync::watch;

use super::{QuicConnector, channel::Live};
use crate::{
    limits::{FIRST_PROBE, PROBE_INTERVAL, SILENCE_LIMIT},
    repeat::receiver::Inboxes,
    wire::ErrorCode,
};

/// Looks after `live` until it ends. `network_changes` counts those that it followed.
pub(super) fn start(connector: &QuicConnector, live: &Arc<Live>, network_changes: Arc<AtomicU64>) {
    let watcher = Watcher {
        network_changes,
        connector: connector.clone(),
        connection: live.connection.clone(),
        inboxes: live.inboxes.clone(),
        live: Arc::downgrade(live),
    };
    let calls = live.calls.subscribe();
    tokio::spawn(watcher.run(calls));
}

struct Watcher {
    network_changes: Arc<AtomicU64>,
    connector: QuicConnector,
    connection: Connection,
    inboxes: Arc<Inboxes>,
    live: Weak<Live>,
}

impl Watcher {
    async fn run(self, calls: watch::Receiver<usize>) {
        tokio::select! {
            // Long before the idle timeout.
            () = self.connector.unreachable().watch(&self.connection) => {
                self.connection.close(ErrorCode::NoError.code(), b"the server's port is closed");
            }
            () = self.repeated() => {}
            () = self.ask(calls) => {}
            () = self.follow_network() => {}
            _ = self.connection.closed() => {}
        }
    }

    async fn repeated(&self) {
        if self.connector.options().redundancy {
            self.inboxes.listen().await;
        }
        std::future::pending().await
    }

    /// PROTOCOL.md §9: whoever only reads sends nothing, and so would not learn that the other end is gone.
    async fn ask(&self, mut calls: watch::Receiver<usize>) {
        let mut heard = self.heard();
        let (mut pause, mut silence) = (FIRST_PROBE, Duration::ZERO);
        // Ends when nobody holds the connection any more.
        while calls.wait_for(|calls| *calls > 0).await.is_ok() {
            tokio::time::sleep(pause).await;
            let now = self.heard();
            if std::mem::replace(&mut heard, now) != now {
                (pause, silence) = (FIRST_PROBE, Duration::ZERO);
                self.set_silent(false);
                continue;
            }
            silence += pause;
            pause = (pause * 2).min(PROBE_INTERVAL);
            self.set_silent(silence >= SILENCE_LIMIT);
            if *calls.borrow() > 0 {
                self.knock();
            }
        }
        self.connection.closed().await;
    }

    /// PROTOCOL.md §14: packets leave from another address now, and the server does not know it.
    async fn follow_network(&self) {
        #[cfg(target_os = "linux")]
        if let Some(mut changes) = self.connector.changes() {
            let mut source = crate::network::source(self.connection.remote_address());
            while changes.changed().await.is_ok() {
                let change = *changes.borrow_and_update();
                let now = crate::network::source(self.connection.remote_address());
                // Without a way to the server there is nothing to do until the next change.
                if now.is_some() && now != source {
                    source = now;
                    self.network_changes.fetch_add(1, Relaxed);
                    self.connector.rebind_for(change);
                    self.knock();
                }
            }
        }
        std::future::pending().await
    }

    /// Asks for a sign of life, and for what was lost meanwhile.
    fn knock(&self) {
        self.connector.request(self.connection.remote_address());
        if !self.inboxes.ask_again() {
            // An error means that the server takes no datagrams, or is gone already.
            let _ = self.connection.send_datagram(Bytes::new());
        }
    }

    fn heard(&self) -> u64 {
        self.connection.stats().udp_rx.datagrams
    }

    fn set_silent(&self, silent: bool) {
        if let Some(live) = self.live.upgrade() {
            live.silent.send_if_modified(|was| std::mem::replace(was, silent) != silent);
        }
    }
}
