//! One answer's messages, numbered from 0: those that its reader has got and may have lost, and those that wait for a reader. Pure.

use std::collections::VecDeque;

/// What one message costs beside its bytes.
const ENTRY_BYTES: usize = size_of::<u32>();

/// The newest messages of an answer, encoded, and how far its reader has come. `E` says how the answer ended.
#[derive(Debug)]
pub(super) struct Log<E> {
    bytes: VecDeque<u8>,
    lengths: VecDeque<u32>,
    /// The number of the oldest message here.
    first: u64,
    /// The number of the message that the reader gets next.
    next: u64,
    /// Where that message begins in `bytes`.
    offset: usize,
    /// Messages that any reader has got.
    taken: u64,
    end: Option<E>,
}

/// What a reader gets.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<E> {
    Message(Vec<u8>),
    /// There is no more.
    End(E),
    /// The next message is still to be made.
    Nothing,
}

/// Why a reader cannot begin at a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PositionError {
    /// It was dropped to make room.
    #[error("the messages before number {first} are not kept any more, and {from} was asked for")]
    Dropped {
        /// The number asked for.
        from: u64,
        /// The oldest kept.
        first: u64,
    },
    /// Nobody can have received so many.
    #[error("resume_from is {from}, and only {sent} messages were sent")]
    NotSent {
        /// The number asked for.
        from: u64,
        /// How many were sent.
        sent: u64,
    },
}

impl<E: Clone> Log<E> {
    pub(super) fn new() -> Self {
        let (bytes, lengths) = Default::default();
        Self { bytes, lengths, first: 0, next: 0, offset: 0, taken: 0, end: None }
    }

    /// Adds a message that waits for a reader.
    pub(super) fn push(&mut self, message: &[u8]) {
        self.bytes.extend(message);
        // A message is far below 4 GiB: PROTOCOL.md §8.
        self.lengths.push_back(u32::try_from(message.len()).unwrap_or(u32::MAX));
    }

    /// Adds a message that the reader, who has got all others, gets at once.
    pub(super) fn pass(&mut self, message: &[u8]) {
        self.push(message);
        self.advance(message.len());
    }

    /// The answer is complete, or has failed.
    pub(super) fn end(&mut self, how: E) {
        self.end = Some(how);
    }

    /// What the reader gets next.
    pub(super) fn take(&mut self) -> Next<E> {
        let waiting = usize::try_from(self.next - self.first).ok().and_then(|at| self.lengths.get(at));
        let Some(&length) = waiting else {
            return self.end.clone().map_or(Next::Nothing, Next::End);
        };
        let length = length as usize;
        let message = self.bytes.range(self.offset..self.offset + length).copied().collect();
        self.advance(length);
        Next::Message(message)
    }

    /// A reader begins at this number.
    pub(super) fn seek(&mut self, from: u64) -> Result<(), PositionError> {
        if from > self.taken {
            return Err(PositionError::NotSent { from, sent: self.taken });
        }
        let before = from.checked_sub(self.first).ok_or(PositionError::Dropped { from, first: self.first })?;
        let before = usize::try_from(before).unwrap_or(usize::MAX);
        self.offset = self.lengths.iter().take(before).map(|length| *length as usize).sum();
        self.next = from;
        Ok(())
    }

    /// Drops the oldest of the messages that the reader has got, until those have no more than so many bytes.
    pub(super) fn trim(&mut self, max_bytes: usize) {
        while self.next > self.first && self.history_bytes() > max_bytes {
            let Some(length) = self.lengths.pop_front() else { return };
            self.bytes.drain(..length as usize);
            self.offset -= length as usize;
            self.first += 1;
        }
    }

