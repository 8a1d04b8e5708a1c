//! Choosing a token out of logits: pure, and the same on every run with the same seed.
//!
//! mistral.rs' own sampler has one random stream for the whole engine with a constant seed, so neither "the same seed, the same text" nor "no
//! seed, another text" holds there. Its penalties count the prompt's tokens too; here they count what was generated, as everywhere else.

use super::super::Sampling;

/// How one request's tokens are chosen.
#[derive(Clone, Debug)]
pub(super) struct Sampler {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    frequency_penalty: f32,
    presence_penalty: f32,
    seed: u64,
}

/// Below this a temperature is greedy: dividing by it would overflow.
const GREEDY_BELOW: f32 = 1e-4;

impl Sampler {
    /// `entropy` takes the seed's place where the request has none.
    pub(super) fn new(sampling: &Sampling, entropy: u64) -> Self {
        Self {
            temperature: sampling.temperature,
            top_k: sampling.top_k.map_or(usize::MAX, |k| usize::try_from(k).unwrap_or(usize::MAX).max(1)),
            top_p: sampling.top_p.unwrap_or(1.0),
            min_p: sampling.min_p.unwrap_or(0.0),
            frequency_penalty: sampling.frequency_penalty.unwrap_or(0.0),
            presence_penalty: sampling.presence_penalty.unwrap_or(0.0),
            seed: sampling.seed.unwrap_or(entropy),
        }
    }

    /// Whether the same request gives the same text.
    pub(super) fn is_deterministic(sampling: &Sampling) -> bool {
        sampling.temperature < GREEDY_BELOW || sampling.seed.is_some()
    }

    /// The next token, given what was generated so far. `None` where no logit is a number: the model broke down.
    pub(super) fn next(&self, logits: &mut [f32], generated: &[u32]) -> Option<u32> {
        self.penalise(logits, generated);
        let (best, best_logit) = argmax(logits)?;
        if self.temperature < GREEDY_BELOW {
            return Some(best);
        }
        let scaled = |logit: f32| (f64::from(logit) - f64::from(best_logit)) / f64::from(self.temperature);
        // min_p needs no probabilities: p >= min_p * p_best is scaled >= ln(min_p).
        let floor = if self.min_p > 0.0 { f64::from(self.min_p).ln() } else { NEVER };
        let candidates = (0u32..)
            .zip(logits.iter())
            .filter(|(_, logit)| !logit.is_nan())
            .map(|(token, logit)| (token, scaled(*logit)));
        let mut candidates: Vec<(u32, f64)> = candidates.filter(|(_, scaled)| *scaled >= floor.max(NEVER)).collect();
        if self.top_k < candidates.len() {
            candidates.select_nth_unstable_by(self.top_k - 1, likelier_first);
            candidates.truncate(self.top_k);
        }
        if self.top_p < 1.0 {
            keep_nucleus(&mut candidates, f64::from(self.top_p));
        }
        // Gumbel-max: adding this noise and taking the largest draws from the softmax. The noise belongs to (seed, position, token), so it
        // does not depend on which other tokens survived the filters, nor on how often this function was called.
        let position = generated.len() as u64;
        let noisy = candidates.into_iter().map(|(token, scaled)| (token, scaled + gumbel(self.seed, position, token)));
        noisy.reduce(|a, b| if b.1 > a.1 { b } else { a }).map(|(token, _)| token)
    }

    fn penalise(&self, logits: &mut [f32], generated: &[u32]) {
        if self.frequency_penalty == 0.0 && self.presence_penalty == 0.0 {
            return;
        }
        let mut seen = std::collections::HashMap::<u32, f32>::new();
        for token in generated {
            *seen.entry(*token).or_default() += 1.0;
        }
        for (token, count) in seen {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit -= count * self.frequency_penalty + self.presence_penalty;
            }
        }
    }
}

/// Gumbel noise of 53 random bits lies within (-3.7, 37.5): a token this far behind the best can never win, so it need not be looked at.
const NEVER: f64 = -42.0;

fn argmax(logits: &[f32]) -> Option<(u32, f32)> {
    let numbers =
        (0u32..).zip(logits.iter().copied()).filter(|(_, logit)| !logit.is_nan() && *logit > f32::NEG_INFINITY);
    // The first of equals, as mistral.rs takes it.
    numbers.reduce(|a, b| if b.1 > a.1 { b } else { a })
}

