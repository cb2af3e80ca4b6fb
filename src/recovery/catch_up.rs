//! Caught up, verified, attached.

use super::preflight::fields;
use super::run::{Run, SHORT};
use crate::base::Lsn;
use crate::cluster::NodeStatus;
use crate::server::sql::{Sql, literal};
use crate::workflow::{Failure, Progress};
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(250);
/// The view moves with every probe; each move makes the compare-and-swap fail once.
const ATTACH_TRIES: u32 = 20;

impl Run {
    /// Until the target streams and has replayed what the source had when the stage began. It may take long after a long
    /// copy: only standing still for `recovery_timeout` is a failure.
    pub(super) async fn catch_up(&self) -> Result<(), Failure> {
        let source = self.connect_source().await?;
        let goal = position(&source, "SELECT pg_current_wal_lsn()").await?;
        let mut first = None;
        let (mut best, mut moved) = (Lsn::default(), Instant::now());
        loop {
            let (replayed, streaming) = self.standing(&source).await;
            let begin = *first.get_or_insert(replayed);
            if streaming.is_none() && replayed >= goal {
                return Ok(());
            }
            if replayed > best {
                (best, moved) = (replayed, Instant::now());
            }
            let note = streaming.unwrap_or_else(|| format!("replayed {replayed} of {goal}"));
            if moved.elapsed() >= self.settings.timeout {
                return Err(Failure::new(format!(
                    "node {} did not catch up within {:?}",
                    self.target.id, self.settings.timeout
                ))
                .detail(format!("{note}; replayed {replayed}, wanted {goal}"))
                .hint("see the target's log"));
            }
            self.job.progress(Progress {
                done_bytes: replayed.0.saturating_sub(begin.0),
                total_bytes: Some(goal.0.saturating_sub(begin.0)),
                note,
            });
            tokio::time::sleep(POLL).await;
        }
    }

    /// The replay position, and why it does not stream from the source (`None`: it does).
    async fn standing(&self, source: &Sql) -> (Lsn, Option<String>) {
        let target = match self.connect(&self.target, "postgres").await {
            Ok(target) => target,
            Err(error) => return (Lsn::default(), Some(format!("the target does not answer: {error}"))),
        };
        let replayed = position(&target, "SELECT pg_last_wal_replay_lsn()").await.unwrap_or_default();
        let ask = "SELECT status, coalesce(sender_port::text, '') FROM pg_stat_wal_receiver";
        let rows = target.rows_within(ask, SHORT).await.unwrap_or_default();
        let Some([status, port]) = fields(rows) else {
            return (replayed, Some("its WAL receiver does not run".to_owned()));
        };
        if status != "streaming" {
            return (replayed, Some(format!("its WAL receiver is {status}")));
        }
        let name = literal(&self.target.application_name);
        let ask =
            format!("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND application_name = {name}");
        let named = source.value(&ask, SHORT).await.ok().flatten().is_some_and(|n| n != "0");
        // A script may stream under another name; then the receiver's port must be the source's, and somebody stream there.
        let ask = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        let somebody = source.value(ask, SHORT).await.ok().flatten().is_some_and(|n| n != "0");
        let by_port = port == self.source.port.to_string() && somebody;
        let why = (!named && !by_port).then(|| "it does not stream from the source".to_owned());
        (replayed, why)
    }

    /// Same system, same timeline, in recovery, and the source still the primary.
    pub(super) async fn verify(&self) -> Result<(), Failure> {
        let facts = self.facts()?;
        let bad = |detail: String| {
            Failure::new(format!("node {} is not what it should be after its recovery", self.target.id)).detail(detail)
        };
        let source = self.connect_source().await?;
        let ask = "SELECT pg_is_in_recovery(), CASE WHEN pg_is_in_recovery() THEN '' ELSE pg_walfile_name(pg_current_wal_lsn()) END";
        let rows = source.rows_within(ask, SHORT).await.map_err(|e| bad(e.to_string()))?;
        let [in_recovery, file] = fields(rows).ok_or_else(|| bad("the source does not answer".into()))?;
        let timeline = file.get(..8).and_then(|t| u32::from_str_radix(t, 16).ok());
        if in_recovery != "f" || timeline != Some(facts.timeline) {
            return Err(bad(format!("node {} is no longer the primary that was copied", self.source.id)));
        }
        let target = self.connect(&self.target, "postgres").await.map_err(|e| bad(e.to_string()))?;
        let ask = "SELECT pg_is_in_recovery(), (SELECT system_identifier FROM pg_control_system()), \
                   (SELECT coalesce(received_tli, 0) FROM pg_stat_wal_receiver)";
        let rows = target.rows_within(ask, SHORT).await.map_err(|e| bad(e.to_string()))?;
        let [in_recovery, system, timeline] = fields(rows).ok_or_else(|| bad("it does not stream".into()))?;
        if in_recovery != "t" {
            return Err(bad("it is not in recovery: it writes a history of its own".into()));
        }
        if system != facts.system_identifier.to_string() {
            return Err(bad(format!("its system identifier is {system}, not {}", facts.system_identifier)));
        }
        if timeline != facts.timeline.to_string() {
            return Err(bad(format!("it streams timeline {timeline}, not {}", facts.timeline)));
        }
        Ok(())
    }

    /// Attached by compare-and-swap on a view that still has this source as its primary.
    pub(super) async fn attach(&self) -> Result<(), Failure> {
        let id = self.target.id;
        let mut last = String::new();
        for _ in 0..ATTACH_TRIES {
            let view = self.inner.board.view();
            if view.primary != Some(self.source.id) {
                return Err(Failure::new(format!(
                    "node {id} was not attached: node {} is no longer the primary",
                    self.source.id
                )));
            }
            if view.node(id).is_some_and(|n| n.status == NodeStatus::Unused) {
                return Err(Failure::new(format!("node {id} was not attached: it has become unused")));
            }
            let reason = format!("recovered by job {}", self.job.id());
            match self.inner.attach.attach(id, view.generation, reason).await {
                Ok(()) => return Ok(()),
                Err(error) => last = error,
            }
            if self.inner.board.view().generation == view.generation {
                break;
            }
        }
        Err(Failure::new(format!("node {id} could not be attached")).detail(last))
    }
}

async fn position(sql: &Sql, ask: &str) -> Result<Lsn, Failure> {
    let answer = sql.value(ask, SHORT).await.map_err(|e| Failure::new("no position").detail(e.to_string()))?;
    answer.unwrap_or_default().parse().map_err(|e| Failure::new("no position").detail(format!("{e}")))
}