    /// Gives memory back that is not in use.
    pub(super) fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
        self.lengths.shrink_to_fit();
    }

    /// What the messages take that wait for a reader.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.bytes() - self.history_bytes()
    }

    /// What all messages take.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len() + self.lengths.len() * ENTRY_BYTES
    }

    /// Whether the reader has got everything, the end included.
    pub(super) fn is_read(&self) -> bool {
        self.end.is_some() && self.next == self.first + self.lengths.len() as u64
    }

    fn history_bytes(&self) -> usize {
        self.offset + usize::try_from(self.next - self.first).unwrap_or(usize::MAX).saturating_mul(ENTRY_BYTES)
    }

    fn advance(&mut self, length: usize) {
        self.next += 1;
        self.offset += length;
        self.taken = self.taken.max(self.next);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    type TestLog = Log<&'static str>;

    fn message(number: u64) -> Vec<u8> {
        format!("{number}:{}", "x".repeat(number as usize % 7)).into_bytes()
    }

    #[test]
    fn a_reader_begins_where_another_was_cut_off() {
        let mut log = TestLog::new();
        (0..4).for_each(|number| log.pass(&message(number)));
        log.push(&message(4));
        log.end("complete");
        log.seek(2).unwrap();
        for number in 2..5 {
            assert_eq!(log.take(), Next::Message(message(number)));
        }
        assert_eq!(log.take(), Next::End("complete"));
        assert!(log.is_read());
        log.seek(5).unwrap();
        assert_eq!(log.take(), Next::End("complete"), "nothing was missing");
    }

    #[test]
    fn positions_out_of_reach_are_told_apart() {
        let mut log = TestLog::new();
        (0..10).for_each(|number| log.pass(&message(number)));
        log.push(&message(10));
        assert_eq!(log.seek(11), Err(PositionError::NotSent { from: 11, sent: 10 }));
        log.trim(20);
        let first = log.first;
        assert!(first > 0);
        assert_eq!(log.seek(first - 1), Err(PositionError::Dropped { from: first - 1, first }));
        log.seek(first).unwrap();
        assert_eq!(log.take(), Next::Message(message(first)));
    }

    #[test]
    fn what_waits_for_a_reader_is_never_dropped() {
        let mut log = TestLog::new();
        (0..100).for_each(|number| log.push(&message(number)));
        log.trim(0);
        assert_eq!(log.take(), Next::Message(message(0)));
        log.trim(0);
        assert_eq!(log.waiting_bytes(), log.bytes());
        assert_eq!(log.take(), Next::Message(message(1)));
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// A message is made: passed on if the reader is there and has all others, else kept.
        Make,
        Take,
        /// The connection breaks with so many messages on their way, and the client comes back.
        Lose(u64),
        Trim(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Make),
            4 => Just(Step::Take),
            1 => (0..5u64).prop_map(Step::Lose),
            1 => (0..60usize).prop_map(Step::Trim),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_a_client_gets_each_message_once_and_in_order(steps in prop::collection::vec(step(), 0..200)) {
            let mut log = TestLog::new();
            let (mut made, mut received) = (0, 0);
            for step in steps {
                match step {
                    Step::Make if log.waiting_bytes() == 0 && made % 2 == 0 => {
                        log.pass(&message(made));
                        prop_assert_eq!(received, made);
                        made += 1;
                        received += 1;
                    }
                    Step::Make => {
                        log.push(&message(made));
                        made += 1;
                    }
                    Step::Take => match log.take() {
                        Next::Message(got) => {
                            prop_assert_eq!(got, message(received));
                            received += 1;
                        }
                        next => {
                            prop_assert_eq!(next, Next::Nothing);
                            prop_assert_eq!(received, made);
                        }
                    },
                    Step::Lose(on_their_way) => {
                        let from = received.saturating_sub(on_their_way);
                        match log.seek(from) {
                            Ok(()) => received = from,
                            Err(error) => prop_assert_eq!(error, PositionError::Dropped { from, first: log.first }),
                        }
                    }
                    Step::Trim(max_bytes) => {
                        log.trim(max_bytes);
                        prop_assert!(log.bytes() - log.waiting_bytes() <= max_bytes);
                    }
                }
                let kept: usize = (log.first..made).map(|number| message(number).len() + ENTRY_BYTES).sum();
                prop_assert_eq!(log.bytes(), kept);
            }
            log.end("complete");
            while let Next::Message(got) = log.take() {
                prop_assert_eq!(got, message(received));
                received += 1;
            }
            prop_assert_eq!(received, made);
            prop_assert!(log.is_read());
        }
    }
}
