//! What no single key can tell: settings that contradict each other, and files that cannot be read.

use super::Config;
use super::error::ConfigError;
use crate::auth::{AuthError, HbaRules, Secrets};
use crate::cluster::{NodeSpec, SslMode};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Pgpool-II's limit, kept: ids are shown and stored as small numbers.
const MAX_NODES: usize = 128;

/// All contradictions in `config`; `lines` holds the line of each key that the file sets, by its TOML name.
pub fn check(config: &Config, file: &Path, lines: &BTreeMap<String, usize>) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    let mut wrong = |key: &str, message: String| {
        let parent = key.rsplit_once('.').map_or("", |(parent, _)| parent);
        let line = lines.get(key).or_else(|| lines.get(parent)).copied().unwrap_or(0);
        errors.push(ConfigError { file: file.to_owned(), line, key: key.to_owned(), message });
    };
    check_nodes(config, &mut wrong);
    check_listening(config, &mut wrong);
    check_times(config, &mut wrong);
    check_drain(config, &mut wrong);
    check_files(config, &mut wrong);
    if errors.is_empty() {
        errors.extend(check_contents(config));
    }
    errors
}

/// The rules and secrets are read as they will be at start, so that a mistake in them is found by `check` too.
fn check_contents(config: &Config) -> Vec<ConfigError> {
    let believes = config.listen.tls.as_ref().is_some_and(|tls| tls.client_ca_file.is_some());
    let rules = match HbaRules::load(&config.auth) {
        Err(AuthError::File { file, message }) => Err(AuthError::Line { file, line: 0, message }),
        Ok(rules) if rules.need_client_certificates() && !believes => Err(AuthError::Setting(
            "expected client_ca_file (with cert_file and key_file) in [tls]: cert and clientcert ask for certificates \
             of its authorities"
                .into(),
        )),
        rules => rules.map(|_| ()),
    };
    let unnamed = PathBuf::new();
    let main = config.sources.first().unwrap_or(&unnamed);
    let path = config.auth.hba_file.as_ref().unwrap_or(main);
    let rules = rules.map_err(|error| (path, error));
    let secrets = Secrets::check(&config.auth).map(drop).map_err(|error| (main, error));
    let failed = [rules, secrets].into_iter().filter_map(Result::err);
    let told = failed.map(|(path, error)| match error {
        AuthError::Line { file, line, message } => ConfigError { file: file.into(), line, key: String::new(), message },
        other => ConfigError { file: path.clone(), line: 0, key: "auth".to_owned(), message: other.to_string() },
    });
    told.collect()
}

fn check_nodes(config: &Config, wrong: &mut impl FnMut(&str, String)) {
    if config.nodes.len() > MAX_NODES {
        wrong("node", format!("expected at most {MAX_NODES} nodes, found {}", config.nodes.len()));
    }
    for (number, node) in config.nodes.iter().enumerate() {
        // A missing host has its own error; two of them are not the same place.
        let earlier = config.nodes.iter().take(number).filter(|other| !other.host.0.is_empty());
        for other in earlier.filter(|other| other.host == node.host && other.port == node.port) {
            wrong(
                &format!("node[{number}].port"),
                format!("expected an address of its own, found {}, which is node {} too", node.label(), other.id),
            );
        }
        let verifies = matches!(node.sslmode, SslMode::VerifyCa | SslMode::VerifyFull);
        if verifies && config.server.tls.ca_file.is_none() && !crate::net::is_unix(&node.host.0) {
            wrong(
                &format!("node[{number}].sslmode"),
                "expected server_ca_file in [tls] too: without the servers' authorities nothing can be verified"
                    .to_owned(),
            );
        }
        for (key, message) in check_control(node) {
            wrong(&format!("node[{number}].{key}"), message);
        }
        let own = node.port == config.listen.port
            && config.listen.addresses.iter().any(|address| *address == node.host.0 || is_loop(address, &node.host.0));
        if own {
            wrong(
                &format!("node[{number}].port"),
                format!("expected a PostgreSQL server, found {}, where pgmend itself listens", node.label()),
            );
        }
    }
    if config.nodes.iter().filter(|node| node.always_primary).count() > 1 {
        wrong("node", "expected at most one node with ALWAYS_PRIMARY".to_owned());
    }
}

/// How a node is acted on: what contradicts itself or could never work.
fn check_control(node: &NodeSpec) -> Vec<(&'static str, String)> {
    let mut wrong = Vec::new();
    let commands = &node.maintain;
    if let Some(command) = &commands.remote_command {
        if node.data_directory.is_none() {
            wrong.push((
                "remote_command",
                "expected data_directory too: the node's machine is told which directory to act on".to_owned(),
            ));
        }
        if command.trim().is_empty() || command.matches("{}").count() > 1 {
            wrong.push((
                "remote_command",
                format!("expected a command with at most one {{}}, the place of the shell that it runs there, found \"{command}\""),
            ));
        }
        if node.host.is_local() {
            wrong.push((
                "remote_command",
                "expected a host that is reached over the network, found the directory of a Unix socket, whose server is \
                 on this machine"
                    .to_owned(),
            ));
        }
    }
    if commands.bin_directory.as_ref().is_some_and(|directory| !directory.is_absolute()) {
        wrong.push(("bin_directory", "expected an absolute path: it lies on the node's host".to_owned()));
    }
    let paths = [("data_directory", &node.data_directory), ("bin_directory", &commands.bin_directory)];
    for (key, path) in paths {
        if path.as_ref().and_then(|p| p.to_str()).is_some_and(|p| p.contains(['\0', '\n', '\r'])) {
            wrong.push((key, "expected a path without line breaks and zero bytes".to_owned()));
        }
    }
    if commands.autostart_on_command.is_some() != commands.autostart_off_command.is_some() {
        wrong.push((
            "autostart_on_command",
            "expected autostart_on_command and autostart_off_command, or neither: what is switched off must come back"
                .to_owned(),
        ));
    }
    wrong
}

