//! Planned maintenance on other versions of PostgreSQL than Debian's: the same stories, and what only those versions have.

use crate::support::process::{use_version, wait_until};
use crate::support::{Cluster, Config, Ledger};
use crate::switchover::{assert_cluster, quick};
use crate::{maintenance, remote, switchover};
use std::time::Duration;

#[test]
fn on_16_a_switchover_and_back() {
    use_version(16);
    switchover::of_two_nodes_and_back();
}

#[test]
fn on_16_the_third_node_follows() {
    use_version(16);
    switchover::of_three_nodes_where_the_third_follows_without_a_restart();
}

#[test]
fn on_16_nodes_behind_ssh() {
    use_version(16);
    remote::every_node_is_patched_there_and_the_primary_moves_back();
}

#[test]
fn on_16_synchronous_names() {
    use_version(16);
    switchover::of_synchronous_nodes_names_only_who_streams();
}

#[test]
fn on_16_a_standby_leaves_and_comes_back() {
    use_version(16);
    maintenance::a_standby_leaves_and_comes_back();
}

#[test]
fn on_16_a_rebuild() {
    use_version(16);
    maintenance::a_node_whose_data_are_gone_is_rebuilt();
}

#[test]
fn on_16_a_rolling_update_of_two() {
    use_version(16);
    maintenance::every_one_of_two_is_patched_and_the_primary_moves_back();
}

#[test]
fn on_16_a_rolling_update_of_three() {
    use_version(16);
    maintenance::every_one_of_three_is_patched_with_one_that_fails_first();
}

#[test]
fn on_18_a_switchover_and_back() {
    use_version(18);
    switchover::of_two_nodes_and_back();
}

#[test]
fn on_18_the_third_node_follows() {
    use_version(18);
    switchover::of_three_nodes_where_the_third_follows_without_a_restart();
}

#[test]
fn on_18_nodes_behind_ssh() {
    use_version(18);
    remote::every_node_is_patched_there_and_the_primary_moves_back();
}

#[test]
fn on_18_synchronous_names() {
    use_version(18);
    switchover::of_synchronous_nodes_names_only_who_streams();
}

#[test]
fn on_18_a_standby_leaves_and_comes_back() {
    use_version(18);
    maintenance::a_standby_leaves_and_comes_back();
}

#[test]
fn on_18_a_rebuild() {
    use_version(18);
    maintenance::a_node_whose_data_are_gone_is_rebuilt();
}

#[test]
fn on_18_a_rolling_update_of_two() {
    use_version(18);
    maintenance::every_one_of_two_is_patched_and_the_primary_moves_back();
}

#[test]
fn on_18_a_rolling_update_of_three() {
    use_version(18);
    maintenance::every_one_of_three_is_patched_with_one_that_fails_first();
}

/// Logical subscribers wait for standbys by the names of their slots; such a name is never left where nobody uses it.
#[test]
fn on_18_synchronized_standby_slots_are_kept() {
    use_version(18);
    let cluster = Cluster::pair();
    quick(&cluster);
    for id in 0..2 {
        cluster.configure(id, "wal_level = logical\n");
        cluster.stop(id);
        cluster.start(id);
    }
    cluster.wait_streaming(1);
    let shown = |id| cluster.sql(id, "postgres", "SHOW synchronized_standby_slots");
    let pgmend = Config::of(&cluster).start();
    // From now on node 1 streams through a slot of pgmend's.
    pgmend.cli(&["maintenance", "begin", "1"]).must();
    pgmend.cli(&["maintenance", "finish", "1"]).must();
    cluster.sql(0, "postgres", "ALTER SYSTEM SET synchronized_standby_slots = 'pgmend_1'");
    cluster.sql(0, "postgres", "SELECT pg_reload_conf()");
    wait_until("it is in force", Duration::from_secs(10), || shown(0) == "pgmend_1");
    pgmend.cli(&["maintenance", "begin", "1"]).must();
    assert_eq!(shown(0), "", "nobody waits for a node in maintenance");
    // What a copy of the primary's files brings along.
    cluster.configure(1, "synchronized_standby_slots = 'pgmend_1'\n");
    pgmend.cli(&["maintenance", "finish", "1"]).must();
    assert_eq!(shown(0), "pgmend_1", "named again");
    let load = Ledger::start(&cluster, 0, &pgmend.door(), 4);
    pgmend.cli(&["switchover", "1"]).must();
    load.goes_on();
    assert_cluster(&cluster, &pgmend, 1, 2);
    assert_eq!((shown(1).as_str(), shown(0).as_str()), ("pgmend_0", ""));
    load.close().assert_perfect(&cluster, 0);
    cluster.sql(1, "postgres", "CREATE TABLE told (n int)");
    cluster.sql(1, "postgres", "CREATE PUBLICATION told FOR TABLE told");
    cluster.sql(1, "postgres", "SELECT pg_create_logical_replication_slot('told', 'pgoutput', false, false, true)");
    cluster.sql(1, "postgres", "INSERT INTO told VALUES (1)");
    let got = "SET statement_timeout = '10s'; SELECT count(*) > 0 FROM pg_logical_slot_get_binary_changes('told', NULL, \
               NULL, 'proto_version', '1', 'publication_names', 'told')";
    assert!(cluster.sql(1, "postgres", got).ends_with('t'), "a subscriber gets what the standby has");
}
