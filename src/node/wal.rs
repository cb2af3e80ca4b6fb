//! The log of a stopped server, read from its files: how far it goes and what was committed in a part of it.
//!
//! The control file lags: by a checkpoint after a crash, and by a timeline shortly after a promotion. `pg_waldump` is given
//! files that exist and never a next one, for which it would wait five seconds.

use super::{Child, ControlData, DataDirectory, Lines, NodeError, Owner, Programs, process};
use crate::base::Lsn;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio_util::sync::CancellationToken;

/// A page of the log (bytes); PostgreSQL's `XLOG_BLCKSZ` as all packages have it.
const PAGE_BYTES: u64 = 8192;
/// Header of a record (bytes), `SizeOfXLogRecord`: it holds the record's checksum.
const RECORD_HEADER_BYTES: u64 = 24;
/// Long page header, with which a segment begins (bytes).
const LONG_HEADER_BYTES: usize = 40;
/// Names looked at in `pg_wal`, so that a huge directory costs bounded time.
const MAX_FILES: usize = 1_000_000;

/// How far a log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEnd {
    /// The newest timeline of which there is log.
    pub timeline: u32,
    /// The start of the last record, or a position not behind it.
    pub last: Lsn,
    /// True when a record begins at `last`; false when the control file says only that the log goes so far.
    pub is_record: bool,
    /// The segment in which the last record begins, when it is there.
    pub segment: Option<Segment>,
}

impl LogEnd {
    /// How many bytes from the segment's start prove the history up to here: with a record's checksum where one begins. Two
    /// servers that have the same bytes have the same history.
    pub fn proof_bytes(&self, segment: &Segment) -> u64 {
        let offset = self.last.0.saturating_sub(segment.start.0);
        let page_end = (offset / PAGE_BYTES + 1) * PAGE_BYTES;
        let header = if self.is_record { RECORD_HEADER_BYTES } else { 0 };
        (offset + header).min(page_end).min(segment.bytes)
    }
}

/// A segment of the log that holds what its name says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Segment {
    /// Its timeline.
    pub timeline: u32,
    /// Its first position.
    pub start: Lsn,
    /// Its size in bytes.
    pub bytes: u64,
    /// Where it is.
    pub path: PathBuf,
}

impl Segment {
    /// Reads a file's name and header. `None` for another file, and for one kept for later use, which holds zeros or old pages.
    fn read(path: PathBuf) -> Option<Segment> {
        let name = path.file_name()?.to_str()?.to_owned();
        if name.len() != 24 || !name.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let part = |range: std::ops::Range<usize>| u32::from_str_radix(name.get(range)?, 16).ok();
        let (timeline, high, low) = (part(0..8)?, part(8..16)?, part(16..24)?);
        let mut header = [0_u8; LONG_HEADER_BYTES];
        std::fs::File::open(&path).ok()?.read_exact(&mut header).ok()?;
        let word = |at: usize| Some(u32::from_ne_bytes(header.get(at..at + 4)?.try_into().ok()?));
        let long = |at: usize| Some(u64::from_ne_bytes(header.get(at..at + 8)?.try_into().ok()?));
        // xlp_magic and xlp_info, xlp_tli, xlp_pageaddr, …; the long header adds the system and the segment's size.
        let (start, bytes) = (Lsn(long(8)?), u64::from(word(32)?));
        let named = u64::from(high) << 32 | u64::from(low).checked_mul(bytes)?;
        (word(0)? != 0 && bytes.is_power_of_two() && start.0 == named).then_some(Segment {
            timeline,
            start,
            bytes,
            path,
        })
    }

