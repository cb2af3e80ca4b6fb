//! A switchover or a failover whose daemon died: where it stands is read off the servers, then it is finished or taken back.

use super::crash::interrupted;
use super::facts::{CandidateFacts, Facts, PrimaryFacts, Streaming};
use super::look::SHORT;
use super::prepare::OldSetting;
use super::resolve::{Coming, Left, Old, Reality, Verdict, verdict};
use super::run::{Promotion, Run, Window};
use super::server::Server;
use super::stages::{FAILOVER_ROWS, ROWS, Stage};
use super::standby_slots::StandbySlots;
use super::strict::GIVEN_UP;
use super::sync_names::SyncNames;
use super::{Inner, SwitchOptions};
use crate::base::NodeId;
use crate::cluster::NodeSpec;
use crate::server::sql::Sql;
use crate::store::JournalFile;
use crate::workflow::{Failure, JobHandle, Outcome, Row, Work};
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
    /// `--strict`, and whether it was given up already.
    strict: bool,
    strict_given_up: bool,
    /// The last stage that was entered.
    stage: String,
    timeline: u32,
    system_identifier: u64,
    slots: Vec<String>,
    old_slots: Vec<String>,
    sync_names: Option<OldSetting>,
    wanted: Option<String>,
    marked: Vec<NodeId>,
    standby_slots: Option<String>,
    wanted_slots: Option<String>,
    /// `Prepare.Candidate` (`Fence.Candidate`) was written.
    prepared: bool,
}

impl Journalled {
    pub fn of(journal: &JournalFile) -> Journalled {
        let first = journal.records.first().and_then(|r| r.data.get("data")).cloned().unwrap_or_default();
        // The first: when it was gone on with after a crash, what was there before is in it.
        let is_prepare = |name: &str| matches!(name, "Prepare.Candidate" | "Fence.Candidate");
        let prepare = journal.records.iter().find(|r| is_prepare(&r.name)).map(|r| r.data.clone());
        let node = |name: &str| first.get(name)?.as_u64().and_then(|n| u16::try_from(n).ok()).map(NodeId);
        let names = |name: &str| -> Vec<String> {
            let list = prepare.as_ref().and_then(|p| p.get(name)?.as_array().cloned()).unwrap_or_default();
            list.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
        };
        let text = |name: &str| prepare.as_ref().and_then(|p| p.get(name)?.as_str().map(str::to_owned));
        // A failover knows the history from its beginning.
        let number = |name: &str| prepare.as_ref().unwrap_or(&first).get(name).and_then(Value::as_u64).unwrap_or(0);
        let is_stage = |name: &str| ROWS.iter().chain(FAILOVER_ROWS).any(|row| row.name == name);
        let stage =
            journal.records.iter().rev().find(|r| is_stage(&r.name)).map(|r| r.name.clone()).unwrap_or_default();
        Journalled {
            from: node("from"),
            to: node("to"),
            stay_down: first.get("stay_down").and_then(Value::as_bool).unwrap_or(false),
            strict: first.get("strict").and_then(Value::as_bool).unwrap_or(false),
            strict_given_up: journal.records.iter().any(|r| r.name == GIVEN_UP),
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
            marked: prepare.as_ref().map(marked).unwrap_or_default(),
            standby_slots: text("standby_slots"),
            wanted_slots: text("wanted_slots"),
            prepared: prepare.is_some(),
        }
    }

    fn left(&self, change: Change) -> Left {
        let stage = change.rows().iter().find(|row| row.name == self.stage).map(|row| row.stage);
        match change {
            Change::Switchover => Left::Switchover { stage, prepared: self.prepared },
            Change::Failover => Left::Failover { stage },
        }
    }
}

fn marked(prepare: &Value) -> Vec<NodeId> {
    let list = prepare.get("marked").and_then(Value::as_array).cloned().unwrap_or_default();
    list.iter().filter_map(|id| u16::try_from(id.as_u64()?).ok()).map(NodeId).collect()
}

/// Which of the two it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Ordered.
    Switchover,
    /// Of a lost primary.
    Failover,
}

impl Change {
    fn rows(self) -> &'static [Row<Stage>] {
        match self {
            Change::Switchover => ROWS,
            Change::Failover => FAILOVER_ROWS,
        }
    }
}

