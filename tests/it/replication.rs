//! Replication connections pass through to the primary: backups, log receivers, subscribers.

use crate::support::process::wait_until;
use crate::support::scratch::write_as_postgres;
use crate::support::{Cluster, Config, as_postgres, bin, run};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

fn conninfo(config: &Config, more: &str) -> String {
    format!("host=127.0.0.1 port={} user=postgres password=postgres {more}", config.port)
}

#[test]
fn a_base_backup_and_the_log_come_through_pgmend() {
    let cluster = Cluster::scram();
    cluster.pgbench_tables("app", 3);
    let mut config = Config::of(&cluster);
    config.scram().tls().set("pool", "default_pool_size = 1").set("pool", "max_replication_conn = 2");
    let pgmend = config.start();
    let (backup, log) = (cluster.folder().join("backup"), cluster.folder().join("log"));
    // Two connections: one for the files, one for the log meanwhile.
    run(as_postgres(bin("pg_basebackup"))
        .args(["-d", &conninfo(&config, "sslmode=require"), "-X", "stream", "-c", "fast", "--no-sync", "-D"])
        .arg(&backup))
    .must();
    run(as_postgres(bin("pg_verifybackup")).arg(&backup)).must();
    run(as_postgres("mkdir").arg(&log)).must();
    let mut receiver = as_postgres(bin("pg_receivewal"))
        .args(["-n", "--no-sync", "-d", &conninfo(&config, ""), "-D"])
        .arg(&log)
        .spawn()
        .expect("it starts");
    let files = || std::fs::read_dir(&log).map_or(0, Iterator::count);
    // After a backup the log stands at the beginning of a file: there is nothing to send before something is written.
    cluster.sql(0, "app", "CREATE TABLE first (x int)");
    wait_until("the log comes", PATIENCE, || files() > 0);
    let before = files();
    cluster.sql(0, "app", "SELECT pg_switch_wal()");
    cluster.sql(0, "app", "CREATE TABLE more (x int)");
    wait_until("more of the log comes", PATIENCE, || files() > before);
    // Ordinary clients have their own connections, of which replication takes none.
    run(as_postgres(bin("psql")).args(["-XAtqc", "SELECT 1", &conninfo(&config, "dbname=app")])).must();
    // Nobody waits for a client that would stream for ever.
    assert!(pgmend.stop("-TERM"));
    wait_until("the receiver ends", PATIENCE, || matches!(receiver.try_wait(), Ok(Some(_))));
}

#[test]
fn a_subscriber_follows_through_pgmend_and_comes_back_after_its_end() {
    let publisher = Cluster::scram();
    publisher.sql(0, "postgres", "ALTER SYSTEM SET wal_level = logical");
    publisher.stop(0);
    publisher.start(0);
    publisher.sql(0, "app", "CREATE TABLE t (x int); INSERT INTO t SELECT generate_series(1, 1000)");
    publisher.sql(0, "app", "CREATE PUBLICATION p FOR TABLE t");
    let subscriber = Cluster::single();
    subscriber.sql(0, "postgres", "CREATE TABLE t (x int)");
    let mut config = Config::of(&publisher);
    config.scram();
    let pgmend = config.start();
    let connection = conninfo(&config, "dbname=app");
    subscriber.sql(0, "postgres", &format!("CREATE SUBSCRIPTION s CONNECTION '{connection}' PUBLICATION p"));
    let count = || subscriber.sql(0, "postgres", "SELECT count(*) FROM t");
    wait_until("the rows that were there", PATIENCE, || count() == "1000");
    publisher.sql(0, "app", "INSERT INTO t SELECT generate_series(1, 500)");
    wait_until("the rows that came", PATIENCE, || count() == "1500");
    assert!(pgmend.stop("-TERM"));
    let _pgmend = config.start();
    publisher.sql(0, "app", "INSERT INTO t SELECT generate_series(1, 10)");
    wait_until("the rows that came after a new start", PATIENCE, || count() == "1510");
}

#[test]
fn commands_of_replication_are_answered_and_rules_and_limits_hold() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    let rules = "host all all 127.0.0.1/32 trust\nhost replication postgres 127.0.0.1/32 trust\n";
    write_as_postgres(&cluster.folder().join("hba.conf"), rules, "644");
    config.set("auth", "hba_file = \"hba.conf\"").set("pool", "max_replication_conn = 1");
    let pgmend = config.start();
    let port = config.port;
    let ask = |user: &str, more: &str, sql: &str| {
        let info = format!("host=127.0.0.1 port={port} user={user} {more}");
        run(as_postgres(bin("psql")).args(["-XAtqc", sql, &info]))
    };
    let system = cluster.sql(0, "postgres", "SELECT system_identifier FROM pg_control_system()");
    for mode in ["database dbname=postgres", "on", "true", "1"] {
        let ran = ask("postgres", &format!("replication={mode}"), "IDENTIFY_SYSTEM").must();
        assert!(ran.out.starts_with(&system), "{}", ran.all());
    }
    assert_eq!(ask("postgres", "dbname=postgres replication=database", "SHOW work_mem").must().out.trim(), "4MB");
    assert_eq!(ask("postgres", "dbname=postgres replication=off", "SELECT 1").must().out.trim(), "1");
    ask("postgres", "replication=perhaps", "SELECT 1").must_fail_saying("invalid value for parameter");
    cluster.sql(0, "postgres", "CREATE ROLE other LOGIN REPLICATION");
    ask("other", "replication=true", "IDENTIFY_SYSTEM").must_fail_saying("for replication connection");
    ask("other", "dbname=postgres replication=database", "IDENTIFY_SYSTEM").must();
    cluster.sql(0, "postgres", "CREATE ROLE plain LOGIN");
    // The server's own word.
    ask("plain", "dbname=postgres replication=database", "IDENTIFY_SYSTEM").must_fail_saying("replication");
    config.set("pool", "max_replication_conn = 0").write();
    pgmend.cli(&["reload"]).must();
    ask("postgres", "replication=true", "IDENTIFY_SYSTEM").must_fail_saying("max_replication_conn");
}
