//! A data directory of this machine: what is in it, emptying it with its links kept, the settings of a streaming standby.

use super::{ControlData, Lines, NodeError, Owner, Programs, process};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Entries looked at when the size is measured, so that a huge directory costs bounded time.
const MAX_ENTRIES: usize = 200_000;

/// A sum over all files below these places, and whether they all were seen. What vanishes meanwhile counts for nothing.
fn sum(mut todo: Vec<PathBuf>, bytes: fn(&std::fs::Metadata) -> u64) -> (u64, bool) {
    let (mut total, mut seen) = (0_u64, 0_usize);
    while let Some(directory) = todo.pop() {
        let Ok(entries) = std::fs::read_dir(directory) else { continue };
        for entry in entries.flatten() {
            seen += 1;
            if seen > MAX_ENTRIES {
                return (total, false);
            }
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => todo.push(entry.path()),
                Ok(meta) => total = total.saturating_add(bytes(&meta)),
                Err(_) => {}
            }
        }
    }
    (total, true)
}

/// A data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDirectory(pub PathBuf);

impl DataDirectory {
    /// Absent or without entries.
    pub fn is_empty(&self) -> bool {
        std::fs::read_dir(&self.0).map_or(true, |mut entries| entries.next().is_none())
    }

    /// True when there is a control file: it is, or was, a PostgreSQL server.
    pub fn has_control_file(&self) -> bool {
        self.0.join("global/pg_control").is_file()
    }

    /// What `pg_controldata` says.
    pub async fn control_data(&self, programs: &Programs, stop: &CancellationToken) -> Result<ControlData, NodeError> {
        let program = programs.path("pg_controldata");
        let owner = Owner::of(&self.0)?;
        let text = Arc::new(std::sync::Mutex::new(String::new()));
        let to = text.clone();
        let lines: Lines = Arc::new(move |line| {
            let mut text = to.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            text.push_str(line);
            text.push('\n');
        });
        let command = [program.as_os_str(), "-D".as_ref(), self.0.as_os_str()];
        let child = process::Child::new(command, Some(owner)).env("LC_ALL", "C");
        process::run(child, lines, |_| (), stop).await?.success("pg_controldata")?;
        let text = text.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        ControlData::parse(&text).ok_or_else(|| NodeError::Failed {
            program: "pg_controldata".into(),
            how: "printed something unexpected".into(),
            words: text.clone(),
        })
    }

    /// Where `pg_wal` leads when it is a link.
    pub fn wal_link(&self) -> Option<PathBuf> {
        // A relative link is meant from where it lies.
        std::fs::read_link(self.0.join("pg_wal")).ok().map(|place| self.0.join(place))
    }

    /// The tablespaces' links: oid and place.
    pub fn tablespaces(&self) -> Vec<(String, PathBuf)> {
        let Ok(entries) = std::fs::read_dir(self.0.join("pg_tblspc")) else { return Vec::new() };
        let link = |entry: std::io::Result<std::fs::DirEntry>| {
            let entry = entry.ok()?;
            let place = std::fs::read_link(entry.path()).ok()?;
            Some((entry.file_name().to_str()?.to_owned(), self.0.join("pg_tblspc").join(place)))
        };
        entries.filter_map(link).collect()
    }

    /// Where its files are: itself, and what `pg_wal` and the tablespaces' links lead to, of a tablespace the directories of
    /// servers (`PG_*`). Links are resolved.
    pub fn places(&self) -> Vec<PathBuf> {
        let spaces = self.tablespaces().into_iter().flat_map(|(_, place)| server_directories(&place));
        std::iter::once(self.0.clone()).chain(self.wal_link()).chain(spaces).filter_map(|p| resolve(&p)).collect()
    }

