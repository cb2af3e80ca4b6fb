//! pgmend dies in the middle of a recovery, right after each of its journal records became durable: the next daemon starts,
//! says what it found, the node is not in routing, and the next recovery succeeds. Several records share a cluster.

use crate::recovery::{assert_whole, first_stage_script, remote_start_script};
use crate::support::postgres_programs::without_sync;
use crate::support::process::run_for;
use crate::support::{Cluster, Config, Pgmend, Ran, as_postgres, bin};
use std::time::Duration;

const DIES_AFTER: &str = "PGMEND_CRASH_AFTER_RECORD";

/// A recovery dies after this record; the next daemon, what it had to say, and how the operator's tool ended.
fn dead_after(config: &Config, record: &str, args: &[&str]) -> (Pgmend, String, Ran) {
    let mut doomed = config.clone();
    doomed.env(DIES_AFTER, record);
    let doomed = doomed.start();
    doomed.wait_node(1, "down");
    let before = doomed.log().len();
    std::thread::scope(|scope| {
        let (binary, of) = (doomed.binary.clone(), config.clone());
        let recover = scope.spawn(move || Pgmend::cli_of(&binary, &of, args));
        doomed.wait_end();
        let pgmend = config.start();
        let told = pgmend.log().split_off(before);
        (pgmend, told, recover.join().expect("no panic"))
    })
}

pub fn interrupted(config: &Config, record: &str, args: &[&str]) -> Pgmend {
    let (pgmend, told, ran) = dead_after(config, record, args);
    assert!(!ran.ok, "{record}: the tool must notice that the daemon died: {}", ran.all());
    // The number of a child is journalled beside the effect that it belongs to.
    let wanted =
        if record == "Child" { "was interrupted" } else { &format!("was interrupted; last journal record {record};") };
    assert!(told.contains(wanted), "expected `{wanted}`: the new daemon says what it found:\n{told}");
    let jobs = pgmend.cli(&["jobs", "--json"]).must().out;
    assert!(jobs.contains(wanted), "{record}: the job is listed: {jobs}");
    assert_ne!(pgmend.node_status(1), "up", "{record}: an unfinished node is not in routing");
    pgmend
}

fn dies_after(records: &[&str], prepare: impl FnOnce(&Cluster, &mut Config)) {
    let cluster = Cluster::pair();
    cluster.pgbench_tables("postgres", 1);
    let mut config = Config::of(&cluster);
    without_sync(&cluster, &mut config);
    prepare(&cluster, &mut config);
    for record in records {
        cluster.kill9(1);
        let pgmend = interrupted(&config, record, &["recover", "1"]);
        let slots = "SELECT count(*) FROM pg_replication_slots";
        assert_eq!(cluster.sql(0, "postgres", slots), if early(record) { "1" } else { "0" }, "{record}: slots");
        pgmend.cli(&["recover", "1"]).must();
        assert_whole(&cluster, &pgmend);
        assert!(pgmend.stop("-TERM"));
    }
}

/// Before the built-in stage touches the slot that the standby had.
fn early(record: &str) -> bool {
    matches!(record, "Requested" | "Preflight" | "FirstStage")
        || record.ends_with("Script")
        || record.ends_with("Backend")
}

#[test]
fn before_the_copy() {
    dies_after(&["Requested", "Preflight", "FirstStage", "FirstStage.Slot", "FirstStage.Empty"], |_, _| ());
}

#[test]
fn in_and_after_the_copy() {
    dies_after(&["FirstStage.Copy", "Child", "FirstStage.Configure", "Starting", "CatchingUp"], |_, _| ());
}

#[test]
fn at_the_end() {
    dies_after(&["Verifying", "Attaching"], |_, _| ());
}

#[test]
fn when_all_is_done() {
    let cluster = Cluster::pair();
    cluster.kill9(1);
    let (pgmend, told, ran) = dead_after(&Config::of(&cluster), "Done", &["recover", "1"]);
    assert!(ran.ok, "the tool finds the job again: {}", ran.all());
    assert!(!told.contains("was interrupted"), "{told}");
    assert!(pgmend.cli(&["jobs", "--json"]).must().out.contains("succeeded"));
    pgmend.wait_node(1, "up");
    cluster.wait_streaming(1);
}

#[test]
fn in_a_script_run_by_pgmend() {
    dies_after(&["FirstStage.Script", "Starting.Script"], |cluster, config| scripts(cluster, config, "local"));
}

#[test]
fn in_a_script_run_by_the_source() {
    dies_after(&["FirstStage.Backend", "Starting.Backend"], |cluster, config| scripts(cluster, config, "program"));
}

fn scripts(cluster: &Cluster, config: &mut Config, runner: &str) {
    cluster.write(0, "first_stage", &first_stage_script(), "755");
    cluster.write(0, "pgpool_remote_start", &remote_start_script(), "755");
    config.set("recovery", &format!("recovery_runner = \"{runner}\""));
    config.set("recovery", "recovery_1st_stage_command = \"first_stage\"");
}

#[test]
fn before_pg_rewind() {
    let cluster = Cluster::pair();
    cluster.pgbench_tables("postgres", 1);
    let mut promote = as_postgres(bin("pg_ctl"));
    run_for(promote.args(["promote", "-w", "-D"]).arg(&cluster.nodes[1].data), Duration::from_secs(60)).must();
    cluster.sql(1, "postgres", "CREATE TABLE astray AS SELECT 1 AS n");
    cluster.stop(1);
    let config = Config::of(&cluster);
    let pgmend = interrupted(&config, "FirstStage.Rewind", &["recover", "1", "--accept-loss"]);
    // Whoever dies in pg_rewind leaves a mixture of two histories: it is not taken for a server's data again.
    let told = pgmend.cli(&["recover", "1", "--accept-loss"]).must().all();
    assert!(told.contains("pg_basebackup") && !told.contains("pg_rewind"), "{told}");
    assert_whole(&cluster, &pgmend);
}
