//! The `pgmend` binary; all of it lives in the library.

fn main() {}
