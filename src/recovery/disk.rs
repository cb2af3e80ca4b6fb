//! Is there room for a copy: asked before anything of the target is removed.
//!
//! What counts is the data directory's own file system: what is free there, and what comes free when it is emptied, beside what
//! the source has in its own directory but for its log. Tablespaces' places elsewhere are not looked at. What cannot be learnt
//! stands against nothing.

use super::run::{Run, stoppable};
use crate::node::{Data, DiskRoom};
use crate::workflow::Failure;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The source looks at each of its files.
const MEASURE: Duration = Duration::from_secs(20);

impl Run {
    /// `--overwrite` goes on all the same: a file system that compresses has more room than it says.
    pub(super) async fn has_room(&self, data: &Data, stop: &CancellationToken) -> Result<(), Failure> {
        let (room, wanted) = match tokio::join!(data.disk_room(stop), stoppable(self.source_bytes(), stop)) {
            (Ok(room), Ok(wanted)) => (room, wanted),
            (Err(error), _) => return self.unmeasured(&error.to_string(), stop),
            (_, Err(failure)) => return self.unmeasured(&failure.to_string(), stop),
        };
        let id = self.target.id;
        if let Some(free) = room.free_bytes {
            self.job.output(&format!("room at node {id}: {}, a copy takes about {}", mib(free), mib(wanted)));
        }
        match lacks(room, wanted) {
            Some(bytes) if !self.options.overwrite => Err(Failure::new(format!(
                "node {id} has no room for a copy: {} are missing",
                mib(bytes)
            ))
            .detail(format!(
                "{} takes {} on the source; at {} there are {} free, and {} come free when it is emptied",
                "what is to be copied",
                mib(wanted),
                data.path().display(),
                mib(room.free_bytes.unwrap_or(0)),
                mib(room.taken_bytes.unwrap_or(0))
            ))
            .hint(
                "nothing was removed; make room, or recover with --overwrite where a file system has more than it says",
            )),
            Some(_) | None => Ok(()),
        }
    }

    fn unmeasured(&self, why: &str, stop: &CancellationToken) -> Result<(), Failure> {
        if stop.is_cancelled() {
            return Err(Failure::new("stopped"));
        }
        self.job.output(&format!("whether there is room for a copy is not known: {why}"));
        Ok(())
    }

    /// What the source has in its data directory, without its log.
    async fn source_bytes(&self) -> Result<u64, Failure> {
        let source = self.connect_source().await?;
        let ask =
            "SELECT sum(pg_tablespace_size(oid))::bigint FROM pg_tablespace WHERE pg_tablespace_location(oid) = ''";
        let bytes = source.value(ask, MEASURE).await;
        let bytes = bytes.map_err(|e| Failure::new("the source could not be measured").detail(e.to_string()))?;
        bytes.and_then(|text| text.parse().ok()).ok_or_else(|| Failure::new("the source could not be measured"))
    }
}

/// Bytes that are missing for certain; `None`: there is room, or nobody knows.
fn lacks(room: DiskRoom, wanted: u64) -> Option<u64> {
    let there = room.free_bytes?.saturating_add(room.taken_bytes?);
    wanted.checked_sub(there).filter(|missing| *missing > 0)
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_certain_stands_against_a_copy() {
        let room = |free_bytes, taken_bytes| DiskRoom { free_bytes, taken_bytes };
        assert_eq!(lacks(room(Some(10), Some(5)), 16), Some(1));
        assert_eq!(lacks(room(Some(10), Some(5)), 15), None);
        assert_eq!(lacks(room(None, Some(5)), 100), None);
        assert_eq!(lacks(room(Some(10), None), 100), None);
    }
}