/// Resolves it; returns when clients may be served, and tells what was found and done.
pub(super) async fn resolve(
    inner: &Arc<Inner>,
    job: JobHandle,
    change: Change,
    journalled: Journalled,
    found: &str,
) -> String {
    let view = inner.board.view();
    let node = |id: Option<NodeId>| id.and_then(|id| view.node(id)).map(|n| n.spec.clone());
    let (Some(from), Some(to)) = (node(journalled.from), node(journalled.to)) else {
        interrupted(&job, &format!("{found}; its nodes are no longer configured"));
        return "its nodes are no longer configured".to_owned();
    };
    let left = journalled.left(change);
    // Before the servers' history is journalled nothing is touched, and what they show means nothing.
    let reality = if journalled.timeline == 0 {
        Reality { coming: Coming::Recovers, old: Old::Writes, noted: false }
    } else {
        let coming = look(inner, &to, &journalled, job.id()).await;
        Reality { coming, old: look_at_old(inner, &from, job.id()).await, noted: false }
    };
    let verdict = verdict(left, reality);
    tracing::warn!(event = "maintenance.resolved", job = job.id(), ?left, ?reality, ?verdict);
    let mut run = resumed(inner.clone(), job.clone(), from, to, &journalled).await;
    run.lost = change == Change::Failover;
    // What the keeper sees of servers that are about to be started or promoted is nobody's business.
    run.freeze = Some(inner.keeper.freeze());
    match verdict {
        Verdict::Unprepare => {
            let told = run.undo(Stage::Prepare).await;
            end(&job, found, told.unwrap_or_else(|| "it was taken back before anybody waited".to_owned()))
        }
        Verdict::Back | Verdict::Disarm => {
            let told = back(&mut run, reality.old).await;
            end(&job, found, told)
        }
        Verdict::Operator => {
            let words = format!(
                "node {} stays stopped and armed: whether node {} was promoted cannot be seen; look at both",
                run.from.id, run.to.id
            );
            end(&job, found, words)
        }
        Verdict::Promote => match (change, run.proven(change, reality.old).await) {
            (Change::Switchover, Ok(())) => forward(run, job, ROWS, Stage::Promote).await,
            // It is fenced once more: somebody may have started it.
            (Change::Failover, Ok(())) => forward(run, job, FAILOVER_ROWS, Stage::Fence).await,
            // What was asked for has come meanwhile.
            (_, Err(_)) if look(inner, &run.to, &journalled, job.id()).await == Coming::Writes => {
                let (from, to) = (run.from.clone(), run.to.clone());
                let mut now = resumed(inner.clone(), job.clone(), from, to, &journalled).await;
                (now.lost, now.freeze) = (run.lost, run.freeze.take());
                forward(now, job, change.rows(), Stage::Release).await
            }
            (_, Err(failure)) => {
                let why = failure.detail.unwrap_or(failure.message);
                end(&job, found, format!("the promotion was asked for, and cannot be proven now: {why}"))
            }
        },
        Verdict::Forward => forward(run, job, change.rows(), Stage::Release).await,
        Verdict::Anew => {
            let words = format!("node {} became the primary and is lost too; the cluster is looked at anew", run.to.id);
            end(&job, found, words)
        }
        // The last three are not given for a change of the primary.
        Verdict::Nothing | Verdict::PutBack | Verdict::Again | Verdict::Wait => {
            end(&job, found, "nothing had been changed".to_owned())
        }
    }
}

fn end(job: &JobHandle, found: &str, told: String) -> String {
    interrupted(job, &format!("{found}; {told}"));
    told
}

impl Run {
    /// A failover has no proof: its promotion was judged by what was acknowledged, and since then nobody could write.
    async fn proven(&mut self, change: Change, seen: Old) -> Result<(), Failure> {
        if change == Change::Failover {
            return Ok(());
        }
        if seen == Old::Recovers
            && let Some(old) = self.old.clone()
        {
            let stop = tokio_util::sync::CancellationToken::new();
            drop(old.stop_by(Instant::now() + BEFORE_SERVING, self.lines(), &stop).await);
        }
        self.verify().await
    }
}

async fn back(run: &mut Run, old: Old) -> String {
    run.stop_sent = match old {
        // Without a stop under way it may simply go on.
        Old::Writes => false,
        Old::Recovers => true,
        // One that was lost is not started by us: nobody knows why it died.
        Old::Down | Old::Silent => !run.lost,
    };
    let mut words = Vec::new();
    for stage in [Stage::Stop, Stage::Drain, Stage::Warm, Stage::Prepare] {
        words.extend(run.undo(stage).await);
    }
    match (words.is_empty(), old, run.lost) {
        (false, _, _) => words.join("; "),
        (true, Old::Down | Old::Silent, true) => "nobody was promoted; the cluster is looked at anew".to_owned(),
        (true, _, _) => "the old primary goes on".to_owned(),
    }
}

