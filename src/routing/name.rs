//! Names of relations and functions, as a statement has them: with a schema or to be found by `search_path`.

use crate::base::identifier;
use pg_query::protobuf as pb;
use std::fmt;

/// A name, already folded as PostgreSQL does it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// The schema, when the text has one.
    pub schema: Option<String>,
    /// The name itself.
    pub name: String,
}

impl Name {
    /// A name without a schema.
    pub fn plain(name: impl Into<String>) -> Name {
        Name { schema: None, name: name.into() }
    }

    /// A name with its schema.
    pub fn of_schema(schema: impl Into<String>, name: impl Into<String>) -> Name {
        Name { schema: Some(schema.into()), name: name.into() }
    }

    pub(super) fn of(relation: &pb::RangeVar) -> Name {
        let schema = Some(relation.schemaname.clone()).filter(|schema| !schema.is_empty());
        Name { schema, name: relation.relname.clone() }
    }

    /// The last two parts.
    pub(super) fn from_parts(parts: &[&str]) -> Name {
        match parts {
            [.., schema, name] => Name::of_schema(*schema, *name),
            [name] => Name::plain(*name),
            [] => Name::plain(""),
        }
    }

    /// Reads a name as `regclass` does: parts with dots, quoted or folded to lower case.
    pub fn parse(text: &str) -> Option<Name> {
        let mut parts = Vec::new();
        let mut rest = text.trim();
        loop {
            let (part, behind) = match rest.strip_prefix('"') {
                Some(quoted) => quoted_part(quoted)?,
                None => plain_part(rest)?,
            };
            parts.push(part);
            rest = behind.trim_start();
            match rest.strip_prefix('.') {
                Some(more) => rest = more.trim_start(),
                None if rest.is_empty() => break,
                None => return None,
            }
        }
        let mut parts = parts.into_iter();
        match (parts.next(), parts.next(), parts.next()) {
            (Some(name), None, _) => Some(Name::plain(name)),
            (Some(schema), Some(name), None) => Some(Name::of_schema(schema, name)),
            _ => None,
        }
    }

    /// True when it names something of PostgreSQL's own, or may do so.
    pub(super) fn may_be_builtin(&self) -> bool {
        self.schema.as_deref().is_none_or(|schema| schema == "pg_catalog")
    }
}

/// Quoted, as SQL has it and `regclass` takes it.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(schema) = &self.schema {
            write!(f, "{}.", identifier(schema))?;
        }
        f.write_str(&identifier(&self.name))
    }
}

fn quoted_part(text: &str) -> Option<(String, &str)> {
    let mut part = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c != '"' {
            part.push(c);
        } else if chars.next_if(|(_, next)| *next == '"').is_some() {
            part.push('"');
        } else {
            return (!part.is_empty()).then(|| (part, text.get(at + 1..).unwrap_or_default()));
        }
    }
    None
}

fn plain_part(text: &str) -> Option<(String, &str)> {
    let end = text.find(|c: char| c == '.' || c == '"' || c.is_whitespace()).unwrap_or(text.len());
    let (part, rest) = text.split_at_checked(end)?;
    let starts_well = part.chars().next().is_some_and(|c| !c.is_ascii_digit() && c != '-');
    starts_well.then(|| (part.to_ascii_lowercase(), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_regclass_reads_them() {
        for (text, wanted) in [
            ("t_id_seq", Some("\"t_id_seq\"")),
            ("Public . T", Some("\"public\".\"t\"")),
            ("\"A b\".\"c\"\"d\"", Some("\"A b\".\"c\"\"d\"")),
            ("16384", None),
            ("a b", None),
            ("\"open", None),
            ("a.b.c", None),
            ("a.", None),
            ("", None),
            ("-", None),
        ] {
            assert_eq!(Name::parse(text).map(|n| n.to_string()).as_deref(), wanted, "{text}");
        }
    }
}
