//! How much room there is where a node's data are or will be.

use super::{Data, DataDirectory, NodeError};
use std::path::Path;
use tokio_util::sync::CancellationToken;

/// Room. What could not be learnt is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskRoom {
    /// Bytes that are free.
    pub free_bytes: Option<u64>,
    /// Bytes that the data directory takes there itself: they come free when it is emptied.
    pub taken_bytes: Option<u64>,
}

/// Bytes that are free where this directory is, or the nearest above it that is there. May block.
pub fn free_bytes(directory: &Path) -> Option<u64> {
    let there = directory.ancestors().find(|place| place.exists())?;
    let room = nix::sys::statvfs::statvfs(there).ok()?;
    room.blocks_available().checked_mul(room.fragment_size())
}

impl Data {
    /// Looked at or asked now. Elsewhere it is bounded as every question is.
    pub async fn disk_room(&self, stop: &CancellationToken) -> Result<DiskRoom, NodeError> {
        let directory = match self {
            Data::There { remote, .. } => return remote.disk(true, stop).await,
            Data::Here { directory, .. } => directory.clone(),
        };
        let look = move |directory: DataDirectory| DiskRoom {
            free_bytes: free_bytes(&directory.0),
            taken_bytes: directory.taken_bytes(),
        };
        Ok(tokio::task::spawn_blocking(move || look(directory)).await.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_to_come_has_the_room_of_what_is_above_it() {
        let above = std::env::temp_dir();
        assert!(free_bytes(&above).is_some_and(|bytes| bytes > 0));
        assert!(free_bytes(&above.join("pgmend-not-there/data")).is_some());
        let none = DataDirectory(above.join("pgmend-not-there"));
        assert_eq!(none.taken_bytes(), Some(0));
    }
}
