//! How server connections are shared, as configured.

use super::rules::{Overrides, Rules};
use crate::base::Secret;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The section for every name that has none of its own.
const ANY: &str = "*";

/// For how long a client keeps a server connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum PoolMode {
    /// Until it disconnects.
    #[default]
    Session,
    /// Until its transaction ends.
    Transaction,
    /// Until its statement ends; transactions of several statements are refused.
    Statement,
}

/// Limits, times and modes; PgBouncer's names.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Settings {
    /// For everybody.
    pub rules: Rules,
    /// By database name, or `*`.
    pub databases: BTreeMap<String, DatabaseSettings>,
    /// By user name, or `*`.
    pub users: BTreeMap<String, Overrides>,
    /// `max_client_conn`.
    pub max_clients: usize,
    /// `max_node_connections`: server connections to one node, of all pools; 0 = no limit.
    pub max_node_connections: usize,
    /// `max_new_connections`: server connections opened to one node per second; 0 = no limit.
    pub max_new_connections: u32,
    /// `max_prepared_statements`: statements of clients that one server connection holds in transaction pooling.
    pub max_prepared: usize,
    /// `share_unnamed_statements`: the unnamed statement is prepared once per server and text, too.
    pub share_unnamed: bool,
    /// `max_replication_conn`: replication connections, each with a server connection of its own.
    pub max_replication: usize,
    /// `max_pins`: clients of one pool that may be bound to their servers in transaction pooling; 0 = no limit.
    pub max_pins: usize,
}

/// What one database does differently.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct DatabaseSettings {
    /// Limits and times.
    pub rules: Overrides,
    /// `dbname`: the database of the servers; `None`: of the same name.
    pub dbname: Option<String>,
    /// `user`: all clients of this database use the servers as this role.
    pub user: Option<String>,
    /// `password` of that role; `None`: what the secret files hold.
    pub password: Option<Secret>,
    /// `server_cert_file` and `server_key_file`: shown to servers that ask; `None`: pgmend's own.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

impl Settings {
    /// The rules for a user in a database. A section by name goes before `*`, which is for names without a section; where
    /// both a user's and a database's section set a thing, the user's counts, as in PgBouncer.
    pub fn rules(&self, user: &str, database: &str) -> Rules {
        let mut rules = self.rules.clone();
        let (own_user, own_database) = (self.users.get(user), self.databases.get(database).map(|d| &d.rules));
        let any_user = own_user.is_none().then(|| self.users.get(ANY)).flatten();
        let any_database = own_database.is_none().then(|| self.databases.get(ANY)).flatten().map(|d| &d.rules);
        [any_database, any_user, own_database, own_user].into_iter().flatten().for_each(|o| rules.apply(o));
        rules
    }

    /// What is set for a database by its name or by `*`.
    pub fn database(&self, name: &str) -> Option<&DatabaseSettings> {
        self.databases.get(name).or_else(|| self.databases.get(ANY))
    }

    /// The section whose certificate servers are shown for a database, if it has one.
    pub fn certificate_of(&self, name: &str) -> Option<String> {
        let section = if self.databases.contains_key(name) { name } else { ANY };
        self.databases.get(section)?.certificate.as_ref().map(|_| section.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(size: usize) -> Overrides {
        Overrides { size: Some(size), ..Overrides::default() }
    }

    #[test]
    fn names_go_before_the_wildcard_and_users_before_databases() {
        let database = |rules| DatabaseSettings { rules, ..DatabaseSettings::default() };
        let mut settings = Settings::default();
        assert_eq!(settings.rules("u", "d").size, 20);
        settings.databases.insert("*".into(), database(size(1)));
        assert_eq!(settings.rules("u", "d").size, 1);
        settings.users.insert("*".into(), size(2));
        assert_eq!(settings.rules("u", "d").size, 2);
        settings.databases.insert("d".into(), database(size(3)));
        assert_eq!((settings.rules("u", "d").size, settings.rules("u", "e").size), (3, 2));
        settings.users.insert("u".into(), size(4));
        assert_eq!((settings.rules("u", "d").size, settings.rules("v", "d").size), (4, 3));
    }

    #[test]
    fn the_wildcard_is_for_names_without_a_section() {
        let mut settings = Settings::default();
        let any = DatabaseSettings { rules: size(1), dbname: Some("x".into()), ..DatabaseSettings::default() };
        settings.databases.insert("*".into(), any);
        settings.databases.insert("d".into(), DatabaseSettings::default());
        assert_eq!((settings.rules("u", "d").size, settings.rules("u", "e").size), (20, 1));
        assert_eq!(settings.database("d").and_then(|d| d.dbname.as_deref()), None);
        assert_eq!(settings.database("e").and_then(|d| d.dbname.as_deref()), Some("x"));
        assert_eq!(settings.certificate_of("e"), None);
        settings.databases.get_mut("*").unwrap().certificate = Some(("a".into(), "b".into()));
        assert_eq!((settings.certificate_of("d"), settings.certificate_of("e")), (None, Some("*".into())));
    }
}
