//! Where PostgreSQL's programs are.

use super::NodeError;
use std::path::{Path, PathBuf};

/// A directory with `pg_ctl`, `pg_basebackup` and the others, of the right major version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programs {
    directory: PathBuf,
}

impl Programs {
    /// As configured; else the packages' places for this major version; else the PATH.
    pub fn find(configured: Option<&Path>, major: u32) -> Result<Programs, NodeError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut places: Vec<PathBuf> = match configured {
            Some(directory) => vec![directory.to_owned()],
            None => vec![
                PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")),
                PathBuf::from(format!("/usr/pgsql-{major}/bin")),
            ],
        };
        if configured.is_none() {
            places.extend(std::env::split_paths(&path));
        }
        match places.into_iter().find(|d| d.join("pg_ctl").is_file()) {
            Some(directory) => Ok(Programs { directory }),
            None => Err(NodeError::NoPrograms(format!(
                "pg_ctl of PostgreSQL {major} was not found in {}; set recovery.bin_directory",
                configured.map_or_else(
                    || format!("/usr/lib/postgresql/{major}/bin, /usr/pgsql-{major}/bin or the PATH"),
                    |d| d.display().to_string()
                )
            ))),
        }
    }

    /// The path of one program.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}
