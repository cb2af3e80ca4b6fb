//! A node's data directory, wherever it is: what is in it, and what is done to its files.

use super::data_directory::merge;
use super::{Child, ControlData, DataDirectory, NodeError, Owner, Programs, Remote, Survey};
use super::{arm_standby, disarm_standby, running_pid, set_streaming};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// A data directory that pgmend can act on.
#[derive(Clone, Debug)]
pub enum Data {
    /// On this machine.
    Here {
        /// It.
        directory: DataDirectory,
        /// PostgreSQL's programs.
        programs: Programs,
    },
    /// On another one.
    There {
        /// The way.
        remote: Remote,
        /// What was seen when it was first looked at.
        survey: Box<Survey>,
    },
}

impl Data {
    /// The directory's path, on the machine where it is.
    pub fn path(&self) -> &Path {
        match self {
            Data::Here { directory, .. } => &directory.0,
            Data::There { remote, .. } => remote.directory(),
        }
    }

    /// Absent or without entries.
    pub fn is_empty(&self) -> bool {
        match self {
            Data::Here { directory, .. } => directory.is_empty(),
            Data::There { survey, .. } => survey.is_empty,
        }
    }

    /// It is, or was, a PostgreSQL server's.
    pub fn has_control_file(&self) -> bool {
        match self {
            Data::Here { directory, .. } => directory.has_control_file(),
            Data::There { survey, .. } => survey.has_control_file,
        }
    }

    /// A copy that was never started: nothing was written to it.
    pub fn is_unused_copy(&self) -> bool {
        match self {
            Data::Here { directory, .. } => directory.0.join("backup_label").is_file(),
            Data::There { survey, .. } => survey.is_unused_copy,
        }
    }

    /// Where `pg_wal` leads when it is a link.
    pub fn wal_link(&self) -> Option<PathBuf> {
        match self {
            Data::Here { directory, .. } => directory.wal_link(),
            Data::There { survey, .. } => survey.wal.clone(),
        }
    }

    /// The tablespaces' links: oid and place.
    pub fn tablespaces(&self) -> Vec<(String, PathBuf)> {
        match self {
            Data::Here { directory, .. } => directory.tablespaces(),
            Data::There { survey, .. } => survey.tablespaces.clone(),
        }
    }

    /// What `pg_controldata` says now.
    pub async fn control_data(&self, stop: &CancellationToken) -> Result<ControlData, NodeError> {
        match self {
            Data::Here { directory, programs } => directory.control_data(programs, stop).await,
            Data::There { remote, .. } => remote.control_data(stop).await,
        }
    }

    /// The postmaster lives. Elsewhere it is asked for; here its process is looked at.
    pub async fn runs(&self) -> Result<bool, NodeError> {
        match self {
            Data::Here { directory, .. } => Ok(running_pid(&directory.0).is_some()),
            Data::There { remote, .. } => remote.postmaster(&CancellationToken::new()).await,
        }
    }

    /// `standby.signal` is there, as far as was seen last.
    pub fn is_armed(&self) -> bool {
        match self {
            Data::Here { directory, .. } => directory.0.join("standby.signal").exists(),
            Data::There { survey, .. } => survey.is_armed,
        }
    }

    /// From now on a start is read-only, whoever starts it.
    pub async fn arm(&self) -> Result<(), NodeError> {
        match self {
            Data::Here { directory, .. } => arm_standby(&directory.0, &Owner::of(&directory.0)?),
            Data::There { remote, .. } => remote.arm().await,
        }
    }

    /// It starts as what it was. Elsewhere it is tried for `patience`.
    pub async fn disarm(&self, patience: Duration) -> Result<(), NodeError> {
        match self {
            Data::Here { directory, .. } => disarm_standby(&directory.0),
            Data::There { remote, .. } => remote.disarm(Instant::now() + patience).await,
        }
    }

    /// Makes it a standby with these settings in place of any that it had.
    pub async fn set_streaming(&self, settings: &[(&str, String)]) -> Result<(), NodeError> {
        match self {
            Data::Here { directory, .. } => set_streaming(&directory.0, &Owner::of(&directory.0)?, settings),
            Data::There { remote, .. } => {
                let old = remote.settings().await?;
                if old.contains(char::REPLACEMENT_CHARACTER) {
                    return Err(NodeError::File {
                        path: remote.directory().join("postgresql.auto.conf").display().to_string(),
                        why: "is not UTF-8, and would not be written back as it was".to_owned(),
                    });
                }
                remote.configure(&merge(&old, settings)).await
            }
        }
    }

    /// One of PostgreSQL's programs as a child of ours, where the data are, as their owner. `secrets` go into its environment.
    pub fn program(
        &self,
        name: &str,
        arguments: Vec<OsString>,
        major: u32,
        secrets: &[(&str, &str)],
    ) -> Result<Child, NodeError> {
        match self {
            Data::Here { directory, programs } => {
                let words = std::iter::once(programs.path(name).into_os_string()).chain(arguments);
                let child = Child::new(words, Some(Owner::of(&directory.0)?));
                Ok(secrets.iter().fold(child, |child, (name, value)| child.env(name, value)))
            }
            Data::There { remote, .. } => remote.program(name, &arguments, major, secrets),
        }
    }

    /// A promotion onto a newer timeline was begun here: its history file is in `pg_wal`. Looked at now.
    pub async fn has_newer_history(&self, timeline: u32) -> Result<bool, NodeError> {
        match self {
            Data::Here { directory, .. } => Ok(directory.has_newer_history(timeline)),
            Data::There { remote, .. } => {
                let survey = remote.survey(&[], None, &CancellationToken::new()).await?;
                Ok(survey.newest_history > timeline)
            }
        }
    }
}
