//! pgmend alone is killed with `-9` from outside; what it had started goes on, as after a real kill. The next daemon says
//! what it found, nothing of the old recovery writes on when a new one begins, and the new one succeeds.

use crate::recovery::{assert_whole, first_stage_script, lost_standby};
use crate::remote::assert_started_over_ssh;
use crate::support::postgres_programs::{Switches, number_in};
use crate::support::process::{is_alive, signal, wait_until};
use crate::support::{Cluster, Config, Pgmend, Sshd};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

/// Begins a recovery, kills the daemon once the condition holds, checks what must go on, and starts the next daemon.
fn killed_when(pgmend: Pgmend, what: &str, condition: impl FnMut() -> bool, goes_on: impl Fn()) -> Pgmend {
    let (config, binary) = (pgmend.config.clone(), pgmend.binary.clone());
    std::thread::scope(|scope| {
        let recover = scope.spawn(|| Pgmend::cli_of(&binary, &config, &["recover", "1"]));
        wait_until(what, SOON, condition);
        pgmend.kill9();
        goes_on();
        let next = config.start();
        assert_ne!(next.node_status(1), "up", "an unfinished node is not in routing");
        assert!(!recover.join().expect("no panic").ok, "the tool must notice that the daemon died");
        next
    })
}

/// What the next daemon found, as its log and its list of jobs tell it.
fn assert_told(pgmend: &Pgmend, words: &[&str]) {
    let (log, jobs) = (pgmend.log(), pgmend.cli(&["jobs", "--json"]).must().out);
    for word in words.iter().chain(&["was interrupted"]) {
        assert!(log.contains(word), "expected `{word}` in the log:\n{log}");
        assert!(jobs.contains(word), "expected `{word}` among the jobs:\n{jobs}");
    }
}

/// Writes into the target's directory until it is ended.
const WRITER: &str =
    "#!/bin/bash\nmkdir -p \"$3\"\necho $$ > writer.pid\nwhile true; do echo x >> \"$3/still\"; sleep 0.1; done\n";

/// A script that writes into the target. `ended_at_start`: the next daemon can end it without the source's help.
fn killed_during_a_script(runner: &str, ended_at_start: bool) {
    let (cluster, pgmend) = lost_standby(runner, WRITER, |_| ());
    let pid_file = cluster.nodes[0].data.join("writer.pid");
    let writes = || number_in(&pid_file).is_some_and(is_alive);
    let written = || std::fs::metadata(cluster.nodes[1].data.join("still")).map_or(0, |m| m.len());
    let goes_on = || {
        let before = written();
        wait_until("the script writes on", SOON, || written() > before);
    };
    let pgmend = killed_when(pgmend, "the script writes", || writes() && written() > 0, goes_on);
    if ended_at_start {
        assert_told(&pgmend, &["1 process group(s) of it were ended", "last journal record FirstStage.Script"]);
        assert!(!writes(), "the next daemon ends it");
    } else {
        assert_told(&pgmend, &["its script may still run on the source", "last journal record FirstStage.Backend"]);
        assert!(writes(), "only the source can end it");
    }
    cluster.write(0, "first_stage", &first_stage_script(), "755");
    pgmend.cli(&["recover", "1"]).must();
    assert!(!writes() && written() == 0);
    assert_whole(&cluster, &pgmend);
}

#[test]
fn while_a_script_run_by_pgmend_writes() {
    killed_during_a_script("local", true);
}

#[test]
fn while_a_script_run_by_copy_from_program_writes() {
    killed_during_a_script("program", false);
}

#[test]
fn while_a_script_run_by_the_sql_function_writes() {
    killed_during_a_script("sql", false);
}

/// It leaves the group, the terminal and the marked environment behind, as a copy started over ssh does.
const ESCAPED: &str = "#!/bin/bash\nmkdir -p \"$3\"\nsetsid env -i bash -c \"echo \\$\\$ > $1/writer.pid; exec 7>>$3/still; \
    while true; do echo x >&7; sleep 0.1 7>&-; done\" </dev/null >/dev/null 2>&1 &\nsleep 300\n";

#[test]
fn while_something_writes_that_no_longer_belongs_to_the_script() {
    let (cluster, pgmend) = lost_standby("local", ESCAPED, |_| ());
    let pid_file = cluster.nodes[0].data.join("writer.pid");
    let writer = || number_in(&pid_file).filter(|pid| is_alive(*pid));
    let pgmend = killed_when(pgmend, "it writes", || writer().is_some(), || ());
    assert_told(&pgmend, &[]);
    cluster.write(0, "first_stage", &first_stage_script(), "755");
    let told = pgmend.cli(&["recover", "1"]).must_fail_saying("has files of the target's data directory open");
    let pid = writer().expect("nobody could end it");
    assert!(told.all().contains(&format!("process {pid}")), "{}", told.all());
    signal(pid, "-9");
    wait_until("it is gone", SOON, || !is_alive(pid));
    pgmend.cli(&["recover", "1"]).must();
    assert_whole(&cluster, &pgmend);
}

