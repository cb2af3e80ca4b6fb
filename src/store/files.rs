//! Durable writing of small files: write aside, fsync, rename, fsync the folder.

use super::StoreError;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// A state file larger than this (bytes) is not ours; it bounds the memory a damaged file can take.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// Makes the folder (0700: journals quote scripts' output) when it is absent.
pub(super) fn make_directory(directory: &Path) -> Result<(), StoreError> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(StoreError::io(directory))
}

/// Replaces `name` so that after a crash either the old or the new content is there, whole.
pub(super) fn replace(directory: &Path, name: &str, content: &[u8]) -> Result<(), StoreError> {
    write(directory, name, content, 0o644)
}

/// As [`replace`], readable for nobody else.
pub(super) fn replace_secret(directory: &Path, name: &str, content: &[u8]) -> Result<(), StoreError> {
    write(directory, name, content, 0o600)
}

fn write(directory: &Path, name: &str, content: &[u8], mode: u32) -> Result<(), StoreError> {
    let path = directory.join(name);
    let aside = directory.join(format!(".{name}.new"));
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(mode);
    let mut file = options.open(&aside).map_err(StoreError::io(&aside))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(StoreError::io(&aside))?;
    std::fs::rename(&aside, &path).map_err(StoreError::io(&path))?;
    sync_directory(directory)
}

/// Makes names in the folder durable.
pub(super) fn sync_directory(directory: &Path) -> Result<(), StoreError> {
    File::open(directory).and_then(|d| d.sync_all()).map_err(StoreError::io(directory))
}

/// The content, or `None` when there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<String>, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(StoreError::io(path)(e)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(StoreError::io(path))?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}
