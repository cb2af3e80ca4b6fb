//! What the next daemon does about planned work that was broken off: an answer for each place at which a journal can end and
//! for everything that the servers can show. Pure; `crash` and `resume` do what it says.
//!
//! Observed reality goes before the journal, which only says what may have been touched. Up to the request to promote
//! everything goes back, after it everything goes forward; where neither can be proven nobody is promoted and nobody is
//! started.

use super::stages::Stage;

/// Where a journal ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// The last stage that was entered, and whether the coming primary was touched.
    Switchover {
        /// None: it was asked for and not begun.
        stage: Option<Stage>,
        /// `Prepare.Candidate` was written.
        prepared: bool,
    },
    /// The last stage that was entered.
    Failover {
        /// None: it was decided on and not begun.
        stage: Option<Stage>,
    },
    /// It changes nothing.
    Rehearsal,
    /// Not the stage counts but the note that it has begun, which is made before anything happens.
    Begin,
    /// All its steps may be repeated.
    Finish,
    /// Its parts are jobs of their own, with journals of their own.
    Rolling,
}

/// What is seen of the coming primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coming {
    /// It writes, on a newer timeline.
    Writes,
    /// It is in recovery.
    Recovers,
    /// It does not run, and its new history was begun.
    DiedPromoted,
    /// It does not run, and its new history was not begun.
    DiedStandby,
    /// It does not answer, and nobody knows more.
    Silent,
}

/// What is seen of the old primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Old {
    /// It writes.
    Writes,
    /// Somebody has started it since it was armed: it is in recovery.
    Recovers,
    /// It does not run.
    Down,
    /// It does not answer, and nobody knows more.
    Silent,
}

/// What there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reality {
    pub coming: Coming,
    pub old: Old,
    /// The job's node is noted as under maintenance; of a rolling update: it is noted as begun.
    pub noted: bool,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing was changed, or what was changed since is somebody else's doing: the health checks see it.
    Nothing,
    /// Settings and slots of the coming primary are taken back; the old one was not touched.
    Unprepare,
    /// The old primary serves again, and the coming one is as it was.
    Back,
    /// The old primary, which was lost, is as it was found; who watches over the cluster looks anew.
    Disarm,
    /// What must be true for the promotion is made sure of again; then it is asked for again.
    Promote,
    /// It is promoted: the rest is done.
    Forward,
    /// The new primary was lost in its turn: nothing is left of this work, who watches over the cluster looks anew.
    Anew,
    /// Nobody can tell: the old primary stays stopped and armed.
    Operator,
    /// The node is brought back as at the end of a maintenance.
    PutBack,
    /// It is done again from its beginning.
    Again,
    /// What is done is done; the rest waits for the operator, as his command may not be run without him.
    Wait,
}

/// The table.
pub(super) fn verdict(left: Left, reality: Reality) -> Verdict {
    match left {
        Left::Switchover { stage, prepared } => switchover(stage, prepared, reality.coming, reality.old),
        Left::Failover { stage } => failover(stage, reality.coming, reality.old),
        Left::Rehearsal => Verdict::Nothing,
        Left::Begin if reality.noted => Verdict::PutBack,
        Left::Begin => Verdict::Nothing,
        Left::Finish => Verdict::Again,
        Left::Rolling if reality.noted => Verdict::Wait,
        Left::Rolling => Verdict::Nothing,
    }
}

