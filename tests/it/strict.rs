//! `--strict`: after a change of the primary no commit is acknowledged that is on one server only.

use crate::support::process::wait_until;
use crate::support::{Cluster, Config, Ledger, Pgmend};
use crate::switchover::{assert_cluster, quick};
use crate::switchover_hazards::Standing;
use std::time::Duration;

fn synchronous_pair() -> Cluster {
    let cluster = Cluster::pair();
    quick(&cluster);
    cluster.sql(0, "postgres", "ALTER SYSTEM SET synchronous_standby_names = 'pgmend_1'");
    cluster.sql(0, "postgres", "SELECT pg_reload_conf()");
    cluster
}

#[test]
fn commits_wait_for_the_standby_and_go_on() {
    let cluster = synchronous_pair();
    let pgmend = Config::of(&cluster).start();
    let load = Ledger::start(&cluster, 0, &pgmend.door(), 8);
    let plan = pgmend.cli(&["switchover", "--strict", "--dry-run"]).must().out;
    assert!(
        plan.contains("with its standbys, before they stream") && plan.contains("commits wait, at most 60s"),
        "{plan}"
    );
    let told = pgmend.cli(&["switchover", "1", "--strict"]).must().all();
    println!("{told}");
    assert!(told.contains("strict: commits waited until they were on a synchronous standby"), "{told}");
    load.goes_on();
    assert_cluster(&cluster, &pgmend, 1, 2);
    assert_eq!(cluster.sql(1, "postgres", "SHOW synchronous_standby_names"), "FIRST 1 (\"pgmend_0\")");
    assert_eq!(cluster.sql(0, "postgres", "SHOW synchronous_standby_names"), "");
    let closed = load.close();
    println!("longest {:?}", closed.longest);
    closed.assert_perfect(&cluster, 0);
}

#[test]
fn the_wait_has_a_bound_and_its_end_is_told() {
    let cluster = synchronous_pair();
    let mut config = Config::of(&cluster);
    // The old primary comes back late.
    config.set("maintenance", "after_switch_command = \"sleep 4\"").set("maintenance", "strict_timeout = \"1s\"");
    let pgmend = config.start();
    let load = Ledger::start(&cluster, 0, &pgmend.door(), 8);
    load.longest_since();
    let ran = pgmend.cli(&["switchover", "1", "--strict"]);
    ran.must_fail_saying("strict was given up: not enough standbys were synchronous within 1s");
    let waited = load.longest_since();
    assert!(waited >= Duration::from_millis(900), "commits waited for the standby: {waited:?}");
    assert!(waited < Duration::from_secs(4), "and not for as long as it was away: {waited:?}");
    load.goes_on();
    assert_cluster(&cluster, &pgmend, 1, 2);
    assert_eq!(cluster.sql(1, "postgres", "SHOW synchronous_standby_names"), "FIRST 1 (\"pgmend_0\")", "named again");
    load.close().assert_perfect(&cluster, 0);
}

#[test]
fn what_cannot_be_strict_is_refused() {
    let cluster = Cluster::pair();
    let pgmend = Config::of(&cluster).start();
    pgmend.cli(&["switchover", "--strict"]).must_fail_saying("--strict: no standby is synchronous");
    cluster.sql(0, "postgres", "ALTER SYSTEM SET synchronous_standby_names = '*'");
    cluster.sql(0, "postgres", "SELECT pg_reload_conf()");
    let plan = pgmend.cli(&["rolling-update", "--strict", "--dry-run"]);
    plan.must_fail_saying("with 2 nodes in routing a commit is on one server only while another is away");
}

/// What is left of a pgmend that was killed right after a record of its strict switchover, and the next one.
struct Next {
    pgmend: Pgmend,
    cluster: Cluster,
    load: Ledger,
    /// When the first was dead, by the new primary's clock.
    since: String,
}

fn killed_after(record: &str, configure: impl Fn(&Cluster, &mut Config)) -> Next {
    let cluster = synchronous_pair();
    let mut config = Config::of(&cluster);
    configure(&cluster, &mut config);
    let (cluster, load) = Standing::of(cluster, config.clone(), record, &["--strict"]).dies();
    let since = cluster.sql(1, "postgres", "SELECT clock_timestamp()");
    load.longest_since();
    let pgmend = config.start();
    let wanted = format!("was interrupted; last journal record {record}");
    assert!(pgmend.log().contains(&wanted), "no `{wanted}` in\n{}", pgmend.log());
    Next { pgmend, cluster, load, since }
}

/// The report of the job once it has ended, however it did.
fn told_at_the_end(pgmend: &Pgmend) -> String {
    let mut told = String::new();
    wait_until("the switchover has ended", Duration::from_secs(60), || {
        told = pgmend.cli(&["job", "show", "1"]).all();
        !told.contains("running")
    });
    told
}

#[test]
fn the_promise_of_a_pgmend_that_died_is_kept_by_the_next() {
    // The old primary comes back when the story lets it.
    let Next { pgmend, cluster, load, since } = killed_after("Follow", |cluster, config| {
        let waits = format!("until [ -e {}/rejoin ]; do sleep 0.05; done", cluster.folder().display());
        config.set("maintenance", &format!("after_switch_command = \"{waits}\""));
    });
    assert_eq!(cluster.sql(1, "postgres", "SHOW synchronous_standby_names"), "FIRST 1 (\"pgmend_0\")");
    // Not those of before, who wait although their pgmend is dead.
    let waiting =
        format!("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND backend_start > '{since}'");
    wait_until("the commits of all clients wait for the standby", Duration::from_secs(15), || {
        cluster.sql(1, "postgres", &waiting) == "4"
    });
    cluster.scratch.write("rejoin", "", "644");
    let told = told_at_the_end(&pgmend);
    assert!(told.contains("strict: commits waited until they were on a synchronous standby"), "{told}");
    load.goes_on();
    assert_cluster(&cluster, &pgmend, 1, 2);
    assert_eq!(cluster.sql(1, "postgres", "SHOW synchronous_standby_names"), "FIRST 1 (\"pgmend_0\")");
    load.close().assert_kept(&cluster, 1);
}

#[test]
fn the_wait_has_the_same_bound_in_the_next_pgmend() {
    let Next { pgmend, cluster, load, .. } = killed_after("Release", |_, config| {
        config.set("maintenance", "after_switch_command = \"sleep 4\"").set("maintenance", "strict_timeout = \"1s\"");
    });
    load.goes_on();
    let waited = load.longest_since();
    assert!(waited >= Duration::from_millis(900), "commits waited for the standby: {waited:?}");
    let told = told_at_the_end(&pgmend);
    assert!(told.contains("strict was given up: not enough standbys were synchronous within 1s"), "{told}");
    assert_cluster(&cluster, &pgmend, 1, 2);
    load.close().assert_kept(&cluster, 1);
}
