//! What a client knows of the servers it has met. No I/O; `now` comes from the caller.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rustls::{NamedGroup, client::Tls13ClientSessionValue};

use crate::limits::{ADDRESS_TOKENS_KEPT, SESSION_SERVERS, TICKETS_PER_SERVER};

/// By server name. Bounded; the server not used for longest goes.
#[derive(Default)]
pub(super) struct Memory {
    servers: HashMap<String, Server>,
    /// Counts uses.
    clock: u64,
}

/// One server.
#[derive(Default)]
pub(super) struct Server {
    pub(super) kept: Kept,
    /// The key exchange that it chose last: the next handshake begins with it.
    pub(super) group: Option<NamedGroup>,
    /// Something here is not on disk.
    pub(super) unsaved: bool,
    /// A handshake was completed then, and no session has come since.
    pub(super) owes_since: Option<Instant>,
    used: u64,
}

/// What another connection, or another process, can make use of.
#[derive(Default)]
pub(super) struct Kept {
    /// The newest last, as in all lists here.
    pub(super) tickets: Vec<Tls13ClientSessionValue>,
    pub(super) tokens: Vec<Bytes>,
    pub(super) rtt: Option<Duration>,
    pub(super) address: Option<SocketAddr>,
}

impl Memory {
    pub(super) fn get(&mut self, name: &str) -> Option<&mut Server> {
        self.clock += 1;
        let server = self.servers.get_mut(name)?;
        server.used = self.clock;
        Some(server)
    }

    pub(super) fn get_or_insert(&mut self, name: &str) -> &mut Server {
        self.clock += 1;
        if !self.servers.contains_key(name) && self.servers.len() >= SESSION_SERVERS {
            let oldest = self.servers.iter().min_by_key(|(_, server)| server.used).map(|(name, _)| name.clone());
            self.servers.remove(&oldest.unwrap_or_default());
        }
        let server = self.servers.entry(name.to_owned()).or_default();
        server.used = self.clock;
        server
    }

    /// Removes what can be used only once and copies the rest, of the servers that have something which is not on disk, or of all.
    pub(super) fn take_unsaved(&mut self, all: bool) -> Vec<(String, Kept)> {
        let unsaved = self.servers.iter_mut().filter(|(_, server)| all || server.unsaved);
        let take = |(name, server): (&String, &mut Server)| {
            server.unsaved = false;
            let Kept { tickets, tokens, rtt, address } = &mut server.kept;
            let (tickets, tokens) = (std::mem::take(tickets), std::mem::take(tokens));
            (name.clone(), Kept { tickets, tokens, rtt: *rtt, address: *address })
        };
        unsaved.map(take).collect()
    }

    /// Until when a server may take to send the session that it owes, if one does.
    pub(super) fn owed_until(&self, within: Duration, now: Instant) -> Option<Instant> {
        self.servers.values().filter_map(|server| Some(server.owes_since? + within)).filter(|until| *until > now).max()
    }

    /// Whether a server owes a session, however long since.
    pub(super) fn owed(&self) -> bool {
        self.servers.values().any(|server| server.owes_since.is_some())
    }
}

impl Server {
    /// Adds what is older than what is here.
    pub(super) fn add_older(&mut self, older: Kept) {
        let newer = std::mem::replace(&mut self.kept, older);
        self.kept.tickets.extend(newer.tickets);
        self.kept.tokens.extend(newer.tokens);
        self.kept.rtt = newer.rtt.or(self.kept.rtt);
        self.kept.address = newer.address.or(self.kept.address);
        self.bound();
    }

    /// Forgets the oldest of what is one too many.
    pub(super) fn bound(&mut self) {
        let Kept { tickets, tokens, .. } = &mut self.kept;
        tickets.drain(..tickets.len().saturating_sub(TICKETS_PER_SERVER));
        tokens.drain(..tokens.len().saturating_sub(ADDRESS_TOKENS_KEPT));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn tokens(bytes: impl IntoIterator<Item = u8>) -> Kept {
        Kept { tokens: bytes.into_iter().map(|byte| Bytes::from(vec![byte])).collect(), ..Kept::default() }
    }

    fn of(kept: &Kept) -> Vec<u8> {
        kept.tokens.iter().map(|token| token[0]).collect()
    }

    #[test]
    fn the_server_not_used_for_longest_is_forgotten() {
        let mut memory = Memory::default();
        for n in 0..SESSION_SERVERS {
            memory.get_or_insert(&n.to_string());
        }
        assert!(memory.get("0").is_some());
        memory.get_or_insert("one more");
        assert!(memory.get("0").is_some() && memory.get("1").is_none());
        assert_eq!(memory.servers.len(), SESSION_SERVERS);
    }

    #[test]
    fn what_comes_back_from_a_failed_write_stands_behind_what_came_meanwhile() {
        let mut memory = Memory::default();
        let server = memory.get_or_insert("a");
        server.kept = Kept { rtt: Some(Duration::from_millis(1)), ..tokens([1, 2]) };
        server.unsaved = true;
        let (name, leaving) = memory.take_unsaved(false).pop().unwrap();
        assert!(memory.take_unsaved(false).is_empty());
        let server = memory.get(&name).unwrap();
        assert_eq!((of(&server.kept), server.kept.rtt), (vec![], Some(Duration::from_millis(1))));
        server.kept.tokens = tokens([3]).tokens;
        server.add_older(leaving);
        assert_eq!(of(&server.kept), [1, 2, 3]);
        server.add_older(tokens(0..ADDRESS_TOKENS_KEPT as u8 + 1));
        assert_eq!(of(&server.kept)[ADDRESS_TOKENS_KEPT - 3..], [1, 2, 3]);
        assert_eq!(server.kept.tokens.len(), ADDRESS_TOKENS_KEPT);
    }

    #[test]
    fn a_server_owes_a_session_for_a_while_after_the_handshake() {
        let (mut memory, now, within) = (Memory::default(), Instant::now(), Duration::from_millis(250));
        assert_eq!(memory.owed_until(within, now), None);
        memory.get_or_insert("a").owes_since = Some(now);
        assert_eq!(memory.owed_until(within, now), Some(now + within));
        assert_eq!(memory.owed_until(within, now + within), None);
        assert!(memory.owed(), "it has not come");
    }
}
