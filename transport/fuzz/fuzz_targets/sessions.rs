//! Files of stored sessions: any content, also under a right checksum, is a record that is written as it was read, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (bool, &[u8])| {
    let (checksum, content) = input;
    titan_transport::fuzzing::sessions(checksum, content);
});
