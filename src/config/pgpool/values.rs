//! Looks parameters up by name: the file's last value, else Pgpool-II's default, converted, with mistakes noted.

use super::grammar::{self, Entry};
use super::parameters;
use crate::config::error::ConfigError;
use crate::config::values;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The settings of a `pgpool.conf`.
pub struct Values {
    main: PathBuf,
    by_name: BTreeMap<String, Entry>,
    /// Files that were read, the main one first.
    pub files: Vec<PathBuf>,
    /// Mistakes so far.
    pub errors: RefCell<Vec<ConfigError>>,
}

impl Values {
    /// Reads a file and those that it includes.
    pub fn read(main: &Path, read: &dyn Fn(&Path) -> Result<String, String>) -> Self {
        let (entries, errors, files) = grammar::parse(main, read);
        let by_name = entries.into_iter().map(|entry| (entry.name.to_ascii_lowercase(), entry)).collect();
        Values { main: main.to_owned(), by_name, files, errors: RefCell::new(errors) }
    }

    /// The line that sets a parameter.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.by_name.get(&name.to_ascii_lowercase())
    }

    /// All lines, by name.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.by_name.values()
    }

    /// The value in force: the file's, else the default. A name with a node number falls back to the one without.
    pub fn text(&self, name: &str) -> &str {
        if let Some(entry) = self.entry(name) {
            return &entry.value;
        }
        let base = name.trim_end_matches(|c: char| c.is_ascii_digit());
        match self.entry(base) {
            Some(entry) => &entry.value,
            None => parameters::find(base).map_or("", |parameter| parameter.default),
        }
    }

    /// Notes a mistake at the line that sets `name`.
    pub fn error(&self, name: &str, message: impl Into<String>) {
        let entry = self.entry(name).or_else(|| self.entry(name.trim_end_matches(|c: char| c.is_ascii_digit())));
        let error = ConfigError {
            file: entry.map_or(&self.main, |entry| &entry.file).clone(),
            line: entry.map_or(0, |entry| entry.line),
            key: name.to_owned(),
            message: message.into(),
        };
        let mut errors = self.errors.borrow_mut();
        if !errors.contains(&error) {
            errors.push(error);
        }
    }

    /// A value converted by `read`; a mistake is noted and answered with `T`'s default.
    pub fn parsed<T: Default>(&self, name: &str, read: impl Fn(&str) -> Result<T, String>) -> T {
        read(self.text(name)).unwrap_or_else(|message| {
            self.error(name, message);
            T::default()
        })
    }

    /// on or off.
    pub fn boolean(&self, name: &str) -> bool {
        self.parsed(name, values::boolean)
    }

    /// A duration; plain numbers are seconds.
    pub fn seconds(&self, name: &str) -> Duration {
        self.parsed(name, |text| values::duration(text, Duration::from_secs(1)))
    }

    /// A duration; plain numbers are milliseconds.
    pub fn milliseconds(&self, name: &str) -> Duration {
        self.parsed(name, |text| values::duration(text, Duration::from_millis(1)))
    }

    /// A whole number within limits, both allowed.
    pub fn integer(&self, name: &str, least: u32, most: u32) -> u32 {
        self.parsed(name, |text| match text.trim().parse() {
            Ok(number) if (least..=most).contains(&number) => Ok(number),
            Ok(_) | Err(_) => Err(format!("expected a whole number from {least} to {most}, found \"{text}\"")),
        })
    }

    /// A port.
    pub fn port(&self, name: &str) -> u16 {
        u16::try_from(self.integer(name, 1, u16::MAX.into())).unwrap_or_default()
    }

    /// A list separated by commas.
    pub fn list(&self, name: &str) -> Vec<String> {
        let items = self.text(name).split(',').map(str::trim).filter(|item| !item.is_empty());
        items.map(str::to_owned).collect()
    }
}
