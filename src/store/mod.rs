//! What must survive: node states, generation, epoch, journals of jobs, and the lock that keeps a second daemon out. A folder of files today.
//!
//! Nothing else may assume that it is alone on the cluster: a store shared by several daemons goes behind the same names.
//! Read `states` (nodes, generation, epoch), `pgpool_status` (Pgpool-II's file of the same), `journal`, `lock`, `login_key`,
//! `upkeep` (what planned work must not forget).

mod files;
mod journal;
mod lock;
mod login_key;
mod pgpool_status;
mod settings;
mod states;
mod upkeep;

pub use journal::{Journal, JournalFile, Record, is_last_record};
pub use settings::Settings;
pub use states::{Saved, SavedNode};
pub use upkeep::{NodeUpkeep, RollingKept, SyncKept, Upkeep};

use crate::cluster::Epoch;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What went wrong with the folder.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another daemon works on this folder.
    #[error("another pgmend, process {pid}, already uses the state directory {}", directory.display())]
    Locked {
        /// The folder.
        directory: PathBuf,
        /// Its process id as it wrote it, or `unknown`.
        pid: String,
    },
    /// The system refused.
    #[error("{}: {source}{}", path.display(), advice(source))]
    Io {
        /// Which file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// The content is not ours or damaged; it is never thrown away silently.
    #[error("{}: {why}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// What was in force at the end could not be saved, so the file must not be believed as if it were.
    #[error("{}: its last change could not be saved, so the next start compares the nodes", directory.display())]
    Behind {
        /// The folder.
        directory: PathBuf,
    },
    /// A journal has reached its bound.
    #[error("the journal of job {job} is full ({limit} records)")]
    JournalFull {
        /// Which job.
        job: u64,
        /// The bound.
        limit: usize,
    },
}

/// What to do about an error that is of this user's making.
fn advice(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::PermissionDenied => {
            "; the state directory must belong to the user who runs pgmend: name another one (directory in [state]) or run it as that user"
        }
        _ => "",
    }
}

impl StoreError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> StoreError + '_ {
        move |source| StoreError::Io { path: path.to_owned(), source }
    }
}

/// A handle on the folder; clones share it. The lock is held until the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: PathBuf,
    pgpool_status: bool,
    saved: Mutex<Saved>,
    /// The last save has failed: the file is older than what is in force.
    behind: AtomicBool,
    upkeep: Mutex<Upkeep>,
    lock: lock::Lock,
}

impl Store {
    /// Makes the folder when it is absent, locks it and reads the states. Fails when another daemon has it.
    pub fn open(settings: &Settings) -> Result<Store, StoreError> {
        files::make_directory(&settings.directory)?;
        Store::with(settings, lock::Lock::take(&settings.directory)?)
    }

    /// The folder of the process before us, which hands its lock over and writes no more.
    pub fn take_over(settings: &Settings, lock: OwnedFd) -> Result<Store, StoreError> {
        Store::with(settings, lock::Lock::inherit(lock, &settings.directory)?)
    }

    fn with(settings: &Settings, lock: lock::Lock) -> Result<Store, StoreError> {
        let directory = settings.directory.clone();
        let saved = if settings.discard_status {
            // The generation still only grows, and the epoch still fences; only the states are forgotten.
            Saved { nodes: Vec::new(), ..states::read(&directory, false)? }
        } else {
            states::read(&directory, settings.pgpool_status)?
        };
        let pgpool_status = settings.pgpool_status;
        let upkeep = Mutex::new(upkeep::read(&directory)?);
        let (saved, behind) = (Mutex::new(saved), AtomicBool::new(false));
        Ok(Store(Arc::new(Inner { directory, pgpool_status, saved, behind, upkeep, lock })))
    }

    /// The lock, for who takes over.
    pub fn share_lock(&self) -> std::io::Result<OwnedFd> {
        self.0.lock.share()
    }

    /// The lock is another process's now; nothing may be saved any more.
    pub fn leave_lock(&self) {
        self.0.lock.leave();
    }

    /// The folder, for log files of started nodes.
    pub fn directory(&self) -> &Path {
        &self.0.directory
    }

    /// The states as last saved, by node id; empty when there are none (then every node is *waiting*).
    pub fn saved_states(&self) -> Vec<SavedNode> {
        self.saved().nodes.clone()
    }

    /// The last generation that was saved; 0 at the very first start.
    pub fn generation(&self) -> u64 {
        self.saved().generation
    }

    /// The epoch that was last in force.
    pub fn epoch(&self) -> Option<Epoch> {
        self.saved().epoch.clone()
    }

    /// All three at once.
    pub fn all(&self) -> Saved {
        self.saved().clone()
    }

    /// Saves everything durably in one step. Does nothing when nothing changed. Blocks for an fsync.
    pub fn save(&self, next: Saved) -> Result<(), StoreError> {
        let outcome = self.replace(&mut self.saved(), next);
        self.0.behind.store(outcome.is_err(), Ordering::Release);
        outcome
    }

