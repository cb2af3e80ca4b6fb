//! Pgpool-II's files as they are: `pgpool.conf`, and where `pcp.conf`, `pool_hba.conf`, `pool_passwd` and the key are.

mod grammar;
mod map;
mod parameters;
mod values;

pub(super) use values::Values;

use super::error::{ConfigError, ConfigErrors};
use super::{Config, checks};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The files that the command line names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// `-f`.
    pub conf: PathBuf,
    /// `-F`; without it Debian's place, if there is such a file.
    pub pcp: Option<PathBuf>,
    /// `-a`; without it Debian's place. Read only when `enable_pool_hba` is on.
    pub hba: Option<PathBuf>,
    /// `-k`; without it `$PGPOOLKEYFILE`, then `~/.pgpoolkey`.
    pub key: Option<PathBuf>,
}

/// TOML names, which the checks speak, and Pgpool-II's words for the same.
const NAMES: &[(&str, &str)] = &[
    ("listen.addresses", "listen_addresses"),
    ("admin.pcp_port", "pcp_port"),
    ("admin.pcp_file", "-F"),
    ("auth.hba_file", "-a"),
    ("auth.pool_passwd_file", "pool_passwd"),
    ("auth.key_file", "-k"),
    ("tls.cert_file", "ssl_cert"),
    ("tls.key_file", "ssl_key"),
    ("tls.client_ca_file", "ssl_ca_cert"),
    ("tls.server_ca_file", "ssl_ca_cert"),
    ("auth.authentication_timeout", "authentication_timeout"),
    ("pool.server_connect_timeout", "connect_timeout"),
    ("health.health_check_timeout", "health_check_timeout"),
    ("recovery.recovery_timeout", "recovery_timeout"),
    ("recovery.recovery_1st_stage_command", "recovery_1st_stage_command"),
    ("recovery.recovery_2nd_stage_command", "recovery_2nd_stage_command"),
    ("recovery.client_idle_limit_in_recovery", "client_idle_limit_in_recovery"),
    ("recovery.recovery_idle_in_transaction_limit", "recovery_idle_in_transaction_limit"),
];

/// Reads and checks a `pgpool.conf` and finds the files beside it.
pub fn load(files: &Files) -> Result<Config, ConfigErrors> {
    load_by(files, &read)
}

/// The same; `read` brings the text of a `pgpool.conf` or of a file that it includes.
pub fn load_by(files: &Files, read: &dyn Fn(&Path) -> Result<String, String>) -> Result<Config, ConfigErrors> {
    let values = values::Values::read(&files.conf, read);
    let config = map::map(&values, files);
    let mut errors = values.errors.borrow().clone();
    for mut error in checks::check(&config, &files.conf, &BTreeMap::new()) {
        let name = NAMES.iter().find(|(toml, _)| *toml == error.key).map(|(_, name)| (*name).to_owned());
        let name = name.or_else(|| {
            let number = error.key.strip_prefix("node[")?.split_once(']')?.0;
            let number = map::configured_nodes(&values).get(number.parse::<usize>().ok()?).copied()?;
            Some(format!("backend_port{number}"))
        });
        error.key = name.unwrap_or(error.key);
        if let Some(entry) = values.entry(&error.key) {
            error.file = entry.file.clone();
            error.line = entry.line;
        }
        if !errors.contains(&error) {
            errors.push(error);
        }
    }
    if errors.is_empty() { Ok(config) } else { Err(ConfigErrors(errors)) }
}

/// The pid file that a `pgpool.conf` names: all that `pgpool stop` and `pgpool reload` need of it.
pub fn pid_file(conf: &Path) -> Result<PathBuf, ConfigErrors> {
    let values = values::Values::read(conf, &read);
    match values.errors.borrow().first() {
        Some(error) if error.line == 0 => return Err(ConfigErrors(vec![ConfigError::clone(error)])),
        Some(_) | None => {}
    }
    Ok(map::beside(conf, values.text("pid_file_name")))
}

fn read(path: &Path) -> Result<String, String> {
    super::read_text(path).map_err(|errors| errors.0.into_iter().next().map(|error| error.message).unwrap_or_default())
}

#[cfg(test)]
mod tests;
