//! What `pg_controldata` tells of a stopped server.

use crate::base::Lsn;

/// The lines of `pg_controldata` that matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlData {
    /// `Database system identifier`.
    pub system_identifier: u64,
    /// The newest timeline that it knows: of the last checkpoint or of the end that it must reach.
    pub timeline: u32,
    /// The farthest position that the file proves: last checkpoint or minimum recovery end.
    pub position: Lsn,
    /// `Database cluster state`, e.g. `shut down` or `in production`.
    pub state: String,
    /// `wal_log_hints` or data checksums are on: pg_rewind is possible.
    pub rewindable: bool,
}

impl ControlData {
    /// Reads the output (in the C locale). `None` when a line that matters is missing.
    pub fn parse(text: &str) -> Option<ControlData> {
        let value = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(|v| v.trim().to_owned()))
        };
        let lsn = |name: &str| value(name).and_then(|v| v.parse::<Lsn>().ok());
        let number = |name: &str| value(name).and_then(|v| v.parse::<u32>().ok());
        let checkpoint = lsn("Latest checkpoint location")?;
        let end = lsn("Minimum recovery ending location").unwrap_or_default();
        let end_timeline = number("Min recovery ending loc's timeline").unwrap_or(0);
        Some(ControlData {
            system_identifier: value("Database system identifier")?.parse().ok()?,
            timeline: number("Latest checkpoint's TimeLineID")?.max(end_timeline),
            position: checkpoint.max(end),
            state: value("Database cluster state")?,
            rewindable: value("wal_log_hints setting").is_some_and(|v| v == "on")
                || number("Data page checksum version").is_some_and(|v| v > 0),
        })
    }

    /// It wrote a history of its own when it was last seen: it was no standby.
    pub fn was_primary(&self) -> bool {
        matches!(self.state.as_str(), "shut down" | "shutting down" | "in production")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_lines_that_matter() {
        let text = "Database system identifier:           7301000000000000001\n\
            Database cluster state:               in production\n\
            Latest checkpoint location:           0/3000060\n\
            Latest checkpoint's TimeLineID:       1\n\
            Minimum recovery ending location:     0/4000000\n\
            Min recovery ending loc's timeline:   2\n\
            wal_log_hints setting:                off\n\
            Data page checksum version:           1\n";
        let data = ControlData::parse(text).unwrap();
        assert_eq!(data.system_identifier, 7301000000000000001);
        assert_eq!((data.timeline, data.position), (2, Lsn(0x400_0000)));
        assert!(data.rewindable && data.was_primary());
        assert_eq!(ControlData::parse("nonsense"), None);
    }
}
