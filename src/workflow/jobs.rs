//! The registry of jobs: numbers, snapshots, cancel, wait. One job of a kind runs at a time.

use super::{JobSnapshot, Outcome, Progress, WorkflowError};
use crate::base::NodeId;
use crate::store::{Journal, JournalFile, Store, is_last_record};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Jobs that are remembered.
const MAX_JOBS: usize = 50;
/// Lines of output kept per job.
const MAX_LINES: usize = 200;
/// Bytes kept of one line.
const MAX_LINE_BYTES: usize = 1024;

/// All jobs; clones share them.
#[derive(Clone, Debug)]
pub struct Jobs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    jobs: Mutex<VecDeque<Entry>>,
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Entry {
    snapshot: JobSnapshot,
    cancel: CancellationToken,
}

impl Jobs {
    /// The registry; finished jobs are read back from their journals.
    pub fn new(store: Store) -> Result<Jobs, WorkflowError> {
        let past = store.journals()?;
        let jobs = past
            .iter()
            .filter(|j| j.is_finished())
            .map(|j| Entry { snapshot: read_back(j), cancel: CancellationToken::new() })
            .collect();
        Ok(Jobs(Arc::new(Inner { store, jobs: Mutex::new(jobs), changed: watch::channel(0).0 })))
    }

    /// Begins a job: takes a number, makes its journal durable with the record `Requested`.
    pub fn begin(&self, kind: &str, node: NodeId, data: Value) -> Result<JobHandle, WorkflowError> {
        let mut jobs = self.lock();
        if let Some(busy) = jobs.iter().find(|j| j.snapshot.kind == kind && j.snapshot.outcome == Outcome::Running) {
            return Err(WorkflowError::Busy(busy.snapshot.id));
        }
        let id = self.0.store.next_job()?;
        let mut journal = self.0.store.journal(id)?;
        journal.append("Requested", json!({ "job": id, "kind": kind, "node": node.0, "data": data }))?;
        let snapshot = JobSnapshot {
            id,
            kind: kind.to_owned(),
            node,
            stage: "Requested".to_owned(),
            progress: Progress::default(),
            outcome: Outcome::Running,
            message: String::new(),
            output: Vec::new(),
            started_at_s: now_s(),
            ended_at_s: None,
        };
        let cancel = CancellationToken::new();
        jobs.push_back(Entry { snapshot, cancel: cancel.clone() });
        while jobs.len() > MAX_JOBS && jobs.front().is_some_and(|j| j.snapshot.outcome != Outcome::Running) {
            jobs.pop_front();
        }
        drop(jobs);
        self.tell();
        Ok(JobHandle(Arc::new(HandleInner { jobs: self.clone(), id, node, cancel, journal: Mutex::new(journal) })))
    }

    /// Goes on with a job whose daemon died: its journal is added to.
    pub fn resume(&self, journal: &JournalFile) -> Result<JobHandle, WorkflowError> {
        let (id, file) = (journal.job, self.0.store.reopen_journal(journal.job)?);
        let snapshot = JobSnapshot { outcome: Outcome::Running, ended_at_s: None, ..read_back(journal) };
        let (node, cancel) = (snapshot.node, CancellationToken::new());
        let mut jobs = self.lock();
        jobs.retain(|j| j.snapshot.id != id);
        jobs.push_back(Entry { snapshot, cancel: cancel.clone() });
        drop(jobs);
        self.tell();
        Ok(JobHandle(Arc::new(HandleInner { jobs: self.clone(), id, node, cancel, journal: Mutex::new(file) })))
    }

    /// One job as it is now.
    pub fn get(&self, id: u64) -> Option<JobSnapshot> {
        self.lock().iter().find(|j| j.snapshot.id == id).map(|j| j.snapshot.clone())
    }

    /// All that are remembered, newest first.
    pub fn list(&self) -> Vec<JobSnapshot> {
        self.lock().iter().rev().map(|j| j.snapshot.clone()).collect()
    }

