//! Preflight: the source is a proven primary, the target is stopped, its data may be overwritten, nothing old still writes.

use super::run::{Facts, Run, SHORT, stoppable};
use super::{KIND, Runner};
use crate::base::Lsn;
use crate::node::{self, ControlData, DataDirectory, Lines, Programs, is_this_machine};
use crate::server::sql::{Sql, literal};
use crate::store::JournalFile;
use crate::workflow::{Failure, Outcome};
use serde_json::Value;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Reading a crashed server's log to its end is bounded by this; beyond it the last checkpoint counts.
const READ_LOG_TIMEOUT: Duration = Duration::from_secs(60);

impl Run {
    pub(super) async fn preflight(&mut self, stop: &CancellationToken) -> Result<(), Failure> {
        if self.settings.password.expose().starts_with("md5") && self.settings.password.expose().len() == 35 {
            let user = &self.settings.user;
            return Err(Failure::new(format!("the password of recovery_user {user} is invalid format"))
                .detail("recovery_password is not allowed to be md5 hashed format"));
        }
        let source = stoppable(self.connect_source(), stop).await?;
        let mut facts = stoppable(self.prove_source(&source), stop).await?;
        self.target_is_stopped(&facts, stop).await?;
        stoppable(self.nothing_old_writes(&source, &facts), stop).await?;
        self.data_may_go(&mut facts, stop).await?;
        self.facts = Some(facts);
        Ok(())
    }

    async fn prove_source(&self, source: &Sql) -> Result<Facts, Failure> {
        let id = self.source.id;
        let bad = |e: &dyn std::fmt::Display| {
            Failure::new(format!("node {id} could not be proven to be the primary")).detail(e.to_string())
        };
        let ask = "SELECT pg_is_in_recovery(), (SELECT system_identifier FROM pg_control_system()), \
                   current_setting('server_version_num'), current_setting('data_directory')";
        let rows = source.rows_within(ask, SHORT).await.map_err(|e| bad(&e))?;
        let [in_recovery, system, version, source_data] = fields(rows).ok_or_else(|| bad(&"no answer"))?;
        if in_recovery != "f" {
            return Err(bad(&"it is in recovery: a standby"));
        }
        let ask = "SELECT pg_walfile_name(pg_current_wal_lsn()), pg_current_wal_lsn()";
        let rows = source.rows_within(ask, SHORT).await.map_err(|e| bad(&e))?;
        let [file, position] = fields(rows).ok_or_else(|| bad(&"no answer"))?;
        let timeline =
            file.get(..8).and_then(|t| u32::from_str_radix(t, 16).ok()).ok_or_else(|| bad(&"odd log name"))?;
        let system_identifier = system.parse().map_err(|_| bad(&"odd system identifier"))?;
        if let Some(epoch) = &self.inner.board.view().epoch
            && (epoch.system_identifier != system_identifier || epoch.node != id || epoch.timeline > timeline)
        {
            return Err(bad(&format!("it is not the primary of the epoch in force ({epoch:?})")));
        }
        let major = version.parse::<u32>().map_or(0, |v| v / 10_000);
        let programs = Programs::find(self.settings.bin_directory.as_deref(), major)
            .map_err(|e| Failure::new("PostgreSQL's programs are missing").detail(e.to_string()))?;
        let (source_host, target_host) = (self.source.host.0.clone(), self.target.host.0.clone());
        let local = move || (is_this_machine(&source_host), is_this_machine(&target_host));
        // Name resolution blocks.
        let (source_is_local, target_is_local) = tokio::task::spawn_blocking(local).await.map_err(|e| bad(&e))?;
        Ok(Facts {
            system_identifier,
            timeline,
            position: position.parse().map_err(|e| bad(&e))?,
            source_data,
            source_is_local,
            target_local: self.target.data_directory.clone().filter(|_| target_is_local),
            programs,
            rewind: false,
        })
    }

