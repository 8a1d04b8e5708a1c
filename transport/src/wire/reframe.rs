//! gRPC's own framing (1 byte flag, 4 bytes length, message), as tonic produces it, to MESSAGE frames and back.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::frame::put_message_header;

/// gRPC's prefix of each message.
pub(crate) const PREFIX_BYTES: usize = 5;
/// Messages up to this size are copied beside their frame header: cheaper than a second buffer to write.
const COPY_BYTES: usize = 4096;

/// Turns a body of length-prefixed messages into frames. A message need not come in one piece.
#[derive(Debug, Default)]
pub(crate) struct Reframer {
    /// A prefix that has not come completely.
    prefix: BytesMut,
    /// Bytes that the current message still misses.
    missing: usize,
}

impl Reframer {
    /// Takes the next bytes of the body and appends what to write to `out`. `begun` is called for each frame that begins: with all of
    /// it, or with None where it comes in pieces.
    pub(crate) fn push(&mut self, mut data: Bytes, out: &mut Vec<Bytes>, mut begun: impl FnMut(Option<&Bytes>)) {
        while data.has_remaining() {
            if self.missing > 0 {
                let part = data.split_to(self.missing.min(data.len()));
                self.missing -= part.len();
                out.push(part);
                continue;
            }
            let n = (PREFIX_BYTES - self.prefix.len()).min(data.len());
            self.prefix.extend_from_slice(&data.split_to(n));
            if self.prefix.len() < PREFIX_BYTES {
                return;
            }
            let compressed = self.prefix.get_u8() != 0;
            let len = self.prefix.get_u32();
            let whole = (len as usize <= COPY_BYTES && len as usize <= data.len()).then(|| data.split_to(len as usize));
            let mut frame = BytesMut::with_capacity(16 + whole.as_ref().map_or(0, Bytes::len));
            put_message_header(&mut frame, len, compressed);
            let is_whole = whole.is_some();
            match whole {
                Some(message) => frame.put_slice(&message),
                None => self.missing = len as usize,
            }
            let frame = frame.freeze();
            begun(is_whole.then_some(&frame));
            out.push(frame);
        }
    }

    /// Whether the body may end here: not inside a message.
    pub(crate) fn at_boundary(&self) -> bool {
        self.missing == 0 && self.prefix.is_empty()
    }
}

/// gRPC's prefix for a message, with room for `more` bytes behind it.
pub(crate) fn prefix(len: u32, compressed: bool, more: usize) -> BytesMut {
    let mut out = BytesMut::with_capacity(PREFIX_BYTES + more);
    out.put_u8(compressed.into());
    out.put_u32(len);
    out
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::wire::frame::{Decoder, Event, Half};

    proptest! {
        #[test]
        fn a_body_becomes_the_same_messages(
            messages in vec((any::<bool>(), vec(any::<u8>(), 0..6000)), 0..6),
            cuts in vec(1_usize..5000, 1..6),
        ) {
            let mut body = BytesMut::new();
            for (compressed, message) in &messages {
                body.extend(prefix(message.len() as u32, *compressed, 0));
                body.extend_from_slice(message);
            }
            let (mut body, mut reframer, mut out) = (body.freeze(), Reframer::default(), Vec::new());
            for cut in cuts.iter().cycle() {
                if body.is_empty() { break; }
                reframer.push(body.split_to((*cut).min(body.len())), &mut out, |_| {});
            }
            prop_assert!(reframer.at_boundary());

            let mut decoder = Decoder::new(Half::Response);
            let mut found: Vec<(bool, Vec<u8>)> = Vec::new();
            for piece in out {
                decoder.feed(piece);
                while let Ok(Some(event)) = decoder.next() {
                    match event {
                        Event::Message { compressed, .. } => found.push((compressed, vec![])),
                        Event::Data(part) => if let Some(last) = found.last_mut() { last.1.extend(part) },
                        other => prop_assert!(false, "{other:?}"),
                    }
                }
            }
            prop_assert_eq!(found, messages);
        }
    }
}
