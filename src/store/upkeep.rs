//! The file `upkeep.json`: what planned work must not forget over a restart.

use super::{StoreError, files};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const NAME: &str = "upkeep.json";

/// A node under maintenance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeUpkeep {
    /// Unix seconds.
    pub since_s: u64,
    /// The slot that was made on the primary to hold its log back.
    #[serde(default)]
    pub slot: Option<String>,
    /// Its automatic start was switched off by us.
    #[serde(default)]
    pub autostart_off: bool,
}

/// A setting (`synchronous_standby_names`) as the operator wants it on the present primary, and as pgmend has set it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncKept {
    /// All who should be synchronous.
    pub wanted: String,
    /// What was set: those of them who stream.
    pub set: String,
    /// What was in force before; while a change is under way it may still be.
    pub before: String,
}

/// A rolling update that has not ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollingKept {
    /// The primary when it began.
    pub primary: u16,
    /// Nodes that are done.
    #[serde(default)]
    pub done: BTreeSet<u16>,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upkeep {
    /// Nodes under maintenance, by number.
    #[serde(default)]
    pub nodes: BTreeMap<u16, NodeUpkeep>,
    /// Nodes that may lack acknowledged commits: nobody promotes them by himself.
    #[serde(default)]
    pub ineligible: BTreeSet<u16>,
    /// Whose setting it is, if pgmend has changed it.
    #[serde(default)]
    pub sync_names: Option<SyncKept>,
    /// The same of `synchronized_standby_slots`.
    #[serde(default)]
    pub standby_slots: Option<SyncKept>,
    /// `pgmend failover disable`.
    #[serde(default)]
    pub failover_disabled: bool,
    /// A rolling update that has not ended.
    #[serde(default)]
    pub rolling: Option<RollingKept>,
    /// The timeline is new since then (Unix seconds), and no backup was made.
    #[serde(default)]
    pub backup_due_since_s: Option<u64>,
}

/// Reads it.
pub(super) fn read(directory: &Path) -> Result<Upkeep, StoreError> {
    let path = directory.join(NAME);
    match files::read(&path)? {
        Some(text) => {
            serde_json::from_str(&text).map_err(|e| StoreError::Damaged { path: path.clone(), why: e.to_string() })
        }
        None => Ok(Upkeep::default()),
    }
}

/// Writes it durably.
pub(super) fn write(directory: &Path, upkeep: &Upkeep) -> Result<(), StoreError> {
    let text = serde_json::to_vec_pretty(upkeep)
        .map_err(|e| StoreError::Damaged { path: directory.join(NAME), why: e.to_string() })?;
    files::replace(directory, NAME, &text)
}
