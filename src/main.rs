//! The `pgmend` binary; all of it lives in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    pgmend::cli::main(std::env::args_os().collect())
}
