//! A switchover whose daemon died: where it stands is read off the servers, then it is finished or taken back.

use super::crash::interrupted;
use super::facts::{CandidateFacts, Facts, PrimaryFacts, Streaming};
use super::look::SHORT;
use super::prepare::OldSetting;
use super::run::{Promotion, Run, Window};
use super::server::Server;
use super::stages::{ROWS, Stage};
use super::standby_slots::StandbySlots;
use super::sync_names::SyncNames;
use super::{Inner, SwitchOptions};
use crate::base::NodeId;
use crate::cluster::NodeSpec;
use crate::server::sql::Sql;
use crate::store::JournalFile;
use crate::workflow::{JobHandle, Outcome, Row, Work};
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a node that does not answer is looked at before that counts.
const PATIENCE: Duration = Duration::from_secs(10);
/// Clients are not served before the way is clear, but for no longer than this.
const BEFORE_SERVING: Duration = Duration::from_secs(60);
/// Between two looks.
const POLL: Duration = Duration::from_millis(20);

/// What the journal says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Journalled {
    from: Option<NodeId>,
    to: Option<NodeId>,
    stay_down: bool,
    /// The last stage that was entered.
    stage: String,
    timeline: u32,
    system_identifier: u64,
    slots: Vec<String>,
    old_slots: Vec<String>,
    sync_names: Option<OldSetting>,
    wanted: Option<String>,
    standby_slots: Option<String>,
    wanted_slots: Option<String>,
    /// `Prepare.Candidate` was written.
    prepared: bool,
}

impl Journalled {
    pub fn of(journal: &JournalFile) -> Journalled {
        let first = journal.records.first().and_then(|r| r.data.get("data")).cloned().unwrap_or_default();
        let prepare = journal.last("Prepare.Candidate").map(|r| r.data.clone());
        let node = |name: &str| first.get(name)?.as_u64().and_then(|n| u16::try_from(n).ok()).map(NodeId);
        let names = |name: &str| -> Vec<String> {
            let list = prepare.as_ref().and_then(|p| p.get(name)?.as_array().cloned()).unwrap_or_default();
            list.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
        };
        let text = |name: &str| prepare.as_ref().and_then(|p| p.get(name)?.as_str().map(str::to_owned));
        let number = |name: &str| prepare.as_ref().and_then(|p| p.get(name)?.as_u64()).unwrap_or(0);
        let is_stage = |name: &str| ROWS.iter().any(|row| row.name == name);
        let stage =
            journal.records.iter().rev().find(|r| is_stage(&r.name)).map(|r| r.name.clone()).unwrap_or_default();
        Journalled {
            from: node("from"),
            to: node("to"),
            stay_down: first.get("stay_down").and_then(Value::as_bool).unwrap_or(false),
            stage,
            timeline: u32::try_from(number("timeline")).unwrap_or(0),
            system_identifier: number("system_identifier"),
            slots: names("slots"),
            old_slots: names("old_slots"),
            sync_names: text("sync_names").map(|value| OldSetting {
                value,
                by_system: prepare.as_ref().and_then(|p| p.get("by_system")?.as_bool()).unwrap_or(false),
            }),
            wanted: text("wanted"),
            standby_slots: text("standby_slots"),
            wanted_slots: text("wanted_slots"),
            prepared: prepare.is_some(),
        }
    }
}

/// What is to be done: one row for each journalled stage and each observed reality.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing was changed.
    Nothing,
    /// Settings and slots of the coming primary are taken back; the old one was not touched.
    Unprepare,
    /// The old primary serves again.
    Back,
    /// The proof is looked at again; with it the promotion is asked for again.
    Promote,
    /// It is promoted: the rest is done.
    Forward,
    /// Nobody can tell: the old primary stays stopped and armed.
    Operator,
}

/// What is seen of the coming primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
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

