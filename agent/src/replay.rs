//! Runs a request with a nonce once.
//!
//! Early data (TLS 1.3 0-RTT) can be recorded and sent again by anyone on the path (RFC 8446 §8), and a client that tries two
//! wires at once may send the same request twice. So a request carries a nonce, and the agent remembers each (token, nonce) pair
//! for as long as the token is accepted.
//!
//! The memory is bounded, per token and in all, so one client can neither fill it for the others nor grow it. What does not fit
//! is not refused, only slowed: it runs [`unrecorded`](Verdict::Unrecorded), and then no early data of that token (or, when the
//! whole memory is full, of any token) runs before its handshake is complete, until the unrecorded tokens have expired. The second
//! half matters: a replay of an unrecorded request may arrive when there is room again.
//!
//! Nothing is kept across a restart, and need not be: the TLS tickets that early data depends on are lost with it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use parking_lot::Mutex;

/// Pairs remembered in all; at about 150 bytes each, 10 MB.
pub(crate) const MAX_PAIRS: usize = 65_536;
/// Pairs remembered per token: more than three requests a second for a token's five minutes.
pub(crate) const MAX_PAIRS_PER_TOKEN: usize = 1_024;
/// Longest nonce in bytes: a UUID in text is 36, a SHA-256 in hexadecimal 64.
pub(crate) const MAX_NONCE_BYTES: usize = 64;

/// What is known about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not seen before, and remembered from now on: run it.
    Fresh,
    /// Seen before: do not run it.
    Repeated,
    /// Not seen, and not remembered either: run it once its handshake is known to be complete.
    Unrecorded,
}

/// What was noted about a request. Dropping it before the request has started takes that back: trying again is right then.
#[derive(Debug)]
pub(crate) struct Note {
    cache: Arc<Mutex<ReplayCache>>,
    jti: String,
    nonce: String,
    ran: bool,
}

impl Note {
    /// Judges a request as [`ReplayCache::remember`] does. There is no note of a repeated one to take back.
    pub(crate) fn make(
        cache: &Arc<Mutex<ReplayCache>>,
        jti: &str,
        nonce: String,
        dead_at: i64,
        now: i64,
    ) -> (Verdict, Option<Self>) {
        let verdict = cache.lock().remember(jti, &nonce, dead_at, now);
        let note = (verdict != Verdict::Repeated).then(|| Self {
            cache: Arc::clone(cache),
            jti: jti.to_owned(),
            nonce,
            ran: false,
        });
        (verdict, note)
    }

    /// The request has started.
    pub(crate) fn started(&mut self) {
        self.ran = true;
    }

    /// The request has failed before it produced anything: as if it had not started.
    pub(crate) fn take_back(&mut self) {
        self.ran = false;
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        if !self.ran {
            self.cache.lock().forget(&self.jti, &self.nonce);
        }
    }
}

/// The (token, nonce) pairs of the last minutes. Times are Unix seconds.
#[derive(Debug)]
pub(crate) struct ReplayCache {
    tokens: HashMap<String, Token>,
    /// Every token by the time at which it is forgotten.
    expiries: BTreeMap<i64, Vec<String>>,
    pairs: usize,
    max_pairs: usize,
    /// While now is before this time, some token that is not in `tokens` has run a request unrecorded.
    overflow_until: i64,
}

#[derive(Debug, Default)]
struct Token {
    nonces: HashSet<Box<str>>,
    /// A request of this token has run unrecorded.
    overflowed: bool,
}

impl Default for ReplayCache {
    fn default() -> Self {
        Self::new(MAX_PAIRS)
    }
}

impl ReplayCache {
    fn new(max_pairs: usize) -> Self {
        Self { tokens: HashMap::new(), expiries: BTreeMap::new(), pairs: 0, max_pairs, overflow_until: i64::MIN }
    }

    /// Judges the request `nonce` of the token `jti`, and remembers it if there is room. From `dead_at` on no verifier accepts
    /// the token ([`titan_transport::token::Claims::dead_at`]).
    pub(crate) fn remember(&mut self, jti: &str, nonce: &str, dead_at: i64, now: i64) -> Verdict {
        self.forget_expired(now);
        // Tokens are counted too: one whose requests were all taken back holds no pair, but still a place.
        let room = self.pairs.max(self.tokens.len()) < self.max_pairs;
        let Some(token) = self.tokens.get_mut(jti) else {
            if !room {
                self.overflow_until = self.overflow_until.max(dead_at);
                return Verdict::Unrecorded;
            }
            let token = Token { nonces: HashSet::from([nonce.into()]), overflowed: false };
            self.tokens.insert(jti.to_owned(), token);
            self.expiries.entry(dead_at).or_default().push(jti.to_owned());
            self.pairs += 1;
            // A request of this very token may be among those that ran unrecorded.
            return if now < self.overflow_until { Verdict::Unrecorded } else { Verdict::Fresh };
        };
        if token.nonces.contains(nonce) {
            return Verdict::Repeated;
        }
        if self.pairs >= self.max_pairs || token.nonces.len() >= MAX_PAIRS_PER_TOKEN {
            token.overflowed = true;
            return Verdict::Unrecorded;
        }
        token.nonces.insert(nonce.into());
        self.pairs += 1;
        if token.overflowed || now < self.overflow_until { Verdict::Unrecorded } else { Verdict::Fresh }
    }

