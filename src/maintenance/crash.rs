//! What a new daemon does about planned work that the old one did not end: observed reality wins over the journal.
//!
//! A switchover or failover is finished once its promotion has happened, or was about to with the proof in hand; else it goes
//! back. Either way before clients are served, so that for them it is a longer wait. What is left of the rest goes on beside
//! them. `resolve` is the table.

use super::finish::{self, Finish};
use super::resolve::{Coming, Left, Old, Reality, Verdict, verdict};
use super::resume::{self, Change, Journalled};
use super::{BEGIN, FAILOVER, FINISH, Inner, KINDS, Maintenance, REHEARSAL, ROLLING, Rebuilding, SWITCHOVER};
use crate::base::NodeId;
use crate::store::JournalFile;
use crate::workflow::{JobHandle, Outcome};
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The primary is known within this after the start, or the rest is left to the operator.
const PRIMARY_KNOWN: Duration = Duration::from_secs(60);
/// Between two looks.
const POLL: Duration = Duration::from_millis(50);

/// Resolves every open journal of ours. Returns when clients may be served.
pub(super) async fn clean_up(maintenance: &Maintenance) -> Vec<String> {
    let inner = &maintenance.0;
    let journals = match inner.store.open_journals() {
        Ok(journals) => journals,
        Err(error) => return vec![format!("the journals cannot be read: {error}")],
    };
    let mut told = Vec::new();
    for journal in journals {
        let Some(kind) = kind_of(&journal).filter(|kind| KINDS.contains(kind)).map(str::to_owned) else { continue };
        let job = match inner.jobs.resume(&journal) {
            Ok(job) => job,
            Err(error) => {
                told.push(format!("the journal of job {} cannot be written: {error}", journal.job));
                continue;
            }
        };
        let stage = last_stage(&journal);
        end_children(inner, journal.job).await;
        let found = format!("{kind} job {} was interrupted; last journal record {stage}", journal.job);
        told.push(found.clone());
        let left = match kind.as_str() {
            SWITCHOVER | FAILOVER => {
                let change = if kind == SWITCHOVER { Change::Switchover } else { Change::Failover };
                told.push(resume::resolve(inner, job, change, Journalled::of(&journal), &found).await);
                continue;
            }
            BEGIN => Left::Begin,
            FINISH => Left::Finish,
            ROLLING => Left::Rolling,
            REHEARSAL => Left::Rehearsal,
            // `KINDS` has no others.
            _ => continue,
        };
        beside_clients(maintenance, job, left, &journal, found);
    }
    told
}

/// What needs no hold: it goes on while clients are served.
fn beside_clients(maintenance: &Maintenance, job: JobHandle, left: Left, journal: &JournalFile, found: String) {
    let upkeep = maintenance.0.store.upkeep();
    let is_rolling = left == Left::Rolling;
    let noted = if is_rolling { upkeep.rolling.is_some() } else { upkeep.nodes.contains_key(&job.node().0) };
    // No server is asked: what these have done, their notes say.
    let reality = Reality { coming: Coming::Silent, old: Old::Silent, noted };
    match verdict(left, reality) {
        Verdict::PutBack => drop(tokio::spawn(take_begin_back(maintenance.clone(), job, found))),
        Verdict::Again => drop(tokio::spawn(finish_again(maintenance.clone(), job, rebuilding(journal)))),
        Verdict::Wait => interrupted(&job, &format!("{found}; `pgmend rolling-update --resume` goes on with it")),
        // The others are not given for these.
        Verdict::Nothing
        | Verdict::Unprepare
        | Verdict::Back
        | Verdict::Disarm
        | Verdict::Promote
        | Verdict::Forward
        | Verdict::Anew
        | Verdict::Operator => interrupted(&job, &format!("{found}; nothing had been changed")),
    }
}

/// A maintenance command, a start: whatever of it still runs is ended, by its mark.
async fn end_children(inner: &Inner, job: u64) {
    let mark = format!("{}:{job}", inner.store.directory().display());
    for group in crate::node::marked_processes(super::MARK, &mark) {
        if !crate::node::kill_group(group).await {
            tracing::warn!(event = "maintenance.child_lives", job, group);
        }
    }
}

pub(super) fn interrupted(job: &JobHandle, message: &str) {
    job.finish("Interrupted", Outcome::Interrupted, message);
}

fn kind_of(journal: &JournalFile) -> Option<&str> {
    journal.records.first()?.data.get("kind")?.as_str()
}

/// The last record that is a stage or an effect in one.
pub(super) fn last_stage(journal: &JournalFile) -> String {
    journal.records.last().map_or_else(|| "nothing".to_owned(), |r| r.name.clone())
}

fn rebuilding(journal: &JournalFile) -> Rebuilding {
    let data = journal.records.first().and_then(|r| r.data.get("data")?.get("rebuild").cloned());
    data.and_then(|how: Value| serde_json::from_value(how).ok()).unwrap_or_default()
}

/// The node is put back as it was: started, synchronous, in routing. That is what the end of a maintenance does.
async fn take_begin_back(maintenance: Maintenance, job: JobHandle, found: String) {
    let node = job.node();
    let told = match finish(&maintenance, node).await {
        Ok(told) => format!("{found}; node {node} was put back: {told}"),
        Err(why) => format!(
            "{found}; node {node} is still in maintenance, `pgmend maintenance finish {node}` brings it back: {why}"
        ),
    };
    tracing::warn!(event = "maintenance.cleaned_up_after_crash", job = job.id(), "{told}");
    interrupted(&job, &told);
}

async fn finish(maintenance: &Maintenance, node: NodeId) -> Result<String, String> {
    primary_known(&maintenance.0).await?;
    let spec = maintenance.known(node).map_err(|e| e.to_string())?;
    let id = maintenance.start_finish(&spec, Rebuilding::AsNeeded).map_err(|e| e.to_string())?;
    let job = maintenance.0.jobs.wait(id).await.ok_or("it is not remembered")?;
    let first = job.message.lines().next().unwrap_or_default().to_owned();
    if job.outcome == Outcome::Succeeded { Ok(first) } else { Err(first) }
}

/// Each of its steps may be repeated.
async fn finish_again(maintenance: Maintenance, job: JobHandle, how: Rebuilding) {
    let node = job.node();
    let spec =
        match primary_known(&maintenance.0).await.and_then(|()| maintenance.known(node).map_err(|e| e.to_string())) {
            Ok(spec) => spec,
            Err(why) => return interrupted(&job, &format!("node {node} is still in maintenance: {why}")),
        };
    let mut work = Finish::new(maintenance.0.clone(), job.clone(), spec, how);
    crate::workflow::run(&job, finish::ROWS, &mut work).await;
}

async fn primary_known(inner: &Arc<Inner>) -> Result<(), String> {
    let began = Instant::now();
    while inner.board.view().primary_spec().is_none() {
        if began.elapsed() > PRIMARY_KNOWN {
            return Err("no primary is known".to_owned());
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
