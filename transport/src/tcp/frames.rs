//! HTTP/2 frames that a peer sends beyond all relation to its requests: floods of pings, settings, window updates, priorities, resets.
//!
//! h2 bounds what such frames make it keep (CONTINUATION, streams reset before they were accepted), not how many it works through: a connection
//! of them costs a core. Here each frame of a peer costs a point unless it brings a good part of a request's body; each frame of an answer
//! gives some back, and so does time. Whoever has none left is cut off.

use std::time::{Duration, Instant};

/// What a connection begins with, and the most it can have: a thousand calls cancelled at once cost it half. Worked off in half a
/// millisecond or less, not much more than a new connection costs anyway: whoever is cut off comes again.
const MAX_POINTS: u32 = 2_000;
/// A point in so long, for what has nothing to do with answers: pings to keep a connection alive, small pieces of a request that goes on and
/// on. A hundred frames in a second are a ten-thousandth of a core.
const POINT_INTERVAL: Duration = Duration::from_millis(10);
/// Given back for each DATA or HEADERS frame that is sent. A reader answers a frame with a window update for its stream, one for the
/// connection, and a ping that measures the path.
const POINTS_PER_SENT: u32 = 4;
/// A new window size has to be applied to each of up to a thousand streams (RFC 9113 §6.9.2).
const SETTINGS_COST: u32 = 20;
/// A DATA frame with at least so many bytes costs nothing: what it brings is work for the handler, and flow control bounds it. h2 takes
/// the same size for a frame that is worth its header.
const DATA_BYTES: usize = 256;

/// What an HTTP/2 connection begins with: RFC 9113 §3.4.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// RFC 9113 §4.1.
const HEADER_BYTES: usize = 9;
/// RFC 9113 §6.
const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const SETTINGS: u8 = 0x4;

/// The peer's frames cost more than it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more HTTP/2 frames than its requests need")]
pub(super) struct Flood;

/// The bytes of one connection, both ways. One that does not speak HTTP/2 is left alone.
#[derive(Debug)]
pub(super) struct Meter {
    speaks: Speaks,
    received: Frames,
    sent: Frames,
    points: u32,
    /// From when on the next point is earned.
    earning_since: Instant,
}

#[derive(Debug)]
enum Speaks {
    /// So many bytes were those of the preface.
    Unknown(usize),
    Http2,
    Other,
}

impl Meter {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            speaks: Speaks::Unknown(0),
            received: Frames::default(),
            sent: Frames::default(),
            points: MAX_POINTS,
            earning_since: now,
        }
    }

    /// What the peer sent.
    pub(super) fn received(&mut self, mut bytes: &[u8], now: Instant) -> Result<(), Flood> {
        if let Speaks::Unknown(have) = self.speaks {
            let more = bytes.len().min(PREFACE.len() - have);
            let (begin, rest) = bytes.split_at(more);
            self.speaks = if begin != &PREFACE[have..have + more] {
                Speaks::Other
            } else if have + more == PREFACE.len() {
                Speaks::Http2
            } else {
                Speaks::Unknown(have + more)
            };
            bytes = rest;
        }
        if !matches!(self.speaks, Speaks::Http2) {
            return Ok(());
        }
        let mut cost = 0;
        self.received.read(bytes, |kind, length| {
            cost += match kind {
                DATA if length >= DATA_BYTES => 0,
                SETTINGS => SETTINGS_COST,
                _ => 1,
            };
        });
        self.earn(now);
        self.points = self.points.checked_sub(cost).ok_or(Flood)?;
        Ok(())
    }

    /// What was sent to the peer.
    pub(super) fn sent(&mut self, bytes: &[u8]) {
        if !matches!(self.speaks, Speaks::Http2) {
            return;
        }
        let points = &mut self.points;
        self.sent.read(bytes, |kind, _| {
            if matches!(kind, DATA | HEADERS) {
                *points = (*points + POINTS_PER_SENT).min(MAX_POINTS);
            }
        });
    }

    fn earn(&mut self, now: Instant) {
        let earned = now.saturating_duration_since(self.earning_since).as_nanos() / POINT_INTERVAL.as_nanos();
        if earned >= u128::from(MAX_POINTS - self.points) {
            self.points = MAX_POINTS;
            self.earning_since = now;
        } else {
            // Below MAX_POINTS, and so within 32 bits.
            let earned = earned as u32;
            self.points += earned;
            self.earning_since += POINT_INTERVAL * earned;
        }
    }
}

/// Finds the frames in one direction of a connection, whatever pieces it comes in.
#[derive(Debug, Default)]
struct Frames {
    header: [u8; HEADER_BYTES],
    /// Bytes of `header` that have come.
    have: usize,
    /// Bytes of the payload that are still to come.
    payload: usize,
}

