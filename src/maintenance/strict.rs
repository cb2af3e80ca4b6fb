//! `--strict`: from the promotion on no commit is acknowledged that is on one server only.
//!
//! The coming primary names its standbys before it is promoted, also those that do not stream yet: PostgreSQL itself lets
//! commits wait, and reads go on. A name that never comes would keep them waiting for ever, so the wait has a bound. Where the
//! daemon dies meanwhile, PostgreSQL keeps commits waiting, and the next daemon takes the watch over, with the bound anew.

use super::look::SHORT;
use super::run::{Run, milliseconds};
use super::sync_names::SyncNames;
use super::{Judgement, Reason, Surroundings};
use crate::base::NodeId;
use crate::cluster::{NodeSpec, NodeStatus};
use crate::server::sql::{Sql, SqlError};
use crate::workflow::JobHandle;
use std::time::{Duration, Instant};
use tokio_util::task::AbortOnDropHandle;

/// In the journal, so that nobody begins the wait again.
pub(super) const GIVEN_UP: &str = "Strict.GivenUp";
/// Between two looks.
const POLL: Duration = Duration::from_millis(20);

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// Enough standbys confirm, after so long.
    Synchronous(Duration),
    /// It took too long: commits no longer wait, and are on one server only.
    GivenUp(String),
}

/// Looks after the wait; ends with it.
#[derive(Debug)]
pub(super) struct Watch(AbortOnDropHandle<Kept>);

impl Watch {
    /// Must be begun on the new primary, when it is one.
    pub fn begin(run: &Run, names: SyncNames) -> Watch {
        let (inner, primary, job, within) =
            (run.inner.clone(), run.to.clone(), run.job.clone(), run.limits.strict_timeout);
        Watch(AbortOnDropHandle::new(tokio::spawn(async move { watch(&inner, &primary, &job, &names, within).await })))
    }

    pub async fn ended(self) -> Kept {
        self.0.await.unwrap_or_else(|e| Kept::GivenUp(e.to_string()))
    }
}

async fn watch(inner: &Surroundings, primary: &NodeSpec, job: &JobHandle, names: &SyncNames, within: Duration) -> Kept {
    let (began, mut sql) = (Instant::now(), None);
    loop {
        if sql.is_none() {
            sql = inner.connect(primary).await.ok();
        }
        if let Some(there) = &sql {
            match confirming(there).await {
                Ok(confirming) if confirming >= names.count() => return Kept::Synchronous(began.elapsed()),
                Ok(_) => {}
                Err(_) => sql = None,
            }
        }
        if began.elapsed() >= within {
            // A journal that cannot be written keeps no commit waiting any longer.
            if let Err(error) = job.record(GIVEN_UP, serde_json::Value::Null) {
                job.output(&error.to_string());
            }
            return Kept::GivenUp(give_up(inner, sql.as_ref(), names, within).await);
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn confirming(sql: &Sql) -> Result<usize, SqlError> {
    let ask = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state IN ('sync', 'quorum')";
    Ok(sql.value(ask, SHORT).await?.and_then(|n| n.parse().ok()).unwrap_or(0))
}

/// Commits go on, without the standbys that have not come.
async fn give_up(inner: &Surroundings, sql: Option<&Sql>, names: &SyncNames, within: Duration) -> String {
    let Some(sql) = sql else { return "the new primary does not answer".to_owned() };
    match inner.set_names(sql, names, &[]).await {
        Ok(now) => {
            format!("not enough standbys were synchronous within {within:?}; synchronous_standby_names = '{now}'")
        }
        Err(why) => format!("not enough standbys were synchronous within {within:?}, and commits still wait: {why}"),
    }
}

impl Run {
    /// The names that the coming primary carries from its promotion on. The old primary is among them unless it stays down.
    pub(super) fn strict_names(&self, wanted: &SyncNames) -> SyncNames {
        let mut gone = self.inner.names_out(None);
        if self.stay_down {
            gone.push(self.from.application_name.clone());
        }
        wanted.exchanged(&self.to.application_name, &self.from.application_name).without(&gone)
    }

    /// From the release on: clients may write, and their commits wait.
    pub(super) fn begin_strict(&mut self) {
        if let Some(names) = self.prepared.wanted.as_ref().filter(|_| self.options.strict) {
            self.strict = Some(Watch::begin(self, self.strict_names(names)));
        }
    }

    /// Told when it has ended; it has a bound.
    pub(super) async fn end_strict(&mut self) {
        let Some(watch) = self.strict.take() else { return };
        self.job.note("commits wait for a synchronous standby");
        match watch.ended().await {
            Kept::Synchronous(after) => self.told.lines.push(format!(
                "strict: commits waited until they were on a synchronous standby, {:.0} ms after the release",
                milliseconds(after)
            )),
            Kept::GivenUp(why) => self.failed(format!("strict was given up: {why}; commits are on one server only")),
        }
    }
}

impl Surroundings {
    /// What stands against a strict switchover, or a strict rolling update.
    pub(super) async fn judge_strict(&self, from: &NodeSpec, to: NodeId, rolling: bool, judgement: &mut Judgement) {
        // A primary that does not answer is told elsewhere.
        let Ok(sql) = self.connect(from).await else { return };
        match self.wanted_names(&sql).await {
            Ok(wanted) => judge(self, &wanted, rolling, to, judgement),
            Err(what) => judgement.against.push(Reason { what, hint: String::new() }),
        }
    }
}

fn judge(inner: &Surroundings, wanted: &SyncNames, rolling: bool, to: NodeId, judgement: &mut Judgement) {
    let mut no =
        |what: &str, hint: &str| judgement.against.push(Reason { what: what.to_owned(), hint: hint.to_owned() });
    if wanted.is_empty() {
        no("--strict: no standby is synchronous, there is nothing to wait for", "synchronous_standby_names names them");
        return;
    }
    let (view, out) = (inner.board.view(), inner.names_out(None));
    // One of them is away for its maintenance, and another is the primary.
    let others = view
        .nodes
        .iter()
        .filter(|n| n.status == NodeStatus::Up && n.spec.id != to && !out.contains(&n.spec.application_name));
    let (others, needed) = (others.count(), if rolling { 2 } else { 1 });
    if others < needed {
        no(
            &format!(
                "--strict: with {} nodes in routing a commit is on one server only while another is away",
                others + 1
            ),
            "a third node, or without --strict",
        );
    }
}
