//! The log of a stopped server, read from its files: how far it goes and what was committed in a part of it.
//!
//! The control file lags: by a checkpoint after a crash, and by a timeline shortly after a promotion. `pg_waldump` is given
//! files that exist and never a next one, for which it would wait five seconds.

use super::{Child, ControlData, Data, DataDirectory, Lines, NodeError, Owner, Programs, process};
use crate::base::Lsn;
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
        let mut header = [0_u8; LONG_HEADER_BYTES];
        if !is_named(path.file_name()?.to_str()?) {
            return None;
        }
        std::fs::File::open(&path).ok()?.read_exact(&mut header).ok()?;
        Segment::of(path, &header)
    }

    /// The same of a header that was read already.
    pub(super) fn of(path: PathBuf, header: &[u8]) -> Option<Segment> {
        let name = path.file_name()?.to_str().filter(|name| is_named(name))?;
        let part = |range: std::ops::Range<usize>| u32::from_str_radix(name.get(range)?, 16).ok();
        let (timeline, high, low) = (part(0..8)?, part(8..16)?, part(16..24)?);
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

    fn holds(&self, at: Lsn, timeline: u32) -> bool {
        self.timeline == timeline && self.start <= at && at.0 - self.start.0 < self.bytes
    }
}

fn is_named(name: &str) -> bool {
    name.len() == 24 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The position in a line of `pg_waldump`: each record's says `lsn: 0/3000060, prev …`.
pub(super) fn record(line: &str) -> Option<Lsn> {
    line.split_once("lsn: ").and_then(|(_, rest)| rest.split([',', ' ']).next())?.parse().ok()
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

    /// The last record of a segment; `None` when there is none.
    pub(super) async fn last_record(
        &self,
        segment: &Segment,
        programs: &Programs,
        stop: &CancellationToken,
    ) -> Result<Option<Lsn>, NodeError> {
        let last = Arc::new(AtomicU64::new(0));
        let to = last.clone();
        let lines: Lines = Arc::new(move |line| {
            if let Some(lsn) = record(line) {
                to.fetch_max(lsn.0, Ordering::Relaxed);
            }
        });
        // It ends with an error where the log ends.
        self.waldump(programs, &[segment.path.clone().into()], lines, stop).await?;
        Ok(Some(last.load(Ordering::Relaxed)).filter(|lsn| *lsn > 0).map(Lsn))
    }

    /// Transactions that were committed or prepared, and the last record that was read.
    pub(super) async fn commits(
        &self,
        from: Lsn,
        (first, last): (&Segment, &Segment),
        programs: &Programs,
        stop: &CancellationToken,
    ) -> Option<(u64, Lsn)> {
        let (count, reached) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (add, seen) = (count.clone(), reached.clone());
        let lines: Lines = Arc::new(move |line| {
            if line.contains("desc: COMMIT") || line.contains("desc: PREPARE") {
                add.fetch_add(1, Ordering::Relaxed);
            }
            if let Some(lsn) = record(line) {
                seen.fetch_max(lsn.0, Ordering::Relaxed);
            }
        });
        let arguments: Vec<OsString> =
            vec!["-s".into(), from.to_string().into(), first.path.clone().into(), last.name().into()];
        self.waldump(programs, &arguments, lines, stop).await.ok()?;
        Some((count.load(Ordering::Relaxed), Lsn(reached.load(Ordering::Relaxed))))
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

impl Data {
    /// The segments of the log, oldest first.
    async fn segments(&self, stop: &CancellationToken) -> Result<Vec<Segment>, NodeError> {
        match self {
            Data::Here { directory, .. } => {
                let directory = directory.clone();
                Ok(tokio::task::spawn_blocking(move || directory.segments()).await.unwrap_or_default())
            }
            Data::There { remote, .. } => remote.segments(stop).await,
        }
    }

    /// How far the log goes. Only the last segment is read, so its length costs nothing.
    pub async fn log_end(&self, data: &ControlData, stop: &CancellationToken) -> Result<LogEnd, NodeError> {
        let segments = self.segments(stop).await?;
        // A shut down primary's position is its last checkpoint; of a standby it is where the next record would begin.
        let is_record = data.state == "shut down";
        let segment = segments.iter().find(|s| s.holds(data.position, data.timeline)).cloned();
        let known = LogEnd { timeline: data.timeline, last: data.position, is_record, segment };
        let newest = segments.last().filter(|s| (s.timeline, s.start.0 + s.bytes) > (data.timeline, data.position.0));
        // A primary that was shut down wrote nothing after its checkpoint.
        let Some(newest) = newest.filter(|_| !is_record) else { return Ok(known) };
        let last = match self {
            Data::Here { directory, programs } => directory.last_record(newest, programs, stop).await?,
            Data::There { remote, .. } => remote.last_record(newest, stop).await?,
        };
        let last = last.unwrap_or(newest.start);
        if newest.timeline == data.timeline && last < data.position {
            return Ok(known);
        }
        Ok(LogEnd { timeline: newest.timeline, last, is_record: true, segment: Some(newest.clone()) })
    }

    /// The number of transactions that were committed or prepared on a timeline from a position on. `None` when the log is
    /// not whole any more, or when reading ends in another way than at the log's end.
    pub async fn commits_from(&self, from: Lsn, end: &LogEnd, stop: &CancellationToken) -> Option<u64> {
        let segments = self.segments(stop).await.ok()?;
        let wanted: Vec<&Segment> =
            segments.iter().filter(|s| s.timeline == end.timeline && s.start.0 + s.bytes > from.0).collect();
        let (first, last) = (*wanted.first()?, *wanted.last()?);
        let gap = wanted.windows(2).any(|pair| matches!(pair, [a, b] if a.start.0 + a.bytes != b.start.0));
        if first.start > from || gap || end.last.0 >= last.start.0 + last.bytes {
            return None;
        }
        let (count, reached) = match self {
            Data::Here { directory, programs } => directory.commits(from, (first, last), programs, stop).await?,
            Data::There { remote, .. } => remote.commits(from, first, last, stop).await.ok()??,
        };
        (reached >= end.last).then_some(count)
    }

    /// SHA-256 of a segment's first bytes, in hexadecimal digits; `None` when it cannot be read.
    pub async fn digest(&self, segment: Segment, bytes: u64, stop: &CancellationToken) -> Option<String> {
        if let Data::There { remote, .. } = self {
            return remote.digest(&segment, bytes, stop).await.ok().flatten();
        }
        let read = move || {
            let mut content = Vec::new();
            std::fs::File::open(&segment.path).ok()?.take(bytes).read_to_end(&mut content).ok()?;
            Some(Sha256::digest(&content).iter().map(|b| format!("{b:02x}")).collect())
        };
        tokio::task::spawn_blocking(read).await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

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
