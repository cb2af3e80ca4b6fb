//! The journal of one job: JSON lines, each durable before the effect that it announces.

use super::{StoreError, files};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A job has about ten stages with a few effects each; more than this is an error in the program.
const MAX_RECORDS: usize = 1000;
/// Finished journals that are kept.
const KEEP: usize = 20;
/// Test hook: the daemon aborts right after the journal record of this name is durable, as if killed with `-9` there; or, as
/// `kind#N`, after the N-th record of a job of that kind.
const CRASH_VARIABLE: &str = "PGMEND_CRASH_AFTER_RECORD";

/// Test hook: the daemon waits right after the journal record of this name is durable, until the file that follows the `=`
/// is gone, at most [`MAX_WAIT`]: so that something can be done to a server between two steps.
const WAIT_VARIABLE: &str = "PGMEND_WAIT_AFTER_RECORD";
/// Bound on that.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Unix seconds.
    pub at_s: u64,
    /// A stage (`FirstStage`) or an effect in it (`FirstStage.Copy`).
    pub name: String,
    /// What clean-up after a crash needs to know.
    #[serde(default)]
    pub data: serde_json::Value,
}

/// True for the record that ends a journal.
pub fn is_last_record(name: &str) -> bool {
    matches!(name, "Done" | "Aborted" | "Interrupted")
}

/// A journal as read back.
#[derive(Clone, Debug, PartialEq)]
pub struct JournalFile {
    /// The job's number.
    pub job: u64,
    /// Its records, oldest first; a torn last line is left out.
    pub records: Vec<Record>,
}

impl JournalFile {
    /// True when the job ended in an orderly way or was cleaned up.
    pub fn is_finished(&self) -> bool {
        self.records.iter().any(|r| is_last_record(&r.name))
    }
    /// The newest record of this name.
    pub fn last(&self, name: &str) -> Option<&Record> {
        self.records.iter().rev().find(|r| r.name == name)
    }
}

/// A journal being written.
#[derive(Debug)]
pub struct Journal {
    job: u64,
    /// Of the job; empty until its first record tells.
    kind: String,
    path: PathBuf,
    file: File,
    records: usize,
}

impl Journal {
    pub(super) fn create(directory: &Path, job: u64) -> Result<Journal, StoreError> {
        let path = path(directory, job);
        let mut options = OpenOptions::new();
        let file = options.append(true).create_new(true).mode(0o600).open(&path).map_err(StoreError::io(&path))?;
        files::sync_directory(directory)?;
        Ok(Journal { job, kind: String::new(), path, file, records: 0 })
    }

    pub(super) fn reopen(directory: &Path, job: u64) -> Result<Journal, StoreError> {
        let path = path(directory, job);
        let text = files::read(&path)?.unwrap_or_default();
        let mut file = OpenOptions::new().append(true).open(&path).map_err(StoreError::io(&path))?;
        if !text.is_empty() && !text.ends_with('\n') {
            // The torn line becomes a line of its own, which reading skips.
            file.write_all(b"\n").map_err(StoreError::io(&path))?;
        }
        let first: Option<Record> = text.lines().next().and_then(|line| serde_json::from_str(line).ok());
        let kind = first.and_then(|record| kind_of(&record.data)).unwrap_or_default();
        Ok(Journal { job, kind, path, file, records: text.lines().count() })
    }

    /// The job's number.
    pub fn job(&self) -> u64 {
        self.job
    }

    /// Adds a record and returns once it is durable. Blocks for an fsync. The records that end a journal always fit.
    pub fn append(&mut self, name: &str, data: serde_json::Value) -> Result<(), StoreError> {
        if self.records >= MAX_RECORDS && !is_last_record(name) {
            return Err(StoreError::JournalFull { job: self.job, limit: MAX_RECORDS });
        }
        if self.records == 0 {
            self.kind = kind_of(&data).unwrap_or_default();
        }
        let at_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let record = Record { at_s, name: name.to_owned(), data };
        let mut line = serde_json::to_string(&record)
            .map_err(|e| StoreError::Damaged { path: self.path.clone(), why: e.to_string() })?;
        line.push('\n');
        self.file
            .write_all(line.as_bytes())
            .and_then(|()| self.file.sync_data())
            .map_err(StoreError::io(&self.path))?;
        self.records += 1;
        if std::env::var(CRASH_VARIABLE).is_ok_and(|wanted| is_here(&wanted, name, &self.kind, self.records)) {
            std::process::abort();
        }
        wait_after(name);
        Ok(())
    }
}

