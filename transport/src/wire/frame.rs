//! Frames: `varint type, varint length, payload`. PROTOCOL.md §3.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::limits::{MAX_HEADERS_BYTES, MAX_MESSAGE_BYTES, MAX_UNKNOWN_BYTES};

/// PROTOCOL.md §3.2.
pub(super) const HEADERS: u64 = 0x0;
/// PROTOCOL.md §3.3.
pub(super) const MESSAGE: u64 = 0x1;
/// PROTOCOL.md §3.3.
pub(super) const COMPRESSED_MESSAGE: u64 = 0x2;
/// PROTOCOL.md §3.4.
pub(super) const TRAILERS: u64 = 0x3;

/// Two varints of 8 bytes.
const MAX_FRAME_HEADER_BYTES: usize = 16;

/// Which half of a call a stream carries, and so which frames it may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    /// HEADERS, then any number of MESSAGE, then the end of the stream.
    Request,
    /// Perhaps HEADERS, then any number of MESSAGE, then TRAILERS.
    Response,
}

/// What a decoder found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The payload of a HEADERS frame.
    Headers(Bytes),
    /// A message of `len` bytes begins; `Data` follows until it is complete.
    Message { len: u32, compressed: bool },
    /// The next bytes of the message; never empty.
    Data(Bytes),
    /// The payload of a TRAILERS frame.
    Trailers(Bytes),
}

