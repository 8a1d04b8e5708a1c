//! How many generations of each key run: those that agents report, and those that were just routed.

use std::{collections::HashMap, time::Instant};

/// Plain data. What agents report replaces what they reported before, so that nothing is counted for ever.
#[derive(Debug, Default)]
pub(super) struct Running {
    /// Of all agents together.
    totals: HashMap<String, u32>,
    agents: HashMap<String, HashMap<String, u32>>,
    /// Jobs that no agent has claimed yet.
    booked: HashMap<String, Booked>,
}

#[derive(Debug)]
struct Booked {
    key_id: String,
    expires: Instant,
}

impl Running {
    /// The generations of a key.
    pub(super) fn of(&mut self, key_id: &str, now: Instant) -> u32 {
        self.booked.retain(|_, booked| booked.expires > now);
        let booked = self.booked.values().filter(|booked| booked.key_id == key_id).count();
        let running = self.totals.get(key_id).copied().unwrap_or(0);
        running.saturating_add(u32::try_from(booked).unwrap_or(u32::MAX))
    }

    pub(super) fn book(&mut self, key_id: &str, job_id: &str, expires: Instant) {
        self.booked.insert(job_id.to_owned(), Booked { key_id: key_id.to_owned(), expires });
    }

    pub(super) fn release(&mut self, job_id: &str) {
        self.booked.remove(job_id);
    }

    /// What runs at an agent now.
    pub(super) fn set(&mut self, agent_id: &str, by_key: HashMap<String, u32>) {
        for (key_id, count) in self.agents.remove(agent_id).into_iter().flatten() {
            if let Some(total) = self.totals.get_mut(&key_id) {
                *total = total.saturating_sub(count);
                if *total == 0 {
                    self.totals.remove(&key_id);
                }
            }
        }
        if by_key.is_empty() {
            return;
        }
        for (key_id, count) in &by_key {
            let total = self.totals.entry(key_id.clone()).or_default();
            *total = total.saturating_add(*count);
        }
        self.agents.insert(agent_id.to_owned(), by_key);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn counts(counts: &[(&str, u32)]) -> HashMap<String, u32> {
        counts.iter().map(|&(key, count)| (key.to_owned(), count)).collect()
    }

    #[test]
    fn what_agents_report_takes_the_place_of_what_they_reported() {
        let (mut running, now) = (Running::default(), Instant::now());
        running.set("a", counts(&[("k", 2), ("other", 1)]));
        running.set("b", counts(&[("k", 1)]));
        assert_eq!(running.of("k", now), 3);
        running.set("a", counts(&[("k", 1)]));
        assert_eq!((running.of("k", now), running.of("other", now)), (2, 0));
        running.set("b", HashMap::new());
        running.set("a", HashMap::new());
        assert_eq!(running.of("k", now), 0);
        assert!(running.totals.is_empty() && running.agents.is_empty(), "nothing is left behind");
    }

    #[test]
    fn a_job_counts_until_it_is_claimed_or_does_not_come() {
        let (mut running, now) = (Running::default(), Instant::now());
        let expires = now + Duration::from_secs(5);
        running.book("k", "job-1", expires);
        running.book("k", "job-2", expires);
        assert_eq!(running.of("k", now), 2);
        running.release("job-1");
        assert_eq!(running.of("k", now), 1);
        assert_eq!(running.of("k", expires), 0);
        assert!(running.booked.is_empty());
    }
}
