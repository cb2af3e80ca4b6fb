//! What can be done to a PostgreSQL server from outside: start, stop, base backup, rewind, run a script.
//!
//! It knows nothing of recoveries. Read `process` (a bounded child), `owner` (as whom), `programs` (where PostgreSQL's
//! are), `control_data` and `wal` (what a stopped server's data say), `data_directory` (its files), `postmaster` (start, stop, alive).

mod control_data;
mod data_directory;
mod owner;
mod postmaster;
mod process;
mod programs;
mod wal;

pub use control_data::ControlData;
pub use data_directory::{DataDirectory, arm_standby, disarm_standby, set_streaming};
pub use owner::{Owner, is_this_machine};
pub use postmaster::{Postmaster, answers, running_pid, signal_child, signal_stop};
pub use process::{Child, Finished, Lines, Output, group_is_alive, kill_group, marked_processes, run};
pub use programs::Programs;
pub use wal::{LogEnd, Segment, is_unused_copy};

/// What went wrong outside.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// A program could not be started.
    #[error("{program} could not be run: {why}")]
    Spawn {
        /// Which.
        program: String,
        /// The system's words.
        why: String,
    },
    /// It ended with a failure.
    #[error("{program} {how}")]
    Failed {
        /// Which.
        program: String,
        /// `exited with status 1`, `was killed by signal 9`.
        how: String,
        /// Its last lines.
        words: String,
    },
    /// It was ended at the caller's wish.
    #[error("{0} was stopped")]
    Stopped(String),
    /// Files.
    #[error("{path}: {why}")]
    File {
        /// Which.
        path: String,
        /// The system's words.
        why: String,
    },
    /// PostgreSQL's programs are not where they were looked for.
    #[error("{0}")]
    NoPrograms(String),
}

impl NodeError {
    pub(crate) fn file(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> NodeError + '_ {
        move |e| NodeError::File { path: path.display().to_string(), why: e.to_string() }
    }
    /// The program's own last lines, when there are some.
    pub fn words(&self) -> Option<&str> {
        match self {
            NodeError::Failed { words, .. } if !words.is_empty() => Some(words),
            _ => None,
        }
    }
}
