//! A file as `pgpool_setup` writes it, and mistakes with their messages.

use super::*;
use crate::cluster::{Clients, Drain, IdleLimit};

fn load_text(text: &str) -> Result<Config, ConfigErrors> {
    let folder = tempfile::tempdir().unwrap();
    let conf = folder.path().join("pgpool.conf");
    std::fs::write(&conf, text).unwrap();
    let pcp = folder.path().join("pcp.conf");
    std::fs::write(&pcp, "postgres:e8a48653851e28c69d0506508fb27fc5\n").unwrap();
    load(&Files { conf, pcp: Some(pcp), hba: None, key: None })
}

const SETUP: &str = "backend_clustering_mode = 'streaming_replication'\nhostname0 = ''\n\
    backend_clustering_mode = streaming_replication\nsr_check_user = 'postgres'\nrecovery_user = 'postgres'\n\
    recovery_password = ''\nrecovery_1st_stage_command = 'basebackup.sh'\nhealth_check_period0 = 10\n\
    health_check_timeout0 = 20\nhealth_check_user0 = 'postgres'\nhealth_check_password0 = ''\n\
    health_check_database0 = 'postgres'\nhealth_check_max_retries0 = 3\nhealth_check_retry_delay0 = 1\n\
    connect_timeout0 = 1000\nlog_per_node_statement = on\nfailover_command = '/x/failover.sh %d'\n\
    socket_dir = '/tmp'\npcp_socket_dir = '/tmp'\nport = 11000\npcp_port = 11001\npid_file_name = '/x/run/pgpool.pid'\n\
    logdir = '/x/log'\nbackend_hostname0 = 'localhost'\nbackend_port0 = 11002\nbackend_weight0 = 1\n\
    backend_data_directory0 = '/x/data0'\nbackend_application_name0 = 'server0'\n";

#[test]
fn the_file_of_pgpool_setup_is_read() {
    let config = load_text(SETUP).unwrap();
    assert_eq!(config.nodes.len(), 1);
    assert_eq!(config.nodes[0].label(), "localhost(11002)");
    assert_eq!(config.nodes[0].application_name, "server0");
    assert_eq!(config.listen.port, 11000);
    assert_eq!(config.health.max_retries, 3);
    assert_eq!(config.health.period, std::time::Duration::from_secs(10));
    assert_eq!(config.recovery.database, "template1");
    assert_eq!(config.server.reset_query, "DISCARD ALL");
    assert_eq!(config.pid_file.as_deref(), Some(Path::new("/x/run/pgpool.pid")));
    assert_eq!(config.store.directory, Path::new("/x/log"));
    assert_eq!((config.auth.default_method.as_str(), &config.auth.pool_passwd_file), ("trust", &None));
    let not_honoured: Vec<_> = config.not_honoured.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(not_honoured, ["enable_pool_hba", "log_per_node_statement", "load_balance_mode", "failover_command"]);
    // The script waits until this many rows of SHOW POOL_STATUS match.
    let rows = config.listed.iter().filter(|(name, _, text)| format!("{name}{text}").contains("backend_data")).count();
    assert_eq!(rows, 1);
}

#[test]
fn mistakes_and_what_is_not_built_are_told_with_their_lines() {
    let text = "backend_clustering_mode = 'logical_replication'\nport = 99999\nbackend_hostname0 = 'a'\n\
                backend_hostname2 = 'b'\nssl_crl_file = 'x'\nrecovery_timeout = soon\n";
    let errors = load_text(text).unwrap_err();
    let errors: Vec<_> = errors.0.iter().map(|e| format!("{}: {}: {}", e.line, e.key, e.message)).collect();
    assert_eq!(
        errors[..5],
        [
            "1: backend_clustering_mode: logical_replication is not built; streaming_replication, native_replication, snapshot_isolation are",
            "4: backend_hostname2: expected nodes without gaps: there is no backend_hostname1",
            "5: ssl_crl_file: revocation lists are not read, so revoked certificates would be accepted; remove it to accept that",
            "2: port: expected a whole number from 1 to 65535, found \"99999\"",
            "6: recovery_timeout: expected a duration such as \"10s\", \"500ms\", \"2min\" or \"1h\", found \"soon\"",
        ]
    );
}

#[test]
fn the_modes_are_read() {
    use crate::cluster::Mode;
    let mode =
        |name: &str| load_text(&format!("backend_hostname0 = 'a'\nbackend_clustering_mode = {name}\n")).unwrap().mode;
    assert_eq!(mode("'native_replication'"), Mode::NativeReplication);
    assert_eq!(mode("snapshot_isolation"), Mode::SnapshotIsolation);
    assert_eq!(mode("raw"), Mode::StreamingReplication);
}

#[test]
fn the_limit_of_idle_clients_is_pgpools_and_minus_one_disconnects() {
    let drain = |text: &str| load_text(&format!("backend_hostname0 = 'a'\n{text}")).map(|config| config.recovery.drain);
    assert_eq!(drain("").unwrap(), Drain::default());
    let minus_one = drain("client_idle_limit_in_recovery = -1\n").unwrap();
    assert_eq!((minus_one.clients, minus_one.idle_limit), (Clients::Disconnect, IdleLimit::AtOnce));
    let held = drain("client_idle_limit_in_recovery = -1\nrecovery_clients = hold\n").unwrap();
    assert_eq!((held.clients, held.idle_limit), (Clients::Hold, IdleLimit::AtOnce));
    assert_eq!(drain("client_idle_limit_in_recovery = 20\n").unwrap().clients, Clients::Hold);
    let errors = drain("client_idle_limit_in_recovery = 90\n").unwrap_err();
    let errors: Vec<_> = errors.0.iter().map(|e| format!("{}: {}: {}", e.line, e.key, e.message)).collect();
    assert_eq!(
        errors,
        ["2: client_idle_limit_in_recovery: expected less than recovery_timeout, 90 s, found 90: it would fail first"]
    );
    let errors = drain("recovery_clients = keep\nrecovery_idle_in_transaction_limit = 0\n").unwrap_err();
    assert_eq!(errors.0.len(), 1, "{errors:?}");
}

#[test]
fn unknown_names_are_listed_and_do_not_stop_the_start() {
    let config = load_text("backend_hostname0 = 'a'\nnum_init_childen = 5\nload_balance_mode = off\n").unwrap();
    let found = config.not_honoured.iter().find(|(name, _)| name == "num_init_childen").unwrap();
    assert_eq!(found.1, "unknown parameter; did you mean num_init_children?");
    assert!(!config.not_honoured.iter().any(|(name, _)| name == "load_balance_mode"));
}

#[test]
fn an_aes_password_is_read_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let (conf, pcp, key) =
        (folder.path().join("pgpool.conf"), folder.path().join("pcp.conf"), folder.path().join("key"));
    std::fs::write(&pcp, "").unwrap();
    std::fs::write(&key, "mykey\n").unwrap();
    std::fs::write(&conf, "backend_hostname0 = 'a'\nrecovery_password = 'AESrKikG1lnoTVl89QqlcBNaA=='\n").unwrap();
    let config = load(&Files { conf, pcp: Some(pcp), hba: None, key: Some(key) }).unwrap();
    assert_eq!(config.recovery.password.expose(), "TESTPW");
}
