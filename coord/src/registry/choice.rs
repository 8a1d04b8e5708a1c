//! Which agents the scheduler looks at for a request: all of them while they are few, some of them in a large fleet.

use std::{
    collections::{BTreeSet, HashMap},
    mem,
    time::Instant,
};

use super::{Agent, BookError, MAX_MODELS_NAMED, Wanted, serving::Serving};
use crate::scheduler::{self, Candidate, Weights};

/// Up to so many agents of a model are all looked at: within 10 µs.
pub(super) const MAX_SCANNED: usize = 128;
/// Of more than that, so many with room: the best of 64 is on average the best but one or two in a hundred (docs/ROUTING.md).
const SAMPLE: usize = 64;
/// Conversations whose last agent is remembered at least; twice as many at most, in 4 MB.
const MAX_REMEMBERED: usize = 64 * 1024;

/// A choice to be made.
pub(super) struct Look<'a> {
    pub(super) wanted: &'a Wanted<'a>,
    /// The places of agents that failed this client.
    pub(super) except: &'a [usize],
    pub(super) weights: &'a Weights,
    pub(super) now: Instant,
}

impl Look<'_> {
    /// The place of the best agent.
    pub(super) fn choose(
        &self,
        agents: &mut [Option<Agent>],
        serving: &Serving,
        places: &Places,
        turn: u64,
    ) -> Result<usize, BookError> {
        if serving.slots().len() <= MAX_SCANNED || !self.wanted.model_digest.is_empty() {
            return self.among_all(agents, serving);
        }
        let mut some = serving.some_open(turn, SAMPLE);
        if some.is_empty() {
            // As full as it looks, unless nobody is there.
            let there = |&slot: &usize| {
                agents.get(slot).is_some_and(|agent| agent.as_ref().is_some_and(|agent| agent.reachable(self.now)))
            };
            return Err(if serving.slots().iter().any(there) { BookError::NoCapacity } else { BookError::NoAgents });
        }
        some.extend(places.of(self.wanted.conversation).filter(|&slot| serving.contains(slot)));
        let best = scheduler::choose(self.weights, some.into_iter().filter_map(|slot| self.candidate(agents, slot)));
        match best.and_then(|slot| self.candidate(agents, slot)) {
            Some(best) if best.reserve == 0 => Ok(best.key),
            // Nobody of them is better than a last resort: there may be somebody else.
            _ => self.among_all(agents, serving),
        }
    }

    fn among_all(&self, agents: &mut [Option<Agent>], serving: &Serving) -> Result<usize, BookError> {
        let Wanted { model, model_digest, .. } = *self.wanted;
        let (mut any_equal, mut others) = (false, BTreeSet::new());
        let candidates = serving.slots().iter().filter_map(|&slot| {
            let agent = agents.get(slot)?.as_ref()?;
            if !agent.reachable(self.now) {
                return None;
            }
            if !model_digest.is_empty() {
                let digest = agent.profile.digest(model).unwrap_or_default();
                if digest != model_digest {
                    others.insert(digest.to_owned());
                    return None;
                }
            }
            any_equal = true;
            self.candidate(agents, slot)
        });
        scheduler::choose(self.weights, candidates).ok_or_else(|| match (any_equal, others.is_empty()) {
            (true, _) => BookError::NoCapacity,
            (false, true) => BookError::NoAgents,
            (false, false) => BookError::OtherDigests { found: others.into_iter().take(MAX_MODELS_NAMED).collect() },
        })
    }

    fn candidate(&self, agents: &mut [Option<Agent>], slot: usize) -> Option<Candidate> {
        let agent = agents.get_mut(slot)?.as_mut().filter(|agent| agent.reachable(self.now))?;
        agent.settle(self.now);
        let Wanted { conversation, who, .. } = *self.wanted;
        agent.candidate(slot, conversation, self.except.contains(&slot), who, self.now)
    }
}

/// Where conversations went: of thousands of agents, the one that holds a conversation is not among a few by chance. What it says it holds
/// decides; this only says whom to look at.
#[derive(Debug, Default)]
pub(super) struct Places {
    newer: HashMap<u64, usize>,
    older: HashMap<u64, usize>,
}

impl Places {
    /// The conversation, by its digests, goes to the agent at this place.
    pub(super) fn note(&mut self, conversation: &[u64], slot: usize) {
        let Some(&longest) = conversation.last() else { return };
        if self.newer.len() >= MAX_REMEMBERED {
            self.older = mem::take(&mut self.newer);
        }
        self.newer.insert(longest, slot);
    }

    /// Where its beginnings went, the longest first.
    fn of(&self, conversation: &[u64]) -> impl Iterator<Item = usize> {
        conversation
            .iter()
            .rev()
            .filter_map(|digest| self.newer.get(digest).or_else(|| self.older.get(digest)).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_conversations_went_is_remembered_within_bounds() {
        let mut places = Places::default();
        places.note(&[], 7);
        places.note(&[1, 2, 3], 4);
        assert_eq!(places.of(&[1, 2, 3, 4, 5]).collect::<Vec<_>>(), [4]);
        assert_eq!(places.of(&[1, 2]).count(), 0, "another conversation with the same beginning");
        for digest in 10..10 + 3 * MAX_REMEMBERED as u64 {
            places.note(&[digest], 1);
        }
        assert!(places.newer.len() <= MAX_REMEMBERED && places.older.len() <= MAX_REMEMBERED);
        assert_eq!(places.of(&[3]).count(), 0, "long forgotten");
    }
}
