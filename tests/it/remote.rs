//! Nodes that are reached over ssh only: maintenance, switchover, rolling update and recovery do there what they do here.

use crate::support::process::{run, run_for, wait_until};
use crate::support::{Cluster, Config, Ledger, Pgmend, Sshd, as_postgres, bin};
use crate::switchover::{assert_cluster, assert_short, quick};
use std::time::Duration;

/// A pair whose nodes are behind a real sshd, and a daemon before them.
fn behind_ssh(nodes: &[usize]) -> (Cluster, Sshd, Pgmend) {
    let cluster = Cluster::pair();
    quick(&cluster);
    let sshd = Sshd::start(&cluster);
    let mut config = Config::of(&cluster);
    sshd.leads_to(&mut config, nodes);
    let pgmend = config.start();
    (cluster, sshd, pgmend)
}

/// Its server was started by somebody who came over ssh.
#[track_caller]
pub fn assert_started_over_ssh(cluster: &Cluster, id: usize) {
    let pid = cluster.pid(id).expect("it runs");
    let environment = std::fs::read(format!("/proc/{pid}/environ")).expect("it can be read");
    let told = String::from_utf8_lossy(&environment).into_owned();
    assert!(told.contains("SSH_CONNECTION=127.0.0.1"), "node {id} was started here: {told}");
}

#[test]
fn a_standby_leaves_and_comes_back() {
    let cluster = Cluster::pair();
    quick(&cluster);
    let sshd = Sshd::start(&cluster);
    let mut config = Config::of(&cluster);
    sshd.leads_to(&mut config, &[1]);
    let note = format!("echo $PGMEND_VERB $PGMEND_NODE >> {}/autostart", cluster.folder().display());
    config.node(1, &format!("autostart_off_command = '{note}'")).node(1, &format!("autostart_on_command = '{note}'"));
    let pgmend = config.start();
    let check = pgmend.cli(&["check", &cluster.folder().join("pgmend.toml").display().to_string()]).must().out;
    assert!(
        check.contains("node 0 at 127.0.0.1") && check.contains("): on this machine; started by pg_ctl"),
        "{check}"
    );
    assert!(check.contains("elsewhere, through `"), "{check}");
    let load = Ledger::start(&cluster, 0, &pgmend.door(), 4);
    pgmend.cli(&["maintenance", "begin", "1"]).must();
    pgmend.wait_node(1, "down");
    assert!(cluster.pid(1).is_none(), "its server is stopped");
    assert!(cluster.nodes[1].data.join("standby.signal").exists(), "and armed");
    load.goes_on();
    let told = pgmend.cli(&["maintenance", "finish", "1"]).must().all();
    assert!(told.contains("came back as it was"), "{told}");
    assert_cluster(&cluster, &pgmend, 0, 1);
    assert_started_over_ssh(&cluster, 1);
    let autostart = std::fs::read_to_string(cluster.folder().join("autostart")).expect("they ran");
    assert_eq!(autostart, "autostart_off 1\nautostart_on 1\n");
    load.close().assert_perfect(&cluster, 0);
}

#[test]
fn the_primary_moves_there_and_back() {
    let (cluster, sshd, pgmend) = behind_ssh(&[0, 1]);
    let load = Ledger::start(&cluster, 0, &pgmend.door(), 8);
    let plan = pgmend.cli(&["switchover", "--dry-run"]).must().out;
    assert!(plan.contains("nothing stands against it"), "{plan}");
    for (to, timeline) in [(1, 2), (0, 3)] {
        let before = sshd.ways();
        let told = pgmend.cli(&["switchover", &to.to_string()]).must().all();
        println!("{told}\n{} ways", sshd.ways() - before);
        assert_short(&told);
        assert!(told.contains("proof: node") && told.contains("came back as it was"), "{told}");
        load.goes_on();
        assert_cluster(&cluster, &pgmend, to, timeline);
        assert_started_over_ssh(&cluster, 1 - to);
    }
    let closed = load.close();
    println!("{} transactions, longest {:?}", closed.acknowledged, closed.longest);
    closed.assert_perfect(&cluster, 0);
}

#[test]
pub fn every_node_is_patched_there_and_the_primary_moves_back() {
    let (cluster, sshd, pgmend) = behind_ssh(&[0, 1]);
    let at = cluster.folder().display();
    let script = format!(
        "#!/bin/bash\n[ -e $PGMEND_DATA_DIRECTORY/postmaster.pid ] && {{ echo it runs >&2; exit 8; }}\n\
         [ -e $PGMEND_DATA_DIRECTORY/standby.signal ] || {{ echo not armed >&2; exit 9; }}\n\
         [ \"$SSH_CONNECTION\" ] || {{ echo not there >&2; exit 10; }}\n\
         echo $PGMEND_NODE as $(id -un) with $PGMEND_OPERATION >> {at}/patched\n"
    );
    let script = cluster.scratch.write("patch it's.sh", &script, "755").display().to_string();
    let load = Ledger::start(&cluster, 0, &pgmend.door(), 8);
    let command = format!("\"{script}\"");
    let told = pgmend.cli(&["rolling-update", "--run", &command, "--failback"]).must().all();
    println!("{told}");
    let patched = std::fs::read_to_string(cluster.folder().join("patched")).expect("it ran");
    let nodes: Vec<&str> =
        patched.lines().filter_map(|l| l.split_once(&format!(" as {} with ", sshd.user()))).map(|(n, _)| n).collect();
    assert_eq!(nodes, ["1", "0"], "{patched}");
    load.goes_on();
    assert_cluster(&cluster, &pgmend, 0, 3);
    let closed = load.close();
    println!("{} transactions, longest {:?}", closed.acknowledged, closed.longest);
    closed.assert_perfect(&cluster, 0);
}

