//! The first stage without a script: `pg_rewind` when that is enough and possible, else `pg_basebackup`.

use super::Settings;
use super::earlier::KeptLinks;
use super::first_stage::CHECKPOINT_LIMIT;
use super::preflight::with_words;
use super::run::{Run, SHORT, stoppable};
use crate::base::Secret;
use crate::cluster::{NodeSpec, SslMode};
use crate::net::ServerTlsSettings;
use crate::node::{self, Child, Data, NodeError, Owner};
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
        let data = self.data()?.clone();
        if let Data::Here { directory, .. } = &data {
            Owner::of(&directory.0).map_err(|e| Failure::new("the target's data directory").detail(e.to_string()))?;
        }
        let links = stoppable(self.plan_links(&data, stop), stop).await?;
        stoppable(self.make_slot(), stop).await?;
        let rewound = self.facts()?.rewind && self.rewind(&data, stop).await?;
        if !rewound {
            self.copy(&data, &links, stop).await?;
        }
        self.record("FirstStage.Configure", json!({ "directory": data.path() }))?;
        data.set_streaming(&self.streaming_settings())
            .await
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

    async fn plan_links(&self, data: &Data, stop: &CancellationToken) -> Result<Links, Failure> {
        let source = self.connect_source().await?;
        let ask = "SELECT oid::text, spcname, pg_tablespace_location(oid) FROM pg_tablespace \
                   WHERE pg_tablespace_location(oid) <> ''";
        let rows = source.rows_within(ask, SHORT).await;
        let rows = rows.map_err(|e| Failure::new("the source's tablespaces are not known").detail(e.to_string()))?;
        let kept = self.links_of(data);
        self.target_is_apart(kept.wal.as_slice(), self.facts()?)?;
        let mut tablespaces = Vec::new();
        for row in rows {
            let [oid, name, place] =
                super::preflight::fields(vec![row]).ok_or_else(|| Failure::new("odd tablespace"))?;
            let ours = kept.tablespaces.iter().find(|(o, _)| *o == oid);
            let wanted = ours.map_or_else(|| PathBuf::from(&place), |(_, p)| p.clone());
            self.tablespace_has_room(data, &name, (&place, &wanted), stop).await?;
            tablespaces.push((place, wanted));
        }
        Ok(Links { kept, tablespaces })
    }

    /// The links that the directory has, and those that it had when an earlier recovery emptied it.
    fn links_of(&self, data: &Data) -> KeptLinks {
        let mut links = self.earlier().links(data.path());
        links.wal = data.wal_link().or(links.wal);
        let now = data.tablespaces();
        links.tablespaces.retain(|(oid, _)| now.iter().all(|(o, _)| o != oid));
        links.tablespaces.extend(now);
        links
    }

    /// What pg_basebackup would refuse is refused before anything is removed: a place in use, or with other files.
    async fn tablespace_has_room(
        &self,
        data: &Data,
        name: &str,
        (place, wanted): (&str, &Path),
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        let major = self.facts()?.major;
        let (is_the_sources, foreign) = match data {
            Data::Here { .. } => room_here(place, wanted, major),
            Data::There { remote, .. } => {
                let room = remote.room(wanted, place, major, stop).await;
                let room =
                    room.map_err(|e| Failure::new("the tablespaces' places are not known").detail(e.to_string()))?;
                (room.is_the_sources, room.foreign)
            }
        };
        if is_the_sources && self.beside_source(self.facts()?) {
            return Err(Failure::new(format!("tablespace {name} at {place} is in use by the source on this machine"))
                .hint("make a link with its oid in the target's pg_tblspc to another place, or use a script"));
        }
        match foreign {
            Some(entry) => {
                Err(Failure::new(format!("{} holds other files than tablespace {name}", wanted.display()))
                    .detail(entry))
            }
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
    async fn rewind(&self, data: &Data, stop: &CancellationToken) -> Result<bool, Failure> {
        let server =
            conninfo(&self.source, &self.settings.user, Some(&self.settings.database), &self.our_name(), &self.tls());
        // A source that was promoted a moment ago has its old timeline in its control file until its next checkpoint, and
        // pg_rewind would find nothing to do (before PostgreSQL 16).
        stoppable(self.checkpoint("1st stage", CHECKPOINT_LIMIT), stop).await?;
        let mut arguments: Vec<OsString> = vec!["-D".into(), data.path().into()];
        arguments.extend(["--source-server".into(), server.into(), "--progress".into()]);
        // Its own crash recovery of an uncleanly stopped server refuses to run in standby mode.
        let armed = data.is_armed();
        data.disarm(SHORT).await.map_err(|e| Failure::new("the target").detail(e.to_string()))?;
        let child = self.program_of(data, "pg_rewind", arguments, &self.settings.password)?;
        let rewound = self.watched(child, "pg_rewind", "FirstStage.Rewind", data, stop).await;
        if armed {
            // Whoever starts it meanwhile gets a standby.
            drop(data.arm().await);
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

    /// One of PostgreSQL's programs, where the data are. The password is in its environment and not among the arguments, which
    /// everybody can list.
    fn program_of(
        &self,
        data: &Data,
        name: &str,
        arguments: Vec<OsString>,
        password: &Secret,
    ) -> Result<Child, Failure> {
        let secret = [("PGPASSWORD", password.expose())];
        let secrets = if password.is_empty() { &secret[..0] } else { &secret[..] };
        let child = data.program(name, arguments, self.facts()?.major, secrets);
        child.map_err(|e| Failure::new("the target").detail(e.to_string()))
    }

    async fn copy(&self, data: &Data, links: &Links, stop: &CancellationToken) -> Result<(), Failure> {
        let (user, password) = self.replication_login();
        let server = conninfo(&self.source, user, None, &self.our_name(), &self.tls());
        let mut arguments: Vec<OsString> = vec!["-D".into(), data.path().into()];
        arguments.extend(["-d".into(), server.into()]);
        arguments.extend(["-X", "stream", "-c", "fast", "-w", "-S", &self.slot_name()].map(OsString::from));
        if let Some(wal) = &links.kept.wal {
            arguments.extend(["--waldir".into(), wal.clone().into_os_string()]);
        }
        for (old, new) in &links.tablespaces {
            let escaped = |p: &str| p.replace('=', "\\=");
            let mapping = format!("{}={}", escaped(old), escaped(&new.display().to_string()));
            arguments.extend(["-T".into(), mapping.into()]);
        }
        self.has_room(data, stop).await?;
        self.empty(data, links, stop).await?;
        let child = self.program_of(data, "pg_basebackup", arguments, password)?;
        self.watched(child, "pg_basebackup", "FirstStage.Copy", data, stop).await
    }

    /// Empties the target's directory, the places of its links too; the links are journalled, for they go with the rest.
    async fn empty(&self, data: &Data, links: &Links, stop: &CancellationToken) -> Result<(), Failure> {
        let spaces: serde_json::Map<String, Value> =
            links.kept.tablespaces.iter().map(|(oid, place)| (oid.clone(), json!(place))).collect();
        let places: Vec<PathBuf> =
            links.tablespaces.iter().chain(&links.kept.tablespaces).map(|l| l.1.clone()).collect();
        if let Data::Here { directory, .. } = data
            && let Some(pid) = node::running_pid(&directory.0)
        {
            return Err(Failure::new(format!("the PostgreSQL of node {} was started meanwhile", self.target.id))
                .detail(format!("process {pid} runs on {}", directory.0.display())));
        }
        self.record(
            "FirstStage.Empty",
            json!({ "directory": data.path(), "wal": links.kept.wal, "tablespaces": spaces }),
        )?;
        self.job.note("emptying the data directory");
        let (wal, major) = (links.kept.wal.clone(), self.facts()?.major);
        let bad = |e: &NodeError| with_words(Failure::new("the target's data directory could not be emptied"), e);
        let directory = match data {
            Data::Here { directory, .. } => directory.clone(),
            Data::There { remote, .. } => {
                let child = remote.emptying(wal.as_deref(), &places, major);
                let emptied = self.child(child, "emptying", "FirstStage.Emptying", stop).await;
                return emptied.map(drop).map_err(|e| bad(&e));
            }
        };
        let by = Owner::of(&directory.0).map_err(|e| bad(&e))?;
        let (under_way, stop) = (Emptying::begin(&self.inner.emptying), stop.clone());
        let work = move || {
            let _under_way = under_way;
            directory.empty(&by, wal.as_deref(), &places, major, &|| !stop.is_cancelled())
        };
        let result = tokio::task::spawn_blocking(work).await;
        let result = result
            .map_err(|e| Failure::new("the target's data directory could not be emptied").detail(e.to_string()))?;
        result.map_err(|e| bad(&e))
    }

    async fn watched(
        &self,
        child: Child,
        name: &str,
        record: &str,
        data: &Data,
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        let inner = stop.child_token();
        let directory = match data {
            Data::Here { directory, .. } => Some(directory.0.clone()),
            // The source tells how much of a copy has gone; to walk a directory elsewhere would cost more than it tells.
            Data::There { .. } => None,
        };
        let watch = self.watch(true, directory);
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
}

/// Whether a place is the source's own, and an entry of it that is not of this version: `empty` removes what is of this version
/// only.
fn room_here(place: &str, wanted: &Path, major: u32) -> (bool, Option<String>) {
    let real = |p: &Path| p.canonicalize().unwrap_or_else(|_| p.to_owned());
    let ours = format!("PG_{major}_");
    let names = std::fs::read_dir(wanted).into_iter().flatten().flatten().map(|e| e.file_name());
    let mut foreign = names.map(|name| name.to_string_lossy().into_owned()).filter(|name| !name.starts_with(&ours));
    (real(wanted) == real(Path::new(place)), foreign.next())
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
