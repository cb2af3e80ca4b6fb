//! Online recovery with two stages, where pgmend keeps the nodes equal: each runner, and what clients see of it.

use crate::support::oracle::assert_equal;
use crate::support::process::{run_for, wait_until};
use crate::support::{Cluster, Config, Pgmend, as_postgres, bin};
use std::time::{Duration, Instant};

/// What Pgpool-II's sample does first: a base backup of the main node, started as a standby that streams.
pub fn first_stage_script() -> String {
    let streams = "SELECT status FROM pg_stat_wal_receiver";
    format!(
        "#!/bin/bash\nset -eu\n[ $# -eq 7 ]\nrm -rf \"$3\"\n\
         {bin}/pg_basebackup -h 127.0.0.1 -p \"$4\" -U postgres -D \"$3\" -X stream -c fast --no-sync\n\
         touch \"$3/standby.signal\"\necho \"port = $6\" >> \"$3/postgresql.conf\"\n\
         echo \"primary_conninfo = 'host=127.0.0.1 port=$4 user=postgres'\" >> \"$3/postgresql.auto.conf\"\n\
         {bin}/pg_ctl start -w -D \"$3\" -l \"$3/../target.log\" </dev/null >/dev/null 2>&1\n\
         for try in $(seq 300); do\n\
         [ \"$({bin}/psql -XAtc \"{streams}\" -h 127.0.0.1 -p $6 -U postgres postgres)\" = streaming ] && exit 0\n\
         sleep 0.1\ndone\nexit 1\n",
        bin = bin("").display()
    )
}

/// And second: sequences pushed into the log, the rest of the log awaited, the target promoted.
pub fn second_stage_script() -> String {
    format!(
        "#!/bin/bash\nset -eu\n[ $# -eq 7 ]\n\
         ask() {{ {bin}/psql -XAt -h 127.0.0.1 -U postgres \"$@\"; }}\n\
         ask -p $4 -c \"SELECT setval(oid, nextval(oid)) FROM pg_class WHERE relkind = 'S'\" postgres\n\
         goal=$(ask -p $4 -c 'SELECT pg_current_wal_flush_lsn()' postgres)\n\
         until [ \"$(ask -p $6 -c \"SELECT pg_last_wal_replay_lsn() >= '$goal'\" postgres)\" = t ]; do sleep 0.05; done\n\
         {bin}/pg_ctl promote -w -D \"$3\" >/dev/null\n",
        bin = bin("").display()
    )
}

/// `pg_ctl status || pg_ctl start`.
pub fn remote_start_script() -> String {
    format!(
        "#!/bin/bash\n{bin}/pg_ctl status -D \"$2\" >/dev/null || \
         {bin}/pg_ctl start -w -D \"$2\" -l \"$2/../restart.log\" </dev/null >/dev/null 2>&1\n",
        bin = bin("").display()
    )
}

/// A main node with rows, sequences that ran, an unlogged table and a second database; node 1 does not exist yet.
pub fn main_alone(runner: &str, more: impl FnOnce(&Cluster, &mut Config)) -> (Cluster, Config) {
    let mut cluster = Cluster::single();
    cluster.add_empty_node();
    cluster.pgbench_tables("postgres", 1);
    let serial = "CREATE TABLE orders (id serial PRIMARY KEY, what text); \
                  INSERT INTO orders (what) SELECT 'a' FROM generate_series(1, 4); \
                  CREATE SEQUENCE \"never called\" START 7; \
                  CREATE UNLOGGED TABLE scratch AS SELECT g AS n, 'it''s' || g AS t FROM generate_series(1, 100) g";
    cluster.sql(0, "postgres", serial);
    cluster.sql(0, "postgres", "CREATE DATABASE other");
    cluster.sql(
        0,
        "other",
        "CREATE TABLE t (id serial, n int); INSERT INTO t (n) SELECT 1 FROM generate_series(1, 33)",
    );
    let mut config = Config::of(&cluster);
    config.set("cluster", "backend_clustering_mode = \"native_replication\"");
    config.set("recovery", &format!("recovery_runner = \"{runner}\""));
    if runner != "builtin" {
        cluster.write(0, "first_stage", &first_stage_script(), "755");
        cluster.write(0, "second_stage", &second_stage_script(), "755");
        cluster.write(0, "pgpool_remote_start", &remote_start_script(), "755");
        config.set("recovery", "recovery_1st_stage_command = \"first_stage\"");
        config.set("recovery", "recovery_2nd_stage_command = \"second_stage\"");
    }
    if runner == "sql" {
        cluster.sql(0, "postgres", "CREATE EXTENSION pgpool_recovery");
    }
    more(&cluster, &mut config);
    (cluster, config)
}

