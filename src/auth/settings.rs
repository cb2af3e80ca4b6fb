//! Who may connect and where the secrets are.

use std::path::PathBuf;
use std::time::Duration;

/// Authentication of clients.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `pg_hba.conf`-style rules; `None`: `default_method` for everybody.
    pub hba_file: Option<PathBuf>,
    /// `pg_ident.conf`-style maps from names of the outside world to users.
    pub ident_file: Option<PathBuf>,
    /// Method when there is no hba file: `trust`, `password`, `md5`, `scram-sha-256`, `cert`, `pam`.
    pub default_method: String,
    /// PgBouncer's `userlist.txt`.
    pub userlist_file: Option<PathBuf>,
    /// Pgpool-II's `pool_passwd`.
    pub pool_passwd_file: Option<PathBuf>,
    /// Key file of `AES` secrets (`.pgpoolkey`).
    pub key_file: Option<PathBuf>,
    /// Users of no file are looked up at the primary; `None`: they do not exist.
    pub query: Option<QuerySettings>,
    /// Authorities of LDAP servers; `None`: those of the system.
    pub ldap_ca_file: Option<PathBuf>,
    /// PAM's service where no rule names one.
    pub pam_service: String,
}

/// How users' secrets are looked up.
#[derive(Clone, Debug, PartialEq)]
pub struct QuerySettings {
    /// `auth_user`: as whom; its password comes from the files.
    pub user: String,
    /// `auth_query`: gives name and secret of the user `$1`.
    pub query: String,
    /// `auth_dbname`; `None`: the database that the client asks for.
    pub database: Option<String>,
    /// An answer serves for so long; zero: each login asks.
    pub cache_time: Duration,
}

impl QuerySettings {
    /// PgBouncer's query: users who may log in, with the secrets that have not expired.
    pub const DEFAULT_QUERY: &'static str = "SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword \
         END FROM pg_authid WHERE rolname=$1 AND rolcanlogin";
}
