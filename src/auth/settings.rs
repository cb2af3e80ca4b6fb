//! Who may connect and where the secrets are.

use std::path::PathBuf;

/// Authentication of clients.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `pg_hba.conf`-style rules; `None`: `default_method` for everybody.
    pub hba_file: Option<PathBuf>,
    /// Method when there is no hba file: `trust`, `password`, `md5`, `scram-sha-256`.
    pub default_method: String,
    /// PgBouncer's `userlist.txt`.
    pub userlist_file: Option<PathBuf>,
    /// Pgpool-II's `pool_passwd`.
    pub pool_passwd_file: Option<PathBuf>,
    /// Key file of `AES` secrets (`.pgpoolkey`).
    pub key_file: Option<PathBuf>,
}
