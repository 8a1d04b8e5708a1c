//! Who serves a model, and which of them have room: made for choosing among thousands without looking at each.

/// The agents that serve one model, by their places in the registry.
#[derive(Debug, Default)]
pub(super) struct Serving {
    /// In ascending order.
    slots: Vec<usize>,
    /// Those of them that would take a request, as far as was known when something last changed.
    open: Bits,
}

impl Serving {
    pub(super) fn insert(&mut self, slot: usize) {
        if let Err(at) = self.slots.binary_search(&slot) {
            self.slots.insert(at, slot);
        }
    }

    pub(super) fn remove(&mut self, slot: usize) {
        self.open.set(slot, false);
        if let Ok(at) = self.slots.binary_search(&slot) {
            self.slots.remove(at);
        }
    }

    pub(super) fn contains(&self, slot: usize) -> bool {
        self.slots.binary_search(&slot).is_ok()
    }

    pub(super) fn slots(&self) -> &[usize] {
        &self.slots
    }

    pub(super) fn set_open(&mut self, slot: usize, open: bool) {
        self.open.set(slot, open);
    }

    /// Those with room, all of them where they are few, else so many out of all parts of the fleet; one may come twice. `turn`: another number
    /// for every choice, so that all of them have their turn.
    pub(super) fn some_open(&self, turn: u64, at_most: usize) -> Vec<usize> {
        if self.open.count <= at_most {
            return self.open.iter().collect();
        }
        let first = turn.wrapping_mul(at_most as u64);
        (0..at_most as u64)
            .filter_map(|n| self.open.next_from(spread(first.wrapping_add(n), self.open.len())))
            .collect()
    }
}

/// The `n`th of a sequence of numbers below `below` whose members lie evenly between each other wherever it is cut: multiples of the golden
/// ratio, without their whole part (Knuth, The Art of Computer Programming 3, §6.4). Even where random numbers lump together, and nothing to seed.
fn spread(n: u64, below: usize) -> usize {
    const GOLDEN_RATIO: u64 = 0x9E37_79B9_7F4A_7C15;
    ((u128::from(n.wrapping_mul(GOLDEN_RATIO)) * below as u128) >> u64::BITS) as usize
}

/// A set of small numbers.
#[derive(Debug, Default)]
struct Bits {
    words: Vec<u64>,
    count: usize,
}

const WORD: usize = u64::BITS as usize;

impl Bits {
    fn set(&mut self, at: usize, value: bool) {
        let (word, bit) = (at / WORD, 1 << (at % WORD));
        if word >= self.words.len() {
            if !value {
                return;
            }
            self.words.resize(word + 1, 0);
        }
        let was = self.words[word] & bit != 0;
        if was != value {
            self.words[word] ^= bit;
            self.count = if value { self.count + 1 } else { self.count - 1 };
        }
    }

    /// One more than the largest number it can hold now.
    fn len(&self) -> usize {
        self.words.len() * WORD
    }

    fn iter(&self) -> impl Iterator<Item = usize> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let next = self.at_or_after(at)?;
            at = next + 1;
            Some(next)
        })
    }

    /// The first one at this number or above, and after the largest one the first.
    fn next_from(&self, at: usize) -> Option<usize> {
        self.at_or_after(at).or_else(|| self.at_or_after(0))
    }

    fn at_or_after(&self, at: usize) -> Option<usize> {
        let (mut word, mut mask) = (at / WORD, !0 << (at % WORD));
        while let Some(bits) = self.words.get(word) {
            let rest = bits & mask;
            if rest != 0 {
                return Some(word * WORD + rest.trailing_zeros() as usize);
            }
            (word, mask) = (word + 1, !0);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_agent_has_its_turn_before_long() {
        let mut serving = Serving::default();
        let open: Vec<usize> = (0..10_000).filter(|slot| slot % 3 > 0).collect();
        for &slot in &open {
            serving.insert(slot);
            serving.set_open(slot, true);
        }
        let seen: BTreeSet<usize> = (0..1000).flat_map(|turn| serving.some_open(turn, 64)).collect();
        assert_eq!(seen.len(), open.len());
        // Each sample is of all parts of the fleet.
        for turn in 0..100 {
            let sample: BTreeSet<usize> = serving.some_open(turn, 64).into_iter().map(|slot| slot / 1000).collect();
            assert_eq!(sample.len(), 10, "{turn}");
        }
    }

    proptest! {
        #[test]
        fn a_set_holds_what_was_put_in(changes in proptest::collection::vec((0..300usize, any::<bool>()), 0..300), from in 0..400usize) {
            let (mut bits, mut set) = (Bits::default(), BTreeSet::new());
            for (at, value) in changes {
                bits.set(at, value);
                if value { set.insert(at) } else { set.remove(&at) };
            }
            prop_assert_eq!(bits.count, set.len());
            prop_assert!(bits.iter().eq(set.iter().copied()));
            let next = set.range(from..).next().or_else(|| set.first());
            prop_assert_eq!(bits.next_from(from), next.copied());
        }
    }
}