/// Node 1 serves, is no standby, and holds what node 0 holds; nothing is left on node 0.
#[track_caller]
pub fn assert_joined(cluster: &Cluster, pgmend: &Pgmend) {
    assert_eq!(pgmend.node_status(1), "up", "{}", pgmend.log());
    assert_eq!(cluster.sql(1, "postgres", "SELECT pg_is_in_recovery()"), "f");
    assert_equal(cluster, &[0, 1]);
    assert_eq!(cluster.sql(0, "postgres", "SELECT count(*) FROM pg_replication_slots"), "0");
}

fn gate(pgmend: &Pgmend) -> String {
    let status = pgmend.cli(&["status"]).must().out;
    status.lines().find(|line| line.contains(", gate ")).unwrap_or_default().to_owned()
}

#[track_caller]
pub fn assert_open(pgmend: &Pgmend) {
    assert!(gate(pgmend).ends_with("gate open"), "{}", gate(pgmend));
    pgmend.sql("SELECT 1").must();
}

fn joins(runner: &str) {
    let (cluster, config) = main_alone(runner, |_, _| ());
    let pgmend = config.start();
    pgmend.wait_node(1, "down");
    let report = pgmend.cli(&["recover", "1"]).must().all();
    assert!(report.contains("clients were held for"), "{report}");
    assert_joined(&cluster, &pgmend);
    assert_open(&pgmend);
}

#[test]
fn the_builtin_stages_make_an_equal_node() {
    joins("builtin");
}

#[test]
fn scripts_run_by_pgmend_make_an_equal_node() {
    joins("local");
}

#[test]
fn scripts_run_by_copy_from_program_make_an_equal_node() {
    joins("program");
}

#[test]
fn scripts_run_by_the_sql_function_make_an_equal_node() {
    joins("sql");
}

/// The scripts push the source's sequences on, and its alone: those of a node in service follow.
#[test]
fn a_third_node_joins_two() {
    let (mut cluster, config) = main_alone("local", |_, _| ());
    let third = cluster.add_empty_node();
    let port = cluster.nodes[third].port;
    let node = format!(
        "[[node]]\nhost = \"127.0.0.1\"\nport = {port}\ndata_directory = \"{}\"\n",
        cluster.nodes[third].data.display()
    );
    let pgmend = config.spawn_with(&format!("{}{node}", config.text()));
    pgmend.wait_ready();
    pgmend.cli(&["recover", "1"]).must();
    assert_joined(&cluster, &pgmend);
    let report = pgmend.cli(&["recover", "2"]).must().all();
    assert!(report.contains("sequences were set"), "{report}");
    assert_eq!(pgmend.node_status(2), "up");
    assert_equal(&cluster, &[0, 1, 2]);
    pgmend.sql("INSERT INTO orders (what) VALUES ('for all three')").must();
    assert_equal(&cluster, &[0, 1, 2]);
    assert_eq!(cluster.sql(2, "postgres", "SELECT count(*) FROM orders"), "5");
}

#[test]
fn clients_work_in_the_first_stage_and_wait_in_the_second() {
    let (cluster, config) = main_alone("local", |cluster, _| {
        let script = second_stage_script().replace("set -eu\n", "set -eu\ntouch held\nsleep 2\n");
        cluster.write(0, "second_stage", &script, "755");
        let script =
            first_stage_script().replace("set -eu\n", "set -eu\ntouch first\nwhile [ -e first ]; do sleep 0.1; done\n");
        cluster.write(0, "first_stage", &script, "755");
    });
    let pgmend = config.start();
    let file = |name: &str| cluster.nodes[0].data.join(name);
    std::thread::scope(|scope| {
        let recovery = scope.spawn(|| pgmend.cli(&["recover", "1"]));
        wait_until("the first stage runs", Duration::from_secs(30), || file("first").exists());
        assert_open(&pgmend);
        std::fs::remove_file(file("first")).expect("the first stage may go on");
        wait_until("the second stage runs", Duration::from_secs(30), || file("held").exists());
        assert!(gate(&pgmend).contains("held: recovery of node 1, second stage"), "{}", gate(&pgmend));
        let began = Instant::now();
        pgmend.sql("SELECT 1").must();
        assert!(began.elapsed() > Duration::from_secs(1), "it was not held: {:?}", began.elapsed());
        assert_eq!(pgmend.node_status(1), "up", "who is let go on meets the new node");
        recovery.join().expect("no panic").must();
    });
    assert_joined(&cluster, &pgmend);
}

