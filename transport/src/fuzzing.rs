//! What the fuzz targets of `transport/fuzz` may reach.

use bytes::Bytes;
use prost::Message as _;
use titan_proto::wire::{Headers, Trailers};

use crate::{
    client::sessions::record::{Binding, Record},
    wire::{
        frame::{Decoder, Event, Half},
        metadata,
    },
};

/// Decodes `stream` as one half of a call, in pieces of `piece` bytes, with the payloads of its frames.
pub fn decode(request: bool, piece: usize, stream: &[u8]) {
    let mut decoder = Decoder::new(if request { Half::Request } else { Half::Response });
    for part in stream.chunks(piece.max(1)) {
        decoder.feed(Bytes::copy_from_slice(part));
        loop {
            match decoder.next() {
                Ok(Some(Event::Headers(payload))) => {
                    if let Ok(headers) = Headers::decode(payload) {
                        let _ = metadata::insert(&mut http::HeaderMap::new(), headers.metadata);
                    }
                }
                Ok(Some(Event::Trailers(payload))) => {
                    if let Ok(trailers) = Trailers::decode(payload) {
                        let _ = metadata::trailer_map(trailers);
                    }
                }
                Ok(Some(Event::Message { .. } | Event::Data(_))) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
    let _ = decoder.finish();
}

/// Reads `content` as a file of sessions; with `checksum` as what stands between a right head and a right checksum.
pub fn sessions(checksum: bool, content: &[u8]) {
    const BINDING: Binding = [7; 32];
    let bytes = if checksum { Record::sealed(&BINDING, content) } else { content.to_vec() };
    if let Ok(record) = Record::decode(&bytes, &BINDING) {
        assert_eq!(record.encode(&BINDING), bytes);
    }
}
