//! A recovery with two stages that fails in any of its steps: the gate is open, service is as before, the node is down, the
//! reason is told, nothing is half attached; and the next one succeeds.

use crate::recovery::running_job;
use crate::support::postgres_programs::number_in;
use crate::support::process::{is_alive, wait_until};
use crate::support::{Cluster, Config, Pgmend, as_postgres, bin};
use crate::two_stages::{assert_joined, assert_open, main_alone, second_stage_script};
use std::time::{Duration, Instant};

#[track_caller]
fn fails(cluster: &Cluster, pgmend: &Pgmend, words: &str) {
    pgmend.cli(&["recover", "1"]).must_fail_saying(words);
    as_before(cluster, pgmend);
}

#[track_caller]
fn as_before(cluster: &Cluster, pgmend: &Pgmend) {
    assert_open(pgmend);
    assert_eq!(pgmend.node_status(1), "down");
    assert!(cluster.pid(1).is_none_or(|pid| !is_alive(pid)), "the target was stopped");
    assert_eq!(cluster.sql(0, "postgres", "SELECT count(*) FROM pg_replication_slots"), "0");
}

#[track_caller]
fn succeeds(cluster: &Cluster, pgmend: &Pgmend) {
    pgmend.cli(&["recover", "1"]).must();
    assert_joined(cluster, pgmend);
    assert_open(pgmend);
}

#[test]
fn a_second_stage_that_fails_hangs_or_talks_for_ever_leaves_the_service_as_before() {
    let (cluster, config) = main_alone("local", |_, config| {
        config.set("recovery", "recovery_timeout = \"5s\"");
    });
    let pgmend = config.start();
    cluster.write(0, "second_stage", "#!/bin/bash\necho no disk left >&2\nexit 3\n", "755");
    fails(&cluster, &pgmend, "no disk left");

    // It does not end: the gate opens at the limit, whatever becomes of the script.
    cluster.write(
        0,
        "second_stage",
        "#!/bin/bash\ntrap '' TERM\necho $$ > hanging.pid\nwhile :; do sleep 0.2; done\n",
        "755",
    );
    let pid_file = cluster.nodes[0].data.join("hanging.pid");
    std::thread::scope(|scope| {
        let recovery = scope.spawn(|| pgmend.cli(&["recover", "1"]));
        wait_until("the script hangs", Duration::from_secs(30), || number_in(&pid_file).is_some_and(is_alive));
        let began = Instant::now();
        pgmend.sql("SELECT 1").must();
        let held = began.elapsed();
        assert!(held < Duration::from_secs(8), "a client was held for {held:?}");
        let ran = recovery.join().expect("no panic").must_fail_saying("did not end within 5 seconds");
        assert!(ran.all().contains("recovery_timeout bounds it"), "{}", ran.all());
    });
    wait_until("the script has ended", Duration::from_secs(30), || !number_in(&pid_file).is_some_and(is_alive));
    as_before(&cluster, &pgmend);

    // Megabytes of words are no harm.
    cluster.write(0, "second_stage", "#!/bin/bash\nyes all work and no play | head -c 5000000\nexit 1\n", "755");
    fails(&cluster, &pgmend, "2nd stage");

    // It ends well but has not promoted the target.
    cluster.write(0, "second_stage", "#!/bin/bash\nexit 0\n", "755");
    fails(&cluster, &pgmend, "still in recovery");

    cluster.write(0, "second_stage", &second_stage_script(), "755");
    succeeds(&cluster, &pgmend);
}

#[test]
fn a_second_stage_on_the_source_that_fails_is_told_in_pgpools_words() {
    let (cluster, config) = main_alone("sql", |cluster, _| {
        cluster.write(0, "second_stage", "#!/bin/bash\nexit 1\n", "755");
    });
    let pgmend = config.start();
    fails(&cluster, &pgmend, "executing recovery, execution of command failed at \"2nd stage\"");
    cluster.write(0, "second_stage", &second_stage_script(), "755");
    succeeds(&cluster, &pgmend);
}

