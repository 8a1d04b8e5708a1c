//! The stream decoder and the payloads behind it: whatever a peer sends, however the network cuts it, gives events or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, u8, &[u8])| {
    let (request, piece, stream) = input;
    titan_transport::fuzzing::decode(request, usize::from(piece), stream);
});
