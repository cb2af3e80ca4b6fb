//! Sessions where pgmend itself keeps several nodes equal: `native_replication` and `snapshot_isolation`.
//!
//! What changes something goes to all nodes, to the main node first; commits go the other way round; what only reads goes to
//! one. Read `session` (the client's life; `leave` is how it gives its servers up), `execute` (what becomes of a request),
//! `everywhere` (a statement on all nodes) and `transaction` (begin and end). `leg` is one node's part with its own protocol
//! core, `bundle` their rounds; `loss` is what becomes of lost and diverged nodes, `level` of sequences; `large` numbers large
//! objects; `account` and `verdict` (both pure) compare what nodes answer; `unit`, `batch` and `texts` (pure but for the
//! reading) cut and name what the client sends; `plan` asks `routing` and the catalog; `named` is PREPARE; `snapshots`
//! coordinates snapshot isolation; `copy` is COPY.

mod account;
mod batch;
mod bundle;
mod copy;
mod everywhere;
mod execute;
mod front;
mod large;
mod leave;
mod leg;
mod level;
mod loss;
mod named;
mod plan;
mod session;
mod settings;
mod snapshots;
mod texts;
mod transaction;
mod unit;
mod verdict;

pub(super) use plan::Books;
pub(super) use session::{Newcomer, Session};
pub use settings::Settings;
pub use snapshots::Snapshots;
pub use verdict::Choice;
