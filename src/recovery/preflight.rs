//! Preflight: the source is a proven primary, the target is stopped, nothing old still writes; then `judge` has its say.

use super::earlier::Earlier;
use super::run::{Facts, Run, SHORT, stoppable};
use crate::node::{self, Data, DataDirectory, Programs, Site, is_this_machine};
use crate::server::sql::{Sql, literal};
use crate::workflow::Failure;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

impl Run {
    pub(super) async fn preflight(&mut self, stop: &CancellationToken) -> Result<(), Failure> {
        let source = match stoppable(self.connect_source(), stop).await {
            Err(failure) if self.settings.password_is_hash => {
                let user = &self.settings.user;
                let said = failure.detail.unwrap_or_default();
                return Err(Failure::new(format!("the password of recovery_user {user} is invalid format"))
                    .detail(format!(
                        "recovery_password is not allowed to be md5 hashed format; the source said: {said}"
                    ))
                    .hint("give recovery_password as it is, or as TEXT or AES"));
            }
            other => other?,
        };
        let mut facts = stoppable(self.prove_source(&source), stop).await?;
        self.reach_target(&mut facts, stop).await?;
        self.target_is_stopped(&facts, stop).await?;
        stoppable(self.nothing_old_writes(&source, &facts), stop).await?;
        self.data_may_go(&source, &mut facts, stop).await?;
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
        let site = Site::of(&self.target, self.order()).await;
        let programs = match &site {
            // Its own machine's are used.
            Site::There(_) => None,
            Site::Here(_) | Site::Elsewhere => {
                let own = self.target.maintain.bin_directory.as_deref();
                let programs = Programs::find(own.or(self.settings.bin_directory.as_deref()), major);
                Some(programs.map_err(|e| Failure::new("PostgreSQL's programs are missing").detail(e.to_string()))?)
            }
        };
        let source_host = self.source.host.0.clone();
        // Name resolution blocks.
        let is_local = tokio::task::spawn_blocking(move || is_this_machine(&source_host)).await.map_err(|e| bad(&e))?;
        Ok(Facts {
            system_identifier,
            timeline,
            position: position.parse().map_err(|e| bad(&e))?,
            source_data,
            source_is_local: is_local && self.source.maintain.remote_command.is_none(),
            site,
            data: None,
            programs,
            major,
            rewind: false,
        })
    }

    /// The target's data, where pgmend can act on them. Those elsewhere are looked at, in one journey with the directories of
    /// other nodes on that machine.
    async fn reach_target(&self, facts: &mut Facts, stop: &CancellationToken) -> Result<(), Failure> {
        facts.data = match (&facts.site, &facts.programs) {
            (Site::Here(path), Some(programs)) => {
                Some(Data::Here { directory: DataDirectory(path.clone()), programs: programs.clone() })
            }
            (Site::There(remote), _) => {
                let others = self.others_of(facts);
                let survey = remote.survey(&others, Some(facts.major), stop).await.map_err(|e| {
                    Failure::new(format!("node {} cannot be reached by its remote_command", self.target.id))
                        .detail(e.to_string())
                        .hint("nothing was changed")
                })?;
                Some(Data::There { remote: remote.clone(), survey: Box::new(survey) })
            }
            (Site::Here(_) | Site::Elsewhere, _) => None,
        };
        Ok(())
    }

    /// The target and the source are on one machine, as far as their hosts' names tell.
    pub(super) fn beside_source(&self, facts: &Facts) -> bool {
        match facts.site {
            Site::There(_) => self.source.host == self.target.host,
            Site::Here(_) | Site::Elsewhere => facts.source_is_local,
        }
    }

    /// Directories of other nodes on the target's machine, the source's own word of its own among them.
    fn others_of(&self, facts: &Facts) -> Vec<PathBuf> {
        let view = self.inner.board.view();
        let others = view.nodes.iter().filter(|n| n.spec.id != self.target.id && n.spec.host == self.target.host);
        let others = others.filter_map(|n| n.spec.data_directory.clone());
        let source = Some(PathBuf::from(&facts.source_data)).filter(|_| self.beside_source(facts));
        source.into_iter().chain(others).collect()
    }

