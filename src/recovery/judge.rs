//! May the target's data be overwritten: whose they are, and whether they hold anything that the source does not have.

use super::Runner;
use super::preflight::with_words;
use super::run::{Facts, Run, SHORT};
use crate::base::Lsn;
use crate::node::{ControlData, Data, LogEnd};
use crate::server::sql::{Sql, literal};
use crate::workflow::Failure;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Reading the target's log after the fork is bounded by this; beyond it, loss is assumed.
const READ_LOG_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of a history file that are read; a timeline takes a line.
const MAX_HISTORY_BYTES: u32 = 1_000_000;

/// The target's log beside the source's history.
#[derive(Debug, PartialEq, Eq)]
enum Beside {
    /// All of it lies in the source's past.
    Behind,
    /// On the source's own timeline, not beyond its end: the bytes tell whether it is the same log.
    Same,
    /// The source's history left its timeline here, and its log goes on.
    Forked(Lsn),
    /// It holds what the source cannot have.
    Ahead(&'static str),
}

fn beside(end: &LogEnd, timeline: u32, position: Lsn, history: Option<&str>) -> Beside {
    if end.timeline > timeline {
        return Beside::Ahead("its timeline is newer");
    }
    if end.timeline == timeline {
        return if end.last > position { Beside::Ahead("its position is beyond the source's") } else { Beside::Same };
    }
    let Some(history) = history else { return Beside::Ahead("the source's timeline history cannot be read") };
    let fork = history.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let of: u32 = words.next()?.parse().ok()?;
        (of == end.timeline).then(|| words.next()?.parse::<Lsn>().ok()).flatten()
    });
    match fork {
        None => Beside::Ahead("its timeline is not in the source's history"),
        Some(fork) if end.last >= fork => Beside::Forked(fork),
        Some(_) => Beside::Behind,
    }
}

impl Run {
    pub(super) async fn data_may_go(
        &self,
        source: &Sql,
        facts: &mut Facts,
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        let Some(target) = facts.data.clone() else {
            if self.settings.runner == Runner::Builtin {
                return Err(Failure::new(format!(
                    "the data directory of node {} is not on this machine",
                    self.target.id
                ))
                .detail("the built-in first stage writes to the directory named by data_directory, here or by remote_command")
                .hint(
                    "set data_directory, and remote_command for a node on another machine; or use recovery_runner sql, local \
                     or program with a script",
                ));
            }
            return Ok(());
        };
        let builtin = self.settings.runner == Runner::Builtin;
        if target.is_empty() {
            return Ok(());
        }
        if !target.has_control_file() {
            if !builtin || self.options.overwrite || self.earlier().emptied(target.path()) {
                return Ok(());
            }
            return Err(Failure::new(format!("{} is not empty and holds no PostgreSQL data", target.path().display()))
                .hint("empty it, or recover with --overwrite"));
        }
        let data = match target.control_data(stop).await {
            Ok(data) => data,
            Err(_) if self.options.overwrite => return Ok(()),
            Err(error) => {
                return Err(with_words(Failure::new("the target's data cannot be judged"), &error)
                    .hint("if they may be overwritten unseen, recover with --overwrite"));
            }
        };
        if data.system_identifier != facts.system_identifier {
            if builtin && !self.options.overwrite {
                return Err(self.another_system(&target, &data, facts));
            }
            return Ok(());
        }
        if self.mode.replicates() {
            // Each node writes a log of its own, so that says nothing; whose data are the truth is settled: the main node's.
            return Ok(());
        }
        let end = target.log_end(&data, stop).await;
        let end = end.map_err(|e| with_words(Failure::new("the target's log cannot be read"), &e))?;
        let lost = self.would_be_lost(source, &target, &data, &end, facts, stop).await;
        if let Some(why) = lost.filter(|_| !self.options.accept_loss) {
            return Err(self.ahead(&target, &end, facts, &why));
        }
        // On the same timeline pg_rewind sees no difference, also where there is one.
        let other_timeline = end.timeline != facts.timeline;
        facts.rewind = self.settings.use_rewind && other_timeline && data.rewindable && !self.earlier().rewound();
        Ok(())
    }

    fn another_system(&self, target: &Data, data: &ControlData, facts: &Facts) -> Failure {
        Failure::new(format!("the data of node {} belong to another system", self.target.id))
            .detail(format!(
                "system identifier {} in {}, {} on the source",
                data.system_identifier,
                target.path().display(),
                facts.system_identifier
            ))
            .hint("if they may be overwritten, recover with --overwrite")
    }

