//! The first stage without a script: `pg_rewind` when that is enough and possible, else `pg_basebackup`.

use super::Settings;
use super::earlier::KeptLinks;
use super::first_stage::CHECKPOINT_LIMIT;
use super::preflight::with_words;
use super::run::{Run, SHORT, stoppable};
use crate::base::Secret;
use crate::cluster::{NodeSpec, SslMode};
use crate::net::ServerTlsSettings;
use crate::node::{self, Child, DataDirectory, NodeError, Owner, set_streaming};
use crate::server::sql::{Sql, SqlError, literal};
use crate::workflow::Failure;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Tries to drop a slot, and the pause between two.
const SLOT_TRIES: u32 = 25;
const SLOT_POLL: Duration = Duration::from_millis(200);

/// What a copy does with links, planned before anything is removed.
struct Links {
    /// What the target had.
    kept: KeptLinks,
    /// Source's place → target's place.
    tablespaces: Vec<(String, PathBuf)>,
}

impl Run {
    pub(super) async fn builtin(&mut self, stop: &CancellationToken) -> Result<(), Failure> {
        let path = self.facts()?.target_local.clone().ok_or_else(|| Failure::new("the target is not local"))?;
        let directory = DataDirectory(path);
        let owner =
            Owner::of(&directory.0).map_err(|e| Failure::new("the target's data directory").detail(e.to_string()))?;
        let links = stoppable(self.plan_links(&directory), stop).await?;
        stoppable(self.make_slot(), stop).await?;
        let rewound = self.facts()?.rewind && self.rewind(&directory, &owner, stop).await?;
        if !rewound {
            self.copy(&directory, &owner, &links, stop).await?;
        }
        self.record("FirstStage.Configure", json!({ "directory": directory.0 }))?;
        set_streaming(&directory.0, &owner, &self.streaming_settings())
            .map_err(|e| Failure::new("the copy could not be made a standby").detail(e.to_string()))?;
        self.how = if rewound { "pg_rewind" } else { "pg_basebackup" }.to_owned();
        if self.mode.replicates() { self.follow(stop).await } else { Ok(()) }
    }

    /// With two stages the copy follows the source as a standby, so that the second one has little left to do.
    async fn follow(&self, stop: &CancellationToken) -> Result<(), Failure> {
        let postmaster = self.postmaster().ok_or_else(|| Failure::new("the preflight has not been done"))?;
        self.record("FirstStage.Start", json!({ "program": postmaster.starter() }))?;
        let started = postmaster.start(self.settings.timeout, self.lines(), stop).await;
        started.map_err(|e| with_words(Failure::new("the copy could not be started"), &e))?;
        stoppable(
            async {
                self.wait_for_login(std::time::Instant::now()).await?;
                self.catch_up().await
            },
            stop,
        )
        .await
    }

    async fn plan_links(&self, directory: &DataDirectory) -> Result<Links, Failure> {
        let source = self.connect_source().await?;
        let ask = "SELECT oid::text, spcname, pg_tablespace_location(oid) FROM pg_tablespace \
                   WHERE pg_tablespace_location(oid) <> ''";
        let rows = source.rows_within(ask, SHORT).await;
        let rows = rows.map_err(|e| Failure::new("the source's tablespaces are not known").detail(e.to_string()))?;
        let kept = self.links_of(directory);
        self.target_is_apart(kept.wal.as_slice(), self.facts()?)?;
        let mut tablespaces = Vec::new();
        for row in rows {
            let [oid, name, place] =
                super::preflight::fields(vec![row]).ok_or_else(|| Failure::new("odd tablespace"))?;
            let ours = kept.tablespaces.iter().find(|(o, _)| *o == oid);
            let wanted = ours.map_or_else(|| PathBuf::from(&place), |(_, p)| p.clone());
            self.tablespace_has_room(&name, &place, &wanted)?;
            tablespaces.push((place, wanted));
        }
        Ok(Links { kept, tablespaces })
    }

    /// The links that the directory has, and those that it had when an earlier recovery emptied it.
    fn links_of(&self, directory: &DataDirectory) -> KeptLinks {
        let mut links = self.earlier().links(&directory.0);
        links.wal = directory.wal_link().or(links.wal);
        let now = directory.tablespaces();
        links.tablespaces.retain(|(oid, _)| now.iter().all(|(o, _)| o != oid));
        links.tablespaces.extend(now);
        links
    }