    async fn target_is_stopped(&self, facts: &Facts, stop: &CancellationToken) -> Result<(), Failure> {
        let target = &self.target;
        let running = |how: String| {
            Failure::new(format!("node recovery failed, the PostgreSQL of node {} is not stopped", target.id))
                .detail(how)
                .hint("stop it, then recover the node; nothing was changed")
        };
        match &facts.data {
            Some(Data::Here { directory, .. }) => {
                self.target_is_apart(&directory.places(), facts)?;
                if let Some(pid) = node::running_pid(&directory.0) {
                    return Err(running(format!("process {pid} runs on {}", directory.0.display())));
                }
            }
            Some(Data::There { remote, survey }) => {
                self.target_is_apart(&survey.places, facts)?;
                if let Some(pid) = survey.pid {
                    return Err(running(format!("process {pid} there runs on {}", remote.directory().display())));
                }
            }
            None => {}
        }
        let postmaster = self.postmaster_of(facts);
        if postmaster.status(stop).await == Some(true) {
            return Err(running("its status command says that it runs".into()));
        }
        if node::answers(target, Duration::from_secs(3)).await {
            return Err(running(format!("somebody accepts connections at {}", target.label())));
        }
        Ok(())
    }

    /// Neither the source's data nor another node's lie in the target's directory, or it in theirs, also by links.
    pub(super) fn target_is_apart(&self, ours: &[PathBuf], facts: &Facts) -> Result<(), Failure> {
        for (number, other) in self.others_of(facts).into_iter().enumerate() {
            let theirs = match &facts.data {
                Some(Data::There { survey, .. }) => {
                    survey.others.iter().filter(|(n, _)| *n == number).map(|(_, place)| place.clone()).collect()
                }
                Some(Data::Here { .. }) | None => DataDirectory(other.clone()).places(),
            };
            if let Some((a, b)) =
                ours.iter().flat_map(|a| theirs.iter().map(move |b| (a, b))).find(|(a, b)| overlap(a, b))
            {
                return Err(Failure::new(
                    "the target's data directory is the source's or another node's, or shares a place",
                )
                .detail(format!(
                    "{} of node {} and {} of {}",
                    a.display(),
                    self.target.id,
                    b.display(),
                    other.display()
                ))
                .hint("correct data_directory, or the links in it; nothing was changed"));
            }
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
        if self.inner.emptying.load(Ordering::Acquire) > 0 {
            return Err(old("pgmend itself is still emptying the data directory".into()));
        }
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
        let then: Vec<String> = self.earlier().spans().into_iter().map(backup_began_within).collect();
        if !then.is_empty() {
            let ask = format!(
                "SELECT a.pid, a.application_name, coalesce(host(a.client_addr), 'local') \
                 FROM pg_stat_progress_basebackup b JOIN pg_stat_activity a USING (pid) WHERE {}",
                then.join(" OR ")
            );
            if let Some([pid, name, client]) = fields(source.rows_within(&ask, SHORT).await.map_err(gone)?) {
                return Err(old(format!(
                    "a base backup begun then (backend {pid} of the source, application {name}, to {client})"
                )));
            }
        }
        let user = match &facts.data {
            Some(Data::Here { directory, .. }) => {
                let directory = directory.clone();
                let users = tokio::task::spawn_blocking(move || directory.users()).await.unwrap_or_default();
                users.first().map(|(pid, name)| format!("process {pid} ({name})"))
            }
            Some(Data::There { remote, survey }) => {
                let users = remote.users(&survey.places, &CancellationToken::new()).await;
                let users = users.map_err(|e| old(format!("the target's machine could not be asked: {e}")))?;
                users.into_iter().next()
            }
            None => None,
        };
        match user {
            Some(user) => Err(Failure::new("a process has files of the target's data directory open")
                .detail(user)
                .hint("end it; nothing was changed")),
            None => Ok(()),
        }
    }

    /// What earlier recoveries of this node left.
    pub(super) fn earlier(&self) -> Earlier {
        Earlier::of(self.inner.store.journals().unwrap_or_default(), self.target.id, self.job.id())
    }
}

fn overlap(a: &Path, b: &Path) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

/// A script may begin its copy some time after the last journal record.
fn backup_began_within((from, to): (u64, u64)) -> String {
    let (from, to) = (from.saturating_sub(5), to.saturating_add(60));
    format!("extract(epoch FROM a.backend_start) BETWEEN {from} AND {to}")
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