    fn ahead(&self, target: &Data, end: &LogEnd, facts: &Facts, why: &str) -> Failure {
        Failure::new(format!("node {} is ahead of the source: it has data that would be lost", self.target.id))
            .detail(format!(
                "{why}; timeline {} position {} in {}, timeline {} position {} on the source",
                end.timeline,
                end.last,
                target.path().display(),
                facts.timeline,
                facts.position
            ))
            .hint("save what only it has; if that may be lost, recover with --accept-loss")
    }

    /// What the target has and the source does not; `None` when there is nothing.
    async fn would_be_lost(
        &self,
        source: &Sql,
        target: &Data,
        data: &ControlData,
        end: &LogEnd,
        facts: &Facts,
        stop: &CancellationToken,
    ) -> Option<String> {
        let history = match facts.timeline {
            1 => Some(String::new()),
            timeline => history(source, timeline).await,
        };
        match beside(end, facts.timeline, facts.position, history.as_deref()) {
            Beside::Behind => None,
            Beside::Ahead(why) => Some(why.to_owned()),
            Beside::Same => match same_log(source, target, end, stop).await {
                Some(true) => None,
                Some(false) => Some("its log differs from the source's at the same positions".to_owned()),
                // The source's log does not go back so far. A standby wrote nothing of its own.
                None if data.was_primary() && !target.is_unused_copy() => {
                    Some("it was a primary of the source's own timeline".to_owned())
                }
                None => None,
            },
            Beside::Forked(fork) => {
                let bounded = stop.child_token();
                let count = target.commits_from(fork, end, &bounded);
                tokio::pin!(count);
                let count = match tokio::time::timeout(READ_LOG_TIMEOUT, &mut count).await {
                    Ok(count) => count,
                    Err(_) => {
                        bounded.cancel();
                        count.await;
                        None
                    }
                };
                match count {
                    Some(0) => None,
                    Some(n) => {
                        Some(format!("{n} transactions of it were committed after {fork}, where the source left"))
                    }
                    None => Some(format!("its log goes on after {fork}, where the source left, and could not be read")),
                }
            }
        }
    }
}

async fn history(source: &Sql, timeline: u32) -> Option<String> {
    let file = literal(&format!("pg_wal/{timeline:08X}.history"));
    source.value(&format!("SELECT pg_read_file({file}, 0, {MAX_HISTORY_BYTES}, true)"), SHORT).await.ok().flatten()
}

/// Whether the source has the same log up to the target's end; `None` when one of them has that part no more.
async fn same_log(source: &Sql, target: &Data, end: &LogEnd, stop: &CancellationToken) -> Option<bool> {
    let segment = end.segment.clone()?;
    let count = end.proof_bytes(&segment);
    let file = literal(&format!("pg_wal/{}", segment.name()));
    let ask = format!("SELECT encode(sha256(pg_read_binary_file({file}, 0, {count}, true)), 'hex')");
    let theirs = source.value(&ask, SHORT).await.ok().flatten()?;
    let ours = target.digest(segment, count, stop).await?;
    Some(ours == theirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(timeline: u32, last: u64) -> LogEnd {
        LogEnd { timeline, last: Lsn(last), is_record: true, segment: None }
    }

    #[test]
    fn a_log_is_judged_by_the_sources_history() {
        let history = Some("1\t0/3000000\tno recovery target specified\n\n2\t0/5000000\tx\n");
        let judge = |timeline, last| beside(&end(timeline, last), 3, Lsn(0x600_0000), history);
        assert_eq!(judge(1, 0x2ff_ff00), Beside::Behind);
        assert_eq!(judge(1, 0x300_0000), Beside::Forked(Lsn(0x300_0000)));
        assert_eq!(judge(2, 0x590_0000), Beside::Forked(Lsn(0x500_0000)));
        assert_eq!(judge(3, 0x600_0000), Beside::Same);
        assert!(matches!(judge(3, 0x600_0001), Beside::Ahead(_)));
        assert!(matches!(judge(4, 1), Beside::Ahead(_)));
        assert!(matches!(beside(&end(2, 1), 3, Lsn(9), Some("1\t0/1\tx\n")), Beside::Ahead(_)));
        assert!(matches!(beside(&end(2, 1), 3, Lsn(9), None), Beside::Ahead(_)));
    }
}
