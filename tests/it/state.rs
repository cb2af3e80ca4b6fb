//! What a client's session is made of, in transaction pooling: settings go with the client, anything else binds it to its
//! server, and nothing reaches the next client.

use crate::support::process::wait_until;
use crate::support::{Cluster, Config};
use std::time::Duration;

/// Two clients on two servers that change hands at every transaction: whoever asks next gets the other's.
const SWAP: &str = r#"
def swap(*clients):
    # While all of them are in a transaction the servers are dealt out anew.
    for c in clients: c.execute("BEGIN")
    for c in reversed(clients): c.execute("COMMIT")
value = lambda c, sql, *a: c.execute(sql, *a).fetchone()[0]
looker = connect("application_name=looker"); looker.prepare_threshold = None
def pins(wanted):
    # The client has its answer before pgmend has asked what is left.
    for _ in range(100):
        got = [row[4] for row in looker.execute("SHOW PINS").fetchall()]
        if got == wanted: return
        time.sleep(0.05)
    raise SystemExit(f"pins are {got}, not {wanted}")
"#;

fn story(setup: &str, size: u32, script: &str) {
    let cluster = Cluster::single();
    if !setup.is_empty() {
        cluster.sql(0, "postgres", setup);
    }
    let mut config = Config::of(&cluster);
    config.set("pool", &format!("default_pool_size = {size}"));
    config.start().psycopg("", &format!("{SWAP}{script}"));
}

#[test]
fn settings_go_with_the_client_and_reach_nobody_else() {
    story(
        "CREATE ROLE bob; CREATE TABLE t (x int)",
        1,
        r#"
a, b = connect("options='-c work_mem=3MB'"), connect()
plain = value(b, "SHOW work_mem")
a.execute("SET work_mem = '7MB'")
a.execute("SET lc_monetary = 'C'")
a.execute("SET app.tenant = 'a''s'")
a.execute("SET ROLE bob")
a.execute("BEGIN; SET LOCAL statement_timeout = '77s'; COMMIT")
for _ in range(3):
    assert value(b, "SHOW work_mem") == plain
    assert value(b, "SELECT coalesce(current_setting('app.tenant', true), '')") == ""
    assert value(b, "SELECT current_user") != "bob"
    assert value(b, "SHOW statement_timeout") == "0"
    assert value(a, "SHOW work_mem") == "7MB"
    assert value(a, "SELECT current_setting('app.tenant')") == "a's"
    assert value(a, "SELECT current_user") == "bob"
a.execute("RESET ROLE")
a.execute("SELECT set_config(%s, %s, false)", ("app.other", "x.y"))
assert value(b, "SELECT coalesce(current_setting('app.other', true), '')") == ""
assert value(a, "SELECT current_setting('app.other')") == "x.y"
assert value(a, "SELECT current_user") != "bob"
# What is reset goes back to what was given at startup.
a.execute("RESET work_mem")
assert value(b, "SHOW work_mem") == plain
assert value(a, "SHOW work_mem") == "3MB"
# What is rolled back was never set.
a.execute("BEGIN"); a.execute("SET work_mem = '9MB'"); a.execute("ROLLBACK")
assert value(b, "SHOW work_mem") == plain
assert value(a, "SHOW work_mem") == "3MB"
a.execute("DISCARD ALL")
assert value(b, "SHOW work_mem") == plain
assert value(a, "SELECT coalesce(current_setting('app.tenant', true), '')") == ""
assert value(a, "SHOW work_mem") == "3MB"
"#,
    );
}

#[test]
fn what_functions_and_triggers_set_is_found_out() {
    story(
        "CREATE TABLE t (x int); CREATE TABLE u (x int); \
         CREATE FUNCTION login(who text) RETURNS void LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM set_config('app.tenant', who, false); END $$; \
         CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN SET app.touched = 'yes'; RETURN NEW; END $$; \
         CREATE TRIGGER touch BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION touch()",
        1,
        r#"
a, b = connect(), connect()
a.execute("SELECT login('alice')")
assert value(b, "SELECT coalesce(current_setting('app.tenant', true), '')") == ""
assert value(a, "SELECT current_setting('app.tenant')") == "alice"
b.execute("INSERT INTO t VALUES (1)")
assert value(a, "SELECT coalesce(current_setting('app.touched', true), '')") == ""
assert value(b, "SELECT current_setting('app.touched')") == "yes"
assert value(b, "SELECT coalesce(current_setting('app.tenant', true), '')") == ""
"#,
    );
}