    /// The job of this kind that is under way.
    pub fn running(&self, kind: &str) -> Option<u64> {
        let jobs = self.lock();
        jobs.iter().find(|j| j.snapshot.kind == kind && j.snapshot.outcome == Outcome::Running).map(|j| j.snapshot.id)
    }

    /// Asks a job to end. It ends soon after; see [`Jobs::wait`].
    pub fn cancel(&self, id: u64) -> Result<(), WorkflowError> {
        let jobs = self.lock();
        let job = jobs.iter().find(|j| j.snapshot.id == id).ok_or(WorkflowError::Unknown(id))?;
        if job.snapshot.outcome != Outcome::Running {
            return Err(WorkflowError::Ended(id));
        }
        job.cancel.cancel();
        Ok(())
    }

    /// Waits until a job has ended; `None` when nobody remembers it. Cancel safe.
    pub async fn wait(&self, id: u64) -> Option<JobSnapshot> {
        let mut changed = self.0.changed.subscribe();
        loop {
            changed.borrow_and_update();
            let job = self.get(id)?;
            if job.outcome != Outcome::Running {
                return Some(job);
            }
            if changed.changed().await.is_err() {
                return self.get(id);
            }
        }
    }

    /// Waits until anything changed in any job, or for `at_most`; for progress bars. Cancel safe.
    pub async fn changed(&self, at_most: Duration) {
        let mut changed = self.0.changed.subscribe();
        drop(tokio::time::timeout(at_most, changed.changed()).await);
    }

    /// Cancels what runs and waits for its end, at most this long: the daemon is stopping.
    pub async fn stop(&self, at_most: Duration) {
        let running: Vec<u64> = self.list().iter().filter(|j| j.outcome == Outcome::Running).map(|j| j.id).collect();
        for id in &running {
            drop(self.cancel(*id));
        }
        let all = async {
            for id in running {
                self.wait(id).await;
            }
        };
        drop(tokio::time::timeout(at_most, all).await);
    }

    /// Remembers a job whose journal clean-up after a crash has just ended.
    pub fn adopt(&self, journal: &JournalFile) {
        let mut jobs = self.lock();
        jobs.retain(|j| j.snapshot.id != journal.job);
        jobs.push_back(Entry { snapshot: read_back(journal), cancel: CancellationToken::new() });
        drop(jobs);
        self.tell();
    }

    fn change(&self, id: u64, change: impl FnOnce(&mut JobSnapshot)) {
        if let Some(job) = self.lock().iter_mut().find(|j| j.snapshot.id == id) {
            change(&mut job.snapshot);
        }
        self.tell();
    }

