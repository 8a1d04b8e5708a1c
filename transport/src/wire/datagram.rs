//! What travels in DATAGRAM frames: PROTOCOL.md §10.2. Without I/O.

use bytes::{Buf as _, Bytes, BytesMut};

use super::frame::{COMPRESSED_MESSAGE, HEADERS, MESSAGE, TRAILERS, put_varint, read_header, read_varint};

const REPEAT: u64 = 0x1;
const ACK: u64 = 0x2;

/// Bytes of a REPEAT before its frames: type, stream, number, each at most 8.
pub(crate) const MAX_REPEAT_HEADER_BYTES: usize = 17;

/// A datagram that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Datagram {
    /// Frames of a response again, each as it stands in the stream.
    Repeat {
        stream: u64,
        /// The first frame's number; the others follow without a gap.
        first: u64,
        frames: Bytes,
    },
    /// How far a response has come.
    Ack {
        stream: u64,
        /// All frames below this number have arrived.
        next: u64,
        /// So many of them came first in a REPEAT.
        repaired: u64,
        /// Frames are missing and wanted at once.
        again: bool,
    },
}

impl Datagram {
    /// None for a probe, an unknown type, or one that is damaged: a datagram is only ever a help, and may be ignored.
    pub(crate) fn read(mut bytes: Bytes) -> Option<Self> {
        let kind = take(&mut bytes)?;
        let stream = take(&mut bytes)?;
        match kind {
            REPEAT => Some(Self::Repeat { stream, first: take(&mut bytes)?, frames: bytes }),
            ACK => {
                let (next, repaired, flags) = (take(&mut bytes)?, take(&mut bytes)?, take(&mut bytes)?);
                Some(Self::Ack { stream, next, repaired, again: flags & 1 != 0 })
            }
            _ => None,
        }
    }

    /// An ACK, ready to send.
    pub(crate) fn ack(stream: u64, next: u64, repaired: u64, again: bool) -> Bytes {
        let mut out = BytesMut::with_capacity(24);
        for value in [ACK, stream, next, repaired, u64::from(again)] {
            put_varint(&mut out, value);
        }
        out.freeze()
    }

    /// A REPEAT, ready to send.
    pub(crate) fn repeat<'a>(stream: u64, first: u64, frames: impl IntoIterator<Item = &'a Bytes>) -> Bytes {
        let frames = frames.into_iter();
        let mut out = BytesMut::with_capacity(256);
        for value in [REPEAT, stream, first] {
            put_varint(&mut out, value);
        }
        frames.for_each(|frame| out.extend_from_slice(frame));
        out.freeze()
    }
}

/// A frame out of a REPEAT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Headers(Bytes),
    Message { payload: Bytes, compressed: bool },
    Trailers(Bytes),
}

impl Frame {
    /// Takes the first frame off `frames`. None at the end, and where something else than a whole frame of a known type follows.
    pub(crate) fn take(frames: &mut Bytes) -> Option<Self> {
        let ((kind, len), used) = read_header(frames)?;
        let len = usize::try_from(len).ok().filter(|len| *len <= frames.len() - used)?;
        let kind = Some(kind).filter(|kind| matches!(*kind, HEADERS | MESSAGE | COMPRESSED_MESSAGE | TRAILERS))?;
        frames.advance(used);
        let payload = frames.split_to(len);
        Some(match kind {
            HEADERS => Self::Headers(payload),
            TRAILERS => Self::Trailers(payload),
            kind => Self::Message { payload, compressed: kind == COMPRESSED_MESSAGE },
        })
    }

    /// Bytes of its payload.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Headers(payload) | Self::Trailers(payload) | Self::Message { payload, .. } => payload.len(),
        }
    }
}

fn take(bytes: &mut Bytes) -> Option<u64> {
    let (value, used) = read_varint(bytes)?;
    bytes.advance(used);
    Some(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::{collection::vec, prelude::*};

    use super::*;

    const MOST: u64 = (1 << 62) - 1;

    proptest! {
        #[test]
        fn acknowledgements_survive(stream in 0..=MOST, next in 0..=MOST, repaired in 0..=MOST, again: bool) {
            let read = Datagram::read(Datagram::ack(stream, next, repaired, again));
            prop_assert_eq!(read, Some(Datagram::Ack { stream, next, repaired, again }));
        }

        #[test]
        fn repeated_frames_survive(
            stream in 0..=MOST,
            first in 0..=MOST,
            messages in vec((vec(any::<u8>(), 0..300), 0_u64..4), 0..6),
        ) {
            let frames: Vec<Bytes> = messages.iter().map(|(payload, kind)| {
                let mut frame = BytesMut::new();
                put_varint(&mut frame, *kind);
                put_varint(&mut frame, payload.len() as u64);
                frame.extend_from_slice(payload);
                frame.freeze()
            }).collect();
            let sent = Datagram::repeat(stream, first, &frames);
            prop_assert!(sent.len() <= MAX_REPEAT_HEADER_BYTES + frames.iter().map(Bytes::len).sum::<usize>());
            let Some(Datagram::Repeat { stream: s, first: f, frames: mut rest }) = Datagram::read(sent) else {
                return Err(TestCaseError::fail("no REPEAT"));
            };
            prop_assert_eq!((s, f), (stream, first));
            for (payload, kind) in messages {
                let payload = Bytes::from(payload);
                let expected = match kind {
                    HEADERS => Frame::Headers(payload),
                    TRAILERS => Frame::Trailers(payload),
                    kind => Frame::Message { payload, compressed: kind == COMPRESSED_MESSAGE },
                };
                prop_assert_eq!(Frame::take(&mut rest), Some(expected));
            }
            prop_assert_eq!(Frame::take(&mut rest), None);
        }

        #[test]
        fn noise_never_panics(noise in vec(any::<u8>(), 0..200)) {
            if let Some(Datagram::Repeat { mut frames, .. }) = Datagram::read(noise.into()) {
                while Frame::take(&mut frames).is_some() {}
            }
        }
    }

    #[test]
    fn a_probe_and_an_unknown_type_are_nothing() {
        assert_eq!(Datagram::read(Bytes::new()), None);
        assert_eq!(Datagram::read(Bytes::from_static(&[0x21, 0, 0])), None);
    }
}