#[test]
fn unlogged_tables_are_named_when_they_are_not_copied() {
    let (cluster, config) = main_alone("builtin", |_, config| {
        config.set("recovery", "recovery_unlogged_tables = \"report\"");
    });
    let pgmend = config.start();
    let report = pgmend.cli(&["recover", "1"]).must().all();
    assert!(report.contains("1 unlogged tables were left empty (postgres: public.scratch)"), "{report}");
    assert_eq!(cluster.sql(1, "postgres", "SELECT count(*) FROM scratch"), "0");
}

/// New node in the file, reload, down, recovered, serving; and by the stock tools.
#[test]
fn a_server_is_added_by_a_reload() {
    let mut cluster = Cluster::single();
    cluster.sql(0, "postgres", "CREATE TABLE t AS SELECT 1 AS n");
    let mut alone = Config::of(&cluster);
    alone.set("cluster", "backend_clustering_mode = \"snapshot_isolation\"").pcp();
    let pgmend = alone.start();
    pgmend.wait_node(0, "up");
    cluster.add_empty_node();
    let port = cluster.nodes[1].port;
    let node = format!(
        "[[node]]\nhost = \"127.0.0.1\"\nport = {port}\ndata_directory = \"{}\"\n",
        cluster.nodes[1].data.display()
    );
    let file = pgmend.config.folder().join("pgmend.toml");
    let text = std::fs::read_to_string(&file).expect("it was started with it");
    std::fs::write(&file, format!("{text}{node}")).expect("it can be written");
    let told = pgmend.cli(&["reload"]).must().all();
    assert!(told.contains("node[1] (added)"), "{told}");
    pgmend.wait_node(1, "down");
    let refused = pgmend.cli(&["attach", "1"]);
    assert!(!refused.ok, "nobody knows what it has: {}", refused.all());
    let said = pgmend.pcp("pcp_recovery_node", &["-n", "1"]).all();
    assert!(said.contains("Command Successful"), "{said}");
    assert_joined(&cluster, &pgmend);
    let info = pgmend.pcp("pcp_node_info", &["-n", "0"]).all();
    assert!(info.contains(" main main "), "{info}");
    let info = pgmend.pcp("pcp_node_info", &["-n", "1"]).all();
    assert!(info.contains(" replica replica "), "{info}");
    let rows = pgmend.sql("SHOW POOL_NODES").must().out;
    assert!(rows.contains("|main|main|") && rows.contains("|replica|replica|"), "{rows}");
}

#[test]
fn a_node_that_was_stopped_is_rebuilt_over_its_old_data() {
    let (cluster, config) = main_alone("builtin", |_, _| ());
    let pgmend = config.start();
    pgmend.cli(&["recover", "1"]).must();
    cluster.stop(1);
    pgmend.wait_node(1, "down");
    cluster.sql(0, "postgres", "INSERT INTO orders (what) VALUES ('while it was away')");
    let mut start = as_postgres(bin("pg_ctl"));
    let log = cluster.folder().join("node1.log");
    run_for(start.args(["start", "-w", "-D"]).arg(&cluster.nodes[1].data).arg("-l").arg(log), Duration::from_secs(60))
        .must();
    let refused = pgmend.cli(&["attach", "1"]);
    assert!(!refused.ok && refused.all().contains("table public.orders differs"), "{}", refused.all());
    assert_open(&pgmend);
    cluster.stop(1);
    pgmend.cli(&["recover", "1"]).must();
    assert_joined(&cluster, &pgmend);
}
