//! Online recovery of a standby while clients work: each of the four runners, and scripts that fail, hang or are killed.

use crate::support::process::{is_alive, run_for, signal, wait_until};
use crate::support::{Cluster, Config, Load, Pgmend, as_postgres, bin};
use serde_json::Value;
use std::time::Duration;

/// What Pgpool-II's sample does: a base backup of the source into the target. Seven arguments.
pub fn first_stage_script() -> String {
    format!(
        "#!/bin/bash\n\
         # main data directory, target host, target data directory, main port, node number, target port, main host\n\
         set -eu\n\
         [ $# -eq 7 ]\n\
         rm -rf \"$3\"\n\
         {basebackup} -h 127.0.0.1 -p \"$4\" -U postgres -D \"$3\" -X stream -c fast --no-sync\n\
         touch \"$3/standby.signal\"\n\
         echo \"port = $6\" >> \"$3/postgresql.conf\"\n\
         echo \"primary_conninfo = 'host=127.0.0.1 port=$4 user=postgres application_name=pgmend_$5'\" \
         >> \"$3/postgresql.auto.conf\"\n\
         echo first stage done\n",
        basebackup = bin("pg_basebackup").display()
    )
}

/// `pgpool_remote_start`: target's host and data directory.
pub fn remote_start_script() -> String {
    format!(
        "#!/bin/bash\n{} start -w -D \"$2\" -l \"$2/../restart.log\" </dev/null >/dev/null 2>&1\n",
        bin("pg_ctl").display()
    )
}

/// A pair whose standby is lost, with a daemon before it that has noticed, and the script in the primary's directory.
pub fn lost_standby(runner: &str, script: &str, more: impl FnOnce(&mut Config)) -> (Cluster, Pgmend) {
    let cluster = Cluster::pair();
    cluster.pgbench_tables("postgres", 3);
    let mut config = Config::of(&cluster);
    config.set("recovery", &format!("recovery_runner = \"{runner}\""));
    if runner != "builtin" {
        cluster.write(0, "first_stage", script, "755");
        cluster.write(0, "pgpool_remote_start", &remote_start_script(), "755");
        config.set("recovery", "recovery_1st_stage_command = \"first_stage\"");
    }
    if runner == "sql" {
        cluster.sql(0, "postgres", "CREATE EXTENSION pgpool_recovery");
    }
    more(&mut config);
    let pgmend = config.pcp().start();
    pgmend.loses(&cluster, 1);
    (cluster, pgmend)
}

/// Node 1 is up, streams, and holds what the primary holds.
pub fn assert_whole(cluster: &Cluster, pgmend: &Pgmend) {
    assert_eq!(pgmend.node_status(1), "up");
    cluster.wait_streaming(1);
    cluster.wait_same(1, "postgres", "SELECT count(*), sum(delta) FROM pgbench_history");
}

fn recovers_under_load(runner: &str) {
    let (cluster, pgmend) = lost_standby(runner, &first_stage_script(), |_| ());
    let load = Load::start(&pgmend.door(), cluster.folder(), 8);
    pgmend.cli(&["recover", "1"]).must();
    load.goes_on();
    load.finish();
    assert_whole(&cluster, &pgmend);
}

#[test]
fn the_builtin_stage_recovers_under_load() {
    recovers_under_load("builtin");
}

#[test]
fn a_script_run_by_pgmend_recovers_under_load() {
    recovers_under_load("local");
}

#[test]
fn a_script_run_by_copy_from_program_recovers_under_load() {
    recovers_under_load("program");
}

#[test]
fn a_script_run_by_the_sql_function_recovers_under_load() {
    recovers_under_load("sql");
}

#[test]
fn the_stock_tool_recovers_under_load() {
    let (cluster, pgmend) = lost_standby("sql", &first_stage_script(), |_| ());
    let load = Load::start(&pgmend.door(), cluster.folder(), 8);
    let said = pgmend.pcp("pcp_recovery_node", &["-n", "1"]).all();
    assert!(said.contains("Command Successful"), "{said}\n{}", pgmend.log());
    load.goes_on();
    load.finish();
    assert_whole(&cluster, &pgmend);
}

#[test]
fn a_new_empty_node_is_recovered() {
    let mut cluster = Cluster::single();
    cluster.pgbench_tables("postgres", 1);
    cluster.add_empty_node();
    let pgmend = Config::of(&cluster).spawn();
    pgmend.wait_node(1, "down");
    pgmend.cli(&["recover", "1"]).must();
    assert_whole(&cluster, &pgmend);
}

#[test]
fn a_failing_script_is_quoted_and_the_next_try_succeeds() {
    for runner in ["local", "program"] {
        let script = "#!/bin/bash\necho the disk is on fire >&2\nexit 7\n";
        let (cluster, pgmend) = lost_standby(runner, script, |_| ());
        let load = Load::start(&pgmend.door(), cluster.folder(), 4);
        pgmend.cli(&["recover", "1"]).must_fail_saying("the disk is on fire");
        assert_eq!(pgmend.node_status(1), "down");
        cluster.write(0, "first_stage", &first_stage_script(), "755");
        pgmend.cli(&["recover", "1"]).must();
        load.goes_on();
        load.finish();
        assert_whole(&cluster, &pgmend);
    }
}

#[test]
fn a_failing_script_behind_the_sql_function_is_told_with_where_to_look() {
    let (_cluster, pgmend) = lost_standby("sql", "#!/bin/bash\nexit 1\n", |_| ());
    pgmend.cli(&["recover", "1"]).must_fail_saying("pgpool_recovery failed");
    assert_eq!(pgmend.node_status(1), "down");
}