#[test]
fn what_cannot_be_carried_binds_the_client_for_as_long_as_it_lasts() {
    story(
        "",
        2,
        r#"
a, b = connect("application_name=a"), connect("application_name=b")
for make, test, end, why in [
    ("CREATE TEMP TABLE tt (x int)", "SELECT count(*) FROM tt", "DROP TABLE tt", "temporary object tt"),
    ("SELECT pg_advisory_lock(7)", "SELECT 0 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
     "SELECT pg_advisory_unlock(7)", "advisory lock"),
    ("DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT 0", "FETCH FIRST c", "CLOSE c", "cursor c"),
    ("PREPARE p AS SELECT 0", "EXECUTE p", "DEALLOCATE p", "prepared statement p"),
]:
    a.execute(make)
    pins([why])
    pid = value(a, "SELECT pg_backend_pid()")
    for _ in range(3):
        swap(a, b)
        assert value(a, "SELECT pg_backend_pid()") == pid
        assert value(b, "SELECT pg_backend_pid()") != pid, make
        assert value(a, test) == 0, make
    a.execute(end)
    pins([])
    swap(a, b)
# The bound client leaves: its server is reset before the next one gets it.
a.execute("CREATE TEMP TABLE tt (x int); SELECT pg_advisory_lock(8)")
a.close()
pins([])
for _ in range(4):
    swap(b, connect())
    assert value(b, "SELECT to_regclass('tt') IS NULL")
    assert value(b, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0
"#,
    );
}

#[test]
fn listeners_in_transaction_pooling_share_one_connection_and_miss_nothing() {
    story(
        "",
        2,
        r#"
a, b, c = connect(), connect(), connect()
heard = {}
def listen(name, conn, many):
    # While it listens, and while it is being taken over, others go on notifying.
    heard[name] = []
    for n in conn.notifies():
        heard[name].append(n.payload)
        if n.payload == "last": return
teller = connect()
stop = threading.Event()
def tell():
    n = 0
    while not stop.is_set():
        teller.execute(f"NOTIFY news, '{n}'"); n += 1
    teller.execute("NOTIFY news, 'last'")
t = threading.Thread(target=tell); t.start()
for conn in (a, b):
    conn.execute("LISTEN news")
threads = [threading.Thread(target=listen, args=(n, conn, 50)) for n, conn in (("a", a), ("b", b))]
[x.start() for x in threads]
time.sleep(1)
stop.set(); t.join(); [x.join(20) for x in threads]
assert not any(x.is_alive() for x in threads), {k: v[-3:] for k, v in heard.items()}
for name, got in heard.items():
    numbers = [int(x) for x in got[:-1]]
    assert len(numbers) > 20 and numbers == list(range(numbers[0], numbers[-1] + 1)), (name, numbers[:5], numbers[-5:])
# Nobody is bound, and both servers serve others.
pins([])
swap(teller, c)
assert value(c, "SELECT count(*) FROM pg_stat_activity WHERE query ~ '^(UN)?LISTEN'") <= 2
# More channels, and fewer.
def drained(conn):
    return [(n.channel, n.payload) for n in got(conn)]
def got(conn):
    # psycopg 3.1 of Debian has no time limit here: a last message ends it.
    teller.execute("NOTIFY fin, 'fin'")
    for n in conn.notifies():
        if n.channel == "fin": return
        yield n
a.execute("LISTEN fin"); a.execute('LISTEN "Other"')
b.execute("LISTEN fin")
teller.execute("NOTIFY \"Other\", 'x'; NOTIFY news, 'y'")
assert drained(a) == [("Other", "x"), ("news", "y")]
assert drained(b)[-1] == ("news", "y")
a.execute("UNLISTEN news")
a.execute("BEGIN; UNLISTEN fin; ROLLBACK")
teller.execute("NOTIFY news, 'z'")
assert [x for x in drained(a) if x[0] != "fin"] == [], "unlistened"
a.execute("UNLISTEN *")
# Between channels the order is that of the server, also for a client that has just begun to listen to one of them.
counter = iter(range(10**6))
stop.clear()
def count():
    while not stop.is_set():
        n = next(counter)
        teller.execute(f"NOTIFY c{n % 7}, '{n}'")
t = threading.Thread(target=count); t.start()
order = []
c.add_notify_handler(lambda n: order.append((n.channel, int(n.payload))))
for n in range(7):
    c.execute(f"LISTEN c{n}")
    since = len(order)
    while len(order) < since + 20: c.execute("SELECT 1")
stop.set(); t.join()
last = next(counter) - 1
teller.execute(f"NOTIFY c6, '{last + 1}'")
while order[-1][1] <= last: c.execute("SELECT 1")
numbers = [n for _, n in order]
for n in range(7):
    of_it = [number for channel, number in order if channel == f"c{n}" and number <= last]
    assert of_it == list(range(of_it[0], last + 1, 7)), ("lost or twice", n, of_it)
assert numbers == sorted(numbers), "turned"
# Who is bound to a server hears what the shared connection hears.
seen = []
c.execute("CREATE TEMP TABLE binds (x int)")
pins(["temporary object binds"])
teller.execute("NOTIFY c3, '-1'")
while order[-1][1] != -1: c.execute("SELECT 1")
c.execute("DROP TABLE binds")
pins([])
# A client that notifies itself.
seen = []
b.add_notify_handler(lambda n: seen.append(n.payload))
b.execute("NOTIFY news, 'self'")
for _ in range(100):
    if "self" in seen: break
    time.sleep(0.02); b.execute("SELECT 1")
assert "self" in seen
"#,
    );
}

#[test]
fn listeners_survive_a_restart_of_the_server() {
    let cluster = Cluster::single();
    let pgmend = Config::of(&cluster).start();
    let pg_ctl = crate::support::bin("pg_ctl");
    let restart = format!("{:?}, 'restart', '-w', '-m', 'fast', '-D', {:?}", pg_ctl, cluster.nodes[0].data);
    let script = r#"
import subprocess
a = connect()
seen = []
a.add_notify_handler(lambda n: seen.append(n.payload))
a.execute("LISTEN news")
def until(word):
    for _ in range(200):
        if word in seen: return
        time.sleep(0.05); a.execute("SELECT 1")
    raise SystemExit(f"not heard: {word}")
a.execute("NOTIFY news, 'before'"); until("before")
subprocess.run([RESTART], check=True, stdout=subprocess.DEVNULL)
# The listener finds the server again by itself; a notification that is sent before has nobody to hear it.
for n in range(100):
    a.execute(f"NOTIFY news, 'after'")
    if "after" in seen: break
    time.sleep(0.1)
until("after")
"#;
    pgmend.psycopg("", &script.replace("RESTART", &restart));
}

#[test]
fn too_many_bound_clients_are_refused() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set("pool", "max_pins = 1");
    config.start().psycopg(
        "",
        r#"
a, b, c = connect(), connect(), connect()
a.execute("CREATE TEMP TABLE t (x int)")
# The client has its answer before pgmend has asked what is left.
c.prepare_threshold = None
while not c.execute("SHOW PINS").fetchall(): time.sleep(0.02)
try:
    b.execute("CREATE TEMP TABLE t (x int)")
    b.execute("SELECT 1")
    raise SystemExit("b was not refused")
except psycopg.OperationalError as e:
    assert "max_pins" in str(e) or "closed" in str(e), e
assert c.execute("SELECT 1").fetchone()[0] == 1
assert a.execute("SELECT count(*) FROM t").fetchone()[0] == 0
"#,
    );
}

