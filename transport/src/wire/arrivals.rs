//! The receiver's side of redundant messages: frames of a response come twice and in any order, and leave once and in order.
//! PROTOCOL.md §10. Without clock or I/O.

use std::{collections::BTreeMap, time::Instant};

use bytes::Bytes;

use super::datagram::Frame;
use crate::limits::ACK_DELAY;

/// Frames ahead of the next one that are kept: the sender repeats no more than 64.
const MAX_AHEAD: u64 = 64;
/// Their bytes. What is beyond comes by the stream.
const MAX_BYTES: usize = 64 * 1024;

/// How far one response has come.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    /// The frame that leaves next.
    next: u64,
    /// The frame that the stream brings next; never beyond `next`.
    in_stream: u64,
    /// What came in datagrams, at `next` or beyond.
    early: BTreeMap<u64, Frame>,
    bytes: usize,
    /// Frames that left before the stream brought them.
    repaired: u64,
}

/// Frames after which an acknowledgement is sent, if time has not asked for one before.
const ACK_FRAMES: u64 = 4;

/// When to acknowledge.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    /// What was acknowledged last, and when.
    next: u64,
    repaired: u64,
    at: Option<Instant>,
    /// It told of a loss.
    told_of_loss: bool,
}

impl Acks {
    /// Whether `arrivals` are to be acknowledged at `now`; if so, they count as acknowledged.
    pub(crate) fn take_due(&mut self, arrivals: &Arrivals, ended: bool, now: Instant) -> bool {
        let late = self.at.is_none_or(|at| now.saturating_duration_since(at) >= ACK_DELAY);
        let loss = arrivals.repaired > self.repaired;
        // The first loss at once: from then on the sender does more. While losses go on, it knows.
        let due = ended || late || arrivals.next - self.next >= ACK_FRAMES || loss && !self.told_of_loss;
        if due {
            *self = Self { next: arrivals.next, repaired: arrivals.repaired, at: Some(now), told_of_loss: loss };
        }
        due
    }
}

/// What to do with a frame that the stream brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InStream {
    /// It is the next one.
    Deliver,
    /// It has left already.
    Skip,
}

impl Arrivals {
    /// Frames out of a datagram, beginning with number `first`. Returns whether the next one can leave now and could not before.
    pub(crate) fn repeated(&mut self, first: u64, mut frames: Bytes) -> bool {
        let could = self.early.contains_key(&self.next);
        let mut number = first;
        while let Some(frame) = Frame::take(&mut frames) {
            if (self.next..self.next.saturating_add(MAX_AHEAD)).contains(&number)
                && self.bytes + frame.len() <= MAX_BYTES
                && !self.early.contains_key(&number)
            {
                self.bytes += frame.len();
                self.early.insert(number, frame);
            }
            // Numbers come from the network, up to 2^62.
            number = number.saturating_add(1);
        }
        !could && self.early.contains_key(&self.next)
    }

    /// The next frame, if a datagram has brought it.
    pub(crate) fn take_early(&mut self) -> Option<Frame> {
        let frame = self.early.remove(&self.next)?;
        self.bytes -= frame.len();
        self.next += 1;
        self.repaired += 1;
        Some(frame)
    }

    /// Whether the frame that the stream brings next is wanted still.
    pub(crate) fn peek_stream(&self) -> InStream {
        if self.in_stream < self.next { InStream::Skip } else { InStream::Deliver }
    }

    /// The stream brings a frame, all of it or its beginning.
    pub(crate) fn stream_brings(&mut self) -> InStream {
        let what = self.peek_stream();
        self.in_stream += 1;
        if what == InStream::Deliver {
            if let Some(frame) = self.early.remove(&self.next) {
                self.bytes -= frame.len();
            }
            self.next += 1;
        }
        what
    }

    /// The frame that leaves next: all before it have.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Frames that left before the stream brought them.
    pub(crate) fn repaired(&self) -> u64 {
        self.repaired
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn acknowledgements_are_few_until_something_is_lost() {
        let (mut arrivals, mut acks, now) = (Arrivals::default(), Acks::default(), Instant::now());
        let at = |ms| now + Duration::from_millis(ms);
        let stream_brings = |acks: &mut Acks, arrivals: &mut Arrivals, ms| {
            arrivals.stream_brings();
            acks.take_due(arrivals, false, at(ms))
        };
        assert!(stream_brings(&mut acks, &mut arrivals, 0), "the first one measures the path");
        let due: Vec<u64> = (1..13).map(|n| n * 10).filter(|&ms| stream_brings(&mut acks, &mut arrivals, ms)).collect();
        assert_eq!(due, [40, 80, 120], "every fourth where they come fast");
        assert!(stream_brings(&mut acks, &mut arrivals, 300), "each where they come slowly");
        let message = Bytes::from_static(&[1, 1, b'x']);
        assert!(arrivals.repeated(arrivals.next, message.clone()));
        assert!(arrivals.take_early().is_some() && acks.take_due(&arrivals, false, at(301)), "a loss at once");
        arrivals.repeated(arrivals.next, message);
        assert!(arrivals.take_early().is_some() && !acks.take_due(&arrivals, false, at(302)), "but not each of many");
        assert!(acks.take_due(&arrivals, true, at(303)), "the end at once");
    }
}
