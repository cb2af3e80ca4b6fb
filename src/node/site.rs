//! Where a node's server is, as seen from here.

use super::{Order, Remote, is_this_machine};
use crate::cluster::NodeSpec;
use std::path::PathBuf;
use std::sync::Arc;

/// Where it is.
#[derive(Clone, Debug)]
pub enum Site {
    /// On this machine: its directory.
    Here(PathBuf),
    /// On another one, with a way there: the node has a `remote_command`.
    There(Remote),
    /// On another one or nobody knows where its data are: out of reach but for its own commands.
    Elsewhere,
}

impl Site {
    /// A `remote_command` says that it is elsewhere, whatever the host's name means here (a tunnel's end is this machine's).
    pub async fn of(spec: &Arc<NodeSpec>, order: Order) -> Site {
        if let Some(remote) = Remote::of(spec, order) {
            return Site::There(remote);
        }
        let Some(directory) = spec.data_directory.clone() else { return Site::Elsewhere };
        let host = spec.host.0.clone();
        // Name resolution blocks.
        let here = tokio::task::spawn_blocking(move || is_this_machine(&host)).await.unwrap_or(false);
        if here { Site::Here(directory) } else { Site::Elsewhere }
    }

    /// The directory when it is on this machine.
    pub fn here(&self) -> Option<&PathBuf> {
        match self {
            Site::Here(directory) => Some(directory),
            Site::There(_) | Site::Elsewhere => None,
        }
    }

    /// The way when it is elsewhere and there is one.
    pub fn there(&self) -> Option<&Remote> {
        match self {
            Site::There(remote) => Some(remote),
            Site::Here(_) | Site::Elsewhere => None,
        }
    }
}