    /// What pg_basebackup would refuse is refused before anything is removed: a place in use, or with other files.
    fn tablespace_has_room(&self, name: &str, place: &str, wanted: &Path) -> Result<(), Failure> {
        let real = |p: &Path| p.canonicalize().unwrap_or_else(|_| p.to_owned());
        if self.facts()?.source_is_local && real(wanted) == real(Path::new(place)) {
            return Err(Failure::new(format!("tablespace {name} at {place} is in use by the source on this machine"))
                .hint("make a link with its oid in the target's pg_tblspc to another place, or use a script"));
        }
        // `empty` removes what is of this version only.
        let ours = format!("PG_{}_", self.facts()?.major);
        let foreign = std::fs::read_dir(wanted).into_iter().flatten().flatten();
        match foreign.into_iter().find(|e| !e.file_name().to_string_lossy().starts_with(&ours)) {
            Some(entry) => Err(Failure::new(format!("{} holds other files than tablespace {name}", wanted.display()))
                .detail(entry.file_name().to_string_lossy().into_owned())),
            None => Ok(()),
        }
    }

    fn slot_name(&self) -> String {
        format!("pgmend_{}", self.target.id)
    }

    /// A fresh slot: an old one of ours would hold log back to the day it was lost.
    async fn make_slot(&mut self) -> Result<(), Failure> {
        let name = self.slot_name();
        let bad = |e: &dyn std::fmt::Display| {
            Failure::new(format!("replication slot {name} could not be made")).detail(e.to_string())
        };
        self.record("FirstStage.Slot", json!({ "slot": name }))?;
        let source = self.connect_source().await?;
        let quoted = literal(&name);
        let drop_old = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = {quoted} AND slot_type = 'physical'"
        );
        source.rows_within(&drop_old, SHORT).await.map_err(|e| bad(&e))?;
        self.slot = Some(name.clone());
        let make = format!("SELECT pg_create_physical_replication_slot({quoted}, true)");
        source.rows_within(&make, SHORT).await.map_err(|e| bad(&e))?;
        Ok(())
    }

    /// A slot that nobody reads keeps log for ever; the next recovery makes a new one.
    async fn drop_slot(&self, slot: &str) -> String {
        match self.connect(&self.source, &self.settings.database).await {
            Ok(source) => drop_slot(&source, slot).await,
            Err(error) => format!("replication slot {slot} could not be dropped and holds back log: {error}"),
        }
    }

    /// Drops the slot that was made. Called by undo.
    pub(super) async fn undo_slot(&mut self) -> Option<String> {
        let slot = self.slot.take()?;
        Some(self.drop_slot(&slot).await)
    }

    /// False when it failed: then a whole copy follows.
    async fn rewind(
        &self,
        directory: &DataDirectory,
        owner: &Owner,
        stop: &CancellationToken,
    ) -> Result<bool, Failure> {
        let server =
            conninfo(&self.source, &self.settings.user, Some(&self.settings.database), &self.our_name(), &self.tls());
        // A source that was promoted a moment ago has its old timeline in its control file until its next checkpoint, and
        // pg_rewind would find nothing to do (before PostgreSQL 16).
        stoppable(self.checkpoint("1st stage", CHECKPOINT_LIMIT), stop).await?;
        let program = self.facts()?.programs.path("pg_rewind");
        let mut command: Vec<OsString> = vec![program.into(), "-D".into(), directory.0.clone().into()];
        command.extend(["--source-server".into(), server.into(), "--progress".into()]);
        // Its own crash recovery of an uncleanly stopped server refuses to run in standby mode.
        let armed = directory.0.join("standby.signal").exists();
        node::disarm_standby(&directory.0).map_err(|e| Failure::new("the target").detail(e.to_string()))?;
        let child = self.with_password(Child::new(command, Some(owner.clone())), &self.settings.password);
        let rewound = self.watched(child, "pg_rewind", "FirstStage.Rewind", directory, stop).await;
        if armed {
            // Whoever starts it meanwhile gets a standby.
            drop(node::arm_standby(&directory.0, owner));
        }
        match rewound {
            Ok(()) => Ok(true),
            Err(failure) if stop.is_cancelled() => Err(failure),
            Err(failure) => {
                self.job.output(&format!("pg_rewind failed, a whole copy follows: {failure}"));
                Ok(false)
            }
        }
    }

    async fn copy(
        &self,
        directory: &DataDirectory,
        owner: &Owner,
        links: &Links,
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        let (user, password) = self.replication_login();
        let server = conninfo(&self.source, user, None, &self.our_name(), &self.tls());
        let program = self.facts()?.programs.path("pg_basebackup");
        let mut command: Vec<OsString> = vec![program.into(), "-D".into(), directory.0.clone().into()];
        command.extend(["-d".into(), server.into()]);
        command.extend(["-X", "stream", "-c", "fast", "-w", "-S", &self.slot_name()].map(OsString::from));
        if let Some(wal) = &links.kept.wal {
            command.extend(["--waldir".into(), wal.clone().into_os_string()]);
        }
        for (old, new) in &links.tablespaces {
            let escaped = |p: &str| p.replace('=', "\\=");
            let mapping = format!("{}={}", escaped(old), escaped(&new.display().to_string()));
            command.extend(["-T".into(), mapping.into()]);
        }
        self.empty(directory, owner, links, stop).await?;
        let child = self.with_password(Child::new(command, Some(owner.clone())), password);
        self.watched(child, "pg_basebackup", "FirstStage.Copy", directory, stop).await
    }

    /// Empties the target's directory, the places of its links too; the links are journalled, for they go with the rest.
    async fn empty(
        &self,
        directory: &DataDirectory,
        owner: &Owner,
        links: &Links,
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        if let Some(pid) = node::running_pid(&directory.0) {
            return Err(Failure::new(format!("the PostgreSQL of node {} was started meanwhile", self.target.id))
                .detail(format!("process {pid} runs on {}", directory.0.display())));
        }
        let spaces: serde_json::Map<String, Value> =
            links.kept.tablespaces.iter().map(|(oid, place)| (oid.clone(), json!(place))).collect();
        let places: Vec<PathBuf> =
            links.tablespaces.iter().chain(&links.kept.tablespaces).map(|l| l.1.clone()).collect();
        self.record(
            "FirstStage.Empty",
            json!({ "directory": directory.0, "wal": links.kept.wal, "tablespaces": spaces }),
        )?;
        self.job.note("emptying the data directory");
        let (emptied, by, wal, major) = (directory.clone(), owner.clone(), links.kept.wal.clone(), self.facts()?.major);
        let (under_way, stop) = (Emptying::begin(&self.inner.emptying), stop.clone());
        let work = move || {
            let _under_way = under_way;
            emptied.empty(&by, wal.as_deref(), &places, major, &|| !stop.is_cancelled())
        };
        let result = tokio::task::spawn_blocking(work).await;
        let bad = |e: String| Failure::new("the target's data directory could not be emptied").detail(e);
        result.map_err(|e| bad(e.to_string()))?.map_err(|e| bad(e.to_string()))
    }

    async fn watched(
        &self,
        child: Child,
        name: &str,
        record: &str,
        directory: &DataDirectory,
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        let inner = stop.child_token();
        let watch = self.watch(true, Some(directory.0.clone()));
        let work = self.child(child, name, record, &inner);
        tokio::pin!(watch, work);
        let failed = |e: NodeError| with_words(Failure::new("node recovery failed at \"1st stage\""), &e);
        tokio::select! {
            ended = &mut work => ended.map(|_| ()).map_err(failed),
            failure = &mut watch => {
                inner.cancel();
                drop(work.await);
                Err(failure)
            }
        }
    }

    fn streaming_settings(&self) -> Vec<(&'static str, String)> {
        streaming(&self.settings, &self.source, &self.target, &self.tls())
    }

    fn replication_login(&self) -> (&str, &Secret) {
        replication_login(&self.settings)
    }

    fn tls(&self) -> ServerTlsSettings {
        (self.inner.tls)().settings.clone()
    }

    fn with_password(&self, child: Child, password: &Secret) -> Child {
        // In the environment and not among the arguments, which everybody can list.
        if password.is_empty() { child } else { child.env("PGPASSWORD", password.expose()) }
    }
}

