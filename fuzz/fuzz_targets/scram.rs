//! Any bytes as the messages of a SCRAM login, both sides.
#![no_main]

#[path = "../drive.rs"]
mod drive;

libfuzzer_sys::fuzz_target!(|data: &[u8]| drive::drive("scram", data));
