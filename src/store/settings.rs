//! Where the store is.

use std::path::PathBuf;

/// The store's folder.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `state_directory`; with Pgpool-II's files its `logdir`/`work_dir`, where `pgpool_status` is written too.
    pub directory: PathBuf,
    /// Write and read Pgpool-II's `pgpool_status` as well.
    pub pgpool_status: bool,
    /// `-D`: forget the states of the nodes at start.
    pub discard_status: bool,
}
