//! Any bytes as packets of Pgpool-II's control protocol.
#![no_main]

#[path = "../drive.rs"]
mod drive;

libfuzzer_sys::fuzz_target!(|data: &[u8]| drive::drive("pcp", data));