fn switchover(stage: Option<Stage>, prepared: bool, coming: Coming, old: Old) -> Verdict {
    match (stage, coming) {
        (None | Some(Stage::Precheck | Stage::Open | Stage::Fence), _) => Verdict::Nothing,
        // We have not asked for it, and the old primary was not stopped by us.
        (Some(Stage::Prepare | Stage::Checkpoint | Stage::Warm | Stage::Drain), Coming::Writes) => Verdict::Nothing,
        (
            Some(Stage::Prepare | Stage::Checkpoint | Stage::Warm | Stage::Drain),
            Coming::Recovers | Coming::DiedPromoted | Coming::DiedStandby | Coming::Silent,
        ) => {
            if prepared {
                Verdict::Unprepare
            } else {
                Verdict::Nothing
            }
        }
        // Somebody promoted it, whoever it was, and the old one is stopped: there is no other truth.
        (Some(Stage::Stop | Stage::Verify), Coming::Writes) => Verdict::Forward,
        (Some(Stage::Stop | Stage::Verify), Coming::Recovers | Coming::DiedStandby | Coming::Silent) => Verdict::Back,
        (Some(Stage::Stop | Stage::Verify | Stage::Promote), Coming::DiedPromoted) => Verdict::Operator,
        (Some(Stage::Promote), Coming::Writes) => Verdict::Forward,
        (Some(Stage::Promote), Coming::Recovers) => match old {
            Old::Recovers | Old::Down | Old::Silent => Verdict::Promote,
            // Somebody has disarmed and started it: the proof is worth nothing any more.
            Old::Writes => Verdict::Operator,
        },
        (Some(Stage::Promote), Coming::DiedStandby) => Verdict::Back,
        (Some(Stage::Promote), Coming::Silent) => Verdict::Operator,
        (Some(Stage::Release | Stage::Follow | Stage::Rejoin | Stage::Synchronous), Coming::Writes) => Verdict::Forward,
        (
            Some(Stage::Release | Stage::Follow | Stage::Rejoin | Stage::Synchronous),
            Coming::Recovers | Coming::DiedPromoted | Coming::DiedStandby | Coming::Silent,
        ) => Verdict::Operator,
    }
}