    /// The file's name.
    pub fn name(&self) -> String {
        self.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// The first bytes of it.
    pub fn first_bytes(&self, count: u64) -> Result<Vec<u8>, NodeError> {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(&self.path).map_err(NodeError::file(&self.path))?;
        file.take(count).read_to_end(&mut bytes).map_err(NodeError::file(&self.path))?;
        Ok(bytes)
    }
}

impl DataDirectory {
    /// The segments of the log, oldest first.
    fn segments(&self) -> Vec<Segment> {
        let entries = std::fs::read_dir(self.0.join("pg_wal")).into_iter().flatten().flatten();
        let mut segments: Vec<_> = entries.take(MAX_FILES).filter_map(|e| Segment::read(e.path())).collect();
        segments.sort();
        segments
    }

    /// A promotion onto a newer timeline was begun here: its history file is in `pg_wal`.
    pub fn has_newer_history(&self, timeline: u32) -> bool {
        let entries = std::fs::read_dir(self.0.join("pg_wal")).into_iter().flatten().flatten();
        let newer = |name: String| {
            name.strip_suffix(".history").and_then(|t| u32::from_str_radix(t, 16).ok()).is_some_and(|t| t > timeline)
        };
        entries.take(MAX_FILES).any(|e| newer(e.file_name().to_string_lossy().into_owned()))
    }

    /// How far the log goes. Only the last segment is read, so its length costs nothing.
    pub async fn log_end(
        &self,
        data: &ControlData,
        programs: &Programs,
        stop: &CancellationToken,
    ) -> Result<LogEnd, NodeError> {
        let directory = self.clone();
        let segments = tokio::task::spawn_blocking(move || directory.segments()).await.unwrap_or_default();
        // A shut down primary's position is its last checkpoint; of a standby it is where the next record would begin.
        let is_record = data.state == "shut down";
        let known = LogEnd { timeline: data.timeline, last: data.position, is_record, segment: None };
        let holding = |at: Lsn, timeline: u32| {
            let holds = |s: &&Segment| s.timeline == timeline && s.start <= at && at.0 - s.start.0 < s.bytes;
            segments.iter().find(holds).cloned()
        };
        let newest = segments.last().filter(|s| (s.timeline, s.start.0 + s.bytes) > (data.timeline, data.position.0));
        // A primary that was shut down wrote nothing after its checkpoint.
        let Some(newest) = newest.filter(|_| !is_record) else {
            return Ok(LogEnd { segment: holding(known.last, known.timeline), ..known });
        };
        let last = Arc::new(AtomicU64::new(newest.start.0));
        let to = last.clone();
        // Each record's line says `lsn: 0/3000060, prev …`.
        let lines: Lines = Arc::new(move |line| {
            let word = line.split_once("lsn: ").and_then(|(_, rest)| rest.split([',', ' ']).next());
            if let Some(lsn) = word.and_then(|w| w.parse::<Lsn>().ok()) {
                to.fetch_max(lsn.0, Ordering::Relaxed);
            }
        });
        // It ends with an error where the log ends.
        self.waldump(programs, &[newest.path.clone().into()], lines, stop).await?;
        let last = Lsn(last.load(Ordering::Relaxed));
        let same = newest.timeline == data.timeline;
        if same && last < data.position {
            return Ok(LogEnd { segment: holding(known.last, known.timeline), ..known });
        }
        Ok(LogEnd { timeline: newest.timeline, last, is_record: true, segment: Some(newest.clone()) })
    }

