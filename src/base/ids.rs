//! Identities as types, so that a port is never taken for a node.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The number of a node: its place in the configuration, from 0. Pgpool-II allows at most 128 nodes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u16);

impl NodeId {
    /// The number as an index into a view's `nodes`.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