impl Frames {
    /// Calls `frame` with the type and the payload's length of each frame whose header is complete with `bytes`.
    fn read(&mut self, mut bytes: &[u8], mut frame: impl FnMut(u8, usize)) {
        loop {
            let skipped = self.payload.min(bytes.len());
            self.payload -= skipped;
            bytes = &bytes[skipped..];
            let more = bytes.len().min(HEADER_BYTES - self.have);
            if more == 0 {
                return;
            }
            self.header[self.have..self.have + more].copy_from_slice(&bytes[..more]);
            self.have += more;
            bytes = &bytes[more..];
            if self.have == HEADER_BYTES {
                let [a, b, c, kind, ..] = self.header;
                self.payload = u32::from_be_bytes([0, a, b, c]) as usize;
                self.have = 0;
                frame(kind, self.payload);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PING: u8 = 0x6;
    const RST_STREAM: u8 = 0x3;
    const WINDOW_UPDATE: u8 = 0x8;

    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let [_, a, b, c] = (length as u32).to_be_bytes();
        let mut frame = vec![a, b, c, kind, 0, 0, 0, 0, 1];
        frame.resize(HEADER_BYTES + length, 0);
        frame
    }

    fn meter() -> (Meter, Instant) {
        let now = Instant::now();
        let mut meter = Meter::new(now);
        meter.received(PREFACE, now).unwrap();
        (meter, now)
    }

    #[test]
    fn frames_are_found_whatever_pieces_they_come_in() {
        let frames = [(DATA, 0), (HEADERS, 3), (DATA, 70_000), (PING, 8), (0xff, 1)];
        let bytes: Vec<u8> = frames.iter().flat_map(|(kind, length)| frame(*kind, *length)).collect();
        for piece in [1, 2, 8, 9, 10, 4096, bytes.len()] {
            let (mut reader, mut found) = (Frames::default(), vec![]);
            bytes.chunks(piece).for_each(|piece| reader.read(piece, |kind, length| found.push((kind, length))));
            assert_eq!(found, frames, "in pieces of {piece}");
        }
    }

    #[test]
    fn each_flood_is_cut_off_and_costs_no_more_than_the_points() {
        for (kind, length, cost) in [
            (PING, 8, 1),
            (SETTINGS, 6, SETTINGS_COST),
            (WINDOW_UPDATE, 4, 1),
            (0x2, 5, 1),
            (RST_STREAM, 4, 1),
            (HEADERS, 20, 1),
            (0x9, 0, 1),
            (DATA, 0, 1),
            (DATA, DATA_BYTES - 1, 1),
            (0x42, 0, 1),
        ] {
            let (mut meter, now) = meter();
            let passed = (0..).take_while(|_| meter.received(&frame(kind, length), now).is_ok()).count();
            assert_eq!(passed as u32, MAX_POINTS / cost, "type {kind}");
        }
    }

    #[test]
    fn one_that_pings_as_often_as_time_gives_goes_on() {
        let (mut meter, begin) = meter();
        for n in 0..10 * MAX_POINTS {
            meter.received(&frame(PING, 8), begin + POINT_INTERVAL * n).unwrap();
        }
    }

    #[test]
    fn answers_pay_for_what_their_readers_send() {
        let (mut meter, now) = meter();
        for _ in 0..10 * MAX_POINTS {
            meter.received(&[frame(HEADERS, 20), frame(DATA, 5)].concat(), now).unwrap();
            meter.sent(&[frame(HEADERS, 1), frame(DATA, 50), frame(DATA, 50), frame(HEADERS, 10)].concat());
            let updates = [WINDOW_UPDATE, WINDOW_UPDATE, PING].map(|kind| frame(kind, 4)).concat();
            meter.received(&[updates.clone(), updates].concat(), now).unwrap();
        }
    }

    #[test]
    fn what_a_server_answers_floods_with_pays_for_nothing() {
        let (mut meter, now) = meter();
        for _ in 0..MAX_POINTS {
            meter.received(&frame(PING, 8), now).unwrap();
            meter.sent(&[frame(PING, 8), frame(SETTINGS, 0), frame(RST_STREAM, 4), frame(WINDOW_UPDATE, 4)].concat());
        }
        assert_eq!(meter.received(&frame(PING, 8), now), Err(Flood));
    }

    #[test]
    fn a_large_upload_costs_nothing_and_http_1_is_left_alone() {
        let (mut meter, now) = meter();
        let piece = frame(DATA, 16 << 10);
        for _ in 0..2 * MAX_POINTS {
            meter.received(&piece, now).unwrap();
        }
        for begin in ["GET / HTTP/1.1\r\n", "PRI / HTTP/1.1\r\n"] {
            let mut meter = Meter::new(now);
            for byte in begin.bytes() {
                meter.received(&[byte], now).unwrap();
            }
            for _ in 0..2 * MAX_POINTS {
                meter.received(&[0; 9], now).unwrap();
            }
        }
    }
}