    /// Processes that have a file in it open: nothing may write while it is rebuilt. (pid, name.) Other users' processes
    /// are seen by root only.
    pub fn users(&self) -> Vec<(u32, String)> {
        let places = self.places();
        let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
        let mut found = Vec::new();
        for process in processes.flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
            let Ok(open) = std::fs::read_dir(process.path().join("fd")) else { continue };
            let uses = open.flatten().any(|fd| {
                std::fs::read_link(fd.path()).is_ok_and(|file| places.iter().any(|place| file.starts_with(place)))
            });
            if uses && pid != std::process::id() {
                let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                found.push((pid, name.trim().to_owned()));
            }
        }
        found
    }

    /// Bytes in it and where its links lead, roughly: whether a copy that tells nothing goes on.
    pub fn size_bytes(&self) -> u64 {
        sum(self.places(), std::fs::Metadata::len).0
    }

    /// Bytes that come free in its own file system when it is emptied: links are not followed. `None`: it has too many files.
    pub fn taken_bytes(&self) -> Option<u64> {
        let (bytes, all) = sum(vec![self.0.clone()], |file| file.blocks().saturating_mul(512));
        all.then_some(bytes)
    }

    /// Removes everything in it and in `wal`; of the tablespaces at `spaces` what servers of this major version have there.
    /// The directories stay (they may be mount points). Makes it, owned by `owner`, when it is absent.
    /// Asks `go_on` before each entry, and fails when it may not.
    pub fn empty(
        &self,
        owner: &Owner,
        wal: Option<&Path>,
        spaces: &[PathBuf],
        major: u32,
        go_on: &dyn Fn() -> bool,
    ) -> Result<(), NodeError> {
        let ours = format!("PG_{major}_");
        for place in spaces {
            remove_entries(place, go_on, |name| name.starts_with(&ours))?;
        }
        if let Some(place) = wal {
            remove_entries(place, go_on, |_| true)?;
        }
        if self.0.exists() {
            // Databases one by one, so that a big directory can be left in its middle.
            let databases = self.0.join("base");
            if std::fs::symlink_metadata(&databases).is_ok_and(|m| m.is_dir()) {
                remove_entries(&databases, go_on, |_| true)?;
            }
            remove_entries(&self.0, go_on, |_| true)?;
        } else {
            std::fs::create_dir_all(&self.0).map_err(NodeError::file(&self.0))?;
            chown_if_root(&self.0, owner)?;
        }
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&self.0, std::fs::Permissions::from_mode(0o700)).map_err(NodeError::file(&self.0))
    }
}

/// What servers have in a tablespace: `PG_15_202209061` and the like.
fn server_directories(tablespace: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(tablespace).into_iter().flatten().flatten();
    entries.filter(|e| e.file_name().to_string_lossy().starts_with("PG_")).map(|e| e.path()).collect()
}

/// A path with its links resolved, also when its end does not exist yet.
fn resolve(path: &Path) -> Option<PathBuf> {
    let existing = path.ancestors().find(|p| p.exists())?;
    let rest = path.strip_prefix(existing).ok()?;
    // Joining an empty rest would add a slash.
    let real = existing.canonicalize().ok()?;
    Some(if rest.as_os_str().is_empty() { real } else { real.join(rest) })
}

fn remove_entries(directory: &Path, go_on: &dyn Fn() -> bool, wanted: impl Fn(&str) -> bool) -> Result<(), NodeError> {
    let entries = match std::fs::read_dir(directory) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(NodeError::file(directory))?,
    };
    for entry in entries {
        let entry = entry.map_err(NodeError::file(directory))?;
        if !wanted(&entry.file_name().to_string_lossy()) {
            continue;
        }
        if !go_on() {
            return Err(NodeError::Stopped("emptying the data directory".to_owned()));
        }
        let path = entry.path();
        // A link is removed, never followed.
        let kind = entry.file_type().map_err(NodeError::file(&path))?;
        let removed = if kind.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.map_err(NodeError::file(&path))?;
    }
    Ok(())
}

fn chown_if_root(path: &Path, owner: &Owner) -> Result<(), NodeError> {
    if nix::unistd::geteuid().is_root() {
        chown(path, Some(owner.uid), Some(owner.gid)).map_err(NodeError::file(path))?;
    }
    Ok(())
}

/// Makes a copied directory a standby: `standby.signal`, and these settings in `postgresql.auto.conf` in place of any
/// that the source had there.
pub fn set_streaming(directory: &Path, owner: &Owner, settings: &[(&str, String)]) -> Result<(), NodeError> {
    let path = directory.join("postgresql.auto.conf");
    let old = match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        other => other.map_err(NodeError::file(&path))?,
    };
    write_owned(&path, &merge(&old, settings), owner)?;
    let recovery = directory.join("recovery.signal");
    if recovery.exists() {
        std::fs::remove_file(&recovery).map_err(NodeError::file(&recovery))?;
    }
    write_owned(&directory.join("standby.signal"), "", owner)?;
    std::fs::File::open(directory).and_then(|d| d.sync_all()).map_err(NodeError::file(directory))
}

