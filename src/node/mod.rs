//! What can be done to a PostgreSQL server from outside: start, stop, base backup, rewind, run a script.
//!
//! It knows nothing of recoveries. Read `process` (a bounded child), `owner` (as whom), `programs` (where PostgreSQL's
//! are), `control_data` and `wal` (what a stopped server's data say), `data_directory` (its files), `disk_room`, `postmaster` (start, stop, alive);
//! then `remote`, the same on another machine, and `site`, `data` and `order`, which hide where it is. `outcome`: what ends mean.

mod control_data;
mod data;
mod data_directory;
mod disk_room;
mod order;
mod outcome;
mod owner;
mod postmaster;
mod process;
mod programs;
mod remote;
mod site;
mod wal;

pub use control_data::ControlData;
pub use data::Data;
pub use data_directory::{DataDirectory, arm_standby, disarm_standby, set_streaming};
pub use disk_room::{DiskRoom, free_bytes};
pub use order::Order;
pub use owner::{Owner, is_this_machine};
pub use postmaster::{Postmaster, answers, running_pid, signal_child, signal_immediate, signal_stop};
pub use process::{Child, Finished, Lines, Output, group_is_alive, kill_group, marked_processes, run};
pub use programs::Programs;
pub use remote::{Halted, Remote, Survey};
pub use site::Site;
pub use wal::{LogEnd, Segment};

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
    /// It said no, and that nothing was changed (exit status 20).
    #[error("{program} refused: {words}")]
    Refused {
        /// Which.
        program: String,
        /// Why.
        words: String,
    },
    /// It asked to be tried again (exit status 10) until the time was over; nothing was changed.
    #[error("{program} asked to be tried again until its time was over: {words}")]
    Busy {
        /// Which.
        program: String,
        /// Why.
        words: String,
    },
    /// It may or may not have been done: look again.
    #[error("{program}: {how}; whether it was done is not known{}", if words.is_empty() { String::new() } else { format!(": {words}") })]
    Unknown {
        /// Which.
        program: String,
        /// How it ended.
        how: String,
        /// Its words.
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
            // The others carry theirs in the message.
            _ => None,
        }
    }
}
