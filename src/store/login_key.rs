//! A random key that outlives restarts, in a file of its own.

use super::{StoreError, files};
use std::path::Path;

const NAME: &str = "login_key";
const LENGTH: usize = 32;

/// Reads the key; makes it when there is none.
pub(super) fn read_or_make(directory: &Path) -> Result<[u8; LENGTH], StoreError> {
    let path = directory.join(NAME);
    if let Some(text) = files::read(&path)? {
        let damaged = || StoreError::Damaged {
            path: path.clone(),
            why: format!("expected {} hexadecimal digits; remove the file, and a new key is made", 2 * LENGTH),
        };
        return parse(text.trim_end()).ok_or_else(damaged);
    }
    let mut key = [0; LENGTH];
    getrandom::fill(&mut key).map_err(|e| StoreError::io(&path)(std::io::Error::other(e.to_string())))?;
    let text: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    files::replace_secret(directory, NAME, format!("{text}\n").as_bytes())?;
    Ok(key)
}

fn parse(text: &str) -> Option<[u8; LENGTH]> {
    if text.len() != 2 * LENGTH || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let byte = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
    (0..LENGTH).map(|n| byte(2 * n)).collect::<Option<Vec<u8>>>()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_key_outlives_restarts_and_nobody_else_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = read_or_make(dir.path()).unwrap();
        assert_eq!(read_or_make(dir.path()).unwrap(), first);
        let path = dir.path().join(NAME);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "short\n").unwrap();
        assert!(read_or_make(dir.path()).unwrap_err().to_string().contains("64 hexadecimal digits"));
        std::fs::remove_file(&path).unwrap();
        assert_ne!(read_or_make(dir.path()).unwrap(), first);
    }
}
