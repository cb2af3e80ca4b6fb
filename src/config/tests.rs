//! Literal files and the literal errors that they cause.

use super::*;
use crate::cluster::{Clients, Drain, IdleLimit, Newcomers};
use std::time::Duration;

fn errors(text: &str) -> Vec<String> {
    let errors = pgmend_toml::parse(Path::new("pgmend.toml"), text).unwrap_err();
    errors.0.iter().map(ToString::to_string).collect()
}

#[test]
fn the_smallest_file_has_defaults() {
    let config = pgmend_toml::parse(Path::new("/etc/pgmend/pgmend.toml"), "[[node]]\nhost = 'db0'\n").unwrap();
    assert_eq!(config.listen.port, 6432);
    assert_eq!(config.listen.addresses, ["127.0.0.1"]);
    assert_eq!(config.nodes[0].label(), "db0(5432)");
    assert_eq!(config.nodes[0].application_name, "pgmend_0");
    assert_eq!(config.pool.rules.mode, crate::pool::PoolMode::Transaction);
    assert_eq!(config.auth.default_method, "scram-sha-256");
    assert_eq!(config.recovery.runner, crate::recovery::Runner::Builtin);
    assert_eq!(config.recovery.replication_user, "postgres");
    assert_eq!(config.admin.socket, Path::new(DEFAULT_SOCKET));
    assert_eq!(config.admin.pcp, None);
}

#[test]
fn several_mistakes_are_told_at_once_with_line_and_nearest_key() {
    let text = "[listen]\nprot = 6432\n[[node]]\nhost = 'a'\nport = 'five'\n[pool]\nmode = 'sesion'\n\
                query_wait_timeout = '10 parsecs'\n[heath]\n";
    assert_eq!(
        errors(text),
        [
            "pgmend.toml:2: listen.prot: unknown key; did you mean \"port\"?",
            "pgmend.toml:5: node[0].port: expected a whole number from 1 to 65535, found the text \"five\"",
            "pgmend.toml:7: pool.mode: expected one of session, transaction, statement, found \"sesion\"; did you mean \"session\"?",
            "pgmend.toml:8: pool.query_wait_timeout: expected a duration such as \"10s\", \"500ms\", \"2min\" or \"1h\", \
             found \"10 parsecs\"",
            "pgmend.toml:9: heath: unknown key; did you mean \"health\"?",
        ]
    );
}

#[test]
fn a_node_elsewhere_is_told_how_it_is_reached() {
    let node = |more: &str| format!("[[node]]\nhost = '192.0.2.7'\n{more}\n[auth]\nmethod = 'trust'\n");
    let control = |more: &str| control(&pgmend_toml::parse(Path::new("pgmend.toml"), &node(more)).unwrap()).remove(0);
    let told = control("data_directory = '/d'\nremote_command = 'ssh db'\nstop_command = 'halt'");
    assert_eq!(
        told,
        "node 0 at 192.0.2.7(5432): elsewhere, through `ssh db`; started by pg_ctl, stopped by `halt`, its automatic \
         start is left alone; maintenance, switchover and the built-in recovery can act on it"
    );
    assert!(control("data_directory = '/d'").contains("elsewhere, without a remote_command; started by nothing"));
    let wrong = |more: &str| errors(&node(more)).join("\n");
    assert!(wrong("remote_command = 'ssh db'").contains("expected data_directory too"));
    assert!(wrong("data_directory = '/d'\nremote_command = 'ssh {} {}'").contains("at most one {}"));
    assert!(wrong("bin_directory = 'bin'").contains("expected an absolute path"));
    assert!(wrong("data_directory = \"/d\\n\"").contains("without line breaks"));
    assert!(wrong("autostart_off_command = 'x'").contains("or neither"));
    let socket = "[[node]]\nhost = '/tmp'\ndata_directory = '/d'\nremote_command = 'ssh db'\n";
    assert!(errors(socket).join("\n").contains("directory of a Unix socket"));
    let two = format!("{}[[node]]\nhost = 'localhost'\n", node("data_directory = '/d'\nremote_command = 'ssh db'"));
    let told =
        remarks(&pgmend_toml::parse(Path::new("pgmend.toml"), &two.replace("[auth]\nmethod = 'trust'\n", "")).unwrap());
    assert!(told.iter().any(|(key, why)| key == "node[1].host" && why.contains("means itself")), "{told:?}");
}