/// The table.
pub(super) fn verdict(stage: Option<Stage>, prepared: bool, seen: Seen) -> Verdict {
    match (stage, seen) {
        // Somebody promoted it, whoever it was: there is no other truth.
        (Some(_), Seen::Writes) => Verdict::Forward,
        (None | Some(Stage::Precheck | Stage::Open | Stage::Fence), _) => Verdict::Nothing,
        (Some(Stage::Prepare | Stage::Checkpoint | Stage::Warm | Stage::Drain), _) => {
            if prepared {
                Verdict::Unprepare
            } else {
                Verdict::Nothing
            }
        }
        (Some(Stage::Stop | Stage::Verify), Seen::Recovers | Seen::DiedStandby | Seen::Silent) => Verdict::Back,
        (Some(Stage::Stop | Stage::Verify | Stage::Promote), Seen::DiedPromoted) => Verdict::Promote,
        (Some(Stage::Promote), Seen::Recovers) => Verdict::Promote,
        (Some(Stage::Promote), Seen::DiedStandby) => Verdict::Back,
        (Some(Stage::Promote), Seen::Silent) => Verdict::Operator,
        (
            Some(Stage::Release | Stage::Follow | Stage::Rejoin | Stage::Synchronous),
            Seen::Recovers | Seen::DiedPromoted | Seen::DiedStandby | Seen::Silent,
        ) => Verdict::Operator,
    }
}

/// Resolves it; returns when clients may be served, and tells what was found and done.
pub(super) async fn switchover(inner: &Arc<Inner>, job: JobHandle, journalled: Journalled, found: &str) -> String {
    let view = inner.board.view();
    let node = |id: Option<NodeId>| id.and_then(|id| view.node(id)).map(|n| n.spec.clone());
    let (Some(from), Some(to)) = (node(journalled.from), node(journalled.to)) else {
        interrupted(&job, &format!("{found}; its nodes are no longer configured"));
        return "its nodes are no longer configured".to_owned();
    };
    let stage = ROWS.iter().find(|row| row.name == journalled.stage).map(|row| row.stage);
    let seen = if stage.is_some() { look(inner, &to, &journalled, job.id()).await } else { Seen::Recovers };
    let verdict = verdict(stage, journalled.prepared, seen);
    tracing::warn!(event = "maintenance.resolved", job = job.id(), ?stage, ?seen, ?verdict);
    let mut run = resumed(inner.clone(), job.clone(), from, to, &journalled).await;
    // What the keeper sees of servers that are about to be started or promoted is nobody's business.
    run.freeze = Some(inner.keeper.freeze());
    match verdict {
        Verdict::Nothing => end(&job, found, "nothing had been changed".to_owned()),
        Verdict::Unprepare => {
            let told = run.undo(Stage::Prepare).await;
            end(&job, found, told.unwrap_or_else(|| "it was taken back before anybody waited".to_owned()))
        }
        Verdict::Back => {
            let told = back(&mut run).await;
            end(&job, found, told)
        }
        Verdict::Operator => {
            let words = format!(
                "node {} stays stopped and armed: whether node {} was promoted cannot be seen; look at both",
                run.from.id, run.to.id
            );
            end(&job, found, words)
        }
        Verdict::Promote => match run.verify().await {
            Ok(()) => forward(run, job, Stage::Promote).await,
            Err(failure) => {
                let why = failure.detail.unwrap_or(failure.message);
                end(&job, found, format!("the promotion was asked for, and cannot be proven now: {why}"))
            }
        },
        Verdict::Forward => forward(run, job, Stage::Release).await,
    }
}

fn end(job: &JobHandle, found: &str, told: String) -> String {
    interrupted(job, &format!("{found}; {told}"));
    told
}

