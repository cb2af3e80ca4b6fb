//! Watches a first stage: bytes of a base backup, output, growth of the target's directory; and says when nothing moves.

use super::run::{Run, SHORT};
use crate::node::DataDirectory;
use crate::server::sql::{Sql, literal};
use crate::workflow::{Failure, Progress};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(500);
/// Walking a big directory costs more than a question to the source.
const SIZE_EVERY: u32 = 10;

impl Run {
    /// Runs until the stage stands still for `no_progress_timeout` (zero = never) or its own limit is over; returns why.
    /// Meant for `select!` beside the stage's work. `only_ours`: other base backups of the source do not count.
    pub(super) async fn watch(&self, only_ours: bool, directory: Option<PathBuf>) -> Failure {
        let (began, mut moved) = (Instant::now(), Instant::now());
        let mut seen = (0_u64, String::new(), 0_u64, 0_usize, None);
        let mut source: Option<Sql> = None;
        let mut size = 0;
        for round in 0_u32.. {
            tokio::time::sleep(POLL).await;
            if source.is_none() {
                source = self.connect(&self.source, &self.settings.database).await.ok();
            }
            let backup = match &source {
                Some(sql) => backup(sql, only_ours.then(|| self.our_name())).await,
                None => Err(()),
            };
            if backup.is_err() {
                source = None;
            }
            let (done, total, phase) = backup.ok().flatten().unwrap_or_default();
            if !phase.is_empty() {
                self.job.progress(Progress { done_bytes: done, total_bytes: total, note: phase.clone() });
            }
            if let Some(directory) = directory.clone().filter(|_| round % SIZE_EVERY == 0) {
                let measure = move || DataDirectory(directory).size_bytes();
                size = tokio::task::spawn_blocking(measure).await.unwrap_or_default();
            }
            let lines = self.job.last_lines(1).len() + self.output_hash();
            // A script that waits for its copy to catch up says nothing meanwhile.
            let replayed = if self.mode.replicates() && !only_ours { self.target_position().await } else { None };
            let now = (done, phase, size, lines, replayed);
            if now != seen {
                (seen, moved) = (now, Instant::now());
            }
            let (limit, still) = (self.settings.first_stage_timeout, self.settings.no_progress_timeout);
            if !limit.is_zero() && began.elapsed() >= limit {
                return Failure::new(format!("the first stage did not end within {limit:?}"))
                    .hint("recovery_1st_stage_timeout bounds it");
            }
            if !still.is_zero() && moved.elapsed() >= still {
                return Failure::new(format!("the first stage made no progress for {still:?}")).hint(
                    "no_progress_timeout bounds it; output, copied bytes, growth of the target's directory and what it replays count",
                );
            }
        }
        Failure::new("the first stage was watched for too long")
    }

    /// How far the target has replayed; `None` when it does not answer.
    async fn target_position(&self) -> Option<String> {
        let target = self.connect(&self.target, &self.settings.database).await.ok()?;
        target.value("SELECT pg_last_wal_replay_lsn()", SHORT).await.ok().flatten()
    }

    fn output_hash(&self) -> usize {
        // The newest line and the number of lines: enough to see that something was said.
        let lines = self.job.last_lines(usize::MAX);
        lines.iter().map(String::len).fold(lines.len(), |sum, n| sum.wrapping_mul(31).wrapping_add(n))
    }
}

type Backup = (u64, Option<u64>, String);

async fn backup(sql: &Sql, name: Option<String>) -> Result<Option<Backup>, ()> {
    let only = name.map(|n| format!("WHERE a.application_name = {}", literal(&n))).unwrap_or_default();
    let ask = format!(
        "SELECT coalesce(b.backup_streamed, 0), coalesce(b.backup_total, 0), coalesce(b.phase, '') \
         FROM pg_stat_progress_basebackup b JOIN pg_stat_activity a USING (pid) {only} ORDER BY a.backend_start DESC LIMIT 1"
    );
    let rows = sql.rows_within(&ask, SHORT).await.map_err(|_| ())?;
    Ok(super::preflight::fields(rows)
        .map(|[done, total, phase]| (done.parse().unwrap_or(0), total.parse().ok().filter(|t| *t > 0), phase)))
}
