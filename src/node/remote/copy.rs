//! The long works at a node's machine: emptying its directory, `pg_basebackup`, `pg_rewind`. Children of ours, whose end here is
//! their end there.

use super::super::{Child, NodeError};
use super::Remote;
use super::script::command;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

impl Remote {
    /// Empties the directory, its log elsewhere, and of tablespaces' places what is of this version. It refuses while a server
    /// runs there.
    pub fn emptying(&self, wal: Option<&Path>, spaces: &[PathBuf], major: u32) -> Child {
        let words = std::iter::once("empty".into()).chain(spaces.iter().map(|s| s.to_string_lossy()));
        let wal = wal.map(Path::to_string_lossy).unwrap_or_default();
        self.long(&command(words), &[("M", &major.to_string()), ("W", &wal)], &[])
    }

    /// One of PostgreSQL's programs. It refuses while a server runs there.
    pub(in crate::node) fn program(
        &self,
        name: &str,
        arguments: &[OsString],
        major: u32,
        secrets: &[(&str, &str)],
    ) -> Result<Child, NodeError> {
        let text = |word: &OsString| {
            word.to_str().map(str::to_owned).ok_or_else(|| NodeError::Spawn {
                program: name.to_owned(),
                why: "one of its arguments is not UTF-8".to_owned(),
            })
        };
        let arguments: Vec<String> = arguments.iter().map(text).collect::<Result<_, _>>()?;
        let call = format!(
            "us\nprograms\nif postmaster; then refuse \"process $p runs on $D\"; fi\nexec \"$P/{name}\" {}",
            command(arguments)
        );
        Ok(self.long(&call, &[("M", &major.to_string()), ("W", "")], secrets))
    }
}
