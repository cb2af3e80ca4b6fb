//! pgmend dies in the middle of a recovery with two stages, after each journal record: nobody is held, the node is down and
//! stopped, no slot is left, and the next recovery succeeds.

use crate::crash::interrupted;
use crate::support::process::is_alive;
use crate::two_stages::{assert_joined, assert_open, main_alone};

fn dies_after(runner: &str, records: &[&str]) {
    let (cluster, config) = main_alone(runner, |_, _| ());
    for (number, record) in (1..).zip(records) {
        let pgmend = interrupted(&config, record, &["recover", "1"]);
        assert_open(&pgmend);
        assert!(cluster.pid(1).is_none_or(|pid| !is_alive(pid)), "{record}: the target was stopped");
        let slots = cluster.sql(0, "postgres", "SELECT count(*) FROM pg_replication_slots");
        assert_eq!(slots, "0", "{record}: slots");
        pgmend.cli(&["recover", "1"]).must();
        assert_joined(&cluster, &pgmend);
        if number == records.len() {
            break;
        }
        // Out again, for the next record.
        cluster.stop(1);
        pgmend.wait_node(1, "down");
        assert!(pgmend.stop("-TERM"));
    }
}

#[test]
fn in_the_builtin_first_stage() {
    dies_after("builtin", &["Requested", "FirstStage", "FirstStage.Copy", "FirstStage.Configure", "FirstStage.Start"]);
}

#[test]
fn in_the_builtin_second_stage() {
    dies_after("builtin", &["Gating", "SecondStage", "SecondStage.Replay", "SecondStage.Promote"]);
}

#[test]
fn behind_the_gate() {
    dies_after("builtin", &["Starting", "CatchingUp", "Verifying", "Attaching"]);
}

#[test]
fn in_the_scripts() {
    dies_after("local", &["FirstStage.Script", "Gating", "SecondStage.Script", "Starting.Script"]);
}