async fn back(run: &mut Run) -> String {
    // Without a stop under way it may simply go on.
    run.stop_sent = !answers_as_primary(run).await;
    if run.stop_sent
        && let Some(old) = run.old.clone()
        && let Ok(sql) = run.inner.connect(&run.from).await
        && sql.value("SELECT pg_is_in_recovery()", SHORT).await.ok().flatten().as_deref() == Some("t")
    {
        // Somebody started it armed; it has written nothing.
        let stop = tokio_util::sync::CancellationToken::new();
        drop(old.stop_by(Instant::now() + BEFORE_SERVING, run.lines(), &stop).await);
    }
    let mut words = Vec::new();
    for stage in [Stage::Stop, Stage::Drain, Stage::Warm, Stage::Prepare] {
        words.extend(run.undo(stage).await);
    }
    if words.is_empty() { "the old primary goes on".to_owned() } else { words.join("; ") }
}

async fn answers_as_primary(run: &Run) -> bool {
    match run.inner.connect(&run.from).await {
        Ok(sql) => sql.value("SELECT pg_is_in_recovery()", SHORT).await.ok().flatten().as_deref() == Some("f"),
        Err(_) => false,
    }
}

/// Does the rows from a stage on; returns when clients may be served.
async fn forward(mut run: Run, job: JobHandle, stage: Stage) -> String {
    let rows: &'static [Row<Stage>] = match ROWS.iter().position(|row| row.stage == stage) {
        Some(at) => ROWS.get(at..).unwrap_or_default(),
        None => &[],
    };
    let (inner, to, id) = (run.inner.clone(), run.to.id, job.id());
    tokio::spawn(async move {
        crate::workflow::run(&job, rows, &mut run).await;
    });
    let began = Instant::now();
    while began.elapsed() < BEFORE_SERVING {
        let ended = inner.jobs.get(id).is_none_or(|j| j.outcome != Outcome::Running);
        if ended || inner.board.view().primary == Some(to) {
            return format!("node {to} is the primary; what is left of it goes on as job {id}");
        }
        tokio::time::sleep(POLL).await;
    }
    format!("job {id} goes on")
}

