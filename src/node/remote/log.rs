//! The log of a stopped server elsewhere: its files' names and headers, and what `pg_waldump` says there.

use super::super::{NodeError, Segment};
use super::script::command;
use super::{Question, Remote, value_of};
use crate::base::Lsn;
use std::path::PathBuf;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The newest files that are looked at. Those kept for later use, which carry the newest names, are fewer.
const NEWEST: &str = "2048";
/// Bound on reading: a segment has to be read to its end.
const READ: Duration = Duration::from_secs(60);

impl Remote {
    async fn read(&self, call: String, stop: &CancellationToken) -> Result<String, NodeError> {
        self.ask(&Question { verb: "log", call, own: None, variables: &[], within: READ }, stop).await
    }

    /// The segments, oldest first.
    pub(in crate::node) async fn segments(&self, stop: &CancellationToken) -> Result<Vec<Segment>, NodeError> {
        let text = self.read(command(["segments", NEWEST]), stop).await?;
        let mut segments: Vec<Segment> = text.lines().filter_map(segment).collect();
        segments.sort();
        Ok(segments)
    }

    /// The last record of a segment.
    pub(in crate::node) async fn last_record(
        &self,
        segment: &Segment,
        stop: &CancellationToken,
    ) -> Result<Option<Lsn>, NodeError> {
        let text = self.read(command(["last_record", &segment.name()]), stop).await?;
        Ok(text.lines().filter_map(super::super::wal::record).next_back())
    }

    /// Transactions that were committed or prepared, and the last record that was read.
    pub(in crate::node) async fn commits(
        &self,
        from: Lsn,
        first: &Segment,
        last: &Segment,
        stop: &CancellationToken,
    ) -> Result<Option<(u64, Lsn)>, NodeError> {
        let call = command(["commits", &from.to_string(), &first.name(), &last.name()]);
        let text = self.read(call, stop).await?;
        let count = value_of(&text, "commits").and_then(|n| n.parse().ok());
        let reached = text.lines().filter_map(super::super::wal::record).next_back();
        Ok(count.zip(reached))
    }

    /// SHA-256 of a segment's first bytes, in hexadecimal digits.
    pub(in crate::node) async fn digest(
        &self,
        segment: &Segment,
        bytes: u64,
        stop: &CancellationToken,
    ) -> Result<Option<String>, NodeError> {
        let text = self.read(command(["digest", &segment.name(), &bytes.to_string()]), stop).await?;
        // `openssl` puts a star before the file's name, the others spaces.
        let digest = text.split_whitespace().next().unwrap_or_default();
        let good = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
        Ok(good.then(|| digest.to_ascii_lowercase()))
    }
}

/// `segment=000000010000000000000003 16d1…`: the name and the first 40 bytes.
fn segment(line: &str) -> Option<Segment> {
    let (name, digits) = line.strip_prefix("segment=")?.split_once(' ')?;
    let pairs = digits.as_bytes().chunks(2);
    let bytes: Option<Vec<u8>> =
        pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect();
    Segment::of(PathBuf::from(name), &bytes?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_told_by_its_header() {
        let mut header = [0_u8; 40];
        header[0] = 0x16;
        header[8..16].copy_from_slice(&0x300_0000_u64.to_ne_bytes());
        header[32..36].copy_from_slice(&(16_u32 << 20).to_ne_bytes());
        let digits: String = header.iter().map(|b| format!("{b:02x}")).collect();
        let line = |name: &str| format!("segment={name} {digits}");
        let read = segment(&line("000000010000000000000003")).unwrap();
        assert_eq!((read.timeline, read.start, read.bytes), (1, Lsn(0x300_0000), 16 << 20));
        assert_eq!(segment(&line("000000010000000000000004")), None, "kept for later use");
        assert_eq!(segment("segment=000000010000000000000003 16"), None);
        assert_eq!(segment("segment=000000010000000000000003 xx"), None);
    }
}