/// True when both are names of this machine's loopback, or pgmend listens everywhere and the node is local.
fn is_loop(listen: &str, host: &str) -> bool {
    let local = |name: &str| matches!(name, "localhost" | "127.0.0.1" | "::1");
    local(host) && (local(listen) || matches!(listen, "*" | "0.0.0.0" | "::"))
}

fn check_listening(config: &Config, wrong: &mut impl FnMut(&str, String)) {
    if config.listen.addresses.is_empty() && config.listen.unix_socket_directories.is_empty() {
        wrong(
            "listen.addresses",
            "expected an address or a Unix socket directory: clients could not connect".to_owned(),
        );
    }
    let Some(pcp) = &config.admin.pcp else { return };
    if pcp.port == config.listen.port && !pcp.addresses.is_empty() {
        wrong("admin.pcp_port", format!("expected another port than listen.port, found {} for both", pcp.port));
    }
}

fn check_times(config: &Config, wrong: &mut impl FnMut(&str, String)) {
    let positive = [
        ("auth.authentication_timeout", config.client.login_timeout),
        ("pool.server_connect_timeout", config.pool.rules.connect_timeout),
        ("health.health_check_timeout", config.health.timeout),
        ("cluster.replication_lock_timeout", config.replication.lock_timeout),
        ("recovery.recovery_timeout", config.recovery.timeout),
        ("recovery.no_progress_timeout", config.recovery.no_progress_timeout),
    ];
    for (key, value) in positive {
        if value.is_zero() {
            wrong(key, "expected more than zero: an unbounded wait is not offered here".to_owned());
        }
    }
    let scripts = [
        ("recovery.recovery_1st_stage_command", &config.recovery.first_stage_command),
        ("recovery.recovery_2nd_stage_command", &config.recovery.second_stage_command),
    ];
    for (key, script) in scripts {
        if script.contains('/') {
            // The script is found in the source's data directory; a path would escape it.
            wrong(key, format!("expected the name of a file in the data directory, found \"{script}\""));
        }
    }
    if config.mode.replicates() && config.nodes.iter().any(|node| node.always_primary) {
        wrong("node", format!("expected no ALWAYS_PRIMARY: {} has a main node and no primary", config.mode));
    }
}

/// Pgpool-II's rule: a limit that is not reached before the recovery gives up would never be reached.
fn check_drain(config: &Config, wrong: &mut impl FnMut(&str, String)) {
    let (drain, timeout) = (&config.recovery.drain, config.recovery.timeout);
    if timeout.is_zero() {
        // That is an error of its own.
        return;
    }
    let told = timeout.as_secs_f64();
    if !drain.idle_limit.is_below(timeout) {
        let found = drain.idle_limit;
        let message = format!("expected less than recovery_timeout, {told} s, found {found}: it would fail first");
        wrong("recovery.client_idle_limit_in_recovery", message);
    }
    if let Some(limit) = drain.idle_in_transaction.filter(|limit| *limit >= timeout) {
        let found = limit.as_secs_f64();
        let message = format!("expected less than recovery_timeout, {told} s, found {found} s: it would fail first");
        wrong("recovery.recovery_idle_in_transaction_limit", message);
    }
}

fn check_files(config: &Config, wrong: &mut impl FnMut(&str, String)) {
    let tls = config.listen.tls.as_ref();
    let files = [
        ("auth.hba_file", config.auth.hba_file.as_deref()),
        ("auth.userlist_file", config.auth.userlist_file.as_deref()),
        ("auth.pool_passwd_file", config.auth.pool_passwd_file.as_deref()),
        ("auth.ident_file", config.auth.ident_file.as_deref()),
        ("auth.ldap_ca_file", config.auth.ldap_ca_file.as_deref()),
        ("auth.key_file", config.auth.key_file.as_deref()),
        ("tls.cert_file", tls.map(|tls| tls.own.cert_file.as_path())),
        ("tls.key_file", tls.map(|tls| tls.own.key_file.as_path())),
        ("tls.client_ca_file", tls.and_then(|tls| tls.client_ca_file.as_deref())),
        ("tls.client_crl_file", tls.and_then(|tls| tls.client_crl_file.as_deref())),
        ("tls.server_ca_file", config.server.tls.ca_file.as_deref()),
        ("tls.server_crl_file", config.server.tls.crl_file.as_deref()),
        ("tls.server_cert_file", config.server.tls.cert_file.as_deref()),
        ("tls.server_key_file", config.server.tls.key_file.as_deref()),
        ("admin.pcp_file", config.admin.pcp.as_ref().map(|pcp| pcp.password_file.as_path())),
    ];
    let databases = config.server.tls.databases.values();
    let databases = databases.flat_map(|(cert, key)| [("server_cert_file", cert), ("server_key_file", key)]);
    let databases = databases.map(|(key, path)| (key, Some(path.as_path())));
    for (key, path) in files.into_iter().chain(databases) {
        let Some(path) = path else { continue };
        // Reading a byte finds folders too, which open for reading but cannot be read.
        let mut byte = [0; 1];
        let read = std::fs::File::open(path).and_then(|mut file| std::io::Read::read(&mut file, &mut byte));
        if let Err(error) = read {
            wrong(key, format!("expected a readable file, found {}: {error}", path.display()));
        }
    }
}