    /// Takes back what [`remember`](Self::remember) noted, for a request that did not run after all: trying again is right.
    pub(crate) fn forget(&mut self, jti: &str, nonce: &str) {
        if self.tokens.get_mut(jti).is_some_and(|token| token.nonces.remove(nonce)) {
            self.pairs -= 1;
        }
    }

    fn forget_expired(&mut self, now: i64) {
        while let Some(entry) = self.expiries.first_entry().filter(|entry| *entry.key() <= now) {
            for jti in entry.remove() {
                if let Some(token) = self.tokens.remove(&jti) {
                    self.pairs -= token.nonces.len();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEAD_AT: i64 = 300;

    #[test]
    fn a_pair_runs_once() {
        let mut cache = ReplayCache::default();
        assert_eq!(cache.remember("a", "1", DEAD_AT, 0), Verdict::Fresh);
        assert_eq!(cache.remember("a", "1", DEAD_AT, 1), Verdict::Repeated);
        assert_eq!(cache.remember("a", "2", DEAD_AT, 1), Verdict::Fresh);
        assert_eq!(cache.remember("b", "1", DEAD_AT, 1), Verdict::Fresh);
    }

    #[test]
    fn a_pair_is_remembered_for_as_long_as_its_token_may_be_accepted() {
        let mut cache = ReplayCache::default();
        cache.remember("a", "1", DEAD_AT, 0);
        assert_eq!(cache.remember("a", "1", DEAD_AT, DEAD_AT - 1), Verdict::Repeated);
        assert_eq!(cache.remember("b", "1", 2 * DEAD_AT, DEAD_AT), Verdict::Fresh);
        assert_eq!((cache.pairs, cache.tokens.len(), cache.expiries.len()), (1, 1, 1));
    }

    #[test]
    fn one_token_cannot_fill_the_memory() {
        let mut cache = ReplayCache::default();
        for nonce in 0..MAX_PAIRS_PER_TOKEN {
            assert_eq!(cache.remember("a", &nonce.to_string(), DEAD_AT, 0), Verdict::Fresh);
        }
        assert_eq!(cache.remember("a", "one more", DEAD_AT, 0), Verdict::Unrecorded);
        assert_eq!(cache.remember("a", "0", DEAD_AT, 0), Verdict::Repeated);
        assert_eq!(cache.remember("b", "1", DEAD_AT, 0), Verdict::Fresh);
        assert_eq!(cache.pairs, MAX_PAIRS_PER_TOKEN + 1);
    }

    #[test]
    fn a_replay_of_an_unrecorded_request_is_not_fresh_when_there_is_room_again() {
        let mut cache = ReplayCache::new(2);
        cache.remember("a", "1", 100, 0);
        cache.remember("a", "2", 100, 0);
        assert_eq!(cache.remember("b", "1", DEAD_AT, 0), Verdict::Unrecorded);
        assert_eq!(cache.remember("b", "1", DEAD_AT, 100), Verdict::Unrecorded);
        assert_eq!(
            cache.remember("c", "1", 2 * DEAD_AT, DEAD_AT),
            Verdict::Fresh,
            "every unrecorded token has expired"
        );
    }

    #[test]
    fn an_overflowed_token_stays_unrecorded_after_one_of_its_requests_is_taken_back() {
        let mut cache = ReplayCache::default();
        for nonce in 0..=MAX_PAIRS_PER_TOKEN {
            cache.remember("a", &nonce.to_string(), DEAD_AT, 0);
        }
        cache.forget("a", "0");
        assert_eq!(cache.remember("a", &MAX_PAIRS_PER_TOKEN.to_string(), DEAD_AT, 0), Verdict::Unrecorded);
    }

    #[test]
    fn a_request_that_was_taken_back_may_come_again() {
        let mut cache = ReplayCache::default();
        cache.remember("a", "1", DEAD_AT, 0);
        cache.forget("a", "1");
        cache.forget("a", "unknown");
        cache.forget("unknown", "1");
        assert_eq!(cache.remember("a", "1", DEAD_AT, 0), Verdict::Fresh);
        assert_eq!(cache.pairs, 1);
    }

    #[test]
    fn a_note_that_is_dropped_before_the_start_is_taken_back() {
        let cache = Arc::default();
        let make = || Note::make(&cache, "a", "1".into(), DEAD_AT, 0);
        drop(make());
        let (verdict, mut note) = make();
        assert_eq!(verdict, Verdict::Fresh);
        note.iter_mut().for_each(Note::started);
        drop(note);
        assert!(matches!(make(), (Verdict::Repeated, None)));
        assert!(matches!(make(), (Verdict::Repeated, None)), "a repeated request takes nothing back");
    }

    #[test]
    fn memory_is_bounded_whatever_comes() {
        let mut cache = ReplayCache::new(100);
        for n in 0..10_000 {
            cache.remember(&n.to_string(), "1", DEAD_AT, 0);
        }
        assert_eq!((cache.pairs, cache.tokens.len()), (100, 100));

        let mut cache = ReplayCache::new(100);
        for n in 0..10_000 {
            cache.remember(&n.to_string(), "1", DEAD_AT, 0);
            cache.forget(&n.to_string(), "1");
        }
        assert_eq!((cache.pairs, cache.tokens.len()), (0, 100));
    }
}