    async fn target_is_stopped(&self, facts: &Facts, stop: &CancellationToken) -> Result<(), Failure> {
        let target = &self.target;
        let running = |how: String| {
            Failure::new(format!("node recovery failed, the PostgreSQL of node {} is not stopped", target.id))
                .detail(how)
                .hint("stop it, then recover the node; nothing was changed")
        };
        if let Some(directory) = &facts.target_local {
            if let (Ok(a), Ok(b)) = (directory.canonicalize(), std::path::Path::new(&facts.source_data).canonicalize())
                && facts.source_is_local
                && a == b
            {
                return Err(
                    Failure::new("the target's data directory is the source's").detail(facts.source_data.clone())
                );
            }
            if let Some(pid) = node::running_pid(directory) {
                return Err(running(format!("process {pid} runs on {}", directory.display())));
            }
        }
        let postmaster = node::Postmaster {
            spec: target.clone(),
            local: facts.target_local.clone(),
            programs: facts.programs.clone(),
            log_directory: self.inner.store.directory().to_owned(),
        };
        if postmaster.status(stop).await == Some(true) {
            return Err(running("its status command says that it runs".into()));
        }
        if node::answers(target, Duration::from_secs(3)).await {
            return Err(running(format!("somebody accepts connections at {}", target.label())));
        }
        Ok(())
    }