/// Of a job, in its first record.
fn kind_of(data: &serde_json::Value) -> Option<String> {
    data.get("kind")?.as_str().map(str::to_owned)
}

/// Whether a test meant this record: `name`, or `kind#number`.
fn is_here(wanted: &str, name: &str, kind: &str, number: usize) -> bool {
    match wanted.split_once('#') {
        Some((of, at)) => of == kind && at.parse() == Ok(number),
        None => wanted == name,
    }
}

fn wait_after(name: &str) {
    let Some(wish) = std::env::var_os(WAIT_VARIABLE) else { return };
    let Some((wanted, file)) = wish.to_str().and_then(|w| w.split_once('=')) else { return };
    let began = Instant::now();
    while wanted == name && Path::new(file).exists() && began.elapsed() < MAX_WAIT {
        // Only in tests, on a thread of the control plane.
        #[allow(clippy::disallowed_methods)]
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn path(directory: &Path, job: u64) -> PathBuf {
    directory.join(format!("journal-{job}.jsonl"))
}

/// The numbers of the journals in the folder, ascending.
pub(super) fn numbers(directory: &Path) -> Result<Vec<u64>, StoreError> {
    let entries = std::fs::read_dir(directory).map_err(StoreError::io(directory))?;
    let mut numbers: Vec<u64> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            name.to_str()?.strip_prefix("journal-")?.strip_suffix(".jsonl")?.parse().ok()
        })
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Reads all of them. A line that is not whole is skipped: only a crash in the middle of writing leaves one.
pub(super) fn read_all(directory: &Path) -> Result<Vec<JournalFile>, StoreError> {
    let read = |job| {
        let text = files::read(&path(directory, job))?.unwrap_or_default();
        let records = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        Ok(JournalFile { job, records })
    };
    numbers(directory)?.into_iter().map(read).collect()
}

/// Removes finished journals beyond the newest ones; open ones stay until they are cleaned up.
pub(super) fn prune(directory: &Path) -> Result<(), StoreError> {
    let finished: Vec<u64> = read_all(directory)?.iter().filter(|j| j.is_finished()).map(|j| j.job).collect();
    for job in finished.iter().rev().skip(KEEP) {
        let path = path(directory, *job);
        std::fs::remove_file(&path).map_err(StoreError::io(&path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_torn_last_line_is_tolerated() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(dir.path(), 3).unwrap();
        journal.append("Requested", json!({"node": 1})).unwrap();
        journal.file.write_all(b"{\"at_s\":1,\"na").unwrap();
        let read = read_all(dir.path()).unwrap();
        assert_eq!(read[0].records.len(), 1);
        assert!(!read[0].is_finished());
        Journal::reopen(dir.path(), 3).unwrap().append("Interrupted", json!({})).unwrap();
        let read = read_all(dir.path()).unwrap();
        assert_eq!(read[0].records.len(), 2);
        assert!(read[0].is_finished());
        assert_eq!(read[0].last("Requested").unwrap().data, json!({"node": 1}));
    }

    #[test]
    fn a_test_names_a_record_by_name_or_by_number() {
        assert!(is_here("Stop", "Stop", "switchover", 7));
        assert!(!is_here("Stop", "Verify", "switchover", 7));
        assert!(is_here("switchover#7", "Stop", "switchover", 7));
        assert!(!is_here("switchover#7", "Stop", "switchover", 8));
        assert!(!is_here("switchover#7", "Stop", "failover", 7));
        let dir = tempfile::tempdir().unwrap();
        Journal::create(dir.path(), 1).unwrap().append("Requested", json!({ "kind": "failover" })).unwrap();
        assert_eq!(Journal::reopen(dir.path(), 1).unwrap().kind, "failover");
    }

    #[test]
    fn a_journal_is_bounded_but_always_ends() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(dir.path(), 1).unwrap();
        journal.records = MAX_RECORDS;
        assert!(journal.append("FirstStage", json!({})).is_err());
        journal.append("Aborted", json!({})).unwrap();
    }
}