#[test]
fn a_text_keeps_the_meaning_that_it_had_when_it_was_prepared() {
    story(
        "",
        1,
        r#"
a, b = connect("options='-c TimeZone=Asia/Tokyo'"), connect("options='-c TimeZone=UTC'")
sql = "SELECT extract(epoch from '2020-01-01 00:00'::timestamptz)::int"
tokyo, utc = 1577804400, 1577836800
for _ in range(3):
    assert a.execute(sql, prepare=True).fetchone()[0] == tokyo
    assert b.execute(sql, prepare=True).fetchone()[0] == utc
# PostgreSQL fixes the literal at Parse: also for a client that changes its zone afterwards, on a server of another mind.
a.execute("SET TimeZone = 'UTC'")
b.execute("DEALLOCATE ALL")
assert a.execute(sql, prepare=True).fetchone()[0] == tokyo
assert value(a, "SHOW TimeZone") == "UTC"
assert b.execute("SELECT 1").fetchone()[0] == 1
"#,
    );
}

#[test]
fn prepared_statements_are_evicted_deallocated_and_prepared_again() {
    let cluster = Cluster::single();
    cluster.sql(0, "postgres", "CREATE TABLE t (x int); INSERT INTO t VALUES (1)");
    let mut config = Config::of(&cluster);
    config.set("pool", "default_pool_size = 1").set("pool", "max_prepared_statements = 3");
    config.start().psycopg(
        "",
        r#"
a, b = connect(), connect()
count = lambda c: c.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()[0]
for _ in range(3):
    for n in range(8):
        assert a.execute(f"SELECT {n} + 1", prepare=True).fetchone()[0] == n + 1
        assert b.execute(f"SELECT {n} + 1", prepare=True).fetchone()[0] == n + 1
    assert count(b) <= 4, count(b)
# Many in one batch: none that is needed goes.
with a.pipeline():
    got = [a.execute(f"SELECT {n} + 100", prepare=True) for n in range(8)]
assert [g.fetchone()[0] for g in got] == [n + 100 for n in range(8)]
# psycopg deallocates by SQL what it prepared by the protocol.
a.prepared_max = 2
for n in range(8):
    a.execute(f"SELECT {n} + 200", prepare=True)
assert b.execute("SELECT 0 + 200", prepare=True).fetchone()[0] == 200
# A result type that changes is one error at most, as with PostgreSQL itself, and none for who prepares afterwards.
assert a.execute("SELECT * FROM t", prepare=True).fetchone() == (1,)
b.execute("ALTER TABLE t ADD y int DEFAULT 2")
c = connect()
assert c.execute("SELECT * FROM t", prepare=True).fetchone() == (1, 2)
try:
    a.execute("SELECT * FROM t", prepare=True)
except psycopg.errors.FeatureNotSupported:
    pass
assert a.execute("SELECT * FROM t", prepare=True).fetchone() == (1, 2)
# A statement that cannot be prepared is not remembered as if it could.
for _ in range(2):
    try:
        a.execute("SELECT * FROM missing", prepare=True)
        raise SystemExit("no error")
    except psycopg.errors.UndefinedTable:
        pass
b.execute("CREATE TABLE missing AS SELECT 5 AS x")
assert a.execute("SELECT * FROM missing", prepare=True).fetchone()[0] == 5
"#,
    );
}

