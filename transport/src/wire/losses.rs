//! How much a connection loses, from what its peer acknowledges; and what is done about it. Without clock or I/O.

use std::time::Duration;

/// Frames that ride along where nothing was lost lately: enough that a first loss, and a second one beside it, are made good by the
/// next packet.
const QUIET_FRAMES: usize = 3;
/// The same where losses are seen: a burst of several packets leaves nobody waiting for a retransmission.
const LOSSY_FRAMES: usize = 8;
/// Bytes of a REPEAT on a path that loses nothing: three short messages.
const QUIET_BYTES: usize = 240;
/// The same where losses are seen. Losses may come of a full queue, and what is repeated fills it: no more than a packet of twice the size.
const LOSSY_BYTES: usize = 400;
/// Frames after which a loss is forgotten: at 50 a second, ten seconds.
const MEMORY_FRAMES: u64 = 500;
/// An early repair follows its message after this share of the time between two messages...
const REPAIR_SHARE: u32 = 6;
/// ... but not so soon that one burst takes both, ...
const SOONEST_REPAIR: Duration = Duration::from_millis(3);
/// ... and not so late that it could be seen.
const LATEST_REPAIR: Duration = Duration::from_millis(12);

/// What the responses on one connection have in common: their path.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    /// Frames that were acknowledged since the last loss; None before the first loss.
    since_loss: Option<u64>,
}

/// How much to repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Measure {
    /// The newest frames that travel together.
    pub(crate) frames: usize,
    /// At most so many bytes of them.
    pub(crate) bytes: usize,
    /// Whether a frame is repeated before the next one comes.
    pub(crate) early: bool,
}

impl Losses {
    /// `frames` more have arrived, `repaired` of them first in a datagram.
    pub(crate) fn acknowledged(&mut self, frames: u64, repaired: u64) {
        if repaired > 0 {
            self.since_loss = Some(0);
        } else if let Some(since) = &mut self.since_loss {
            *since = since.saturating_add(frames);
        }
    }

    /// Of a repair by itself: what is older travels with the next message.
    pub(crate) fn repair() -> Measure {
        Measure { frames: QUIET_FRAMES, bytes: QUIET_BYTES, early: true }
    }

    /// What to do now.
    pub(crate) fn measure(&self) -> Measure {
        match self.since_loss {
            Some(since) if since < MEMORY_FRAMES => Measure { frames: LOSSY_FRAMES, bytes: LOSSY_BYTES, early: true },
            _ => Measure { frames: QUIET_FRAMES, bytes: QUIET_BYTES, early: false },
        }
    }
}

/// When an early repair follows, for messages that come every `interval`, if that is known.
pub(crate) fn repair_delay(interval: Option<Duration>) -> Duration {
    interval.map_or(LATEST_REPAIR, |interval| (interval / REPAIR_SHARE).clamp(SOONEST_REPAIR, LATEST_REPAIR))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_answered_with_more_until_it_is_forgotten() {
        let mut losses = Losses::default();
        losses.acknowledged(100, 0);
        let quiet = losses.measure();
        assert!(!quiet.early && quiet.frames > 1, "the very first loss is covered");
        losses.acknowledged(4, 1);
        let lossy = losses.measure();
        assert!(lossy.early && lossy.frames > quiet.frames && lossy.bytes > quiet.bytes);
        losses.acknowledged(MEMORY_FRAMES - 1, 0);
        assert_eq!(losses.measure(), lossy);
        losses.acknowledged(1, 0);
        assert_eq!(losses.measure(), quiet);
    }

    #[test]
    fn a_repair_comes_well_before_the_next_message() {
        assert_eq!(repair_delay(Some(Duration::from_millis(30))), Duration::from_millis(5));
        assert_eq!(repair_delay(Some(Duration::ZERO)), SOONEST_REPAIR);
        assert_eq!(repair_delay(Some(Duration::from_secs(1))), LATEST_REPAIR);
        assert_eq!(repair_delay(None), LATEST_REPAIR);
    }
}
