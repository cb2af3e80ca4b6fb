//! The step table of a switchover: names, what each does and what takes it back. The plan is printed from it.

use super::Settings;
use crate::workflow::Row;
use serde::{Deserialize, Serialize};

/// `Requested → Precheck → Prepare → Checkpoint → Warm → Drain → Stop → Verify → Promote → Release → Follow → Rejoin →
/// Synchronous → Done`; up to `Verify` each has an edge to `Aborting → Aborted`. With the request to promote there is no
/// way back: whatever fails then is told, and the rest is done all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Precheck,
    Prepare,
    Checkpoint,
    Warm,
    Drain,
    /// Of a failover: the lost primary writes nothing any more.
    Fence,
    Stop,
    Verify,
    Promote,
    Release,
    /// Of a rehearsal: clients go on, nothing has changed.
    Open,
    Follow,
    Rejoin,
    Synchronous,
}

/// Stages bound their own waits by the settings.
pub(super) const ROWS: &[Row<Stage>] = &[
    row(Stage::Precheck, "Precheck", ""),
    row(Stage::Prepare, "Prepare", "taking back slots and settings of the coming primary"),
    row(Stage::Checkpoint, "Checkpoint", ""),
    row(Stage::Warm, "Warm", "closing the connections to the coming primary"),
    row(Stage::Drain, "Drain", "releasing the clients"),
    row(Stage::Stop, "Stop", "starting the old primary again"),
    row(Stage::Verify, "Verify", ""),
    row(Stage::Promote, "Promote", "looking what became of the promotion"),
    row(Stage::Release, "Release", ""),
    row(Stage::Follow, "Follow", ""),
    row(Stage::Rejoin, "Rejoin", ""),
    row(Stage::Synchronous, "Synchronous", ""),
];

/// The steps of a failover: what a dead server can no longer be asked for is not asked.
pub(super) const FAILOVER_ROWS: &[Row<Stage>] = &[
    row(Stage::Fence, "Fence", ""),
    row(Stage::Promote, "Promote", "looking what became of the promotion"),
    row(Stage::Release, "Release", ""),
    row(Stage::Follow, "Follow", ""),
    row(Stage::Synchronous, "Synchronous", ""),
];

/// The steps of a rehearsal.
pub(super) const REHEARSAL_ROWS: &[Row<Stage>] = &[
    row(Stage::Precheck, "Precheck", ""),
    row(Stage::Warm, "Warm", "closing the connections to the coming primary"),
    row(Stage::Drain, "Drain", "releasing the clients"),
    row(Stage::Open, "Open", ""),
];

const fn row(stage: Stage, name: &'static str, undo: &'static str) -> Row<Stage> {
    // After a crash reality is looked at, and not the stage.
    Row { stage, name, deadline: None, repeatable: true, undo }
}

/// One step of a plan, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Of the stage.
    pub name: String,
    /// What it does.
    pub what: String,
    /// What takes it back.
    pub undo: String,
    /// How long it takes, roughly, and its bound.
    pub takes: String,
    /// Clients wait meanwhile.
    pub clients_wait: bool,
}

/// The steps of a switchover from one node to another.
pub(super) fn steps(from: &str, to: &str, strict: bool, s: &Settings) -> Vec<Step> {
    let secs = |d: std::time::Duration| format!("{:?}", d);
    ROWS.iter()
        .map(|row| {
            let (what, undo, takes) = match row.stage {
                Stage::Precheck => {
                    ("look at both nodes; refuse with all reasons".to_owned(), "nothing", "50 ms".into())
                }
                Stage::Prepare => (
                    format!(
                        "on {to}: slots for the other nodes, synchronous_standby_names {}",
                        if strict { "with its standbys, before they stream" } else { "emptied" }
                    ),
                    "slots dropped, setting restored",
                    "50 ms".into(),
                ),
                Stage::Checkpoint => (
                    format!("CHECKPOINT on {from}, then on {to}, so that the stop has little to write"),
                    "nothing",
                    "depends on shared_buffers".into(),
                ),
                Stage::Warm => (
                    format!("open connections to {to} for the clients that work now"),
                    "closed",
                    "10 ms for each, side by side for each pool".into(),
                ),
                Stage::Drain => (
                    "new transactions wait; those under way end".to_owned(),
                    "clients go on at once",
                    format!(
                        "as long as the longest transaction, at most {} at each of {} attempts",
                        secs(s.drain_timeout),
                        s.drain_attempts
                    ),
                ),
                Stage::Stop => (
                    format!("{from}: standby.signal (an accidental start is read-only), fast stop"),
                    "standby.signal removed, started again",
                    format!("20 to 80 ms, at most {}", secs(s.stop_timeout)),
                ),
                Stage::Verify => (
                    format!("proof: {from} is shut down, and {to} has received and replayed beyond its last record"),
                    "nothing",
                    "10 ms".into(),
                ),
                Stage::Promote => (
                    format!("promote {to}; from here on there is no way back"),
                    "none: what follows is done in any case",
                    "30 to 110 ms".into(),
                ),
                Stage::Release => (
                    format!("epoch saved, route moved to {to}, clients go on"),
                    "none",
                    format!("5 ms; whatever happens clients are held for at most {}", secs(s.max_hold)),
                ),
                Stage::Fence => ("the lost primary is armed and ended".to_owned(), "nothing", "5 s".into()),
                Stage::Open => ("clients go on".to_owned(), "nothing", "1 ms".into()),
                Stage::Follow => ("the other standbys follow by a reload".to_owned(), "none", "below 1 s".into()),
                Stage::Rejoin => (
                    format!("{from} comes back as a standby: as it is, else rebuilt by a recovery"),
                    "none",
                    "0.2 s to 5 s; a copy takes as long as a recovery".into(),
                ),
                Stage::Synchronous => {
                    let bound = if strict {
                        format!("until then commits wait, at most {}", secs(s.strict_timeout))
                    } else {
                        "50 ms".into()
                    };
                    ("synchronous_standby_names names those that stream".to_owned(), "none", bound)
                }
            };
            let clients_wait =
                matches!(row.stage, Stage::Drain | Stage::Stop | Stage::Verify | Stage::Promote | Stage::Release);
            Step { name: row.name.to_owned(), what, undo: undo.to_owned(), takes, clients_wait }
        })
        .collect()
}
