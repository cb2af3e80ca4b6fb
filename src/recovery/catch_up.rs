//! Caught up, verified, attached.

use super::preflight::fields;
use super::run::{Run, SHORT};
use crate::base::Lsn;
use crate::cluster::{NodeStatus, NodeView};
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
        let ask = "SELECT status, coalesce(sender_host, ''), coalesce(sender_port::text, ''), coalesce(conninfo, '') \
                   FROM pg_stat_wal_receiver";
        let rows = target.rows_within(ask, SHORT).await.unwrap_or_default();
        let Some([status, host, port, conninfo]) = fields(rows) else {
            return (replayed, Some("its WAL receiver does not run".to_owned()));
        };
        if status != "streaming" {
            return (replayed, Some(format!("its WAL receiver is {status}")));
        }
        let wrong =
            |n: &&NodeView| n.spec.id != self.source.id && n.spec.host.0 == host && n.spec.port.to_string() == port;
        if let Some(other) = self.inner.board.view().nodes.iter().find(wrong) {
            return (replayed, Some(format!("it streams from node {} and not from the source", other.spec.id)));
        }
        // A script may stream under another name, and by another network than clients use.
        let names = [Some(self.target.application_name.clone()), receiver_name(&conninfo)];
        let [named, other] = names.map(|name| async move {
            let Some(name) = name else { return false };
            let ask = format!(
                "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND application_name = {}",
                literal(&name)
            );
            source.value(&ask, SHORT).await.ok().flatten().is_some_and(|n| n != "0")
        });
        let streams = named.await || (port == self.source.port.to_string() && other.await);
        (replayed, (!streams).then(|| format!("it streams from {host}:{port}, but the source does not list it")))
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
    /// With two stages the gate opens in the same step.
    pub(super) async fn attach(&mut self) -> Result<(), Failure> {
        let id = self.target.id;
        let mut last = String::new();
        for _ in 0..ATTACH_TRIES {
            let view = self.inner.board.view();
            if view.primary != Some(self.source.id) {
                return Err(Failure::new(format!(
                    "node {id} was not attached: node {} is no longer the {}",
                    self.source.id,
                    if self.mode.replicates() { "main node" } else { "primary" }
                )));
            }
            if view.node(id).is_some_and(|n| n.status == NodeStatus::Unused) {
                return Err(Failure::new(format!("node {id} was not attached: it has become unused")));
            }
            let verb = if self.attach_only { "attached" } else { "recovered" };
            let reason = format!("{verb} by job {}", self.job.id());
            let quiet = match self.mode.replicates() {
                false => None,
                true => match self.gated.quiet() {
                    Ok(quiet) => Some(quiet),
                    Err(unquiet) => {
                        return Err(Failure::new(format!("node {id} was not attached")).detail(unquiet.to_string()));
                    }
                },
            };
            let open = self.warm.as_ref().map_or(0, |warm| warm.look().open);
            match self.inner.attach.attach(id, view.generation, quiet, reason).await {
                Ok(()) => {
                    if open > 0 {
                        self.remarks.push(format!("{open} client connections to it were opened beforehand"));
                    }
                    self.attached().await;
                    return Ok(());
                }
                Err(error) => last = error,
            }
            if self.inner.board.view().generation == view.generation {
                break;
            }
        }
        Err(Failure::new(format!("node {id} could not be attached")).detail(last))
    }
}

impl Run {
    /// The gate is open. What the copy needed is not needed any more.
    async fn attached(&mut self) {
        if !self.mode.replicates() {
            return;
        }
        self.gated.open();
        if let Some(told) = self.undo_slot().await.filter(|told| !told.ends_with("was dropped")) {
            self.remarks.push(told);
        }
    }
}

/// The name by which a WAL receiver is known to its sender, from its connection string as PostgreSQL shows it.
fn receiver_name(conninfo: &str) -> Option<String> {
    let value = |key: &str| {
        let (_, rest) =
            format!(" {conninfo}").split_once(&format!(" {key}=")).map(|(a, b)| (a.to_owned(), b.to_owned()))?;
        let mut name = String::new();
        let mut letters = rest.chars();
        let quoted = rest.starts_with('\'');
        if quoted {
            letters.next();
        }
        while let Some(letter) = letters.next() {
            match letter {
                '\\' => name.extend(letters.next()),
                '\'' if quoted => break,
                ' ' if !quoted => break,
                other => name.push(other),
            }
        }
        Some(name)
    };
    value("application_name").or_else(|| value("fallback_application_name"))
}

pub(super) async fn position(sql: &Sql, ask: &str) -> Result<Lsn, Failure> {
    let answer = sql.value(ask, SHORT).await.map_err(|e| Failure::new("no position").detail(e.to_string()))?;
    answer.unwrap_or_default().parse().map_err(|e| Failure::new("no position").detail(format!("{e}")))
}

#[cfg(test)]
mod tests {
    use super::receiver_name;

    #[test]
    fn a_receivers_name_is_read_as_libpq_reads_it() {
        let name = |text| receiver_name(text);
        assert_eq!(name("user=a application_name=n1 fallback_application_name=w").as_deref(), Some("n1"));
        assert_eq!(name("fallback_application_name='15/main' host=b").as_deref(), Some("15/main"));
        assert_eq!(name(r"application_name='a\'b c'").as_deref(), Some("a'b c"));
        assert_eq!(name("host=b"), None);
    }
}