#[test]
fn statement_pooling_refuses_transaction_blocks() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set("pool", "mode = \"statement\"");
    config.start().psycopg(
        "",
        r#"
a = connect()
assert a.execute("SELECT 1").fetchone()[0] == 1
try:
    a.execute("BEGIN")
    raise SystemExit("BEGIN was let through")
except psycopg.OperationalError as e:
    assert "statement pooling" in str(e), e
assert connect().execute("SELECT 2").fetchone()[0] == 2
"#,
    );
}

#[test]
fn in_session_pooling_the_process_id_is_the_servers() {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set("pool", "mode = \"session\"");
    config.start().psycopg(
        "",
        r#"
a, b = connect(), connect()
for c in (a, b):
    assert c.execute("SELECT pg_backend_pid()").fetchone()[0] == c.info.backend_pid
assert a.execute("SHOW work_mem").fetchone()[0]
# A cancel by that key reaches its own query.
running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(20)' AND state = 'active'"
def cancel():
    while b.execute(running).fetchone()[0] == 0: pass
    a.cancel()
t = threading.Thread(target=cancel); t.start()
try:
    a.execute("SELECT pg_sleep(20)")
    raise SystemExit("not cancelled")
except psycopg.errors.QueryCanceled:
    pass
t.join()
"#,
    );
}

