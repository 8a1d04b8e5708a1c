//! How many generations each token has started, where it may start so many only.

use std::{collections::HashMap, sync::Arc, time::SystemTime};

use parking_lot::Mutex;
use titan_transport::token::{Claims, unix_seconds};
use tonic::Status;

/// Tokens that are remembered: those of all requests that an agent could run within the longest usual life of a token, 50 MB at most.
const MAX_TOKENS: usize = 200_000;

/// Tokens with a number of uses, until they expire.
#[derive(Debug, Default)]
pub(crate) struct TokenUses(Arc<Mutex<Uses>>);

#[derive(Debug, Default)]
struct Uses {
    by_jti: HashMap<String, Use>,
    /// When those that have expired were last thrown out.
    tidied: i64,
}

#[derive(Debug)]
struct Use {
    started: u32,
    /// Unix seconds.
    dead_at: i64,
}

/// One use. Dropped without [`used`](Self::used) it does not count: what did not start may be tried again.
#[derive(Debug)]
#[must_use]
pub(crate) struct TokenUse(Option<(Arc<Mutex<Uses>>, String)>);

impl TokenUses {
    /// Counts a generation that is about to start.
    ///
    /// # Errors
    /// PERMISSION_DENIED when the token has started as many as it may.
    pub(crate) fn start(&self, claims: &Claims, now: SystemTime) -> Result<TokenUse, Status> {
        let Some(allowed) = claims.generations else { return Ok(TokenUse(None)) };
        let now = unix_seconds(now);
        let mut uses = self.0.lock();
        if uses.by_jti.len() >= MAX_TOKENS && uses.tidied != now {
            uses.by_jti.retain(|_, used| used.dead_at > now);
            uses.tidied = now;
        }
        if uses.by_jti.len() >= MAX_TOKENS && !uses.by_jti.contains_key(&claims.jti) {
            return Err(Status::unavailable("too many requests at this agent: ask the coordinator again"));
        }
        let dead_at = unix_seconds(claims.dead_at());
        let used = uses.by_jti.entry(claims.jti.clone()).or_insert(Use { started: 0, dead_at });
        if used.started >= allowed {
            return Err(Status::permission_denied(format!(
                "this session token was good for {allowed} generation(s), which it has started: ask the coordinator for another one"
            )));
        }
        used.started += 1;
        drop(uses);
        Ok(TokenUse(Some((Arc::clone(&self.0), claims.jti.clone()))))
    }
}

impl TokenUse {
    /// The generation has started.
    pub(crate) fn used(mut self) {
        self.0 = None;
    }
}

impl Drop for TokenUse {
    fn drop(&mut self) {
        let Some((uses, jti)) = self.0.take() else { return };
        if let Some(used) = uses.lock().by_jti.get_mut(&jti) {
            used.started = used.started.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;

    fn claims(jti: &str, generations: Option<u32>) -> Claims {
        Claims {
            iss: String::new(),
            agent_id: String::new(),
            client_id: String::new(),
            model: String::new(),
            job_id: String::new(),
            jti: jti.to_owned(),
            iat: 0,
            nbf: 0,
            exp: 1_000,
            request: None,
            key: None,
            generations,
        }
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_token_starts_as_many_as_it_may() {
        let uses = TokenUses::default();
        let twice = claims("a", Some(2));
        uses.start(&twice, at(0)).unwrap().used();
        uses.start(&twice, at(0)).unwrap().used();
        let refused = uses.start(&twice, at(0)).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
        uses.start(&claims("b", Some(1)), at(0)).unwrap().used();
    }

    #[test]
    fn what_did_not_start_may_be_tried_again() {
        let uses = TokenUses::default();
        let once = claims("a", Some(1));
        let first = uses.start(&once, at(0)).unwrap();
        assert!(uses.start(&once, at(0)).is_err(), "not two at once");
        drop(first);
        uses.start(&once, at(0)).unwrap().used();
        assert!(uses.start(&once, at(0)).is_err());
    }

    #[test]
    fn a_token_without_a_number_is_not_remembered() {
        let uses = TokenUses::default();
        for _ in 0..3 {
            uses.start(&claims("a", None), at(0)).unwrap().used();
        }
        assert!(uses.0.lock().by_jti.is_empty());
    }

    #[test]
    fn the_memory_is_bounded_and_forgets_what_has_expired() {
        let uses = TokenUses::default();
        for n in 0..MAX_TOKENS {
            uses.start(&claims(&n.to_string(), Some(1)), at(0)).unwrap().used();
        }
        let refused = uses.start(&claims("one more", Some(1)), at(1)).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unavailable);
        uses.start(&claims("one more", Some(1)), at(2_000)).unwrap().used();
        assert_eq!(uses.0.lock().by_jti.len(), 1);
    }
}