    fn tell(&self) {
        self.0.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Entry>> {
        self.0.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The job under way, for whoever does its work; clones share it.
#[derive(Clone, Debug)]
pub struct JobHandle(Arc<HandleInner>);

#[derive(Debug)]
struct HandleInner {
    jobs: Jobs,
    id: u64,
    node: NodeId,
    cancel: CancellationToken,
    journal: Mutex<Journal>,
}

impl JobHandle {
    /// Its number.
    pub fn id(&self) -> u64 {
        self.0.id
    }
    /// The node that it is for.
    pub fn node(&self) -> NodeId {
        self.0.node
    }
    /// Cancelled when an operator asks the job to end.
    pub fn cancelled(&self) -> &CancellationToken {
        &self.0.cancel
    }
    /// Enters a stage; progress starts anew.
    pub fn set_stage(&self, stage: &str) {
        self.0.jobs.change(self.0.id, |j| {
            j.stage = stage.to_owned();
            j.progress = Progress::default();
        });
    }
    /// Tells how far the stage is.
    pub fn progress(&self, progress: Progress) {
        self.0.jobs.change(self.0.id, |j| j.progress = progress);
    }
    /// Tells what is awaited, leaving the numbers.
    pub fn note(&self, note: impl Into<String>) {
        self.0.jobs.change(self.0.id, |j| j.progress.note = note.into());
    }
    /// Adds a line of a script's or program's output; the oldest go beyond the bound.
    pub fn output(&self, line: &str) {
        let line = clip(line);
        self.0.jobs.change(self.0.id, |j| {
            if j.output.len() >= MAX_LINES {
                j.output.remove(0);
            }
            j.output.push(line.to_owned());
        });
    }
    /// The newest lines of output, oldest first.
    pub fn last_lines(&self, count: usize) -> Vec<String> {
        let output = self.0.jobs.get(self.0.id).map(|j| j.output).unwrap_or_default();
        output.iter().skip(output.len().saturating_sub(count)).cloned().collect()
    }
    /// Makes a journal record durable; call it before the effect that it announces.
    pub fn record(&self, name: &str, data: Value) -> Result<(), WorkflowError> {
        let mut journal = self.0.journal.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(journal.append(name, data)?)
    }
    /// Ends the job: the last journal record first, then everybody who waits is told.
    pub fn finish(&self, last_record: &str, outcome: Outcome, message: &str) {
        debug_assert!(is_last_record(last_record), "{last_record} does not end a journal");
        if let Err(error) = self.record(last_record, json!({ "outcome": outcome, "message": message })) {
            tracing::error!(event = "job.journal_failed", job = self.0.id, %error);
        }
        self.0.jobs.change(self.0.id, |j| {
            j.stage = last_record.to_owned();
            j.outcome = outcome;
            j.message = message.to_owned();
            j.ended_at_s = Some(now_s());
        });
    }
}

/// A line within its bound, cut at a character.
fn clip(line: &str) -> &str {
    let mut end = line.len().min(MAX_LINE_BYTES);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line.get(..end).unwrap_or_default()
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// A finished job as its journal tells it.
fn read_back(journal: &JournalFile) -> JobSnapshot {
    let first = journal.records.first();
    let last = journal.records.iter().rev().find(|r| is_last_record(&r.name)).or(journal.records.last());
    let field = |name: &str| first.and_then(|r| r.data.get(name));
    let node = field("node").and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok()).unwrap_or_default();
    let outcome = last.and_then(|r| r.data.get("outcome")).and_then(|o| serde_json::from_value(o.clone()).ok());
    let message = last.and_then(|r| r.data.get("message")).and_then(Value::as_str).unwrap_or_default();
    JobSnapshot {
        id: journal.job,
        kind: field("kind").and_then(Value::as_str).unwrap_or("unknown").to_owned(),
        node: NodeId(node),
        stage: last.map(|r| r.name.clone()).unwrap_or_default(),
        progress: Progress::default(),
        outcome: outcome.unwrap_or(Outcome::Interrupted),
        message: message.to_owned(),
        output: Vec::new(),
        started_at_s: first.map_or(0, |r| r.at_s),
        ended_at_s: last.map(|r| r.at_s),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Settings;

    fn jobs(directory: &std::path::Path) -> Jobs {
        let directory = directory.to_owned();
        Jobs::new(Store::open(&Settings { directory, pgpool_status: false, discard_status: false }).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn one_at_a_time_and_remembered_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let registry = jobs(dir.path());
        let job = registry.begin("recovery", NodeId(1), json!({})).unwrap();
        assert!(matches!(registry.begin("recovery", NodeId(2), json!({})), Err(WorkflowError::Busy(1))));
        for n in 0..300 {
            job.output(&format!("line {n}{}", "x".repeat(2000)));
        }
        let seen = registry.get(1).unwrap();
        assert_eq!((seen.output.len(), seen.output[0].len()), (MAX_LINES, MAX_LINE_BYTES));
        job.finish("Aborted", Outcome::Failed, "no");
        assert_eq!(registry.wait(1).await.unwrap().outcome, Outcome::Failed);
        assert!(matches!(registry.cancel(1), Err(WorkflowError::Ended(1))));
        drop((job, registry));
        let registry = jobs(dir.path());
        assert_eq!(registry.get(1).unwrap().message, "no");
        assert_eq!(registry.begin("recovery", NodeId(1), json!({})).unwrap().id(), 2);
    }
}
