//! What is wrong with a configuration: file, line, key and what was expected.

use std::fmt;
use std::path::PathBuf;

/// More mistakes than this are not listed: the rest usually follow from the first ones.
const MAX_LISTED: usize = 50;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file that holds it.
    pub file: PathBuf,
    /// Line from 1; 0 when the mistake is that something is missing altogether.
    pub line: usize,
    /// Full key, such as `pool.mode` or `node[0].port`; empty when the file as a whole is wrong.
    pub key: String,
    /// What was expected, what was found, and the nearest valid key.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// All mistakes of a configuration, in the order of the file. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, error) in self.0.iter().take(MAX_LISTED).enumerate() {
            if number > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        if self.0.len() > MAX_LISTED {
            write!(f, "\nand {} more", self.0.len() - MAX_LISTED)?;
        }
        Ok(())
    }
}
