//! The text of a `pgpool.conf`: `name = value`, quotes, comments, `include`; of several values the last one counts.

use crate::config::error::ConfigError;
use std::path::{Path, PathBuf};

/// Files may include others this deep, as in PostgreSQL; a cycle ends here.
const MAX_DEPTH: usize = 10;
/// More settings than this are a mistake (a cycle of includes, mostly).
const MAX_ENTRIES: usize = 10_000;

/// One line that sets something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As written.
    pub name: String,
    /// Without its quotes.
    pub value: String,
    /// Where.
    pub file: PathBuf,
    /// Line from 1.
    pub line: usize,
}

/// All settings of a file and of those that it includes, in order. `read` brings a file's text.
pub fn parse(
    file: &Path,
    read: &dyn Fn(&Path) -> Result<String, String>,
) -> (Vec<Entry>, Vec<ConfigError>, Vec<PathBuf>) {
    let mut state = State { entries: Vec::new(), errors: Vec::new(), files: Vec::new(), read };
    state.file(file, 0);
    (state.entries, state.errors, state.files)
}

struct State<'a> {
    entries: Vec<Entry>,
    errors: Vec<ConfigError>,
    files: Vec<PathBuf>,
    read: &'a dyn Fn(&Path) -> Result<String, String>,
}

impl State<'_> {
    fn file(&mut self, file: &Path, depth: usize) {
        let text = match (self.read)(file) {
            Ok(text) => text,
            Err(message) => return self.error(file, 0, "", message),
        };
        self.files.push(file.to_owned());
        for (number, line) in text.lines().enumerate() {
            let number = number + 1;
            match split(line) {
                Ok(None) => {}
                Ok(Some((name, value))) if name.eq_ignore_ascii_case("include") => {
                    if depth >= MAX_DEPTH {
                        self.error(file, number, "include", format!("expected at most {MAX_DEPTH} levels of files"));
                        return;
                    }
                    let folder = file.parent().unwrap_or(Path::new("."));
                    self.file(&folder.join(value), depth + 1);
                }
                Ok(Some(_)) if self.entries.len() >= MAX_ENTRIES => {
                    return self.error(file, number, "", format!("expected at most {MAX_ENTRIES} settings"));
                }
                Ok(Some((name, value))) => {
                    self.entries.push(Entry { name, value, file: file.to_owned(), line: number });
                }
                Err(message) => self.error(file, number, "", message),
            }
        }
    }

    fn error(&mut self, file: &Path, line: usize, key: &str, message: String) {
        self.errors.push(ConfigError { file: file.to_owned(), line, key: key.to_owned(), message });
    }
}

/// Splits one line into name and value; `None` for comments and empty lines. The `=` may be left out.
fn split(line: &str) -> Result<Option<(String, String)>, String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let wrong = || format!("expected name = value, found \"{line}\"");
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.')).ok_or_else(wrong)?;
    let (name, rest) = line.split_at(end);
    if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        return Err(wrong());
    }
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let (value, tail) = match rest.strip_prefix('\'') {
        Some(quoted) => unquote(quoted).ok_or_else(|| format!("expected a closing quote in \"{line}\""))?,
        None => {
            let end = rest.find(|c: char| c == '#' || c.is_whitespace()).unwrap_or(rest.len());
            let (value, tail) = rest.split_at(end);
            if value.is_empty() {
                return Err(wrong());
            }
            (value.to_owned(), tail)
        }
    };
    let tail = tail.trim_start();
    if tail.is_empty() || tail.starts_with('#') {
        Ok(Some((name.to_owned(), value)))
    } else {
        Err(format!("expected the end of the line or a comment after the value, found \"{tail}\""))
    }
}

/// The text up to the closing quote, and what follows it. Quotes are doubled or escaped, as in `postgresql.conf`.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match c {
            '\'' if rest.as_str().starts_with('\'') => {
                rest.next();
                value.push('\'');
            }
            '\'' => return Some((value, rest.as_str())),
            '\\' => match rest.next()? {
                'n' => value.push('\n'),
                't' => value.push('\t'),
                'r' => value.push('\r'),
                'b' => value.push('\u{8}'),
                'f' => value.push('\u{c}'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> Result<String, String> {
        match path.to_str() {
            Some("/c/main") => Ok("# comment\nport = 9999 # why\ninclude = 'more'\nPORT '1'\n".into()),
            Some("/c/more") => Ok("a = 'it''s # \\'here\\''\nb=\nc = 'open\nd = 1 2\nheartbeat0 = x\n".into()),
            Some("/c/loop") => Ok("include = 'loop'\n".into()),
            _ => Err("cannot be read".into()),
        }
    }

    #[test]
    fn names_values_quotes_comments_and_includes() {
        let (entries, errors, files) = parse(Path::new("/c/main"), &read);
        let found: Vec<_> = entries.iter().map(|e| (e.name.as_str(), e.value.as_str(), e.line)).collect();
        assert_eq!(found, [("port", "9999", 2), ("a", "it's # 'here'", 1), ("heartbeat0", "x", 5), ("PORT", "1", 4)]);
        let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            errors,
            [
                "/c/more:2: expected name = value, found \"b=\"",
                "/c/more:3: expected a closing quote in \"c = 'open\"",
                "/c/more:4: expected the end of the line or a comment after the value, found \"2\"",
            ]
        );
        assert_eq!(files.len(), 2);
    }

    #[test]
    fn a_cycle_of_includes_ends() {
        let (_, errors, _) = parse(Path::new("/c/loop"), &read);
        assert_eq!(errors[0].to_string(), "/c/loop:1: include: expected at most 10 levels of files");
    }
}
