//! Any bytes as a first packet.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = pgmend::wire::startup::parse(data);
});
