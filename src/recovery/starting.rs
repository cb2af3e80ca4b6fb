//! Starting the target and waiting until it accepts a login.

use super::Runner;
use super::first_stage::Ordinal;
use super::preflight::with_words;
use super::run::{Run, stoppable};
use crate::server::sql::literal;
use crate::workflow::Failure;
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Pgpool-II's fixed name.
const REMOTE_START: &str = "pgpool_remote_start";
/// Clients may be held meanwhile.
const POLL: Duration = Duration::from_millis(50);

impl Run {
    /// `recovery_timeout` bounds all of it: the start and the wait for a login.
    pub(super) async fn starting(&mut self, stop: &CancellationToken) -> Result<(), Failure> {
        self.started = true;
        let began = Instant::now();
        let limit = self.settings.timeout;
        let inner = stop.child_token();
        let work = self.start(&inner);
        tokio::pin!(work);
        match tokio::time::timeout(limit, &mut work).await {
            Ok(started) => started?,
            Err(_) => {
                inner.cancel();
                // What was begun is ended before anything is told.
                let ended = work.await.err();
                let words = ended.map(|f| f.detail.unwrap_or(f.message)).unwrap_or_default();
                let by = self.starter();
                return Err(failed(&format!("{by} did not end within {} seconds", limit.as_secs()))
                    .detail(words)
                    .hint(
                        "recovery_timeout bounds the start of the target; it was ended with all that it had started",
                    ));
            }
        }
        stoppable(self.wait_for_login(began), stop).await
    }

    async fn start(&self, stop: &CancellationToken) -> Result<(), Failure> {
        let arguments = [self.target.host.for_scripts().to_owned(), self.target_directory()];
        let words = |f: Failure| failed(&f.detail.unwrap_or(f.message));
        match self.settings.runner {
            Runner::Sql => {
                let source = stoppable(self.connect_source(), stop).await?;
                let [host, directory] = &arguments;
                let call = format!("SELECT {REMOTE_START}({}, {})", literal(host), literal(directory));
                let result = self.in_source(&source, &call, "Starting.Backend", stop).await.map_err(words)?;
                result.map(|_| ()).map_err(|e| failed(&e.to_string()))
            }
            Runner::Program => self
                .program((Ordinal::First, REMOTE_START), &arguments, "Starting.Backend", stop)
                .await
                .map_err(|words| failed(&words)),
            Runner::Local if self.has_remote_start() => self
                .script_here((Ordinal::First, REMOTE_START), &arguments, "Starting.Script", stop)
                .await
                .map_err(words),
            // The first stage started it and the second one promoted it.
            Runner::Builtin if self.mode.replicates() => Ok(()),
            Runner::Local | Runner::Builtin => {
                let postmaster = self.postmaster().ok_or_else(|| failed("the preflight has not been done"))?;
                self.record("Starting.Script", json!({ "program": postmaster.starter() }))?;
                // Its words are in the detail; a server that replays for longer is ended by the bound on all of it.
                let started = postmaster.start(self.settings.timeout, self.lines(), stop).await;
                started.map_err(|e| with_words(failed(&e.to_string()), &e))
            }
        }
    }

    fn starter(&self) -> String {
        match self.settings.runner {
            Runner::Local if !self.has_remote_start() => {
                self.postmaster().map(|p| p.starter().to_owned()).unwrap_or_default()
            }
            Runner::Builtin => self.postmaster().map(|p| p.starter().to_owned()).unwrap_or_default(),
            Runner::Sql | Runner::Program | Runner::Local => REMOTE_START.to_owned(),
        }
    }

    fn has_remote_start(&self) -> bool {
        let data = self.facts.as_ref().map(|f| f.source_data.as_str()).unwrap_or_default();
        Path::new(data).join(REMOTE_START).is_file()
    }

    pub(super) async fn wait_for_login(&self, began: Instant) -> Result<(), Failure> {
        let databases = [self.settings.database.as_str(), "postgres", "template1"];
        let mut last = String::new();
        for database in databases.iter().cycle() {
            match self.connect(&self.target, database).await {
                Ok(_) => return Ok(()),
                Err(error) => last = error.to_string(),
            }
            if began.elapsed() >= self.settings.timeout {
                break;
            }
            self.job.note(format!("waiting for the target to accept a login: {last}"));
            tokio::time::sleep(POLL).await;
        }
        let (host, user, limit) = (&self.target.host.0, &self.settings.user, self.settings.timeout.as_secs());
        Err(Failure::new("recovery is checking if postmaster is started").detail(format!(
            "postmaster on hostname:\"{host}\" database:\"template1\" user:\"{user}\" failed to start in {limit} second: {last}"
        )))
    }

    /// A failed recovery leaves the target stopped where pgmend can stop it, so that it can be run again.
    pub(super) async fn undo_starting(&mut self) -> Option<String> {
        if !std::mem::take(&mut self.started) {
            return None;
        }
        let postmaster = self.postmaster()?;
        match postmaster.stop(self.lines(), &CancellationToken::new()).await {
            Ok(()) if postmaster.can_start() => Some("the target was stopped".to_owned()),
            Ok(()) => Some("the target may still run: stop it before the next recovery".to_owned()),
            Err(error) => Some(format!("the target could not be stopped: {error}")),
        }
    }
}

fn failed(words: &str) -> Failure {
    Failure::new(format!("executing remote start failed with error: \"{words}\""))
}