    fn replace(&self, now: &mut Saved, next: Saved) -> Result<(), StoreError> {
        if *now == next {
            return Ok(());
        }
        states::write(&self.0.directory, &next)?;
        if self.0.pgpool_status && now.nodes != next.nodes {
            pgpool_status::write(&self.0.directory, &next.nodes)?;
        }
        *now = next;
        Ok(())
    }

    /// Saves the states of the nodes, by node id.
    pub fn save_states(&self, nodes: Vec<SavedNode>) -> Result<(), StoreError> {
        self.save(Saved { nodes, ..self.all() })
    }

    /// Saves the generation; it never goes back.
    pub fn save_generation(&self, generation: u64) -> Result<(), StoreError> {
        let all = self.all();
        self.save(Saved { generation: generation.max(all.generation), ..all })
    }

    /// Saves the epoch.
    pub fn save_epoch(&self, epoch: Option<Epoch>) -> Result<(), StoreError> {
        self.save(Saved { epoch, ..self.all() })
    }

    /// Says that the daemon ends orderly, so that the next one need not doubt that the nodes are equal. Not where the file is
    /// older than what was in force: a node that was out would be one of the equals again.
    pub fn save_clean(&self) -> Result<(), StoreError> {
        if self.0.behind.load(Ordering::Acquire) {
            return Err(StoreError::Behind { directory: self.0.directory.clone() });
        }
        let mut now = self.saved();
        let next = Saved { clean: true, ..now.clone() };
        self.replace(&mut now, next)
    }

    /// Takes that back. To be done before a client is served: after a crash nobody else would.
    pub fn take_clean_back(&self) -> Result<(), StoreError> {
        let mut now = self.saved();
        let next = Saved { clean: false, ..now.clone() };
        self.replace(&mut now, next)
    }

