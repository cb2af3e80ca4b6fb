//! Reads one TOML table key by key, noting every mistake with its line instead of stopping at the first.
//!
//! The list of valid keys is the list of keys that were asked for, so it cannot drift from what is read.

use super::error::ConfigError;
use super::values;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What is collected while a file is read.
pub struct Notes<'a> {
    file: &'a Path,
    text: &'a str,
    /// Mistakes so far.
    pub errors: RefCell<Vec<ConfigError>>,
    /// Line of every key that was given.
    pub lines: RefCell<BTreeMap<String, usize>>,
    /// (key, value, `set` or `default`), in the order in which they were asked for.
    pub listed: RefCell<Vec<(String, String, String)>>,
}

impl<'a> Notes<'a> {
    /// Nothing noted yet.
    pub fn new(file: &'a Path, text: &'a str) -> Self {
        Notes { file, text, errors: RefCell::default(), lines: RefCell::default(), listed: RefCell::default() }
    }
    /// Line, from 1, of a byte position.
    pub fn line_at(&self, position: usize) -> usize {
        let upto = self.text.as_bytes().get(..position).unwrap_or_default();
        1 + upto.iter().filter(|byte| **byte == b'\n').count()
    }
    /// Notes a mistake.
    pub fn error(&self, line: usize, key: &str, message: impl Into<String>) {
        let error = ConfigError { file: self.file.to_owned(), line, key: key.to_owned(), message: message.into() };
        self.errors.borrow_mut().push(error);
    }
}

/// One table of the file, present or not.
pub struct Section<'a> {
    notes: &'a Notes<'a>,
    path: String,
    table: Option<&'a DeTable<'a>>,
    known: RefCell<Vec<&'static str>>,
}

impl<'a> Section<'a> {
    /// The whole file.
    pub fn root(notes: &'a Notes<'a>, table: &'a DeTable<'a>) -> Self {
        Section { notes, path: String::new(), table: Some(table), known: RefCell::default() }
    }