/// By logit, then by number, so that the order is the same on every run.
fn likelier_first(a: &(u32, f64), b: &(u32, f64)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Keeps the fewest likeliest candidates that hold `top_p` of the probability together; at least one.
fn keep_nucleus(candidates: &mut Vec<(u32, f64)>, top_p: f64) {
    candidates.sort_unstable_by(likelier_first);
    let total: f64 = candidates.iter().map(|(_, scaled)| scaled.exp()).sum();
    let mut held = 0.0;
    let enough = candidates.iter().position(|(_, scaled)| {
        held += scaled.exp();
        held >= top_p * total
    });
    candidates.truncate(enough.map_or(candidates.len(), |last| last + 1));
}

fn gumbel(seed: u64, position: u64, token: u32) -> f64 {
    let bits = mix(mix(seed ^ mix(position.wrapping_add(1))) ^ u64::from(token));
    // In (0, 1), both ends excluded: 53 bits, half a step off zero.
    let uniform = ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -(-uniform.ln()).ln()
}

/// SplitMix64: one step of it turns a counter into bits that pass the usual tests of randomness.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn sampling() -> Sampling {
        Sampling {
            max_tokens: 1,
            temperature: 1.0,
            top_p: None,
            top_k: None,
            min_p: None,
            stop: vec![],
            seed: Some(7),
            frequency_penalty: None,
            presence_penalty: None,
        }
    }

    const LOGITS: [f32; 4] = [1.0, 3.0, 2.0, 0.0];

    /// How often each token comes out of 20,000 positions.
    fn shares(sampling: &Sampling) -> Vec<f64> {
        let choice = Sampler::new(sampling, 0);
        let mut counts = [0u32; LOGITS.len()];
        let generated = vec![99u32; 20_000];
        for position in 0..generated.len() {
            counts[choice.next(&mut LOGITS.clone(), &generated[..position]).unwrap() as usize] += 1;
        }
        counts.iter().map(|count| f64::from(*count) / 20_000.0).collect()
    }

    fn softmax(temperature: f64, kept: &[usize]) -> Vec<f64> {
        let weight =
            |token: usize| if kept.contains(&token) { (f64::from(LOGITS[token]) / temperature).exp() } else { 0.0 };
        let total: f64 = (0..LOGITS.len()).map(weight).sum();
        (0..LOGITS.len()).map(|token| weight(token) / total).collect()
    }

    #[track_caller]
    fn assert_close(got: &[f64], want: &[f64]) {
        assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 0.015), "{got:?} is not {want:?}");
    }

    #[test]
    fn temperature_draws_from_the_softmax() {
        assert_close(&shares(&sampling()), &softmax(1.0, &[0, 1, 2, 3]));
        assert_close(&shares(&Sampling { temperature: 2.0, ..sampling() }), &softmax(2.0, &[0, 1, 2, 3]));
    }

    #[test]
    fn top_k_keeps_the_k_likeliest() {
        assert_close(&shares(&Sampling { top_k: Some(2), ..sampling() }), &softmax(1.0, &[1, 2]));
        assert_close(&shares(&Sampling { top_k: Some(1), ..sampling() }), &[0.0, 1.0, 0.0, 0.0]);
        assert_close(&shares(&Sampling { top_k: Some(4_000_000_000), ..sampling() }), &softmax(1.0, &[0, 1, 2, 3]));
    }

    #[test]
    fn top_p_keeps_the_fewest_that_hold_it() {
        // Probabilities 0.644, 0.237, 0.087, 0.032.
        assert_close(&shares(&Sampling { top_p: Some(0.6), ..sampling() }), &softmax(1.0, &[1]));
        assert_close(&shares(&Sampling { top_p: Some(0.7), ..sampling() }), &softmax(1.0, &[1, 2]));
        assert_close(&shares(&Sampling { top_p: Some(0.95), ..sampling() }), &softmax(1.0, &[0, 1, 2]));
    }

    #[test]
    fn min_p_drops_what_is_too_far_behind_the_best() {
        // Ratios to the best: 0.135, 1, 0.368, 0.050.
        assert_close(&shares(&Sampling { min_p: Some(0.2), ..sampling() }), &softmax(1.0, &[1, 2]));
        assert_close(&shares(&Sampling { min_p: Some(1.0), ..sampling() }), &softmax(1.0, &[1]));
    }

    #[test]
    fn zero_temperature_takes_the_best_and_the_first_of_equals() {
        let greedy = Sampler::new(&Sampling { temperature: 0.0, ..sampling() }, 0);
        assert_eq!(greedy.next(&mut [1.0, 5.0, 5.0], &[]), Some(1));
    }

    #[test]
    fn the_same_seed_chooses_the_same_and_another_one_differs() {
        let draw = |seed, entropy| {
            let choice = Sampler::new(&Sampling { seed, ..sampling() }, entropy);
            (0..64).map(|position| choice.next(&mut LOGITS.clone(), &vec![9; position]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(Some(1), 5), draw(Some(1), 6));
        assert_ne!(draw(Some(1), 5), draw(Some(2), 5));
        assert_ne!(draw(None, 5), draw(None, 6));
    }

    #[test]
    fn penalties_count_what_was_generated() {
        let frequency = Sampler::new(&Sampling { temperature: 0.0, frequency_penalty: Some(0.6), ..sampling() }, 0);
        assert_eq!(frequency.next(&mut LOGITS.clone(), &[1]), Some(1), "3.0 - 0.6 is still the best");
        assert_eq!(frequency.next(&mut LOGITS.clone(), &[1, 1]), Some(2), "3.0 - 1.2 is not");
        let presence = Sampler::new(&Sampling { temperature: 0.0, presence_penalty: Some(0.9), ..sampling() }, 0);
        assert_eq!(presence.next(&mut LOGITS.clone(), &[1, 1, 1]), Some(1), "counted once");
        let liked = Sampler::new(&Sampling { temperature: 0.0, presence_penalty: Some(-2.0), ..sampling() }, 0);
        assert_eq!(liked.next(&mut LOGITS.clone(), &[2]), Some(2), "a negative one attracts");
    }

    #[test]
    fn logits_that_are_no_numbers_are_skipped_or_refused() {
        let choice = Sampler::new(&sampling(), 0);
        assert_eq!(choice.next(&mut [f32::NAN, 1.0, f32::NEG_INFINITY], &[]), Some(1));
        assert_eq!(choice.next(&mut [f32::NAN, f32::NAN], &[]), None);
        assert_eq!(choice.next(&mut [], &[]), None);
    }
}
