//! What becomes of clients while the gate is held as in a recovery: each cell of the table in the manual's page on recovery.
//!
//! The order is given by `pgmend pause --drain`, which has a recovery's rules.

use crate::servers::python;
use crate::support::{Cluster, Config, Load, Pgmend};

/// `pgmend(…)` runs the command line; `drain()` begins to hold and gives what can be waited for; `held()` waits until the
/// daemon says that the gate is held. `ended(c, …)` reads what an idle client is told at its end.
const TOOLS: &str = r#"
import subprocess
BIN, SOCKET = sys.argv[3], sys.argv[4]
def pgmend(*args): return subprocess.run([BIN, "--socket", SOCKET, *args], capture_output=True, text=True)
def status(): return pgmend("status").stdout
class Drain:
    def __init__(self, timeout):
        self.process = subprocess.Popen([BIN, "--socket", SOCKET, "pause", "--drain", "--timeout", str(timeout)], stdout=-1, stderr=-1, text=True)
        until("the gate is held", lambda: "held: PAUSE" in status())
    def done(self):
        out, err = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, (out, err)
        until("the servers have gone", lambda: count("true") == 0)
    def failed(self):
        out, err = self.process.communicate(timeout=60)
        assert self.process.returncode == 1, (out, err)
        return err
    def waits(self): return self.process.poll() is None
def resume(): assert pgmend("resume").returncode == 0
def aside(work):
    class Aside:
        def run(self):
            try: self.value, self.error = work(), None
            except Exception as e: self.value, self.error = None, e
        def done(self):
            self.thread.join(20)
            assert not self.thread.is_alive(), "hangs"
            if self.error: raise self.error
            return self.value
        def waits(self): return self.thread.is_alive()
    a = Aside()
    a.thread = threading.Thread(target=a.run, daemon=True)
    a.thread.start()
    return a
def told(c):
    s = socket.socket(fileno=os.dup(c.fileno()))
    s.settimeout(20)
    data = b""
    while True:
        try: more = s.recv(65536)
        except ConnectionResetError: more = b""
        if not more: return data.decode(errors="replace")
        data += more
one = lambda c, sql, *a: c.execute(sql, *a).fetchone()[0]
AT_ONCE = ("SFATAL", "C57000", "Mconnection terminated due to online recovery",
    "Dchild connection forced to terminate due to client_idle_limit_in_recovery = -1")
REACHED = lambda n: ("SFATAL", "C57000", "Munable to read data",
    f"Dchild connection forced to terminate due to client_idle_limit_in_recovery:{n} is reached")
def says(c, words, least=0, most=9):
    began = time.time()
    text = told(c)
    took = time.time() - began
    assert all(w + "\0" in text for w in words), text
    assert least <= took <= most, took
"#;