    /// A copy started over ssh outlives its parent: look at its traces on the source and in the target's directory.
    async fn nothing_old_writes(&self, source: &Sql, facts: &Facts) -> Result<(), Failure> {
        let old = |what: String| {
            Failure::new("something of an earlier recovery of this node still runs")
                .detail(what)
                .hint("wait for its end or end it yourself; nothing was changed")
        };
        let ours = literal(&self.our_name());
        let leftover =
            format!("SELECT pid FROM pg_stat_activity WHERE application_name = {ours} AND pid <> pg_backend_pid()");
        let ask = format!("SELECT pg_terminate_backend(pid) FROM ({leftover}) AS old");
        let gone = |e: crate::server::sql::SqlError| old(format!("the source could not be asked: {e}"));
        source.rows_within(&ask, SHORT).await.map_err(gone)?;
        let mut pids = Vec::new();
        for _ in 0..25 {
            pids = source.rows_within(&leftover, SHORT).await.map_err(gone)?;
            if pids.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        if let Some(pid) = pids.into_iter().flatten().flatten().next() {
            return Err(old(format!("backend {pid} of the source, in which its script runs, does not end")));
        }
        if let Some((from, to)) = self.last_unfinished() {
            let ask = format!(
                "SELECT a.pid, a.application_name, coalesce(host(a.client_addr), 'local') \
                 FROM pg_stat_progress_basebackup b JOIN pg_stat_activity a USING (pid) \
                 WHERE extract(epoch FROM a.backend_start) BETWEEN {} AND {}",
                from.saturating_sub(5),
                to.saturating_add(60)
            );
            if let Some([pid, name, client]) = fields(source.rows_within(&ask, SHORT).await.map_err(gone)?) {
                return Err(old(format!(
                    "a base backup begun then (backend {pid} of the source, application {name}, to {client})"
                )));
            }
        }
        if let Some(directory) = facts.target_local.clone() {
            let users = move || DataDirectory(directory).users();
            let users = tokio::task::spawn_blocking(users).await.unwrap_or_default();
            if let Some((pid, name)) = users.first() {
                return Err(Failure::new("a process has files of the target's data directory open")
                    .detail(format!("process {pid} ({name})"))
                    .hint("end it; nothing was changed"));
            }
        }
        Ok(())
    }

    /// First and last second of the newest recovery of this node when it did not succeed.
    fn last_unfinished(&self) -> Option<(u64, u64)> {
        let jobs = self.inner.jobs.list();
        let last = jobs.iter().find(|j| j.kind == KIND && j.node == self.target.id && j.id != self.job.id())?;
        (last.outcome != Outcome::Succeeded).then(|| (last.started_at_s, last.ended_at_s.unwrap_or(u64::MAX - 60)))
    }

    async fn data_may_go(&self, facts: &mut Facts, stop: &CancellationToken) -> Result<(), Failure> {
        let Some(path) = facts.target_local.clone() else {
            if self.settings.runner == Runner::Builtin {
                return Err(Failure::new(format!(
                    "the data directory of node {} is not on this machine",
                    self.target.id
                ))
                .detail("the built-in first stage writes to a local directory named by data_directory")
                .hint("set data_directory, or use recovery_runner sql, local or program with a script"));
            }
            return Ok(());
        };
        let directory = DataDirectory(path);
        if directory.is_empty() {
            return Ok(());
        }
        if !directory.has_control_file() {
            if self.settings.runner != Runner::Builtin || self.options.overwrite || self.left_by_us(&directory) {
                return Ok(());
            }
            return Err(Failure::new(format!("{} is not empty and holds no PostgreSQL data", directory.0.display()))
                .hint("empty it, or recover with --overwrite"));
        }
        let data = directory
            .control_data(&facts.programs, stop)
            .await
            .map_err(|e| with_words(Failure::new("the target's data cannot be judged"), &e))?;
        if data.system_identifier != facts.system_identifier {
            if self.settings.runner == Runner::Builtin && !self.options.overwrite {
                return Err(Failure::new(format!("the data of node {} belong to another system", self.target.id))
                    .detail(format!(
                        "system identifier {} in {}, {} on the source",
                        data.system_identifier,
                        directory.0.display(),
                        facts.system_identifier
                    ))
                    .hint("if they may be overwritten, recover with --overwrite"));
            }
            return Ok(());
        }
        let end = self.end_of_log(&directory, &data, facts, stop).await;
        let ahead = data.timeline > facts.timeline || end > facts.position;
        if ahead && !self.options.accept_loss {
            return Err(Failure::new(format!(
                "node {} is ahead of the source: it has data that would be lost",
                self.target.id
            ))
            .detail(format!(
                "timeline {} position {end} in {}, timeline {} position {} on the source",
                data.timeline,
                directory.0.display(),
                facts.timeline,
                facts.position
            ))
            .hint("save what only it has; if that may be lost, recover with --accept-loss"));
        }
        let other_history = ahead || data.timeline != facts.timeline;
        facts.rewind = self.settings.use_rewind && other_history && data.rewindable;
        Ok(())
    }

    /// Half a copy of an earlier, unsuccessful recovery has no control file (it comes last); its journal names the place.
    fn left_by_us(&self, directory: &DataDirectory) -> bool {
        let wanted = directory.0.display().to_string();
        let ours = |journal: &JournalFile| {
            let emptied = journal.last("FirstStage.Empty");
            emptied.is_some_and(|r| r.data.get("directory").and_then(Value::as_str) == Some(&wanted))
        };
        self.inner.store.journals().is_ok_and(|all| all.iter().any(ours))
    }

    /// The last record in the target's log: a crashed primary may have written beyond its last checkpoint.
    async fn end_of_log(
        &self,
        directory: &DataDirectory,
        data: &ControlData,
        facts: &Facts,
        stop: &CancellationToken,
    ) -> Lsn {
        let Ok(owner) = node::Owner::of(&directory.0) else { return data.position };
        let program = facts.programs.path("pg_waldump");
        let wal = directory.0.join("pg_wal");
        let (timeline, from) = (data.timeline.to_string(), data.checkpoint.to_string());
        let mut command = vec![program.into_os_string(), "-p".into(), wal.into_os_string()];
        command.extend(["-t", &timeline, "-s", &from].map(Into::into));
        let last = Arc::new(Mutex::new(data.position));
        let to = last.clone();
        // Each record's line says `lsn: 0/3000060, prev …`; the newest one seen is the end.
        let lines: Lines = Arc::new(move |line: &str| {
            let lsn = line.split_once("lsn: ").and_then(|(_, rest)| rest.split([',', ' ']).next()?.parse::<Lsn>().ok());
            if let Some(lsn) = lsn {
                let mut last = to.lock().unwrap_or_else(PoisonError::into_inner);
                *last = lsn.max(*last);
            }
        });
        let child = node::Child::new(command, Some(owner)).env("LC_ALL", "C");
        let bounded = stop.child_token();
        let read = node::run(child, lines, |_| (), &bounded);
        tokio::pin!(read);
        if tokio::time::timeout(READ_LOG_TIMEOUT, &mut read).await.is_err() {
            bounded.cancel();
            drop(read.await);
            self.job.output("the target's log is long; it was read only in part");
        }
        *last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first row as an array of texts; `None` when there is none, a NULL, or another number of columns.
pub(super) fn fields<const N: usize>(rows: Vec<crate::server::sql::Row>) -> Option<[String; N]> {
    let row: Option<Vec<String>> = rows.into_iter().next()?.into_iter().collect();
    row?.try_into().ok()
}

/// A failure with a program's own words.
pub(super) fn with_words(failure: Failure, error: &node::NodeError) -> Failure {
    match error.words() {
        Some(words) => failure.detail(format!("{error}: {words}")),
        None => failure.detail(error.to_string()),
    }
}