/// Does the rows from a stage on; returns when clients may be served.
async fn forward(mut run: Run, job: JobHandle, rows: &'static [Row<Stage>], stage: Stage) -> String {
    let rows: &'static [Row<Stage>] = match rows.iter().position(|row| row.stage == stage) {
        Some(at) => rows.get(at..).unwrap_or_default(),
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

async fn look_at_old(inner: &Inner, from: &NodeSpec, job: u64) -> Old {
    let ask = "SELECT pg_is_in_recovery()";
    if let Ok(sql) = inner.connect(from).await
        && let Ok(Some(recovers)) = sql.value(ask, SHORT).await
    {
        return if recovers == "f" { Old::Writes } else { Old::Recovers };
    }
    match Server::find(inner, from, job).await {
        Ok(server) if matches!(server.runs().await, Ok(false)) => Old::Down,
        Ok(_) | Err(_) => Old::Silent,
    }
}

async fn look(inner: &Inner, to: &NodeSpec, journalled: &Journalled, job: u64) -> Coming {
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
                return Coming::DiedStandby;
            }
            // It goes on where it broke off, once it runs.
            let started = server.start_again(BEFORE_SERVING, Arc::new(|_: &str| ())).await;
            if started.is_err() {
                return Coming::DiedPromoted;
            }
        } else if began.elapsed() > PATIENCE {
            return Coming::Silent;
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn ask(sql: &Sql, timeline: u32) -> Option<Coming> {
    let ask = "SELECT CASE WHEN pg_is_in_recovery() THEN '' ELSE pg_walfile_name(pg_current_wal_lsn()) END";
    let file = sql.value(ask, SHORT).await.ok()??;
    if file.is_empty() {
        return Some(Coming::Recovers);
    }
    let now = u32::from_str_radix(file.get(..8)?, 16).ok()?;
    (now > timeline).then_some(Coming::Writes)
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
    // Its watch begins anew with the release, and with it the bound of the wait.
    run.options.strict = journalled.strict && !journalled.strict_given_up;
    if journalled.strict_given_up {
        run.failed("strict was given up before pgmend was started again; commits were on one server only".to_owned());
    }
    run.prepared.slots.clone_from(&journalled.slots);
    run.prepared.sync_names.clone_from(&journalled.sync_names);
    run.prepared.marked.clone_from(&journalled.marked);
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

    #[test]
    fn a_journal_tells_how_it_was() {
        let record = |name: &str, data| Record { at_s: 1, name: name.into(), data };
        let records = vec![
            record(
                "Requested",
                json!({ "kind": "switchover", "node": 1, "data": { "from": 0, "to": 1, "stay_down": true, "strict": true } }),
            ),
            record("Prepare", json!({})),
            record(
                "Prepare.Candidate",
                json!({ "slots": ["pgmend_0"], "sync_names": "x", "by_system": true, "wanted": "FIRST 1 (\"x\")", "marked": [0],
                        "old_slots": ["pgmend_1"], "timeline": 3, "system_identifier": 9 }),
            ),
            record("Stop", json!({})),
        ];
        let mut later = records.clone();
        later.push(record(GIVEN_UP, json!({})));
        let read = Journalled::of(&JournalFile { job: 4, records });
        let later = Journalled::of(&JournalFile { job: 4, records: later });
        assert_eq!((read.strict, read.strict_given_up), (true, false));
        assert_eq!((later.strict, later.strict_given_up, later.stage.as_str()), (true, true, "Stop"));
        assert_eq!((read.from, read.to, read.stay_down, read.prepared), (Some(NodeId(0)), Some(NodeId(1)), true, true));
        assert_eq!((read.stage.as_str(), read.timeline, read.system_identifier), ("Stop", 3, 9));
        assert_eq!((read.slots, read.old_slots), (vec!["pgmend_0".to_owned()], vec!["pgmend_1".to_owned()]));
        assert_eq!(read.marked, vec![NodeId(0)]);
        assert_eq!(read.sync_names, Some(OldSetting { value: "x".into(), by_system: true }));
    }
}
