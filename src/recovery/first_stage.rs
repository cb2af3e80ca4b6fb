//! The stages by a script: the SQL function, a child of pgmend, or a program of the source's server.

use super::preflight::{fields, with_words};
use super::run::{Run, SHORT, stoppable};
use super::{MARK, Runner};
use crate::node::{self, Child, Finished, Owner};
use crate::server::sql::{Sql, literal};
use crate::workflow::Failure;
use serde_json::json;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Bound on a CHECKPOINT while clients work; it may have much to write.
pub(super) const CHECKPOINT_LIMIT: Duration = Duration::from_secs(3600);
/// Bytes of a program's output that are brought back through the source.
const MAX_OUTPUT_BYTES: u32 = 100_000;
/// The last line of a program run on the source tells its exit status: a failed COPY would take the output with it.
const EXIT_LINE: &str = "pgmend_exit=";

/// Which of the two stages a script is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ordinal {
    First,
    Second,
}

impl Ordinal {
    /// As Pgpool-II writes it.
    fn words(self) -> &'static str {
        match self {
            Ordinal::First => "1st stage",
            Ordinal::Second => "2nd stage",
        }
    }
    /// The journal record of a script.
    fn script(self) -> &'static str {
        match self {
            Ordinal::First => "FirstStage.Script",
            Ordinal::Second => "SecondStage.Script",
        }
    }
    /// The journal record of a backend of the source in which a script runs.
    fn backend(self) -> &'static str {
        match self {
            Ordinal::First => "FirstStage.Backend",
            Ordinal::Second => "SecondStage.Backend",
        }
    }
}

impl Run {
    pub(super) async fn first_stage(&mut self, stop: &CancellationToken) -> Result<(), Failure> {
        let runner = self.settings.runner;
        if self.mode.replicates() {
            stoppable(self.checkpoint("1st stage", CHECKPOINT_LIMIT), stop).await?;
            // Both kinds of first stage leave it running as a standby.
            self.started = true;
        }
        if runner == Runner::Builtin {
            return self.builtin(stop).await;
        }
        let script = self.settings.first_stage_command.clone();
        if script.is_empty() {
            self.how = "no first stage (recovery_1st_stage_command is empty)".into();
            return Ok(());
        }
        if script.contains('/') {
            return Err(Failure::new("recovery_1st_stage_command must be a file name in the source's data directory")
                .detail(script));
        }
        let inner_stop = stop.child_token();
        let directory = self.facts()?.site.here().cloned();
        // The watch borrows the run, so whatever the script's future learns is handed over afterwards.
        let (ended, why) = {
            let this = &*self;
            let watch = this.watch(false, directory);
            let work = this.script(Ordinal::First, &script, &inner_stop);
            tokio::pin!(watch, work);
            tokio::select! {
                ended = &mut work => (ended, None),
                failure = &mut watch => {
                    inner_stop.cancel();
                    (work.await, Some(failure))
                }
            }
        };
        if let Some(why) = why {
            return Err(match ended {
                Err(end) => why.detail(end.detail.unwrap_or(end.message)),
                Ok(()) => why,
            });
        }
        ended?;
        self.how = format!("first stage by {script} ({runner:?})").to_lowercase();
        Ok(())
    }

    /// Runs a stage's script by the runner that is configured.
    pub(super) async fn script(&self, stage: Ordinal, script: &str, stop: &CancellationToken) -> Result<(), Failure> {
        match self.settings.runner {
            Runner::Local => self.script_here((stage, script), &self.script_arguments(), stage.script(), stop).await,
            Runner::Program => self.script_on_source(stage, script, stop).await,
            Runner::Sql | Runner::Builtin => self.sql_function(stage, script, stop).await,
        }
    }

    /// The script's seven arguments; the first is the source's data directory.
    fn script_arguments(&self) -> Vec<String> {
        vec![
            self.facts.as_ref().map(|f| f.source_data.clone()).unwrap_or_default(),
            self.target.host.for_scripts().to_owned(),
            self.target_directory(),
            self.source.port.to_string(),
            self.target.id.to_string(),
            self.target.port.to_string(),
            self.source.host.for_scripts().to_owned(),
        ]
    }

    async fn sql_function(&self, stage: Ordinal, script: &str, stop: &CancellationToken) -> Result<(), Failure> {
        let source = self.script_connection(stage, stop).await?;
        let call = format!(
            "SELECT pgpool_recovery({}, {}, {}, {}, {}, {}, {})",
            literal(script),
            literal(self.target.host.for_scripts()),
            literal(&self.target_directory()),
            literal(&self.source.port.to_string()),
            self.target.id,
            literal(&self.target.port.to_string()),
            literal(self.source.host.for_scripts())
        );
        self.record(stage.script(), json!({ "runner": "sql", "script": script }))?;
        let result = self.in_source(&source, &call, stage.backend(), stop).await?;
        let log = self.log_of_source().await;
        match result.map(fields) {
            Ok(Some([answer])) if answer == "t" => Ok(()),
            Ok(answer) => Err(failed(stage, script, &format!("pgpool_recovery returned {answer:?} instead of true"))
                .hint(log)),
            Err(error) => Err(failed(stage, script, &error.to_string()).hint(format!(
                "pgpool_recovery does not pass on the script's output; {log}; recovery_runner = \"program\" or \"local\" shows it"
            ))),
        }
    }