#[test]
fn while_the_copy_runs_the_target_starts_and_it_catches_up() {
    let cluster = Cluster::pair();
    cluster.pgbench_tables("postgres", 3);
    let mut config = Config::of(&cluster);
    let switches = Switches::install(&cluster, &mut config, true);
    let pgmend = config.start();
    let slots = || cluster.sql(0, "postgres", "SELECT count(*) FROM pg_replication_slots WHERE active");
    pgmend.loses(&cluster, 1);

    switches.on("copy-is-slow");
    let copies = || !switches.copies().is_empty() && slots() == "1";
    let pgmend = killed_when(pgmend, "the copy runs", copies, || assert!(!switches.copies().is_empty()));
    assert_told(
        &pgmend,
        &["process group(s) of it were ended", "half a copy", "replication slot pgmend_1 was dropped"],
    );
    assert!(switches.copies().is_empty());
    assert_eq!(cluster.sql(0, "postgres", "SELECT count(*) FROM pg_replication_slots"), "0");
    switches.off("copy-is-slow");

    switches.on("start-hangs");
    let hangs = || switches.hanging_start().is_some();
    let pgmend = killed_when(pgmend, "the target starts", hangs, || assert!(hangs()));
    assert_told(&pgmend, &["last journal record Starting.Script", "1 process group(s) of it were ended"]);
    assert!(!hangs());
    switches.off("start-hangs");

    switches.on("start-strays");
    let runs = || cluster.try_sql(1, "postgres", "SELECT 1") == "1";
    let pgmend = killed_when(pgmend, "the target catches up", runs, || assert!(runs()));
    assert_told(&pgmend, &["the target does not run", "replication slot pgmend_1 was dropped"]);
    assert!(!runs(), "an unfinished target is stopped");
    switches.off("start-strays");

    pgmend.cli(&["recover", "1"]).must();
    assert_whole(&cluster, &pgmend);
}

/// A copy elsewhere ends with the way to it; the next daemon takes back what is left of a recovery, and does the end of a
/// maintenance again.
#[test]
fn while_the_copy_runs_elsewhere() {
    let cluster = Cluster::pair();
    cluster.pgbench_tables("postgres", 3);
    let sshd = Sshd::start(&cluster);
    let mut config = Config::of(&cluster);
    let switches = Switches::install(&cluster, &mut config, false);
    sshd.leads_to(&mut config, &[1]);
    config.node(1, &format!("bin_directory = \"{}\"", cluster.folder().join("bin").display()));
    let pgmend = config.start();
    let slots = |of: &str| cluster.sql(0, "postgres", &format!("SELECT count(*) FROM pg_replication_slots{of}"));
    let copies = || !switches.copies().is_empty() && slots(" WHERE active") == "1";
    let ends_there = || wait_until("the copy ends there", SOON, || switches.copies().is_empty());
    pgmend.loses(&cluster, 1);

    switches.on("copy-is-slow");
    let pgmend = killed_when(pgmend, "the copy runs there", copies, ends_there);
    assert_told(&pgmend, &["half a copy", "replication slot pgmend_1 was dropped"]);
    assert_eq!(slots(""), "0");
    switches.off("copy-is-slow");
    pgmend.cli(&["recover", "1"]).must();
    assert_whole(&cluster, &pgmend);
    assert_started_over_ssh(&cluster, 1);

    pgmend.cli(&["maintenance", "begin", "1"]).must();
    switches.on("copy-is-slow");
    let (of, binary) = (pgmend.config.clone(), pgmend.binary.clone());
    let pgmend = std::thread::scope(|scope| {
        scope.spawn(|| Pgmend::cli_of(&binary, &of, &["maintenance", "finish", "1", "--rebuild"]));
        wait_until("the copy runs there again", SOON, copies);
        pgmend.kill9();
        ends_there();
        switches.off("copy-is-slow");
        config.start()
    });
    pgmend.wait_node(1, "up");
    wait_until("the end of the maintenance was done again", SOON, || !pgmend.cli(&["jobs"]).out.contains("running"));
    assert_whole(&cluster, &pgmend);
    let upkeep = std::fs::read_to_string(config.folder().join("state/upkeep.json")).expect("it is kept");
    let upkeep: serde_json::Value = serde_json::from_str(&upkeep).expect("JSON");
    assert_eq!(upkeep["nodes"].as_object().map(serde_json::Map::len), Some(0), "nobody is in maintenance: {upkeep}");
}
