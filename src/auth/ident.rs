//! Maps from names of the outside world to users, in the language of `pg_ident.conf`.
//!
//! <https://www.postgresql.org/docs/17/auth-username-maps.html>

use super::AuthError;
use super::hba::Files;
use super::hba::words::Word;
use super::pattern::Pattern;
use std::collections::HashMap;
use std::sync::Arc;

/// Lines of one file and those that it includes.
const MAX_LINES: usize = 100_000;

/// All maps of a file, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct IdentMaps {
    maps: HashMap<String, Arc<IdentMap>>,
}

/// One map.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct IdentMap {
    lines: Vec<Line>,
}

#[derive(Clone, Debug, PartialEq)]
struct Line {
    system: System,
    user: User,
}

#[derive(Clone, Debug, PartialEq)]
enum System {
    Exactly(String),
    Pattern(Pattern),
}

#[derive(Clone, Debug, PartialEq)]
enum User {
    All,
    Role(String),
    Pattern(Pattern),
    /// `\1` stands for what the system name's first group matched.
    WithGroup(String),
    Exactly(String),
}

impl IdentMaps {
    /// Reads a file's text.
    pub(super) fn parse(text: &str, file_name: &str, files: &dyn Files) -> Result<IdentMaps, AuthError> {
        let mut maps: HashMap<String, IdentMap> = HashMap::new();
        let mut count = 0;
        super::hba::each_line(text, file_name, files, &mut |fields| {
            let [name, system, user] = fields else {
                return Err(format!("expected a map's name, a system name and a user; found {} fields", fields.len()));
            };
            let ([name], [system], [user]) = (name.as_slice(), system.as_slice(), user.as_slice()) else {
                return Err("lists with commas are not possible here; write a line for each".into());
            };
            count += 1;
            if count > MAX_LINES {
                return Err(format!("more than {MAX_LINES} lines"));
            }
            maps.entry(name.text.clone()).or_default().lines.push(line(system, user)?);
            Ok(())
        })?;
        Ok(IdentMaps { maps: maps.into_iter().map(|(name, map)| (name, Arc::new(map))).collect() })
    }

    /// The map of a name.
    pub fn map(&self, name: &str) -> Option<Arc<IdentMap>> {
        self.maps.get(name).cloned()
    }
}

fn line(system: &Word, user: &Word) -> Result<Line, String> {
    let system = match system.text.strip_prefix('/') {
        Some(pattern) => System::Pattern(Pattern::parse(pattern)?),
        None => System::Exactly(system.text.clone()),
    };
    let user = match (user.quoted, user.text.as_str()) {
        (false, "all") => User::All,
        (false, text) if text.starts_with('+') => User::Role(text.trim_start_matches('+').to_owned()),
        (_, text) if text.starts_with('/') => User::Pattern(Pattern::parse(text.trim_start_matches('/'))?),
        (_, text) if text.contains("\\1") && matches!(system, System::Pattern(_)) => User::WithGroup(text.to_owned()),
        (_, text) => User::Exactly(text.to_owned()),
    };
    match (&system, &user) {
        (System::Pattern(pattern), User::WithGroup(_)) if !pattern.has_group() => {
            Err("\\1 needs a group in parentheses in the system name".into())
        }
        _ => Ok(Line { system, user }),
    }
}

impl IdentMap {
    /// Whether `name` may be `user`, who is a member of `roles`.
    pub fn permits(&self, name: &str, user: &str, roles: &[String]) -> bool {
        self.lines.iter().any(|line| line.permits(name, user, roles))
    }

    /// True when it names roles.
    pub fn needs_roles(&self) -> bool {
        self.lines.iter().any(|line| matches!(line.user, User::Role(_)))
    }
}

impl Line {
    fn permits(&self, name: &str, user: &str, roles: &[String]) -> bool {
        let group = match &self.system {
            System::Exactly(own) if own == name => None,
            System::Exactly(_) => return false,
            System::Pattern(pattern) => match pattern.first_group(name) {
                Some(group) => group,
                None => return false,
            },
        };
        match &self.user {
            User::All => true,
            User::Role(role) => roles.contains(role),
            User::Pattern(pattern) => pattern.fits(user),
            // PostgreSQL replaces the first one only. A group that took no part matches nobody.
            User::WithGroup(text) => group.is_some_and(|group| text.replacen("\\1", group, 1) == user),
            User::Exactly(own) => own == user,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;
    impl Files for Nothing {
        fn read(&self, _: &std::path::Path) -> Result<Option<String>, String> {
            Ok(None)
        }
        fn list(&self, _: &std::path::Path) -> Result<Vec<std::path::PathBuf>, String> {
            Ok(Vec::new())
        }
    }

    #[test]
    fn a_map_says_who_may_be_whom() {
        let text = "# map system user\nm anna app\nm /^(.*)@example\\.com$ \\1\nm /^cn=(.*)$ \"x_\\1\"\n\
                    m root all\nm boss +admins\nm op /^op_\nother anna root\nm \"odd name\" app\n";
        let map = IdentMaps::parse(text, "ident.conf", &Nothing).unwrap().map("m").unwrap();
        let admins = ["admins".to_owned()];
        for (name, user, roles, may) in [
            ("anna", "app", &[][..], true),
            ("anna", "root", &[], false),
            ("bob@example.com", "bob", &[], true),
            ("bob@example.com", "anna", &[], false),
            ("bob@exampleXcom", "bob", &[], false),
            ("cn=bob", "x_bob", &[], true),
            ("root", "anybody", &[], true),
            ("boss", "carl", &admins, true),
            ("boss", "carl", &[], false),
            ("op", "op_1", &[], true),
            ("op", "xop_1", &[], false),
            ("odd name", "app", &[], true),
            ("nobody", "app", &[], false),
        ] {
            assert_eq!(map.permits(name, user, roles), may, "{name} {user}");
        }
        assert!(map.needs_roles());
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        for (line, why) in [
            ("m a", "found 2 fields"),
            ("m a b c", "found 4 fields"),
            ("m a,b c", "commas"),
            ("m /^( x", "regular expression"),
            ("m /^x \\1", "needs a group"),
        ] {
            let error = IdentMaps::parse(&format!("\n{line}"), "ident.conf", &Nothing).unwrap_err().to_string();
            assert!(error.starts_with("ident.conf:2: ") && error.contains(why), "{error}");
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        #[test]
        fn no_text_panics(text in "(m |/|\\\\1|all|[ \",\n+@()\\[\\]^a-z]){0,30}", name in ".{0,10}", user in ".{0,10}") {
            if let Ok(maps) = IdentMaps::parse(&text, "f", &Nothing) {
                let _ = maps.map("m").map(|map| map.permits(&name, &user, &[]));
            }
        }
    }
}
