//! The step table of a streaming recovery: names, deadlines, undos.

use crate::workflow::Row;

/// `Requested → Preflight → FirstStage → Starting → CatchingUp → Verifying → Attaching → Done`; from each
/// `Aborting → Aborted`. `Requested`, `Done`, `Aborting` and `Aborted` are records of every job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Preflight,
    First,
    Starting,
    CatchingUp,
    Verifying,
    Attaching,
}

/// Stages bound their own waits by the settings: a copy may take hours, a start `recovery_timeout`.
pub(super) const ROWS: &[Row<Stage>] = &[
    row(Stage::Preflight, "Preflight", ""),
    row(Stage::First, "FirstStage", "ending the copy"),
    row(Stage::Starting, "Starting", "stopping the target"),
    row(Stage::CatchingUp, "CatchingUp", ""),
    row(Stage::Verifying, "Verifying", ""),
    row(Stage::Attaching, "Attaching", ""),
];

const fn row(stage: Stage, name: &'static str, undo: &'static str) -> Row<Stage> {
    // Every stage may be repeated: a new recovery begins at Preflight, which looks at what is there.
    Row { stage, name, deadline: None, repeatable: true, undo }
}
