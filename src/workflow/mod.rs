//! Runs a table of named, repeatable steps with deadline, progress, undo and journal.

mod job;
pub use job::{JobSnapshot, Outcome, Progress};