    /// What planned work must not forget.
    pub fn upkeep(&self) -> Upkeep {
        self.0.upkeep.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes it durably. Blocks for an fsync, unless nothing changes.
    pub fn change_upkeep(&self, change: impl FnOnce(&mut Upkeep)) -> Result<(), StoreError> {
        let mut now = self.0.upkeep.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = now.clone();
        change(&mut next);
        if *now != next {
            upkeep::write(&self.0.directory, &next)?;
            *now = next;
        }
        Ok(())
    }

    /// A random key of this installation, made at the very first start. From it the data plane makes what unknown users
    /// look like, which therefore stays the same over restarts.
    pub fn login_key(&self) -> Result<[u8; 32], StoreError> {
        login_key::read_or_make(&self.0.directory)
    }

    /// The same key, for who has no lock yet.
    pub fn login_key_of(settings: &Settings) -> Result<[u8; 32], StoreError> {
        login_key::read_or_make(&settings.directory)
    }

    /// A new journal for this job. It must not exist yet. Old finished journals beyond the last 20 go.
    pub fn journal(&self, job: u64) -> Result<Journal, StoreError> {
        journal::prune(&self.0.directory)?;
        Journal::create(&self.0.directory, job)
    }

    /// Opens an existing journal to add to it, as clean-up after a crash does.
    pub fn reopen_journal(&self, job: u64) -> Result<Journal, StoreError> {
        Journal::reopen(&self.0.directory, job)
    }

    /// Every journal that is kept, oldest first.
    pub fn journals(&self) -> Result<Vec<JournalFile>, StoreError> {
        journal::read_all(&self.0.directory)
    }

    /// Journals without a last record: their jobs were under way when a daemon died.
    pub fn open_journals(&self) -> Result<Vec<JournalFile>, StoreError> {
        Ok(self.journals()?.into_iter().filter(|j| !j.is_finished()).collect())
    }

    /// The number for the next job: one above every journal that is kept (the newest are never pruned).
    pub fn next_job(&self) -> Result<u64, StoreError> {
        Ok(journal::numbers(&self.0.directory)?.last().map_or(1, |n| n.saturating_add(1)))
    }

    fn saved(&self) -> MutexGuard<'_, Saved> {
        self.0.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::NodeStatus;

    fn settings(directory: &Path) -> Settings {
        Settings { directory: directory.join("state"), pgpool_status: true, discard_status: false }
    }

    fn node(status: NodeStatus) -> SavedNode {
        SavedNode {
            host: "h".into(),
            port: 5432,
            status,
            changed_at_s: 7,
            reason: "test".into(),
            data: Default::default(),
        }
    }

    #[test]
    fn a_folder_of_somebody_else_is_answered_with_advice() {
        let denied = |kind: std::io::ErrorKind| StoreError::io(Path::new("/s/lock"))(kind.into()).to_string();
        assert!(
            denied(std::io::ErrorKind::PermissionDenied)
                .starts_with("/s/lock: permission denied; the state directory must")
        );
        assert_eq!(denied(std::io::ErrorKind::StorageFull), "/s/lock: no storage space");
    }

    #[test]
    fn a_second_daemon_is_refused_and_told_the_process_id() {
        let dir = tempfile::tempdir().unwrap();
        let first = Store::open(&settings(dir.path())).unwrap();
        let refused = Store::open(&settings(dir.path())).unwrap_err();
        assert!(refused.to_string().contains(&format!("process {}", std::process::id())), "{refused}");
        drop(first);
        Store::open(&settings(dir.path())).unwrap();
    }

    #[test]
    fn a_lock_goes_from_one_to_the_next_without_a_gap() {
        let dir = tempfile::tempdir().unwrap();
        let first = Store::open(&settings(dir.path())).unwrap();
        drop(first.share_lock().unwrap());
        assert!(Store::open(&settings(dir.path())).is_err(), "who asked and gave up has freed nothing");
        let shared = first.share_lock().unwrap();
        first.leave_lock();
        drop(first);
        assert!(Store::open(&settings(dir.path())).is_err(), "the old one's end frees nothing");
        let second = Store::take_over(&settings(dir.path()), shared).unwrap();
        assert!(Store::open(&settings(dir.path())).is_err());
        drop(second);
        Store::open(&settings(dir.path())).unwrap();
    }

    #[test]
    fn states_generation_and_epoch_survive() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(dir.path())).unwrap();
        store.save_states(vec![node(NodeStatus::Up), node(NodeStatus::Down)]).unwrap();
        store.save_generation(9).unwrap();
        store.save_generation(4).unwrap();
        let epoch = Epoch { system_identifier: 7, timeline: 2, node: crate::base::NodeId(0) };
        store.save_epoch(Some(epoch.clone())).unwrap();
        drop(store);
        let store = Store::open(&settings(dir.path())).unwrap();
        assert_eq!(store.saved_states(), vec![node(NodeStatus::Up), node(NodeStatus::Down)]);
        assert_eq!((store.generation(), store.epoch()), (9, Some(epoch)));
        assert_eq!(std::fs::read_to_string(dir.path().join("state/pgpool_status")).unwrap(), "up\ndown\n");
        drop(store);
        let store = Store::open(&Settings { discard_status: true, ..settings(dir.path()) }).unwrap();
        assert_eq!((store.saved_states(), store.generation()), (vec![], 9));
    }

    #[test]
    fn a_file_that_is_behind_is_not_called_clean() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(dir.path())).unwrap();
        let in_the_way = dir.path().join("state/.nodes.json.new");
        store.save_states(vec![node(NodeStatus::Up), node(NodeStatus::Up)]).unwrap();
        store.save_clean().unwrap();
        std::fs::create_dir(&in_the_way).unwrap();
        store.take_clean_back().unwrap_err();
        let down = vec![node(NodeStatus::Up), node(NodeStatus::Down)];
        store.save_states(down.clone()).unwrap_err();
        std::fs::remove_dir(&in_the_way).unwrap();
        store.take_clean_back().unwrap();
        assert!(matches!(store.save_clean(), Err(StoreError::Behind { .. })));
        assert!(!store.all().clean);
        store.save_states(down.clone()).unwrap();
        store.save_clean().unwrap();
        drop(store);
        let read = Store::open(&settings(dir.path())).unwrap().all();
        assert_eq!((read.clean, read.nodes), (true, down));
    }

    #[test]
    fn upkeep_survives() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(dir.path())).unwrap();
        store.change_upkeep(|u| u.ineligible.extend([1])).unwrap();
        store.change_upkeep(|u| drop(u.nodes.insert(1, NodeUpkeep { since_s: 5, ..NodeUpkeep::default() }))).unwrap();
        let before = store.upkeep();
        drop(store);
        assert_eq!(Store::open(&settings(dir.path())).unwrap().upkeep(), before);
        assert!(before.nodes.contains_key(&1) && before.ineligible.contains(&1));
    }

    #[test]
    fn pgpool_status_is_read_when_there_is_nothing_newer() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("state")).unwrap();
        std::fs::write(dir.path().join("state/pgpool_status"), "up\ndown\nunused\n").unwrap();
        let store = Store::open(&settings(dir.path())).unwrap();
        let states: Vec<_> = store.saved_states().iter().map(|n| n.status).collect();
        assert_eq!(states, [NodeStatus::Waiting, NodeStatus::Down, NodeStatus::Unused]);
    }

    #[test]
    fn job_numbers_grow_over_restarts_and_finished_journals_are_pruned() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&settings(dir.path())).unwrap();
        for job in 1..=25 {
            let mut journal = store.journal(job).unwrap();
            journal.append("Requested", serde_json::json!({})).unwrap();
            journal.append("Done", serde_json::json!({})).unwrap();
        }
        drop(store);
        let store = Store::open(&settings(dir.path())).unwrap();
        assert_eq!(store.next_job().unwrap(), 26);
        assert!(store.journals().unwrap().len() <= 21);
        assert!(store.open_journals().unwrap().is_empty());
    }
}
