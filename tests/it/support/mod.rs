//! What the stories stand on: real PostgreSQL clusters, the daemon, loads, and waiting for conditions.
//!
//! Everything is started as the user `postgres` in a folder of its own and ends with the value that owns it, also when
//! a story fails.
// A story's module may be switched off while its subject is being built; its tools then have no user.
#![allow(dead_code)]

pub mod cluster;
pub mod direct;
pub mod ledger;
pub mod load;
pub mod oracle;
pub mod pgmend;
pub mod pipeline;
pub mod pki;
pub mod postgres_programs;
pub mod process;
pub mod raw;
pub mod scratch;
pub mod sshd;
pub mod template;

pub use cluster::Cluster;
pub use ledger::Ledger;
pub use load::Load;
pub use pgmend::{Config, Pgmend};
pub use process::{Ran, as_postgres, bin, run};
pub use raw::Raw;
pub use scratch::{Scratch, free_port};
pub use sshd::Sshd;
