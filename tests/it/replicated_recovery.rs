//! The main job where pgmend keeps the nodes equal: a lost node comes back by both stages while pgbench writes, nobody gets an
//! error, and the nodes are equal afterwards.

use crate::support::oracle::assert_equal;
use crate::support::{Cluster, Config, Load};
use crate::two_stages::main_alone;
use std::time::{Duration, SystemTime};

/// Milliseconds after `clients were held for` in the recovery's report.
fn held(report: &str) -> Duration {
    let rest = report.split_once("clients were held for ").expect("the report tells it").1;
    let number: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    let unit = rest.get(number.len()..).unwrap_or_default().trim_start();
    let number: f64 = number.parse().expect("a number");
    if unit.starts_with("ms") { Duration::from_secs_f64(number / 1000.0) } else { Duration::from_secs_f64(number) }
}

/// pgbench's own transaction, TPC-B, but each of eight clients has its branch, its teller and its accounts to itself: nobody
/// waits for another's row, and nobody has to try again.
const OWN_ROWS: &str = "\\set bid :client_id + 1
\\set aid random(1, 12500) + :client_id * 12500
\\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :bid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = :bid;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:bid, :bid, :aid, :delta, CURRENT_TIMESTAMP);
END;
";

fn joins_under_load(mode: &str, pooling: &str, protocol: &str, own_rows: bool) {
    let (cluster, mut config): (Cluster, Config) = main_alone("builtin", |_, _| ());
    let more = "ALTER TABLE pgbench_history ADD COLUMN id serial, ADD COLUMN at timestamptz DEFAULT now()";
    cluster.sql(0, "postgres", more);
    config.set("cluster", &format!("backend_clustering_mode = \"{mode}\""));
    config.set("pool", &format!("mode = \"{pooling}\""));
    let pgmend = config.start();
    pgmend.wait_node(1, "down");
    let script = cluster.folder().join("own-rows.sql");
    std::fs::write(&script, OWN_ROWS).expect("the script can be written");
    let mut options = vec!["-M", protocol];
    match own_rows {
        true => {
            cluster.sql(0, "postgres", "INSERT INTO pgbench_branches SELECT b, 0 FROM generate_series(2, 8) b");
            options.extend(["-f", script.to_str().expect("a plain path")]);
        }
        // Under snapshot isolation conflicts are serialization failures, which a client is to try again.
        false => options.push("--max-tries=10000"),
    }
    let load = Load::start_with(&pgmend.door(), cluster.folder(), 8, &options);
    load.goes_on();
    // Clients wait for each other's rows, recovery or not.
    let before = load.longest();
    let began = SystemTime::now();
    let report = pgmend.cli(&["recover", "1"]).must().all();
    assert!(report.contains("opened beforehand"), "nobody waits for a login to the new node: {report}");
    load.goes_on();
    let longest = load.longest_since(began);
    load.finish();
    let held = held(&report);
    println!("{mode}, {pooling}: clients held {held:?}, longest transaction {longest:?}, before it {before:?}");
    assert_eq!(pgmend.node_status(1), "up");
    assert!(cluster.sql(1, "postgres", "SELECT count(*) FROM pgbench_history") != "0");
    drop(pgmend);
    assert_equal(&cluster, &[0, 1]);
}

#[test]
fn a_node_joins_under_load_in_native_replication() {
    joins_under_load("native_replication", "transaction", "simple", false);
}

#[test]
fn a_node_joins_under_load_of_sessions_that_keep_their_servers() {
    joins_under_load("native_replication", "session", "prepared", false);
}

#[test]
fn a_node_joins_under_load_in_snapshot_isolation() {
    joins_under_load("snapshot_isolation", "transaction", "extended", false);
}

#[test]
fn a_node_joins_in_snapshot_isolation_under_load_that_never_has_to_try_again() {
    joins_under_load("snapshot_isolation", "transaction", "simple", true);
}
