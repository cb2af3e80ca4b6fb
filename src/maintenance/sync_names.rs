//! `synchronous_standby_names`, read and written: after a change of the primary it names only standbys that stream.
//!
//! Grammar: <https://www.postgresql.org/docs/current/runtime-config-replication.html#GUC-SYNCHRONOUS-STANDBY-NAMES>.

use crate::base::identifier;

/// The setting.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SyncNames {
    /// `ANY` and not `FIRST`.
    any: bool,
    /// So many must confirm.
    count: usize,
    /// Their names, unquoted; `*` is all of them.
    names: Vec<String>,
}

impl SyncNames {
    /// Reads it. `None` for what PostgreSQL would not take either. Empty text: nobody is synchronous.
    pub fn parse(text: &str) -> Option<SyncNames> {
        let mut rest = text.trim();
        if rest.is_empty() {
            return Some(SyncNames::default());
        }
        let (mut any, mut count) = (false, 1);
        if let Some(body) = rest.strip_suffix(')')
            && let Some((head, inside)) = body.split_once('(')
        {
            let words: Vec<&str> = head.split_whitespace().collect();
            let number = match words.as_slice() {
                [number] => number,
                [method, number] if method.eq_ignore_ascii_case("FIRST") => number,
                [method, number] if method.eq_ignore_ascii_case("ANY") => {
                    any = true;
                    number
                }
                _ => return None,
            };
            count = number.parse().ok().filter(|n| *n > 0)?;
            rest = inside;
        }
        let names: Option<Vec<String>> = split(rest)?.iter().map(|name| unquote(name)).collect();
        let names = names?;
        (!names.is_empty()).then_some(SyncNames { any, count, names })
    }

    /// The same with one standby in the place of another: the roles of two nodes are exchanged.
    pub fn exchanged(&self, gone: &str, come: &str) -> SyncNames {
        let swap = |name: &String| if name.eq_ignore_ascii_case(gone) { come.to_owned() } else { name.clone() };
        let mut names: Vec<String> = Vec::new();
        for name in self.names.iter().map(swap) {
            if !names.iter().any(|n| n.eq_ignore_ascii_case(&name)) {
                names.push(name);
            }
        }
        SyncNames { names, ..self.clone() }
    }

    /// The same with a star written out.
    pub fn listed(&self, all: &[String]) -> SyncNames {
        if !self.names.iter().any(|n| n == "*") {
            return self.clone();
        }
        let names: Vec<String> = all.to_vec();
        SyncNames { any: self.any, count: self.count.min(names.len()), names }
    }

    /// True when nobody is waited for.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// So many standbys confirm each commit.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The same without some; no more confirmations than there are names left. A star stays.
    pub fn without(&self, gone: &[String]) -> SyncNames {
        let stays = |name: &&String| !gone.iter().any(|g| g.eq_ignore_ascii_case(name));
        let names: Vec<String> = self.names.iter().filter(stays).cloned().collect();
        let count = if names.iter().any(|n| n == "*") { self.count } else { self.count.min(names.len()) };
        SyncNames { any: self.any, count, names }
    }

    /// How many of its standbys must be there so that every acknowledged commit is on one of them.
    pub fn needed(&self) -> usize {
        (self.names.len() + 1).saturating_sub(self.count).max(1)
    }

    /// True when this standby may be waited for.
    pub fn names(&self, standby: &str) -> bool {
        self.names.iter().any(|name| name == "*" || name.eq_ignore_ascii_case(standby))
    }

    /// Only those that stream now, and no more confirmations than there are of them: writes never wait for somebody who is
    /// not there.
    pub fn only(&self, streaming: &[String]) -> SyncNames {
        let is_there = |name: &&String| streaming.iter().any(|s| *name == "*" || s.eq_ignore_ascii_case(name));
        let names: Vec<String> = self.names.iter().filter(is_there).cloned().collect();
        let all = names.iter().any(|n| n == "*");
        let count = self.count.min(if all { streaming.len() } else { names.len() });
        SyncNames { any: self.any, count, names }
    }
}

impl std::fmt::Display for SyncNames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.names.is_empty() {
            return Ok(());
        }
        let method = if self.any { "ANY" } else { "FIRST" };
        let names: Vec<String> = self.names.iter().map(|n| quote(n)).collect();
        write!(f, "{method} {} ({})", self.count, names.join(", "))
    }
}

fn quote(name: &str) -> String {
    if name == "*" { name.to_owned() } else { identifier(name) }
}

/// At commas that are not in quotes.
fn split(list: &str) -> Option<Vec<String>> {
    let (mut names, mut name, mut quoted) = (Vec::new(), String::new(), false);
    for letter in list.chars() {
        match letter {
            '"' => {
                quoted = !quoted;
                name.push(letter);
            }
            ',' if !quoted => names.push(std::mem::take(&mut name)),
            other => name.push(other),
        }
    }
    names.push(name);
    (!quoted).then_some(names)
}

fn unquote(word: &str) -> Option<String> {
    let word = word.trim();
    let name = match word.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"')?.replace("\"\"", "\""),
        None => word.to_owned(),
    };
    let odd = !word.starts_with('"') && name.contains(['(', ')', ' ']);
    (!name.is_empty() && !odd).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> SyncNames {
        SyncNames::parse(text).unwrap()
    }

    #[test]
    fn reads_what_postgresql_reads() {
        assert_eq!(read(" "), SyncNames::default());
        assert_eq!(read("a, B").to_string(), "FIRST 1 (\"a\", \"B\")");
        assert_eq!(read("2 (a,b , c)").to_string(), "FIRST 2 (\"a\", \"b\", \"c\")");
        assert_eq!(read("any 1 (\"x,\"\"y\", *)").to_string(), "ANY 1 (\"x,\"\"y\", *)");
        for wrong in ["a,,b", "FIRST x (a)", "ANY 0 (a)", "(a", "\"a", "MOST 1 (a)"] {
            assert_eq!(SyncNames::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn roles_are_exchanged_and_only_who_streams_is_named() {
        let names = read("ANY 2 (pgmend_1, pgmend_2)").exchanged("PGMEND_1", "pgmend_0");
        assert_eq!(names.to_string(), "ANY 2 (\"pgmend_0\", \"pgmend_2\")");
        let there = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!(names.only(&there(&["pgmend_2"])).to_string(), "ANY 1 (\"pgmend_2\")");
        assert_eq!(names.only(&there(&["pgmend_2", "pgmend_0"])), names);
        assert_eq!(names.only(&[]).to_string(), "");
        assert_eq!(read("*").only(&[]).to_string(), "");
        assert_eq!(read("*").listed(&there(&["x", "y"])).to_string(), "FIRST 1 (\"x\", \"y\")");
        assert!(read("*").names("any") && !read("a").names("b") && read("").is_empty());
        assert_eq!(names.without(&there(&["PGMEND_0"])).to_string(), "ANY 1 (\"pgmend_2\")");
        assert!(names.without(&there(&["pgmend_0", "pgmend_2"])).is_empty());
        assert_eq!(read("2 (*)").without(&there(&["x"])).count(), 2);
        assert_eq!(read("2 (*)").only(&there(&["x"])).to_string(), "FIRST 1 (*)");
    }
}