#[test]
fn the_query_of_a_client_that_vanished_is_cancelled() {
    let cluster = Cluster::single();
    for mode in ["transaction", "session"] {
        let mut config = Config::of(&cluster);
        config.set("pool", &format!("mode = \"{mode}\""));
        let pgmend = config.start();
        pgmend.psycopg(
            "",
            r#"
import os, socket
a = connect()
running = "SELECT count(*) FROM pg_stat_activity WHERE query = %s AND state = 'active'"
orphan = "SELECT pg_sleep(60) /* orphan */"
pid = os.fork()
if pid == 0:
    connect().execute(orphan)
while a.execute(running, (orphan,)).fetchone()[0] == 0: pass
os.kill(pid, 9)
os.waitpid(pid, 0)
"#,
        );
        let running = "SELECT count(*) FROM pg_stat_activity WHERE query ~ 'orphan' AND state = 'active' AND pid <> pg_backend_pid()";
        wait_until("the query is cancelled", Duration::from_secs(20), || cluster.sql(0, "postgres", running) == "0");
        assert!(pgmend.stop("-TERM"));
    }
}

/// What must hold for shared texts, named or not: by `how` the driver sends them.
fn sharing(how: &str) {
    let cluster = Cluster::single();
    cluster.sql(
        0,
        "postgres",
        "CREATE TABLE t (x int); INSERT INTO t VALUES (1); CREATE SCHEMA s; CREATE TABLE s.t (x int); \
         INSERT INTO s.t VALUES (2)",
    );
    let mut config = Config::of(&cluster);
    config.set("pool", "default_pool_size = 1").set("pool", "share_unnamed_statements = true");
    let script = r#"
a, b = connect(), connect()
for c in (a, b): c.prepare_threshold = None if PREPARE is None else 5
# Binary results make psycopg use the extended protocol also without parameters.
one = lambda c, sql, *args: c.execute(sql, args or None, prepare=PREPARE, binary=True).fetchone()[0]
# The same text of two clients is analysed once.
for c in (a, b, a, b):
    assert one(c, "SELECT 41 + 1") == 42
assert one(a, "SELECT count(*) FROM pg_prepared_statements WHERE statement = 'SELECT 41 + 1'") == 1
# A moment is the moment of each client's own Parse.
first = one(a, "SELECT 'now'::timestamptz")
time.sleep(0.01)
assert one(b, "SELECT 'now'::timestamptz") > first
# Another search_path, another table; a temporary table hides it for its owner only.
b.execute("SET search_path = s")
for _ in range(2):
    assert one(a, "SELECT x FROM t") == 1
    assert one(b, "SELECT x FROM t") == 2
b.execute("RESET search_path")
assert one(b, "SELECT x FROM t") == 1
b.execute("CREATE TEMP TABLE t AS SELECT 3 AS x")
assert one(b, "SELECT x FROM t") == 3
b.execute("DROP TABLE pg_temp.t")
assert one(b, "SELECT x FROM t") == 1
assert one(a, "SELECT x FROM t") == 1
# Who comes after a change of the table gets what it returns now.
assert len(a.execute("SELECT * FROM t", prepare=PREPARE, binary=True).fetchone()) == 1
b.execute("ALTER TABLE t ADD y int")
fresh = connect()
assert len(fresh.execute("SELECT * FROM t", prepare=PREPARE, binary=True).fetchone()) == 2
# Types of parameters belong to the text.
for c in (a, b):
    assert one(c, "SELECT pg_typeof(%s::int)::text", 5) == "integer"
    assert c.execute("SELECT %s || ''", ("x",), prepare=PREPARE).fetchone()[0] == "x"
# An error leaves no statement behind that is not there.
for _ in range(2):
    try:
        one(a, "SELECT nothing FROM nowhere")
        raise SystemExit("no error")
    except psycopg.errors.UndefinedTable:
        pass
with a.transaction():
    assert one(a, "SELECT 41 + 1") == 42
try:
    with a.transaction():
        try:
            one(a, "SELECT 1 / 0")
        except psycopg.errors.DivisionByZero:
            pass
        one(a, "SELECT 41 + 1")
    raise SystemExit("a failed transaction went on")
except psycopg.errors.InFailedSqlTransaction:
    pass
assert one(a, "SELECT 41 + 1") == 42
"#;
    config.start().psycopg("", &format!("PREPARE = {how}\n{script}"));
}

#[test]
fn unnamed_statements_are_shared_safely() {
    sharing("None");
}

#[test]
fn named_statements_are_shared_safely() {
    sharing("True");
}