async fn look(inner: &Inner, to: &NodeSpec, journalled: &Journalled, job: u64) -> Seen {
    let began = Instant::now();
    loop {
        if let Ok(sql) = inner.connect(to).await
            && let Some(seen) = ask(&sql, journalled.timeline).await
        {
            return seen;
        }
        if let Ok(server) = Server::find(inner, to, job).await
            && server.runs().await.is_ok_and(|runs| !runs)
            && let Ok(has_begun) = server.data.has_newer_history(journalled.timeline).await
        {
            if !has_begun {
                return Seen::DiedStandby;
            }
            // It goes on where it broke off, once it runs.
            let started = server.start_again(BEFORE_SERVING, Arc::new(|_: &str| ())).await;
            if started.is_err() {
                return Seen::DiedPromoted;
            }
        } else if began.elapsed() > PATIENCE {
            return Seen::Silent;
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn ask(sql: &Sql, timeline: u32) -> Option<Seen> {
    let ask = "SELECT CASE WHEN pg_is_in_recovery() THEN '' ELSE pg_walfile_name(pg_current_wal_lsn()) END";
    let file = sql.value(ask, SHORT).await.ok()??;
    if file.is_empty() {
        return Some(Seen::Recovers);
    }
    let now = u32::from_str_radix(file.get(..8)?, 16).ok()?;
    (now > timeline).then_some(Seen::Writes)
}

/// The work as it was, as far as it matters from here on.
async fn resumed(
    inner: Arc<Inner>,
    job: JobHandle,
    from: Arc<NodeSpec>,
    to: Arc<NodeSpec>,
    journalled: &Journalled,
) -> Run {
    let epoch = inner.board.view().epoch.as_ref().map(|e| (e.system_identifier, e.timeline));
    let mut run = Run::new(inner, job, SwitchOptions::default(), from, to);
    run.stay_down = journalled.stay_down;
    run.resumed = true;
    run.prepared.slots.clone_from(&journalled.slots);
    run.prepared.sync_names.clone_from(&journalled.sync_names);
    run.prepared.standby_slots.clone_from(&journalled.standby_slots);
    run.prepared.wanted_slots = journalled.wanted_slots.as_deref().map(StandbySlots::parse);
    run.prepared.wanted = journalled.wanted.as_deref().and_then(SyncNames::parse);
    let slots = journalled.old_slots.iter();
    let standbys = slots.map(|slot| Streaming { slot: Some(slot.clone()), ..Streaming::default() }).collect();
    run.facts = Some(Facts {
        from: run.from.id,
        to: run.to.id,
        to_name: run.to.application_name.clone(),
        to_is_up: true,
        fixed: false,
        jobs: Vec::new(),
        no_control: None,
        primary: Ok(PrimaryFacts {
            is_primary: true,
            system_identifier: journalled.system_identifier,
            timeline: journalled.timeline,
            standbys,
            ..PrimaryFacts::default()
        }),
        candidate: Ok(CandidateFacts::default()),
        epoch,
    });
    run.old = Server::find(&run.inner, &run.from, run.job.id()).await.ok();
    run.candidate = run.inner.connect(&run.to).await.ok();
    if let Some(sql) = &run.candidate
        && let Ok(Some(file)) = sql
            .value("SELECT CASE WHEN pg_is_in_recovery() THEN '' ELSE pg_walfile_name(pg_current_wal_lsn()) END", SHORT)
            .await
        && let Some(timeline) = file.get(..8).and_then(|t| u32::from_str_radix(t, 16).ok())
    {
        run.promotion = Promotion::Done(timeline);
    }
    let since = Instant::now();
    run.held = Some(Window { since, until: since + run.limits.max_hold });
    run
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Record;
    use serde_json::json;

    const SEEN: [Seen; 5] = [Seen::Writes, Seen::Recovers, Seen::DiedPromoted, Seen::DiedStandby, Seen::Silent];

    #[test]
    fn every_stage_and_every_reality_has_its_action() {
        for row in ROWS {
            for seen in SEEN {
                let verdict = verdict(Some(row.stage), true, seen);
                let asked = matches!(
                    row.stage,
                    Stage::Promote | Stage::Release | Stage::Follow | Stage::Rejoin | Stage::Synchronous
                );
                // A node that writes a newer history is never left aside, and a promotion that may come is never crossed.
                assert!(seen != Seen::Writes || verdict == Verdict::Forward, "{row:?} {seen:?}");
                let crossed = asked && seen != Seen::DiedStandby && verdict == Verdict::Back;
                assert!(!crossed, "{row:?} {seen:?}");
                let touched = !matches!(row.stage, Stage::Precheck);
                assert!(!touched || verdict != Verdict::Nothing, "{row:?} {seen:?}");
            }
        }
        for seen in SEEN {
            assert_eq!(verdict(None, false, seen), Verdict::Nothing);
        }
    }

    #[test]
    fn a_journal_tells_how_it_was() {
        let record = |name: &str, data| Record { at_s: 1, name: name.into(), data };
        let records = vec![
            record(
                "Requested",
                json!({ "kind": "switchover", "node": 1, "data": { "from": 0, "to": 1, "stay_down": true } }),
            ),
            record("Prepare", json!({})),
            record(
                "Prepare.Candidate",
                json!({ "slots": ["pgmend_0"], "sync_names": "x", "by_system": true, "wanted": "FIRST 1 (\"x\")",
                        "old_slots": ["pgmend_1"], "timeline": 3, "system_identifier": 9 }),
            ),
            record("Stop", json!({})),
        ];
        let read = Journalled::of(&JournalFile { job: 4, records });
        assert_eq!((read.from, read.to, read.stay_down, read.prepared), (Some(NodeId(0)), Some(NodeId(1)), true, true));
        assert_eq!((read.stage.as_str(), read.timeline, read.system_identifier), ("Stop", 3, 9));
        assert_eq!((read.slots, read.old_slots), (vec!["pgmend_0".to_owned()], vec!["pgmend_1".to_owned()]));
        assert_eq!(read.sync_names, Some(OldSetting { value: "x".into(), by_system: true }));
    }
}