fn failover(stage: Option<Stage>, coming: Coming, old: Old) -> Verdict {
    match (stage, coming, old) {
        (
            None
            | Some(
                Stage::Precheck
                | Stage::Prepare
                | Stage::Checkpoint
                | Stage::Warm
                | Stage::Drain
                | Stage::Stop
                | Stage::Verify
                | Stage::Open
                | Stage::Rejoin,
            ),
            _,
            _,
        ) => Verdict::Nothing,
        // Somebody else has promoted it: with the old one gone that is the truth, beside it the health checks judge.
        (Some(Stage::Fence), Coming::Writes, Old::Writes) => Verdict::Nothing,
        (Some(Stage::Fence), Coming::Writes, Old::Recovers | Old::Down | Old::Silent) => Verdict::Forward,
        (Some(Stage::Fence), Coming::DiedPromoted, _) => Verdict::Operator,
        (Some(Stage::Fence), Coming::Recovers | Coming::DiedStandby | Coming::Silent, _) => Verdict::Disarm,
        (Some(Stage::Promote), Coming::Writes, _) => Verdict::Forward,
        (Some(Stage::Promote), Coming::Recovers, _) => Verdict::Promote,
        (Some(Stage::Promote), Coming::DiedStandby, _) => Verdict::Disarm,
        (Some(Stage::Promote), Coming::DiedPromoted | Coming::Silent, _) => Verdict::Operator,
        (Some(Stage::Release | Stage::Follow | Stage::Synchronous), Coming::Writes, _) => Verdict::Forward,
        (
            Some(Stage::Release | Stage::Follow | Stage::Synchronous),
            Coming::Recovers | Coming::DiedPromoted | Coming::DiedStandby | Coming::Silent,
            _,
        ) => Verdict::Anew,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::stages::{FAILOVER_ROWS, REHEARSAL_ROWS, ROWS};
    use super::*;

    pub const COMING: [Coming; 5] =
        [Coming::Writes, Coming::Recovers, Coming::DiedPromoted, Coming::DiedStandby, Coming::Silent];
    pub const OLD: [Old; 4] = [Old::Writes, Old::Recovers, Old::Down, Old::Silent];

    /// Everything that servers can show.
    pub fn realities() -> Vec<Reality> {
        let mut all = Vec::new();
        for coming in COMING {
            for old in OLD {
                all.extend([false, true].map(|noted| Reality { coming, old, noted }));
            }
        }
        all
    }

    /// Every place at which a journal can end, those included at which none of that kind does.
    fn places() -> Vec<Left> {
        let stages = ROWS.iter().chain(FAILOVER_ROWS).chain(REHEARSAL_ROWS).map(|row| Some(row.stage));
        let mut all = vec![Left::Rehearsal, Left::Begin, Left::Finish, Left::Rolling];
        for stage in stages.chain([None]) {
            all.extend([false, true].map(|prepared| Left::Switchover { stage, prepared }));
            all.push(Left::Failover { stage });
        }
        all
    }

    /// The promotion was asked for, or will have been.
    fn was_asked(left: Left) -> bool {
        let (Left::Switchover { stage, .. } | Left::Failover { stage }) = left else { return false };
        matches!(stage, Some(Stage::Promote | Stage::Release | Stage::Follow | Stage::Rejoin | Stage::Synchronous))
    }

    #[test]
    fn every_place_and_every_reality_has_an_answer_that_is_safe() {
        let mut seen = std::collections::BTreeSet::new();
        for left in places() {
            for reality in realities() {
                let verdict = verdict(left, reality);
                seen.insert(format!("{verdict:?}"));
                let what = format!("{left:?} {reality:?}: {verdict:?}");
                let starts_the_old_one = matches!(verdict, Verdict::Back | Verdict::Disarm);
                let moves = matches!(verdict, Verdict::Promote | Verdict::Forward);
                // Whoever may be the primary, or may become it, is never crossed.
                let may_be = matches!(reality.coming, Coming::Writes | Coming::DiedPromoted)
                    || was_asked(left) && reality.coming != Coming::DiedStandby;
                assert!(!(starts_the_old_one && may_be), "{what}");
                // Nobody is promoted who was not about to be.
                assert!(verdict != Verdict::Promote || was_asked(left) && reality.coming == Coming::Recovers, "{what}");
                assert!(verdict != Verdict::Forward || reality.coming == Coming::Writes, "{what}");
                // What was asked for is never forgotten, nor what was changed.
                assert!(!was_asked(left) || !matches!(verdict, Verdict::Unprepare | Verdict::Nothing) || strange(left));
                // A new primary is not left without a route once the old one is out.
                let done = was_asked(left) && reality.coming == Coming::Writes && !strange(left);
                assert!(!done || verdict == Verdict::Forward, "{what}");
                let of_one_node = matches!(left, Left::Begin | Left::Finish | Left::Rolling | Left::Rehearsal);
                assert!(!(of_one_node && (moves || starts_the_old_one)), "{what}");
                assert_eq!(left == Left::Begin && reality.noted, verdict == Verdict::PutBack, "{what}");
            }
        }
        // Each answer is one that is given.
        assert_eq!(seen.len(), 11, "{seen:?}");
    }

    /// No journal of that kind ends there.
    fn strange(left: Left) -> bool {
        match left {
            Left::Switchover { stage, .. } => stage.is_some_and(|s| !ROWS.iter().any(|row| row.stage == s)),
            Left::Failover { stage } => stage.is_some_and(|s| !FAILOVER_ROWS.iter().any(|row| row.stage == s)),
            Left::Rehearsal | Left::Begin | Left::Finish | Left::Rolling => false,
        }
    }

    #[test]
    fn what_was_only_prepared_is_taken_back_and_what_nobody_knows_is_left_to_people() {
        let at = |stage, prepared, coming| switchover(Some(stage), prepared, coming, Old::Down);
        assert_eq!(at(Stage::Warm, true, Coming::Recovers), Verdict::Unprepare);
        assert_eq!(at(Stage::Prepare, false, Coming::Recovers), Verdict::Nothing);
        assert_eq!(at(Stage::Drain, true, Coming::Writes), Verdict::Nothing, "the old one was never stopped");
        assert_eq!(at(Stage::Stop, true, Coming::Recovers), Verdict::Back);
        assert_eq!(at(Stage::Verify, true, Coming::Silent), Verdict::Back);
        assert_eq!(at(Stage::Promote, true, Coming::Silent), Verdict::Operator);
        assert_eq!(at(Stage::Promote, true, Coming::Recovers), Verdict::Promote);
        assert_eq!(switchover(Some(Stage::Promote), true, Coming::Recovers, Old::Writes), Verdict::Operator);
        assert_eq!(at(Stage::Release, true, Coming::Recovers), Verdict::Operator);
        let lost = |stage, coming| failover(Some(stage), coming, Old::Down);
        assert_eq!(lost(Stage::Fence, Coming::Recovers), Verdict::Disarm);
        assert_eq!(lost(Stage::Promote, Coming::Recovers), Verdict::Promote);
        assert_eq!(lost(Stage::Release, Coming::Silent), Verdict::Anew);
    }
}