    /// A connection for a script, with statement_timeout off. Its backend is journalled, so that its end can be proven.
    async fn script_connection(&self, stage: Ordinal, stop: &CancellationToken) -> Result<Sql, Failure> {
        let source = stoppable(self.connect_source(), stop).await?;
        source.rows_within("SET statement_timeout TO 0", SHORT).await.map_err(|e| {
            Failure::new(format!("executing recovery, SET STATEMENT_TIMEOUT failed at \"{}\"", stage.words()))
                .detail(e.to_string())
        })?;
        Ok(source)
    }

    /// Runs statements on the source until they end, or until `stop`: then the backend and, by its process group, the
    /// script are terminated, and its end is awaited.
    pub(super) async fn in_source(
        &self,
        source: &Sql,
        sql: &str,
        record: &str,
        stop: &CancellationToken,
    ) -> Result<Result<Vec<crate::server::sql::Row>, crate::server::sql::SqlError>, Failure> {
        let pid = source.value("SELECT pg_backend_pid()", SHORT).await;
        let pid: i32 = pid.ok().flatten().and_then(|p| p.parse().ok()).ok_or_else(|| Failure::new("no backend pid"))?;
        self.record(record, json!({ "backend": pid }))?;
        tokio::select! {
            result = source.rows(sql) => return Ok(result),
            () = stop.cancelled() => {}
        }
        let ended = self.terminate(pid).await;
        Err(Failure::new("the script was stopped").detail(ended))
    }

