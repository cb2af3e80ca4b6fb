//! What a look at a data directory elsewhere has brought.

use super::super::{ControlData, DiskRoom};
use std::path::PathBuf;

/// Everything that is asked of a directory at once, since each journey costs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// What `PG_VERSION` says.
    pub major: Option<u32>,
    /// Its postmaster, when it lives.
    pub pid: Option<u32>,
    /// Absent or without entries.
    pub is_empty: bool,
    /// There is a control file.
    pub has_control_file: bool,
    /// `standby.signal` is there.
    pub is_armed: bool,
    /// A copy that was never started.
    pub is_unused_copy: bool,
    /// Where `pg_wal` leads when it is a link.
    pub wal: Option<PathBuf>,
    /// The tablespaces' links: oid and place.
    pub tablespaces: Vec<(String, PathBuf)>,
    /// Where its files are, links resolved.
    pub places: Vec<PathBuf>,
    /// The same of other nodes on that machine, by the number of the question, from 0.
    pub others: Vec<(usize, PathBuf)>,
    /// The newest timeline of which there is a history file.
    pub newest_history: u32,
    /// Room where it is.
    pub disk: DiskRoom,
    /// Where PostgreSQL's programs are.
    pub programs: String,
    /// What `pg_controldata` says; `None` also when it said something unexpected.
    pub control_data: Option<ControlData>,
}

impl Survey {
    /// Reads `key=value` lines, and those of `pg_controldata` behind them.
    pub(super) fn parse(text: &str) -> Survey {
        let mut survey = Survey { control_data: ControlData::parse(text), ..Survey::default() };
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            survey.take(key, value);
        }
        survey
    }

    fn take(&mut self, key: &str, value: &str) {
        match key {
            "version" => self.major = value.trim().parse().ok(),
            "pid" => self.pid = value.parse().ok(),
            "empty" => self.is_empty = true,
            "control" => self.has_control_file = true,
            "armed" => self.is_armed = true,
            "copy" => self.is_unused_copy = true,
            "wal" => self.wal = Some(PathBuf::from(value)),
            "place" => self.places.push(PathBuf::from(value)),
            "programs" => self.programs = value.to_owned(),
            "free_kb" => self.disk.free_bytes = from_kb(value),
            "taken_kb" => self.disk.taken_bytes = from_kb(value),
            "space" => {
                let space = value.split_once(' ').map(|(oid, place)| (oid.to_owned(), PathBuf::from(place)));
                self.tablespaces.extend(space);
            }
            "history" => {
                let timeline = value.strip_suffix(".history").and_then(|t| u32::from_str_radix(t, 16).ok());
                self.newest_history = self.newest_history.max(timeline.unwrap_or(0));
            }
            _ => {
                let number = key.strip_prefix("other").and_then(|n| n.parse::<usize>().ok()?.checked_sub(1));
                self.others.extend(number.map(|n| (n, PathBuf::from(value))));
            }
        }
    }
}

fn from_kb(value: &str) -> Option<u64> {
    value.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Lsn;

    #[test]
    fn reads_what_the_shell_tells() {
        let text = "version=15\npid=77\narmed=yes\nwal=/fast/wal one\nspace=16400 /a b=c\nhistory=0000000A.history\n\
            place=/data\nplace=/fast/wal one\nother2=/other\nfree_kb=10\nprograms=/usr/lib/postgresql/15/bin\ncontrol=yes\n\
            Database system identifier:           7301000000000000001\n\
            Database cluster state:               shut down\n\
            Latest checkpoint location:           0/3000060\n\
            Latest checkpoint's TimeLineID:       1\n";
        let survey = Survey::parse(text);
        assert_eq!((survey.major, survey.pid, survey.newest_history), (Some(15), Some(77), 10));
        assert!(survey.is_armed && survey.has_control_file && !survey.is_empty && !survey.is_unused_copy);
        assert_eq!(survey.wal, Some("/fast/wal one".into()));
        assert_eq!(survey.tablespaces, [("16400".to_owned(), PathBuf::from("/a b=c"))]);
        assert_eq!(survey.others, [(1, PathBuf::from("/other"))]);
        assert_eq!(survey.disk, DiskRoom { free_bytes: Some(10240), taken_bytes: None });
        assert_eq!(Survey::parse("free_kb=\ntaken_kb=3").disk.taken_bytes, Some(3072));
        assert_eq!(survey.control_data.unwrap().position, Lsn(0x300_0060));
        assert_eq!(Survey::parse("nonsense"), Survey::default());
    }
}
