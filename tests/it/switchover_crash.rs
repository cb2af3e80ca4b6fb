//! A server dies in the middle of a switchover: whatever happens, one node writes, and nothing acknowledged is lost. That pgmend
//! itself dies is in `sweep`.

use crate::support::process::{kill, wait_until};
use crate::support::{Cluster, Config, Ledger, Pgmend, as_postgres};
use crate::switchover::quick;
use std::time::Duration;

const WAITS_AFTER: &str = "PGMEND_WAIT_AFTER_RECORD";

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
            && pgmend.node_status(0) == "up"
            && pgmend.node_status(1) == "up"
            && !pgmend.cli(&["jobs"]).out.contains("running")
    });
    writer.expect("one writes")
}

/// A server is killed while the daemon stands right after that record.
fn killed_at(record: &str, node: usize, expected_writer: usize) {
    let cluster = Cluster::pair();
    quick(&cluster);
    let switch = cluster.scratch.write("wait", "", "666");
    let mut config = Config::of(&cluster);
    config.env(WAITS_AFTER, &format!("{record}={}", switch.display()));
    let pgmend = config.start();
    let load = Ledger::start(&cluster, 0, &pgmend.door(), 4);
    let mut tool = {
        let mut command = as_postgres(&pgmend.binary);
        command.arg("--socket").arg(config.folder().join("pgmend.sock")).arg("switchover");
        command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("the tool starts")
    };
    wait_until("the daemon stands there", Duration::from_secs(30), || {
        let journal = std::fs::read_to_string(config.folder().join("state/journal-1.jsonl")).unwrap_or_default();
        journal.lines().last().is_some_and(|line| line.contains(&format!("\"name\":\"{record}\"")))
    });
    let pid = cluster.pid(node);
    if let Some(pid) = pid {
        crate::support::process::signal(pid, "-9");
    }
    std::fs::remove_file(switch).expect("it was there");
    wait_until("the switchover has ended", Duration::from_secs(120), || matches!(tool.try_wait(), Ok(Some(_))));
    kill(&mut tool);
    load.goes_on();
    let ask = "SELECT pg_is_in_recovery()";
    assert_eq!(cluster.sql(expected_writer, "postgres", ask), "f", "{}", pgmend.log());
    assert_ne!(cluster.try_sql(1 - expected_writer, "postgres", ask), "f", "never two primaries");
    load.close().assert_kept(&cluster, expected_writer);
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