/// The settings that make `target` a standby of `source`, which streams from it by the slot `pgmend_<target>`.
pub fn streaming(
    settings: &Settings,
    source: &NodeSpec,
    target: &NodeSpec,
    tls: &ServerTlsSettings,
) -> Vec<(&'static str, String)> {
    let (user, password) = replication_login(settings);
    let mut server = conninfo(source, user, None, &target.application_name, tls);
    if !password.is_empty() {
        server.push_str(&format!(" password={}", conninfo_value(password.expose())));
    }
    vec![
        ("primary_conninfo", server),
        ("primary_slot_name", format!("pgmend_{}", target.id)),
        ("port", target.port.to_string()),
    ]
}

fn replication_login(s: &Settings) -> (&str, &Secret) {
    let same = s.replication_user.is_empty() || s.replication_user == s.user;
    if same && s.replication_password.is_empty() {
        (&s.user, &s.password)
    } else {
        (&s.replication_user, &s.replication_password)
    }
}

/// Counted as long as a directory is being emptied: the thread that does it outlives a recovery that is dropped.
struct Emptying(Arc<AtomicUsize>);

impl Emptying {
    fn begin(count: &Arc<AtomicUsize>) -> Emptying {
        count.fetch_add(1, Ordering::AcqRel);
        Emptying(count.clone())
    }
}

