//! Nothing lost, nothing doubled: the numbers of one stream's tokens, pure.

/// What has come so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sequence {
    next: u32,
    received: u64,
    lost: u64,
    duplicated: u64,
}

impl Sequence {
    /// A token has come.
    pub(super) fn push(&mut self, index: u32) {
        self.received += 1;
        match index.checked_sub(self.next) {
            Some(skipped) => {
                self.lost += u64::from(skipped);
                self.next = index + 1;
            }
            // It came before, or was counted as lost: on an ordered stream both are faults.
            None => self.duplicated += 1,
        }
    }

    /// The stream has ended properly; it should have had so many tokens.
    pub(super) fn end(&mut self, expected: u32) {
        self.lost += u64::from(expected.saturating_sub(self.next));
    }

    pub(super) fn received(&self) -> u64 {
        self.received
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    pub(super) fn duplicated(&self) -> u64 {
        self.duplicated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(indices: &[u32], expected: u32) -> (u64, u64, u64) {
        let mut sequence = Sequence::default();
        indices.iter().for_each(|&index| sequence.push(index));
        sequence.end(expected);
        (sequence.received(), sequence.lost(), sequence.duplicated())
    }

    #[test]
    fn a_whole_stream_has_no_faults() {
        assert_eq!(after(&[0, 1, 2, 3], 4), (4, 0, 0));
        assert_eq!(after(&[], 0), (0, 0, 0));
    }

    #[test]
    fn gaps_and_a_missing_end_are_losses() {
        assert_eq!(after(&[0, 3], 4), (2, 2, 0));
        assert_eq!(after(&[2], 5), (1, 4, 0));
    }

    #[test]
    fn what_comes_again_is_a_duplicate() {
        assert_eq!(after(&[0, 1, 1, 2], 3), (4, 0, 1));
        assert_eq!(after(&[0, 2, 1], 3), (3, 1, 1), "out of order");
    }
}
