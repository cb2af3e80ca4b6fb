//! A server dies in the middle of a switchover: whatever happens, one node writes, and nothing acknowledged is lost. That pgmend
//! itself dies is in `sweep`.

use crate::support::process::{signal, wait_until};
use crate::support::{Cluster, Pgmend};
use crate::switchover_hazards::Standing;
use std::time::Duration;

/// The node that writes; there must be exactly one, and the other must stream and be in routing.
#[track_caller]
pub fn settled(cluster: &Cluster, pgmend: &Pgmend, what: &str) -> usize {
    let ask = "SELECT pg_is_in_recovery()";
    let mut writer = None;
    wait_until(&format!("{what}: one node writes, the other streams"), Duration::from_secs(60), || {
        let states = [cluster.try_sql(0, "postgres", ask), cluster.try_sql(1, "postgres", ask)];
        assert_ne!(states, ["f".to_owned(), "f".to_owned()], "{what}: two primaries\n{}", pgmend.log());
        writer = states.iter().position(|state| state == "f");
        let other = states.iter().position(|state| state == "t");
        let streams = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        writer.is_some_and(|w| cluster.try_sql(w, "postgres", streams) == "1")
            && other.is_some()
            && pgmend.node_statuses().iter().all(|status| status == "up")
            && !pgmend.cli(&["jobs"]).out.contains("running")
    });
    writer.expect("one writes")
}

/// A server is killed while the daemon stands right after that record.
fn killed_at(record: &str, node: usize, expected_writer: usize) {
    let mut at = Standing::after(record);
    if let Some(pid) = at.cluster.pid(node) {
        signal(pid, "-9");
    }
    // Whether it succeeds is another story: the command of the operator comes to its end.
    at.goes_on();
    at.load.goes_on();
    let ask = "SELECT pg_is_in_recovery()";
    assert_eq!(at.cluster.sql(expected_writer, "postgres", ask), "f", "{}", at.pgmend.log());
    assert_ne!(at.cluster.try_sql(1 - expected_writer, "postgres", ask), "f", "never two primaries");
    at.load.close().assert_kept(&at.cluster, expected_writer);
}

#[test]
fn of_the_old_primary_before_its_stop() {
    killed_at("Stop", 0, 0);
}

#[test]
fn of_the_candidate_before_the_stop() {
    killed_at("Stop", 1, 0);
}

#[test]
fn of_the_candidate_before_the_proof() {
    killed_at("Verify", 1, 0);
}

#[test]
fn of_the_candidate_before_its_promotion() {
    killed_at("Promote", 1, 0);
}
