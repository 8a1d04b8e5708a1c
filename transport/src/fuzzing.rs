//! What the fuzz targets of `transport/fuzz` may reach.

use bytes::Bytes;
use prost::Message as _;
use titan_proto::wire::{Headers, Trailers};

use crate::{
    client::sessions::record::{Binding, Record},
    wire::{
        arrivals::Arrivals,
        datagram::Datagram,
        frame::{Decoder, Event, Half},
        metadata,
        window::Window,
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

/// Takes `datagrams` as a client and as a server would, beside a stream that brings frames now and then.
pub fn datagrams<'a>(datagrams: impl IntoIterator<Item = &'a [u8]>) {
    let (mut arrivals, mut window, mut left) = (Arrivals::default(), Window::new(0), 0);
    for datagram in datagrams {
        window.push(Some(Bytes::copy_from_slice(datagram)));
        match Datagram::read(Bytes::copy_from_slice(datagram)) {
            Some(Datagram::Repeat { first, frames, .. }) => {
                arrivals.repeated(first, frames);
            }
            Some(Datagram::Ack { next, repaired, again, .. }) => {
                let (more, repaired) = window.acknowledge(next, repaired, again);
                assert!(repaired <= more);
            }
            None => {
                arrivals.stream_brings();
            }
        }
        while arrivals.take_early().is_some() {
            left += 1;
        }
        assert!(arrivals.next() >= left);
    }
}

/// Reads `content` as a file of sessions; with `checksum` as what stands between a right head and a right checksum.
pub fn sessions(checksum: bool, content: &[u8]) {
    const BINDING: Binding = [7; 32];
    let bytes = if checksum { Record::sealed(&BINDING, content) } else { content.to_vec() };
    if let Ok(record) = Record::decode(&bytes, &BINDING) {
        assert_eq!(record.encode(&BINDING), bytes);
    }
}