#[test]
fn logins_that_cannot_succeed_are_remarked() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pgmend.toml");
    std::fs::write(folder.path().join("userlist.txt"), "; nobody yet\n").unwrap();
    let remarked = |auth: &str| {
        let config = parse_toml(&file, &format!("[[node]]\nhost = 'a'\n[auth]\n{auth}\n")).unwrap();
        remarks(&config).into_iter().map(|(key, why)| format!("{key}: {why}")).collect::<Vec<_>>()
    };
    let nobody = "needs secrets, and neither userlist_file nor pool_passwd_file holds one: nobody can log in";
    assert_eq!(remarked(""), [format!("auth.method: scram-sha-256 {nobody}")]);
    assert_eq!(remarked("method = 'md5'\nuserlist_file = 'userlist.txt'"), [format!("auth.method: md5 {nobody}")]);
    assert!(remarked("method = 'trust'").is_empty());
    std::fs::write(folder.path().join("userlist.txt"), "\"me\" \"secret\"\n").unwrap();
    assert!(remarked("userlist_file = 'userlist.txt'").is_empty());
}

#[test]
fn two_missing_hosts_are_not_one_place() {
    let missing = "expected a host name, an address or the directory of a Unix socket; it is missing";
    let told = errors("[[node]]\n[[node]]\n");
    assert_eq!(
        told,
        [format!("pgmend.toml:1: node[0].host: {missing}"), format!("pgmend.toml:2: node[1].host: {missing}")]
    );
}

#[test]
fn contradictions_are_found() {
    let text = "[listen]\nport = 5432\n[[node]]\nhost = 'localhost'\n[[node]]\nhost = 'b'\n[[node]]\nhost = 'b'\n\
                [recovery]\nrecovery_timeout = 0\nrecovery_1st_stage_command = '../evil'\n";
    assert_eq!(
        errors(text),
        [
            "pgmend.toml:3: node[0].port: expected a PostgreSQL server, found localhost(5432), where pgmend itself listens",
            "pgmend.toml:7: node[2].port: expected an address of its own, found b(5432), which is node 1 too",
            "pgmend.toml:10: recovery.recovery_timeout: expected more than zero: an unbounded wait is not offered here",
            "pgmend.toml:11: recovery.recovery_1st_stage_command: expected the name of a file in the data directory, \
             found \"../evil\"",
        ]
    );
    assert_eq!(errors(""), ["pgmend.toml: node: expected at least one [[node]] with host and port"]);
}

#[test]
fn limits_of_a_drain_must_end_before_the_recovery_does() {
    let told = errors(
        "[[node]]\nhost = 'a'\n[recovery]\nrecovery_timeout = '30s'\nclient_idle_limit_in_recovery = 30\n\
         recovery_idle_in_transaction_limit = '31s'\nrecovery_clients = 'drop'\n",
    );
    assert_eq!(
        told,
        [
            "pgmend.toml:5: recovery.client_idle_limit_in_recovery: expected less than recovery_timeout, 30 s, found 30: it would \
             fail first",
            "pgmend.toml:6: recovery.recovery_idle_in_transaction_limit: expected less than recovery_timeout, 30 s, found 31 s: it \
             would fail first",
            "pgmend.toml:7: recovery.recovery_clients: expected one of hold, disconnect, found \"drop\"",
        ]
    );
    let drain = |recovery: &str| {
        let text = format!("[[node]]\nhost = 'a'\n[recovery]\n{recovery}\n");
        pgmend_toml::parse(Path::new("pgmend.toml"), &text).unwrap().recovery.drain
    };
    assert_eq!(drain(""), Drain::default());
    // What nobody has set gives way.
    assert_eq!(drain("recovery_timeout = 5").idle_in_transaction, Some(Duration::from_millis(2500)));
    assert_eq!(drain("recovery_idle_in_transaction_limit = 0").idle_in_transaction, None);
    let minus_one = drain("client_idle_limit_in_recovery = -1\nrecovery_new_connections = 'reject'");
    assert_eq!((minus_one.clients, minus_one.idle_limit), (Clients::Hold, IdleLimit::AtOnce));
    assert_eq!(minus_one.newcomers, Newcomers::Reject);
}

#[test]
fn broken_syntax_and_missing_files_name_their_place() {
    assert!(errors("[listen\n")[0].starts_with("pgmend.toml:1: "));
    let text = "[[node]]\nhost = 'a'\n[auth]\nhba_file = 'no-such.conf'\n";
    assert_eq!(
        errors(text),
        [
            "pgmend.toml:4: auth.hba_file: expected a readable file, found ./no-such.conf: No such file or directory (os \
          error 2)"
        ]
    );
    let missing = load(Path::new("/nonexistent/pgmend.toml")).unwrap_err().to_string();
    assert_eq!(missing, "/nonexistent/pgmend.toml: cannot be read: No such file or directory (os error 2)");
}

