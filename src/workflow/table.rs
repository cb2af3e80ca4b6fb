//! The runner of a step table: journal, stage, deadline, cancel; on failure the undos of what was entered, in reverse.

use super::{JobHandle, Outcome};
use serde_json::json;
use std::future::Future;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// After cancel or deadline a stage has this long to end what it started before it is dropped.
const GRACE: Duration = Duration::from_secs(25);

/// One row of a step table.
#[derive(Clone, Copy, Debug)]
pub struct Row<S> {
    /// The stage.
    pub stage: S,
    /// Its name in journal, log and progress.
    pub name: &'static str,
    /// Bound on the whole stage; `None`: it bounds its own waits (a copy may take hours).
    pub deadline: Option<Duration>,
    /// May be entered again after a crash in its middle.
    pub repeatable: bool,
    /// What undo does, for people; empty: nothing to undo.
    pub undo: &'static str,
}

/// Why a stage failed. The first line of what people see is `message`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// In Pgpool-II's words where it has some.
    pub message: String,
    /// The program's or server's own words.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure with a message only.
    pub fn new(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), detail: None, hint: None }
    }
    /// Adds the own words of whoever failed.
    pub fn detail(mut self, detail: impl Into<String>) -> Failure {
        self.detail = Some(detail.into());
        self
    }
    /// Adds what to do.
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }
    fn text(&self, stage: &str) -> String {
        let mut text = self.message.clone();
        if let Some(detail) = &self.detail {
            text.push_str(&format!("\ndetail: {detail}"));
        }
        text.push_str(&format!("\nstage: {stage}"));
        if let Some(hint) = &self.hint {
            text.push_str(&format!("\nhint: {hint}"));
        }
        text
    }
}

/// The work behind a table.
pub trait Work: Send {
    /// Its stages.
    type Stage: Copy + Send + Sync;
    /// Does a stage. It must end soon after `stop` is cancelled, leaving nothing running that it started.
    fn enter(
        &mut self,
        stage: Self::Stage,
        stop: &CancellationToken,
    ) -> impl Future<Output = Result<(), Failure>> + Send;
    /// Undoes a stage that was entered; tells what it did or could not do.
    fn undo(&mut self, stage: Self::Stage) -> impl Future<Output = Option<String>> + Send;
    /// True for a stage that is done to its end, and so are the next: a cancel that comes now comes too late.
    fn is_past_cancel(&self, _stage: Self::Stage) -> bool {
        false
    }
    /// The report of a success.
    fn report(&self) -> String;
}

/// Runs the rows in order and finishes the job. Each row's record is durable before anything of it happens.
pub async fn run<W: Work>(job: &JobHandle, rows: &[Row<W::Stage>], work: &mut W) -> Outcome {
    let mut entered = Vec::new();
    for row in rows {
        let failed = match job.record(row.name, json!({ "repeatable": row.repeatable })) {
            Err(error) => Err(Failure::new(error.to_string())),
            Ok(()) => {
                job.set_stage(row.name);
                tracing::info!(event = "recovery.stage_entered", job = job.id(), node = job.node().0, stage = row.name);
                entered.push(row);
                bounded(job, row, work).await
            }
        };
        if let Err(failure) = failed {
            return abort(job, row.name, &failure, &entered, work).await;
        }
    }
    let report = work.report();
    tracing::info!(event = "recovery.done", job = job.id(), node = job.node().0, report);
    job.finish("Done", Outcome::Succeeded, &report);
    Outcome::Succeeded
}

async fn bounded<W: Work>(job: &JobHandle, row: &Row<W::Stage>, work: &mut W) -> Result<(), Failure> {
    // A token that nobody cancels, where it is too late for it.
    let cancelled = if work.is_past_cancel(row.stage) { CancellationToken::new() } else { job.cancelled().clone() };
    if cancelled.is_cancelled() {
        return Err(Failure::new("cancelled by an operator"));
    }
    let stop = cancelled.child_token();
    let effect = work.enter(row.stage, &stop);
    tokio::pin!(effect);
    let why = tokio::select! {
        result = &mut effect => return match result {
            Err(failure) if cancelled.is_cancelled() => {
                Err(Failure::new("cancelled by an operator").detail(failure.to_string()))
            }
            other => other,
        },
        () = cancelled.cancelled() => Failure::new("cancelled by an operator"),
        () = after(row.deadline) => {
            let limit = row.deadline.unwrap_or_default();
            Failure::new(format!("stage {} did not end within {limit:?}", row.name))
        }
    };
    stop.cancel();
    match tokio::time::timeout(GRACE, &mut effect).await {
        // The effect was complete before it heard of the cancel; it still counts as cancelled and is undone.
        Ok(Ok(())) => Err(why),
        Ok(Err(failure)) => Err(why.detail(failure.detail.unwrap_or(failure.message))),
        Err(_) => Err(why.detail(format!("stage {} did not stop within {GRACE:?} and was dropped", row.name))),
    }
}

async fn after(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

async fn abort<W: Work>(
    job: &JobHandle,
    stage: &str,
    failure: &Failure,
    entered: &[&Row<W::Stage>],
    work: &mut W,
) -> Outcome {
    let cancelled = job.cancelled().is_cancelled();
    let mut text = failure.text(stage);
    if let Err(error) = job.record("Aborting", json!({ "stage": stage, "message": text })) {
        tracing::error!(event = "job.journal_failed", job = job.id(), %error);
    }
    job.set_stage("Aborting");
    for row in entered.iter().rev().filter(|row| !row.undo.is_empty()) {
        job.note(row.undo);
        if let Some(told) = work.undo(row.stage).await {
            text.push_str(&format!("\nundo: {told}"));
        }
    }
    tracing::warn!(event = "recovery.failed", job = job.id(), node = job.node().0, stage, message = text);
    let outcome = if cancelled { Outcome::Cancelled } else { Outcome::Failed };
    job.finish("Aborted", outcome, &text);
    outcome
}