/// The id of the job that runs now.
pub fn running_job(pgmend: &Pgmend) -> Option<u64> {
    let reply: Value = serde_json::from_str(&pgmend.cli(&["jobs", "--json"]).out).ok()?;
    let jobs = reply.get("jobs").unwrap_or(&reply).as_array()?.clone();
    jobs.iter().find(|job| job["outcome"] == "running")?["id"].as_u64()
}

#[test]
fn a_hanging_script_is_cancelled_and_the_next_try_succeeds() {
    for runner in ["local", "program"] {
        let script = "#!/bin/bash\necho $$ > hanging.pid\nexec sleep 300\n";
        let (cluster, pgmend) = lost_standby(runner, script, |_| ());
        let load = Load::start(&pgmend.door(), cluster.folder(), 4);
        std::thread::scope(|scope| {
            let recover = scope.spawn(|| pgmend.cli(&["recover", "1"]));
            let pid_file = cluster.nodes[0].data.join("hanging.pid");
            wait_until("the script hangs", Duration::from_secs(20), || pid_file.exists());
            let job = running_job(&pgmend).expect("a job runs");
            pgmend.cli(&["job", "cancel", &job.to_string()]).must();
            let ran = recover.join().expect("no panic");
            assert!(!ran.ok, "a cancelled recovery is no success: {}", ran.all());
        });
        assert_eq!(pgmend.node_status(1), "down");
        cluster.write(0, "first_stage", &first_stage_script(), "755");
        pgmend.cli(&["recover", "1"]).must();
        load.goes_on();
        load.finish();
        assert_whole(&cluster, &pgmend);
    }
}

#[test]
fn a_hanging_script_ends_at_its_limit() {
    let script = "#!/bin/bash\nexec sleep 300\n";
    let (_cluster, pgmend) = lost_standby("local", script, |config| {
        config.set("recovery", "recovery_1st_stage_timeout = \"3s\"");
    });
    assert!(!pgmend.cli(&["recover", "1"]).ok);
    assert_eq!(pgmend.node_status(1), "down");
    pgmend.sql("SELECT 1").must();
}

#[test]
fn a_killed_script_fails_the_recovery_and_the_next_try_succeeds() {
    let script = "#!/bin/bash\necho $$ > hanging.pid\nexec sleep 300\n";
    let (cluster, pgmend) = lost_standby("local", script, |_| ());
    std::thread::scope(|scope| {
        let recover = scope.spawn(|| pgmend.cli(&["recover", "1"]));
        let pid_file = cluster.nodes[0].data.join("hanging.pid");
        let pid = || std::fs::read_to_string(&pid_file).ok().and_then(|text| text.trim().parse::<u32>().ok());
        wait_until("the script hangs", Duration::from_secs(20), || pid().is_some_and(is_alive));
        signal(pid().expect("a process id"), "-9");
        assert!(!recover.join().expect("no panic").ok);
    });
    cluster.write(0, "first_stage", &first_stage_script(), "755");
    pgmend.cli(&["recover", "1"]).must();
    assert_whole(&cluster, &pgmend);
}

#[test]
fn a_recovery_of_a_running_node_is_refused() {
    let cluster = Cluster::pair();
    let pgmend = Config::of(&cluster).start();
    let ran = pgmend.cli(&["recover", "1"]);
    assert!(!ran.ok, "{}", ran.all());
    pgmend.cli(&["detach", "1"]).must();
    pgmend.wait_node(1, "down");
    let ran = pgmend.cli(&["recover", "1"]);
    assert!(!ran.ok, "its PostgreSQL still runs: {}", ran.all());
    cluster.wait_streaming(1);
}

#[test]
fn another_systems_data_are_overwritten_only_when_asked() {
    let mut cluster = Cluster::single();
    cluster.pgbench_tables("postgres", 1);
    let id = cluster.add_empty_node();
    let mut initdb = as_postgres(bin("initdb"));
    run_for(initdb.args(["-A", "trust", "--no-sync", "-D"]).arg(&cluster.nodes[id].data), Duration::from_secs(60))
        .must();
    let pgmend = Config::of(&cluster).spawn();
    pgmend.wait_node(1, "down");
    pgmend.cli(&["recover", "1"]).must_fail_saying("--overwrite");
    pgmend.cli(&["recover", "1", "--overwrite"]).must();
    assert_whole(&cluster, &pgmend);
}

#[test]
fn data_ahead_of_the_source_are_not_lost_unasked() {
    let cluster = Cluster::pair();
    cluster.pgbench_tables("postgres", 1);
    // The standby was promoted by somebody else and wrote on its own.
    let mut promote = as_postgres(bin("pg_ctl"));
    run_for(promote.args(["promote", "-w", "-D"]).arg(&cluster.nodes[1].data), Duration::from_secs(60)).must();
    cluster.sql(1, "postgres", "CREATE TABLE astray AS SELECT generate_series(1, 100000) AS x");
    cluster.stop(1);
    let pgmend = Config::of(&cluster).spawn();
    pgmend.wait_node(1, "down");
    pgmend.cli(&["recover", "1"]).must_fail_saying("--accept-loss");
    pgmend.cli(&["recover", "1", "--accept-loss"]).must();
    assert_whole(&cluster, &pgmend);
    assert_eq!(cluster.sql(1, "postgres", "SELECT to_regclass('astray')"), "");
}
