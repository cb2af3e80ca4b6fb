//! Probes the nodes and is the only writer of the view.
//!
//! One task per node probes (`probe`, IO); what was seen goes to one actor (`actor`) that owns the pure `core`; `detect`
//! says who the primary is; `handle` is what other folders hold. It never promotes, starts or stops a server;
//! who does so by plan freezes it (`freeze`) and tells it the new primary.
//! Read `detect`, `core`, `probe`, then `actor`.

mod actor;
mod core;
mod detect;
mod equals;
mod freeze;
mod handle;
mod memory;
mod probe;
mod settings;

pub use self::core::FAILED_REASON;
pub use detect::{Remark, Seen, Verdict, Witness, detect};
pub use freeze::Freeze;
pub use handle::{Compare, Comparing, Keeper, KeeperError, PasswordOf, ServerTlsOf};
pub use memory::{Memory, Recalled, SavedNode, initial_view};
pub use probe::{ProbeError, ProbeReport, StandbyReport};
pub use settings::Settings;