/// What a peer did wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a {0} frame where PROTOCOL.md §3.1 allows none")]
    Unexpected(&'static str),
    #[error("a {what} frame of {len} bytes; the limit is {limit}")]
    TooLong { what: &'static str, len: u64, limit: u64 },
    #[error("the stream ended in the middle of a frame")]
    Truncated,
    #[error("the stream ended without {0}")]
    Incomplete(&'static str),
}

/// Cuts a stream into [`Event`]s. Knows neither sockets nor time.
#[derive(Debug)]
pub(crate) struct Decoder {
    half: Half,
    order: Order,
    state: State,
    input: Bytes,
    /// Bytes of unknown frames skipped so far.
    skipped: u64,
}

/// How far the stream has come: PROTOCOL.md §3.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Start,
    Messages,
    Ended,
}

#[derive(Debug)]
enum State {
    /// The type and length of a frame, as far as they have come.
    Header(BytesMut),
    /// A HEADERS or TRAILERS payload.
    Gather { trailers: bool, missing: usize, payload: BytesMut },
    /// A message payload passes through.
    Message { missing: u64 },
    /// An unknown frame.
    Skip { missing: u64 },
}

impl Decoder {
    pub(crate) fn new(half: Half) -> Self {
        Self { half, order: Order::Start, state: State::Header(BytesMut::new()), input: Bytes::new(), skipped: 0 }
    }

    /// Takes the next bytes of the stream. The last ones must have been used up: [`next`](Self::next) has returned None.
    pub(crate) fn feed(&mut self, input: Bytes) {
        debug_assert!(self.input.is_empty());
        self.input = input;
    }

    /// The next event; None when more bytes are needed.
    pub(crate) fn next(&mut self) -> Result<Option<Event>, FrameError> {
        loop {
            match &mut self.state {
                State::Header(partial) => {
                    let Some((kind, len)) = take_header(partial, &mut self.input) else { return Ok(None) };
                    self.state = State::Header(BytesMut::new());
                    if let Some(event) = self.begin(kind, len)? {
                        return Ok(Some(event));
                    }
                }
                State::Gather { trailers, missing, payload } => {
                    let trailers = *trailers;
                    let whole = if payload.is_empty() && self.input.len() >= *missing {
                        self.input.split_to(*missing)
                    } else {
                        let part = self.input.split_to(self.input.len().min(*missing));
                        *missing -= part.len();
                        payload.extend_from_slice(&part);
                        if *missing > 0 {
                            return Ok(None);
                        }
                        payload.split().freeze()
                    };
                    self.state = State::Header(BytesMut::new());
                    return Ok(Some(if trailers { Event::Trailers(whole) } else { Event::Headers(whole) }));
                }
                State::Message { missing: 0 } | State::Skip { missing: 0 } => {
                    self.state = State::Header(BytesMut::new());
                }
                State::Message { missing } | State::Skip { missing } => {
                    if self.input.is_empty() {
                        return Ok(None);
                    }
                    let n = usize::try_from(*missing).unwrap_or(usize::MAX).min(self.input.len());
                    *missing -= n as u64;
                    let part = self.input.split_to(n);
                    if matches!(self.state, State::Message { .. }) {
                        return Ok(Some(Event::Data(part)));
                    }
                }
            }
        }
    }

    /// The whole payload of the message that has just begun, if it is here already and not longer than `limit`.
    pub(crate) fn take_whole(&mut self, limit: usize) -> Option<Bytes> {
        let State::Message { missing } = self.state else { return None };
        let len = usize::try_from(missing).ok().filter(|len| *len <= limit && *len <= self.input.len())?;
        self.state = State::Header(BytesMut::new());
        Some(self.input.split_to(len))
    }

    /// Whether the stream is not in the middle of a message.
    pub(crate) fn between_messages(&self) -> bool {
        !matches!(self.state, State::Message { missing } if missing > 0)
    }

    /// To be called when the stream has ended: is that where it may end?
    pub(crate) fn finish(&self) -> Result<(), FrameError> {
        let between_frames = match &self.state {
            State::Header(partial) => partial.is_empty(),
            State::Message { missing } | State::Skip { missing } => *missing == 0,
            State::Gather { .. } => false,
        };
        match (between_frames, self.half, self.order) {
            (false, ..) => Err(FrameError::Truncated),
            (true, Half::Request, Order::Start) => Err(FrameError::Incomplete("HEADERS")),
            (true, Half::Response, Order::Start | Order::Messages) => Err(FrameError::Incomplete("TRAILERS")),
            (true, ..) => Ok(()),
        }
    }

    /// PROTOCOL.md §3.1: which frame may come where.
    fn begin(&mut self, kind: u64, len: u64) -> Result<Option<Event>, FrameError> {
        let within = |what, limit: u64| match len <= limit {
            true => Ok(()),
            false => Err(FrameError::TooLong { what, len, limit }),
        };
        match kind {
            HEADERS => {
                within("HEADERS", MAX_HEADERS_BYTES as u64)?;
                if self.order != Order::Start {
                    return Err(FrameError::Unexpected("HEADERS"));
                }
                self.order = Order::Messages;
                self.state = State::Gather { trailers: false, missing: len as usize, payload: BytesMut::new() };
                Ok(None)
            }
            MESSAGE | COMPRESSED_MESSAGE => {
                within("MESSAGE", MAX_MESSAGE_BYTES)?;
                match (self.order, self.half) {
                    (Order::Messages, _) | (Order::Start, Half::Response) => self.order = Order::Messages,
                    _ => return Err(FrameError::Unexpected("MESSAGE")),
                }
                self.state = State::Message { missing: len };
                Ok(Some(Event::Message { len: len as u32, compressed: kind == COMPRESSED_MESSAGE }))
            }
            TRAILERS => {
                within("TRAILERS", MAX_HEADERS_BYTES as u64)?;
                if self.half == Half::Request || self.order == Order::Ended {
                    return Err(FrameError::Unexpected("TRAILERS"));
                }
                self.order = Order::Ended;
                self.state = State::Gather { trailers: true, missing: len as usize, payload: BytesMut::new() };
                Ok(None)
            }
            _ => {
                self.skipped = self.skipped.saturating_add(len);
                if self.skipped > MAX_UNKNOWN_BYTES {
                    let (len, limit) = (self.skipped, MAX_UNKNOWN_BYTES);
                    return Err(FrameError::TooLong { what: "unknown", len, limit });
                }
                self.state = State::Skip { missing: len };
                Ok(None)
            }
        }
    }
}

/// Takes a frame's type and length off `input`; keeps what has come in `partial` when they are not complete.
fn take_header(partial: &mut BytesMut, input: &mut Bytes) -> Option<(u64, u64)> {
    if partial.is_empty()
        && let Some((header, used)) = read_header(input)
    {
        input.advance(used);
        return Some(header);
    }
    while partial.len() < MAX_FRAME_HEADER_BYTES && input.has_remaining() {
        partial.put_u8(input.get_u8());
        if let Some((header, _)) = read_header(partial) {
            return Some(header);
        }
    }
    None
}

pub(super) fn read_header(bytes: &[u8]) -> Option<((u64, u64), usize)> {
    let (kind, a) = read_varint(bytes)?;
    let (len, b) = read_varint(&bytes[a..])?;
    Some(((kind, len), a + b))
}

/// RFC 9000 §16. Gives the value and how many bytes it took.
pub(super) fn read_varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let len = 1 << (first >> 6);
    let rest = bytes.get(1..len)?;
    let value = rest.iter().fold(u64::from(first & 0x3f), |value, byte| value << 8 | u64::from(*byte));
    Some((value, len))
}

