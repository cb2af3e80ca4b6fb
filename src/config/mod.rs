//! From files to checked settings: `pgmend.toml`, and Pgpool-II's `pgpool.conf`. Reload compares two of them.

mod checks;
mod cluster_section;
mod drain_section;
mod error;
mod maintenance_section;
mod pgmend_toml;
mod pgpool;
mod pool_section;
mod reload;
mod remarks;
mod section;
mod settings;
mod tls_section;
mod values;

pub use error::{ConfigError, ConfigErrors};
pub use reload::{Changes, changes, effective};
pub use remarks::{control, endings, remarks};
pub use settings::{Config, Ending};

use std::path::{Path, PathBuf};

/// Where the JSON API's Unix socket is when nothing says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/pgmend/pgmend.sock";
/// Larger files are surely not configurations: 4 MiB.
const MAX_FILE: u64 = 4 << 20;

/// Where a configuration comes from; read again at each reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `pgmend.toml`.
    Toml(PathBuf),
    /// Pgpool-II's files.
    Pgpool {
        /// `-f`, `pgpool.conf`.
        conf: PathBuf,
        /// `-F`, `pcp.conf`.
        pcp: Option<PathBuf>,
        /// `-a`, `pool_hba.conf`.
        hba: Option<PathBuf>,
        /// `-k`, the key of AES secrets.
        keyfile: Option<PathBuf>,
    },
}

impl Source {
    /// Reads and checks it.
    pub fn load(&self) -> Result<Config, ConfigErrors> {
        match self {
            Source::Toml(path) => load(path),
            Source::Pgpool { conf, pcp, hba, keyfile } => {
                load_pgpool(conf, pcp.as_deref(), hba.as_deref(), keyfile.as_deref())
            }
        }
    }
}

/// Reads and checks a `pgmend.toml`.
pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
    parse_toml(path, &read_text(path)?)
}

/// Reads and checks the text of a `pgmend.toml`; relative paths are taken from the folder of `file`.
pub fn parse_toml(file: &Path, text: &str) -> Result<Config, ConfigErrors> {
    pgmend_toml::parse(file, text)
}

/// Reads and checks the text of a `pgpool.conf` that includes no other file; relative paths are taken from the folder of
/// `file`.
pub fn parse_pgpool(file: &Path, text: &str) -> Result<Config, ConfigErrors> {
    let files = pgpool::Files { conf: file.to_owned(), pcp: None, hba: None, key: None };
    pgpool::load_by(&files, &|path| if path == file { Ok(text.to_owned()) } else { Err("not read here".to_owned()) })
}

/// Reads and checks Pgpool-II's files.
pub fn load_pgpool(
    conf: &Path,
    pcp: Option<&Path>,
    hba: Option<&Path>,
    keyfile: Option<&Path>,
) -> Result<Config, ConfigErrors> {
    let owned = |path: Option<&Path>| path.map(Path::to_owned);
    pgpool::load(&pgpool::Files { conf: conf.to_owned(), pcp: owned(pcp), hba: owned(hba), key: owned(keyfile) })
}

/// The pid file that a `pgpool.conf` names, relative to its folder.
pub fn pgpool_pid_file(conf: &Path) -> Result<PathBuf, ConfigErrors> {
    pgpool::pid_file(conf)
}

/// The admin socket that a `pgmend.toml` names, whatever else is wrong with the file; `None` when it names none.
pub fn socket_of(source: &Source) -> Option<PathBuf> {
    let Source::Toml(file) = source else { return None };
    let table: toml::Table = read_text(file).ok()?.parse().ok()?;
    let socket = table.get("admin")?.get("socket")?.as_str()?;
    Some(file.parent().unwrap_or(Path::new("")).join(socket))
}

fn read_text(path: &Path) -> Result<String, ConfigErrors> {
    let wrong = |message: String| {
        ConfigErrors(vec![ConfigError { file: path.to_owned(), line: 0, key: String::new(), message }])
    };
    let size = std::fs::metadata(path).map_err(|error| wrong(format!("cannot be read: {error}")))?.len();
    if size > MAX_FILE {
        return Err(wrong(format!("expected a file of at most {MAX_FILE} bytes, found {size}")));
    }
    std::fs::read_to_string(path).map_err(|error| wrong(format!("cannot be read: {error}")))
}

#[cfg(test)]
mod tests;
