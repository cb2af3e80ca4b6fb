//! Nodes are taken out for maintenance and come back, one by one and all of them, while clients go on.

use crate::support::process::{run, wait_until};
use crate::support::{Cluster, Config, Ledger, as_postgres};
use crate::switchover::{assert_cluster, quick, trio};
use std::time::Duration;

/// What an operator runs for each node: notes the node, and fails when its server still runs or when a file says so.
fn patch(cluster: &Cluster) -> String {
    let at = cluster.folder().display();
    let script = format!(
        "#!/bin/bash\n[ -e {at}/fail-$PGMEND_NODE ] && {{ echo out of paint >&2; exit 7; }}\n\
         [ -e $PGMEND_DATA_DIRECTORY/postmaster.pid ] && {{ echo it runs >&2; exit 8; }}\n\
         [ -e $PGMEND_DATA_DIRECTORY/standby.signal ] || {{ echo not armed >&2; exit 9; }}\n\
         echo $PGMEND_NODE >> {at}/patched\n"
    );
    cluster.scratch.write("patch.sh", &script, "755").display().to_string()
}

fn patched(cluster: &Cluster) -> String {
    std::fs::read_to_string(cluster.folder().join("patched")).unwrap_or_default().split_whitespace().collect()
}

#[test]
pub fn a_standby_leaves_and_comes_back() {
    let cluster = Cluster::pair();
    quick(&cluster);
    let config = Config::of(&cluster);
    let pgmend = config.start();
    let load = Ledger::start(&cluster, 0, &pgmend.door(), 4);
    pgmend.cli(&["maintenance", "begin", "0"]).must_fail_saying("node 0 is the primary");
    let plan = pgmend.cli(&["maintenance", "begin", "1", "--dry-run"]).must().out;
    assert!(plan.contains("there is no other standby") && plan.contains("taken back by"), "{plan}");
    let told = pgmend.cli(&["maintenance", "begin", "1"]).must().all();
    assert!(told.contains("node 1 is stopped"), "{told}");
    pgmend.wait_node(1, "down");
    assert!(cluster.pid(1).is_none(), "its server is stopped");
    load.goes_on();
    // The machine restarts and its init system knows nothing of this: the server is read-only, and nobody is sent there.
    cluster.start(1);
    assert_eq!(cluster.sql(1, "postgres", "SELECT pg_is_in_recovery()"), "t");
    load.goes_on();
    assert_eq!(pgmend.node_status(1), "down");
    cluster.stop(1);
    // The daemon ends in between, and the next one still knows.
    let pgmend = pgmend.kill9().start();
    pgmend.cli(&["maintenance", "begin", "1"]).must_fail_saying("in maintenance already");
    let told = pgmend.cli(&["maintenance", "finish", "1"]).must().all();
    assert!(told.contains("node 1 is back") && told.contains("came back as it was"), "{told}");
    assert_cluster(&cluster, &pgmend, 0, 1);
    drop(load);
    assert!(pgmend.stop("-TERM"));
}

#[test]
fn no_write_waits_for_a_synchronous_standby_that_leaves() {
    let cluster = Cluster::pair();
    quick(&cluster);
    cluster.sql(0, "postgres", "ALTER SYSTEM SET synchronous_standby_names = '*'");
    cluster.sql(0, "postgres", "SELECT pg_reload_conf()");
    let pgmend = Config::of(&cluster).start();
    let load = Ledger::start(&cluster, 0, &pgmend.door(), 4);
    let told = pgmend.cli(&["maintenance", "begin", "1"]).must().all();
    assert!(told.contains("an acknowledged commit is on the primary only"), "{told}");
    assert_eq!(cluster.sql(0, "postgres", "SHOW synchronous_standby_names"), "");
    let upkeep = std::fs::read_to_string(pgmend.config.folder().join("state/upkeep.json")).expect("it is kept");
    assert!(upkeep.replace([' ', '\n'], "").contains("\"ineligible\":[1]"), "not to be promoted: {upkeep}");
    load.goes_on();
    pgmend.cli(&["maintenance", "finish", "1"]).must();
    assert_eq!(cluster.sql(0, "postgres", "SHOW synchronous_standby_names"), "FIRST 1 (*)");
    let upkeep = std::fs::read_to_string(pgmend.config.folder().join("state/upkeep.json")).expect("it is kept");
    assert!(upkeep.replace([' ', '\n'], "").contains("\"ineligible\":[]"), "{upkeep}");
    load.goes_on();
    assert!(load.longest_since() < Duration::from_secs(2));
    load.close().assert_perfect(&cluster, 0);
    assert_cluster(&cluster, &pgmend, 0, 1);
}

