//! User exits: the operator's own commands at the turning points, with arguments and environment, bounded in time. One may
//! veto where the operator says so; elsewhere a failure is told and the work goes on.

use super::Inner;
use crate::base::NodeId;
use crate::node::{self, Child, Lines};
use crate::workflow::{Failure, JobHandle};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// When.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// A switchover is about to hold clients.
    BeforeSwitch,
    /// The new primary serves.
    AfterSwitch,
    /// A node is about to leave.
    BeforeDetach,
    /// A node is back.
    AfterAttach,
}

impl Exit {
    fn name(self) -> &'static str {
        match self {
            Exit::BeforeSwitch => "before_switch",
            Exit::AfterSwitch => "after_switch",
            Exit::BeforeDetach => "before_detach",
            Exit::AfterAttach => "after_attach",
        }
    }
}

/// The commands (`[maintenance]`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exits {
    /// `before_switch_command`.
    pub before_switch: Option<String>,
    /// `after_switch_command`.
    pub after_switch: Option<String>,
    /// `before_detach_command`.
    pub before_detach: Option<String>,
    /// `after_attach_command`.
    pub after_attach: Option<String>,
    /// `status_change_command`.
    pub status_change: Option<String>,
    /// `may_veto`: names of exits whose failure stops the work.
    pub may_veto: Vec<String>,
    /// `exit_timeout`: bound on each.
    pub timeout: Duration,
    /// `backup_command`: makes the backup that is due after a change of the primary.
    pub backup: Option<String>,
    /// `backup_timeout`: bound on it.
    pub backup_timeout: Duration,
}

impl Exits {
    fn command(&self, exit: Exit) -> Option<&String> {
        match exit {
            Exit::BeforeSwitch => self.before_switch.as_ref(),
            Exit::AfterSwitch => self.after_switch.as_ref(),
            Exit::BeforeDetach => self.before_detach.as_ref(),
            Exit::AfterAttach => self.after_attach.as_ref(),
        }
    }
}

impl Inner {
    /// Runs an exit about a node. Arguments: its name, the node, the primary. An error is a veto.
    pub(super) async fn exit(&self, exit: Exit, node: NodeId, job: &JobHandle) -> Result<(), Failure> {
        let exits = (self.settings)().exits;
        let Some(command) = exits.command(exit) else { return Ok(()) };
        let primary = self.board.view().primary.map_or_else(|| "-1".to_owned(), |id| id.to_string());
        let arguments = [exit.name().to_owned(), node.to_string(), primary];
        let environment = [("PGMEND_JOB_ID", job.id().to_string())];
        let lines = self.lines_of(job);
        let Err(why) = run(command, &arguments, &environment, exits.timeout, lines).await else { return Ok(()) };
        let may_veto = exits.may_veto.iter().any(|name| name == exit.name());
        if may_veto && matches!(exit, Exit::BeforeSwitch | Exit::BeforeDetach) {
            return Err(Failure::new(format!("{}_command has vetoed", exit.name())).detail(why));
        }
        job.output(&format!("{}_command failed, the work goes on: {why}", exit.name()));
        Ok(())
    }

    /// The cluster's word has changed.
    pub(super) async fn exit_status_change(&self, old: &str, new: &str) {
        let exits = (self.settings)().exits;
        let Some(command) = &exits.status_change else { return };
        let arguments = ["status_change".to_owned(), old.to_owned(), new.to_owned()];
        let lines: Lines =
            std::sync::Arc::new(|line| tracing::info!(event = "maintenance.status_change_command", "{line}"));
        if let Err(why) = run(command, &arguments, &[], exits.timeout, lines).await {
            tracing::warn!(event = "maintenance.status_change_command_failed", why);
        }
    }

    /// A backup is due since now; where there is a command, it makes it at once.
    pub(super) async fn backup(&self, job: &JobHandle) -> String {
        let exits = (self.settings)().exits;
        let Some(command) = &exits.backup else {
            return "a backup is due: the timeline is new".to_owned();
        };
        job.note("the backup is being made");
        let primary = self.board.view().primary.map_or_else(|| "-1".to_owned(), |id| id.to_string());
        let arguments = ["backup".to_owned(), primary];
        match run(command, &arguments, &[], exits.backup_timeout, self.lines_of(job)).await {
            Ok(()) => match self.store.change_upkeep(|u| u.backup_due_since_s = None) {
                Ok(()) => "backup_command has made the backup that was due".to_owned(),
                Err(error) => format!("the backup was made, and that cannot be noted: {error}"),
            },
            Err(why) => {
                tracing::warn!(event = "maintenance.backup_failed", why);
                format!("a backup is due, backup_command failed: {why}")
            }
        }
    }
}

/// Runs a shell command with arguments (`$1` …), bounded.
async fn run(
    command: &str,
    arguments: &[String],
    environment: &[(&str, String)],
    limit: Duration,
    lines: Lines,
) -> Result<(), String> {
    let words = ["sh", "-c", command, "pgmend"].into_iter().map(str::to_owned).chain(arguments.iter().cloned());
    let child = Child::new(words, None);
    let child = environment.iter().fold(child, |child, (name, value)| child.env(name, value));
    let stop = CancellationToken::new();
    let work = node::run(child, lines, |_| (), &stop);
    tokio::pin!(work);
    match tokio::time::timeout(limit, &mut work).await {
        Ok(finished) => finished.and_then(|f| f.success("it")).map(drop).map_err(|e| match e.words() {
            Some(words) => format!("{e}: {words}"),
            None => e.to_string(),
        }),
        Err(_) => {
            stop.cancel();
            drop(work.await);
            Err(format!("it did not end within {limit:?}"))
        }
    }
}
