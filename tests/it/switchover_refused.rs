//! What stands against a switchover, and what happens when one fails in its middle: clients go on with the old primary.

use crate::support::process::wait_until;
use crate::support::{Cluster, Config, Ledger, Pgmend, Raw};
use crate::switchover::{assert_cluster, quick};
use pgmend::wire::frontend;
use std::time::{Duration, Instant};

/// A client that idles inside a transaction.
fn sleeper(pgmend: &Pgmend) -> Raw {
    let mut raw = Raw::connect(pgmend.config.port);
    raw.start(0, &[("user", "postgres"), ("database", "postgres"), ("application_name", "sleeper")]).until_ready();
    raw.say(|out| frontend::query(out, "BEGIN; SELECT 1")).until_ready();
    raw
}

/// Nothing has changed, and a switchover works afterwards.
#[track_caller]
fn assert_as_before(cluster: &Cluster, pgmend: &Pgmend, load: Ledger) {
    load.goes_on();
    assert_cluster(cluster, pgmend, 0, 1);
    assert_eq!(cluster.sql(1, "postgres", "SELECT count(*) FROM pg_replication_slots"), "0", "slots are taken back");
    assert!(!cluster.nodes[0].data.join("standby.signal").exists(), "disarmed");
    pgmend.cli(&["switchover"]).must();
    load.goes_on();
    assert_cluster(cluster, pgmend, 1, 2);
    load.close().assert_perfect(cluster, 1);
}

#[test]
fn somebody_idles_in_a_transaction() {
    let cluster = Cluster::pair();
    quick(&cluster);
    let mut config = Config::of(&cluster);
    config.set("maintenance", "drain_timeout = \"300ms\"").set("maintenance", "drain_pause = \"200ms\"");
    config.set("maintenance", "drain_attempts = 2").set("maintenance", "max_transaction_age = \"2s\"");
    let pgmend = config.start();
    let load = Ledger::start(&cluster, 0, &pgmend.door(), 4);
    let mut idle = sleeper(&pgmend);
    pgmend.cli(&["switchover"]).must_fail_saying("did not come to their transaction boundaries");
    let told = pgmend.cli(&["job", "show", "1"]).must().out;
    assert!(told.contains("application \"sleeper\", idle in transaction"), "who holds it up is named: {told}");
    wait_until("the transaction is old", Duration::from_secs(10), || {
        pgmend.cli(&["switchover", "--dry-run"]).all().contains("a transaction is older than 2 s")
    });
    pgmend.cli(&["switchover"]).must_fail_saying("sleeper");
    idle.say(|out| frontend::query(out, "COMMIT")).until_ready();
    load.goes_on();
    assert_eq!(cluster.sql(0, "postgres", "SELECT pg_is_in_recovery()"), "f");
    // Waited for, while everybody works on.
    let mut idle = sleeper(&pgmend);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| pgmend.cli(&["switchover", "--transactions", "wait"]));
        wait_until("it waits", Duration::from_secs(20), || {
            pgmend.cli(&["jobs"]).all().contains("running")
                && pgmend.cli(&["job", "show", "3"]).all().contains("waiting for 1 transactions")
        });
        load.goes_on();
        idle.say(|out| frontend::query(out, "COMMIT")).until_ready();
        waiting.join().expect("no panic").must();
    });
    assert_cluster(&cluster, &pgmend, 1, 2);
    // Ended: the one who held it up gets an error, nobody else.
    let mut idle = sleeper(&pgmend);
    let told = pgmend.cli(&["switchover", "--transactions", "end"]).must().all();
    assert!(told.contains("node 0 is the primary"), "{told}");
    let (code, _) = idle.say(|out| frontend::query(out, "SELECT 1")).message().error();
    assert_eq!(code, "57P01");
    assert_cluster(&cluster, &pgmend, 0, 3);
    load.goes_on();
    let closed = load.close();
    println!("longest {:?}", closed.longest);
    closed.assert_perfect(&cluster, 0);
}

#[test]
fn a_frozen_wal_receiver_leads_back() {
    let cluster = Cluster::pair();
    quick(&cluster);
    let mut config = Config::of(&cluster);
    config.set("maintenance", "stop_timeout = \"2s\"");
    let pgmend = config.start();
    let load = Ledger::start(&cluster, 0, &pgmend.door(), 8);
    let receiver = cluster.sql(1, "postgres", "SELECT pid FROM pg_stat_wal_receiver").parse().expect("a process");
    load.longest_since();
    let begun = Instant::now();
    crate::support::process::signal(receiver, "-STOP");
    pgmend.cli(&["switchover"]).must_fail_saying("did not stop within 2s");
    load.goes_on();
    let waited = load.longest_since();
    println!("back after {:?}, the longest wait was {waited:?}", begun.elapsed());
    assert!(waited < Duration::from_secs(15), "released before max_hold: {waited:?}");
    crate::support::process::signal(receiver, "-CONT");
    cluster.wait_streaming(1);
    assert_as_before(&cluster, &pgmend, load);
}