/// Whoever starts the server from now on gets a standby, which writes nothing: `standby.signal`, durable.
pub fn arm_standby(directory: &Path, owner: &Owner) -> Result<(), NodeError> {
    write_owned(&directory.join("standby.signal"), "", owner)?;
    std::fs::File::open(directory).and_then(|d| d.sync_all()).map_err(NodeError::file(directory))
}

/// Takes that back.
pub fn disarm_standby(directory: &Path) -> Result<(), NodeError> {
    let path = directory.join("standby.signal");
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(NodeError::file(&path))?,
    }
    std::fs::File::open(directory).and_then(|d| d.sync_all()).map_err(NodeError::file(directory))
}

fn write_owned(path: &Path, text: &str, owner: &Owner) -> Result<(), NodeError> {
    use std::io::Write;
    let mut options = std::fs::OpenOptions::new();
    // O_NOFOLLOW through custom_flags is not needed: we have just copied this directory and its owner is the writer.
    let mut file =
        options.write(true).create(true).truncate(true).mode(0o600).open(path).map_err(NodeError::file(path))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(NodeError::file(path))?;
    chown_if_root(path, owner)
}

pub(super) fn merge(old: &str, settings: &[(&str, String)]) -> String {
    let replaced = |line: &str| {
        let key: String = line.trim_start().chars().take_while(|c| c.is_alphanumeric() || "_.".contains(*c)).collect();
        let key = key.to_ascii_lowercase();
        settings.iter().any(|(name, _)| *name == key) || key.starts_with("recovery_target")
    };
    let mut text: String = old.lines().filter(|line| !replaced(line)).map(|line| format!("{line}\n")).collect();
    for (name, value) in settings {
        // Quotes are doubled and backslashes escaped, as ALTER SYSTEM and GUC's reader have it.
        text.push_str(&format!("{name} = '{}'\n", value.replace('\\', "\\\\").replace('\'', "''")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_replace_those_of_the_source() {
        let old = "# Do not edit\nprimary_conninfo = 'x'\nwork_mem = '4MB'\nrecovery_target_time = 'y'\nPORT=1\n";
        let new = merge(old, &[("primary_conninfo", "host='a b'".into()), ("port", "5433".into())]);
        assert_eq!(new, "# Do not edit\nwork_mem = '4MB'\nprimary_conninfo = 'host=''a b'''\nport = '5433'\n");
    }

    #[test]
    fn emptying_keeps_links_targets_and_other_files_of_a_tablespace() {
        let dir = tempfile::tempdir().unwrap();
        let (data, wal, space) = (dir.path().join("data"), dir.path().join("wal"), dir.path().join("space"));
        for d in [&data.join("pg_tblspc"), &wal, &space.join("PG_15_1"), &space.join("PG_14_1"), &data.join("base/1")] {
            std::fs::create_dir_all(d).unwrap();
        }
        for f in [wal.join("000"), space.join("PG_15_1/x"), space.join("other"), data.join("PG_VERSION")] {
            std::fs::write(f, "x").unwrap();
        }
        std::os::unix::fs::symlink(&wal, data.join("pg_wal")).unwrap();
        std::os::unix::fs::symlink(&space, data.join("pg_tblspc/16400")).unwrap();
        let directory = DataDirectory(data);
        assert_eq!(directory.wal_link(), Some(wal.clone()));
        assert_eq!(directory.tablespaces(), vec![("16400".to_owned(), space.clone())]);
        let owner = Owner { uid: 0, gid: 0, name: "root".into(), home: "/".into() };
        let stopped = directory.empty(&owner, Some(&wal), &[], 15, &|| false);
        assert!(matches!(stopped, Err(NodeError::Stopped(_))) && wal.join("000").exists());
        directory.empty(&owner, Some(&wal), std::slice::from_ref(&space), 15, &|| true).unwrap();
        assert!(directory.is_empty() && wal.exists() && space.join("other").exists());
        assert!(space.join("PG_14_1").exists(), "another version's server may live there");
        assert!(!wal.join("000").exists() && !space.join("PG_15_1").exists());
    }
}