/// RFC 9000 §16, in the shortest form.
pub(super) fn put_varint(out: &mut BytesMut, value: u64) {
    match value {
        0..=0x3f => out.put_u8(value as u8),
        0x40..=0x3fff => out.put_u16(value as u16 | 0x4000),
        0x4000..=0x3fff_ffff => out.put_u32(value as u32 | 0x8000_0000),
        _ => out.put_u64(value | 0xc000_0000_0000_0000),
    }
}

/// Writes the frame header of a message.
pub(crate) fn put_message_header(out: &mut BytesMut, len: u32, compressed: bool) {
    put_varint(out, if compressed { COMPRESSED_MESSAGE } else { MESSAGE });
    put_varint(out, u64::from(len));
}

/// A whole HEADERS frame.
pub(crate) fn headers_frame(headers: &titan_proto::wire::Headers) -> Bytes {
    whole_frame(HEADERS, headers)
}

/// A whole TRAILERS frame.
pub(crate) fn trailers_frame(trailers: &titan_proto::wire::Trailers) -> Bytes {
    whole_frame(TRAILERS, trailers)
}

fn whole_frame(kind: u64, message: &impl prost::Message) -> Bytes {
    let len = message.encoded_len();
    let mut out = BytesMut::with_capacity(MAX_FRAME_HEADER_BYTES + len);
    put_varint(&mut out, kind);
    put_varint(&mut out, len as u64);
    message.encode_raw(&mut out);
    out.freeze()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn frame(kind: u64, payload: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        put_varint(&mut out, kind);
        put_varint(&mut out, payload.len() as u64);
        out.put_slice(payload);
        out.to_vec()
    }

    /// Events of `bytes`, delivered in pieces of the given sizes, with each message gathered into one Data.
    fn decode(half: Half, bytes: &[u8], pieces: &[usize]) -> Result<Vec<Event>, FrameError> {
        let mut decoder = Decoder::new(half);
        let mut events: Vec<Event> = Vec::new();
        let mut pieces = pieces.iter().cycle();
        let mut rest = Bytes::copy_from_slice(bytes);
        while !rest.is_empty() {
            let n = pieces.next().map_or(rest.len(), |n| (*n).clamp(1, rest.len()));
            decoder.feed(rest.split_to(n));
            while let Some(event) = decoder.next()? {
                match (events.last_mut(), event) {
                    (Some(Event::Data(before)), Event::Data(more)) => *before = [&before[..], &more].concat().into(),
                    (_, event) => events.push(event),
                }
            }
        }
        decoder.finish().map(|()| events)
    }

    fn data(bytes: &[u8]) -> Event {
        Event::Data(Bytes::copy_from_slice(bytes))
    }

    #[test]
    fn a_call_is_read_back_however_the_network_cuts_it() {
        let request = [frame(HEADERS, b"head"), frame(MESSAGE, b"one"), frame(COMPRESSED_MESSAGE, &[7; 300])].concat();
        let expected = vec![
            Event::Headers(Bytes::from_static(b"head")),
            Event::Message { len: 3, compressed: false },
            data(b"one"),
            Event::Message { len: 300, compressed: true },
            data(&[7; 300]),
        ];
        for piece in [1, 2, 3, 5, 64, 1000] {
            assert_eq!(decode(Half::Request, &request, &[piece]), Ok(expected.clone()), "pieces of {piece}");
        }
    }

    #[test]
    fn unknown_frames_are_skipped_up_to_a_limit() {
        let stream = [frame(0x40, b"new"), frame(MESSAGE, b"x"), frame(0x1f_ffff, b""), frame(TRAILERS, b"")].concat();
        let events = decode(Half::Response, &stream, &[1]).unwrap();
        assert_eq!(events.len(), 3);
        let mut header = BytesMut::new();
        put_varint(&mut header, 0x99);
        put_varint(&mut header, MAX_UNKNOWN_BYTES + 1);
        assert!(matches!(decode(Half::Response, &header, &[64]), Err(FrameError::TooLong { what: "unknown", .. })));
    }

    #[test]
    fn frames_out_of_order_are_refused() {
        let cases: [(Half, Vec<u8>, FrameError); 7] = [
            (Half::Request, frame(MESSAGE, b""), FrameError::Unexpected("MESSAGE")),
            (Half::Request, frame(TRAILERS, b""), FrameError::Unexpected("TRAILERS")),
            (Half::Request, [frame(0, b""), frame(0, b"")].concat(), FrameError::Unexpected("HEADERS")),
            (Half::Response, [frame(1, b""), frame(0, b"")].concat(), FrameError::Unexpected("HEADERS")),
            (Half::Response, [frame(3, b""), frame(1, b"")].concat(), FrameError::Unexpected("MESSAGE")),
            (Half::Response, frame(MESSAGE, b"x"), FrameError::Incomplete("TRAILERS")),
            (Half::Request, vec![], FrameError::Incomplete("HEADERS")),
        ];
        for (half, stream, error) in cases {
            assert_eq!(decode(half, &stream, &[64]), Err(error));
        }
    }

    #[test]
    fn a_stream_cut_inside_a_frame_is_an_error() {
        let response = [frame(MESSAGE, b"hello"), frame(TRAILERS, b"bye")].concat();
        for cut in 1..response.len() {
            assert!(decode(Half::Response, &response[..cut], &[64]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn lengths_past_the_limits_are_refused_before_anything_is_stored() {
        for (kind, len) in [(HEADERS, MAX_HEADERS_BYTES as u64 + 1), (MESSAGE, MAX_MESSAGE_BYTES + 1)] {
            let mut header = BytesMut::new();
            put_varint(&mut header, kind);
            put_varint(&mut header, len);
            assert!(matches!(decode(Half::Request, &header, &[64]), Err(FrameError::TooLong { .. })));
        }
    }

    proptest! {
        #[test]
        fn varints_survive(value in 0_u64..1 << 62) {
            let mut out = BytesMut::new();
            put_varint(&mut out, value);
            prop_assert_eq!(read_varint(&out), Some((value, out.len())));
        }

        #[test]
        fn any_messages_survive_any_cutting(
            messages in vec((any::<bool>(), vec(any::<u8>(), 0..400)), 0..12),
            pieces in vec(1_usize..64, 1..8),
        ) {
            let mut stream = frame(HEADERS, b"h");
            let mut expected = vec![Event::Headers(Bytes::from_static(b"h"))];
            for (compressed, payload) in &messages {
                stream.extend(frame(if *compressed { COMPRESSED_MESSAGE } else { MESSAGE }, payload));
                expected.push(Event::Message { len: payload.len() as u32, compressed: *compressed });
                if !payload.is_empty() {
                    expected.push(data(payload));
                }
            }
            prop_assert_eq!(decode(Half::Request, &stream, &pieces), Ok(expected));
        }

        #[test]
        fn noise_never_panics(noise in vec(any::<u8>(), 0..600), pieces in vec(1_usize..64, 1..4), request: bool) {
            let _ = decode(if request { Half::Request } else { Half::Response }, &noise, &pieces);
        }
    }
}
