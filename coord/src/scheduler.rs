//! Chooses one agent among those that could serve a request: a pure function over plain numbers.
//!
//! Each candidate gets a score between 0 and 1, the weighted mean of four parts, each between 0 and 1 as well. What its engine holds of the
//! conversation comes on top ([`prefix_score`]). Every part looks at one candidate alone, so an agent that joins or leaves never changes how
//! two others compare.

use std::cmp::Reverse;

/// What each part of the score counts. Only the proportions matter: the four are divided by their sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    /// Free memory, as a share of the agent's own. Defaults to 40. On a GPU most of it counts for `load`.
    pub free_memory: f64,
    /// Free job slots, as a share of the agent's own. Defaults to 30.
    pub load: f64,
    /// A short round trip between coordinator and agent. Defaults to 20.
    pub rtt: f64,
    /// Generation speed per job. Defaults to 10.
    pub tokens_per_second: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Self { free_memory: 40.0, load: 30.0, rtt: 20.0, tokens_per_second: 10.0 }
    }
}

/// Why a set of [`Weights`] cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum WeightsError {
    /// A weight is negative, infinite or not a number.
    #[error("the scheduler weight `{name}` is {value}: give a number of 0 or more")]
    NotAWeight {
        /// The field.
        name: &'static str,
        /// What it was set to.
        value: f64,
    },
    /// All weights are 0 (or their sum overflows), so nothing would be compared.
    #[error("the scheduler weights add up to {sum}: give at least one of them a value above 0")]
    Sum {
        /// The sum.
        sum: f64,
    },
}

impl Weights {
    /// The same proportions, adding up to 1.
    pub fn normalized(&self) -> Result<Self, WeightsError> {
        let Self { free_memory, load, rtt, tokens_per_second } = *self;
        let named =
            [("free_memory", free_memory), ("load", load), ("rtt", rtt), ("tokens_per_second", tokens_per_second)];
        for (name, value) in named {
            if !value.is_finite() || value < 0.0 {
                return Err(WeightsError::NotAWeight { name, value });
            }
        }
        let sum = free_memory + load + rtt + tokens_per_second;
        if sum == 0.0 || !sum.is_finite() {
            return Err(WeightsError::Sum { sum });
        }
        Ok(Self {
            free_memory: free_memory / sum,
            load: load / sum,
            rtt: rtt / sum,
            tokens_per_second: tokens_per_second / sum,
        })
    }
}

/// One agent that serves the model and has room.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// What the caller knows the agent by; returned by [`choose`].
    pub key: usize,
    /// Free memory over total memory: of the GPU where there is one, else RAM. A share, because what counts is how near an
    /// agent is to its own limit, and because a gigabyte of VRAM and one of RAM do not compare.
    pub free_memory: f64,
    /// Whether that memory is a GPU's.
    pub gpu: bool,
    /// Jobs running, queued or booked over the most it runs. The CPU's own load is left out: a busy CPU is what a running job
    /// looks like, and it would count every job twice.
    pub load: f64,
    /// Measured round-trip time; `None` counts as infinitely far, because the measurement comes with the next heartbeat and
    /// waiting for it is cheaper than a bad guess.
    pub rtt_ms: Option<f64>,
    /// Measured generation speed per job; `None` counts as 0, and a single job ends that.
    pub tokens_per_second: Option<f64>,
    /// Messages of the conversation that its engine holds, from the beginning on.
    pub prefix_messages: usize,
    /// 0 for an agent that may be chosen freely. One with a higher number is chosen where none with a lower one has room.
    pub reserve: u8,
    /// When it was last chosen: any number that grows from one choice to the next. The smallest wins a tie.
    pub last_chosen: u64,
}

/// The round trip that is worth half of its part of the score: above it, people notice the distance.
const HALF_SCORE_RTT_MS: f64 = 50.0;
/// The speed that is worth half of its part: about three times as fast as people read.
const HALF_SCORE_TOKENS_PER_SECOND: f64 = 30.0;
/// Scores are compared in steps of 1/100: two samples of one machine's free memory differ by that much, and such noise must
/// not decide against taking turns.
const SCORE_STEPS: f64 = 100.0;

/// The [`Candidate::key`] of the best candidate; among equals the one chosen least recently, then the lowest key.
///
/// `weights` must be [normalized](Weights::normalized). One pass, no allocation.
pub fn choose(weights: &Weights, candidates: impl Iterator<Item = Candidate>) -> Option<usize> {
    candidates
        .min_by_key(|candidate| {
            let score = score(weights, candidate) + prefix_score(candidate.prefix_messages);
            (candidate.reserve, Reverse(steps(score)), candidate.last_chosen, candidate.key)
        })
        .map(|candidate| candidate.key)
}