fn story(settings: &[(&'static str, &str)], script: &str) -> (Cluster, Pgmend) {
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    for (section, line) in settings {
        config.set(section, line);
    }
    let pgmend = config.start();
    run(&cluster, &pgmend, script);
    (cluster, pgmend)
}

pub fn run(cluster: &Cluster, pgmend: &Pgmend, script: &str) {
    let straight = format!("host={} port={} user=postgres", cluster.folder().display(), cluster.nodes[0].port);
    let head = format!(
        "sys.argv += [{:?}, {:?}]\n{TOOLS}",
        pgmend.binary.display().to_string(),
        pgmend.config.folder().join("pgmend.sock").display().to_string()
    );
    python(pgmend, &straight, &format!("{head}{script}"));
}

pub const SESSION: (&str, &str) = ("pool", "mode = \"session\"");
pub const TRANSACTION: (&str, &str) = ("pool", "mode = \"transaction\"");

#[test]
fn a_session_goes_on_with_another_server_and_keeps_its_state() {
    story(
        &[SESSION, ("pool", "default_pool_size = 60")],
        r#"
straight.execute("CREATE TABLE t (id int, word text)")
c = connect("application_name=mover options='-c work_mem=5MB'")
c.prepare_threshold = 0
c.execute("SET TimeZone = 'Asia/Tokyo'"); c.execute("SET app.tenant = 'seven'"); c.execute("SET lock_timeout = '7s'")
c.execute("SELECT set_config(%s, %s, false)", ("app.other", "eight"))
for i in range(60): c.execute(f"INSERT INTO t SELECT %s, 'word {i}'", (i,))
before = one(c, "SELECT pg_backend_pid()")
names = one(c, "SELECT count(*) FROM pg_prepared_statements")
assert names > 50, names
idle = [connect() for _ in range(40)]
for other in idle: other.execute("SELECT 1")
for round in range(3):
    d = Drain(20)
    d.done()
    # It answers what needs no server, and waits with the rest.
    late = aside(lambda: one(c, "SELECT pg_backend_pid()"))
    time.sleep(0.3)
    assert late.waits()
    resume()
    now = late.done()
    assert now != before
    before = now
    assert one(c, "SHOW TimeZone") == "Asia/Tokyo"
    assert one(c, "SHOW app.tenant") == "seven" and one(c, "SHOW app.other") == "eight"
    assert one(c, "SHOW work_mem") == "5MB" and one(c, "SHOW lock_timeout") == "7s"
    assert one(c, "SHOW application_name") == "mover"
    assert one(c, "SELECT count(*) FROM pg_prepared_statements") >= names
    c.execute("INSERT INTO t SELECT %s, 'word 3'", (1000 + round,))
    # Its cancel key is the one that it was given.
    sleeping = aside(lambda: c.execute("SELECT pg_sleep(60)"))
    until("it sleeps", lambda: count("wait_event = 'PgSleep'") == 1)
    c.cancel()
    try: sleeping.done(); assert False
    except psycopg.errors.QueryCanceled: pass
assert straight.execute("SELECT count(*) FROM t WHERE word = 'word 3'").fetchone()[0] == 4
for other in idle: assert one(other, "SELECT 1") == 1
"#,
    );
}

#[test]
fn who_cannot_be_moved_is_named_and_waited_for() {
    story(
        &[SESSION, ("recovery", "client_idle_limit_in_recovery = 0")],
        r#"
straight.execute("CREATE TABLE t (id int)")
bound = {
    "temporary object mine": ["CREATE TEMP TABLE mine (a int)"],
    "temporary function f": ["CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'"],
    "advisory lock": ["SELECT pg_advisory_lock(7)"],
    "channel news": ["LISTEN news"],
    "cursor held": ["BEGIN", "DECLARE held CURSOR WITH HOLD FOR SELECT generate_series(1, 9)", "COMMIT"],
    "prepared statement byhand": ["PREPARE byhand AS SELECT 1"],
    "settings whose names are not known": ["SELECT set_config('a' || '.b', 'c', false)"],
}
clients = []
for reason, statements in bound.items():
    c = connect()
    for s in statements: c.execute(s)
    clients.append(c)
movable = connect()
movable.execute("SELECT 1")
d = Drain(2)
until("all are asked", lambda: all(reason in status() for reason in bound))
# They go on, since only so can they come to an end.
assert one(clients[0], "SELECT count(*) FROM mine") == 0
err = d.failed()
assert f"{len(bound)} not movable" in err and "temporary object mine" in err and "postgres in postgres" in err, err
assert one(movable, "SELECT 1") == 1
assert all(one(c, "SELECT 1") == 1 for c in clients), "they keep what they have"
# Who gets rid of what binds him is moved.
d = Drain(30)
until("all are asked", lambda: "channel news" in status())
for c, free in zip(clients, ["DROP TABLE mine", "DROP FUNCTION pg_temp.f()", "SELECT pg_advisory_unlock(7)", "UNLISTEN *", "CLOSE held",
        "DEALLOCATE byhand", "DISCARD ALL"]):
    time.sleep(0.02)
    assert d.waits()
    c.execute(free)
d.done()
resume()
assert all(one(c, "SELECT 1") == 1 for c in clients)
"#,
    );
}

#[test]
fn pinned_clients_of_transaction_pooling_are_named_too() {
    story(
        &[TRANSACTION, ("recovery", "client_idle_limit_in_recovery = 2")],
        r#"
pinned, other = connect(), connect()
pinned.execute("CREATE TEMP TABLE mine (a int)")
other.execute("SELECT 1")
d = Drain(20)
until("it is named", lambda: "temporary object mine" in status())
says(pinned, REACHED(2), 1, 6)
d.done()
late = aside(lambda: one(other, "SELECT 7"))
time.sleep(0.3)
assert late.waits()
resume()
assert late.done() == 7
"#,
    );
}

/// Transactions under way finish, whatever the limit; one that idles has a limit of its own.
fn transactions(mode: (&'static str, &'static str), limit: &'static str, clients: &'static str, last: u32) {
    let limit = format!("client_idle_limit_in_recovery = {limit}");
    let clients = format!("recovery_clients = \"{clients}\"");
    let settings = [
        mode,
        ("recovery", limit.as_str()),
        ("recovery", clients.as_str()),
        ("recovery", "recovery_idle_in_transaction_limit = \"3s\""),
    ];
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    for (section, line) in settings {
        config.set(section, line);
    }
    let pgmend = config.start();
    run(
        &cluster,
        &pgmend,
        &format!(
            r#"
idle, busy, running = connect(), connect(), connect()
straight.execute("CREATE TABLE t (id int)")
for c in (idle, busy):
    c.execute("BEGIN"); c.execute("INSERT INTO t VALUES (1)")
sleeping = aside(lambda: running.execute("SELECT pg_sleep(6)"))
until("it sleeps", lambda: count("wait_event = 'PgSleep'") == 1)
d = Drain(30)
until("it is named", lambda: "idle in transaction" in status() and "a statement runs" in status())
stop = time.time() + 7
def work():
    while time.time() < stop:
        busy.execute("INSERT INTO t VALUES (2)")
        time.sleep(0.05)
    busy.execute("COMMIT")
working = aside(work)
says(idle, ("SFATAL", "C57000"), {last} - 0.5, {last} + 3.5)
assert d.waits()
working.done()
sleeping.done()
d.done()
resume()
assert straight.execute("SELECT count(*) FROM t WHERE id = 1").fetchone()[0] == 1, "the idle one's is rolled back"
"#
        ),
    );
}

#[test]
fn transactions_of_transaction_pooling_finish_and_idle_ones_are_cut() {
    transactions(TRANSACTION, "0", "hold", 3);
}

#[test]
fn transactions_of_session_pooling_finish_and_idle_ones_are_cut() {
    transactions(SESSION, "0", "hold", 3);
}

#[test]
fn a_transaction_that_idles_has_the_shorter_of_both_limits() {
    transactions(SESSION, "1", "disconnect", 1);
}

#[test]
fn transactions_finish_also_where_all_clients_are_cut_at_once() {
    transactions(TRANSACTION, "-1", "disconnect", 3);
}

/// The cells of who is between transactions, one configuration at a time.
fn between(mode: (&'static str, &'static str), limit: i32, clients: &str, script: &str) {
    let limit = format!("client_idle_limit_in_recovery = {limit}");
    let clients = format!("recovery_clients = \"{clients}\"");
    let cluster = Cluster::single();
    let mut config = Config::of(&cluster);
    config.set(mode.0, mode.1).set("recovery", &limit).set("recovery", &clients);
    config.set("pool", "query_wait_timeout = \"1s\"").set("pool", "client_idle_timeout = \"4s\"");
    let pgmend = config.start();
    let head = r#"
idle, waiting, bound = connect(), connect(), connect()
for c in (idle, waiting): c.execute("SELECT 1")
bound.execute("CREATE TEMP TABLE mine (a int)")
d = Drain(30)
late = aside(lambda: one(waiting, "SELECT 7"))
"#;
    run(&cluster, &pgmend, &format!("{head}{script}"));
}

/// Held beyond their own limits on waiting and idling, which do not count; who is bound keeps the drain from ending.
const HELD: &str = r#"
new = connect()
fresh = aside(lambda: one(new, "SELECT 8"))
if %d:
    says(bound, REACHED(%d), 2.5, 7)
else:
    time.sleep(2)
    assert d.waits() and one(bound, "SELECT count(*) FROM mine") == 0
    bound.execute("DROP TABLE mine")
    time.sleep(3.5)
d.done()
assert late.waits() and fresh.waits()
resume()
assert late.done() == 7 and fresh.done() == 8 and one(idle, "SELECT 9") == 9
"#;

fn held(limit: i32) -> String {
    HELD.replace("%d", &limit.to_string())
}

const BOUND_IS_CUT: &str = r#"
says(bound, AT_ONCE, 0, 2)
d.done()
assert late.waits()
resume()
assert late.done() == 7 and one(idle, "SELECT 9") == 9
"#;

#[test]
fn held_in_transaction_pooling_with_no_limit() {
    between(TRANSACTION, 0, "hold", &held(0));
}

#[test]
fn held_in_session_pooling_with_no_limit() {
    between(SESSION, 0, "hold", &held(0));
}

#[test]
fn held_in_transaction_pooling_with_a_limit() {
    between(TRANSACTION, 3, "hold", &held(3));
}

#[test]
fn held_in_session_pooling_with_a_limit() {
    between(SESSION, 3, "hold", &held(3));
}

#[test]
fn held_in_transaction_pooling_with_a_limit_of_minus_one() {
    between(TRANSACTION, -1, "hold", BOUND_IS_CUT);
}

#[test]
fn held_in_session_pooling_with_a_limit_of_minus_one() {
    between(SESSION, -1, "hold", BOUND_IS_CUT);
}

/// A client that has sent a statement is not idle: its statement waits.
const IDLE_ARE_CUT: &str = r#"
new = connect()
idle_ended = aside(lambda: says(idle, REACHED(3), 2.5, 7))
says(bound, REACHED(3), 2.5, 7)
idle_ended.done()
d.done()
assert late.waits()
resume()
assert late.done() == 7 and one(new, "SELECT 8") == 8
"#;

#[test]
fn disconnected_in_transaction_pooling_with_a_limit() {
    between(TRANSACTION, 3, "disconnect", IDLE_ARE_CUT);
}

#[test]
fn disconnected_in_session_pooling_with_a_limit() {
    between(SESSION, 3, "disconnect", IDLE_ARE_CUT);
}

#[test]
fn disconnected_with_no_limit_is_held() {
    between(SESSION, 0, "disconnect", &held(0));
}

/// Also who has sent a statement; it is never executed. Who comes now is held.
const ALL_ARE_CUT: &str = r#"
for c in (idle, bound): says(c, AT_ONCE, 0, 2)
try: late.done(); assert False
except psycopg.OperationalError as e: assert "connection terminated due to online recovery" in str(e), e
d.done()
new = connect()
fresh = aside(lambda: one(new, "SELECT 8"))
time.sleep(0.3)
assert fresh.waits()
resume()
assert fresh.done() == 8
"#;

#[test]
fn disconnected_in_transaction_pooling_at_once() {
    between(TRANSACTION, -1, "disconnect", ALL_ARE_CUT);
}

#[test]
fn disconnected_in_session_pooling_at_once() {
    between(SESSION, -1, "disconnect", ALL_ARE_CUT);
}

#[test]
fn new_connections_may_be_refused() {
    story(
        &[TRANSACTION, ("recovery", "recovery_new_connections = \"reject\"")],
        r#"
old = connect()
d = Drain(20)
began = time.time()
try: connect(); assert False
except psycopg.OperationalError as e: assert "new connections are not accepted now: PAUSE of all databases" in str(e), e
assert time.time() - began < 2
d.done()
late = aside(lambda: one(old, "SELECT 7"))
resume()
assert late.done() == 7 and one(connect(), "SELECT 8") == 8
"#,
    );
}

#[test]
fn what_is_cancelled_or_left_while_it_is_held_is_never_executed() {
    for mode in [TRANSACTION, SESSION] {
        story(
            &[mode],
            r#"
straight.execute("CREATE TABLE t (who text)")
clients = [connect() for _ in range(6)]
for c in clients: c.execute("SELECT 1")
simple, extended, closes, vanishes, long, stays = clients
d = Drain(20)
d.done()
insert = "INSERT INTO t VALUES (%s)"
held = [aside(lambda: simple.execute("INSERT INTO t VALUES ('simple')")), aside(lambda: extended.execute(insert, ("extended",)))]
for c, who in ((closes, "closes"), (vanishes, "vanishes")):
    c.pgconn.send_query(f"INSERT INTO t VALUES ('{who}')".encode())
    c.pgconn.flush()
# More than a buffer: what follows is not even read.
long.pgconn.send_query(b"INSERT INTO t VALUES ('long') /*" + b"x" * 100000 + b"*/")
long.pgconn.flush()
goes_on = aside(lambda: stays.execute("INSERT INTO t VALUES ('stays')"))
time.sleep(0.3)
assert all(h.waits() for h in held)
for c, h in zip((simple, extended), held):
    c.cancel()
    try: h.done(); assert False
    except psycopg.errors.QueryCanceled as e: assert e.sqlstate == "57014" and "user request" in str(e)
again = aside(lambda: one(simple, "SELECT 7"))
os.close(closes.fileno())
vanish(vanishes)
os.close(long.fileno())
time.sleep(0.3)
assert again.waits()
resume()
assert again.done() == 7 and one(extended, "SELECT %s::int", (8,)) == 8
goes_on.done()
for c in [connect() for _ in range(4)]: c.execute("SELECT 1")
assert [r[0] for r in straight.execute("SELECT who FROM t")] == ["stays"], straight.execute("SELECT * FROM t").fetchall()
"#,
        );
    }
}

#[test]
fn anybody_may_shorten_his_own_limit_and_only_an_admin_lengthen_it() {
    let cluster = Cluster::single();
    cluster.sql(0, "postgres", "CREATE USER boss SUPERUSER");
    let mut config = Config::of(&cluster);
    config.set("pool", "mode = \"session\"").set("recovery", "client_idle_limit_in_recovery = 60");
    config.set("admin", "admin_users = [\"boss\"]");
    let pgmend = config.start();
    let script = r#"
shorter, same, lifted = connect(), connect(), connect("user=boss")
limit = lambda c: one(c, "PGPOOL SHOW client_idle_limit_in_recovery")
for c in (shorter, same, lifted):
    c.execute("CREATE TEMP TABLE mine (a int)")
    assert limit(c) == "60"
for value in ("61", "0"):
    try: same.execute(f"PGPOOL SET client_idle_limit_in_recovery = {value}"); assert False
    except psycopg.errors.InsufficientPrivilege as e: assert "admin_users" in str(e), e
shorter.execute("PGPOOL SET client_idle_limit_in_recovery TO 2")
lifted.execute("PGPOOL SET client_idle_limit_in_recovery = 0")
same.execute("PGPOOL SET client_idle_limit_in_recovery = -1")
same.execute("PGPOOL RESET client_idle_limit_in_recovery")
assert [limit(c) for c in (shorter, same, lifted)] == ["2", "60", "0"]
assert limit(connect()) == "60"
d = Drain(60)
says(shorter, REACHED(2), 1.5, 5)
assert d.waits() and one(same, "SELECT 1") == 1
same.close()
lifted.close()
d.done()
resume()
# A reload is for the next drain.
"#;
    run(&cluster, &pgmend, script);
    config.set("recovery", "client_idle_limit_in_recovery = -1").write();
    pgmend.cli(&["reload"]).must();
    let script = r#"
bound, longer = connect(), connect()
for c in (bound, longer): c.execute("CREATE TEMP TABLE mine (a int)")
assert one(bound, "PGPOOL SHOW client_idle_limit_in_recovery") == "-1"
d = Drain(60)
for c in (bound, longer): says(c, AT_ONCE, 0, 2)
d.done()
resume()
"#;
    run(&cluster, &pgmend, script);
}

#[test]
fn what_changed_meanwhile_is_an_error_and_no_wrong_answer() {
    story(
        &[SESSION],
        r#"
straight.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (7); CREATE SEQUENCE s")
c = connect()
raw = c.pgconn
P = psycopg.pq
def parse(name, sql): assert raw.prepare(name, sql).status == P.ExecStatus.COMMAND_OK
def run(name, *values):
    r = raw.exec_prepared(name, list(values))
    return r.get_value(0, 0) if r.status == P.ExecStatus.TUPLES_OK else r.error_field(P.DiagnosticField.SQLSTATE).decode()
parse(b"other", b"SELECT a FROM t")
parse(b"same", b"SELECT a::text FROM t WHERE a = $1")
parse(b"gone", b"SELECT 1")
raw.exec_(b"DEALLOCATE gone")
parse(b"", b"SELECT $1::text || '!'")
d = Drain(20)
d.done()
straight.execute("ALTER TABLE t ALTER a TYPE bigint")
resume()
assert run(b"", b"unnamed") == b"unnamed!"
assert run(b"", b"again") == b"again!"
assert (run(b"other"), run(b"same", b"7"), run(b"gone")) == ("26000", b"7", "26000")
assert one(c, "SELECT nextval('s')") == 1
# Whoever could not be moved keeps his unnamed statement too, although the server was asked.
c.execute("CREATE TEMP TABLE mine (a int)")
parse(b"", b"SELECT $1::text || '?'")
d = Drain(1)
until("it was asked", lambda: "temporary object mine" in status())
d.failed()
assert run(b"", b"unnamed") == b"unnamed?"
"#,
    );
}

#[test]
fn a_load_in_session_pooling_does_not_notice() {
    let cluster = Cluster::single();
    cluster.pgbench_tables("postgres", 4);
    let mut config = Config::of(&cluster);
    config.set("pool", "mode = \"session\"").set("listen", "workers = 3");
    let pgmend = config.start();
    let load = Load::start(&pgmend.door(), cluster.folder(), 16);
    for _ in 0..10 {
        pgmend.cli(&["pause", "--drain"]).must();
        pgmend.cli(&["resume"]).must();
        load.writes(|| cluster.pgbench_transactions(0), 64);
    }
    load.goes_on();
    println!("longest wait: {:?}", load.longest());
    load.finish();
}
