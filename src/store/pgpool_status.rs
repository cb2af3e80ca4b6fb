//! Pgpool-II's own status file `pgpool_status`: one word per node and line.

use super::{SavedNode, StoreError, files};
use crate::cluster::NodeStatus;
use std::path::Path;

const NAME: &str = "pgpool_status";
/// Pgpool-II's `MAX_NUM_BACKENDS`.
const MAX_NODES: usize = 128;

/// Reads the states; empty when the file is absent or holds no `up` line, which Pgpool-II takes for a bogus file.
pub(super) fn read(directory: &Path) -> Result<Vec<SavedNode>, StoreError> {
    Ok(files::read(&directory.join(NAME))?.map(|text| parse(&text)).unwrap_or_default())
}

fn parse(text: &str) -> Vec<SavedNode> {
    let states: Vec<NodeStatus> = text
        .lines()
        .take(MAX_NODES)
        .map(|line| match line.trim() {
            // Up as of another run: the probe, not the file, says that it is up now.
            "up" => NodeStatus::Waiting,
            "down" => NodeStatus::Down,
            "unused" => NodeStatus::Unused,
            _ => NodeStatus::Waiting,
        })
        .collect();
    if !text.lines().any(|line| line.trim() == "up") {
        return Vec::new();
    }
    let saved = |status| SavedNode {
        host: String::new(),
        port: 0,
        status,
        changed_at_s: 0,
        reason: format!("read from {NAME}"),
        data: Default::default(),
    };
    states.into_iter().map(saved).collect()
}

/// Writes it, unless every node is down: the last good set is kept then, as Pgpool-II does.
pub(super) fn write(directory: &Path, nodes: &[SavedNode]) -> Result<(), StoreError> {
    if nodes.iter().all(|n| matches!(n.status, NodeStatus::Down | NodeStatus::Unused)) {
        return Ok(());
    }
    let text: String = nodes
        .iter()
        .map(|n| match n.status {
            NodeStatus::Up | NodeStatus::Waiting => "up\n",
            NodeStatus::Down => "down\n",
            NodeStatus::Unused => "unused\n",
        })
        .collect();
    files::replace(directory, NAME, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_an_up_line_is_bogus() {
        assert!(parse("down\ndown\n").is_empty());
        assert_eq!(parse("down\nup\n").len(), 2);
    }

    #[test]
    fn all_down_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let node = |status| SavedNode {
            host: "h".into(),
            port: 1,
            status,
            changed_at_s: 0,
            reason: String::new(),
            data: Default::default(),
        };
        write(dir.path(), &[node(NodeStatus::Waiting), node(NodeStatus::Down)]).unwrap();
        write(dir.path(), &[node(NodeStatus::Down), node(NodeStatus::Down)]).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join(NAME)).unwrap(), "up\ndown\n");
    }
}
