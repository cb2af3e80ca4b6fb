//! pgmend dies in the middle of a recovery, after each journal record: it starts again, says so, and the next succeeds.

use crate::support::{Cluster, Config, Load};

fn dies_after(stage: &str) {
    let cluster = Cluster::pair();
    cluster.pgbench_tables("postgres", 2);
    let mut config = Config::of(&cluster);
    config.env("PGMEND_CRASH_AFTER_RECORD", stage);
    let doomed = config.start();
    cluster.kill9(1);
    doomed.wait_node(1, "down");
    let ran = doomed.cli(&["recover", "1"]);
    assert!(!ran.ok, "the tool must notice that the daemon died: {}", ran.all());
    doomed.wait_end();

    let mut config = config.clone();
    config.env("PGMEND_CRASH_AFTER_RECORD", "");
    let pgmend = config.start();
    let log = pgmend.log().to_lowercase();
    assert!(log.contains("interrupted"), "the new daemon says what it found:\n{log}");
    assert_ne!(pgmend.node_status(1), "up", "an unfinished node is not in routing");
    let load = Load::start(&pgmend.door(), cluster.folder(), 4);
    pgmend.cli(&["recover", "1"]).must();
    load.goes_on();
    load.finish();
    cluster.wait_streaming(1);
    assert_eq!(pgmend.node_status(1), "up");
}

#[test]
fn after_preflight() {
    dies_after("Preflight");
}

#[test]
fn after_the_first_stage() {
    dies_after("FirstStage");
}

#[test]
fn after_starting() {
    dies_after("Starting");
}

#[test]
fn after_catching_up() {
    dies_after("CatchingUp");
}

#[test]
fn after_verifying() {
    dies_after("Verifying");
}

#[test]
fn after_attaching() {
    dies_after("Attaching");
}
