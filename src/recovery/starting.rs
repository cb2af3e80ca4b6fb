//! Starting the target and waiting until it accepts a login.

use super::Runner;
use super::preflight::with_words;
use super::run::{Run, SHORT, stoppable};
use crate::server::sql::literal;
use crate::workflow::Failure;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Pgpool-II's fixed name.
const REMOTE_START: &str = "pgpool_remote_start";
const POLL: Duration = Duration::from_millis(500);

impl Run {
    pub(super) async fn starting(&mut self, stop: &CancellationToken) -> Result<(), Failure> {
        self.started = true;
        let arguments = [self.target.host.for_scripts().to_owned(), self.target_directory()];
        match self.settings.runner {
            Runner::Sql => self.start_by_function(&arguments, stop).await?,
            Runner::Program => self.program(REMOTE_START, &arguments, stop).await.map_err(|words| failed(&words))?,
            Runner::Local if self.has_remote_start() => {
                self.script_here(REMOTE_START, &arguments, "Starting.Script", stop)
                    .await
                    .map_err(|f| failed(&f.detail.unwrap_or(f.message)))?;
            }
            Runner::Local | Runner::Builtin => {
                let postmaster = self.postmaster().ok_or_else(|| failed("the preflight has not been done"))?;
                // Its words are in the detail; a timeout of pg_ctl while the server replays is judged by the wait below.
                let started = postmaster.start(self.settings.timeout, self.lines(), stop).await;
                started.map_err(|e| with_words(failed(&e.to_string()), &e))?;
            }
        }
        stoppable(self.wait_for_login(), stop).await
    }

    fn has_remote_start(&self) -> bool {
        let data = self.facts.as_ref().map(|f| f.source_data.as_str()).unwrap_or_default();
        Path::new(data).join(REMOTE_START).is_file()
    }

    async fn start_by_function(&self, arguments: &[String; 2], stop: &CancellationToken) -> Result<(), Failure> {
        let source = stoppable(self.connect_source(), stop).await?;
        let [host, directory] = arguments;
        let call = format!("SELECT pgpool_remote_start({}, {})", literal(host), literal(directory));
        let work = async {
            let rows = source.rows_within(&call, self.settings.timeout.max(SHORT)).await;
            rows.map(|_| ()).map_err(|e| failed(&e.to_string()))
        };
        stoppable(work, stop).await
    }

    async fn wait_for_login(&self) -> Result<(), Failure> {
        let began = Instant::now();
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
