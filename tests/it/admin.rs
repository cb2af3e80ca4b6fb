//! Configuration, reload, and the daemon's own life.

use crate::support::pgmend::binary_for_postgres;
use crate::support::process::wait_until;
use crate::support::scratch::write_as_postgres;
use crate::support::{Cluster, Config, Ran, Scratch, as_postgres, run};
use std::time::Duration;

fn check(text: &str) -> Ran {
    let scratch = Scratch::new();
    let file = scratch.write("pgmend.toml", text, "644");
    run(as_postgres(binary_for_postgres(scratch.path())).arg("check").arg(file))
}

const NODE: &str = "[[node]]\nhost = \"127.0.0.1\"\nport = 5432\n";

#[test]
fn a_good_configuration_passes_the_check() {
    check(&format!("{NODE}[auth]\nmethod = \"trust\"\n[state]\ndirectory = \"state\"\n")).must();
}

#[test]
fn a_misspelt_key_is_named_with_file_line_and_the_nearest() {
    let ran = check(&format!("{NODE}[pool]\ndefault_pol_size = 5\n"));
    for words in ["pgmend.toml", "5", "default_pol_size", "default_pool_size"] {
        assert!(!ran.ok && ran.all().contains(words), "`{words}` in: {}", ran.all());
    }
}

#[test]
fn a_wrong_value_is_named_with_what_was_expected() {
    check(&format!("{NODE}[pool]\nmode = \"sesion\"\n")).must_fail_saying("mode");
    check(&format!("{NODE}[health]\nhealth_check_period = \"5 bananas\"\n")).must_fail_saying("health_check_period");
    check("[[node]]\nhost = \"127.0.0.1\"\nport = 543222\n").must_fail_saying("port");
}

#[test]
fn every_mistake_is_told_at_once() {
    let ran = check(&format!("{NODE}[pool]\nmod = \"session\"\n[helth]\nhealth_check_period = \"5s\"\n"));
    assert!(!ran.ok && ran.all().contains("mod") && ran.all().contains("helth"), "{}", ran.all());
}

#[test]
fn a_reload_with_an_error_changes_nothing() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set("pool", "default_pool_size = 3");
    let pgmend = config.start();
    let bad = config.text().replace("default_pool_size", "default_pol_size");
    write_as_postgres(&cluster.folder().join("pgmend.toml"), &bad, "644");
    pgmend.cli(&["reload"]).must_fail_saying("default_pol_size");
    pgmend.sql("SELECT 1").must();
    config.set("pool", "default_pool_size = 4").write();
    pgmend.cli(&["reload"]).must();
    pgmend.sql("SELECT 1").must();
}

#[test]
fn keys_that_need_a_restart_are_named_as_pending() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    let pgmend = config.start();
    config.set("listen", "backlog = 77").write();
    pgmend.cli(&["reload"]).must();
    let status = pgmend.cli(&["status", "--json"]).must().out;
    assert!(status.contains("backlog"), "pending_restart names it: {status}");
}

#[test]
fn a_signal_reloads() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    let pgmend = config.start();
    config.set("listen", "backlog = 78").write();
    crate::support::process::signal(pgmend.pid(), "-HUP");
    wait_until("the reload is seen", Duration::from_secs(10), || {
        pgmend.cli(&["status", "--json"]).out.contains("backlog")
    });
}

#[test]
fn a_second_daemon_on_the_same_state_is_refused() {
    let cluster = Cluster::single();
    let config = Config::of(&cluster);
    let first = config.start();
    let mut other = config.clone();
    other.set("listen", &format!("port = {}", crate::support::free_port()));
    let second = other.spawn();
    second.wait_end();
    assert!(
        first.log().contains(&first.pid().to_string()),
        "the refusal names the first one's process id: {}",
        first.log()
    );
    first.sql("SELECT 1").must();
}

#[test]
fn smart_stop_lets_transactions_end() {
    let cluster = Cluster::single();
    let pgmend = Config::of(&cluster).start();
    let door = pgmend.door();
    let sleeper = std::thread::spawn(move || {
        crate::support::cluster::psql(&door.host, door.port, &door.user, &door.database, "SELECT pg_sleep(2)")
    });
    let busy = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(2)%' AND pid <> pg_backend_pid()";
    wait_until("the query runs", Duration::from_secs(10), || cluster.sql(0, "postgres", busy) != "0");
    assert!(pgmend.stop("-TERM"));
    sleeper.join().expect("no panic").must();
}

#[test]
fn tools_fail_with_words_when_no_daemon_runs() {
    let scratch = Scratch::new();
    let socket = scratch.path().join("none.sock");
    let ran = run(as_postgres(binary_for_postgres(scratch.path())).arg("--socket").arg(socket).arg("status"));
    ran.must_fail_saying("none.sock");
}

#[test]
fn one_statement_asks_for_the_nodes_as_in_pgpool() {
    let cluster = Cluster::pair();
    let pgmend = Config::of(&cluster).start();
    let ran = pgmend.sql("SHOW POOL_NODES").must();
    let rows: Vec<&str> = ran.out.lines().collect();
    assert_eq!(rows.len(), 2, "{}", ran.out);
    assert!(rows[0].contains("|up|") && rows[0].contains("primary") && rows[1].contains("standby"), "{}", ran.out);
}
