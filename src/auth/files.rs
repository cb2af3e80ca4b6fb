//! Reads the files of secrets and rules; the only file of this folder that touches the disk.

use super::hba::{Files, HbaRules, Method, Surroundings};
use super::ident::IdentMaps;
use super::secrets::Secrets;
use super::{AuthError, Settings, StoredSecret, pool_passwd, userlist};
use crate::base::Secret;
use ipnet::IpNet;
use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Bytes of one file; a hundred thousand users have about 15 MB.
const MAX_FILE: u64 = 32 << 20;
/// Pgpool-II reads no longer key.
const MAX_KEY: usize = 256;

impl Secrets {
    /// Reads the files of the settings, for the first time. A user of `userlist_file` hides one of the same name in
    /// `pool_passwd_file`; within the first the last line counts, within the second the first, as in PgBouncer and
    /// Pgpool-II.
    pub fn load(settings: &Settings, mock_key: [u8; 32]) -> Result<Secrets, AuthError> {
        Ok(Secrets::new(read_users(settings)?, mock_key))
    }

    /// Reads the files again; what has not changed is not derived again.
    pub fn reload(&self, settings: &Settings) -> Result<Secrets, AuthError> {
        Ok(self.renewed(read_users(settings)?))
    }

    /// Reads the files only for their mistakes; returns the number of users.
    pub fn check(settings: &Settings) -> Result<usize, AuthError> {
        read_users(settings).map(|users| users.len())
    }
}

/// All users in order of rank.
fn read_users(settings: &Settings) -> Result<Vec<(String, StoredSecret)>, AuthError> {
    let mut users = Vec::new();
    if let Some(file) = &settings.userlist_file {
        users.extend(userlist::parse(&read(file)?, &name(file))?.into_iter().rev());
    }
    if let Some(file) = &settings.pool_passwd_file {
        let key = settings.key_file.as_deref().map(read_key).transpose()?;
        users.extend(pool_passwd::parse(&read(file)?, &name(file), key.as_ref())?);
    }
    Ok(users)
}

impl HbaRules {
    /// The rules of the settings: of the file, or the default method for everybody.
    pub fn load(settings: &Settings) -> Result<HbaRules, AuthError> {
        let Some(file) = &settings.hba_file else {
            return Method::parse(&settings.default_method).map(HbaRules::uniform).map_err(AuthError::Setting);
        };
        let maps = match &settings.ident_file {
            Some(file) => IdentMaps::parse(&read(file)?, &name(file), &Disk)?,
            None => IdentMaps::default(),
        };
        let networks = networks().map_err(|e| failed(file, &format!("this host's networks: {e}")))?;
        let around = Surroundings { files: &Disk, networks: &networks, maps: &maps };
        let rules = HbaRules::parse_among(&read(file)?, &name(file), &around)?;
        if rules.need_roles() && settings.query.is_none() {
            let why = "rules with +role or samerole (or a map with +role) ask the server who is a member of what; set \
                       auth_user, as whom to ask";
            return Err(failed(file, &why));
        }
        Ok(rules)
    }
}

/// Files on disk, for rules that include them.
struct Disk;

impl Files for Disk {
    fn read(&self, path: &Path) -> Result<Option<String>, String> {
        if !path.try_exists().map_err(|e| format!("{}: {e}", path.display()))? {
            return Ok(None);
        }
        read(path).map(Some).map_err(|e| e.to_string())
    }

    fn list(&self, folder: &Path) -> Result<Vec<PathBuf>, String> {
        let bad = |e: std::io::Error| format!("{}: {e}", folder.display());
        let entries = std::fs::read_dir(folder).map_err(bad)?;
        let mut all = entries.map(|entry| entry.map(|e| e.path()).map_err(bad)).collect::<Result<Vec<_>, _>>()?;
        all.sort();
        Ok(all)
    }
}

/// This host's addresses with their networks, for `samehost` and `samenet`; as they are when the rules are read.
fn networks() -> nix::Result<Vec<IpNet>> {
    let mut all = Vec::new();
    for interface in nix::ifaddrs::getifaddrs()? {
        let ip = |a: nix::sys::socket::SockaddrStorage| {
            let v4 = a.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| a.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        };
        let (address, mask) = (interface.address.and_then(ip), interface.netmask.and_then(ip));
        if let (Some(address), Some(mask)) = (address, mask)
            && let Ok(net) = IpNet::with_netmask(address, mask)
        {
            all.push(net);
        }
    }
    Ok(all)
}

/// The key of `AES` secrets: the first line of its file.
pub fn read_key(file: &Path) -> Result<Secret, AuthError> {
    let text = zeroize::Zeroizing::new(read(file)?);
    match text.lines().next().unwrap_or_default() {
        "" => Err(failed(file, &"the first line, the key, is empty")),
        key if key.len() > MAX_KEY => Err(failed(file, &format!("the key is longer than {MAX_KEY} bytes"))),
        key => Ok(Secret::new(key)),
    }
}

fn read(file: &Path) -> Result<String, AuthError> {
    let mut text = String::new();
    let opened = File::open(file).map_err(|e| failed(file, &e))?;
    opened.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|e| failed(file, &e))?;
    match u64::try_from(text.len()) {
        Ok(length) if length <= MAX_FILE => Ok(text),
        _ => Err(failed(file, &format!("longer than {MAX_FILE} bytes"))),
    }
}

fn name(file: &Path) -> String {
    file.display().to_string()
}

fn failed(file: &Path, why: &dyn Display) -> AuthError {
    AuthError::File { file: name(file), message: why.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_merged_by_rank() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(dir.path().join(name), text).unwrap();
            Some(dir.path().join(name))
        };
        let mut settings = Settings {
            hba_file: None,
            default_method: "scram-sha-256".into(),
            userlist_file: file("userlist.txt", "\"a\" \"one\"\n\"a\" \"two\"\n"),
            pool_passwd_file: file("pool_passwd", "a:three\nb:AESrKikG1lnoTVl89QqlcBNaA==\n"),
            key_file: file(".pgpoolkey", "mykey\n"),
            ident_file: None,
            query: None,
            ldap_ca_file: None,
            pam_service: "pgmend".into(),
        };
        let secrets = Secrets::load(&settings, [0; 32]).unwrap();
        assert_eq!(secrets.lookup("a"), Some(&StoredSecret::Plain(Secret::new("two"))));
        assert_eq!(secrets.lookup("b"), Some(&StoredSecret::Plain(Secret::new("TESTPW"))));
        assert_eq!(HbaRules::load(&settings).unwrap(), HbaRules::uniform(Method::Scram));
        settings.default_method = "odd".into();
        assert!(HbaRules::load(&settings).unwrap_err().to_string().contains("valid are"));
        settings.hba_file = file("hba", "local all +staff trust\ninclude_dir more\n");
        assert!(HbaRules::load(&settings).unwrap_err().to_string().contains("/more: "));
        std::fs::create_dir(dir.path().join("more")).unwrap();
        file("more/a.conf", "host all all samenet trust\n");
        assert!(HbaRules::load(&settings).unwrap_err().to_string().contains("set auth_user"));
        settings.userlist_file = Some(dir.path().join("missing"));
        assert!(Secrets::load(&settings, [0; 32]).unwrap_err().to_string().contains("missing: "));
    }
}
