//! A recovery that hangs or is cancelled, in each of its stages: bounded, told, nothing left behind, the next succeeds.

use crate::recovery::{assert_whole, first_stage_script, lost_standby, remote_start_script, running_job};
use crate::support::postgres_programs::{Switches, number_in};
use crate::support::process::{is_alive, wait_until};
use crate::support::{Cluster, Config, Pgmend, Ran};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

/// Begins a recovery, cancels it once the condition holds, and returns what the operator was told.
fn cancelled_when(pgmend: &Pgmend, what: &str, condition: impl FnMut() -> bool) -> Ran {
    std::thread::scope(|scope| {
        let recover = scope.spawn(|| pgmend.cli(&["recover", "1"]));
        wait_until(what, SOON, condition);
        let job = running_job(pgmend).expect("a job runs");
        pgmend.cli(&["job", "cancel", &job.to_string()]).must();
        recover.join().expect("no panic").must_fail_saying("cancelled by an operator")
    })
}

fn stage(pgmend: &Pgmend) -> String {
    let reply: serde_json::Value =
        serde_json::from_str(&pgmend.cli(&["jobs", "--json"]).out).unwrap_or(serde_json::Value::Null);
    let jobs = reply.get("jobs").unwrap_or(&reply);
    jobs[0]["stage"].as_str().unwrap_or_default().to_owned()
}

fn slots(cluster: &Cluster) -> String {
    cluster.sql(0, "postgres", "SELECT count(*) FROM pg_replication_slots")
}

const HANGING: &str = "#!/bin/bash\nsleep 300 & echo $! > hanging.pid\nwait\n";

fn a_hanging_remote_start_is_ended(runner: &str) {
    let (cluster, pgmend) = lost_standby(runner, HANGING, |config| {
        config.set("recovery", "recovery_timeout = \"6s\"");
    });
    let pid_file = cluster.nodes[0].data.join("hanging.pid");
    let hangs = || number_in(&pid_file).is_some_and(is_alive);
    cancelled_when(&pgmend, "the first stage hangs", hangs);
    wait_until("the first stage's child is gone", SOON, || !hangs());

    cluster.write(0, "first_stage", &first_stage_script(), "755");
    cluster.write(0, "pgpool_remote_start", HANGING, "755");
    let ran = pgmend.cli(&["recover", "1"]).must_fail_saying("pgpool_remote_start did not end within 6 seconds");
    assert!(ran.all().contains("recovery_timeout bounds the start"), "{}", ran.all());
    wait_until("the start's child is gone", SOON, || !hangs());
    assert_eq!(pgmend.node_status(1), "down");

    cluster.write(0, "pgpool_remote_start", &remote_start_script(), "755");
    pgmend.cli(&["recover", "1"]).must();
    assert_whole(&cluster, &pgmend);
}

#[test]
fn a_hanging_remote_start_run_by_pgmend_is_ended() {
    a_hanging_remote_start_is_ended("local");
}

#[test]
fn a_hanging_remote_start_run_by_copy_from_program_is_ended() {
    a_hanging_remote_start_is_ended("program");
}

#[test]
fn a_hanging_remote_start_run_by_the_sql_function_is_ended() {
    a_hanging_remote_start_is_ended("sql");
}

#[test]
fn the_builtin_stage_and_the_nodes_own_commands_are_bounded_and_cancelled() {
    let cluster = Cluster::pair();
    cluster.pgbench_tables("postgres", 3);
    let mut config = Config::of(&cluster);
    config.set("recovery", "recovery_timeout = \"6s\"");
    let switches = Switches::install(&cluster, &mut config, true);
    let pgmend = config.start();
    pgmend.loses(&cluster, 1);

    // Nobody else's word is taken before the node's own.
    switches.on("says-it-runs");
    pgmend.cli(&["recover", "1"]).must_fail_saying("its status command says that it runs");
    switches.off("says-it-runs");

    switches.on("copy-is-slow");
    let told = cancelled_when(&pgmend, "the copy runs", || !switches.copies().is_empty() && slots(&cluster) == "1");
    assert!(told.all().contains("replication slot pgmend_1 was dropped"), "{}", told.all());
    assert_eq!((switches.copies().len(), slots(&cluster)), (0, "0".to_owned()));
    switches.off("copy-is-slow");

    switches.on("start-hangs");
    cancelled_when(&pgmend, "the start hangs", || switches.hanging_start().is_some());
    assert_eq!((switches.hanging_start(), slots(&cluster)), (None, "0".to_owned()));
    pgmend.cli(&["recover", "1"]).must_fail_saying("the node's start_command did not end within 6 seconds");
    assert_eq!(switches.hanging_start(), None);
    switches.off("start-hangs");

    // It starts and streams from nowhere: it stands still.
    switches.on("start-strays");
    cancelled_when(&pgmend, "it catches up", || stage(&pgmend) == "CatchingUp");
    assert_eq!(cluster.try_sql(1, "postgres", "SELECT 1"), "", "undo stops the target");
    let told = pgmend.cli(&["recover", "1"]).must_fail_saying("did not catch up");
    assert!(told.all().contains("its WAL receiver does not run"), "{}", told.all());
    assert_eq!(slots(&cluster), "0");
    assert_eq!(pgmend.node_status(1), "down");
    switches.off("start-strays");

    pgmend.cli(&["recover", "1"]).must();
    assert_whole(&cluster, &pgmend);
    let commands = switches.commands();
    assert!(["start", "stop", "status"].iter().all(|c| commands.lines().any(|l| l == *c)), "{commands}");
}
