//! Any bytes as a packet of Pgpool-II's control protocol.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = pgmend::admin::pcp::parse(data);
});
