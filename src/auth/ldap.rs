//! The options of the method `ldap`, and the names that an LDAP server is asked for. No sockets.
//!
//! <https://www.postgresql.org/docs/17/auth-ldap.html>

use crate::base::Secret;

/// Where passwords are judged.
#[derive(Clone, Debug, PartialEq)]
pub struct LdapSettings {
    /// Servers, tried in order.
    pub hosts: Vec<String>,
    /// 389, or 636 with `ldaps`.
    pub port: u16,
    /// TLS.
    pub security: LdapSecurity,
    /// How the user is found.
    pub how: LdapHow,
}

/// TLS towards an LDAP server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LdapSecurity {
    /// None.
    #[default]
    Plain,
    /// From the first byte (`ldapscheme=ldaps`).
    Ldaps,
    /// By StartTLS (`ldaptls=1`).
    StartTls,
}

/// How a user's entry is named.
#[derive(Clone, Debug, PartialEq)]
pub enum LdapHow {
    /// Bind as prefix, user, suffix.
    Simple {
        /// Before the user's name.
        prefix: String,
        /// After it.
        suffix: String,
    },
    /// Search for the entry, then bind as it.
    Search {
        /// Where the search begins.
        base: String,
        /// `base`, `one` or `sub`.
        scope: LdapScope,
        /// As whom to search; empty: anonymously.
        bind_name: String,
        /// Its password.
        bind_password: Secret,
        /// With `$username` in the place of the user's name.
        filter: String,
    },
}

/// How deep a search goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LdapScope {
    /// The base itself.
    Base,
    /// Its children.
    One,
    /// All below.
    #[default]
    Sub,
}

impl LdapSettings {
    /// True when a certificate will be checked.
    pub fn is_tls(&self) -> bool {
        self.security != LdapSecurity::Plain
    }
}

/// The name to bind as; `None` for a user whose name would change the meaning of the whole.
pub fn bind_name(prefix: &str, user: &str, suffix: &str) -> Option<String> {
    let special = |c: char| matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';' | '=' | '#') || c.is_control();
    (!user.contains(special)).then(|| format!("{prefix}{user}{suffix}"))
}

/// The filter for a user; `None` for a name with characters of the filter's language, which PostgreSQL refuses too.
pub fn search_filter(filter: &str, user: &str) -> Option<String> {
    let special = |c: char| matches!(c, '*' | '(' | ')' | '\\' | '/') || c.is_control();
    (!user.contains(special)).then(|| filter.replace("$username", user))
}

/// The options of a rule as they are read.
#[derive(Default)]
pub(super) struct LdapOptions {
    server: Option<String>,
    port: Option<u16>,
    security: LdapSecurity,
    prefix: Option<String>,
    suffix: Option<String>,
    base: Option<String>,
    scope: LdapScope,
    bind_name: String,
    bind_password: Secret,
    attribute: Option<String>,
    filter: Option<String>,
}

