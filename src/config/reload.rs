//! What a reload changes: at once, or only after a restart.

use super::Config;
use crate::cluster::NodeSpec;

/// The difference of two configurations, by names of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Take effect now.
    pub applied: Vec<String>,
    /// Wait for a restart; the old values stay in force.
    pub pending_restart: Vec<String>,
}

/// Compares what runs with what the files say now. Passwords are compared, never named.
pub fn changes(old: &Config, new: &Config) -> Changes {
    let mut changes = Changes::default();
    let mut pending = |key: &str, differs: bool| {
        if differs {
            changes.pending_restart.push(key.to_owned());
        }
    };
    pending("cluster.backend_clustering_mode", old.mode != new.mode);
    pending("listen.addresses", old.listen.addresses != new.listen.addresses);
    pending("listen.port", old.listen.port != new.listen.port);
    pending("listen.unix_socket_directories", old.listen.unix_socket_directories != new.listen.unix_socket_directories);
    pending("listen.unix_socket_permissions", old.listen.unix_socket_permissions != new.listen.unix_socket_permissions);
    pending("listen.backlog", old.listen.backlog != new.listen.backlog);
    pending("listen.tcp_keepalives_idle", old.listen.keepalive != new.listen.keepalive);
    pending("listen.workers", old.listen.workers != new.listen.workers);
    pending("admin.socket", old.admin.socket != new.admin.socket);
    pending("admin.os_users", old.admin.admin_os_users != new.admin.admin_os_users);
    pending("admin.pcp", old.admin.pcp != new.admin.pcp);
    pending("state.directory", old.store.directory != new.store.directory);
    pending("state.pid_file", old.pid_file != new.pid_file);
    for (number, node) in old.nodes.iter().enumerate() {
        match new.nodes.get(number) {
            None => pending(&format!("node[{number}] (removed)"), true),
            Some(other) => {
                pending(&format!("node[{number}].host"), node.host != other.host);
                pending(&format!("node[{number}].port"), node.port != other.port);
                pending(&format!("node[{number}].data_directory"), node.data_directory != other.data_directory);
            }
        }
    }
    let effective = effective(old, new);
    let mut applied = |key: &str, differs: bool| {
        if differs {
            changes.applied.push(key.to_owned());
        }
    };
    for (number, node) in effective.nodes.iter().enumerate() {
        match old.nodes.get(number) {
            None => applied(&format!("node[{number}] (added)"), true),
            Some(before) => applied(&format!("node[{number}]"), before != node),
        }
    }
    applied("pool", old.pool != effective.pool || old.server != effective.server);
    applied("cluster", old.replication != effective.replication);
    applied("client", old.client != effective.client);
    applied("auth", old.auth != effective.auth);
    applied("tls", old.listen.tls != effective.listen.tls);
    applied("health", old.health != effective.health);
    applied("recovery", old.recovery != effective.recovery);
    applied("maintenance", old.maintenance != effective.maintenance);
    applied("admin.shutdown_timeout", old.ending.shutdown_timeout != effective.ending.shutdown_timeout);
    applied("admin.takeover_timeout", old.ending.takeover_timeout != effective.ending.takeover_timeout);
    applied("log.level", old.log_level != effective.log_level);
    changes
}

/// The new configuration with the old values of everything that needs a restart.
pub fn effective(old: &Config, new: &Config) -> Config {
    let kept = old.nodes.iter().enumerate().map(|(number, before)| match new.nodes.get(number) {
        Some(after) => NodeSpec {
            host: before.host.clone(),
            port: before.port,
            data_directory: before.data_directory.clone(),
            ..after.clone()
        },
        None => before.clone(),
    });
    let added = new.nodes.iter().skip(old.nodes.len()).cloned();
    Config {
        mode: old.mode,
        nodes: kept.chain(added).collect(),
        listen: crate::net::Settings { tls: new.listen.tls.clone(), ..old.listen.clone() },
        admin: old.admin.clone(),
        store: old.store.clone(),
        pid_file: old.pid_file.clone(),
        ..new.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn config(text: &str) -> Config {
        crate::config::pgmend_toml::parse(Path::new("pgmend.toml"), text).unwrap()
    }

    #[test]
    fn a_reload_applies_what_it_can_and_names_the_rest() {
        let old = config("[listen]\nport = 6432\n[[node]]\nhost = 'a'\n[[node]]\nhost = 'b'\n");
        let new = config(
            "[listen]\nport = 7000\n[pool]\nmode = 'session'\n[[node]]\nhost = 'c'\nweight = 2\n[[node]]\nhost = 'b'\n\
             [[node]]\nhost = 'd'\n",
        );
        let found = changes(&old, &new);
        assert_eq!(found.pending_restart, ["listen.port", "node[0].host"]);
        assert_eq!(found.applied, ["node[0]", "node[2] (added)", "pool"]);
        let merged = effective(&old, &new);
        assert_eq!(merged.listen.port, 6432);
        assert_eq!(merged.nodes[0].host.0, "a");
        assert_eq!(merged.nodes[0].weight, 2.0);
        assert_eq!(merged.nodes.len(), 3);
    }

    #[test]
    fn a_removed_node_stays_until_a_restart() {
        let old = config("[[node]]\nhost = 'a'\n[[node]]\nhost = 'b'\n");
        let new = config("[[node]]\nhost = 'a'\n");
        assert_eq!(changes(&old, &new).pending_restart, ["node[1] (removed)"]);
        assert_eq!(effective(&old, &new).nodes.len(), 2);
        assert_eq!(changes(&old, &old), Changes::default());
    }
}
