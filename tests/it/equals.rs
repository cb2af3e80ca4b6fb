//! Nodes that pgmend keeps equal, over its own ends: what is not known to be equal is compared before anybody is served.

use crate::support::process::wait_until;
use crate::support::{Cluster, Config, Pgmend, as_postgres, bin, run};
use std::time::Duration;

/// Two equal nodes, both writable: a standby that was promoted.
fn two() -> (Cluster, Config) {
    let mut cluster = Cluster::single();
    cluster.sql(0, "postgres", "CREATE TABLE t (n int); INSERT INTO t VALUES (1), (2)");
    let id = cluster.add_standby();
    run(as_postgres(bin("pg_ctl")).args(["promote", "-w", "-D"]).arg(&cluster.nodes[id].data)).must();
    cluster.sql(0, "postgres", "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active");
    let mut config = Config::of(&cluster);
    config.set("cluster", "backend_clustering_mode = \"native_replication\"");
    (cluster, config)
}

fn reason(pgmend: &Pgmend, id: usize) -> String {
    pgmend.status().unwrap_or_default()["nodes"][id]["reason"].as_str().unwrap_or_default().to_owned()
}

fn compared(pgmend: &Pgmend) -> usize {
    pgmend.log().matches("keeper.comparing").count()
}

#[test]
fn equals_come_up_by_themselves_and_others_stay_down_with_the_reason() {
    let (cluster, config) = two();
    // At the very first start nothing is known of them.
    let pgmend = config.start();
    pgmend.wait_node(1, "up");
    assert_eq!(compared(&pgmend), 1);

    // An orderly end is believed, and so is a reload.
    pgmend.cli(&["reload"]).must();
    assert!(pgmend.stop("-TERM"));
    let pgmend = config.start();
    pgmend.wait_node(1, "up");
    assert_eq!(compared(&pgmend), 1, "nothing had to be compared");

    // Any other is not.
    let config = pgmend.kill9();
    let pgmend = config.start();
    pgmend.wait_node(1, "up");
    assert_eq!(compared(&pgmend), 2);

    // A commit that one node lacks, a sequence that ran on, a role: each is found.
    let config = pgmend.kill9();
    cluster.sql(1, "postgres", "INSERT INTO t VALUES (3)");
    let pgmend = config.start();
    pgmend.wait_node(1, "down");
    assert!(
        reason(&pgmend, 1).ends_with("its data are not those of node 0: postgres: table public.t differs"),
        "{}",
        reason(&pgmend, 1)
    );
    pgmend.sql("SELECT 1").must();
    let refused = pgmend.cli(&["attach", "1"]).all();
    assert!(refused.contains("recover it"), "{refused}");

    // The mark outlives an orderly end; what an operator answers for is taken.
    assert!(pgmend.stop("-TERM"));
    let pgmend = config.start();
    assert_eq!(pgmend.node_status(1), "down");
    pgmend.cli(&["attach", "1"]).must_fail_saying("recover it");
    cluster.sql(1, "postgres", "DELETE FROM t WHERE n = 3");
    pgmend.cli(&["attach", "--accept-data", "1"]).must();
    pgmend.wait_node(1, "up");

    // -D forgets the mark too, so it is compared.
    cluster.sql(1, "postgres", "CREATE ROLE extra");
    assert!(pgmend.stop("-TERM"));
    let pgmend = config.spawn_also(&["-D"]);
    pgmend.wait_ready();
    pgmend.wait_node(1, "down");
    assert!(reason(&pgmend, 1).contains("role extra is too much"), "{}", reason(&pgmend, 1));
}

#[test]
fn a_node_that_was_out_is_compared_before_it_is_attached() {
    let (cluster, config) = two();
    let pgmend = config.start();
    pgmend.wait_node(1, "up");
    pgmend.cli(&["detach", "1"]).must();
    pgmend.wait_node(1, "down");
    pgmend.cli(&["attach", "1"]).must();
    pgmend.wait_node(1, "up");
    pgmend.cli(&["detach", "1"]).must();
    cluster.sql(0, "postgres", "INSERT INTO t VALUES (9)");
    pgmend.cli(&["attach", "1"]).must_fail_saying("table public.t differs");
    assert_eq!(pgmend.node_status(1), "down");
    pgmend.sql("SELECT 1").must();
}

#[test]
fn the_last_node_stays_and_a_standby_does_not_take_part() {
    let (mut cluster, _) = two();
    let standby = cluster.add_standby();
    let mut config = Config::of(&cluster);
    config.set("cluster", "backend_clustering_mode = \"native_replication\"");
    let pgmend = config.start();
    pgmend.wait_node(1, "up");
    pgmend.wait_node(standby, "down");
    assert!(reason(&pgmend, standby).contains("it is in recovery"), "{}", reason(&pgmend, standby));
    cluster.stop(0);
    pgmend.wait_node(0, "down");
    pgmend.sql("SELECT 1").must();
    cluster.stop(1);
    wait_until("the last one is not reached", Duration::from_secs(20), || {
        pgmend.status().unwrap_or_default()["nodes"][1]["reachable"] == false
    });
    assert_eq!(pgmend.node_status(1), "up", "it has the truth");
    cluster.start(1);
    wait_until("it serves again", Duration::from_secs(20), || pgmend.sql("SELECT 1").ok);
    assert_eq!(pgmend.node_status(0), "down", "it missed what was written meanwhile");
}