impl LdapOptions {
    /// One option.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let text = || Some(value.to_owned());
        match name {
            "ldapserver" => self.server = text(),
            "ldapport" => self.port = Some(port(value)?),
            "ldapscheme" => match value {
                "ldap" => {}
                "ldaps" => self.security = LdapSecurity::Ldaps,
                _ => return Err(format!("expected ldapscheme=ldap or ldapscheme=ldaps, found \"{value}\"")),
            },
            "ldaptls" => match value {
                "1" => self.security = LdapSecurity::StartTls,
                "0" => {}
                _ => return Err(format!("expected ldaptls=0 or ldaptls=1, found \"{value}\"")),
            },
            "ldapprefix" => self.prefix = text(),
            "ldapsuffix" => self.suffix = text(),
            "ldapbasedn" => self.base = text(),
            "ldapbinddn" => self.bind_name = value.to_owned(),
            "ldapbindpasswd" => self.bind_password = Secret::new(value),
            "ldapsearchattribute" => self.attribute = text(),
            "ldapsearchfilter" => self.filter = text(),
            "ldapurl" => self.url(value)?,
            _ => return Err(format!("option \"{name}\" is not supported")),
        }
        Ok(())
    }

    /// `ldap[s]://host[:port]/basedn[?attribute[?scope[?filter]]]`.
    fn url(&mut self, url: &str) -> Result<(), String> {
        let bad = || format!("expected ldap[s]://host[:port]/basedn[?attribute[?scope[?filter]]], found \"{url}\"");
        let (scheme, rest) = url.split_once("://").ok_or_else(bad)?;
        self.set("ldapscheme", scheme)?;
        let (place, rest) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, number) = match place.rsplit_once(':') {
            Some((host, number)) if !number.contains(']') => (host, Some(port(number)?)),
            _ => (place, None),
        };
        self.port = number.or(self.port);
        self.server = Some(host.to_owned()).filter(|host| !host.is_empty());
        let mut parts = rest.split('?');
        let mut next = || parts.next().filter(|part| !part.is_empty()).map(str::to_owned);
        self.base = next();
        self.attribute = next();
        self.scope = match next().as_deref() {
            // What RFC 4516 has where nothing is said, and PostgreSQL follows.
            None | Some("base") => LdapScope::Base,
            Some("one") => LdapScope::One,
            Some("sub") => LdapScope::Sub,
            Some(_) => return Err(bad()),
        };
        self.filter = next();
        Ok(())
    }

    /// All of them, checked as PostgreSQL checks them.
    pub fn finish(self) -> Result<LdapSettings, String> {
        let server = self.server.ok_or("ldap needs ldapserver (or ldapurl)")?;
        let hosts: Vec<String> = server.split_whitespace().map(str::to_owned).collect();
        let simple = self.prefix.is_some() || self.suffix.is_some();
        let search = self.base.is_some()
            || self.attribute.is_some()
            || self.filter.is_some()
            || !self.bind_name.is_empty()
            || !self.bind_password.is_empty();
        let how = match (simple, search, self.base) {
            (true, true, _) => {
                return Err("ldapprefix and ldapsuffix do not go with ldapbasedn, ldapbinddn, ldapbindpasswd, \
                            ldapsearchattribute, ldapsearchfilter or ldapurl"
                    .into());
            }
            (true, false, _) => {
                LdapHow::Simple { prefix: self.prefix.unwrap_or_default(), suffix: self.suffix.unwrap_or_default() }
            }
            (false, _, None) => return Err("ldap needs ldapbasedn, ldapprefix or ldapsuffix".into()),
            (false, _, Some(base)) => {
                let filter = match (self.attribute, self.filter) {
                    (Some(_), Some(_)) => {
                        return Err("ldapsearchattribute and ldapsearchfilter do not go together".into());
                    }
                    (Some(attribute), None) => format!("({attribute}=$username)"),
                    (None, Some(filter)) if filter.starts_with('(') => filter,
                    (None, Some(filter)) => format!("({filter})"),
                    (None, None) => "(uid=$username)".to_owned(),
                };
                let (bind_name, bind_password) = (self.bind_name, self.bind_password);
                LdapHow::Search { base, scope: self.scope, bind_name, bind_password, filter }
            }
        };
        let default = if self.security == LdapSecurity::Ldaps { 636 } else { 389 };
        Ok(LdapSettings { hosts, port: self.port.unwrap_or(default), security: self.security, how })
    }
}

fn port(text: &str) -> Result<u16, String> {
    let number = text.parse().ok().filter(|port| *port > 0);
    number.ok_or_else(|| format!("expected a port from 1 to 65535, found \"{text}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &[(&str, &str)]) -> Result<LdapSettings, String> {
        let mut all = LdapOptions::default();
        options.iter().try_for_each(|(name, value)| all.set(name, value))?;
        all.finish()
    }

    #[test]
    fn both_ways_of_finding_a_user() {
        let simple = read(&[("ldapserver", "a b"), ("ldapprefix", "cn="), ("ldapsuffix", ",dc=x")]).unwrap();
        assert_eq!((simple.hosts.len(), simple.port, simple.is_tls()), (2, 389, false));
        assert_eq!(bind_name("cn=", "anna", ",dc=x").as_deref(), Some("cn=anna,dc=x"));
        assert_eq!(bind_name("cn=", "anna,ou=admins", ",dc=x"), None);
        let url = read(&[("ldapurl", "ldaps://h:700/dc=x?mail?sub"), ("ldapbinddn", "cn=s")]).unwrap();
        assert_eq!((url.port, url.security), (700, LdapSecurity::Ldaps));
        let LdapHow::Search { base, scope, filter, .. } = url.how else { panic!() };
        assert_eq!((base.as_str(), scope, filter.as_str()), ("dc=x", LdapScope::Sub, "(mail=$username)"));
        assert_eq!(search_filter(&filter, "anna").as_deref(), Some("(mail=anna)"));
        assert_eq!(search_filter(&filter, "a*"), None);
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for (options, why) in [
            (&[("ldapprefix", "x")][..], "needs ldapserver"),
            (&[("ldapserver", "h")], "needs ldapbasedn"),
            (&[("ldapserver", "h"), ("ldapprefix", "x"), ("ldapbasedn", "y")], "do not go with"),
            (
                &[("ldapserver", "h"), ("ldapbasedn", "y"), ("ldapsearchattribute", "a"), ("ldapsearchfilter", "b")],
                "do not go together",
            ),
            (&[("ldapserver", "h"), ("ldapport", "0")], "expected a port"),
            (&[("ldapscheme", "x")], "ldaps"),
            (&[("ldapurl", "http:/x")], "expected ldap[s]"),
        ] {
            let error = read(options).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        #[test]
        fn no_url_panics(url in "(ldap://|ldaps://|[:/?\\[\\]a-z0-9]){0,12}", any in ".{0,30}") {
            let _ = (read(&[("ldapurl", &url)]), read(&[("ldapurl", &any)]));
        }
    }
}
