//! Any text as SQL: read, planned and rewritten.
#![no_main]

#[path = "../drive.rs"]
mod drive;

libfuzzer_sys::fuzz_target!(|data: &[u8]| drive::drive("routing", data));
