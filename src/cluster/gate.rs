//! The gate that every transaction passes: open or held, with a deadline of its own.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Whether transactions may start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateState {
    /// Transactions start at once.
    #[default]
    Open,
    /// A new transaction waits at its boundary; those under way go on. Ends at the latest after the order's time.
    Held,
}

/// The gate as published.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Gate {
    /// Open or held.
    pub state: GateState,
    /// Number of the order; workers acknowledge it by this number.
    pub order: u64,
    /// Held at most this long after it was published; then whoever waits goes on by himself.
    pub max_hold: Duration,
    /// Who holds it and why, for people.
    pub reason: String,
}