#[test]
fn a_slow_archive() {
    let cluster = Cluster::pair();
    quick(&cluster);
    cluster.stop(0);
    cluster.configure(0, "archive_mode=on\narchive_command='sleep 5'\n");
    cluster.start(0);
    let mut config = Config::of(&cluster);
    config.set("maintenance", "stop_timeout = \"1s\"");
    let pgmend = config.start();
    let load = Ledger::start(&cluster, 0, &pgmend.door(), 4);
    cluster.wait_streaming(1);
    wait_until("the standby is listed", Duration::from_secs(20), || {
        !pgmend.cli(&["switchover", "--dry-run"]).all().contains("does not stream")
    });
    load.longest_since();
    pgmend.cli(&["switchover"]).must_fail_saying("archive_command");
    assert!(load.longest_since() < Duration::from_secs(1), "nobody was held for it");
    for _ in 0..4 {
        cluster.sql(0, "postgres", "SELECT pg_switch_wal() FROM pg_create_restore_point('x')");
    }
    pgmend.cli(&["switchover"]).must_fail_saying("segments of log wait to be archived");
    cluster.sql(0, "postgres", "ALTER SYSTEM SET archive_command = 'true'");
    cluster.sql(0, "postgres", "SELECT pg_reload_conf()");
    let archived = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'";
    wait_until("all is archived", Duration::from_secs(80), || cluster.sql(0, "postgres", archived) == "0");
    assert_as_before(&cluster, &pgmend, load);
}

#[test]
fn a_candidate_that_lets_clients_not_in() {
    let cluster = Cluster::pair();
    quick(&cluster);
    // The superuser is let in, the clients' user is not.
    cluster.sql(0, "postgres", "CREATE ROLE app LOGIN; GRANT ALL ON SCHEMA public TO app");
    cluster.wait_same(1, "postgres", "SELECT count(*) FROM pg_roles");
    let hba = std::fs::read_to_string(cluster.nodes[1].data.join("pg_hba.conf")).expect("rules");
    cluster.write(1, "pg_hba.conf", &format!("host all app all reject\n{hba}"), "600");
    cluster.sql(1, "postgres", "SELECT pg_reload_conf()");
    let pgmend = Config::of(&cluster).start();
    let mut door = pgmend.door();
    let load = Ledger::start(&cluster, 0, &door, 2);
    cluster.sql(0, "postgres", "GRANT ALL ON ledger TO app");
    door.user = "app".into();
    let others = Ledger::go_on(&door, 2, 1_000_000);
    pgmend.cli(&["switchover"]).must_fail_saying("clients' connections to node 1 fail");
    others.goes_on();
    assert!(others.close().errors.is_empty());
    cluster.write(1, "pg_hba.conf", &hba, "600");
    cluster.sql(1, "postgres", "SELECT pg_reload_conf()");
    load.goes_on();
    assert_cluster(&cluster, &pgmend, 0, 1);
    pgmend.cli(&["switchover"]).must();
    assert!(load.close().errors.is_empty());
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let cluster = Cluster::pair();
    let mut config = Config::of(&cluster);
    let pgmend = config.pcp().start();
    pgmend.cli(&["switchover", "0"]).must_fail_saying("specified node is already primary node");
    pgmend.cli(&["switchover", "7"]).must_fail_saying("node id 7 is not valid");
    let said = pgmend.pcp("pcp_promote_node", &["-n", "1"]).all();
    assert!(said.contains("could not process promote request"), "{said}");
    cluster.sql(1, "postgres", "SELECT pg_wal_replay_pause()");
    pgmend.cli(&["switchover"]).must_fail_saying("has paused its replay");
    cluster.sql(1, "postgres", "SELECT pg_wal_replay_resume()");
    cluster.stop(1);
    pgmend.wait_node(1, "down");
    pgmend.cli(&["switchover"]).must_fail_saying("there is no standby in routing");
    pgmend.cli(&["switchover", "1"]).must_fail_saying("node 1 is not in routing");
    assert!(!cluster.nodes[0].data.join("standby.signal").exists());
}
