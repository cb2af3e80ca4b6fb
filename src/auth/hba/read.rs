//! The lines of a file, of the files that it includes, and of files of names.

use super::super::AuthError;
use super::super::ident::IdentMaps;
use super::words::{Field, Word, fields, joined_lines};
use ipnet::IpNet;
use std::path::{Path, PathBuf};

/// Files within files; PostgreSQL's limit.
const MAX_DEPTH: usize = 10;
/// Files in all.
const MAX_FILES: usize = 1000;
/// Names that files of names may bring into one line.
const MAX_NAMES: usize = 100_000;

/// What rules are read among.
pub(in crate::auth) struct Surroundings<'a> {
    /// For `include` and `@file`.
    pub files: &'a dyn Files,
    /// This host's addresses with their networks.
    pub networks: &'a [IpNet],
    /// For `map`.
    pub maps: &'a IdentMaps,
}

/// Where included files come from.
pub(in crate::auth) trait Files {
    /// A file's text; `None` when there is none.
    fn read(&self, path: &Path) -> Result<Option<String>, String>;
    /// The files of a folder, in order of their names.
    fn list(&self, folder: &Path) -> Result<Vec<PathBuf>, String>;
}

/// Nothing can be included.
pub(super) struct NoFiles;

impl Files for NoFiles {
    fn read(&self, _: &Path) -> Result<Option<String>, String> {
        Err("no file can be included here".into())
    }
    fn list(&self, _: &Path) -> Result<Vec<PathBuf>, String> {
        Err("no file can be included here".into())
    }
}

type Take<'a> = &'a mut dyn FnMut(&[Field]) -> Result<(), String>;

/// Gives each line that is not empty, in order, with what it includes in its place.
pub(in crate::auth) fn each_line(text: &str, file: &str, files: &dyn Files, take: Take<'_>) -> Result<(), AuthError> {
    Reader { files, take, left: MAX_FILES }.file(text, Path::new(file), 0)
}

struct Reader<'a> {
    files: &'a dyn Files,
    take: Take<'a>,
    /// Files that may still be read.
    left: usize,
}

impl Reader<'_> {
    fn file(&mut self, text: &str, file: &Path, depth: usize) -> Result<(), AuthError> {
        for (line, text) in joined_lines(text) {
            let bad = |message: String| AuthError::Line { file: file.display().to_string(), line, message };
            let mut fields = fields(&text).map_err(bad)?;
            if let Some((how, path)) = include(&fields).map_err(bad)? {
                if depth == MAX_DEPTH {
                    return Err(bad(format!("more than {MAX_DEPTH} files include each other")));
                }
                self.left = self.left.checked_sub(1).ok_or_else(|| bad(format!("more than {MAX_FILES} files")))?;
                for (path, text) in self.included(how, &beside(file, &path)).map_err(bad)? {
                    self.file(&text, &path, depth + 1)?;
                }
                continue;
            }
            for field in &mut fields {
                *field = self.with_names(field, file, depth).map_err(bad)?;
            }
            if !fields.is_empty() {
                (self.take)(&fields).map_err(bad)?;
            }
        }
        Ok(())
    }

    fn included(&self, how: Include, path: &Path) -> Result<Vec<(PathBuf, String)>, String> {
        let missing = || format!("{} does not exist", path.display());
        match how {
            Include::File => {
                let text = self.files.read(path)?.ok_or_else(missing)?;
                Ok(vec![(path.to_owned(), text)])
            }
            Include::IfExists => Ok(self.files.read(path)?.map(|text| (path.to_owned(), text)).into_iter().collect()),
            Include::Folder => {
                let mut all = Vec::new();
                for path in self.files.list(path)? {
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    if name.ends_with(".conf") && !name.starts_with('.') {
                        let text = self.files.read(&path)?.unwrap_or_default();
                        all.push((path, text));
                    }
                }
                Ok(all)
            }
        }
    }

    /// A field with the words of its `@file`s in their place.
    fn with_names(&self, field: &Field, file: &Path, depth: usize) -> Result<Field, String> {
        let mut all: Vec<Word> = Vec::new();
        for word in field {
            match word.text.strip_prefix('@') {
                Some(name) if !word.quoted && !name.is_empty() => {
                    if depth == MAX_DEPTH {
                        return Err(format!("more than {MAX_DEPTH} files include each other"));
                    }
                    let path = beside(file, name);
                    let missing = || format!("{} does not exist", path.display());
                    let text = self.files.read(&path)?.ok_or_else(missing)?;
                    for (_, line) in joined_lines(&text) {
                        for field in fields(&line)? {
                            all.extend(self.with_names(&field, &path, depth + 1)?);
                        }
                    }
                }
                _ => all.push(word.clone()),
            }
            if all.len() > MAX_NAMES {
                return Err(format!("more than {MAX_NAMES} names in one line"));
            }
        }
        Ok(all)
    }
}

enum Include {
    File,
    IfExists,
    Folder,
}

fn include(fields: &[Field]) -> Result<Option<(Include, String)>, String> {
    let Some([first]) = fields.first().map(Vec::as_slice) else { return Ok(None) };
    let how = match (first.quoted, first.text.as_str()) {
        (false, "include") => Include::File,
        (false, "include_if_exists") => Include::IfExists,
        (false, "include_dir") => Include::Folder,
        _ => return Ok(None),
    };
    match fields.get(1).map(Vec::as_slice) {
        Some([path]) if fields.len() == 2 => Ok(Some((how, path.text.clone()))),
        _ => Err(format!("expected one path after \"{}\"", first.text)),
    }
}

/// A path from the folder of the file that names it.
fn beside(file: &Path, path: &str) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).join(path)
}