#[test]
fn a_comparison_is_bounded() {
    let (cluster, mut config) = two();
    cluster.sql(1, "postgres", "CREATE TABLE big AS SELECT g FROM generate_series(1, 10) g");
    cluster.sql(0, "postgres", "CREATE TABLE big AS SELECT g FROM generate_series(1, 10) g");
    config.set("cluster", "compare_timeout = \"1s\"");
    // Whoever holds the table keeps the comparison from reading it.
    let port = cluster.nodes[1].port.to_string();
    let mut holder = as_postgres(bin("psql"));
    holder.args([
        "-Xq",
        "-h",
        "127.0.0.1",
        "-p",
        &port,
        "-U",
        "postgres",
        "-c",
        "BEGIN; LOCK TABLE big; SELECT pg_sleep(60)",
    ]);
    let mut holder = holder.spawn().expect("psql starts");
    wait_until("the table is locked", Duration::from_secs(10), || {
        cluster.sql(1, "postgres", "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted")
            != "0"
    });
    let pgmend = config.start();
    pgmend.wait_node(1, "down");
    assert!(reason(&pgmend, 1).contains("longer than compare_timeout"), "{}", reason(&pgmend, 1));
    pgmend.sql("SELECT 1").must();
    crate::support::process::kill(&mut holder);
}

#[test]
fn a_process_that_was_taken_over_has_a_node_taken_out_by_the_new_one() {
    let (cluster, mut config) = two();
    config.set("cluster", "failover_if_affected_tuples_mismatch = true");
    let old = config.start();
    old.wait_node(1, "up");
    let file = |name: &str| cluster.folder().join(name);
    let script = format!(
        "import os\nc = connect()\nc.execute('SELECT 1')\nopen('{}', 'w').close()\n\
         while not os.path.exists('{}'): time.sleep(0.05)\n\
         try: c.execute('UPDATE t SET n = n WHERE n = 2')\nexcept psycopg.Error as e: print(e)\n",
        file("connected").display(),
        file("go").display()
    );
    std::thread::scope(|scope| {
        let client = scope.spawn(|| old.psycopg("", &script));
        wait_until("the client is connected", Duration::from_secs(20), || file("connected").exists());
        let new = config.take_over();
        new.wait_node(1, "up");
        cluster.sql(1, "postgres", "DELETE FROM t WHERE n = 2");
        std::fs::write(file("go"), "").expect("it can be written");
        client.join().expect("no panic");
        new.wait_node(1, "down");
        let marked = new.status().unwrap_or_default()["nodes"][1]["data"].clone();
        assert_eq!(marked, "diverged", "{}", reason(&new, 1));
        new.sql("SELECT 1").must();
    });
}

#[test]
fn snapshot_isolation_is_not_taken_over() {
    let (cluster, mut config) = two();
    let repeatable = "ALTER SYSTEM SET default_transaction_isolation = 'repeatable read'";
    for node in 0..2 {
        cluster.sql(node, "postgres", repeatable);
        cluster.sql(node, "postgres", "SELECT pg_reload_conf()");
    }
    config.set("cluster", "backend_clustering_mode = \"snapshot_isolation\"");
    let old = config.start();
    old.wait_node(1, "up");
    let new = config.spawn_also(&["--takeover"]);
    wait_until("the new process is refused", Duration::from_secs(20), || !crate::support::process::is_alive(new.pid()));
    assert!(new.log().contains("two processes would not keep"), "{}", new.log());
    old.sql("SELECT 1").must();
    assert_eq!(old.node_status(1), "up");
}

#[test]
fn what_cannot_be_saved_is_never_believed_at_the_next_start() {
    let (cluster, config) = two();
    let pgmend = config.start();
    pgmend.wait_node(1, "up");
    // As on a full disk: the state's next file cannot be written.
    let in_the_way = config.folder().join("state/.nodes.json.new");
    let block = || std::fs::create_dir(&in_the_way).expect("a folder can be made");
    let clear = || std::fs::remove_dir(&in_the_way).expect("it is empty");
    block();
    cluster.stop(1);
    pgmend.wait_node(1, "down");
    assert!(pgmend.log().contains("keeper.save_failed"), "{}", pgmend.log());
    pgmend.sql("INSERT INTO t VALUES (3)").must();
    // There is room again, and pgmend ends orderly: the node that lacks a row is none of the equals.
    clear();
    assert!(pgmend.stop("-TERM"));
    cluster.start(1);
    let pgmend = config.start();
    assert_eq!(pgmend.node_status(1), "down");
    pgmend.sql("SELECT 1").must();
    assert!(pgmend.stop("-TERM"));
    // That the end was orderly cannot be taken back: a crash would look like one.
    block();
    config.spawn().wait_end();
    let log = std::fs::read_to_string(config.folder().join("pgmend.log")).expect("a log");
    assert!(log.lines().last().is_some_and(|line| line.contains(".nodes.json.new")), "{log}");
    clear();
    let pgmend = config.start();
    pgmend.sql("SELECT 1").must();
}
