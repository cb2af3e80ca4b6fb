//! A primary that stays lost is replaced where that is safe; a standby that stays lost keeps no write waiting.

use crate::support::process::wait_until;
use crate::support::{Cluster, Config, Ledger, Pgmend};
use crate::switchover::{quick, trio};
use crate::switchover_sessions::script;
use std::time::Duration;

pub fn automatic(cluster: &Cluster) -> Config {
    let mut config = Config::of(cluster);
    config.set("maintenance", "automatic_failover = true");
    config.set("health", "health_check_max_retries = 1");
    config
}

pub fn synchronous(cluster: &Cluster, names: &str) {
    for id in 0..cluster.nodes.len() {
        cluster.sql(id, "postgres", &format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'"));
        cluster.sql(id, "postgres", "SELECT pg_reload_conf()");
    }
}

/// The daemon knows which standbys are synchronous.
pub fn wait_learnt(pgmend: &Pgmend) {
    wait_until("the names are learnt", Duration::from_secs(20), || {
        let text = std::fs::read_to_string(pgmend.config.folder().join("state/upkeep.json")).unwrap_or_default();
        text.contains("\"wanted\"")
    });
}

pub fn wait_primary(pgmend: &Pgmend, among: &[u64]) -> usize {
    let mut primary = None;
    wait_until("another node is the primary", Duration::from_secs(40), || {
        primary = pgmend.status().and_then(|s| s["primary"].as_u64()).filter(|p| among.contains(p));
        primary.is_some()
    });
    usize::try_from(primary.expect("one of them")).expect("a small number")
}

#[test]
fn of_a_lost_primary_to_the_most_advanced_standby() {
    let cluster = trio();
    quick(&cluster);
    synchronous(&cluster, "ANY 1 (pgmend_1, pgmend_2)");
    let pgmend = automatic(&cluster).start();
    let load = Ledger::start(&cluster, 0, &pgmend.door(), 4);
    wait_learnt(&pgmend);
    cluster.kill9(0);
    let to = wait_primary(&pgmend, &[1, 2]);
    load.goes_on();
    println!("node {to} was promoted; the longest transaction was {:?}", load.longest_since());
    let other = 3 - to;
    cluster.wait_streaming(other);
    wait_until("the other one is synchronous", Duration::from_secs(20), || {
        cluster.sql(to, "postgres", "SHOW synchronous_standby_names").contains(&format!("pgmend_{other}"))
    });
    // Somebody starts the lost one: it is read-only, and nobody is sent there.
    cluster.start(0);
    assert_eq!(cluster.sql(0, "postgres", "SELECT pg_is_in_recovery()"), "t", "armed");
    load.goes_on();
    assert_eq!(pgmend.node_status(0), "down");
    cluster.stop(0);
    pgmend.cli(&["recover", "0", "--accept-loss"]).must();
    pgmend.wait_node(0, "up");
    load.goes_on();
    load.close().assert_kept(&cluster, to);
}

#[test]
fn not_where_an_operator_has_disabled_it() {
    let cluster = Cluster::pair();
    quick(&cluster);
    let pgmend = automatic(&cluster).start();
    wait_learnt(&pgmend);
    pgmend.cli(&["failover", "disable"]).must();
    cluster.kill9(0);
    pgmend.wait_node(0, "down");
    // Long enough for a guard that looks each second: a failover takes three.
    let now_s = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    wait_until("it has been down for a while", Duration::from_secs(20), || {
        assert!(!pgmend.cli(&["jobs"]).all().contains("failover"), "{}", pgmend.log());
        let since = pgmend.status().and_then(|s| s["nodes"][0]["changed_at_s"].as_u64());
        since.is_some_and(|at| now_s() >= at + 6)
    });
    assert_eq!(cluster.sql(1, "postgres", "SELECT pg_is_in_recovery()"), "t");
    pgmend.cli(&["failover", "enable"]).must();
    assert_eq!(wait_primary(&pgmend, &[1]), 1);
    let told = pgmend.cli(&["jobs"]).must().out;
    assert!(told.contains("failover"), "{told}");
    pgmend.sql("SELECT 1").must();
}

#[test]
fn a_lost_standby_keeps_no_write_waiting_and_is_not_promoted_afterwards() {
    let cluster = Cluster::pair();
    quick(&cluster);
    synchronous(&cluster, "pgmend_1");
    let pgmend = automatic(&cluster).start();
    let load = Ledger::start(&cluster, 0, &pgmend.door(), 4);
    wait_learnt(&pgmend);
    cluster.kill9(1);
    pgmend.wait_node(1, "down");
    load.goes_on();
    assert_eq!(cluster.sql(0, "postgres", "SHOW synchronous_standby_names"), "");
    // It lacks what was acknowledged since: when the primary is lost now, it must not take its place.
    cluster.stop(0);
    cluster.start(1);
    pgmend.cli(&["attach", "1"]).must();
    pgmend.wait_node(1, "up");
    wait_until("the failover is refused", Duration::from_secs(40), || pgmend.log().contains("nobody is promoted"));
    assert_eq!(cluster.sql(1, "postgres", "SELECT pg_is_in_recovery()"), "t");
    cluster.start(0);
    load.goes_on();
    wait_until("it is synchronous again", Duration::from_secs(40), || {
        cluster.sql(0, "postgres", "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") == "1"
    });
    load.close().assert_kept(&cluster, 0);
}

/// Clients that wait for the new primary speak in the moment in which they get it.
#[test]
fn who_listens_hears_once_what_is_said_right_after_it() {
    let cluster = Cluster::pair();
    quick(&cluster);
    let pgmend = automatic(&cluster).start();
    wait_learnt(&pgmend);
    let text = r#"
import os
heard, said = [], []
ear = connect()
ear.add_notify_handler(lambda n: heard.append(n.payload))
ear.execute("LISTEN news")
until("the listener is not bound", lambda: not connect().execute("SHOW PINS").fetchall())
mouths = [connect() for _ in range(8)]
def has_heard(words): ear.execute("SELECT 1"); return set(words) <= set(heard)
for n, mouth in enumerate(mouths): mouth.execute(f"NOTIFY news, 'before {n}'")
until("all is heard before", lambda: has_heard([f"before {n}" for n in range(8)]))
os.kill(PID, 9)
def say(n, mouth):
    for tried in range(4000):
        word = f"after {n} {tried}"
        try:
            # A server whose postmaster is dead may still say something: to nobody.
            port = mouth.execute(f"SELECT pg_notify('news', '{word}'), inet_server_port()").fetchone()[1]
            if port == NEXT: return said.append(word)
        except psycopg.Error:
            if mouth.closed: mouth = connect()
            time.sleep(0.01)
speakers = [threading.Thread(target=say, args=(n, mouth)) for n, mouth in enumerate(mouths)]
for one in speakers: one.start()
for one in speakers: one.join()
assert len(said) == 8, said
until("all is heard after", lambda: has_heard(said))
assert len(heard) == len(set(heard)), heard
print(said)
"#;
    let text = text.replace("PID", &cluster.pid(0).expect("it runs").to_string());
    script(&pgmend, &text.replace("NEXT", &cluster.nodes[1].port.to_string()));
    assert_eq!(wait_primary(&pgmend, &[1]), 1);
    assert!(!pgmend.cli(&["job", "show", "1"]).must().out.contains("may be missed"));
}