#[test]
fn a_target_that_does_not_start_or_is_another_system_is_not_attached() {
    let (cluster, config) = main_alone("local", |_, config| {
        config.set("recovery", "recovery_timeout = \"6s\"");
    });
    let pgmend = config.start();
    let stop = format!("{}/pg_ctl stop -m fast -w -D \"$3\" >/dev/null", bin("").display());
    cluster.write(0, "second_stage", &format!("{}{stop}\n", second_stage_script()), "755");
    cluster.write(0, "pgpool_remote_start", "#!/bin/bash\necho it will not start; exit 1\n", "755");
    fails(&cluster, &pgmend, "it will not start");
    cluster.write(0, "pgpool_remote_start", "#!/bin/bash\nexit 0\n", "755");
    fails(&cluster, &pgmend, "did not end within 6 seconds");

    // Another system comes up in its place.
    cluster.write(0, "pgpool_remote_start", &crate::two_stages::remote_start_script(), "755");
    let other = format!(
        "{stop}\nrm -rf \"$3\"\n{bin}/initdb -A trust -U postgres -N -D \"$3\" >/dev/null\n\
         echo \"port = $6\" >> \"$3/postgresql.conf\"\necho \"unix_socket_directories = '/tmp'\" >> \"$3/postgresql.conf\"\n",
        bin = bin("").display()
    );
    cluster.write(0, "second_stage", &format!("{}{other}", second_stage_script()), "755");
    fails(&cluster, &pgmend, "its system identifier is");

    cluster.write(0, "second_stage", &second_stage_script(), "755");
    succeeds(&cluster, &pgmend);
}

#[test]
fn a_transaction_that_does_not_end_makes_the_recovery_give_up() {
    let (cluster, config) = main_alone("builtin", |_, config| {
        config.set("recovery", "recovery_timeout = \"3s\"");
    });
    let pgmend = config.start();
    let door = pgmend.door();
    let mut idle = as_postgres(bin("psql"));
    idle.args(["-Xq", "-h", &door.host, "-p", &door.port.to_string(), "-U", "postgres", "-c"]);
    let mut idle = idle.arg("BEGIN; SELECT 1; SELECT pg_sleep(60)").spawn().expect("psql starts");
    wait_until("the transaction is open", Duration::from_secs(10), || {
        cluster.sql(0, "postgres", "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)'") != "0"
    });
    let ran = pgmend.cli(&["recover", "1"]).must_fail_saying("waiting connection closed in the other pgpools timeout");
    assert!(ran.all().contains("1 in flight"), "{}", ran.all());
    as_before(&cluster, &pgmend);
    crate::support::process::kill(&mut idle);
    wait_until("it has ended", Duration::from_secs(10), || {
        cluster.sql(0, "postgres", "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)' AND pid <> pg_backend_pid() AND state = 'active'") == "0"
    });
    succeeds(&cluster, &pgmend);
}

#[test]
fn a_cancel_and_a_second_recovery_while_clients_are_held() {
    let (cluster, config) = main_alone("program", |cluster, _| {
        let hang = "#!/bin/bash\necho $$ > hanging.pid\nexec sleep 300\n";
        cluster.write(0, "second_stage", hang, "755");
    });
    let pgmend = config.start();
    let pid_file = cluster.nodes[0].data.join("hanging.pid");
    std::thread::scope(|scope| {
        let recovery = scope.spawn(|| pgmend.cli(&["recover", "1"]));
        wait_until("the script hangs", Duration::from_secs(30), || number_in(&pid_file).is_some_and(is_alive));
        let busy = pgmend.cli(&["recover", "1"]);
        assert!(busy.all().contains("already processing another recovery request"), "{}", busy.all());
        let job = running_job(&pgmend).expect("a job runs");
        let began = Instant::now();
        pgmend.cli(&["job", "cancel", &job.to_string()]).must();
        pgmend.sql("SELECT 1").must();
        assert!(began.elapsed() < Duration::from_secs(3), "clients go on at once: {:?}", began.elapsed());
        recovery.join().expect("no panic").must_fail_saying("cancelled by an operator");
    });
    wait_until("the script has ended", Duration::from_secs(30), || !number_in(&pid_file).is_some_and(is_alive));
    as_before(&cluster, &pgmend);
}

#[test]
fn a_source_that_dies_in_a_stage_ends_the_recovery() {
    for stage in ["first_stage", "second_stage"] {
        let (cluster, config) = main_alone("local", |cluster, config| {
            config.set("recovery", "recovery_timeout = \"10s\"");
            cluster.write(0, stage, "#!/bin/bash\ntouch reached\nsleep 3\nexit 0\n", "755");
        });
        let pgmend: Pgmend = Config::start(&config);
        let reached = cluster.nodes[0].data.join("reached");
        std::thread::scope(|scope| {
            let recovery = scope.spawn(|| pgmend.cli(&["recover", "1"]));
            wait_until("the stage is reached", Duration::from_secs(30), || reached.exists());
            cluster.kill9(0);
            let ran = recovery.join().expect("no panic");
            assert!(!ran.ok, "{stage}: {}", ran.all());
        });
        assert_eq!(pgmend.node_status(1), "down");
        cluster.start(0);
        wait_until("the service is back", Duration::from_secs(20), || pgmend.sql("SELECT 1").ok);
        assert!(pgmend.cli(&["status"]).must().out.contains("gate open"));
    }
}
