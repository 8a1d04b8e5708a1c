//! Redundant messages: whatever datagrams a peer sends, both sides stay in order and within their bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|datagrams: Vec<&[u8]>| {
    titan_transport::fuzzing::datagrams(datagrams);
});
