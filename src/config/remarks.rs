//! What is allowed and yet hardly meant, or will soon be wrong by itself.

use super::Config;
use crate::auth::Secrets;
use crate::cluster::NodeSpec;
use crate::net::certificate_ends_at;
use crate::node::is_this_machine;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// A certificate is remarked on when so little is left of it.
const SOON_S: i64 = 30 * DAY_S;
const DAY_S: i64 = 24 * 3600;

/// For people: (key, why). Reads the secrets and the certificates.
pub fn remarks(config: &Config) -> Vec<(String, String)> {
    let mut remarks = Vec::new();
    let method = &config.auth.default_method;
    let by_secret = ["scram-sha-256", "md5", "password"].contains(&method.as_str());
    let by_method = config.auth.hba_file.is_none() && by_secret && config.auth.query.is_none();
    if by_method && Secrets::check(&config.auth).is_ok_and(|users| users == 0) {
        let why = format!(
            "{method} needs secrets, and neither userlist_file nor pool_passwd_file holds one: nobody can log in"
        );
        remarks.push(("auth.method".to_owned(), why));
    }
    remarks.extend(names_of_here(config));
    remarks.extend(endings(config, unix_seconds()));
    remarks
}

/// A server elsewhere streams from the others by their hosts' names, and to it `localhost` is its own machine.
fn names_of_here(config: &Config) -> Vec<(String, String)> {
    let elsewhere = config.nodes.iter().filter(|n| n.maintain.remote_command.is_some());
    let elsewhere: Vec<String> = elsewhere.map(|n| n.id.to_string()).collect();
    if elsewhere.is_empty() {
        return Vec::new();
    }
    let here = config.nodes.iter().filter(|n| n.host.is_local() || n.host.0 == "localhost");
    let why = format!("node {} is on another machine, to which this host means itself", elsewhere.join(", "));
    here.map(|n| (format!("node[{}].host", n.id), why.clone())).collect()
}

/// For each node, how it is acted on: what `pgmend check` tells. Reads no other machine; host names are resolved.
pub fn control(config: &Config) -> Vec<String> {
    config.nodes.iter().map(control_of).collect()
}

fn control_of(node: &NodeSpec) -> String {
    let commands = &node.maintain;
    let (way, able) = match (&commands.remote_command, &node.data_directory) {
        (Some(command), _) => (format!("elsewhere, through `{command}`"), true),
        (None, None) => ("without a data_directory".to_owned(), false),
        (None, Some(_)) if is_this_machine(&node.host.0) => ("on this machine".to_owned(), true),
        (None, Some(_)) => ("elsewhere, without a remote_command".to_owned(), false),
    };
    let own = |command: &Option<String>, otherwise: &str| match (command, able) {
        (Some(command), _) => format!("`{command}`"),
        (None, true) => otherwise.to_owned(),
        (None, false) => "nothing".to_owned(),
    };
    let autostart = match &commands.autostart_off_command {
        Some(_) => "its automatic start by its own commands",
        None => "its automatic start is left alone",
    };
    let what = match able {
        true => "maintenance, switchover and the built-in recovery can act on it",
        false => "maintenance and switchover cannot stop and prove it; it is recovered by a script",
    };
    format!(
        "node {} at {}: {way}; started by {}, stopped by {}, {autostart}; {what}",
        node.id,
        node.label(),
        own(&node.start_command, "pg_ctl"),
        own(&node.stop_command, "a signal")
    )
}

/// Certificates that have ended or soon will.
pub fn endings(config: &Config, now_s: i64) -> Vec<(String, String)> {
    let tls = config.listen.tls.as_ref();
    let own = tls.map(|tls| ("tls.cert_file", tls.own.cert_file.as_path()));
    let others = tls.into_iter().flat_map(|tls| &tls.others);
    let others = others.map(|files| ("tls.certificate.cert_file", files.cert_file.as_path()));
    let servers = config.server.tls.cert_file.as_deref().map(|file| ("tls.server_cert_file", file));
    let databases = config.server.tls.databases.values();
    let databases = databases.map(|(cert, _)| ("pool.databases.server_cert_file", cert.as_path()));
    own.into_iter()
        .chain(others)
        .chain(servers)
        .chain(databases)
        .filter_map(|(key, file)| ending(key, file, now_s))
        .collect()
}

fn ending(key: &str, file: &Path, now_s: i64) -> Option<(String, String)> {
    // An unreadable file has an error of its own.
    let left_s = certificate_ends_at(file).ok()?.saturating_sub(now_s);
    let file = file.display();
    let why = match left_s {
        ..0 => format!("{file} has expired {} days ago; renew it and reload", -left_s / DAY_S),
        0..SOON_S => format!("{file} expires in {} days; renew it and reload", left_s / DAY_S),
        _ => return None,
    };
    Some((key.to_owned(), why))
}

fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    i64::try_from(since).unwrap_or(i64::MAX)
}