#[test]
pub fn a_node_whose_data_are_gone_is_rebuilt() {
    let cluster = Cluster::pair();
    quick(&cluster);
    let pgmend = Config::of(&cluster).start();
    // Its log lies elsewhere, and shall stay there.
    let (data, wal) = (&cluster.nodes[1].data, cluster.folder().join("wal1"));
    cluster.stop(1);
    run(as_postgres("mv").arg(data.join("pg_wal")).arg(&wal)).must();
    run(as_postgres("ln").arg("-s").arg(&wal).arg(data.join("pg_wal"))).must();
    cluster.start(1);
    cluster.wait_streaming(1);
    let _ = pgmend.cli(&["attach", "1"]);
    pgmend.wait_node(1, "up");
    let load = Ledger::start(&cluster, 0, &pgmend.door(), 4);
    pgmend.cli(&["maintenance", "begin", "1"]).must();
    // The patch has eaten a part of them.
    run(as_postgres("rm").arg("-rf").arg(data.join("pg_xact")).arg(data.join("global/pg_filenode.map"))).must();
    pgmend.cli(&["maintenance", "finish", "1", "--no-rebuild"]).must_fail_saying("it may not be rebuilt");
    assert_eq!(pgmend.node_status(1), "down");
    let told = pgmend.cli(&["maintenance", "finish", "1"]).must().all();
    assert!(told.contains("recovered from node 0"), "{told}");
    assert_cluster(&cluster, &pgmend, 0, 1);
    assert_eq!(std::fs::read_link(data.join("pg_wal")).expect("a link"), wal);
    load.close().assert_perfect(&cluster, 0);
}

#[test]
pub fn every_one_of_two_is_patched_and_the_primary_moves_back() {
    let cluster = Cluster::pair();
    quick(&cluster);
    let pgmend = Config::of(&cluster).start();
    let script = patch(&cluster);
    let load = Ledger::start(&cluster, 0, &pgmend.door(), 8);
    let plan = pgmend.cli(&["rolling-update", "--run", &script, "--failback", "--dry-run"]).must().out;
    assert!(plan.contains("node 1: Stop") && plan.contains("Promote") && plan.contains("node 0: Run"), "{plan}");
    let told = pgmend.cli(&["rolling-update", "--run", &script, "--failback"]).must().all();
    println!("{told}");
    assert_eq!(patched(&cluster), "10", "the standby first: {told}");
    load.goes_on();
    assert_cluster(&cluster, &pgmend, 0, 3);
    let closed = load.close();
    println!("{} transactions, longest {:?}", closed.acknowledged, closed.longest);
    closed.assert_perfect(&cluster, 0);
}

#[test]
pub fn every_one_of_three_is_patched_with_one_that_fails_first() {
    let cluster = trio();
    quick(&cluster);
    for id in 0..3 {
        cluster.sql(id, "postgres", "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (pgmend_1, pgmend_2)'");
        cluster.sql(id, "postgres", "SELECT pg_reload_conf()");
    }
    let pgmend = Config::of(&cluster).start();
    let script = patch(&cluster);
    let load = Ledger::start(&cluster, 0, &pgmend.door(), 8);
    cluster.scratch.write("fail-2", "", "644");
    let run_it = ["rolling-update", "--run", &script, "--failback"];
    pgmend.cli(&run_it).must_fail_saying("out of paint");
    assert_eq!(
        (patched(&cluster), pgmend.node_status(1), pgmend.node_status(2)),
        ("1".into(), "up".into(), "down".into())
    );
    load.goes_on();
    std::fs::remove_file(cluster.folder().join("fail-2")).expect("it was there");
    pgmend.cli(&run_it).must_fail_saying("an earlier rolling update was left");
    // Somebody starts it: it is read-only, stays out, and is stopped before the command runs again.
    cluster.start(2);
    assert_eq!(cluster.sql(2, "postgres", "SELECT pg_is_in_recovery()"), "t");
    pgmend.cli(&["attach", "2"]).must_fail_saying("`pgmend maintenance finish 2` brings it back");
    let told = pgmend.cli(&[&run_it[..], &["--resume"]].concat()).must().all();
    println!("{told}");
    assert_eq!(patched(&cluster), "120", "what was done is not done again");
    load.goes_on();
    assert_cluster(&cluster, &pgmend, 0, 3);
    assert_eq!(cluster.sql(0, "postgres", "SHOW synchronous_standby_names"), "ANY 1 (\"pgmend_1\", \"pgmend_2\")");
    let closed = load.close();
    println!("{} transactions, longest {:?}", closed.acknowledged, closed.longest);
    closed.assert_perfect(&cluster, 0);
}

