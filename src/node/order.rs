//! On whose behalf something is done to a node: the operation's number and mark, and what the operator's own commands are told.

use crate::cluster::NodeSpec;
use std::ffi::OsString;
use std::time::Duration;

/// An operation. Its children are marked in their environment, so that a later daemon finds what outlived this one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// The job's number; 0: a look, of no job.
    pub operation: u64,
    /// Variable and value.
    pub mark: Option<(&'static str, OsString)>,
}

impl Order {
    /// Of a job.
    pub fn of(operation: u64, mark: Option<(&'static str, String)>) -> Order {
        Order { operation, mark: mark.map(|(name, value)| (name, value.into())) }
    }

    /// The environment of a node's own command: which operation it is a part of, what is asked, of which node, and in how many
    /// seconds it is ended.
    pub fn told(&self, spec: &NodeSpec, verb: &str, within: Duration) -> Vec<(&'static str, String)> {
        let directory = spec.data_directory.as_ref().map(|d| d.display().to_string()).unwrap_or_default();
        vec![
            ("PGMEND_OPERATION", self.operation.to_string()),
            ("PGMEND_VERB", verb.to_owned()),
            ("PGMEND_DEADLINE", within.as_secs().max(1).to_string()),
            ("PGMEND_NODE", spec.id.to_string()),
            ("PGMEND_HOST", spec.host.0.clone()),
            ("PGMEND_PORT", spec.port.to_string()),
            ("PGMEND_DATA_DIRECTORY", directory),
        ]
    }
}
