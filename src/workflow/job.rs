//! What is told of a job: its stage, progress and outcome. The shape of the JSON API.

use serde::{Deserialize, Serialize};

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Under way.
    Running,
    /// Done and verified.
    Succeeded,
    /// Failed; what could be undone was undone.
    Failed,
    /// Ended at an operator's wish.
    Cancelled,
    /// The daemon died in the middle; cleaned up at its next start.
    Interrupted,
}

/// Progress of the present stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes (or steps) done.
    pub done_bytes: u64,
    /// Of how many, when known.
    pub total_bytes: Option<u64>,
    /// A line for people: what is awaited or the script's last words.
    pub note: String,
}

/// One job at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobSnapshot {
    /// Number, growing for ever.
    pub id: u64,
    /// `recovery`, later `switchover` …
    pub kind: String,
    /// For which node.
    pub node: crate::base::NodeId,
    /// Present or last stage, e.g. `FirstStage`.
    pub stage: String,
    /// Progress in it.
    pub progress: Progress,
    /// How it stands.
    pub outcome: Outcome,
    /// Error, hint and the script's words, when it failed; a report when it succeeded.
    pub message: String,
    /// The output of scripts and programs, newest last, bounded.
    pub output: Vec<String>,
    /// Unix seconds.
    pub started_at_s: u64,
    /// Unix seconds.
    pub ended_at_s: Option<u64>,
}