    /// The number of transactions that were committed or prepared on a timeline from a position on. `None` when the log is
    /// not whole any more, or when reading ends in another way than at the log's end.
    pub async fn commits_from(
        &self,
        from: Lsn,
        end: &LogEnd,
        programs: &Programs,
        stop: &CancellationToken,
    ) -> Option<u64> {
        let directory = self.clone();
        let segments = tokio::task::spawn_blocking(move || directory.segments()).await.ok()?;
        let wanted: Vec<&Segment> =
            segments.iter().filter(|s| s.timeline == end.timeline && s.start.0 + s.bytes > from.0).collect();
        let (first, last) = (wanted.first()?, wanted.last()?);
        let gap = wanted.windows(2).any(|pair| matches!(pair, [a, b] if a.start.0 + a.bytes != b.start.0));
        if first.start > from || gap || end.last.0 >= last.start.0 + last.bytes {
            return None;
        }
        let count = Arc::new(AtomicU64::new(0));
        let words = Arc::new(Mutex::new(Lsn::default()));
        let (add, seen) = (count.clone(), words.clone());
        let lines: Lines = Arc::new(move |line| {
            if line.contains("desc: COMMIT") || line.contains("desc: PREPARE") {
                add.fetch_add(1, Ordering::Relaxed);
            }
            let word = line.split_once("lsn: ").and_then(|(_, rest)| rest.split([',', ' ']).next());
            if let Some(lsn) = word.and_then(|w| w.parse::<Lsn>().ok()) {
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                *seen = lsn.max(*seen);
            }
        });
        let arguments: Vec<OsString> = vec![
            "-s".into(),
            from.to_string().into(),
            first.path.clone().into(),
            last.path.file_name().unwrap_or_default().to_owned(),
        ];
        self.waldump(programs, &arguments, lines, stop).await.ok()?;
        let reached = *words.lock().unwrap_or_else(PoisonError::into_inner);
        (reached >= end.last).then(|| count.load(Ordering::Relaxed))
    }

    async fn waldump(
        &self,
        programs: &Programs,
        arguments: &[OsString],
        lines: Lines,
        stop: &CancellationToken,
    ) -> Result<(), NodeError> {
        let mut command = vec![programs.path("pg_waldump").into_os_string()];
        command.extend_from_slice(arguments);
        let child = Child::new(command, Some(Owner::of(&self.0)?)).env("LC_ALL", "C");
        process::run(child, lines, |_| (), stop).await.map(|_| ())
    }
}

/// True when a copy of a data directory was made and never started: nothing was written to it.
pub fn is_unused_copy(directory: &Path) -> bool {
    directory.join("backup_label").is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB_16: u32 = 16 * 1024 * 1024;

    fn segment(directory: &Path, name: &str, page: u64) {
        let mut header = vec![0_u8; LONG_HEADER_BYTES];
        header[0] = 0x10;
        header[8..16].copy_from_slice(&page.to_ne_bytes());
        header[32..36].copy_from_slice(&MIB_16.to_ne_bytes());
        std::fs::write(directory.join("pg_wal").join(name), header).unwrap();
    }

    #[test]
    fn a_segment_kept_for_later_use_is_none() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("pg_wal")).unwrap();
        segment(dir.path(), "000000010000000000000003", 3 * u64::from(MIB_16));
        segment(dir.path(), "000000010000000000000004", 2 * u64::from(MIB_16));
        segment(dir.path(), "000000020000000100000000", 1 << 32);
        std::fs::write(dir.path().join("pg_wal/00000002.history"), "1\t0/3000000\n").unwrap();
        std::fs::write(dir.path().join("pg_wal/000000010000000000000005"), [0; 64]).unwrap();
        let seen = DataDirectory(dir.path().to_owned()).segments();
        let seen: Vec<_> = seen.iter().map(|s| (s.timeline, s.start)).collect();
        assert_eq!(seen, [(1, Lsn(0x300_0000)), (2, Lsn(1 << 32))]);
    }

    #[test]
    fn a_proof_ends_with_the_records_checksum_or_the_page() {
        let segment =
            Segment { timeline: 1, start: Lsn(0x300_0000), bytes: u64::from(MIB_16), path: PathBuf::from("x") };
        let proof =
            |last, is_record| LogEnd { timeline: 1, last: Lsn(last), is_record, segment: None }.proof_bytes(&segment);
        assert_eq!(proof(0x300_0060, true), 0x60 + 24);
        assert_eq!(proof(0x300_1ff8, true), 0x2000);
        // Behind the end of a standby's log there are zeros, where the source has gone on.
        assert_eq!(proof(0x300_0060, false), 0x60);
    }
}
