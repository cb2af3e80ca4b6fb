//! What sessions keep when the primary moves: in session pooling they are moved with it, what cannot be moved is named, and
//! whoever listens misses nothing.

use crate::support::{Cluster, Config, Load, Pgmend};
use crate::switchover::{assert_cluster, quick};

/// A script with clients; `pgmend(...)` gives the output and the exit code of an operator's command, `timeout` how long a drain
/// is tried.
pub fn script(pgmend: &Pgmend, text: &str) {
    let head = format!(
        "import subprocess\n\
         def pgmend(*words):\n    ran = subprocess.run(['{}', '--socket', '{}', *words], capture_output=True, text=True)\n    \
         return ran.stdout + ran.stderr, ran.returncode\n\
         def until(what, condition):\n    for _ in range(400):\n        if condition(): return\n        time.sleep(0.05)\n    \
         raise SystemExit('in vain: ' + what)\n",
        pgmend.binary.display(),
        pgmend.config.folder().join("pgmend.sock").display()
    );
    pgmend.psycopg("", &(head + text));
}

fn started(mode: &str) -> (Cluster, Pgmend) {
    started_with(mode, true)
}

fn started_with(mode: &str, prewarm: bool) -> (Cluster, Pgmend) {
    let cluster = Cluster::pair();
    quick(&cluster);
    cluster.pgbench_tables("postgres", 1);
    let mut config = Config::of(&cluster);
    config.set("pool", &format!("mode = \"{mode}\""));
    config.set("maintenance", "drain_timeout = \"700ms\"").set("maintenance", "drain_attempts = 1");
    config.set("maintenance", &format!("prewarm = {prewarm}"));
    let pgmend = config.start();
    (cluster, pgmend)
}

/// Moved with all that can be carried; a temporary table keeps its client, who is named, and nobody is hurt.
const MOVES: &str = r#"
a, b = connect("application_name=mover"), connect("application_name=stayer")
a.execute("SET statement_timeout = '77s'"); a.execute("SET my.own = 'yes'")
a.prepare_threshold = 0
assert a.execute("SELECT %s::int + 1", (1,)).fetchone()[0] == 2
b.execute("CREATE TEMP TABLE mine AS SELECT 42 AS n")
until("b is bound", lambda: b.info.transaction_status == 0)
told, code = pgmend("switchover")
assert code != 0 and "temporary object mine" in told, told
assert b.execute("SELECT n FROM mine").fetchone()[0] == 42
assert a.execute("SHOW my.own").fetchone()[0] == "yes"
b.execute("DROP TABLE mine")
told, code = pgmend("switchover")
assert code == 0 and "node 1 is the primary" in told, told
assert a.execute("SELECT current_setting('my.own') || current_setting('statement_timeout')").fetchone()[0] == "yes77s"
assert a.execute("SELECT %s::int + 1", (1,)).fetchone()[0] == 2
assert a.execute("SELECT inet_server_port() = PORT").fetchone()[0], "it is served by the new primary"
b.execute("CREATE TABLE after_the_switch (n int)")
a.execute("INSERT INTO after_the_switch VALUES (1)")
"#;

fn moves(mode: &str, pgbench: &[&str]) {
    let (cluster, pgmend) = started(mode);
    let load = Load::start_with(&pgmend.door(), cluster.folder(), 4, pgbench);
    script(&pgmend, &MOVES.replace("PORT", &cluster.nodes[1].port.to_string()));
    load.goes_on();
    assert_cluster(&cluster, &pgmend, 1, 2);
    let told = pgmend.cli(&["switchover"]).must().all();
    println!("{told}");
    load.goes_on();
    println!("the longest transaction was {:?}", load.longest());
    load.finish();
    assert_cluster(&cluster, &pgmend, 0, 3);
}

#[test]
fn in_session_pooling_they_move_with_the_primary_and_a_temporary_table_is_named() {
    moves("session", &["-M", "prepared"]);
}

#[test]
fn in_transaction_pooling_too() {
    moves("transaction", &["-M", "prepared"]);
}

/// One client numbers what it says, the other writes down what it hears, across two switchovers.
fn misses_nothing(prewarm: bool) {
    let (cluster, pgmend) = started_with("transaction", prewarm);
    script(
        &pgmend,
        r#"
heard, stop, said = [], threading.Event(), [0]
ear = connect()
ear.add_notify_handler(lambda n: heard.append(int(n.payload)))
ear.execute("LISTEN news")
until("the listener is not bound", lambda: not connect().execute("SHOW PINS").fetchall())
def say():
    mouth = connect()
    while not stop.is_set():
        said[0] += 1
        mouth.execute(f"NOTIFY news, '{said[0]}'")
        time.sleep(0.001)
mouth = threading.Thread(target=say); mouth.start()
def listen(upto):
    while not heard or heard[-1] < upto: ear.execute("SELECT 1"); time.sleep(0.002)
listen(50)
for node in (1, 0):
    told, code = pgmend("switchover")
    assert code == 0 and f"node {node} is the primary" in told, told
    listen(said[0] + 50)
stop.set(); mouth.join()
listen(said[0])
missed = sorted(set(range(1, said[0] + 1)) - set(heard))
assert not missed, f"missed {missed} of {said[0]}"
assert heard == sorted(heard) and len(heard) == len(set(heard)), "once each, and in order"
print(said[0], "heard")
"#,
    );
    assert_cluster(&cluster, &pgmend, 0, 3);
}

#[test]
fn who_listens_misses_nothing() {
    misses_nothing(true);
}

#[test]
fn who_listens_misses_nothing_where_no_connections_are_opened_beforehand() {
    misses_nothing(false);
}

/// In session pooling a channel keeps its client's server: who listens is named, and the primary stays where it is.
#[test]
fn who_listens_in_session_pooling_is_named() {
    let (cluster, pgmend) = started("session");
    script(
        &pgmend,
        r#"
ear = connect("application_name=ear")
ear.execute("LISTEN news")
told, code = pgmend("switchover")
assert code != 0 and "channel news" in told and "postgres in postgres" in told, told
heard = []
ear.add_notify_handler(lambda n: heard.append(n.payload))
connect().execute("NOTIFY news, 'still'")
until("it still hears", lambda: ear.execute("SELECT 1") and heard == ["still"])
ear.execute("UNLISTEN *")
told, code = pgmend("switchover")
assert code == 0, told
"#,
    );
    assert_cluster(&cluster, &pgmend, 1, 2);
}