impl Drop for Emptying {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Drops a slot that nobody may use any more. The walsender of a reader that has just ended needs a moment to notice, so
/// it is ended and its end awaited.
pub(super) async fn drop_slot(source: &Sql, slot: &str) -> String {
    let quoted = literal(slot);
    let ours = format!("FROM pg_replication_slots WHERE slot_name = {quoted} AND slot_type = 'physical'");
    for _ in 0..SLOT_TRIES {
        let drop = format!("SELECT pg_drop_replication_slot(slot_name) {ours} AND NOT active");
        match source.rows_within(&drop, SHORT).await {
            Ok(dropped) if !dropped.is_empty() => return format!("replication slot {slot} was dropped"),
            // Between the look and the drop somebody may have begun to read it.
            Ok(_) | Err(SqlError::Server { .. }) => {}
            Err(error) => return format!("replication slot {slot} could not be dropped and holds back log: {error}"),
        }
        match source.value(&format!("SELECT count(*) {ours}"), SHORT).await {
            Ok(Some(count)) if count == "0" => return format!("replication slot {slot} is not there"),
            Ok(_) | Err(_) => {}
        }
        drop_reader(source, &ours).await;
        tokio::time::sleep(SLOT_POLL).await;
    }
    format!("replication slot {slot} is in use and was left; if nobody reads it, it holds back log: drop it")
}

async fn drop_reader(source: &Sql, of_slot: &str) {
    let end = format!("SELECT pg_terminate_backend(active_pid) {of_slot} AND active");
    if let Err(error) = source.rows_within(&end, SHORT).await {
        tracing::debug!(event = "recovery.reader_not_ended", %error);
    }
}

/// A libpq connection string.
fn conninfo(node: &NodeSpec, user: &str, database: Option<&str>, name: &str, tls: &ServerTlsSettings) -> String {
    let mode = match node.sslmode {
        SslMode::Disable => "disable",
        SslMode::Allow => "allow",
        SslMode::Prefer => "prefer",
        SslMode::Require => "require",
        SslMode::VerifyCa => "verify-ca",
        SslMode::VerifyFull => "verify-full",
    };
    let port = node.port.to_string();
    let mut words = vec![("port", port.as_str()), ("user", user), ("application_name", name), ("sslmode", mode)];
    let path = |p: &Option<PathBuf>| p.as_ref().map(|p| p.display().to_string());
    let files = [
        ("sslrootcert", path(&tls.ca_file)),
        ("sslcrl", path(&tls.crl_file)),
        ("sslcert", path(&tls.cert_file)),
        ("sslkey", path(&tls.key_file)),
    ];
    words.extend(files.iter().filter_map(|(key, file)| Some((*key, file.as_deref()?))));
    words.extend(database.map(|d| ("dbname", d)));
    if !node.host.0.is_empty() {
        words.insert(0, ("host", &node.host.0));
    }
    words.iter().map(|(k, v)| format!("{k}={}", conninfo_value(v))).collect::<Vec<_>>().join(" ")
}

fn conninfo_value(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::conninfo_value;

    #[test]
    fn quotes_as_libpq_reads() {
        assert_eq!(conninfo_value(r"a'b\c"), r"'a\'b\\c'");
    }
}