#[test]
fn a_text_that_would_be_cut_off_at_a_nul_is_refused() {
    for line in [
        "[pool]\nreset_query = \"a\\u0000b\"",
        "[auth]\nauth_user = \"\\u0000\"",
        "[recovery]\nrecovery_password = \"\\u0000\"",
    ] {
        let told = errors(&format!("[[node]]\nhost = 'a'\n{line}\n"));
        assert!(told.iter().any(|error| error.contains("expected a text, found one with a NUL character")), "{told:?}");
    }
}

#[test]
fn values_are_read_with_their_units() {
    let text = "[listen]\nunix_socket_permissions = '0700'\nunix_socket_directories = []\n[[node]]\nhost = '/tmp'\n\
                flag = 'DISALLOW_TO_FAILOVER|ALWAYS_PRIMARY'\nsslmode = 'verify-full'\n[pool]\nquery_wait_timeout = 7\n\
                [pool.databases.app]\nmode = 'session'\npool_size = 5\n";
    let config = pgmend_toml::parse(Path::new("pgmend.toml"), text).unwrap();
    assert_eq!(config.listen.unix_socket_permissions, 0o700);
    assert_eq!(config.pool.rules.wait_timeout, Duration::from_secs(7));
    assert_eq!(config.pool.databases["app"].rules.size, Some(5));
    assert_eq!(config.pool.databases["app"].rules.mode, Some(crate::pool::PoolMode::Session));
    assert!(!config.nodes[0].allow_failover && config.nodes[0].always_primary);
    assert_eq!(config.nodes[0].sslmode, crate::cluster::SslMode::VerifyFull);
}

#[test]
fn databases_and_users_have_sections_of_their_own() {
    let text = "[[node]]\nhost = 'a'\n[pool]\nmax_new_connections = 0\n[pool.databases.'*']\ndbname = 'one'\nuser = 'app'\n\
                password = 'x'\nserver_lifetime = '1min'\n[pool.users.batch]\nquery_timeout = '1h'\nmax_user_connections = 4\n";
    let pool = pgmend_toml::parse(Path::new("pgmend.toml"), text).unwrap().pool;
    let any = pool.database("what").unwrap();
    assert_eq!((any.dbname.as_deref(), any.user.as_deref()), (Some("one"), Some("app")));
    let rules = pool.rules("batch", "what");
    assert_eq!(rules.query_timeout, Duration::from_secs(3600));
    assert_eq!((rules.max_user_connections, rules.server_lifetime), (4, Duration::from_secs(60)));
    let wrong = "[[node]]\nhost = 'a'\n[pool.databases.d]\npassword = 'x'\nmax_user_connections = 1\n[pool.users.u]\n\
                 pool_size = 0\ndbname = 'd'\n";
    let told = errors(wrong);
    assert!(told[0].contains("pool.databases.d.password: expected user too"), "{told:?}");
    assert!(told[1].contains("pool.databases.d.max_user_connections: unknown key"), "{told:?}");
    assert!(told[2].contains("pool.users.u.pool_size: expected a whole number from 1"), "{told:?}");
    assert!(told[3].contains("pool.users.u.dbname: unknown key"), "{told:?}");
}

#[test]
fn the_samples_are_good_and_show_every_key() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf");
    let config = load(&folder.join("pgmend-minimal.toml")).unwrap();
    let full = folder.join("pgmend.toml");
    load(&full).unwrap();
    let text = std::fs::read_to_string(full).unwrap();
    for (key, _, _) in &config.listed {
        let key = key.rsplit_once('.').map_or(key.as_str(), |(_, key)| key);
        assert!(text.contains(&format!("\n# {key} = ")) || text.contains(&format!("\n{key} = ")), "{key}");
    }
}

#[test]
fn a_mistake_in_the_rules_names_their_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pgmend.toml");
    std::fs::write(&file, "[[node]]\nhost = 'a'\n[auth]\nhba_file = 'hba.conf'\n").unwrap();
    std::fs::write(folder.path().join("hba.conf"), "local all all trust\nlocal all all pigeon\n").unwrap();
    let told = load(&file).unwrap_err().to_string();
    let hba = folder.path().join("hba.conf");
    assert!(told.starts_with(&format!("{}:2: ", hba.display())) && told.contains("pigeon"), "{told}");
}
