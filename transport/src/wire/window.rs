//! The sender's side of redundant messages: which frames of a response may be missing at the other end. PROTOCOL.md §10. Without clock or I/O.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{
    datagram::{Datagram, MAX_REPEAT_HEADER_BYTES},
    losses::Measure,
};

/// A frame above this travels in the stream alone: a packet has room for about 1,100 bytes, and a repeat is for the few that fit.
pub(crate) const MAX_REPEATED_FRAME_BYTES: usize = 600;
/// Frames kept for repeating. At 100 a second over 300 ms, with the acknowledgement's own delay, about 45 are on their way.
const MAX_FRAMES: usize = 64;
/// Their bytes. Older ones are left to the stream.
const MAX_BYTES: usize = 16 * 1024;

/// The frames of one response that are not acknowledged, the oldest first.
#[derive(Debug)]
pub(crate) struct Window {
    stream: u64,
    /// The number of `frames[0]`, and of the next frame where there is none.
    first: u64,
    /// None for one that is too long to be repeated.
    frames: VecDeque<Option<Bytes>>,
    bytes: usize,
    /// As the peer last said.
    repaired: u64,
    acknowledged: u64,
    /// The peer misses frames and waits for them.
    wanted: bool,
}

impl Window {
    /// Of the response on this stream.
    pub(crate) fn new(stream: u64) -> Self {
        let (frames, wanted) = (VecDeque::new(), false);
        Self { stream, first: 0, frames, bytes: 0, repaired: 0, acknowledged: 0, wanted }
    }

    /// The next frame of the response is being written: whole, or None if it is too long to be repeated.
    pub(crate) fn push(&mut self, frame: Option<Bytes>) {
        let frame = frame.filter(|frame| frame.len() <= MAX_REPEATED_FRAME_BYTES);
        self.bytes += frame.as_ref().map_or(0, Bytes::len);
        self.frames.push_back(frame);
        while self.frames.len() > MAX_FRAMES || self.bytes > MAX_BYTES {
            self.drop_first();
        }
    }

    /// What the peer acknowledges. Returns how many more frames have arrived, and how many of those came first in a datagram.
    /// Nonsense, and what was overtaken by a newer acknowledgement, counts as nothing.
    pub(crate) fn acknowledge(&mut self, next: u64, repaired: u64, again: bool) -> (u64, u64) {
        let end = self.first + self.frames.len() as u64;
        if next > end || next < self.acknowledged {
            return (0, 0);
        }
        self.wanted |= again && next < end;
        let more = (next - self.acknowledged, repaired.saturating_sub(self.repaired).min(next - self.acknowledged));
        self.acknowledged = next;
        self.repaired = self.repaired.max(repaired);
        while self.first < next {
            self.drop_first();
        }
        more
    }

    /// Whether every frame has arrived.
    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether the peer asked for what it misses; asked once.
    pub(crate) fn take_wanted(&mut self) -> bool {
        std::mem::take(&mut self.wanted)
    }

    /// A datagram with the newest frames, as many as `measure` and `room` (bytes) allow.
    pub(crate) fn newest(&self, measure: Measure, room: usize) -> Option<Bytes> {
        let budget = measure.bytes.min(room.checked_sub(MAX_REPEAT_HEADER_BYTES)?);
        let mut bytes = 0;
        let fitting = self.frames.iter().rev().take(measure.frames).map_while(Option::as_ref);
        let count = fitting
            .take_while(|frame| {
                bytes += frame.len();
                bytes <= budget
            })
            .count();
        self.repeat(self.frames.len() - count, count)
    }

    /// A datagram with the oldest frames that may be missing, as many as `room` (bytes) allows.
    pub(crate) fn oldest(&self, room: usize) -> Option<Bytes> {
        let budget = room.checked_sub(MAX_REPEAT_HEADER_BYTES)?;
        // One that is too long comes by the stream; those behind it can wait beside it.
        let start = self.frames.iter().position(Option::is_some)?;
        let mut bytes = 0;
        let fitting = self.frames.range(start..).map_while(Option::as_ref);
        let count = fitting
            .take_while(|frame| {
                bytes += frame.len();
                bytes <= budget
            })
            .count();
        self.repeat(start, count)
    }

    fn repeat(&self, start: usize, count: usize) -> Option<Bytes> {
        let frames = self.frames.range(start..start + count).flatten();
        (count > 0).then(|| Datagram::repeat(self.stream, self.first + start as u64, frames))
    }

    fn drop_first(&mut self) {
        if let Some(frame) = self.frames.pop_front() {
            self.first += 1;
            self.bytes -= frame.map_or(0, |frame| frame.len());
        }
    }
}
