//! Online recovery; Pgpool-II's names (`recovery_*`).

use crate::base::Secret;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// Who runs the first stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Runner {
    /// The SQL function `pgpool_recovery` on the source.
    Sql,
    /// pgmend runs the script itself, from the source's data directory.
    Local,
    /// `COPY … FROM PROGRAM` on the source.
    Program,
    /// pg_rewind or pg_basebackup, no script.
    #[default]
    Builtin,
}

/// What becomes of unlogged tables, which a promotion empties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Unlogged {
    /// Their rows are copied while clients are held.
    #[default]
    Copy,
    /// They stay empty, and the report names them.
    Report,
}

/// Online recovery.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `recovery_runner`.
    pub runner: Runner,
    /// `recovery_user`: a superuser.
    pub user: String,
    /// `recovery_password`.
    pub password: Secret,
    /// No password was found, only a hash of it, by which nobody can log in.
    pub password_is_hash: bool,
    /// `recovery_database`.
    pub database: String,
    /// `recovery_1st_stage_command`, a file name in the source's data directory; empty skips the stage (script runners).
    pub first_stage_command: String,
    /// `recovery_2nd_stage_command`, the same for the stage in which clients are held, in the replicating modes.
    pub second_stage_command: String,
    /// `recovery_unlogged_tables`, in the replicating modes.
    pub unlogged: Unlogged,
    /// `recovery_timeout`: bounds the start of the target; catching up may not stand still for longer. In the replicating
    /// modes also the time from the closing of the gate to its reopening.
    pub timeout: Duration,
    /// `recovery_1st_stage_timeout`; zero = none.
    pub first_stage_timeout: Duration,
    /// The first stage fails when it makes no progress for this long.
    pub no_progress_timeout: Duration,
    /// `replication_user`: copies and streams; default `user`.
    pub replication_user: String,
    /// Its password; empty: passfile or trust.
    pub replication_password: Secret,
    /// Directory of PostgreSQL's programs (`pg_basebackup`, `pg_rewind`, `pg_ctl`); found by itself when `None`.
    pub bin_directory: Option<PathBuf>,
    /// What becomes of clients while the gate is held.
    pub drain: crate::cluster::Drain,
    /// `pg_rewind` before a whole copy where it is enough.
    pub use_rewind: bool,
}