/// What is left of the weight of free memory on a GPU, where engines take the memory for their caches when they start: it says how large the
/// model is, and not how busy. With the default weights it is less than one of sixteen slots is worth, so load goes first and memory
/// decides between those who are equally busy.
const GPU_MEMORY_SHARE: f64 = 0.05;

pub(crate) fn score(weights: &Weights, candidate: &Candidate) -> f64 {
    let rtt = candidate.rtt_ms.map_or(0.0, |rtt_ms| HALF_SCORE_RTT_MS / (HALF_SCORE_RTT_MS + rtt_ms));
    let speed = candidate.tokens_per_second.map_or(0.0, |speed| speed / (HALF_SCORE_TOKENS_PER_SECOND + speed));
    let memory = if candidate.gpu { GPU_MEMORY_SHARE * weights.free_memory } else { weights.free_memory };
    let load = weights.load + (weights.free_memory - memory);
    memory * candidate.free_memory
        + load * (1.0 - candidate.load)
        + weights.rtt * rtt
        + weights.tokens_per_second * speed
}

/// What so many messages are worth that an engine need not read again.
///
/// Two or more are a conversation that goes on, one message of the user and its answer at least: that is worth more than all that an agent
/// without them can have, so it comes back to its agent while that has room, and of two agents to the one with the longer part. One alone is most
/// often the system's message, which many conversations share: if it counted as much, all of them would crowd at one agent.
fn prefix_score(messages: usize) -> f64 {
    match messages {
        0 => 0.0,
        1 => ONE_MESSAGE_SCORE,
        more => 2.0 - 1.0 / more as f64,
    }
}

/// As much as a quarter of an agent's slots being free, with the default weights.
const ONE_MESSAGE_SCORE: f64 = 0.075;