    /// PostgreSQL signals the backend's whole process group, which the script belongs to.
    async fn terminate(&self, pid: i32) -> String {
        let Ok(other) = self.connect(&self.source, &self.settings.database).await else {
            return format!("the source cannot be reached: backend {pid} and its script may still run");
        };
        let ask = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
        for round in 0..50 {
            // Again from time to time: a script may have started another program meanwhile.
            if round % 10 == 0 {
                drop(other.rows_within(&format!("SELECT pg_terminate_backend({pid})"), SHORT).await);
            }
            if matches!(other.value(&ask, SHORT).await, Ok(Some(count)) if count == "0") {
                return format!("backend {pid} of the source, in which it ran, has ended");
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        format!("backend {pid} of the source, in which it runs, does not end; a new recovery waits for that")
    }

    /// Where the source's log is: all that helps when the function tells nothing.
    async fn log_of_source(&self) -> String {
        let ask = "SELECT coalesce(pg_current_logfile(), ''), current_setting('log_destination'), current_setting('data_directory')";
        let rows = match self.connect(&self.source, &self.settings.database).await {
            Ok(sql) => sql.rows_within(ask, SHORT).await.unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        match fields(rows) {
            Some([file, _, directory]) if !file.is_empty() => {
                format!("see the source's log {}", Path::new(&directory).join(file).display())
            }
            Some([_, destination, directory]) => format!(
                "see the source's log (log_destination {destination}, no log file of its own: where its service's output goes; data directory {directory})"
            ),
            None => "see the source's log".to_owned(),
        }
    }

    /// Runs a script of the source's data directory as a child, as the owner of that directory.
    pub(super) async fn script_here(
        &self,
        (stage, script): (Ordinal, &str),
        arguments: &[String],
        record: &str,
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        let facts = self.facts()?;
        if !facts.source_is_local {
            return Err(failed(stage, script, &format!("node {} is on another machine", self.source.id))
                .hint("recovery_runner = \"local\" runs the script here; use sql or program for a source elsewhere"));
        }
        let directory = Path::new(&facts.source_data);
        let path = directory.join(script);
        let owner = Owner::of(directory).map_err(|e| failed(stage, script, &e.to_string()))?;
        let mut command: Vec<OsString> = vec![path.into_os_string()];
        command.extend(arguments.iter().map(Into::into));
        let child = Child { directory: directory.to_owned(), ..Child::new(command, Some(owner)) };
        self.child(child, script, record, stop).await.map(|_| ()).map_err(|e| with_words(failed(stage, script, ""), &e))
    }

    /// Runs a child: journalled before it starts, marked in its environment, its group journalled at once.
    pub(super) async fn child(
        &self,
        child: Child,
        name: &str,
        record: &str,
        stop: &CancellationToken,
    ) -> Result<Finished, node::NodeError> {
        let bad = |why: String| node::NodeError::Spawn { program: name.to_owned(), why };
        let mark = self.inner.mark(self.job.id());
        self.job.record(record, json!({ "program": name, "mark": mark })).map_err(|e| bad(e.to_string()))?;
        let child = child.env(MARK, mark);
        let job = self.job.clone();
        let started = move |group: i32| {
            if let Err(error) = job.record("Child", json!({ "group": group })) {
                // The mark still finds it.
                tracing::warn!(event = "job.journal_failed", %error);
            }
        };
        let finished = node::run(child, self.lines(), started, stop).await?;
        if finished.code != Some(0) {
            // What a failed script left in the background must not write on.
            for group in node::marked_processes(MARK, &self.inner.mark(self.job.id())) {
                node::kill_group(group).await;
            }
        }
        finished.success(name)
    }

    async fn script_on_source(&self, stage: Ordinal, script: &str, stop: &CancellationToken) -> Result<(), Failure> {
        self.record(stage.script(), json!({ "runner": "program", "script": script }))?;
        let ended = self.program((stage, script), &self.script_arguments(), stage.backend(), stop).await;
        ended.map_err(|detail| failed(stage, script, &detail))
    }

    /// Runs a script of the source's data directory by `COPY … FROM PROGRAM`; its lines go to the job's output.
    pub(super) async fn program(
        &self,
        (stage, script): (Ordinal, &str),
        arguments: &[String],
        record: &str,
        stop: &CancellationToken,
    ) -> Result<(), String> {
        let source = self.script_connection(stage, stop).await.map_err(|f| f.detail.unwrap_or(f.message))?;
        let directory = self.facts().map_err(|f| f.message)?.source_data.clone();
        let sql = copy_from_program(&format!("{directory}/{script}"), arguments);
        let result = self.in_source(&source, &sql, record, stop).await.map_err(|f| f.detail.unwrap_or(f.message))?;
        let rows = result.map_err(|e| e.to_string())?;
        let mut lines: Vec<String> = rows.into_iter().flatten().flatten().collect();
        let status = lines.pop().unwrap_or_default();
        lines.iter().filter(|l| !l.is_empty()).for_each(|line| self.job.output(line));
        match status.strip_prefix(EXIT_LINE) {
            Some("0") => Ok(()),
            Some(code) => {
                let words = lines.iter().rev().take(20).rev().cloned().collect::<Vec<_>>().join("\n");
                Err(format!("exited with status {code}: {words}"))
            }
            None => Err(format!("was killed on the source: {status}")),
        }
    }

    /// Tells what a failed first stage left, and ends what it can.
    pub(super) async fn undo_first_stage(&mut self) -> Option<String> {
        let mut told: Vec<String> = self.end_scripts().await.into_iter().collect();
        told.extend(self.undo_slot().await);
        (!told.is_empty()).then(|| told.join("; "))
    }
}

fn failed(stage: Ordinal, script: &str, detail: &str) -> Failure {
    Failure::new(format!("executing recovery, execution of command failed at \"{}\"", stage.words()))
        .detail(format!("command:\"{script}\": {detail}"))
}

/// The output comes as lines of a temporary table. Bytes that are not plain ASCII become `?`, since the server would
/// refuse text that is invalid in its encoding; the characters 1 and 2 then cannot occur and serve as delimiter and quote.
fn copy_from_program(path: &str, arguments: &[String]) -> String {
    let words: Vec<String> =
        std::iter::once(path).chain(arguments.iter().map(String::as_str)).map(shell_quoted).collect();
    // The empty line ends an unfinished last line.
    let command =
        format!("( {}; pgmend_status=$?; echo; echo {EXIT_LINE}$pgmend_status ) 2>&1 </dev/null", words.join(" "));
    let command = format!("{command} | LC_ALL=C tr -c '\\11\\12\\40-\\176' '?' | tail -c {MAX_OUTPUT_BYTES}");
    format!(
        "DROP TABLE IF EXISTS pg_temp.pgmend_output; CREATE TEMP TABLE pgmend_output (n bigserial, line text); \
         COPY pg_temp.pgmend_output (line) FROM PROGRAM {} (FORMAT csv, DELIMITER E'\\x01', QUOTE E'\\x02', NULL E'\\x03'); \
         SELECT line FROM pg_temp.pgmend_output ORDER BY n",
        literal(&command)
    )
}

fn shell_quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_for_the_shell() {
        assert_eq!(shell_quoted("it's $HOME"), r"'it'\''s $HOME'");
    }

    #[test]
    fn the_program_tells_its_status_last() {
        let sql = copy_from_program("/d/s", &["a b".into()]);
        assert!(sql.contains("pgmend_status=$?; echo; echo pgmend_exit=$pgmend_status"), "{sql}");
    }
}
