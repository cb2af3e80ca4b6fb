//! The step tables of a recovery: names, deadlines, undos.

use crate::cluster::Mode;
use crate::workflow::Row;

/// Streaming: `Requested → Preflight → FirstStage → Starting → CatchingUp → Verifying → Attaching → Done`.
///
/// Where pgmend keeps the nodes equal: `… → FirstStage → Gating → SecondStage (needs Quiet) → Starting → …`, clients being
/// held from Gating to the end of Attaching. From each `Aborting → Aborted`. `Requested`, `Done`, `Aborting` and `Aborted` are
/// records of every job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Preflight,
    First,
    Gating,
    Second,
    Starting,
    CatchingUp,
    Verifying,
    /// Of an attach: all rows of both nodes.
    Comparing,
    Attaching,
}

impl Stage {
    /// Clients are held in it, in a recovery of two stages.
    pub fn is_gated(self) -> bool {
        match self {
            Stage::Preflight | Stage::First => false,
            Stage::Gating
            | Stage::Second
            | Stage::Starting
            | Stage::CatchingUp
            | Stage::Verifying
            | Stage::Comparing
            | Stage::Attaching => true,
        }
    }
}

/// Stages bound their own waits by the settings: a copy may take hours, a start `recovery_timeout`.
const STREAMING: &[Row<Stage>] = &[
    row(Stage::Preflight, "Preflight", ""),
    row(Stage::First, "FirstStage", "ending the copy"),
    row(Stage::Starting, "Starting", "stopping the target"),
    row(Stage::CatchingUp, "CatchingUp", ""),
    row(Stage::Verifying, "Verifying", ""),
    row(Stage::Attaching, "Attaching", ""),
];

/// The gate is opened the moment a stage fails, before any undo.
const TWO_STAGES: &[Row<Stage>] = &[
    row(Stage::Preflight, "Preflight", ""),
    row(Stage::First, "FirstStage", "ending the copy and stopping the target"),
    row(Stage::Gating, "Gating", ""),
    row(Stage::Second, "SecondStage", "ending the script"),
    row(Stage::Starting, "Starting", "stopping the target"),
    row(Stage::CatchingUp, "CatchingUp", ""),
    row(Stage::Verifying, "Verifying", ""),
    row(Stage::Attaching, "Attaching", ""),
];

/// The table of a mode.
pub(super) fn rows(mode: Mode) -> &'static [Row<Stage>] {
    if mode.replicates() { TWO_STAGES } else { STREAMING }
}

/// A node that was out, or is not known to be equal, is put in beside those that serve, without a copy.
pub(super) const ATTACH_COMPARED: &[Row<Stage>] =
    &[row(Stage::Gating, "Gating", ""), row(Stage::Comparing, "Comparing", ""), row(Stage::Attaching, "Attaching", "")];

/// The same, and an operator answers for its data.
pub(super) const ATTACH_ACCEPTED: &[Row<Stage>] =
    &[row(Stage::Gating, "Gating", ""), row(Stage::Attaching, "Attaching", "")];

const fn row(stage: Stage, name: &'static str, undo: &'static str) -> Row<Stage> {
    // Every stage may be repeated: a new recovery begins at Preflight, which looks at what is there.
    Row { stage, name, deadline: None, repeatable: true, undo }
}