fn steps(score: f64) -> u32 {
    // Rounds; the cast saturates, and NaN becomes 0, the worst score.
    (score * SCORE_STEPS + 0.5) as u32
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    const SAME: Candidate = Candidate {
        key: 0,
        free_memory: 0.5,
        gpu: false,
        load: 0.5,
        rtt_ms: Some(10.0),
        tokens_per_second: Some(30.0),
        prefix_messages: 0,
        reserve: 0,
        last_chosen: 0,
    };

    fn chosen(candidates: &[Candidate]) -> Option<usize> {
        choose(&Weights::default().normalized().unwrap(), candidates.iter().copied())
    }

    #[test]
    fn nobody_is_chosen_from_nobody() {
        assert_eq!(chosen(&[]), None);
    }

    #[test]
    fn each_part_alone_decides_between_otherwise_equal_agents() {
        let better = [
            Candidate { key: 1, free_memory: 0.8, ..SAME },
            Candidate { key: 1, load: 0.25, ..SAME },
            Candidate { key: 1, rtt_ms: Some(1.0), ..SAME },
            Candidate { key: 1, tokens_per_second: Some(90.0), ..SAME },
        ];
        for candidate in better {
            assert_eq!(chosen(&[SAME, candidate]), Some(1), "{candidate:?}");
            assert_eq!(chosen(&[candidate, SAME]), Some(1), "{candidate:?}");
        }
    }

    #[test]
    fn free_memory_outweighs_load_and_load_outweighs_distance() {
        let roomy = Candidate { key: 1, free_memory: 1.0, load: 1.0, ..SAME };
        let idle = Candidate { key: 2, free_memory: 0.0, load: 0.0, ..SAME };
        assert_eq!(chosen(&[roomy, idle]), Some(1));
        let idle_and_far = Candidate { key: 3, load: 0.0, rtt_ms: Some(1e6), ..SAME };
        let busy_and_near = Candidate { key: 4, load: 1.0, rtt_ms: Some(0.1), ..SAME };
        assert_eq!(chosen(&[idle_and_far, busy_and_near]), Some(3));
    }

    #[test]
    fn on_gpus_load_outweighs_free_memory() {
        let roomy = Candidate { key: 1, gpu: true, free_memory: 1.0, load: 1.0 / 16.0, ..SAME };
        let idle = Candidate { key: 2, gpu: true, free_memory: 0.0, load: 0.0, ..SAME };
        assert_eq!(chosen(&[roomy, idle]), Some(2));
        assert_eq!(
            chosen(&[roomy, Candidate { load: roomy.load, ..idle }]),
            Some(1),
            "it decides between equally busy ones"
        );
    }

    #[test]
    fn an_agent_without_measurements_ranks_behind_a_measured_one() {
        let unmeasured = Candidate { key: 1, rtt_ms: None, tokens_per_second: None, ..SAME };
        let slow = Candidate { key: 2, rtt_ms: Some(200.0), tokens_per_second: Some(5.0), ..SAME };
        assert_eq!(chosen(&[unmeasured, slow]), Some(2));
    }

    #[test]
    fn a_conversation_comes_back_to_its_agent_whatever_else_speaks_against_it() {
        let worst = Candidate { free_memory: 0.0, load: 0.99, rtt_ms: None, tokens_per_second: None, ..SAME };
        let best = Candidate { free_memory: 1.0, load: 0.0, rtt_ms: Some(0.0), tokens_per_second: Some(1e6), ..SAME };
        for messages in [2, 3, 100] {
            let held = Candidate { key: 1, prefix_messages: messages, ..worst };
            assert_eq!(chosen(&[best, held]), Some(1), "{messages}");
        }
        let shared = Candidate { key: 1, prefix_messages: 1, ..worst };
        assert_eq!(chosen(&[best, shared]), Some(0), "a message that many conversations share");
        assert_eq!(
            chosen(&[SAME, Candidate { key: 1, prefix_messages: 1, ..SAME }]),
            Some(1),
            "among equals it counts"
        );
        let longer = Candidate { key: 2, prefix_messages: 4, ..SAME };
        assert_eq!(
            chosen(&[Candidate { key: 1, prefix_messages: 2, ..SAME }, longer]),
            Some(2),
            "the longest match counts"
        );
    }

    #[test]
    fn the_reserve_is_chosen_where_nobody_else_is_there() {
        let reserve = Candidate { key: 1, reserve: 1, prefix_messages: 9, load: 0.0, ..SAME };
        let last = Candidate { key: 2, reserve: 2, ..reserve };
        assert_eq!(chosen(&[reserve, SAME, last]), Some(0));
        assert_eq!(chosen(&[last, reserve]), Some(1));
        assert_eq!(chosen(&[last]), Some(2));
    }

    #[test]
    fn equals_take_turns() {
        let noisy = Candidate { key: 1, last_chosen: 7, free_memory: 0.501, ..SAME };
        let waiting = Candidate { key: 2, last_chosen: 3, ..SAME };
        assert_eq!(chosen(&[noisy, waiting]), Some(2));
    }

    #[test]
    fn weights_are_checked() {
        let bad = |weights: Weights| weights.normalized().unwrap_err().to_string();
        assert!(bad(Weights { load: -1.0, ..Weights::default() }).contains("`load` is -1"));
        assert!(bad(Weights { rtt: f64::NAN, ..Weights::default() }).contains("`rtt` is NaN"));
        assert!(bad(Weights { rtt: f64::INFINITY, ..Weights::default() }).contains("`rtt`"));
        let none = Weights { free_memory: 0.0, load: 0.0, rtt: 0.0, tokens_per_second: 0.0 };
        assert!(bad(none).contains("at least one"));
        let scaled = Weights { free_memory: 4.0, load: 3.0, rtt: 2.0, tokens_per_second: 1.0 };
        assert_eq!(scaled.normalized(), Weights::default().normalized());
    }

    prop_compose! {
        fn any_candidate()(
            free_memory in 0.0..=1.0f64,
            gpu: bool,
            load in 0.0..=1.0f64,
            rtt_ms in proptest::option::of(0.0..1e6f64),
            tokens_per_second in proptest::option::of(0.0..1e6f64),
            prefix_messages in 0..5usize,
            reserve in 0..3u8,
            last_chosen in 0..10u64,
        ) -> Candidate {
            let key = 0;
            Candidate { key, free_memory, gpu, load, rtt_ms, tokens_per_second, prefix_messages, reserve, last_chosen }
        }
    }

    proptest! {
        #[test]
        fn the_choice_depends_neither_on_the_order_nor_on_the_losers(
            mut candidates in proptest::collection::vec(any_candidate(), 1..20),
        ) {
            for (key, candidate) in candidates.iter_mut().enumerate() {
                candidate.key = key;
            }
            let winner = chosen(&candidates).unwrap();
            candidates.reverse();
            prop_assert_eq!(chosen(&candidates), Some(winner));
            candidates.retain(|candidate| candidate.key == winner || candidate.key % 2 == 0);
            prop_assert_eq!(chosen(&candidates), Some(winner));
        }

        #[test]
        fn a_score_stays_between_0_and_1(candidate in any_candidate()) {
            let score = score(&Weights::default().normalized().unwrap(), &candidate);
            prop_assert!((0.0..=1.0 + 1e-9).contains(&score), "{}", score);
        }
    }
}