    /// A table inside this one; absent tables answer every question with the default.
    pub fn section(&self, key: &'static str) -> Section<'a> {
        let table = self.find(key).and_then(|(line, value)| {
            let table = value.as_table();
            if table.is_none() {
                self.wrong(key, line, "a table", value);
            }
            table
        });
        Section { notes: self.notes, path: self.full(key), table, known: RefCell::default() }
    }

    /// The tables of `[[key]]`, in order.
    pub fn sections(&self, key: &'static str) -> Vec<Section<'a>> {
        let Some((line, value)) = self.find(key) else { return Vec::new() };
        let Some(array) = value.as_array() else {
            self.wrong(key, line, "tables written as [[node]]", value);
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (number, item) in array.iter().enumerate() {
            let path = format!("{}[{number}]", self.full(key));
            let line = self.notes.line_at(item.span().start);
            self.notes.lines.borrow_mut().insert(path.clone(), line);
            match item.get_ref().as_table() {
                Some(table) => {
                    let known = RefCell::default();
                    sections.push(Section { notes: self.notes, path, table: Some(table), known });
                }
                None => self.notes.error(line, &path, format!("expected a table, found {}", shown(item.get_ref()))),
            }
        }
        sections
    }

    /// Tables by names that the operator chooses, such as databases.
    pub fn named_sections(&self) -> Vec<(String, Section<'a>)> {
        let mut sections = Vec::new();
        for (key, value) in self.table.into_iter().flat_map(|table| table.iter()) {
            let name = key.get_ref().to_string();
            let path = self.full(&name);
            let line = self.notes.line_at(key.span().start);
            match value.get_ref().as_table() {
                Some(table) => {
                    let known = RefCell::default();
                    sections.push((name, Section { notes: self.notes, path, table: Some(table), known }));
                }
                None => self.notes.error(line, &path, format!("expected a table, found {}", shown(value.get_ref()))),
            }
        }
        sections
    }

    /// A text; `None` when it is absent or empty.
    pub fn text(&self, key: &'static str) -> Option<String> {
        let value = self.scalar(key, "a text", |value| match value {
            DeValue::String(text) => without_nul(text),
            other => Err(shown(other)),
        });
        let value = value.filter(|text| !text.is_empty());
        self.list(key, value.as_deref().unwrap_or_default());
        value
    }

    /// A text with a default.
    pub fn text_or(&self, key: &'static str, default: &str) -> String {
        self.text(key).unwrap_or_else(|| default.to_owned())
    }

    /// A text that is never shown again; it may be empty.
    pub fn secret(&self, key: &'static str) -> crate::base::Secret {
        let value = self.scalar(key, "a text", |value| match value {
            DeValue::String(text) => without_nul(text).map(crate::base::Secret::new),
            _ => Err("something else".to_owned()),
        });
        self.list(key, if value.is_some() { "********" } else { "" });
        value.unwrap_or_default()
    }

    /// A text with a default that may be set to the empty text.
    pub fn text_maybe_empty(&self, key: &'static str, default: &str) -> String {
        let value = self.scalar(key, "a text", |value| match value {
            DeValue::String(text) => without_nul(text),
            other => Err(shown(other)),
        });
        let value = value.unwrap_or_else(|| default.to_owned());
        self.list(key, &value);
        value
    }

    /// A path; relative ones are taken from `folder`.
    pub fn path(&self, key: &'static str, folder: &Path) -> Option<PathBuf> {
        self.text(key).map(|text| folder.join(text))
    }

    /// A list of texts.
    pub fn texts(&self, key: &'static str, default: &[&str]) -> Vec<String> {
        let value = self.scalar(key, "a list of texts such as [\"a\", \"b\"]", |value| {
            let items = value.as_array().ok_or_else(|| shown(value))?;
            items
                .iter()
                .map(|item| item.get_ref().as_str().map(str::to_owned).ok_or_else(|| shown(item.get_ref())))
                .collect()
        });
        let value: Vec<String> = value.unwrap_or_else(|| default.iter().map(|text| (*text).to_owned()).collect());
        self.list(key, &value.join(","));
        value
    }

    /// An integer within limits, both allowed.
    pub fn integer(&self, key: &'static str, default: u32, least: u32, most: u32) -> u32 {
        let expected = format!("a whole number from {least} to {most}");
        let value = self.scalar(key, &expected, |value| {
            let found = value.as_integer().ok_or_else(|| shown(value))?;
            match i64::from_str_radix(found.as_str(), found.radix()).ok().and_then(|number| u32::try_from(number).ok())
            {
                Some(number) if (least..=most).contains(&number) => Ok(number),
                Some(_) | None => Err(found.as_str().to_owned()),
            }
        });
        let value = value.unwrap_or(default);
        self.list(key, &value.to_string());
        value
    }

    /// An integer within limits, both allowed, that may be negative.
    pub fn signed(&self, key: &'static str, default: i64, least: i64, most: i64) -> i64 {
        let value = self.scalar(key, &format!("a whole number from {least} to {most}"), |value| {
            let found = value.as_integer().ok_or_else(|| shown(value))?;
            let number = i64::from_str_radix(found.as_str(), found.radix()).ok();
            number.filter(|number| (least..=most).contains(number)).ok_or_else(|| found.as_str().to_owned())
        });
        let value = value.unwrap_or(default);
        self.list(key, &value.to_string());
        value
    }

    /// An integer that may be left out.
    pub fn maybe_integer(&self, key: &'static str, least: u32, most: u32) -> Option<u32> {
        self.is_given(key).then(|| self.integer(key, least, least, most))
    }

    /// A duration that may be left out.
    pub fn maybe_duration(&self, key: &'static str) -> Option<Duration> {
        self.is_given(key).then(|| self.duration(key, "0s"))
    }

    /// A port, from 1 to 65535.
    pub fn port(&self, key: &'static str, default: u16) -> u16 {
        u16::try_from(self.integer(key, default.into(), 1, u16::MAX.into())).unwrap_or(default)
    }

    /// A number that is not negative.
    pub fn number(&self, key: &'static str, default: f64) -> f64 {
        let value = self.scalar(key, "a number that is not negative", |value| {
            let text = match value {
                DeValue::Integer(number) => number.as_str(),
                DeValue::Float(number) => number.as_str(),
                other => return Err(shown(other)),
            };
            text.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0).ok_or_else(|| text.to_owned())
        });
        let value = value.unwrap_or(default);
        self.list(key, &value.to_string());
        value
    }

    /// true or false.
    pub fn boolean(&self, key: &'static str, default: bool) -> bool {
        let value = self.scalar(key, "true or false", |value| value.as_bool().ok_or_else(|| shown(value)));
        let value = value.unwrap_or(default);
        self.list(key, if value { "true" } else { "false" });
        value
    }

    /// A duration with a unit, or a plain number of seconds.
    pub fn duration(&self, key: &'static str, default: &str) -> Duration {
        let text = match self.find(key) {
            None => None,
            Some((_, DeValue::String(text))) => Some(text.to_string()),
            Some((_, DeValue::Integer(number))) => Some(number.as_str().to_owned()),
            Some((line, other)) => {
                self.wrong(key, line, "a duration such as \"10s\", or a number of seconds", other);
                None
            }
        };
        self.list(key, text.as_deref().unwrap_or(default));
        self.parsed(key, text.as_deref(), default, |text| values::duration(text, Duration::from_secs(1)))
    }

    /// One of several words.
    pub fn choice<T: Copy>(&self, key: &'static str, default: &str, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text(key);
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let pick = |text: &str| choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if let Some(text) = &text
            && pick(text).is_none()
        {
            self.error(key, values::not_one_of(text, &words));
        }
        text.as_deref().and_then(pick).or_else(|| pick(default))
    }

    /// A text that `read` turns into a value; its error is noted and the default taken, to find further mistakes.
    pub fn parsed<T: Default>(
        &self,
        key: &'static str,
        text: Option<&str>,
        default: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> T {
        match read(text.unwrap_or(default)) {
            Ok(value) => value,
            Err(message) => {
                self.error(key, message);
                read(default).unwrap_or_default()
            }
        }
    }

    /// Notes a mistake at a key of this section.
    pub fn error(&self, key: &str, message: impl Into<String>) {
        let full = self.full(key);
        let line = self.notes.lines.borrow().get(&full).copied();
        let line = line.or_else(|| self.notes.lines.borrow().get(&self.path).copied()).unwrap_or(0);
        self.notes.error(line, &full, message);
    }

    /// Call it last: whatever was not asked for is unknown.
    pub fn finish(self) {
        let known = self.known.borrow();
        for (key, _) in self.table.into_iter().flat_map(|table| table.iter()) {
            let name: &str = key.get_ref();
            if known.contains(&name) {
                continue;
            }
            let mut message = "unknown key".to_owned();
            match values::nearest(name, known.iter().copied()) {
                Some(near) => message.push_str(&format!("; did you mean \"{near}\"?")),
                None => message.push_str(&format!("; known here are {}", known.join(", "))),
            }
            self.notes.error(self.notes.line_at(key.span().start), &self.full(name), message);
        }
    }

    fn full(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Notes the key as known, and says whether it is there.
    fn is_given(&self, key: &'static str) -> bool {
        self.find(key).is_some()
    }

    fn list(&self, key: &str, value: &str) {
        let full = self.full(key);
        let origin = if self.notes.lines.borrow().contains_key(&full) { "set in the file" } else { "default" };
        self.notes.listed.borrow_mut().push((full, value.to_owned(), origin.to_owned()));
    }

    fn find(&self, key: &'static str) -> Option<(usize, &'a DeValue<'a>)> {
        self.known.borrow_mut().push(key);
        let (name, value): (_, &Spanned<DeValue<'a>>) =
            self.table?.iter().find(|(name, _)| name.get_ref().as_ref() as &str == key)?;
        let line = self.notes.line_at(name.span().start);
        self.notes.lines.borrow_mut().insert(self.full(key), line);
        Some((line, value.get_ref()))
    }

    fn scalar<T>(
        &self,
        key: &'static str,
        expected: &str,
        read: impl Fn(&DeValue<'a>) -> Result<T, String>,
    ) -> Option<T> {
        let (line, value) = self.find(key)?;
        match read(value) {
            Ok(value) => Some(value),
            Err(found) => {
                self.notes.error(line, &self.full(key), format!("expected {expected}, found {found}"));
                None
            }
        }
    }

    fn wrong(&self, key: &str, line: usize, expected: &str, found: &DeValue<'_>) {
        self.notes.error(line, &self.full(key), format!("expected {expected}, found {}", shown(found)));
    }
}

/// Texts become names of files, words of the protocol and arguments, which all end at a NUL.
fn without_nul(text: &str) -> Result<String, String> {
    if text.contains('\0') { Err("one with a NUL character".to_owned()) } else { Ok(text.to_owned()) }
}

/// A value in an error message.
fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text \"{text}\""),
        DeValue::Integer(number) => number.as_str().to_owned(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(value) => format!("the date {value}"),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}