/// Node 1 under a name that a shell would take apart.
fn with_an_odd_name(cluster: &Cluster, config: &mut Config) {
    let odd = cluster.folder().join("it's $(touch taken-apart) \"1\"");
    run(as_postgres("ln").arg("-s").arg(&cluster.nodes[1].data).arg(&odd)).must();
    config.node(1, &format!("data_directory = '''{}'''", odd.display()));
}

#[test]
fn a_node_whose_data_are_gone_is_rebuilt_with_its_links() {
    let cluster = Cluster::pair();
    quick(&cluster);
    let sshd = Sshd::start(&cluster);
    let mut config = Config::of(&cluster);
    sshd.leads_to(&mut config, &[1]);
    with_an_odd_name(&cluster, &mut config);
    let (data, wal) = (&cluster.nodes[1].data, cluster.folder().join("wal 1"));
    cluster.stop(1);
    run(as_postgres("mv").arg(data.join("pg_wal")).arg(&wal)).must();
    run(as_postgres("ln").arg("-s").arg(&wal).arg(data.join("pg_wal"))).must();
    cluster.start(1);
    cluster.wait_streaming(1);
    let pgmend = config.start();
    let load = Ledger::start(&cluster, 0, &pgmend.door(), 4);
    pgmend.cli(&["maintenance", "begin", "1"]).must();
    run(as_postgres("rm").arg("-rf").arg(data.join("pg_xact")).arg(data.join("global/pg_filenode.map"))).must();
    pgmend.cli(&["maintenance", "finish", "1", "--no-rebuild"]).must_fail_saying("it may not be rebuilt");
    let told = pgmend.cli(&["maintenance", "finish", "1"]).must().all();
    assert!(told.contains("recovered from node 0") && told.contains("pg_basebackup"), "{told}");
    assert_cluster(&cluster, &pgmend, 0, 1);
    assert_started_over_ssh(&cluster, 1);
    assert_eq!(std::fs::read_link(data.join("pg_wal")).expect("a link"), wal);
    let taken_apart = |folder: &std::path::Path| folder.join("taken-apart").exists();
    assert!(!taken_apart(data) && !taken_apart(std::path::Path::new("/tmp")) && !taken_apart(cluster.folder()));
    load.close().assert_perfect(&cluster, 0);

    // A server that runs is never overwritten, whoever started it.
    pgmend.cli(&["detach", "1"]).must();
    pgmend.cli(&["recover", "1"]).must_fail_saying("is not stopped");
}

#[test]
fn an_old_primary_with_commits_of_its_own_is_rewound_only_when_their_loss_is_accepted() {
    let cluster = Cluster::pair();
    cluster.pgbench_tables("postgres", 1);
    let sshd = Sshd::start(&cluster);
    cluster.stop(1);
    cluster.sql(0, "postgres", "CREATE TABLE astray AS SELECT 1 AS n");
    cluster.kill9(0);
    cluster.start(1);
    let mut promote = as_postgres(bin("pg_ctl"));
    run_for(promote.args(["promote", "-w", "-D"]).arg(&cluster.nodes[1].data), Duration::from_secs(60)).must();
    let recovering = || cluster.try_sql(1, "postgres", "SELECT pg_is_in_recovery()");
    wait_until("node 1 is promoted", Duration::from_secs(20), || recovering() == "f");
    cluster.sql(1, "postgres", "CREATE TABLE later AS SELECT generate_series(1, 50000) AS n; CHECKPOINT");
    let mut config = Config::of(&cluster);
    sshd.leads_to(&mut config, &[0]);
    let pgmend = config.spawn();
    pgmend.wait_node(0, "down");
    pgmend.wait_node(1, "up");
    let told = pgmend.cli(&["recover", "0"]).must_fail_saying("--accept-loss");
    assert!(told.all().contains("1 transactions of it were committed after"), "{}", told.all());
    let told = pgmend.cli(&["recover", "0", "--accept-loss"]).must().all();
    assert!(told.contains("pg_rewind"), "{told}");
    cluster.wait_streaming(0);
    assert_started_over_ssh(&cluster, 0);
    assert_eq!(cluster.sql(0, "postgres", "SELECT to_regclass('astray'), count(*) FROM later"), "|50000");

    // The same positions, and another log there.
    cluster.stop(0);
    run(as_postgres("rm").arg(cluster.nodes[0].data.join("standby.signal"))).must();
    cluster.start(0);
    cluster.sql(0, "postgres", "CREATE TABLE astray AS SELECT 1 AS n");
    cluster.stop(0);
    cluster.sql(1, "postgres", "CREATE TABLE much_later AS SELECT generate_series(1, 200000) AS n; CHECKPOINT");
    pgmend.wait_node(0, "down");
    let told = pgmend.cli(&["recover", "0"]).must_fail_saying("--accept-loss");
    assert!(told.all().contains("differs from the source's"), "{}", told.all());
}
