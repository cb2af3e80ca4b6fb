//! Runs a table of named, repeatable steps with deadline, progress, undo and journal.
//!
//! Read `job` (what is told of a job), `jobs` (the registry and the handle of the one under way), `table` (the runner).

mod job;
mod jobs;
mod table;
pub use job::{JobSnapshot, Outcome, Progress};
pub use jobs::{JobHandle, Jobs};
pub use table::{Failure, Row, Work, run};

/// What the registry refuses.
#[derive(Debug, thiserror::Error)]
pub enum WorkflowError {
    /// Only one job of a kind at a time.
    #[error("job {0} is already under way")]
    Busy(u64),
    /// Nobody remembers it.
    #[error("there is no job {0}")]
    Unknown(u64),
    /// It has ended.
    #[error("job {0} has already ended")]
    Ended(u64),
    /// The journal could not be written: without it nothing is done.
    #[error("the journal cannot be written: {0}")]
    Store(#[from] crate::store::StoreError),
}
