//! The file `nodes.json`: node states, generation and epoch in one durable step.

use super::{StoreError, files, pgpool_status};
use crate::cluster::{DataState, Epoch, NodeStatus};
use serde::{Deserialize, Serialize};
use std::path::Path;

const NAME: &str = "nodes.json";

/// One node's state as saved. Host and port tell whether the configuration still means the same server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedNode {
    /// As configured when it was saved; empty when read from Pgpool-II's file, which does not hold it.
    pub host: String,
    /// As configured when it was saved; 0 when read from Pgpool-II's file.
    pub port: u16,
    /// Its state.
    pub status: NodeStatus,
    /// Unix seconds of the change to it.
    pub changed_at_s: u64,
    /// Why.
    pub reason: String,
    /// Replicating modes: whether its data were those of the others.
    #[serde(default)]
    pub data: DataState,
}

/// Everything about the cluster that must survive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Of the last published view.
    #[serde(default)]
    pub generation: u64,
    /// In force.
    #[serde(default)]
    pub epoch: Option<Epoch>,
    /// Replicating modes: the daemon ended orderly. Taken back by the first save of the next one, before a client is served.
    #[serde(default)]
    pub clean: bool,
    /// By node id.
    #[serde(default)]
    pub nodes: Vec<SavedNode>,
}

/// Reads it; without it Pgpool-II's file when `pgpool` says so; else nothing is known.
pub(super) fn read(directory: &Path, pgpool: bool) -> Result<Saved, StoreError> {
    let path = directory.join(NAME);
    match files::read(&path)? {
        Some(text) => {
            serde_json::from_str(&text).map_err(|e| StoreError::Damaged { path: path.clone(), why: e.to_string() })
        }
        None if pgpool => Ok(Saved { nodes: pgpool_status::read(directory)?, ..Saved::default() }),
        None => Ok(Saved::default()),
    }
}

/// Writes it durably.
pub(super) fn write(directory: &Path, saved: &Saved) -> Result<(), StoreError> {
    let text = serde_json::to_vec_pretty(saved)
        .map_err(|e| StoreError::Damaged { path: directory.join(NAME), why: e.to_string() })?;
    files::replace(directory, NAME, &text)
}
