//! PAUSE, RESUME, RECONNECT, KILL, DISABLE and ENABLE, under load: clients wait, nobody gets an error that was not ordered.

use crate::support::cluster::psql;
use crate::support::load::Door;
use crate::support::process::wait_until;
use crate::support::{Cluster, Config, Load, Pgmend};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(10);

/// Two databases with pgbench's tables, three workers, small pools.
fn two_databases() -> (Cluster, Pgmend) {
    let cluster = Cluster::single();
    cluster.sql(0, "postgres", "CREATE DATABASE other");
    for database in ["postgres", "other"] {
        cluster.pgbench_tables(database, 4);
    }
    let mut config = Config::of(&cluster);
    config.set("listen", "workers = 3").set("pool", "default_pool_size = 5");
    let pgmend = config.start();
    (cluster, pgmend)
}

fn door(pgmend: &Pgmend, database: &str) -> Door {
    Door { database: database.into(), ..pgmend.door() }
}

/// Process ids of the servers that work for clients of a database: whoever ever touched pgbench's tables.
fn servers(cluster: &Cluster, database: &str) -> Vec<String> {
    let sql = format!(
        "SELECT pid FROM pg_stat_activity WHERE datname = '{database}' AND application_name IN ('pgbench', 'psql') \
         AND pid <> pg_backend_pid() ORDER BY 1"
    );
    cluster.sql(0, "template1", &sql).lines().map(str::to_owned).collect()
}

#[test]
fn pause_empties_a_database_and_resume_goes_on_without_an_error() {
    let (cluster, pgmend) = two_databases();
    let load = Load::start(&door(&pgmend, "postgres"), cluster.folder(), 16);
    // More clients than servers: its workers are told all the time that somebody waits, and attend to the gate all the same.
    let other = Load::start(&door(&pgmend, "other"), cluster.folder(), 16);
    for round in 0..20 {
        let whole = round % 5 == 4;
        let name: &[&str] = if whole { &[] } else { &["postgres"] };
        let paused = pgmend.cli(&[&["pause"], name].concat()).must().out;
        assert!(paused.contains("is paused") || paused.contains("are paused"), "{paused}");
        assert_eq!(servers(&cluster, "postgres"), [""; 0], "after {paused}");
        assert_eq!(servers(&cluster, "other").is_empty(), whole);
        pgmend.cli(&[&["resume"], name].concat()).must();
        if whole {
            other.goes_on();
        }
    }
    pgmend.cli(&["pause", "postgres"]).must();
    assert!(pgmend.cli(&["status"]).must().out.contains("held: PAUSE of database postgres"));
    pgmend.cli(&["pause", "postgres"]).must_fail_saying("is held already");
    pgmend.cli(&["resume"]).must_fail_saying("held by another order");
    other.goes_on();
    assert_eq!(servers(&cluster, "postgres"), [""; 0]);
    pgmend.cli(&["resume", "postgres"]).must();
    pgmend.cli(&["resume", "postgres"]).must_fail_saying("not paused");
    load.goes_on();
    println!("longest wait with a pause of seconds: {:?}", load.longest());
    load.finish();
    other.finish();
}

#[test]
fn a_short_pause_is_a_short_wait() {
    let (cluster, pgmend) = two_databases();
    // What else the machine does may make a wait longer, and never shorter: the best of some tries tells.
    let waits: Vec<Duration> = (0..3)
        .map(|_| {
            let load = Load::start(&door(&pgmend, "postgres"), cluster.folder(), 16);
            let began = Instant::now();
            pgmend.cli(&["pause"]).must();
            pgmend.cli(&["resume"]).must();
            let took = began.elapsed();
            load.goes_on();
            let longest = load.longest();
            println!("two commands took {took:?}, the longest wait was {longest:?}");
            load.finish();
            longest.saturating_sub(took)
        })
        .collect();
    assert!(waits.iter().any(|wait| *wait < Duration::from_millis(500)), "{waits:?}");
}

#[test]
fn pause_waits_for_transactions_within_its_timeout() {
    let (_cluster, pgmend) = two_databases();
    pgmend.psycopg(
        "",
        &format!(
            r#"
import subprocess
def pgmend(*args): return subprocess.run(["{binary}", "--socket", "{socket}", *args], capture_output=True, text=True)
def start(*args): return subprocess.Popen(["{binary}", "--socket", "{socket}", *args], stdout=-1, stderr=-1, text=True)
c = connect()
c.execute("BEGIN"); c.execute("SELECT 1")
failed = pgmend("pause", "--timeout", "1")
assert failed.returncode == 1 and "1 idle in transaction" in failed.stderr, failed
assert "gate open" in pgmend("status").stdout
connect().execute("SELECT 1")
paused = start("pause", "--timeout", "30")
while "held: PAUSE" not in pgmend("status").stdout: pass
# The transaction under way goes on; a new one is held.
late = []
other = threading.Thread(target=lambda: late.append(connect().execute("SELECT 7").fetchone()))
other.start()
for _ in range(20): c.execute("SELECT 1")
assert paused.poll() is None and not late
c.execute("COMMIT")
out, err = paused.communicate(timeout=10)
assert paused.returncode == 0, (out, err)
assert not late
assert pgmend("resume").returncode == 0
other.join(10)
assert late == [(7,)], late
c.execute("SELECT 1")
"#,
            binary = pgmend.binary.display(),
            socket = pgmend.config.folder().join("pgmend.sock").display(),
        ),
    );
}

