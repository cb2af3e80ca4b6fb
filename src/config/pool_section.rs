//! `[pool]` with its sections of databases and users.

use super::section::Section;
use super::tls_section::server_pair;
use crate::pool::{DatabaseSettings, Overrides, PoolMode, Rules, Settings};
use std::path::Path;

const POOL_MODES: &[(&str, PoolMode)] =
    &[("session", PoolMode::Session), ("transaction", PoolMode::Transaction), ("statement", PoolMode::Statement)];
/// Of connections, clients and waiters alike.
const MOST: u32 = 1_000_000;
const MOST_SERVERS: u32 = 100_000;

/// Reads `[pool]`; `reset_query` is the servers' part of it.
pub fn pool(section: Section<'_>, folder: &Path) -> (Settings, String) {
    let databases = section.section("databases").named_sections();
    let databases = databases.into_iter().map(|(n, s)| (n, database(s, folder))).collect();
    let users = section.section("users").named_sections().into_iter().map(|(n, s)| (n, user(s))).collect();
    let settings = Settings {
        rules: rules(&section),
        databases,
        users,
        max_clients: count(&section, "max_client_conn", 1000, 1, MOST),
        max_node_connections: count(&section, "max_node_connections", 0, 0, MOST_SERVERS),
        max_new_connections: section.integer("max_new_connections", 200, 0, MOST_SERVERS),
        max_prepared: count(&section, "max_prepared_statements", 200, 1, MOST_SERVERS),
        share_unnamed: section.boolean("share_unnamed_statements", false),
        max_replication: count(&section, "max_replication_conn", 10, 0, MOST_SERVERS),
        max_pins: count(&section, "max_pins", 0, 0, MOST_SERVERS),
    };
    let reset_query = section.text_maybe_empty("reset_query", "DISCARD ALL");
    section.finish();
    (settings, reset_query)
}

fn rules(section: &Section<'_>) -> Rules {
    Rules {
        mode: section.choice("mode", "transaction", POOL_MODES).unwrap_or_default(),
        size: count(section, "default_pool_size", 20, 1, MOST_SERVERS),
        min_size: count(section, "min_pool_size", 0, 0, MOST_SERVERS),
        reserve_size: count(section, "reserve_pool_size", 0, 0, MOST_SERVERS),
        reserve_timeout: section.duration("reserve_pool_timeout", "5s"),
        max_waiting: count(section, "max_waiting_clients", 0, 0, MOST),
        max_db_connections: count(section, "max_db_connections", 0, 0, MOST_SERVERS),
        max_user_connections: count(section, "max_user_connections", 0, 0, MOST_SERVERS),
        max_db_clients: count(section, "max_db_client_connections", 0, 0, MOST),
        max_user_clients: count(section, "max_user_client_connections", 0, 0, MOST),
        wait_timeout: section.duration("query_wait_timeout", "120s"),
        query_timeout: section.duration("query_timeout", "0s"),
        transaction_timeout: section.duration("transaction_timeout", "0s"),
        idle_transaction_timeout: section.duration("idle_transaction_timeout", "0s"),
        client_idle_timeout: section.duration("client_idle_timeout", "0s"),
        connect_timeout: section.duration("server_connect_timeout", "15s"),
        login_retry: section.duration("server_login_retry", "1s"),
        server_idle_timeout: section.duration("server_idle_timeout", "600s"),
        server_lifetime: section.duration("server_lifetime", "3600s"),
    }
}

fn database(section: Section<'_>, folder: &Path) -> DatabaseSettings {
    let rules = Overrides {
        max_db_connections: maybe(&section, "max_db_connections", 0),
        max_db_clients: maybe(&section, "max_db_client_connections", 0),
        connect_timeout: section.maybe_duration("server_connect_timeout"),
        login_retry: section.maybe_duration("server_login_retry"),
        server_idle_timeout: section.maybe_duration("server_idle_timeout"),
        server_lifetime: section.maybe_duration("server_lifetime"),
        ..both(&section)
    };
    if rules.connect_timeout.is_some_and(|t| t.is_zero()) {
        section.error("server_connect_timeout", "expected more than zero: an unbounded wait is not offered here");
    }
    let settings = DatabaseSettings {
        rules,
        dbname: section.text("dbname"),
        user: section.text("user"),
        password: Some(section.secret("password")).filter(|password| !password.is_empty()),
        certificate: server_pair(&section, folder),
    };
    if settings.password.is_some() && settings.user.is_none() {
        section.error("password", "expected user too: it is that role's password");
    }
    section.finish();
    settings
}

fn user(section: Section<'_>) -> Overrides {
    let rules = Overrides {
        max_user_connections: maybe(&section, "max_user_connections", 0),
        max_user_clients: maybe(&section, "max_user_client_connections", 0),
        ..both(&section)
    };
    section.finish();
    rules
}

/// What a section of either kind may set.
fn both(section: &Section<'_>) -> Overrides {
    Overrides {
        mode: section.choice("mode", "", POOL_MODES),
        size: maybe(section, "pool_size", 1),
        min_size: maybe(section, "min_pool_size", 0),
        reserve_size: maybe(section, "reserve_pool_size", 0),
        reserve_timeout: section.maybe_duration("reserve_pool_timeout"),
        max_waiting: maybe(section, "max_waiting_clients", 0),
        wait_timeout: section.maybe_duration("query_wait_timeout"),
        query_timeout: section.maybe_duration("query_timeout"),
        transaction_timeout: section.maybe_duration("transaction_timeout"),
        idle_transaction_timeout: section.maybe_duration("idle_transaction_timeout"),
        client_idle_timeout: section.maybe_duration("client_idle_timeout"),
        ..Overrides::default()
    }
}

fn count(section: &Section<'_>, key: &'static str, default: u32, least: u32, most: u32) -> usize {
    usize::try_from(section.integer(key, default, least, most)).unwrap_or(usize::MAX)
}

fn maybe(section: &Section<'_>, key: &'static str, least: u32) -> Option<usize> {
    section.maybe_integer(key, least, MOST_SERVERS).map(|n| usize::try_from(n).unwrap_or(usize::MAX))
}