#[test]
fn a_rehearsal_stops_nothing() {
    let cluster = Cluster::pair();
    let pgmend = Config::of(&cluster).start();
    let load = Ledger::start(&cluster, 0, &pgmend.door(), 8);
    let started = cluster.sql(0, "postgres", "SELECT pg_postmaster_start_time()");
    let told = pgmend.cli(&["rehearse"]).must().all();
    assert!(told.contains("nothing was stopped") && told.contains("clients waited: p50"), "{told}");
    load.goes_on();
    assert_eq!(cluster.sql(0, "postgres", "SELECT pg_postmaster_start_time()"), started);
    assert_cluster(&cluster, &pgmend, 0, 1);
    load.close().assert_perfect(&cluster, 0);
}

#[test]
fn the_operators_own_commands_are_run_and_may_veto() {
    let cluster = Cluster::pair();
    quick(&cluster);
    let at = cluster.folder().display().to_string();
    let note = format!("echo \"$1 $2 $3\" >> {at}/exits");
    let mut config = Config::of(&cluster);
    let told = |file: &str| std::fs::read_to_string(cluster.folder().join(file)).unwrap_or_default();
    for name in ["before_switch", "after_switch", "before_detach", "after_attach", "status_change"] {
        config.set("maintenance", &format!("{name}_command = '{note}; test ! -e {at}/no-{name}'"));
    }
    config.set("maintenance", "may_veto = [\"before_switch\"]");
    config.set("maintenance", &format!("backup_command = 'echo backup $2 >> {at}/exits; test -e {at}/tape'"));
    let pgmend = config.start();
    cluster.scratch.write("no-before_switch", "", "644");
    pgmend.cli(&["switchover"]).must_fail_saying("before_switch_command has vetoed");
    // A slow start is seen as a change of the status.
    let of_the_switch = told("exits").lines().filter(|l| !l.starts_with("status_change ")).collect::<String>();
    assert_eq!(of_the_switch, "before_switch 1 0");
    std::fs::remove_file(cluster.folder().join("no-before_switch")).expect("it was there");
    cluster.scratch.write("no-after_switch", "", "644");
    let said = pgmend.cli(&["switchover"]).must().all();
    assert!(said.contains("a backup is due, backup_command failed"), "{said}");
    let exits = told("exits");
    assert!(exits.contains("after_switch 1 1\n") && exits.contains("backup 1\n"), "{exits}");
    let status = pgmend.cli(&["status"]).must().out;
    assert!(status.starts_with("switchable\n") && status.contains("a backup is due"), "{status}");
    assert!(pgmend.cli(&["backed-up"]).must().out.contains("the backup is made"));
    assert!(!pgmend.cli(&["status"]).must().out.contains("a backup is due"));
    cluster.scratch.write("tape", "", "644");
    pgmend.cli(&["maintenance", "begin", "0"]).must();
    wait_until("the change of the word was told", Duration::from_secs(10), || {
        told("exits").lines().any(|l| l.starts_with("status_change ") && l.ends_with(" not-switchable"))
    });
    let check = pgmend.cli(&["status", "--check"]);
    assert!(!check.ok && check.out.contains("node 0 is in maintenance"), "{}", check.all());
    pgmend.cli(&["maintenance", "finish", "0"]).must();
    let exits = told("exits");
    assert!(exits.contains("before_detach 0 1\n") && exits.contains("after_attach 0 1\n"), "{exits}");
    let said = pgmend.cli(&["switchover"]).must().all();
    assert!(said.contains("backup_command has made the backup"), "{said}");
    pgmend.cli(&["failover", "disable"]).must();
    let check = pgmend.cli(&["status", "--check"]);
    assert!(!check.ok && check.out.starts_with("failover-disabled\n"), "{}", check.all());
    let pgmend = pgmend.kill9().start();
    assert!(pgmend.cli(&["status"]).must().out.starts_with("failover-disabled\n"), "also over a restart");
    pgmend.cli(&["failover", "enable"]).must();
    wait_until("it is switchable", Duration::from_secs(10), || pgmend.cli(&["status", "--check"]).ok);
}