#[test]
fn who_is_held_too_long_is_told_and_a_pause_may_end_by_itself() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set("pool", "query_wait_timeout = \"1s\"");
    let pgmend = config.start();
    pgmend.sql("SELECT 1").must();
    pgmend.cli(&["pause", "postgres", "--at-most", "5"]).must();
    let began = Instant::now();
    pgmend.sql("SELECT 1").must_fail_saying("query_wait_timeout");
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    wait_until("the pause ends by itself", SOON, || pgmend.cli(&["status"]).out.contains("gate open"));
    pgmend.sql("SELECT 1").must();
}

#[test]
fn reconnect_replaces_every_server_and_nobody_notices() {
    let (cluster, pgmend) = two_databases();
    let load = Load::start(&door(&pgmend, "postgres"), cluster.folder(), 16);
    let other = Load::start(&door(&pgmend, "other"), cluster.folder(), 4);
    let (before, untouched) = (servers(&cluster, "postgres"), servers(&cluster, "other"));
    assert!(before.len() == 5 && !untouched.is_empty());
    pgmend.cli(&["reconnect", "postgres"]).must();
    wait_until("all servers are new", SOON, || {
        let now = servers(&cluster, "postgres");
        now.len() == 5 && now.iter().all(|pid| !before.contains(pid))
    });
    assert_eq!(servers(&cluster, "other"), untouched);
    pgmend.cli(&["reconnect"]).must();
    wait_until("these too", SOON, || servers(&cluster, "other").iter().all(|pid| !untouched.contains(pid)));
    load.goes_on();
    load.finish();
    other.finish();
}

#[test]
fn kill_ends_everybody_at_once_and_new_clients_wait() {
    let (cluster, pgmend) = two_databases();
    let other = Load::start(&door(&pgmend, "other"), cluster.folder(), 4);
    pgmend.psycopg(
        "",
        &format!(
            r#"
import subprocess
def pgmend(*args): return subprocess.run(["{binary}", "--socket", "{socket}", *args], capture_output=True, text=True)
idle, busy, inside = connect(), connect(), connect()
inside.execute("BEGIN"); inside.execute("SELECT 1")
ended = []
def long():
    try: busy.execute("SELECT pg_sleep(60)")
    except psycopg.Error as e: ended.append(str(e))
t = threading.Thread(target=long); t.start()
running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'"
looker = connect("dbname=template1")
while looker.execute(running).fetchone()[0] == 0: pass
killed = pgmend("kill", "postgres")
assert killed.returncode == 0, killed
t.join(5)
assert len(ended) == 1 and "administrator command (KILL)" in ended[0], ended
for c in (idle, inside):
    try: c.execute("SELECT 1"); assert False
    except psycopg.Error as e: assert "administrator command (KILL)" in str(e), e
late = []
sleeps = "SELECT count(*) FROM pg_stat_activity WHERE query ~ '^SELECT pg_sleep' AND state = 'active'"
def come():
    c = connect()
    # What was killed is cancelled on its server, which takes a moment.
    while c.execute(sleeps).fetchone()[0] > 0: pass
    late.append((0,))
other = threading.Thread(target=come)
other.start()
time.sleep(0.5)
assert not late
assert pgmend("resume", "postgres").returncode == 0
other.join(10)
assert late == [(0,)], late
"#,
            binary = pgmend.binary.display(),
            socket = pgmend.config.folder().join("pgmend.sock").display(),
        ),
    );
    other.goes_on();
    other.finish();
}

#[test]
fn a_disabled_database_takes_nobody_new_and_keeps_who_is_there() {
    let (cluster, pgmend) = two_databases();
    let load = Load::start(&door(&pgmend, "other"), cluster.folder(), 4);
    pgmend.cli(&["disable", "other"]).must();
    let try_other = || psql("127.0.0.1", pgmend.config.port, "postgres", "other", "SELECT 1");
    try_other().must_fail_saying("database \"other\" is disabled");
    pgmend.sql("SELECT 1").must();
    assert!(pgmend.cli(&["status"]).must().out.contains("disabled: other"));
    load.goes_on();
    pgmend.cli(&["enable", "other"]).must();
    try_other().must();
    load.finish();
}
