//! Health checks, the states of nodes, and what clients see when the primary is away.

use crate::support::process::wait_until;
use crate::support::{Cluster, Config};
use std::time::{Duration, Instant};

#[test]
fn a_lost_standby_is_detached_and_nobody_notices() {
    let cluster = Cluster::pair();
    cluster.pgbench_tables("postgres", 1);
    let pgmend = Config::of(&cluster).start();
    assert_eq!((pgmend.node_status(0), pgmend.node_status(1)), ("up".into(), "up".into()));
    let load = crate::support::Load::start(&pgmend.door(), cluster.folder(), 4);
    pgmend.loses(&cluster, 1);
    load.goes_on();
    load.finish();
    assert_eq!(pgmend.node_status(0), "up");
}

#[test]
fn statuses_survive_a_restart() {
    let cluster = Cluster::pair();
    let pgmend = Config::of(&cluster).start();
    pgmend.cli(&["detach", "1"]).must();
    pgmend.wait_node(1, "down");
    let config = pgmend.kill9();
    let pgmend = config.start();
    assert_eq!(pgmend.node_status(1), "down", "a node that was detached stays so, though its server runs");
    pgmend.cli(&["attach", "1"]).must();
    pgmend.wait_node(1, "up");
    assert!(pgmend.stop("-TERM"), "SIGTERM is a clean end");
}

#[test]
fn clients_wait_for_a_lost_primary_and_then_get_a_clear_error() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set("pool", "query_wait_timeout = \"4s\"");
    let pgmend = config.start();
    pgmend.sql("SELECT 1").must();
    cluster.stop(0);
    let begun = Instant::now();
    let ran = pgmend.sql("SELECT 1");
    assert!(!ran.ok && ran.err.contains("FATAL") || ran.err.contains("ERROR"), "{}", ran.all());
    assert!(begun.elapsed() < Duration::from_secs(30), "the wait has a bound");
    cluster.start(0);
    // A primary that nobody can replace comes back when it answers again, or by an operator's word.
    let _ = pgmend.cli(&["attach", "0"]);
    wait_until("service is back", Duration::from_secs(20), || pgmend.sql("SELECT 1").ok);
}

#[test]
fn a_frozen_standby_is_noticed() {
    let cluster = Cluster::pair();
    let pgmend = Config::of(&cluster).start();
    cluster.signal(1, "-STOP");
    pgmend.wait_node(1, "down");
    pgmend.sql("SELECT 1").must();
    cluster.signal(1, "-CONT");
}
